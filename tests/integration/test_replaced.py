"""What becomes of a database whose place a restore gave to another one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from integration import operations
from integration.operations import TAKEN, ask, databases, end, jobs, kept_for, restore, run, status
from integration.serving import Serving
from medianest_operator import naming
from medianest_operator.kubernetes.kinds import DATABASE, Manifest
from medianest_operator.timestamps import stamp_now

OF_REPLACED = "20261123T030000Z-replaced-aaaa"
FULL = "repository nas: could not write: No space left on device"


@pytest.fixture
async def made() -> AsyncIterator[Serving]:
    async with operations.serving_with_backups() as found:
        yield found


def backing_up(made: Serving) -> list[Manifest]:
    """The Jobs that back up replaced databases."""
    return [job for job in jobs(made) if naming.ANNOTATION_REPLACED in job["metadata"].get("annotations", {})]


def replaced(made: Serving) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = made.arena.status(made.key).get("replaced") or []
    return found


async def test_what_the_restore_says_itself_decides_how_long_it_stays(made: Serving) -> None:
    ask(made, "back", restore={"keepReplaced": "90d"})
    await restore(made)
    assert "for 90d" in status(made, "back")["message"]
    marks = made.postgres.maintenance.execute(
        "SELECT mark->>'keep' FROM medianest_operator.database_marks WHERE mark->>'role' = 'kept'"
    )
    assert marks == [("90d",)]
    kept_for(made, 80)
    await run(made)
    assert not backing_up(made)
    kept_for(made, 91)
    await run(made)
    assert backing_up(made)


async def test_its_last_backup_is_told_as_soon_as_there_is_one(made: Serving) -> None:
    ask(made, "back")
    await restore(made)
    kept_for(made, 8)
    await run(made)
    [job] = backing_up(made)
    newest = [[OF_REPLACED, 4000, None, 5], [TAKEN, 3000, True, 5]]
    catalog = {"nas": {"count": 2, "newest": newest}}
    end(
        made,
        job,
        {"outcome": "Succeeded", "backup": OF_REPLACED, "catalog": catalog, "repositories": {"nas": {"ok": True}}},
    )
    await run(made)
    assert replaced(made) == []
    assert sorted(databases(made)) == ["medianest"]
    backup = made.arena.status(made.key)["backup"]
    assert [(item["id"], item["tier"]) for item in backup["newest"]] == [(OF_REPLACED, "replaced"), (TAKEN, "daily")]
    assert backup["repositories"][0]["count"] == 2
    # It is no state of the database that serves.
    assert "last" not in backup
    assert backing_up(made) == []


async def test_one_that_can_not_be_backed_up_stays_and_says_why(made: Serving) -> None:
    ask(made, "back")
    await restore(made)
    [kept] = replaced(made)
    kept_for(made, 8)
    await run(made)
    [job] = backing_up(made)
    end(made, job, {"outcome": "Failed", "message": FULL}, succeeded=False, moment=stamp_now())
    await run(made)
    assert FULL in replaced(made)[0]["problem"]
    assert made.arena.conditions(made.key)["BackupsHealthy"] == ("False", "BackupFailed")
    message = made.arena.message(made.key, "BackupsHealthy")
    assert f"Database {kept['database']}" in message
    assert FULL in message
    assert [item["reason"] for item in made.arena.events("Warning")].count("BackupFailed") == 1
    assert "is past keepReplaced (7d), and isn't dropped" in message
    # Prolonged, it isn't late any more.
    live = made.arena.server.get(DATABASE, *made.key)
    spec = live["spec"]
    made.arena.server.put(DATABASE, live | {"spec": {"backup": spec["backup"] | {"keepReplaced": "30d"}}})
    await run(made)
    assert "problem" not in replaced(made)[0]
    made.arena.server.put(DATABASE, made.arena.server.get(DATABASE, *made.key) | {"spec": spec})
    await run(made)
    # The hour is over: while it is tried again, it is still told.
    [job] = backing_up(made)
    end(made, job, {"outcome": "Failed", "message": FULL}, succeeded=False)
    await run(made, 3)
    [job] = backing_up(made)
    assert job.get("status") is None
    assert made.arena.conditions(made.key)["BackupsHealthy"] == ("False", "BackupFailed")
    end(made, job, {"outcome": "Succeeded", "backup": OF_REPLACED})
    await run(made, 3)
    assert replaced(made) == []
    assert made.arena.conditions(made.key)["BackupsHealthy"][1] != "BackupFailed"
