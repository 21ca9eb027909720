"""The Job that migrates: `medianest-dbctl migrate` beside the server, over TLS, as the migrator role."""

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.controller.kinds import JOB
from medianest_operator.naming import Names
from medianest_operator.resources import secrets
from medianest_operator.resources.meta import Manifest, manifest, restricted_container, restricted_pod

EXIT_FAILED = 1
"""medianest-dbctl: the migration failed, and would fail again."""


def migration_job(
    names: Names, spec: DatabaseSpec, image: str, source_digest: str, owner: Mapping[str, Any]
) -> Manifest:
    """One run of one source. Its name holds the source's digest, so that a restarted operator finds it again."""
    migrator = names.role_secret(secrets.MIGRATOR.suffix)

    def from_secret(variable: str, key: str) -> dict[str, Any]:
        return {"name": variable, "valueFrom": {"secretKeyRef": {"name": migrator, "key": key}}}

    config_map = spec.migrations.source.config_map
    source = ["--source", naming.MIGRATIONS_MOUNT] if config_map else ["--bundled"]
    target = ["--target", spec.migrations.target] if spec.migrations.target else []
    mounts = [{"name": "server-ca", "mountPath": "/tls", "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"}]
    ca = {"key": naming.TLS_CA, "path": naming.TLS_CA}
    volumes: list[dict[str, Any]] = [
        {"name": "server-ca", "secret": {"secretName": migrator, "items": [ca], "defaultMode": 0o444}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
    ]
    if config_map:
        mounts.append({"name": "migrations", "mountPath": naming.MIGRATIONS_MOUNT, "readOnly": True})
        volumes.append({"name": "migrations", "configMap": {"name": config_map.name}})
    container = {
        "name": naming.CONTAINER_MIGRATE,
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        "command": [naming.DBCTL_BIN, "migrate", *source, *target, "--result-file", "/dev/termination-log"],
        "env": [
            {"name": "PGHOST", "value": names.service_fqdn(names.read_write_service)},
            {"name": "PGPORT", "value": str(naming.POSTGRES_PORT)},
            {"name": "PGDATABASE", "value": spec.database.name},
            {"name": "PGSSLMODE", "value": "verify-full"},
            {"name": "PGSSLROOTCERT", "value": f"/tls/{naming.TLS_CA}"},
            {"name": "PGAPPNAME", "value": "medianest-migrate"},
            from_secret("PGUSER", "user"),
            from_secret("PGPASSWORD", "password"),
        ],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": restricted_container(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": restricted_pod(naming.POSTGRES_UID),
        "containers": [container],
        "volumes": volumes,
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in spec.image_pull_secrets]
    if spec.scheduling.node_selector:
        pod["nodeSelector"] = spec.scheduling.node_selector
    if spec.scheduling.tolerations:
        pod["tolerations"] = [item.model_dump(by_alias=True, exclude_none=True) for item in spec.scheduling.tolerations]
    return manifest(
        JOB,
        names,
        names.migration_job(source_digest),
        owner,
        component=naming.COMPONENT_MIGRATION,
        annotations={naming.ANNOTATION_SOURCE_DIGEST: source_digest},
        spec={
            "backoffLimit": 6,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": naming.CONTAINER_MIGRATE,
                            "operator": "In",
                            "values": [EXIT_FAILED],
                        },
                    },
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": names.labels(naming.COMPONENT_MIGRATION)}, "spec": pod},
        },
    )
