"""What the concerns of one run found, for tests of the status that follows from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.reconcile import status
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.conditions import Report, conditions_of
from medianest_operator.reconcile.context import Pod
from medianest_operator.reconcile.order import ORDER
from medianest_operator.reconcile.transitions import transitions
from medianest_operator.timestamps import stamp

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NEW, OLD = "new", "old"
CONCERNS = {concern.name: concern for concern in ORDER}


def pod(ordinal: int, *, primary: bool = False, inputs: str = NEW, ready: bool = True, streaming: bool = True) -> Pod:
    """A pod of database `db`."""
    role = naming.ROLE_PRIMARY if primary else naming.ROLE_REPLICA
    member = {"role": role, "state": "running"}
    if streaming and not primary:
        member["replication_state"] = "streaming"
    manifest: dict[str, Any] = {
        "metadata": {
            "name": f"db-{ordinal}",
            "uid": str(ordinal),
            "labels": {naming.LABEL_ROLE: role},
            "annotations": {
                naming.ANNOTATION_POD_INPUTS: inputs,
                naming.PATRONI_STATUS_ANNOTATION: json.dumps(member),
            },
        },
        "spec": {"containers": [{"image": "i"}]},
        "status": {
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"state": {"running": {}}}],
        },
    }
    return Pod(manifest)


def instances(primary: str | None) -> api.Instances:
    return api.Instances(ready=1, desired=1, summary="1/1", primary=primary, last_primary=primary or "db-0")


AVAILABLE = Verdict("True", Reason.PRIMARY_SERVING, "db-0 serves reads and writes.")
UP_TO_DATE = Verdict("True", Reason.UP_TO_DATE, "The schema is at v1.")
SERVING = Report(
    CONCERNS["servers"],
    Outcome(
        conditions={Condition.AVAILABLE: AVAILABLE},
        status={"instances": instances("db-0"), "replicas": 1},
        summary="1 instance ready",
    ),
)
MIGRATED = Report(
    CONCERNS["migrations"],
    Outcome(conditions={Condition.SCHEMA_UP_TO_DATE: UP_TO_DATE}, status={"schema": api.Schema(version="v1")}),
)
DOWN_VERDICT = Verdict("False", Reason.NO_PRIMARY, "There is no primary; the only instance has to come back.")
DOWN = Report(
    CONCERNS["servers"],
    Outcome(
        conditions={Condition.AVAILABLE: DOWN_VERDICT}, obstacle=DOWN_VERDICT, status={"instances": instances(None)}
    ),
)
UNMIGRATED = Report(CONCERNS["migrations"], unobserved="no primary takes writes")


def report(**outcome: Any) -> Report:
    """Of a concern of no particular kind."""

    async def act(_: object) -> Outcome:
        return Outcome()

    return Report(Concern("other", Needs.NOTHING, act), Outcome(**outcome))


def failed(error: Any, concern: str = "other") -> Report:
    """Of a concern that raised."""
    known = CONCERNS.get(concern, report().concern)
    return Report(known, error=error, unobserved=error.message)


def build(
    *reports: Report,
    previous: dict[str, Any] | None = None,
    generation: int = 4,
    now: datetime = NOW,
    paused: bool = False,
) -> dict[str, Any]:
    """The status after these reports."""
    known = previous or {}
    found = conditions_of(reports, known, generation, stamp(now), paused=paused)
    return status.build(reports, found, known, generation, now)


def conditions(built: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Status and reason by type."""
    return {item["type"]: (item["status"], item["reason"]) for item in built["conditions"]}


def message(built: dict[str, Any], kind: str) -> str:
    """What a condition says."""
    return next(str(item["message"]) for item in built["conditions"] if item["type"] == kind)


def announced(previous: dict[str, Any], *reports: Report, generation: int = 4) -> list[tuple[str, str]]:
    """Kind and reason of the Events between two statuses."""
    return [(item.kind, item.reason) for item in announcements(previous, *reports, generation=generation)]


def announcements(previous: dict[str, Any], *reports: Report, generation: int = 4) -> Iterable[Announcement]:
    found = conditions_of(reports, previous, generation, stamp(NOW), paused=False)
    built = status.build(reports, found, previous, generation, NOW)
    yield from (event for item in reports if item.outcome for event in item.outcome.events)
    yield from transitions(previous, built, found)
