"""What an operation waits for, what it can't be, what a dry run says, and when an object goes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from integration import operations
from integration.loops import NAMESPACE, arena
from integration.operations import (
    MOMENT,
    REPOSITORY,
    TAKEN,
    arguments,
    ask,
    databases,
    end,
    filled,
    jobs,
    phase,
    run,
    status,
)
from integration.serving import Serving, serving
from medianest_operator import naming
from medianest_operator.kubernetes.kinds import DATABASE, JOB, OPERATION
from medianest_operator.timestamps import stamp

ESTIMATE = {
    "backup": TAKEN,
    "takenAt": "2026-11-22T02:00:00Z",
    "bytes": 4711,
    "verified": True,
    "seconds": 3.5,
    "fits": True,
    "lost": [{"table": "users", "rows": 3}],
}


@pytest.fixture
async def made() -> AsyncIterator[Serving]:
    async with serving() as found:
        specify(found)
        await run(found)
        yield found


def specify(made: Serving, **spec: Any) -> None:
    live = made.arena.server.get(DATABASE, *made.key)
    made.arena.server.put(DATABASE, live | {"spec": {"backup": {"repositories": [REPOSITORY]}} | spec})


async def test_without_its_database_it_waits() -> None:
    async with arena() as made:
        made.server.put(OPERATION, {
            "metadata": {"namespace": NAMESPACE, "name": "early"}, "spec": {"database": "db", "restore": {}}
        })  # fmt: skip
        await made.run((NAMESPACE, "db"))
        found = made.server.get(OPERATION, NAMESPACE, "early")["status"]
        assert (found["phase"], found["operation"]) == ("Pending", "restore")
        assert found["message"] == "There is no MediaNestDatabase db in this namespace."
        key = made.make()
        await made.run(key)
        found = made.server.get(OPERATION, NAMESPACE, "early")["status"]
        assert (found["phase"], found["message"]) == ("Pending", "It waits: MediaNestDatabase db doesn't serve.")


@pytest.mark.parametrize(
    ("spec", "why"),
    [({"paused": True}, "is paused (spec.paused)"), ({"hibernate": True}, "is hibernated (spec.hibernate)")],
    ids=["paused", "hibernated"],
)
@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
async def test_a_database_that_is_left_alone_is_waited_for(
    made: Serving, spec: dict[str, Any], why: str, begun: bool
) -> None:
    if begun:
        ask(made, "back")
        await run(made)
    specify(made, **spec)
    if not begun:
        ask(made, "back")
    await run(made)
    found = status(made, "back")
    tail = " It goes on afterwards." if begun else ""
    assert found["phase"] == ("Running" if begun else "Pending")
    assert found["message"] == f"It waits: MediaNestDatabase db {why}.{tail}"
    assert len(jobs(made)) == begun
    specify(made)
    await run(made)
    [job] = jobs(made)
    filled(made, job)
    await run(made)
    assert phase(made, "back") == "Succeeded"


async def test_a_migration_is_waited_for(made: Serving) -> None:
    [migration] = jobs(made, naming.COMPONENT_MIGRATION)
    over = migration.pop("status")
    made.arena.server.put(JOB, migration)
    ask(made, "back")
    await run(made)
    assert (phase(made, "back"), jobs(made)) == ("Pending", [])
    assert status(made, "back")["message"] == "It waits: MediaNestDatabase db is being migrated."
    assert made.arena.conditions(made.key)["Ready"][1] != "Restoring"
    made.arena.server.put(JOB, migration | {"status": over})
    await run(made)
    assert phase(made, "back") == "Running"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"restore": {"repository": "attic"}}, "names attic; MediaNestDatabase db has nas. Nothing was changed."),
        ({"revert": {"operation": "x"}}, "spec names no operation that this version of the operator knows"),
        ({"restore": {"backup": ["x"]}}, "spec is not valid: spec.restore.backup: Input should be a valid string."),
    ],
    ids=["repository", "operation", "invalid"],
)
async def test_what_can_never_be_is_said_at_once(made: Serving, spec: dict[str, Any], words: str) -> None:
    ask(made, "wrong", **spec)
    ask(made, "x-next")
    await run(made)
    found = status(made, "wrong")
    assert found["phase"] == "Failed"
    assert words in found["message"]
    assert operations.conditions(made, "wrong") == {
        "Ready": ("False", "InvalidSpec"), "Stalled": ("True", "InvalidSpec"), "Finished": ("True", "InvalidSpec"),
    }  # fmt: skip
    # It keeps nobody from its turn.
    assert phase(made, "x-next") == "Running"


async def test_a_dry_run_changes_nothing_and_is_told_apart(made: Serving) -> None:
    before = databases(made)
    ask(made, "first-look", restore={"dryRun": True, "targetTime": MOMENT})
    await run(made)
    ask(made, "next")
    await run(made)
    assert (phase(made, "first-look"), status(made, "first-look")["operation"]) == ("Running", "dry run")
    assert operations.conditions(made, "first-look")["Ready"] == ("False", "OperationRunning")
    assert phase(made, "next") == "Pending"
    assert (databases(made), jobs(made)) == (before, [])
    assert made.arena.conditions(made.key)["Ready"] == ("True", "Ready")
    [job] = jobs(made, naming.COMPONENT_ASIDE)
    told = arguments(job)
    assert "--dry-run" in told
    assert told[told.index("--target-time") + 1] == MOMENT
    end(made, job, {"outcome": "Succeeded", "message": "It would.", "backup": TAKEN, "estimate": ESTIMATE})
    await run(made)
    found = status(made, "first-look")
    assert (found["phase"], found["message"], found["backup"]) == ("Succeeded", "It would.", TAKEN)
    assert found["estimate"] == ESTIMATE
    assert phase(made, "next") == "Running"
    assert made.arena.status(made.key)["operation"]["name"] == "next"
    assert ("MediaNestDatabase", "OperationSucceeded") not in {
        (item["involvedObject"]["kind"], item["reason"]) for item in made.arena.events()
    }


async def test_a_dry_run_of_the_same_second_comes_before_its_restore(made: Serving) -> None:
    """Both in one file: what it says afterwards would be of no use."""
    for item in (ask(made, "back"), ask(made, "look", restore={"dryRun": True})):
        item["metadata"]["creationTimestamp"] = "2026-11-22T03:00:00Z"
    await run(made)
    assert (phase(made, "look"), phase(made, "back")) == ("Running", "Pending")


async def test_a_dry_run_whose_restore_would_fail_wakes_nobody(made: Serving) -> None:
    ask(made, "look", restore={"dryRun": True})
    await run(made)
    [job] = jobs(made, naming.COMPONENT_ASIDE)
    end(made, job, {"outcome": "Failed", "message": "repository nas has no verified backup."}, succeeded=False)
    await run(made)
    found = status(made, "look")
    assert found["phase"] == "Failed"
    assert found["message"].startswith("A restore can't be done: repository nas has no verified backup.")
    assert "failed" not in made.arena.message(made.key, "Ready")
    assert [item for item in made.arena.events("Warning") if item["involvedObject"]["kind"] == DATABASE.kind] == []


async def test_tables_come_back_beside_the_live_database(made: Serving) -> None:
    before = databases(made)
    ask(made, "one.table", restore={"tables": ["users", "media_requests"]})
    await run(made)
    ask(made, "next")
    await run(made)
    assert (phase(made, "one.table"), status(made, "one.table")["operation"]) == ("Running", "tables")
    assert operations.conditions(made, "one.table")["Ready"] == ("False", "Restoring")
    assert phase(made, "next") == "Pending"
    assert (databases(made), jobs(made)) == (before, [])
    assert made.arena.conditions(made.key)["Ready"] == ("True", "Ready")
    [job] = jobs(made, naming.COMPONENT_ASIDE)
    told = arguments(job)
    assert [told[place + 1] for place, word in enumerate(told) if word == "--table"] == ["users", "media_requests"]
    assert told[told.index("--into-schema") + 1] == "restored_one_table"
    result = {"outcome": "Succeeded", "message": "They are back.", "backup": TAKEN, "schema": "restored_one_table"}
    end(made, job, result)
    await run(made)
    found = status(made, "one.table")
    assert (found["phase"], found["message"], found["backup"]) == ("Succeeded", "They are back.", TAKEN)
    assert found["schema"] == "restored_one_table"
    assert operations.conditions(made, "one.table") == {"Ready": ("True", "Restored"), "Finished": ("True", "Restored")}
    assert databases(made)["medianest"] == before["medianest"]
    assert phase(made, "next") == "Running"
    told_of = [(item["involvedObject"]["kind"], item["reason"]) for item in made.arena.events()]
    assert told_of.count(("MediaNestDatabase", "Restored")) == 1


async def test_tables_that_do_not_come_are_told_of_and_the_database_stays_ready(made: Serving) -> None:
    ask(made, "wrong", restore={"tables": ["nobodys"]})
    await run(made)
    [job] = jobs(made, naming.COMPONENT_ASIDE)
    end(made, job, {"outcome": "Failed", "message": "It has no table nobodys."}, succeeded=False)
    await run(made)
    assert status(made, "wrong")["message"] == (
        "It has no table nobodys. Nothing was changed. This object is done; make another one for another try."
    )
    assert operations.conditions(made, "wrong") == {
        "Ready": ("False", "RestoreFailed"),
        "Stalled": ("True", "RestoreFailed"),
        "Finished": ("True", "RestoreFailed"),
    }
    assert made.arena.conditions(made.key)["Ready"] == ("True", "Ready")
    assert "wrong failed and changed nothing" in made.arena.message(made.key, "Ready")


@pytest.mark.parametrize(
    "message",
    [
        json.dumps({"estimate": {"backup": TAKEN, "lost": [{"table": "a", "rows": 1}, "and 7 more"]}}),
        json.dumps({"estimate": {"backup": TAKEN, "lost": [{"table": "a", "rows": 10**30}]}}),
        json.dumps({"estimate": {"backup": TAKEN, "seconds": "Infinity"}}),
        json.dumps({"estimate": [], "backup": {"a": 1}, "repository": 7, "message": ["x"]}),
        '{"estimate": {"backup": "x", "seconds": NaN}}',
        "no result",
    ],
)
async def test_what_a_pod_says_is_input(made: Serving, message: str) -> None:
    ask(made, "look", restore={"dryRun": True})
    await run(made)
    [job] = jobs(made, naming.COMPONENT_ASIDE)
    end(made, job, message)
    await run(made)
    found = status(made, "look")
    assert found["phase"] in {"Succeeded", "Failed"}
    assert made.arena.conditions(made.key)["Ready"] == ("True", "Ready")
    json.dumps(found, allow_nan=False)


def over_since(made: Serving, name: str, ago: timedelta) -> None:
    live = made.arena.server.get(OPERATION, NAMESPACE, name)
    aged = live["status"] | {"finishedAt": stamp(datetime.now(UTC) - ago)}
    made.arena.server.put(OPERATION, live | {"status": aged})


def is_there(made: Serving, name: str) -> bool:
    return (OPERATION.plural, NAMESPACE, name) in made.arena.server.objects


async def failed(made: Serving, name: str, **spec: Any) -> None:
    """One that is over."""
    labels = spec.pop("labels", None)
    ask(made, name, labels=labels, restore={"repository": "attic"}, **spec)
    await run(made)
    assert phase(made, name) == "Failed"


async def test_an_object_goes_when_it_has_had_its_time(made: Serving) -> None:
    await failed(made, "month")
    await failed(made, "week", ttlAfterFinished="7d")
    for days, left in ((6, {"month", "week"}), (8, {"month"}), (29, {"month"}), (31, set[str]())):
        for name in ("month", "week"):
            if is_there(made, name):
                over_since(made, name, timedelta(days=days))
        await run(made)
        assert {name for name in ("month", "week") if is_there(made, name)} == left


@pytest.mark.parametrize("label", ["kustomize.toolkit.fluxcd.io/name", "app.kubernetes.io/instance"])
async def test_what_a_tool_would_make_again_stays(made: Serving, label: str) -> None:
    """Made again it would restore again, a month later."""
    await failed(made, "in-git", labels={label: "apps"})
    over_since(made, "in-git", timedelta(days=400))
    await run(made, 3)
    assert is_there(made, "in-git")


async def test_an_object_goes_also_where_its_database_is_gone(made: Serving) -> None:
    await failed(made, "old")
    made.arena.server.objects.pop((DATABASE.plural, *made.key))
    over_since(made, "old", timedelta(days=29))
    await made.arena.observe()
    wait = await made.arena.reconciler.reconcile(made.key)
    assert wait is not None
    assert 0 < wait <= 86_400
    over_since(made, "old", timedelta(days=31))
    await made.arena.run(made.key)
    assert not is_there(made, "old")


async def test_what_is_not_over_never_goes(made: Serving) -> None:
    ask(made, "back", restore={}, ttlAfterFinished="1d")
    live = made.arena.server.get(OPERATION, NAMESPACE, "back")
    live["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    await run(made, 3)
    assert phase(made, "back") == "Running"
