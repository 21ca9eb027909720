"""A restore in place by an operation: done once, one at a time, and never half, whatever gets lost in between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from apiserver import Call, Fault
from integration import operations
from integration.loops import NAMESPACE, waits_for_a_secret
from integration.operations import (
    MOMENT,
    REPOSITORY,
    TAKEN,
    arguments,
    ask,
    databases,
    end,
    filled,
    is_restored,
    jobs,
    phase,
    remove,
    restore,
    run,
    status,
)
from integration.serving import Serving
from medianest_operator import naming
from medianest_operator.kubernetes.kinds import DATABASE, JOB, OPERATION


@pytest.fixture
async def made() -> AsyncIterator[Serving]:
    async with operations.serving_with_backups() as found:
        yield found


async def test_a_restore_goes_from_its_object_to_its_end(made: Serving) -> None:
    before = databases(made)
    asked = ask(made, "back")
    await run(made)
    assert phase(made, "back") == "Running"
    assert operations.conditions(made, "back") == {
        "Ready": ("False", "Restoring"), "Reconciling": ("True", "Restoring")
    }  # fmt: skip
    assert made.arena.conditions(made.key)["Ready"] == ("False", "Restoring")
    told = made.arena.message(made.key, "Ready")
    assert told.startswith("MediaNestOperation back: Job db-restore-")
    assert told.endswith("restores backup latest-verified. The database serves as before.")
    [job] = jobs(made)
    assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == [asked["metadata"]["uid"]]
    assert made.arena.status(made.key)["operation"] == {"name": "back", "operation": "restore", "phase": "Running"}
    filled(made, job)
    await run(made)
    found = status(made, "back")
    kept = found["keptDatabase"]
    assert (found["phase"], found["backup"], found["repository"]) == ("Succeeded", TAKEN, "nas")
    assert (found["job"], found["startedAt"]) == (job["metadata"]["name"], "2026-11-22T02:59:30Z")
    assert found["seconds"] > 0
    assert f"is kept as {kept} for 7d" in found["message"]
    assert operations.conditions(made, "back") == {"Ready": ("True", "Restored"), "Finished": ("True", "Restored")}
    assert is_restored(made)
    assert databases(made)[kept] == before["medianest"]
    assert made.arena.status(made.key)["operation"]["phase"] == "Succeeded"
    # Named there also when the operation is gone.
    [replaced] = made.arena.status(made.key)["replaced"]
    assert replaced["database"] == kept
    since, until = (datetime.fromisoformat(replaced[name]) for name in ("since", "until"))
    assert until - since == timedelta(days=7)
    reasons = [(item["involvedObject"]["kind"], item["reason"]) for item in made.arena.events()]
    assert reasons.count(("MediaNestOperation", "Restored")) == 1
    assert reasons.count(("MediaNestDatabase", "Restored")) == 1


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ({}, ["--backup", "latest-verified"]),
        ({"backup": TAKEN}, ["--backup", TAKEN]),
        ({"targetTime": MOMENT}, ["--backup", "latest", "--target-time", MOMENT]),
        ({"acceptDifferences": ["view a", "view $(PGPASSWORD)"]}, ["--accept-difference", "view $$(PGPASSWORD)"]),
    ],
    ids=["nothing", "an id", "a moment", "differences"],
)
async def test_what_the_job_is_told(made: Serving, wanted: dict[str, object], given: list[str]) -> None:
    ask(made, "back", restore=wanted)
    await run(made)
    [job] = jobs(made)
    told = arguments(job)
    for option, value in zip(given[::2], given[1::2], strict=True):
        assert (option, value) in list(pairwise(told))
    # Of several servers that had the name, this one's; an id says it by itself.
    assert ("--system-identifier" in told) == (wanted.get("backup") != TAKEN)
    assert told[told.index("--volume-size") + 1] == str(10 << 30)
    # What can't come back as it was is refused unless it is accepted by name.
    assert "--strict" in told
    assert "--dry-run" not in told


@pytest.mark.parametrize(
    ("wanted", "places"),
    [({}, ["nas", "offsite"]), ({"repository": "offsite"}, ["offsite"]), ({"repository": "nas"}, ["nas"])],
    ids=["no repository", "the second", "the first"],
)
@pytest.mark.parametrize("what", [{}, {"dryRun": True}], ids=["restore", "dry run"])
async def test_where_it_looks(made: Serving, wanted: dict[str, str], places: list[str], what: dict[str, bool]) -> None:
    """Whoever names no repository wants the newest backup, wherever it is."""
    live = made.arena.server.get(DATABASE, *made.key)
    both = [REPOSITORY, {"name": "offsite", "volume": {"claimName": "offsite"}}]
    made.arena.server.put(DATABASE, live | {"spec": {"backup": {"repositories": both}}})
    ask(made, "back", restore=wanted | what)
    await run(made)
    [job] = jobs(made, naming.COMPONENT_ASIDE if what else naming.COMPONENT_RESTORE)
    told = arguments(job)
    given = [value.partition("=")[0] for option, value in pairwise(told) if option == "--repository"]
    assert given == places


async def test_what_was_done_is_not_done_again_where_status_and_job_got_lost(made: Serving) -> None:
    ask(made, "back")
    await run(made)
    [job] = jobs(made)
    filled(made, job)
    made.arena.server.fault = lambda call: Fault(500) if call.kind == OPERATION.plural and call.is_write else None
    await run(made)
    assert phase(made, "back") == "Running"
    after = databases(made)
    assert is_restored(made)
    remove(made, JOB, job["metadata"]["name"])
    made.arena.server.fault = lambda _: None
    await run(made, 3)
    assert databases(made) == after
    assert jobs(made) == []
    found = status(made, "back")
    assert (found["phase"], found["backup"]) == ("Succeeded", TAKEN)
    assert found["keptDatabase"] in after
    await run(made, 3)
    assert databases(made) == after


async def test_the_next_one_waits_until_the_first_is_reported(made: Serving) -> None:
    """Its mark would take the place of the first one's, which then would be done again."""
    ask(made, "first")
    await run(made)
    ask(made, "second")
    await run(made)
    waiting = status(made, "second")
    assert waiting["phase"] == "Pending"
    assert waiting["message"] == "It waits for MediaNestOperation first, which comes first: one is done at a time."
    [job] = jobs(made)
    filled(made, job)
    made.arena.server.fault = lambda call: Fault(500) if call.name == "first" and call.is_write else None
    await run(made, 3)
    assert is_restored(made)
    assert [item["metadata"]["name"] for item in jobs(made)] == [job["metadata"]["name"]]
    made.arena.server.fault = lambda _: None
    await run(made, 3)
    assert phase(made, "first") == "Succeeded"
    assert phase(made, "second") == "Running"
    assert len(jobs(made)) == 2


async def test_what_has_begun_goes_before_what_sorts_before_it(made: Serving) -> None:
    """Two of the same second: a third would otherwise throw away what the second has filled."""
    ask(made, "b")
    await run(made)
    [job] = jobs(made)
    candidates = databases(made)
    early = ask(made, "a")
    early["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    for item in (OPERATION, JOB):
        for each in made.arena.server.all(item):
            each.pop("status", None)
    await run(made)
    assert databases(made) == candidates
    assert [item["metadata"]["uid"] for item in jobs(made)] == [job["metadata"]["uid"]]
    assert phase(made, "a") == "Pending"


async def test_deleted_in_mid_run_it_changes_nothing(made: Serving) -> None:
    before = databases(made)
    ask(made, "back")
    await run(made)
    assert len(databases(made)) == 2
    remove(made, OPERATION, "back")
    await run(made)
    assert databases(made) == before
    assert jobs(made) == []
    assert made.arena.conditions(made.key)["Ready"] == ("True", "Ready")
    assert "operation" not in made.arena.status(made.key)


async def test_deleted_right_before_the_cutover_it_changes_nothing(made: Serving) -> None:
    """The watch has not told of it yet."""
    before = databases(made)
    ask(made, "back")
    await run(made)
    [job] = jobs(made)
    filled(made, job)

    def gone(call: Call) -> Fault | None:
        asks = call.kind == OPERATION.plural and call.method == "GET" and call.name == "back"
        return Fault(404, reason="NotFound") if asks else None

    made.arena.server.fault = gone
    await run(made)
    assert not is_restored(made)
    remove(made, OPERATION, "back")
    await run(made)
    assert databases(made) == before


async def test_an_object_of_the_same_name_asks_again(made: Serving) -> None:
    ask(made, "back")
    await restore(made)
    after = databases(made)
    # The same object, applied for ever.
    ask(made, "back")
    made.arena.server.put(OPERATION, made.arena.server.get(OPERATION, NAMESPACE, "back") | {"metadata": {
        "namespace": NAMESPACE, "name": "back", "annotations": {"touched": "again"}}})  # fmt: skip
    await run(made, 3)
    assert databases(made) == after
    remove(made, OPERATION, "back")
    await run(made)
    ask(made, "back")
    await run(made)
    assert phase(made, "back") == "Running"
    assert len(databases(made)) == 3


async def test_a_restore_that_fails_changes_nothing_and_says_what_to_do(made: Serving) -> None:
    before = databases(made)
    ask(made, "back", restore={"backup": TAKEN})
    await run(made)
    [job] = jobs(made)
    differences = [f"view v{number} is missing" for number in range(60)]
    result = {"outcome": "Failed", "reason": "NotEqual", "message": "It is not what was backed up: view v0 is missing."}
    end(made, job, result | {"backup": TAKEN, "differences": differences}, succeeded=False)
    await run(made, 3)
    found = status(made, "back")
    assert found["phase"] == "Failed"
    assert found["differences"] == differences[:50]
    assert (
        "Nothing was changed. To take it all the same, make another object whose restore.acceptDifferences"
        in found["message"]
    )
    assert operations.conditions(made, "back") == {
        "Ready": ("False", "RestoreFailed"),
        "Stalled": ("True", "RestoreFailed"),
        "Finished": ("True", "RestoreFailed"),
    }
    assert databases(made) == before
    # The database is as its spec wants it; who looks there is told all the same.
    assert made.arena.conditions(made.key)["Ready"] == ("True", "Ready")
    assert "the restore of MediaNestOperation back failed and changed nothing" in made.arena.message(made.key, "Ready")
    warnings = [(item["involvedObject"]["kind"], item["reason"]) for item in made.arena.events("Warning")]
    assert warnings.count(("MediaNestOperation", "RestoreFailed")) == 1
    assert warnings.count(("MediaNestDatabase", "RestoreFailed")) == 1
    # Its log stays as long as it does; cleaned away, nothing begins again.
    assert [item["metadata"]["name"] for item in jobs(made)] == [found["job"]]
    remove(made, JOB, found["job"])
    await run(made, 3)
    assert jobs(made) == []
    remove(made, OPERATION, "back")
    await run(made)
    assert "failed" not in made.arena.message(made.key, "Ready")


def writes_only(number: int) -> Callable[[Call], Fault | None]:
    """From the nth write on the API server is away, as it is to an operator that was killed."""
    seen = 0

    def fault(call: Call) -> Fault | None:
        nonlocal seen
        seen += call.is_write
        return Fault(cut=True) if seen >= number and call.is_write else None

    return fault


async def test_killed_before_any_of_its_writes_it_is_done_once(made: Serving) -> None:
    """Each number of writes is one moment at which the operator goes; the next one begins with nothing remembered."""
    for number in range(1, 12):
        name, before = f"back-{number}", databases(made)["medianest"]
        ask(made, name)
        cut = False
        for _ in range(6):
            if not cut:
                made.arena.server.fault = writes_only(number)
            await run(made, 1)
            made.arena.server.fault, cut = (lambda _: None), True
            await run(made, 1)
            for job in jobs(made):
                if job.get("status") is None and naming.ANNOTATION_REPLACED not in job["metadata"]["annotations"]:
                    made.postgres.maintenance.execute("CHECKPOINT")
                    filled(made, job)
                    made.arena.server.fault = writes_only(number)
                    await run(made, 1)
                    made.arena.server.fault = lambda _: None
            if phase(made, name) == "Succeeded":
                break
        found = status(made, name)
        assert found["phase"] == "Succeeded", found
        after = databases(made)
        assert after["medianest"] != before
        assert after[found["keptDatabase"]] == before
        kept = [name for name in after if name.startswith("medianest_old_")]
        assert len(kept) == number
        assert not [name for name in after if name.startswith("medianest_new_")]


@pytest.mark.parametrize("asked", [{}, {"dryRun": True}, {"tables": ["users"]}], ids=["in place", "dry run", "tables"])
async def test_a_restore_that_waits_for_a_secret_begins_anew_without_its_name(
    made: Serving, asked: dict[str, Any]
) -> None:
    live = made.arena.server.get(DATABASE, *made.key)
    signed = {"backup": live["spec"]["backup"] | {"encryption": {"signingSecret": {"name": "keys"}}}}
    made.arena.server.put(DATABASE, live | {"spec": live["spec"] | signed})
    ask(made, "back", restore=asked)
    await run(made)
    component = naming.COMPONENT_ASIDE if asked else naming.COMPONENT_RESTORE
    [job] = jobs(made, component)
    assert "--signing-keys" in arguments(job)
    waits_for_a_secret(made.arena.server, job, "keys")
    await run(made)
    assert 'secret "keys" not found' in status(made, "back")["message"]
    assert [item["metadata"]["uid"] for item in jobs(made, component)] == [job["metadata"]["uid"]]
    made.arena.server.put(DATABASE, made.arena.server.get(DATABASE, *made.key) | {"spec": live["spec"]})
    await run(made)
    [anew] = jobs(made, component)
    assert anew["metadata"]["uid"] != job["metadata"]["uid"]
    assert "--signing-keys" not in arguments(anew)
    assert phase(made, "back") == "Running"
