"""The Job that migrates: `medianest-dbctl migrate` beside the server, over TLS, as the migrator role."""

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec, OnDelete
from medianest_operator.api.migrations import ImageSource
from medianest_operator.controller.kinds import CLAIM, JOB
from medianest_operator.migrations.options import RunOptions
from medianest_operator.naming import Names
from medianest_operator.postgres.quantity import to_bytes, to_timedelta
from medianest_operator.resources import secrets
from medianest_operator.resources.meta import Manifest, manifest, restricted_container, restricted_pod

EXIT_FAILED = 1
"""medianest-dbctl: the migration failed, and would fail again."""
GRACE_SECONDS = 120
"""A run that is asked to stop goes back first."""
_SCRATCH_BASE = 1 << 30
_SERVER_CA = "/tls"


def run_options(spec: DatabaseSpec) -> RunOptions:
    """How a run of this spec behaves; what fails with them isn't tried again with the same."""
    wanted = spec.migrations
    return RunOptions(
        target=wanted.target,
        on_failure=wanted.on_failure,
        rehearse=wanted.rehearse,
        rehearsal_limit=to_bytes(wanted.rehearsal_limit),
        allow_destructive=wanted.allow_destructive,
        lock_timeout=_milliseconds(wanted.lock_timeout),
        statement_timeout=_milliseconds(wanted.statement_timeout),
        retry=wanted.retry,
        once=True,
    )


# Kubernetes' own tolerations of these taints are five minutes; a run that holds writers off can't wait so long.
_LEAVES_A_LOST_NODE = [
    {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}
    for what in ("unreachable", "not-ready")
]


def _milliseconds(duration: str) -> int:
    return int(to_timedelta(duration).total_seconds() * 1000)


def backup_claim(names: Names, spec: DatabaseSpec, owner: Mapping[str, Any]) -> Manifest:
    """The volume of the pre-migration backups. It outlives the object where the data's volumes do."""
    wanted = spec.migrations.backup_storage
    content: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": wanted.size or spec.storage.size}},
    }
    if wanted.storage_class_name:
        content["storageClassName"] = wanted.storage_class_name
    return manifest(
        CLAIM,
        names,
        names.migration_backups,
        owner if spec.storage.on_delete == OnDelete.DELETE else None,
        component=naming.COMPONENT_MIGRATION_BACKUPS,
        spec=content,
    )


def migration_job(
    names: Names,
    spec: DatabaseSpec,
    image: str,
    source_digest: str,
    owner: Mapping[str, Any],
    *,
    backs_up: bool,
    recheck: bool = False,
) -> Manifest:
    """One run of one source. Its name holds the source's digest, so that a restarted operator finds it again.

    Args:
        backs_up: the database holds something, so that the run backs it up first.
        recheck: it only looks whether the image has other migrations by now.
    """
    annotations = {naming.ANNOTATION_SOURCE_DIGEST: source_digest}
    if recheck:
        annotations[naming.ANNOTATION_RECHECK] = "true"
    return manifest(
        JOB,
        names,
        names.migration_job(source_digest),
        owner,
        component=naming.COMPONENT_MIGRATION,
        annotations=annotations,
        spec={
            "backoffLimit": 6,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    _fails_for_good(naming.CONTAINER_MIGRATE),
                    *([_fails_for_good(naming.CONTAINER_COPY)] if spec.migrations.source.image else []),
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {
                "metadata": {"labels": names.labels(naming.COMPONENT_MIGRATION)},
                "spec": _pod(names, spec, image, backs_up),
            },
        },
    )


def _fails_for_good(container: str) -> dict[str, Any]:
    codes = {"containerName": container, "operator": "In", "values": [EXIT_FAILED]}
    return {"action": "FailJob", "onExitCodes": codes}


def _pod(names: Names, spec: DatabaseSpec, image: str, backs_up: bool) -> dict[str, Any]:
    source = spec.migrations.source
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": restricted_pod(naming.POSTGRES_UID),
        "containers": [_container(names, spec, image, backs_up)],
        "volumes": _volumes(names, spec, backs_up),
    }
    if source.image:
        pod["initContainers"] = [_copying_container(source.image)]
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in spec.image_pull_secrets]
    if spec.scheduling.node_selector:
        pod["nodeSelector"] = spec.scheduling.node_selector
    own = [item.model_dump(by_alias=True, exclude_none=True) for item in spec.scheduling.tolerations]
    pod["tolerations"] = [*own, *_LEAVES_A_LOST_NODE]
    return pod


def _container(names: Names, spec: DatabaseSpec, image: str, backs_up: bool) -> dict[str, Any]:
    migrator = names.role_secret(secrets.MIGRATOR.suffix)

    def from_secret(variable: str, key: str) -> dict[str, Any]:
        return {"name": variable, "valueFrom": {"secretKeyRef": {"name": migrator, "key": key}}}

    mounts = [
        {"name": "server-ca", "mountPath": _SERVER_CA, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "work", "mountPath": naming.WORK_MOUNT},
    ]
    if not spec.migrations.source.is_bundled:
        mounts.append({"name": "migrations", "mountPath": naming.MIGRATIONS_MOUNT, "readOnly": True})
    if backs_up:
        mounts.append({"name": "backups", "mountPath": naming.BACKUP_MOUNT})
    return {
        "name": naming.CONTAINER_MIGRATE,
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        "command": [naming.DBCTL_BIN, "migrate", *_arguments(spec, backs_up)],
        "env": [
            {"name": "PGHOST", "value": names.service_fqdn(names.read_write_service)},
            {"name": "PGPORT", "value": str(naming.POSTGRES_PORT)},
            {"name": "PGDATABASE", "value": spec.database.name},
            {"name": "PGSSLMODE", "value": "verify-full"},
            {"name": "PGSSLROOTCERT", "value": f"{_SERVER_CA}/{naming.TLS_CA}"},
            {"name": "PGAPPNAME", "value": "medianest-migrate"},
            # Spooled dumps may be large.
            {"name": "TMPDIR", "value": naming.WORK_MOUNT},
            from_secret("PGUSER", "user"),
            from_secret("PGPASSWORD", "password"),
        ],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": restricted_container(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _arguments(spec: DatabaseSpec, backs_up: bool) -> list[str]:
    options = run_options(spec)
    arguments = ["--bundled"] if spec.migrations.source.is_bundled else ["--source", naming.MIGRATIONS_MOUNT]
    if options.target:
        arguments += ["--target", options.target]
    arguments += ["--on-failure", options.on_failure, "--rehearse", options.rehearse]
    arguments += ["--rehearsal-limit", str(options.rehearsal_limit)]
    arguments += [
        "--lock-timeout",
        f"{options.lock_timeout}ms",
        "--statement-timeout",
        f"{options.statement_timeout}ms",
    ]
    if options.allow_destructive:
        arguments.append("--allow-destructive")
    if options.retry:
        arguments += ["--retry", options.retry]
    if backs_up:
        arguments += ["--backup-dir", naming.BACKUP_MOUNT]
    return [*arguments, "--work-dir", naming.WORK_MOUNT, "--once", "--result-file", "/dev/termination-log"]


def _volumes(names: Names, spec: DatabaseSpec, backs_up: bool) -> list[dict[str, Any]]:
    source = spec.migrations.source
    ca = {"key": naming.TLS_CA, "path": naming.TLS_CA}
    migrator = names.role_secret(secrets.MIGRATOR.suffix)
    # A copy's indexes, its write-ahead log and the dump come on top of the data.
    scratch = 2 * to_bytes(spec.migrations.rehearsal_limit) + _SCRATCH_BASE
    volumes: list[dict[str, Any]] = [
        {"name": "server-ca", "secret": {"secretName": migrator, "items": [ca], "defaultMode": 0o444}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        {"name": "work", "emptyDir": {"sizeLimit": str(scratch)}},
    ]
    if source.config_map:
        volumes.append({"name": "migrations", "configMap": {"name": source.config_map.name}})
    if source.image:
        volumes.append({"name": "migrations", "emptyDir": {"sizeLimit": "256Mi"}})
    if backs_up:
        volumes.append({"name": "backups", "persistentVolumeClaim": {"claimName": names.migration_backups}})
    return volumes


def _copying_container(source: ImageSource) -> dict[str, Any]:
    """The application's image hands its migrations over."""
    return {
        "name": naming.CONTAINER_COPY,
        "image": source.reference,
        "imagePullPolicy": source.pull_policy or ("IfNotPresent" if "@sha256:" in source.reference else "Always"),
        "command": ["cp", "-R", "-L", f"{source.path}/.", naming.MIGRATIONS_MOUNT],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": restricted_container(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "migrations", "mountPath": naming.MIGRATIONS_MOUNT}],
    }
