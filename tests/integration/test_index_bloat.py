"""Bloated indexes: what pgstatindex says of indexes of known density, and what reading them may cost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.postgres_server import Database
from medianest_operator.health.indexes.bloat import (
    BLOATED,
    Budget,
    Measured,
    NoExtension,
    candidates,
    confirm,
    estimate,
)
from medianest_operator.health.indexes.catalog import PAGE, Index
from medianest_operator.health.indexes.reading import read

# Ten indexes of one column, and whether a rebuild would free about a third of each or more.
ROWS = 60000
SERIES = f"generate_series(1, {ROWS}) i"
MADE = {
    "fresh": (f"INSERT INTO {{t}} SELECT i, '' FROM {SERIES}; CREATE INDEX {{t}}_i ON {{t}} (a)", False),
    "ascending": (f"CREATE INDEX {{t}}_i ON {{t}} (a); INSERT INTO {{t}} SELECT i, '' FROM {SERIES}", False),
    "random": (
        f"CREATE INDEX {{t}}_i ON {{t}} (a); INSERT INTO {{t}} SELECT i, '' FROM {SERIES} ORDER BY md5(i::text)", False,
    ),
    "fillfactor_70": (
        f"INSERT INTO {{t}} SELECT i, '' FROM {SERIES}; CREATE INDEX {{t}}_i ON {{t}} (a) WITH (fillfactor = 70)",
        False,
    ),
    "fillfactor_50_half_deleted": (
        f"INSERT INTO {{t}} SELECT i, '' FROM {SERIES}; CREATE INDEX {{t}}_i ON {{t}} (a) WITH (fillfactor = 50);"
        " DELETE FROM {t} WHERE a % 4 = 0", False,
    ),
    "deduplicated": (f"INSERT INTO {{t}} SELECT i % 9, '' FROM {SERIES}; CREATE INDEX {{t}}_i ON {{t}} (a)", False),
    "texts": (
        f"INSERT INTO {{t}} SELECT i, repeat(md5(i::text), 1 + i % 3) FROM {SERIES}; CREATE INDEX {{t}}_i ON {{t}} (b)",
        False,
    ),
    "two_thirds_deleted": (
        f"INSERT INTO {{t}} SELECT i, '' FROM {SERIES}; CREATE INDEX {{t}}_i ON {{t}} (a);"
        " DELETE FROM {t} WHERE a % 3 <> 0", True,
    ),
    "texts_deleted": (
        f"INSERT INTO {{t}} SELECT i, md5(i::text) FROM {SERIES}; CREATE INDEX {{t}}_i ON {{t}} (b);"
        " DELETE FROM {t} WHERE a % 2 = 0", True,
    ),
    "emptied_pages": (
        f"INSERT INTO {{t}} SELECT i, '' FROM {SERIES}; CREATE INDEX {{t}}_i ON {{t}} (a);"
        f" DELETE FROM {{t}} WHERE a < {ROWS} * 0.9", True,
    ),
}  # fmt: skip


@pytest.fixture
def bloated(empty: Database) -> Iterator[Database]:
    """The ten, vacuumed, and the extension as a superuser makes it."""
    empty.execute("CREATE EXTENSION pgstattuple; GRANT pg_stat_scan_tables TO stranger")
    with empty.connect() as connection:
        for table, (statements, _) in MADE.items():
            connection.execute(f"CREATE TABLE {table} (a int, b text)".encode())
            connection.execute(statements.replace("{t}", table).encode())
            connection.execute(f"VACUUM ANALYZE {table}".encode())
    yield empty
    empty.execute("REVOKE pg_stat_scan_tables FROM stranger")


def btrees(database: Database, user: str = "stranger") -> list[Index]:
    with database.connect(user) as connection:
        return [index for index in read(connection).indexes if index.method == "btree"]


def measured(
    database: Database, found: list[Index], budget: Budget | None = None
) -> tuple[list[Measured], list[float]]:
    """What a role says that may scan, and for how long it waited in between, by a clock that only waiting moves."""
    waits: list[float] = []
    with database.connect("stranger") as connection:
        return confirm(connection, found, budget, waits.append, lambda: sum(waits)), waits


def test_verdict_is_what_a_rebuild_shows(bloated: Database) -> None:
    found = btrees(bloated)
    results, waits = measured(bloated, found)
    verdicts = {item.index.table: item.bloated for item in results}
    assert verdicts == {table: truth for table, (_, truth) in MADE.items()}
    assert waits == [], "all of them are less than may be read in a minute"
    before = {index.table: index.pages for index in found}
    for item in results:
        bloated.execute(f"REINDEX INDEX {item.index.identifier}")
    after = {index.table: index.pages for index in btrees(bloated)}
    freed = {table: 1 - after[table] / before[table] for table in MADE}
    assert {table: share > 0.3 for table, share in freed.items()} == verdicts, freed


def test_estimate_never_overlooks_what_it_can_see_and_says_where_it_can_not(bloated: Database) -> None:
    by_reader = {index.table: estimate(index) for index in btrees(bloated)}
    assert by_reader["texts"] is None, "how wide the texts are is nothing for a login that may not read them"
    assert by_reader["texts_deleted"] is None
    by_owner = {index.table: estimate(index) for index in btrees(bloated, "postgres")}
    assert None not in by_owner.values()
    told = {table for table, points in by_owner.items() if points is not None and points >= BLOATED}
    assert told == {table for table, (_, truth) in MADE.items() if truth}
    worth = {index.table for index in candidates(btrees(bloated), smallest=1)}
    assert worth == {"texts", "two_thirds_deleted", "texts_deleted", "emptied_pages"}


def test_no_more_is_read_in_a_minute_than_the_budget_allows(bloated: Database) -> None:
    found = sorted(btrees(bloated), key=lambda index: index.name)
    per_minute = 2 << 20
    read_at: list[tuple[float, int]] = []
    waits: list[float] = []
    with bloated.connect("stranger") as connection:
        for item in confirm(connection, found, Budget(per_minute=per_minute), waits.append, lambda: sum(waits)):
            read_at.append((sum(waits), item.bytes))
    total = sum(size for _, size in read_at)
    assert total > per_minute
    assert sum(waits) >= 60 * (total - per_minute) / per_minute - 0.001
    assert waits == [wait for wait in waits if wait <= 60 * max(index.pages for index in found) * PAGE / per_minute]


def test_what_is_too_large_or_too_late_is_named(bloated: Database) -> None:
    found = btrees(bloated)
    results, _ = measured(bloated, found, Budget(largest=1))
    assert {item.why for item in results} == {"it is larger than what may be read"}
    results, waits = measured(bloated, found, Budget(per_minute=PAGE, seconds=1))
    assert {item.why for item in results} == {"the time was over"}
    assert waits == []
    bloated.execute(f"DROP INDEX {found[0].identifier}")
    results, _ = measured(bloated, found[:1])
    assert results[0].why
    assert not results[0].bloated


def test_without_the_extension(medianest: Database) -> None:
    with medianest.connect() as connection, pytest.raises(NoExtension):
        confirm(connection, [])
