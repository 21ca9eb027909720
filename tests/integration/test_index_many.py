"""More indexes than are judged, and catalogs that can't be read in time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from integration.postgres_server import Database
from integration.serving import serving
from medianest_operator.health.indexes import reading
from medianest_operator.health.indexes.catalog import Catalog
from medianest_operator.health.indexes.queries import MOST
from medianest_operator.health.indexes.report import judge

MORE = 100
MADE = f"""
CREATE TABLE t (a int, b int, c text);
DO $$ BEGIN
  FOR i IN 1..{MOST + MORE} LOOP EXECUTE 'CREATE INDEX t_' || i || ' ON t (a, b) WHERE a > ' || i; END LOOP; END $$
"""


def test_at_most_so_many_are_read_and_those_that_are_asked_for_first(empty: Database) -> None:
    empty.execute(MADE)
    empty.execute("CREATE INDEX late ON t (b); CREATE INDEX broken ON t (c); CREATE INDEX later ON t (c);"
                  "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass")  # fmt: skip
    with empty.connect("stranger") as connection:
        connection.execute("SET statement_timeout = '5s'")
        found = reading.read(connection, ["late", "missing"])
    assert (len(found.indexes), found.unread) == (MOST, MORE + 3)
    names = {index.name for index in found.indexes}
    assert names >= {"late", "broken", "t_1"}
    assert "later" not in names
    report = judge(found, ())
    assert (report.total, report.not_judged) == (MOST + MORE + 3, MORE + 3)


async def test_a_look_that_did_not_end_is_not_taken_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, looks, slow = reading.read_async, 0, True

    async def tried(connection: AsyncConnection[Any], first: Iterable[str] = ()) -> Catalog:
        nonlocal looks
        looks += 1
        if slow:
            raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")
        return await read(connection, first)

    async with serving() as made:
        assert made.arena.conditions(made.key)["IndexesHealthy"] == ("True", "IndexesHealthy")
        monkeypatch.setattr(reading, "read_async", tried)
        made.database.execute("CREATE INDEX narrow ON media_requests (user_id)")
        for _ in range(3):
            await made.arena.run(made.key)
            # Another definition each time, by which a tenant would have it read again.
            made.database.execute("CREATE TABLE IF NOT EXISTS x (a int); ALTER TABLE x ADD COLUMN IF NOT EXISTS b int")
        assert looks == 1
        [condition] = [item for item in made.arena.status(made.key)["conditions"] if item["type"] == "IndexesHealthy"]
        assert (condition["status"], condition["reason"]) == ("True", "IndexesHealthy")
        assert "statement timeout" in condition["message"]
        slow = False
        made.arena.services.memory.drop(made.key, "failed look at indexes")
        await made.arena.run(made.key)
        assert looks == 2
        assert made.arena.status(made.key)["indexes"]["redundant"] == ["narrow"]
