"""The Jobs and CronJobs around backups: take one, verify one, bring one in. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from medianest_operator import naming
from medianest_operator.api.backup import Repository, Tier
from medianest_operator.api.backup_object import BackupSpec
from medianest_operator.api.bootstrap import BackupsOf, Import, RestoreSource
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.model import LocalReference
from medianest_operator.api.operation import Restore
from medianest_operator.api.quantity import to_bytes, to_timedelta
from medianest_operator.kubernetes.kinds import BACKUP, CRON_JOB, JOB, Manifest
from medianest_operator.naming import Names
from medianest_operator.postgres import logins
from medianest_operator.resources import repositories, sandbox
from medianest_operator.resources.dbctl_job import RESULT_FILE, dbctl_container, dbctl_pod, job_spec
from medianest_operator.resources.meta import manifest
from medianest_operator.timestamps import stamp

TierName = Literal["daily", "weekly", "monthly"]
TIERS: tuple[TierName, ...] = ("daily", "weekly", "monthly")
ON_DEMAND = "on-demand"
KEEP_ON_DEMAND = "30d"
VERIFIED_TIERS = frozenset({"weekly", "monthly"})
"""Whose backups are restored once, in the Job that took them."""
GRACE_SECONDS = 60
"""A backup that is asked to stop removes what it has stored so far."""
_START_WITHIN_SECONDS = 3600
"""A CronJob that could not start for so long leaves that turn out, instead of taking it at some odd hour."""
_TRIES = 2
_SOURCE_MOUNT = "/source"
_OF_EACH_REPOSITORY = frozenset({naming.CONTAINER_BACKUP, naming.CONTAINER_VERIFY})


def tier_of(spec: DatabaseSpec, name: TierName) -> Tier:
    """The spec of a series."""
    found: Tier = getattr(spec.backup.logical, name)
    return found


def cron_jobs(names: Names, spec: DatabaseSpec, image: str, owner: Mapping[str, Any]) -> list[Manifest]:
    """One CronJob a series, and one for the recovery drill."""
    wanted = []
    for tier in TIERS:
        if tier_of(spec, tier).enabled:
            wanted.append(_cron_job(names, spec, names.backup_cron_job(tier), tier, image, owner))
    if spec.backup.verification.enabled and can_verify(spec):
        wanted.append(_cron_job(names, spec, names.verification_cron_job, None, image, owner))
    return wanted


def can_verify(spec: DatabaseSpec) -> bool:
    """Whether this cluster can read the backups that it takes."""
    return not spec.backup.recipients or spec.backup.identity_secret is not None


def to_days(days: str) -> timedelta:
    """A number of days, such as `7d`."""
    return timedelta(days=int(days.removesuffix("d")))


def is_suspended(spec: DatabaseSpec) -> bool:
    """Whether no Job starts by itself."""
    return spec.backup.suspend or spec.hibernate


def as_scheduled(spec: DatabaseSpec, live: Sequence[Manifest]) -> DatabaseSpec:
    """The spec with the schedules of the CronJobs that there are: while nothing may be changed, these are what comes.

    Args:
        live: the database's CronJobs.
    """
    running = {
        item["metadata"]["labels"].get(naming.LABEL_TIER): item["spec"]
        for item in live
        if not item["spec"].get("suspend")
    }

    def of(name: TierName | None, wanted: Any) -> Any:
        found = running.get(name)
        known = {"enabled": True, "schedule": found["schedule"]} if found else {"enabled": False}
        return wanted.model_copy(update=known)

    backup = spec.backup
    logical = backup.logical.model_copy(update={name: of(name, tier_of(spec, name)) for name in TIERS})
    zones = {str(item["timeZone"]) for item in running.values() if item.get("timeZone")}
    still = bool(live) and not running
    update = {
        "logical": logical,
        "verification": of(None, backup.verification),
        "time_zone": min(zones, default=backup.time_zone),
        "suspend": still and not spec.hibernate,
    }
    return spec.model_copy(update={"backup": backup.model_copy(update=update), "hibernate": still and spec.hibernate})


def _cron_job(
    names: Names, spec: DatabaseSpec, name: str, tier: TierName | None, image: str, owner: Mapping[str, Any]
) -> Manifest:
    if tier is None:
        schedule, component = spec.backup.verification.schedule, naming.COMPONENT_VERIFICATION
        job = _verification(names, spec, image)
    else:
        schedule, component = tier_of(spec, tier).schedule, naming.COMPONENT_BACKUP
        verify = spec.backup.verification.enabled and tier in VERIFIED_TIERS
        job = _backup(names, spec, image, tier, spec.backup.repositories, verify=verify)
    labels = names.labels(component) | ({naming.LABEL_TIER: tier} if tier else {})
    made = manifest(
        CRON_JOB,
        names,
        name,
        owner,
        component=component,
        spec={
            "schedule": schedule,
            "timeZone": spec.backup.time_zone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": _START_WITHIN_SECONDS,
            "suspend": is_suspended(spec),
            "successfulJobsHistoryLimit": 2,
            "failedJobsHistoryLimit": 2,
            "jobTemplate": {"metadata": {"labels": labels}, "spec": job},
        },
    )
    made["metadata"]["labels"] = labels
    return made


def on_demand_job(
    names: Names,
    spec: DatabaseSpec,
    wanted: BackupSpec,
    asked_at: datetime,
    digest: str,
    image: str,
    owner: Mapping[str, Any],
) -> Manifest:
    """The Job of a `MediaNestBackup`.

    Args:
        asked_at: when the object was made: what it is to be kept for counts from then.
        digest: of the object's identity.
        owner: the object.
    """
    until = stamp(asked_at + to_days(wanted.keep or KEEP_ON_DEMAND))
    chosen = [item for item in spec.backup.repositories if not wanted.repositories or item.name in wanted.repositories]
    job = _backup(names, spec, image, ON_DEMAND, chosen, verify=wanted.verify, until=until)
    made = manifest(JOB, names, names.on_demand_backup_job(digest), owner, component=naming.COMPONENT_BACKUP, spec=job)
    made["metadata"]["labels"][naming.LABEL_TIER] = ON_DEMAND
    return made


def migration_backup(names: Names, name: str, job: str, owner: Mapping[str, Any]) -> Manifest:
    """The `MediaNestBackup` that tells of the backup that a migration Job took."""
    return manifest(BACKUP, names, name, owner, spec={"database": names.database, "migration": job})


def _backup(
    names: Names,
    spec: DatabaseSpec,
    image: str,
    tier: str,
    chosen: Sequence[Repository],
    *,
    verify: bool,
    until: str | None = None,
) -> Manifest:
    arguments = ["backup", "--tier", tier]
    for item in TIERS:
        arguments += ["--keep", f"{item}={tier_of(spec, item).keep}"]
    if until:
        arguments += ["--keep-until", until]
    if spec.instances > 1:
        arguments += ["--replica-host", names.service_fqdn(names.read_only_service)]
    for recipient in spec.backup.recipients:
        arguments += ["--recipient", recipient]
    if spec.backup.logical.formats:
        for kind in ("custom", *spec.backup.logical.formats):
            arguments += ["--format", kind.lower()]
    verifies = verify and can_verify(spec)
    if verifies:
        arguments.append("--verify")
    identity = spec.backup.identity_secret if verify else None
    return _job(names, spec, image, logins.BACKUP, naming.CONTAINER_BACKUP, naming.COMPONENT_BACKUP, arguments, chosen,
        identity=identity, signing=spec.backup.signing_secret, copies=verifies)  # fmt: skip


def _verification(names: Names, spec: DatabaseSpec, image: str) -> Manifest:
    arguments = ["verify", "--backup", "latest", "--reread", spec.backup.verification.reread]
    return _job(
        names, spec, image, logins.BACKUP, naming.CONTAINER_VERIFY, naming.COMPONENT_VERIFICATION, arguments,
        spec.backup.repositories, identity=spec.backup.identity_secret, signing=spec.backup.signing_secret,
        copies=True,
    )  # fmt: skip


def restore_job(
    names: Names,
    spec: DatabaseSpec,
    source: RestoreSource,
    target: str,
    digest: str,
    image: str,
    owner: Mapping[str, Any],
    *,
    annotations: Mapping[str, str],
    system_identifier: str | None = None,
    asked: Restore | None = None,
    others: Sequence[Repository] = (),
    asks: bool = False,
) -> Manifest:
    """The Job that fills an empty database from a backup and verifies it.

    Args:
        target: the database.
        digest: of the request.
        annotations: which request it is for, and which try.
        system_identifier: of the server whose backups count, where only one's do.
        asked: the restore in place that it is for.
        others: more repositories that may have the backup.
        asks: it gives up where a superuser could make extensions beforehand, and says which.
    """
    arguments = _restore(spec, source, system_identifier, asked)
    if asks:
        arguments.append("--ask-for-extensions")
    job = _job(
        names, spec, image, logins.MIGRATOR, naming.CONTAINER_RESTORE, naming.COMPONENT_RESTORE, arguments,
        [source.repository, *others], identity=source.identity_secret, signing=source.signing_secret, target=target,
        of=source.database,
    )  # fmt: skip
    return manifest(
        JOB, names, names.restore_job(digest), owner,
        component=naming.COMPONENT_RESTORE, annotations=annotations, spec=_once(job),
    )  # fmt: skip


def aside_job(
    names: Names,
    spec: DatabaseSpec,
    source: RestoreSource,
    digest: str,
    image: str,
    owner: Mapping[str, Any],
    *,
    system_identifier: str | None,
    asked: Restore,
    others: Sequence[Repository],
    schema: str,
) -> Manifest:
    """The Job of an operation that leaves the live database in its place: one that brings tables back beside it, or a
    dry run, which only reads it.

    Args:
        digest: of the operation.
        system_identifier: of the server whose backups count, where only one's do.
        others: more repositories that may have the backup.
        schema: for the tables that are brought back.
    """
    arguments = _restore(spec, source, system_identifier, asked)
    for table in asked.tables:
        arguments += ["--table", _literal(table)]
    if asked.tables:
        arguments += ["--into-schema", schema, "--request", digest[:16]]
    if asked.dry_run:
        arguments.append("--dry-run")
    job = _job(
        names, spec, image, logins.BACKUP if asked.dry_run else logins.MIGRATOR, naming.CONTAINER_RESTORE,
        naming.COMPONENT_ASIDE, arguments, [source.repository, *others], identity=source.identity_secret,
        signing=source.signing_secret,
    )  # fmt: skip
    return manifest(JOB, names, names.aside_job(digest), owner, component=naming.COMPONENT_ASIDE, spec=job)


def _restore(
    spec: DatabaseSpec, source: RestoreSource, system_identifier: str | None, asked: Restore | None
) -> list[str]:
    arguments = ["restore", "--backup", source.backup]
    if system_identifier:
        arguments += ["--system-identifier", system_identifier]
    if source.accept_unsigned:
        arguments.append("--accept-unsigned")
    if asked is None:
        return arguments
    # The database that is replaced is there: nothing of it may get lost without a word.
    arguments.append("--strict")
    if asked.target_time:
        arguments += ["--target-time", asked.target_time]
    for label in asked.accept_differences:
        arguments += ["--accept-difference", _literal(label)]
    return [*arguments, "--volume-size", str(to_bytes(spec.storage.size))]


def _literal(text: str) -> str:
    """A person's text, in which Kubernetes must find no variable."""
    return text.replace("$", "$$")


def replaced_job(
    names: Names, spec: DatabaseSpec, database: str, until: str, name: str, image: str, owner: Mapping[str, Any]
) -> Manifest:
    """The Job that backs up a database which a restore has replaced, before it is dropped.

    Args:
        database: its name by now.
        until: how long the backup is kept, in RFC 3339.
    """
    arguments = ["backup", "--tier", "replaced", "--keep-until", until]
    for recipient in spec.backup.recipients:
        arguments += ["--recipient", recipient]
    job = _job(
        names, spec, image, logins.BACKUP, naming.CONTAINER_BACKUP, naming.COMPONENT_RESTORE, arguments,
        spec.backup.repositories, signing=spec.backup.signing_secret, target=database,
    )  # fmt: skip
    return manifest(
        JOB, names, name, owner,
        component=naming.COMPONENT_RESTORE, annotations={naming.ANNOTATION_REPLACED: database}, spec=job,
    )  # fmt: skip


def import_job(
    names: Names,
    spec: DatabaseSpec,
    wanted: Import,
    target: str,
    digest: str,
    image: str,
    owner: Mapping[str, Any],
    *,
    annotations: Mapping[str, str],
) -> Manifest:
    """The Job that fills an empty database from a running server, and compares."""
    key = wanted.connection_secret.key
    secret = {"secretName": wanted.connection_secret.name, "items": [{"key": key, "path": "url"}], "defaultMode": 0o440}
    job = _job(
        names, spec, image, logins.MIGRATOR, naming.CONTAINER_RESTORE, naming.COMPONENT_RESTORE,
        ["import", "--source-file", f"{_SOURCE_MOUNT}/url"], [], target=target, copies=True,
        volumes=[{"name": "source", "secret": secret}],
        mounts=[{"name": "source", "mountPath": _SOURCE_MOUNT, "readOnly": True}],
    )  # fmt: skip
    return manifest(
        JOB, names, names.restore_job(digest), owner,
        component=naming.COMPONENT_RESTORE, annotations=annotations, spec=_once(job),
    )  # fmt: skip


def _once(job: Manifest) -> Manifest:
    """Of one pod alone: another one would find what this one has filled so far. The operator tries again, with an empty
    database and another Job."""
    rules = [rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] != "Ignore"]
    return job | {"backoffLimit": 0, "podFailurePolicy": {"rules": rules}}


def _job(
    names: Names,
    spec: DatabaseSpec,
    image: str,
    role: logins.LoginRole,
    container_name: str,
    component: str,
    arguments: Sequence[str],
    chosen: Sequence[Repository],
    *,
    identity: LocalReference | None = None,
    signing: LocalReference | None = None,
    target: str | None = None,
    of: BackupsOf | None = None,
    volumes: Sequence[Manifest] = (),
    mounts: Sequence[Manifest] = (),
    copies: bool = False,
) -> Manifest:
    """A Job's spec.

    Args:
        copies: it makes a copy, in a sandbox.
    """
    # A restore waits for what it needs; a backup goes into what it can reach.
    starts_without = container_name in _OF_EACH_REPOSITORY and len(chosen) > 1
    reached = repositories.access(names, chosen, starts_without=starts_without)
    key = repositories.identity(identity)
    signs = repositories.signing(signing)
    whose = of or BackupsOf()
    resources = {
        "requests": spec.backup.resources.requests.model_dump(exclude_none=True),
        "limits": spec.backup.resources.limits.model_dump(exclude_none=True),
    }
    halves = sandbox.Halves.of(resources)
    work = sandbox.mounts() if copies else [{"name": "work", "mountPath": naming.WORK_MOUNT}]
    origin = ["--namespace", whose.namespace or names.namespace, "--name", whose.name or names.database]
    container = dbctl_container(
        names,
        spec,
        image,
        name=container_name,
        role=role,
        application_name=f"medianest-{arguments[0]}",
        arguments=[
            *arguments,
            *(origin if chosen else []),
            *reached.arguments,
            *key.arguments,
            *signs.arguments,
            *("--work-dir", naming.WORK_MOUNT),
            *(sandbox.ARGUMENTS if copies else ()),
            *("--result-file", RESULT_FILE),
        ],
        resources=halves.own if copies else resources,
        dbname=target,
        env=_by_hand(reached.arguments, key.arguments, signs.arguments),
        mounts=[*work, *reached.mounts, *key.mounts, *signs.mounts, *mounts],
    )
    pod = dbctl_pod(
        names,
        spec,
        container,
        role=role,
        volumes=[_work(spec), *reached.volumes, *key.volumes, *signs.volumes, *volumes],
        init_containers=[sandbox.container(spec, image, halves.sandbox)] if copies else [],
        grace_seconds=GRACE_SECONDS,
    )
    if spec.backup.service_account_name:
        pod["serviceAccountName"] = spec.backup.service_account_name
    job = job_spec(names, component, pod, fails_for_good=[container_name])
    return job | {
        "backoffLimit": _TRIES,
        "activeDeadlineSeconds": int(to_timedelta(spec.backup.deadline).total_seconds()),
    }


def _by_hand(reached: Sequence[str], key: Sequence[str], signs: Sequence[str]) -> list[Manifest]:
    """Variables by which a person in a copy of such a pod needs no options: docs/runbooks/DataLost.md makes one."""
    told = {
        "MEDIANEST_REPOSITORIES": " ".join(reached[1::2]),
        "MEDIANEST_IDENTITY_FILE": "".join(key[1:]),
        "MEDIANEST_SIGNING_KEYS": "".join(signs[1:]),
        "MEDIANEST_WORK_DIR": naming.WORK_MOUNT,
    }
    return [{"name": name, "value": value} for name, value in told.items() if value]


def _work(spec: DatabaseSpec) -> Manifest:
    """Where a copy of the database lies while it is looked at."""
    wanted = spec.backup.scratch
    size = wanted.size or str(3 * to_bytes(spec.storage.size))
    if wanted.storage_class_name is None:
        return {"name": "work", "emptyDir": {"sizeLimit": size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": wanted.storage_class_name,
        "resources": {"requests": {"storage": size}},
    }
    return {"name": "work", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
