"""What changed between two statuses, for people to see as Events. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from medianest_operator.api import status as api
from medianest_operator.api.conditions import ABNORMAL_TRUE, Condition, Reason
from medianest_operator.reconcile.conditions import Manifest, condition_of
from medianest_operator.reconcile.hardening import removals

_GOOD = frozenset(
    {
        Reason.READY, Reason.PRIMARY_SERVING, Reason.UP_TO_DATE, Reason.INDEXES_HEALTHY, Reason.CREATING,
        Reason.MIGRATING, Reason.SCALING, Reason.UPDATING, Reason.RESTARTING, Reason.GROWING_VOLUMES,
        Reason.WAITING_FOR_REPLICAS, Reason.CONFIGURING, Reason.HIBERNATED, Reason.HIBERNATING, Reason.PAUSED,
        Reason.BACKUPS_HEALTHY, Reason.NO_BACKUP_YET, Reason.BACKUPS_SUSPENDED, Reason.RESTORING, Reason.IMPORTING,
        Reason.UNKNOWN, Reason.HARDENING_APPLIED, Reason.HARDENING_APPLYING, Reason.HARDENING_WAITING,
    }
)  # fmt: skip
"""Reasons whose Event is Normal."""


@dataclass(frozen=True)
class Transition:
    """Something that a person would want to see as an Event."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(previous: Manifest, current: api.DatabaseStatus) -> Iterable[Transition]:
    """What changed between two statuses."""
    last = previous.get("instances", {}).get("lastPrimary")
    after = current.instances.primary if current.instances else None
    if after and last and after != last:
        yield Transition("Normal", "PrimaryChanged", f"{after} leads now; before it was {last}.")
    for removed in removals(previous.get("hardening") or {}, current.hardening):
        yield Transition("Normal", "HardeningRemoved", removed)
    yield from _progress_of_migration(previous, current)
    yield from _new_backups(previous, current)
    told: set[str] = set()
    # Ready last: it sums up the others.
    for condition in sorted(current.conditions, key=lambda item: item.type == Condition.READY):
        if condition.type in ABNORMAL_TRUE or {condition.reason, condition.message} & told:
            continue
        known = condition_of(previous, condition.type)
        if known and (known["status"], known["reason"]) == (condition.status, condition.reason):
            continue
        if condition.status == "Unknown" and condition.reason == Reason.UNKNOWN:
            continue
        told |= {condition.reason, condition.message}
        kind: Literal["Normal", "Warning"] = "Normal" if condition.reason in _GOOD else "Warning"
        yield Transition(kind, condition.reason, condition.message)


def _progress_of_migration(previous: Manifest, current: api.DatabaseStatus) -> Iterable[Transition]:
    """What a migration run does and did, step by step."""
    run = current.schema_.last_run if current.schema_ else None
    known = previous.get("schema", {}).get("lastRun", {})
    if run is None:
        return
    same = known.get("job") == run.job and known.get("startedAt") == run.started_at
    if run.step and (not same or known.get("step") != run.step):
        yield Transition("Normal", "MigrationProgress", f"Job {run.job}: {run.step}.")
    if run.rollback and not (same and known.get("rollback")):
        kind: Literal["Normal", "Warning"] = "Normal" if run.rollback.proved else "Warning"
        done = f"Undone by {run.rollback.strategy.lower()}: {run.rollback.proof}."
        yield Transition(kind, "MigrationUndone", done)
    if run.outcome == "Applied" and run.applied and not (same and known.get("outcome") == "Applied"):
        names = ", ".join(item.name for item in run.applied)
        yield Transition("Normal", "MigrationsApplied", f"Applied {names}.")


def _new_backups(previous: Manifest, current: api.DatabaseStatus) -> Iterable[Transition]:
    """A backup was taken, or one was restored and proved."""
    found, known = current.backup, previous.get("backup", {})
    if found is None:
        return
    if found.last and found.last.id != known.get("last", {}).get("id"):
        where = ", ".join(item.name for item in found.repositories if item.message is None)
        yield Transition("Normal", "BackupTaken", f"Backup {found.last.id} is in {where}.")
    if found.verified and found.verified.at != known.get("verified", {}).get("at"):
        took = f" in {found.verified.seconds:.0f} s" if found.verified.seconds is not None else ""
        message = f"Backup {found.verified.backup} was restored and found equal to its manifest{took}."
        yield Transition("Normal", "BackupVerified", message)
