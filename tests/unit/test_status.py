"""The status: conditions that mean what kstatus reads, times that stand still, Events once, and nothing invented."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.errors import Permanent, Transient
from medianest_operator.reconcile.concern import Verdict
from medianest_operator.reconcile.context import Pod
from unit.reports import (
    DOWN,
    MIGRATED,
    NOW,
    SERVING,
    UNMIGRATED,
    announced,
    build,
    conditions,
    failed,
    instances,
    message,
    report,
)

READY = (SERVING, MIGRATED)


def test_ready_has_neither_reconciling_nor_stalled() -> None:
    built = build(*READY)
    found = conditions(built)
    assert found["Ready"] == ("True", "Ready")
    assert set(found) == {"Ready", "Available", "SchemaUpToDate"}
    assert message(built, "Ready") == "1 instance ready."


def test_every_condition_speaks_of_the_generation_that_was_acted_on() -> None:
    built = build(*READY, generation=7)
    assert built["observedGeneration"] == 7
    assert {item["observedGeneration"] for item in built["conditions"]} == {7}


def test_a_permanent_problem_stalls_and_leaves_the_others_alone() -> None:
    built = build(*READY, failed(Permanent(Reason.INVALID_PARAMETER, "work_mem")))
    found = conditions(built)
    assert found["Stalled"] == ("True", "InvalidParameter")
    assert found["Ready"] == ("False", "InvalidParameter")
    assert found["Available"] == ("True", "PrimaryServing")
    assert "Reconciling" not in found
    assert message(built, "Ready") == "work_mem. The database serves as before."


@pytest.mark.parametrize("reason", [Reason.API_ERROR, Reason.NOT_OBSERVED, Reason.PATRONI_UNREACHABLE])
def test_what_could_not_be_observed_is_not_bad(reason: Reason) -> None:
    first = build(*READY)
    blind = build(SERVING, failed(Transient(reason, "away"), "migrations"), previous=first)
    found = conditions(blind)
    assert found["Ready"] == ("True", "Ready")
    assert found["Available"] == ("True", "PrimaryServing")
    assert found["SchemaUpToDate"] == ("True", "UpToDate")
    assert found["Reconciling"] == ("True", reason)
    assert message(blind, "SchemaUpToDate") == ("The schema is at v1. Not observed since 2026-01-02T03:04:05Z: away.")
    # The next failure changes nothing, however late it comes and whatever it says.
    later = build(
        SERVING, failed(Transient(reason, "away"), "migrations"), previous=blind, now=NOW + timedelta(minutes=9)
    )
    assert later == blind
    assert announced(first, SERVING, failed(Transient(reason, "away"), "migrations")) == []
    # And once it was observed again, nothing of it is left.
    assert build(*READY, previous=blind) == first


def test_ready_is_never_true_for_a_generation_that_was_not_acted_on() -> None:
    first = build(*READY, generation=4)
    blind = build(SERVING, failed(Transient(Reason.API_ERROR, "away")), previous=first, generation=5)
    assert conditions(blind)["Ready"] == ("False", "ApiError")


@pytest.mark.parametrize("reason", [Reason.INTERNAL_ERROR, Reason.STATEMENT_FAILED, Reason.PATRONI_REFUSED])
def test_what_went_wrong_takes_ready_away(reason: Reason) -> None:
    first = build(*READY)
    broken = conditions(build(SERVING, failed(Transient(reason, "KeyError: 'x'"), "migrations"), previous=first))
    assert broken["Ready"] == ("False", reason)
    assert broken["Available"] == ("True", "PrimaryServing")
    assert broken["SchemaUpToDate"] == ("True", "UpToDate")
    assert ("Warning", reason) in announced(first, SERVING, failed(Transient(reason, "x"), "migrations"))


def test_the_worst_of_several_obstacles_is_told() -> None:
    stuck = failed(Permanent(Reason.INVALID_PARAMETER, "work_mem"))
    progress = report(obstacle=Verdict("False", Reason.UPDATING, "Rolling restart."))
    assert conditions(build(*READY, progress, stuck))["Ready"] == ("False", "InvalidParameter")
    down = conditions(build(progress, stuck, DOWN, UNMIGRATED, previous=build(*READY)))
    assert down["Ready"] == ("False", "NoPrimary")
    assert down["Stalled"] == ("True", "InvalidParameter")


def test_times_move_only_with_the_status() -> None:
    first = build(*READY)
    later = NOW + timedelta(hours=1)
    assert build(*READY, previous=first, now=later) == first
    gone = build(DOWN, UNMIGRATED, previous=first, now=later)
    times = {item["type"]: item["lastTransitionTime"] for item in gone["conditions"]}
    assert times["Ready"] == "2026-01-02T04:04:05Z"
    assert times["SchemaUpToDate"] == "2026-01-02T03:04:05Z"


def test_what_was_not_seen_is_kept() -> None:
    first = build(*READY)
    blind = build(DOWN, UNMIGRATED, previous=first)
    assert blind["schema"] == first["schema"]
    assert conditions(blind)["SchemaUpToDate"] == ("True", "UpToDate")
    assert blind["instances"]["lastPrimary"] == "db-0"


def test_parts_of_a_newer_operator_are_kept_and_its_reasons_are_no_error() -> None:
    first = build(*READY)
    first["schema"]["epoch"] = {"of": "tomorrow"}
    first["conditions"][-1] |= {"reason": "ReasonOfTomorrow"}
    blind = build(SERVING, UNMIGRATED, previous=first)
    assert blind["schema"]["epoch"] == {"of": "tomorrow"}
    assert conditions(blind)["SchemaUpToDate"] == ("Unknown", "Unknown")
    assert conditions(build(*READY, previous=first))["SchemaUpToDate"] == ("True", "UpToDate")


def test_a_condition_that_was_taken_away_stays_away() -> None:
    applied = Verdict("True", Reason.HARDENING_APPLIED, "Hardening options applied: auditColumns.")
    first = build(*READY, report(conditions={Condition.HARDENING_APPLIED: applied}))
    assert "HardeningApplied" in conditions(first)
    assert "HardeningApplied" not in conditions(
        build(*READY, report(conditions={Condition.HARDENING_APPLIED: None}), previous=first)
    )


def test_paused_is_neither_a_failure_nor_progress() -> None:
    found = conditions(build(*READY, paused=True))
    assert found["Ready"] == ("Unknown", "Paused")
    assert not {"Stalled", "Reconciling"} & set(found)


def test_hibernated_is_neither_a_failure_nor_progress() -> None:
    asleep = Verdict("False", Reason.HIBERNATED, "Hibernated.")
    found = conditions(build(report(obstacle=asleep)))
    assert found["Ready"] == ("False", "Hibernated")
    assert not {"Stalled", "Reconciling"} & set(found)


def test_transitions_are_announced_once_and_the_primary_by_name() -> None:
    first = build(*READY)
    assert ("Normal", "Ready") in announced({}, *READY)
    assert announced(first, *READY) == []
    other = report(status={"instances": instances("db-1")})
    assert announced(first, *READY, other) == [("Normal", "PrimaryChanged")]
    gone = build(DOWN, UNMIGRATED, previous=first)
    assert ("Warning", "NoPrimary") in announced(first, DOWN, UNMIGRATED)
    assert ("Normal", "PrimaryChanged") in announced(gone, *READY, other)


def test_empty_lists_stay_out() -> None:
    built = build(SERVING, report(status={"schema": api.Schema(version="v1", pending=[])}))
    assert built["schema"] == {"version": "v1"}


@pytest.mark.parametrize(
    ("phase", "container", "state"),
    [
        ("Pending", {"waiting": {"reason": "PodInitializing"}}, "pending"),
        ("Running", {"waiting": {"reason": "CrashLoopBackOff"}}, "down"),
        ("Running", {"running": {}}, "starting"),
    ],
)
def test_a_pod_that_has_not_begun_is_not_called_down(phase: str, container: dict[str, Any], state: str) -> None:
    status = {"phase": phase, "containerStatuses": [{"name": "postgres", "state": container}]}
    assert Pod({"metadata": {"name": "db-0", "uid": "u"}, "spec": {}, "status": status}).state == state
