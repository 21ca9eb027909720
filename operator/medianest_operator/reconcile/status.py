"""The status: pure, from what a run found."""

from collections.abc import Mapping
from datetime import datetime

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition
from medianest_operator.reconcile.conditions import Findings, Manifest, Verdict, condition_of, ready_pods, verdicts_of
from medianest_operator.timestamps import stamp


def build(found: Findings, previous: Manifest, now: datetime) -> api.DatabaseStatus:
    """The new status. What this run could not see is taken over from `previous`."""
    verdicts = verdicts_of(found, previous)
    return api.DatabaseStatus(
        observed_generation=found.generation,
        phase=verdicts[Condition.READY].reason.value,
        conditions=timed(verdicts, previous, found.generation, now),
        instances=_instances(found, previous),
        connection=_connection(found),
        schema_=_schema(found, previous),
        indexes=_indexes(found, previous),
        hardening=_hardening(found, previous),
        backup=_backup(found, previous),
        restore=_restore(found, previous),
        image=found.image or previous.get("image"),
        certificates=_certificates(found, previous),
        replicas=len(found.pods),
        selector=",".join(f"{key}={value}" for key, value in sorted(found.names.pod_selector.items())),
    )


def timed(
    verdicts: Mapping[Condition, Verdict], previous: Manifest, generation: int, now: datetime
) -> list[api.StatusCondition]:
    """Conditions as the status has them: their time moves only with their status.

    Args:
        previous: the status so far.
    """
    conditions = []
    for kind, verdict in verdicts.items():
        known = condition_of(previous, kind)
        same = known is not None and known["status"] == verdict.status
        conditions.append(
            api.StatusCondition(
                type=kind,
                status=verdict.status,
                reason=verdict.reason,
                message=verdict.message,
                observed_generation=generation,
                last_transition_time=known["lastTransitionTime"] if known and same else stamp(now),
            )
        )
    return conditions


def _instances(found: Findings, previous: Manifest) -> api.Instances:
    ready = len(ready_pods(found))
    desired = found.spec.instances if found.spec and not found.spec.hibernate else found.wanted
    return api.Instances(
        ready=ready,
        desired=desired,
        summary=f"{ready}/{desired}",
        primary=found.primary.name if found.primary else None,
        last_primary=found.primary.name if found.primary else previous.get("instances", {}).get("lastPrimary"),
        members=[
            api.Member(
                name=pod.name,
                role=pod.role,
                state=pod.state,
                node=pod.node,
                pending_restart=True if pod.pending_restart else None,
            )
            for pod in found.pods
        ],
    )


def _connection(found: Findings) -> api.Connection | None:
    if found.spec is None:
        return None
    names = found.names
    return api.Connection(
        secret=names.role_secret("app"),
        read_only_secret=names.role_secret("readonly"),
        migrator_secret=names.role_secret("migrator"),
        host=names.service_fqdn(names.read_write_service),
        read_only_host=names.service_fqdn(names.read_only_service),
        port=naming.POSTGRES_PORT,
        database=found.spec.database.name,
    )


def _schema(found: Findings, previous: Manifest) -> api.Schema | None:
    known = previous.get("schema")
    last = api.MigrationRun.model_validate(known["lastRun"]) if known and "lastRun" in known else None
    if found.migration is None:
        return api.Schema.model_validate(known) if known else None
    return api.Schema(
        version=found.schema_version,
        pending=found.migration.pending,
        drift=found.migration.drift,
        last_run=found.migration.run or last,
    )


def _indexes(found: Findings, previous: Manifest) -> api.Indexes | None:
    health = found.indexes
    if health is None:
        return api.Indexes.model_validate(previous["indexes"]) if "indexes" in previous else None
    return api.Indexes(
        total=health.total,
        critical=f"{health.critical_present}/{health.critical_expected}",
        missing=list(health.missing),
        invalid=list(health.invalid),
        duplicate=[item.name for item in health.duplicates],
        foreign_keys_without_index=[item.name for item in health.unindexed_foreign_keys],
    )


def _hardening(found: Findings, previous: Manifest) -> api.Hardening | None:
    if found.hardening:
        return found.hardening.as_status()
    return api.Hardening.model_validate(previous["hardening"]) if "hardening" in previous else None


def _backup(found: Findings, previous: Manifest) -> api.Backups | None:
    if found.backups:
        return found.backups.backups
    return api.Backups.model_validate(previous["backup"]) if "backup" in previous else None


def _restore(found: Findings, previous: Manifest) -> api.Restored | None:
    if found.restore:
        return found.restore.told
    return api.Restored.model_validate(previous["restore"]) if "restore" in previous else None


def _certificates(found: Findings, previous: Manifest) -> api.Certificates | None:
    if found.server_not_after:
        return api.Certificates(server_not_after=stamp(found.server_not_after))
    return api.Certificates.model_validate(previous["certificates"]) if "certificates" in previous else None
