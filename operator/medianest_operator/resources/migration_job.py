"""The Job that migrates: `medianest-dbctl migrate` beside the server, over TLS, as the migrator role."""

from collections.abc import Mapping
from typing import Any, Final

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.migrations import ImageSource
from medianest_operator.api.quantity import to_bytes, to_timedelta
from medianest_operator.api.run_options import RunOptions
from medianest_operator.kubernetes.kinds import JOB, Manifest
from medianest_operator.naming import Names
from medianest_operator.postgres.logins import MIGRATOR
from medianest_operator.resources import repositories, sandbox
from medianest_operator.resources.dbctl_job import RESULT_FILE, dbctl_container, dbctl_pod, job_spec
from medianest_operator.resources.meta import manifest, restricted_container

GRACE_SECONDS = 120
"""A run that is asked to stop goes back first."""
_SCRATCH_BASE = 1 << 30
_RESOURCES: Final = sandbox.Halves.of({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}})


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


def _milliseconds(duration: str) -> int:
    return int(to_timedelta(duration).total_seconds() * 1000)


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
    from_image = spec.migrations.source.image
    pod = dbctl_pod(
        names,
        spec,
        _container(names, spec, image, backs_up),
        role=MIGRATOR,
        volumes=_volumes(names, spec, backs_up),
        init_containers=[
            *([_copying_container(from_image)] if from_image else []),
            sandbox.container(spec, image, _RESOURCES.sandbox),
        ],
        grace_seconds=GRACE_SECONDS,
    )
    final = [naming.CONTAINER_MIGRATE, *([naming.CONTAINER_COPY] if from_image else [])]
    return manifest(
        JOB,
        names,
        names.migration_job(source_digest),
        owner,
        component=naming.COMPONENT_MIGRATION,
        annotations=annotations,
        spec=job_spec(names, naming.COMPONENT_MIGRATION, pod, fails_for_good=final),
    )


def _container(names: Names, spec: DatabaseSpec, image: str, backs_up: bool) -> Manifest:
    mounts: list[Manifest] = sandbox.mounts()
    if not spec.migrations.source.is_bundled:
        mounts.append({"name": "migrations", "mountPath": naming.MIGRATIONS_MOUNT, "readOnly": True})
    if backs_up:
        for access in _backups(names, spec):
            mounts += access.mounts
    return dbctl_container(
        names,
        spec,
        image,
        name=naming.CONTAINER_MIGRATE,
        role=MIGRATOR,
        application_name="medianest-migrate",
        arguments=["migrate", *_arguments(names, spec, backs_up)],
        resources=_RESOURCES.own,
        # Spooled dumps may be large.
        env=[{"name": "TMPDIR", "value": naming.WORK_MOUNT}],
        mounts=mounts,
    )


def _backups(names: Names, spec: DatabaseSpec) -> tuple[repositories.Access, ...]:
    """The backup before a run goes to where all others go."""
    reached = repositories.access(names, spec.backup.repositories)
    return reached, repositories.identity(spec.backup.identity_secret), repositories.signing(spec.backup.signing_secret)


def _arguments(names: Names, spec: DatabaseSpec, backs_up: bool) -> list[str]:
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
        arguments += ["--namespace", names.namespace, "--name", names.database]
        for access in _backups(names, spec):
            arguments += access.arguments
        for recipient in spec.backup.recipients:
            arguments += ["--recipient", recipient]
    return [*arguments, "--work-dir", naming.WORK_MOUNT, *sandbox.ARGUMENTS, "--once", "--result-file", RESULT_FILE]


def _volumes(names: Names, spec: DatabaseSpec, backs_up: bool) -> list[Manifest]:
    source = spec.migrations.source
    # A copy's indexes, its write-ahead log and the dump come on top of the data.
    scratch = 2 * to_bytes(spec.migrations.rehearsal_limit) + _SCRATCH_BASE
    volumes: list[Manifest] = [{"name": "work", "emptyDir": {"sizeLimit": str(scratch)}}]
    if source.config_map:
        volumes.append({"name": "migrations", "configMap": {"name": source.config_map.name}})
    if source.image:
        volumes.append({"name": "migrations", "emptyDir": {"sizeLimit": "256Mi"}})
    if backs_up:
        for access in _backups(names, spec):
            volumes += access.volumes
    return volumes


def _copying_container(source: ImageSource) -> Manifest:
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
