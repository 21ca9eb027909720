"""What changed between two statuses, for people to see as Events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from medianest_operator.api.conditions import ABNORMAL_TRUE, Condition, Reason
from medianest_operator.reconcile.concern import Announcement
from medianest_operator.reconcile.conditions import Conditions, condition_of

Status = Mapping[str, Any]

_OF_FINDINGS: Final = frozenset({Condition.HEALTHY, Condition.STORAGE_HEALTHY})
"""Each finding that makes them false has Events of its own."""


def transitions(previous: Status, current: Status, conditions: Conditions) -> Iterable[Announcement]:
    """What a person would want to see as an Event."""
    last = previous.get("instances", {}).get("lastPrimary")
    after = current.get("instances", {}).get("primary")
    if after and last and after != last:
        yield Announcement("PrimaryChanged", f"Primary changed from {last} to {after}.")
    yield from _new_backups(previous, current)
    said: set[str] = set()
    # Ready last: it sums up the others.
    for kind in sorted(conditions, key=lambda item: item is Condition.READY):
        verdict = conditions[kind]
        if kind in ABNORMAL_TRUE or {verdict.reason, verdict.message} & said:
            continue
        known = condition_of(previous, kind)
        if known and (known["status"], known["reason"]) == (verdict.status, verdict.reason):
            continue
        if kind in _OF_FINDINGS and verdict.status == "False":
            continue
        if verdict.reason in {Reason.UNKNOWN, Reason.API_ERROR, Reason.NOT_OBSERVED}:
            # That nothing could be observed is no news of the database: the condition says it, and the log.
            continue
        if known is None and verdict.status == "Unknown":
            # Nor is that there is nothing yet.
            continue
        said |= {verdict.reason, verdict.message}
        yield Announcement(verdict.reason, verdict.message, "Warning" if verdict.reason.is_warning else "Normal")


def _new_backups(previous: Status, current: Status) -> Iterable[Announcement]:
    """A backup was taken, or one was verified."""
    found, known = current.get("backup", {}), previous.get("backup", {})
    last, verified = found.get("last"), found.get("verified")
    if last and last["id"] != known.get("last", {}).get("id"):
        where = ", ".join(item["name"] for item in found.get("repositories", []) if "message" not in item)
        yield Announcement("BackupTaken", f"Backup {last['id']} is in {where}.")
    if verified and verified["at"] != known.get("verified", {}).get("at"):
        took = f" in {verified['seconds']:.0f} s" if verified.get("seconds") is not None else ""
        yield Announcement(
            "BackupVerified", f"Backup {verified['backup']} was restored and found equal to its manifest{took}."
        )
