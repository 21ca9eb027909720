"""The status: conditions that mean what kstatus reads, times that stand still, Events once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from medianest_operator.api.conditions import Reason
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.errors import Permanent, Transient
from medianest_operator.migrations.history import History
from medianest_operator.naming import Names
from medianest_operator.reconcile import status
from medianest_operator.reconcile.conditions import Findings
from medianest_operator.reconcile.migration import State
from medianest_operator.reconcile.transitions import transitions
from unit.test_rollout import pod

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def ready_findings(**changes: Any) -> Findings:
    spec = DatabaseSpec()
    primary = pod(0, primary=True)
    fields: dict[str, Any] = {
        "names": Names("ns", "db"), "spec": spec, "generation": 4, "pods": [primary], "wanted": 1, "primary": primary,
        "serving": True, "schema_version": "v1", "migration": State(Reason.UP_TO_DATE, "The schema is at v1.", True),
    }  # fmt: skip
    return Findings(**(fields | changes))


def conditions(built: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {item["type"]: (item["status"], item["reason"]) for item in built["conditions"]}


def build(found: Findings, previous: dict[str, Any] | None = None, now: datetime = NOW) -> dict[str, Any]:
    return status.build(found, previous or {}, now).to_dict()


def test_ready_has_neither_reconciling_nor_stalled() -> None:
    found = conditions(build(ready_findings()))
    assert found["Ready"] == ("True", "Ready")
    assert set(found) == {"Ready", "Available", "SchemaUpToDate"}


def test_every_condition_speaks_of_the_generation_that_was_acted_on() -> None:
    built = build(ready_findings(generation=7))
    assert built["observedGeneration"] == 7
    assert {item["observedGeneration"] for item in built["conditions"]} == {7}


def test_a_permanent_problem_stalls_and_a_transient_one_does_not() -> None:
    stalled = conditions(build(ready_findings(problem=Permanent("InvalidParameter", "work_mem"))))
    assert stalled["Stalled"] == ("True", "InvalidParameter")
    assert stalled["Ready"] == ("False", "InvalidParameter")
    assert stalled["Available"] == ("True", "PrimaryServing")
    assert "Reconciling" not in stalled
    trying = conditions(build(ready_findings(problem=Transient("ApiError", "away"))))
    assert trying["Reconciling"][0] == "True"
    assert "Stalled" not in trying


def test_times_move_only_with_the_status() -> None:
    first = build(ready_findings())
    later = NOW + timedelta(hours=1)
    assert build(ready_findings(), first, later) == first
    failed = build(ready_findings(serving=False, primary=None), first, later)
    times = {item["type"]: item["lastTransitionTime"] for item in failed["conditions"]}
    assert times["Ready"] == "2026-01-02T04:04:05Z"
    assert times["SchemaUpToDate"] == "2026-01-02T03:04:05Z"


def test_what_was_not_seen_is_kept() -> None:
    first = build(ready_findings())
    blind = build(ready_findings(serving=False, primary=None, migration=None, schema_version=None), first)
    assert blind["schema"] == first["schema"]
    assert conditions(blind)["SchemaUpToDate"] == ("True", "UpToDate")
    assert blind["instances"]["lastPrimary"] == "db-0"


def test_an_instance_that_does_not_answer_is_not_ready() -> None:
    built = build(ready_findings(silent=frozenset({"db-0"})))
    assert conditions(built)["Ready"] == ("False", "WaitingForReplicas")
    assert built["instances"]["summary"] == "0/1"


def test_ready_means_that_a_replica_could_be_promoted() -> None:
    built = conditions(build(ready_findings(unpromotable=True)))
    assert built["Ready"] == ("False", "WaitingForReplicas")
    assert built["Available"] == ("True", "PrimaryServing")


def test_a_server_that_has_not_read_its_parameters_is_not_ready() -> None:
    assert conditions(build(ready_findings(configuring=["db-0"])))["Ready"] == ("False", "Configuring")


def test_a_failed_migration_stalls_while_the_database_serves() -> None:
    state = State(Reason.MIGRATION_FAILED, "Statement 3 …", False, ["v2"])
    found = conditions(build(ready_findings(migration=state)))
    assert found["Stalled"] == ("True", "MigrationFailed")
    assert found["SchemaUpToDate"] == ("False", "MigrationFailed")
    assert found["Available"] == ("True", "PrimaryServing")


def test_paused_and_hibernated_are_neither_failures_nor_progress() -> None:
    paused = ready_findings(spec=DatabaseSpec(paused=True))
    assert conditions(build(paused))["Ready"] == ("Unknown", "Paused")
    asleep = ready_findings(spec=DatabaseSpec(hibernate=True), pods=[], primary=None, serving=False, wanted=0)
    found = conditions(build(asleep))
    assert found["Ready"] == ("False", "Hibernated")
    assert not {"Stalled", "Reconciling"} & set(found)


def told(previous: dict[str, Any], found: Findings) -> list[tuple[str, str]]:
    built = status.build(found, previous, NOW)
    return [(item.kind, item.reason) for item in transitions(previous, built)]


def test_transitions_are_told_once_and_the_primary_by_name() -> None:
    first = build(ready_findings())
    assert ("Normal", "Ready") in told({}, ready_findings())
    assert told(first, ready_findings()) == []
    other = pod(1, primary=True)
    assert told(first, ready_findings(pods=[other], primary=other)) == [("Normal", "PrimaryChanged")]
    gone = build(ready_findings(serving=False, primary=None), first)
    assert ("Warning", "NoPrimary") in told(first, ready_findings(serving=False, primary=None))
    assert ("Normal", "PrimaryChanged") in told(gone, ready_findings(pods=[other], primary=other))


def test_empty_lists_stay_out() -> None:
    built = build(ready_findings())
    assert "pending" not in built["schema"]
    assert History().version is None
