"""What a run of the controller found out, and the conditions that follow from it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.migrations import OnFailure
from medianest_operator.errors import Permanent, ReconcileError
from medianest_operator.health.indexes import IndexHealth
from medianest_operator.naming import Names
from medianest_operator.reconcile import backup_status
from medianest_operator.reconcile.backup_status import State as BackupState
from medianest_operator.reconcile.context import Pod
from medianest_operator.reconcile.findings import Finding
from medianest_operator.reconcile.hardening import State as HardeningState
from medianest_operator.reconcile.migration import State
from medianest_operator.reconcile.restore import State as Arrival
from medianest_operator.reconcile.rollout import Plan, Step

Truth = Literal["True", "False", "Unknown"]
Manifest = Mapping[str, Any]


@dataclass
class Findings:
    """All that a run found out, for the status."""

    names: Names
    spec: DatabaseSpec | None
    generation: int
    pods: list[Pod] = field(default_factory=list)
    wanted: int = 0
    primary: Pod | None = None
    serving: bool = False
    silent: frozenset[str] = frozenset()
    """Pods that were asked over SQL and didn't answer: the kubelet's word on them is older."""
    unpromotable: bool = False
    """Replication is synchronous, and Patroni has named no replica yet that it would promote."""
    unreachable: str | None = None
    problem: ReconcileError | None = None
    pod_findings: list[Finding] = field(default_factory=list)
    schema_version: str | None = None
    migration: State | None = None
    indexes: IndexHealth | None = None
    hardening: HardeningState | None = None
    restore: Arrival | None = None
    no_backups: str | None = None
    """Why none can be taken, in words."""
    backups: BackupState | None = None
    rollout: Plan | None = None
    configuring: list[str] = field(default_factory=list)
    growing: list[str] = field(default_factory=list)
    image: str | None = None
    server_not_after: datetime | None = None


@dataclass(frozen=True)
class Verdict:
    """A condition before it has a time."""

    status: Truth
    reason: Reason
    message: str


def verdicts_of(found: Findings, previous: Manifest) -> dict[Condition, Verdict]:
    """Every condition that there is to tell. What this run could not see is taken over from `previous`."""
    available = _available(found, previous)
    schema = _schema_condition(found, previous)
    ready = _ready(found, available, schema, previous)
    verdicts: dict[Condition, Verdict] = {Condition.READY: ready}
    stalled = _stalled(found)
    if stalled:
        verdicts[Condition.STALLED] = stalled
    elif ready.status != "True" and ready.reason not in {Reason.HIBERNATED, Reason.PAUSED}:
        verdicts[Condition.RECONCILING] = Verdict("True", ready.reason, ready.message)
    verdicts[Condition.AVAILABLE] = available
    verdicts[Condition.SCHEMA_UP_TO_DATE] = schema
    if indexes := _indexes_condition(found, previous):
        verdicts[Condition.INDEXES_HEALTHY] = indexes
    if hardened := _hardening_condition(found, previous):
        verdicts[Condition.HARDENING_APPLIED] = hardened
    if backed_up := _backups_condition(found, previous):
        verdicts[Condition.BACKUPS_HEALTHY] = backed_up
    return verdicts


def condition_of(previous: Manifest, kind: Condition) -> Mapping[str, Any] | None:
    """A condition as the status tells it so far."""
    return next((c for c in previous.get("conditions", []) if c["type"] == kind), None)


def _was(previous: Manifest, kind: Condition) -> Verdict | None:
    known = condition_of(previous, kind)
    return Verdict(known["status"], Reason(known["reason"]), known["message"]) if known else None


def _backups_condition(found: Findings, previous: Manifest) -> Verdict | None:
    """It says nothing about Ready: a database without a backup serves."""
    if found.backups is None or found.spec is None:
        return _was(previous, Condition.BACKUPS_HEALTHY)
    return Verdict(*backup_status.verdict(found.spec, found.backups))


def _available(found: Findings, previous: Manifest) -> Verdict:
    if found.serving and found.restore and not found.restore.has_database and found.restore.reason:
        return Verdict("False", found.restore.reason, found.restore.message)
    if found.serving and found.primary:
        return Verdict("True", Reason.PRIMARY_SERVING, f"{found.primary.name} serves reads and writes.")
    if found.spec and found.spec.hibernate:
        return Verdict("False", Reason.HIBERNATED, "spec.hibernate is true; set it to false to start the instances.")
    if found.primary and found.unreachable:
        message = f"The primary doesn't answer: {found.unreachable}. Patroni promotes a replica if it stays away."
        return Verdict("False", Reason.PRIMARY_UNREACHABLE, message)
    if found.primary:
        return Verdict("False", Reason.NO_PRIMARY, f"{found.primary.name} leads, but doesn't take writes yet.")
    if not _ever_available(previous):
        return Verdict("False", Reason.CREATING, "The first instance is being made.")
    if len(found.pods) > 1:
        return Verdict("False", Reason.NO_PRIMARY, "There is no primary; Patroni elects one of the replicas.")
    return Verdict("False", Reason.NO_PRIMARY, "There is no primary; the only instance has to come back.")


def _ever_available(previous: Manifest) -> bool:
    return bool(previous.get("schema", {}).get("version")) or (
        (known := condition_of(previous, Condition.AVAILABLE)) is not None and known["reason"] != Reason.CREATING
    )


def _schema_condition(found: Findings, previous: Manifest) -> Verdict:
    problem = found.problem
    if isinstance(problem, Permanent) and problem.reason in {Reason.SOURCE_INVALID, Reason.UNTRUSTED_RELATION}:
        return Verdict("False", Reason(problem.reason), problem.message)
    state = found.migration
    if state is None or state.up_to_date is None:
        known = _was(previous, Condition.SCHEMA_UP_TO_DATE)
        return known or Verdict("Unknown", Reason.UNKNOWN, "The schema has not been looked at yet.")
    # A drifted schema serves, and whoever changed it may have had a reason: told here, it doesn't take Ready away.
    good = state.up_to_date and state.reason != Reason.DRIFTED
    return Verdict("True" if good else "False", state.reason, state.message)


def _indexes_condition(found: Findings, previous: Manifest) -> Verdict | None:
    health = found.indexes
    if health is None or (found.migration and not found.migration.up_to_date and not found.schema_version):
        return _was(previous, Condition.INDEXES_HEALTHY)
    if health.missing:
        names = ", ".join(health.missing)
        message = (
            f"Critical indexes are missing or invalid: {names}. The application's queries scan whole tables; create "
            f"them again as the migrations do, with CREATE INDEX CONCURRENTLY."
        )
        return Verdict("False", Reason.INDEXES_MISSING, message)
    if health.invalid:
        names = ", ".join(health.invalid)
        message = (
            f"Invalid indexes: {names}. They cost writes and serve no query; REINDEX INDEX CONCURRENTLY or drop them."
        )
        return Verdict("False", Reason.INDEXES_INVALID, message)
    message = f"All {health.critical_expected} critical indexes of {health.total} are there and valid."
    if health.duplicates:
        names = ", ".join(f"{item.name} (of {item.duplicate_of})" for item in health.duplicates)
        return Verdict("True", Reason.INDEXES_DUPLICATE, f"{message} Duplicates that could go: {names}.")
    return Verdict("True", Reason.INDEXES_HEALTHY, message)


def _hardening_condition(found: Findings, previous: Manifest) -> Verdict | None:
    """It says nothing about Ready: the application works with or without."""
    state = found.hardening
    if state is None:
        return _was(previous, Condition.HARDENING_APPLIED)
    if state.is_off:
        return None
    return Verdict("True" if state.reason == Reason.HARDENING_APPLIED else "False", state.reason, state.message)


def _ready(found: Findings, available: Verdict, schema: Verdict, previous: Manifest) -> Verdict:
    if found.spec and found.spec.paused:
        return Verdict("Unknown", Reason.PAUSED, "spec.paused is true: nothing of this database is changed meanwhile.")
    if found.problem:
        serving = " The database serves as before." if found.serving else ""
        return Verdict("False", _reason(found.problem.reason), found.problem.message.rstrip(".") + "." + serving)
    if found.spec and found.spec.hibernate:
        if found.pods:
            return Verdict("False", Reason.HIBERNATING, f"Stopping {len(found.pods)} instances; their volumes stay.")
        return Verdict(
            "False", Reason.HIBERNATED, "All instances are stopped and the volumes kept, as spec.hibernate wants."
        )
    if not found.serving:
        return _not_serving(found, available, previous)
    if found.restore and found.restore.reason:
        return Verdict("False", found.restore.reason, found.restore.message)
    if schema.reason in {Reason.MIGRATION_ROLLED_BACK, Reason.MIGRATION_FAILED} and found.schema_version:
        return Verdict("False", schema.reason, _serving_as_before(found, schema))
    if schema.status != "True" and schema.reason != Reason.DRIFTED:
        reason = schema.reason if schema.reason != Reason.UNKNOWN else Reason.CREATING
        return Verdict("False", reason, schema.message)
    if found.rollout:
        return _rolling(found.rollout)
    if found.configuring:
        names = ", ".join(found.configuring)
        return Verdict("False", Reason.CONFIGURING, f"Waiting for {names} to load the changed parameters.")
    if found.growing:
        return Verdict("False", Reason.GROWING_VOLUMES, f"Volumes are growing: {', '.join(found.growing)}.")
    return _all_there(found)


def _serving_as_before(found: Findings, schema: Verdict) -> str:
    failed = found.migration.run.failed if found.migration and found.migration.run else None
    what = f"Migration {failed.migration}" if failed else "A migration"
    if found.spec and found.spec.migrations.on_failure is OnFailure.HALT:
        how = "failed, and what was applied before it stays (onFailure: Halt)."
        return f"Serving schema {found.schema_version}. {what} {how} See SchemaUpToDate."
    if schema.reason == Reason.MIGRATION_ROLLED_BACK:
        how = "failed and was undone (proved); nothing was lost."
    else:
        how = "can't be applied; the database was not changed."
    return f"Serving schema {found.schema_version} as before. {what} {how} See SchemaUpToDate."


def _not_serving(found: Findings, available: Verdict, previous: Manifest) -> Verdict:
    if found.pod_findings:
        return Verdict("False", found.pod_findings[0].reason, found.pod_findings[0].message + ".")
    if not _ever_available(previous):
        return Verdict("False", Reason.CREATING, _progress(found))
    reason = Reason.FAILING_OVER if len(found.pods) > 1 else available.reason
    return Verdict("False", reason, available.message)


def _progress(found: Findings) -> str:
    """How far the first start is."""
    if not found.pods:
        return "The instances' pods are being made."
    words = ", ".join(f"{pod.name} {pod.state}" for pod in found.pods)
    return f"The first instance is starting: {words}."


def _rolling(plan: Plan) -> Verdict:
    reason = Reason.RESTARTING if plan.step in {Step.RESTART, Step.SWITCH_OVER} else Reason.UPDATING
    if plan.step == Step.WAIT:
        return Verdict("False", reason, f"An ordered restart waits for {plan.pod.name}: {plan.why}.")
    return Verdict("False", reason, f"An ordered restart is at {plan.pod.name} ({plan.step}): {plan.why}.")


def _all_there(found: Findings) -> Verdict:
    desired = found.spec.instances if found.spec else found.wanted
    ready = ready_pods(found)
    if len(ready) == desired == len(found.pods):
        if found.unpromotable:
            message = "Waiting for Patroni to name a synchronous replica; none is promoted before. The database serves."
            return Verdict("False", Reason.WAITING_FOR_REPLICAS, message)
        noun = "instance" if desired == 1 else "instances"
        return Verdict("True", Reason.READY, f"{desired} {noun} ready, schema {found.schema_version}.")
    if found.pod_findings:
        first = found.pod_findings[0]
        return Verdict(
            "False", first.reason, f"{first.message}. The database serves, with {len(ready)} of {desired} ready."
        )
    if len(found.pods) != desired:
        return Verdict("False", Reason.SCALING, f"Going from {len(found.pods)} to {desired} instances.")
    waiting = ", ".join(f"{pod.name} ({pod.state})" for pod in found.pods if pod not in ready)
    message = f"{len(ready)} of {desired} instances ready; waiting for {waiting}. The database serves."
    return Verdict("False", Reason.WAITING_FOR_REPLICAS, message)


def ready_pods(found: Findings) -> list[Pod]:
    """The pods that serve, as the kubelet and the server itself say."""
    return [pod for pod in found.pods if pod.ready and pod.name not in found.silent]


def _stalled(found: Findings) -> Verdict | None:
    if found.spec and found.spec.paused:
        return None
    if isinstance(found.problem, Permanent):
        return Verdict("True", _reason(found.problem.reason), found.problem.message)
    if found.restore and found.restore.failed and found.restore.reason:
        return Verdict("True", found.restore.reason, found.restore.message)
    state = found.migration
    if state and state.reason in _STUCK:
        return Verdict("True", state.reason, state.message)
    return None


_STUCK = frozenset({Reason.MIGRATION_FAILED, Reason.MIGRATION_ROLLED_BACK, Reason.ROLLBACK_UNPROVED, Reason.BEHIND})
"""Reasons of SchemaUpToDate that only a person gets the database out of."""


def _reason(text: str) -> Reason:
    try:
        return Reason(text)
    except ValueError:
        return Reason.API_ERROR
