"""Which indexes may be out of order after a collation's library has changed, in all schemas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.postgres_server import Database, PostgresServer
from medianest_operator.health.indexes.reading import read
from medianest_operator.health.indexes.report import Report, judge

MADE = """
CREATE TABLE t (a text PRIMARY KEY, b int UNIQUE, c text COLLATE "C", r int4range);
CREATE INDEX computed ON t (b) WHERE a > 'm';
CREATE INDEX hashed ON t USING hash ((left(a, 1)));
CREATE INDEX plain_hash ON t USING hash (a);
CREATE INDEX bytes ON t (c) WHERE c > 'm';
CREATE INDEX number ON t ((b + 1)) WHERE b > 1;
CREATE EXTENSION btree_gist;
ALTER TABLE t ADD CONSTRAINT excluded EXCLUDE USING gist (a WITH =, r WITH &&);
CREATE SCHEMA audit;
CREATE TABLE audit.log (a text PRIMARY KEY, b int UNIQUE, c int);
CREATE INDEX computed ON audit.log (b) WHERE a > 'm'
"""


@pytest.fixture
def changed(server: PostgresServer) -> Iterator[Database]:
    """A database whose default collation has another version than when its indexes were built."""
    server.maintenance.execute(
        "CREATE DATABASE \"icu x\" LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C' TEMPLATE template0"
    )
    database = Database(server, "icu x")
    try:
        database.execute(MADE)
        server.maintenance.execute("UPDATE pg_database SET datcollversion = '1' WHERE datname = 'icu x'")
        yield database
    finally:
        server.drop_database(database)


def report_of(database: Database) -> Report:
    with database.connect("stranger") as connection:
        return judge(read(connection), ())


def files(database: Database) -> dict[str, int]:
    return dict(
        database.execute(
            "SELECT i.indexrelid::regclass::text, pg_relation_filenode(i.indexrelid) FROM pg_index i"
            " JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace IN ('public'::regnamespace,"
            " 'audit'::regnamespace)"
        )
    )


def test_default_collation_concerns_all_schemas(changed: Database) -> None:
    [entry] = report_of(changed).collations
    assert "Affected: computed, excluded, hashed, t_pkey; beside them 2 of other schemas" in entry.evidence
    assert entry.fix == (
        'REINDEX DATABASE CONCURRENTLY "icu x"; REINDEX INDEX public.excluded;'
        ' ALTER DATABASE "icu x" REFRESH COLLATION VERSION;'
    )
    before = files(changed)
    with changed.connect() as connection:
        for statement in entry.fix.rstrip(";").split("; "):
            connection.execute(statement.encode())
    after = files(changed)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values()), "each was rebuilt"
    assert report_of(changed).collations == ()


def test_collation_that_only_another_schema_uses(empty: Database) -> None:
    empty.execute(
        "CREATE COLLATION own (provider = icu, locale = 'de'); CREATE TABLE t (a text); CREATE SCHEMA audit;"
        " CREATE INDEX here ON t (a COLLATE own); CREATE TABLE audit.log (a text COLLATE own PRIMARY KEY);"
        " UPDATE pg_collation SET collversion = '1' WHERE collname = 'own'"
    )
    [entry] = report_of(empty).collations
    assert "Affected: here; beside them 1 of other schemas" in entry.evidence
    assert (entry.fix or "").startswith("REINDEX DATABASE CONCURRENTLY ")
    assert (entry.fix or "").endswith("; ALTER COLLATION public.own REFRESH VERSION;")
