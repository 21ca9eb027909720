"""What the owner of the application's database may do to the database itself, beside a controller that reports it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from integration.operations import REPOSITORY, ask, status
from integration.serving import Serving, serving
from medianest_operator.kubernetes.kinds import DATABASE


@pytest.fixture
async def database() -> AsyncIterator[Serving]:
    async with serving() as made:
        yield made


def as_migrator(made: Serving, *statements: str) -> None:
    with made.database.connect("medianest_migrator") as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def run(made: Serving, times: int = 3) -> dict[str, tuple[str, str]]:
    for _ in range(times):
        made.arena.services.memory.forget(made.key)
        await made.arena.run(made.key)
    return made.arena.conditions(made.key)


def put_spec(made: Serving, spec: dict[str, Any]) -> None:
    live = made.arena.server.get(DATABASE, *made.key)
    made.arena.server.put(DATABASE, live | {"spec": spec})


async def test_a_database_made_a_template_is_still_the_database(database: Serving) -> None:
    """ALTER DATABASE ... IS_TEMPLATE is its owner's right (PostgreSQL manual, ALTER DATABASE)."""
    as_migrator(database, "ALTER DATABASE medianest IS_TEMPLATE true")
    conditions = await run(database)
    assert conditions["Ready"] == ("True", "Ready"), database.arena.message(database.key, "Ready")


async def test_a_database_made_a_template_is_not_restored_again(database: Serving) -> None:
    """It serves; a bootstrap that was done long ago must not begin again, and no outage be reported."""
    put_spec(database, {"bootstrap": {"restore": {"repository": REPOSITORY, "backup": "latest"}}})
    assert (await run(database))["Ready"][0] == "True"
    as_migrator(database, "ALTER DATABASE medianest IS_TEMPLATE true")
    conditions = await run(database)
    assert conditions["Available"] == ("True", "PrimaryServing"), database.arena.message(database.key, "Available")


async def test_a_comment_of_the_owner_ends_no_restore(database: Serving) -> None:
    """The comment is the owner's to write: that a restore is done has to come from who did it."""
    put_spec(database, {"backup": {"repositories": [REPOSITORY]}})
    uid = ask(database, "r1")["metadata"]["uid"]
    await run(database)
    assert status(database, "r1")["phase"] == "Running"
    mark = {"role": "live", "request": uid, "at": "2026-01-01T00:00:00+00:00", "backup": "never-restored"}
    as_migrator(database, f"COMMENT ON DATABASE medianest IS '{json.dumps({'medianest-operator': mark})}'")
    await run(database)
    told = status(database, "r1")
    assert (told["phase"], told.get("backup")) == ("Running", None)


async def test_a_database_that_lets_nobody_in_is_not_called_serving(database: Serving) -> None:
    as_migrator(database, "ALTER DATABASE medianest CONNECTION LIMIT 0")
    with pytest.raises(psycopg.OperationalError, match="too many connections"):
        database.database.connect("medianest_app")
    await database.arena.sessions.close()
    conditions = await run(database)
    assert conditions["Ready"][0] == "False", database.arena.message(database.key, "Available")
    assert conditions["Available"] != ("True", "PrimaryServing"), database.arena.message(database.key, "Available")


async def test_connections_that_are_all_taken_are_said_to_be(database: Serving) -> None:
    """Nobody but the superuser gets in: that is neither serving nor a configuration that isn't loaded yet."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                held.enter_context(database.database.connect("medianest_migrator"))
        await database.arena.sessions.close()
        conditions = await run(database)
    assert conditions["Ready"][1] != "Configuring", database.arena.message(database.key, "Ready")
    assert conditions["Available"] != ("True", "PrimaryServing"), database.arena.message(database.key, "Available")
