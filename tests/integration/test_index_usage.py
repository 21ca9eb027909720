"""No index is called unused that anybody may have used: not once in whatever makes counters lie."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta

import psycopg
import pytest
from psycopg import AsyncConnection

from integration.postgres_server import Database, PostgresServer, running_server, wait_until
from medianest_operator.health.indexes.catalog import Catalog, Statistics
from medianest_operator.health.indexes.reading import read, read_statistics
from medianest_operator.health.indexes.usage import Seen, unused

TODAY = date(2026, 1, 1)
LONG = timedelta(days=15)
SCAN = "SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT FROM t WHERE {} = 700"
MADE = """
CREATE TABLE t (a int, b int, c int UNIQUE);
INSERT INTO t SELECT i, i, i FROM generate_series(1, 60000) i;
CREATE INDEX t_a ON t (a); CREATE INDEX t_b ON t (b); CREATE INDEX t_small ON t (a) WHERE b < 0; ANALYZE t
"""


@contextmanager
def primary_and_replica(*settings: str) -> Iterator[tuple[Database, Database]]:
    with running_server("wal_level=replica", *settings) as primary:
        database = primary.create_database(name="app")
        database.execute(MADE)
        with running_server("hot_standby=on", *settings, copy_of=(primary, "copy")) as replica:
            yield database, Database(replica, "app")


@pytest.fixture
def both() -> Iterator[tuple[Database, Database]]:
    with primary_and_replica() as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Database, Database]]:
    """For those that leave the servers as they are."""
    with primary_and_replica() as made:
        yield made


def catalog_of(database: Database) -> Catalog:
    with database.connect("stranger") as connection:
        return read(connection)


async def counted(database: Database, later: timedelta = timedelta()) -> Statistics:
    """What a server says, that much later by its own clock."""
    connection = await AsyncConnection.connect(
        host=str(database.server.folder), user="stranger", dbname=database.name, autocommit=True,
        options="-c search_path=pg_catalog,pg_temp",
    )  # fmt: skip
    async with connection:
        found = await read_statistics(connection)
    return replace(found, now=found.now + later)


async def names_unused(*databases: Database, later: timedelta = LONG, seen: Seen | None = None) -> list[str]:
    """The verdict so much later, over the first one's catalog, on indexes that were there all along."""
    catalog = catalog_of(databases[0])
    instances = [f"db-{number}" for number in range(len(databases))]
    known = (seen or Seen()).after(catalog, instances, TODAY - LONG).after(catalog, instances, TODAY)
    answers = {name: await counted(item, later) for name, item in zip(instances, databases, strict=True)}
    return [index.name for index in unused(catalog, answers, known, TODAY)]


def scan(database: Database, column: str) -> None:
    database.execute(SCAN.format(column))
    with database.connect() as watcher:
        wait_until(watcher, "SELECT idx_scan > 0 FROM pg_stat_user_indexes WHERE indexrelname = %s", f"t_{column}")


async def test_only_what_no_instance_used_is_unused(shared: tuple[Database, Database]) -> None:
    primary, replica = shared
    assert await names_unused(primary, replica) == ["t_a", "t_b"], "neither the unique one nor the small one"
    assert await names_unused(primary, replica, later=timedelta(days=13)) == []


async def test_replica_only_use(both: tuple[Database, Database]) -> None:
    primary, replica = both
    scan(replica, "a")
    assert await names_unused(primary, replica) == ["t_b"]
    assert await names_unused(primary) == ["t_a", "t_b"], "which the primary alone would get wrong"


async def test_failover(both: tuple[Database, Database]) -> None:
    """The new primary never used what the old one did; the old one comes back, or is copied again."""
    primary, replica = both
    scan(primary, "a")
    replica.server.maintenance.execute("SELECT pg_promote()")
    assert await names_unused(replica, primary) == ["t_b"], "the former primary has counted as before"
    catalog, instances = catalog_of(replica), ["db-0", "db-1"]
    known = Seen().after(catalog, instances, TODAY - LONG)
    # The former primary's pod is away, then gone for good.
    answers = {"db-0": await counted(replica, LONG), "db-1": None}
    assert unused(catalog, answers, known.after(catalog, instances, TODAY), TODAY) == []
    alone = known.after(catalog, ["db-0"], TODAY)
    assert unused(catalog, {"db-0": await counted(replica, LONG)}, alone, TODAY) == []
    later = TODAY + LONG
    left = alone.after(catalog, ["db-0"], later)
    told = unused(catalog, {"db-0": await counted(replica, 2 * LONG)}, left, later)
    assert [index.name for index in told] == ["t_a", "t_b"]


async def test_crash_and_clean_restart(both: tuple[Database, Database]) -> None:
    primary, _ = both
    scan(primary, "a")
    before = await counted(primary)
    for how, kept in (("fast", True), ("immediate", False)):
        restart(primary.server, how)
        after = await counted(primary)
        assert (after.since == before.since, bool(after.used)) == (kept, kept), how
    assert after.since is not None
    assert before.since is not None
    assert after.since > before.now
    # The index was seen long ago; what counts is that nobody knows what happened before the crash.
    assert await names_unused(primary, later=timedelta(days=13)) == []
    assert await names_unused(primary, later=LONG) == ["t_a", "t_b"]


@pytest.mark.parametrize(
    "statement",
    ["SELECT pg_stat_reset()", "SELECT pg_stat_reset_single_table_counters('t_a'::regclass)"],
)
async def test_statistics_reset(both: tuple[Database, Database], statement: str) -> None:
    primary, replica = both
    scan(primary, "a")
    moment = (await counted(primary)).now
    primary.execute(statement)
    found = await counted(primary)
    assert found.since is not None
    assert found.since > moment
    assert await names_unused(primary, replica, later=timedelta(days=13)) == []


async def test_freshly_created_index(shared: tuple[Database, Database]) -> None:
    primary, replica = shared
    old = catalog_of(primary)
    known = Seen().after(old, ["db-0", "db-1"], TODAY - LONG)
    primary.execute("CREATE INDEX t_new ON t (b DESC, a)")
    try:
        assert "t_new" not in await names_of(primary, replica, known, TODAY)
        kept = Seen.parse(known.after(catalog_of(primary), ["db-0", "db-1"], TODAY).model_dump_json())
        assert "t_new" not in await names_of(primary, replica, kept, TODAY + timedelta(days=13))
        assert "t_new" in await names_of(primary, replica, kept, TODAY + timedelta(days=14))
        # Another index with its name is another index.
        primary.execute("DROP INDEX t_new; CREATE INDEX t_new ON t (b DESC, a)")
        assert "t_new" not in await names_of(primary, replica, kept, TODAY + timedelta(days=14))
    finally:
        primary.execute("DROP INDEX t_new")


async def names_of(primary: Database, replica: Database, known: Seen, today: date) -> list[str]:
    catalog = catalog_of(primary)
    answers = {"db-0": await counted(primary, 3 * LONG), "db-1": await counted(replica, 3 * LONG)}
    return [i.name for i in unused(catalog, answers, known.after(catalog, list(answers), today), today)]


async def test_unreachable_instance_and_one_that_does_not_count(shared: tuple[Database, Database]) -> None:
    primary, replica = shared
    catalog = catalog_of(primary)
    known = Seen().after(catalog, ["db-0", "db-1"], TODAY - LONG).after(catalog, ["db-0", "db-1"], TODAY)
    here, there = await counted(primary, LONG), await counted(replica, LONG)
    assert unused(catalog, {"db-0": here, "db-1": there}, known, TODAY)
    assert unused(catalog, {"db-0": here, "db-1": None}, known, TODAY) == []
    assert unused(catalog, {"db-0": here, "db-1": replace(there, counting=False)}, known, TODAY) == []
    assert unused(catalog, {"db-0": here, "db-1": replace(there, since=None)}, known, TODAY) == []
    assert unused(catalog, {}, known, TODAY) == []


async def test_index_that_alone_supports_a_foreign_key_is_needed(both: tuple[Database, Database]) -> None:
    primary, replica = both
    primary.execute("CREATE TABLE parent (a int PRIMARY KEY); INSERT INTO parent SELECT a FROM t;"
                    "ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES parent")  # fmt: skip
    assert "t_a" not in await names_unused(primary, replica)


async def test_of_two_that_support_a_foreign_key_and_that_nobody_used_one_is_needed(
    both: tuple[Database, Database],
) -> None:
    primary, replica = both
    primary.execute("CREATE TABLE parent (a int PRIMARY KEY); INSERT INTO parent SELECT a FROM t;"
                    "ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES parent; CREATE INDEX t_d ON t (a DESC)")  # fmt: skip
    assert sorted(await names_unused(primary, replica)) in (["t_a", "t_b"], ["t_b", "t_d"])


async def test_index_that_takes_over_from_a_used_one_is_not_unused(both: tuple[Database, Database]) -> None:
    primary, replica = both
    scan(primary, "a")
    primary.execute("CREATE INDEX t_a_b ON t (a, b)")
    assert await names_unused(primary, replica) == ["t_b"], "t_a can go because of t_a_b"


@pytest.mark.parametrize("text", ["", "x", "[]", '{"indexes": {"yesterday": ["1:1"]}}', '{"indexes": 5}', "null"])
def test_memory_that_somebody_spoiled_is_none(text: str) -> None:
    assert Seen.parse(text) == Seen()


def restart(server: PostgresServer, how: str) -> None:
    """As pg_ctl would; the command line is that of the running server."""
    command = server.process.args
    server.process.send_signal({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[how])
    server.process.wait()
    assert isinstance(command, list)
    owner = server.folder.stat()
    with (server.folder / "server.log").open("ab") as log:
        server.process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=server.folder, user=owner.st_uid, group=owner.st_gid
        )
    deadline = time.monotonic() + 60
    while True:
        try:
            server.maintenance.connect().close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return
