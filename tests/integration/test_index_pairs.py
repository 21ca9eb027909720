"""Which of two indexes can go, on a fixture whose truth was worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.index_pairs import ALL, Case
from integration.postgres_server import Database, PostgresServer
from medianest_operator.health.indexes.catalog import Catalog
from medianest_operator.health.indexes.reading import read
from medianest_operator.health.indexes.report import Report, judge

NUMBERED = [(f"t{number:02}", case) for number, case in enumerate(ALL)]


@pytest.fixture(scope="module")
def pairs(server: PostgresServer) -> Iterator[Database]:
    database = server.create_database()
    with database.connect() as connection:
        for table, case in NUMBERED:
            connection.execute(f"{case.table}; {case.statements}".replace("{t}", table).encode())
    yield database
    server.drop_database(database)


@pytest.fixture(scope="module")
def seen(pairs: Database) -> Catalog:
    with pairs.connect("stranger") as connection:
        return read(connection)


@pytest.fixture(scope="module")
def report(seen: Catalog) -> Report:
    return judge(seen, ())


@pytest.mark.parametrize(("table", "case"), NUMBERED, ids=[case.name for case in ALL])
def test_what_can_go(report: Report, table: str, case: Case) -> None:
    def named(sign: str, words: str, name: str, evidence: str) -> str:
        other = evidence
        # Names are spelled as they are, so only these words may come before one.
        for before in ("It is equal to ", "primary key ", "Primary key ", "Index "):
            other = other.removeprefix(before)
        return f"{name} {sign} {other.split(words)[0]}".replace(f"{table}_", "")

    found = [named("=", ".", entry.name, entry.evidence) for entry in report.duplicate if entry.name.startswith(table)]
    found += [
        named("<", " does all", entry.name, entry.evidence)
        for entry in report.redundant
        if entry.name.startswith(table)
    ]
    assert sorted(found) == sorted(case.going)


def test_there_are_enough_pairs() -> None:
    assert len(ALL) >= 60
    assert len({case.name for case in ALL}) == len(ALL)


def test_statements_drop_what_they_name(server: PostgresServer, pairs: Database, report: Report) -> None:
    copy = server.create_database(pairs.name)
    try:
        fixes = [entry.fix for entry in (*report.duplicate, *report.redundant) if entry.fix]
        with copy.connect() as connection:
            for fix in fixes:
                connection.execute(fix.encode())
            after = judge(read(connection), ())
        assert (after.duplicate, after.redundant) == ((), ())
        assert after.total == report.total - len(fixes) - 3, "a partitioned index goes with its one part"
    finally:
        server.drop_database(copy)
