"""Live sizes, and `medianest-dbctl plan` with what it finds in the pending migrations."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from integration.commands import dbctl
from integration.conftest import migrate, write_folder
from integration.postgres_server import Database
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.lint.lint import Severity, TableSize, lint, read_table_sizes
from medianest_operator.migrations.source import migrations_from_mapping

NEXT = "20260101000000_next"


def sizes(database: Database, user: str = "medianest_migrator") -> dict[str, TableSize]:
    with database.connect(user) as connection:
        return read_table_sizes(connection)


def fill(database: Database, users: int) -> None:
    # A vacuum in between would make the table larger, by its map of what is visible.
    database.execute("ALTER TABLE users SET (autovacuum_enabled = false)")
    database.execute(
        "INSERT INTO users (id, email, name) SELECT n, n || '@example.org', repeat('x', 100)"
        f" FROM generate_series(1, {users}) n"
    )


def test_every_table_has_its_rows_size_and_types(medianest: Database) -> None:
    fill(medianest, 1234)
    found = sizes(medianest)
    tables = medianest.execute(
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    )
    assert len(found) == tables[0][0]
    assert found["users"].rows == 1234
    assert found["users"].bytes == medianest.execute("SELECT pg_total_relation_size('users')")[0][0]
    assert found["users"].columns["created_at"] == "timestamp(3) without time zone"
    assert found["service_status"].columns["uptime_percentage"] == "numeric(5,2)"
    assert found["accounts"].rows == 0


def test_names_are_spelled_as_in_the_catalog(empty: Database) -> None:
    empty.execute(
        'SET ROLE medianest; CREATE TABLE "Büro" (id int); CREATE TABLE "order" (id int); CREATE SCHEMA "Old";'
        ' CREATE TABLE "Old"."a.b" (id int); INSERT INTO "Old"."a.b" VALUES (1), (2);'
        " CREATE MATERIALIZED VIEW seen AS SELECT 1 AS one; CREATE MATERIALIZED VIEW unseen AS SELECT 1 WITH NO DATA;"
        " CREATE TABLE parted (id int) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parted"
        " FOR VALUES FROM (0) TO (100); INSERT INTO parted SELECT generate_series(0, 99)"
    )
    found = sizes(empty)
    assert {name: size.rows for name, size in found.items()} == {
        '"Büro"': 0,
        '"order"': 0,
        '"Old"."a.b"': 2,
        "seen": 1,
        "unseen": 0,
        "parted": 100,
        "part": 100,
    }
    assert found["parted"].bytes == found["part"].bytes > 0
    losing = 'DROP TABLE "Old"."a.b", "Büro"; DROP TABLE "order"; DROP MATERIALIZED VIEW seen; TRUNCATE parted'
    assert [item.table for item in lint(migrations_from_mapping({f"{NEXT}.sql": losing}), found)] == [
        *('"Old"."a.b"', '"Büro"', '"order"', "seen", "parted"),
    ]


def test_rows_of_a_large_table_are_estimated(medianest: Database) -> None:
    fill(medianest, 60_000)
    # autovacuum may have been faster than this test.
    guessed = sizes(medianest)["users"]
    assert guessed.bytes > 8 * 1024 * 1024
    assert 20_000 < guessed.rows < 400_000
    medianest.execute("ANALYZE users")
    assert 55_000 < sizes(medianest)["users"].rows < 65_000


def test_rows_behind_row_security_are_not_taken_for_none(medianest: Database) -> None:
    fill(medianest, 5)
    medianest.execute(
        "ANALYZE users; ALTER TABLE users ENABLE ROW LEVEL SECURITY; ALTER TABLE users FORCE ROW LEVEL SECURITY"
    )
    assert sizes(medianest)["users"].rows == 5


def test_a_locked_table_ends_in_the_lock_timeout(medianest: Database) -> None:
    with medianest.connect() as holder, medianest.connect() as reader:
        holder.execute("BEGIN; LOCK TABLE users")
        reader.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            read_table_sizes(reader)


def test_plan_shows_what_would_be_lost(medianest: Database, tmp_path: Path) -> None:
    fill(medianest, 1234)
    folder = write_folder(tmp_path, {NEXT: "ALTER TABLE users DROP COLUMN name;\nCREATE INDEX i ON users (role);"})
    done = dbctl(medianest.environment(), "plan", "--source", str(folder))
    size = sizes(medianest)["users"]
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        f"destructive: Statement 1 (line 1) of {NEXT}: drops column name of users: {size} lose it.",
        f"warning: Statement 2 (line 2) of {NEXT}: nobody can write to users, {size}, while the index is built. CREATE"
        " INDEX CONCURRENTLY, in a migration of its own, lets writers go on.",
        "1 to apply, but only with spec.migrations.allowDestructive.",
    ]
    assert "1,234 rows (" in str(size)


def test_plan_exits_1_for_a_refused_statement(medianest: Database, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {NEXT: "SELECT 1;\nDO $$ BEGIN EXECUTE 'ALTER SYSTEM SET x.y = 1'; END $$"})
    done = dbctl(medianest.environment(), "plan", "--source", str(folder), "--json")
    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding.pop("message").startswith(
        "in its body: ALTER SYSTEM writes the configuration file of the whole server"
    )
    assert finding == {
        "severity": "refused",
        "rule": "alter-system",
        "migration": NEXT,
        "statement": 2,
        "line": 2,
        "table": None,
    }
    table = dbctl(medianest.environment(), "plan", "--source", str(folder))
    assert table.returncode == 1
    assert table.stdout.splitlines()[-1] == "1 to apply, but not as long as a statement is refused."


def test_plan_looks_at_what_is_pending_only(medianest: Database, tmp_path: Path) -> None:
    """What is applied was either allowed then or can't be helped now."""
    files = {NEXT: "DROP TABLE error_logs"}
    source = {f"{name}.sql": text for name, text in files.items()}
    assert migrate(medianest, source, RunOptions(allow_destructive=True)).outcome == "Applied"
    done = dbctl(medianest.environment(), "plan", "--source", str(write_folder(tmp_path, files)), "--json")
    assert (done.returncode, json.loads(done.stdout)["findings"]) == (0, [])


def test_plan_of_a_locked_table_is_worth_another_try(medianest: Database, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {NEXT: "DROP TABLE error_logs"})
    environment = {**medianest.environment(), "PGOPTIONS": "-c lock_timeout=50ms"}
    with medianest.connect() as holder:
        holder.execute("BEGIN; LOCK TABLE users")
        done = dbctl(environment, "plan", "--source", str(folder))
    assert done.returncode == 2
    assert "canceling statement due to lock timeout" in done.stderr


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER SYSTEM SET work_mem = '1GB'",
        "CREATE DATABASE other",
        "CREATE ROLE mallory",
        "COPY users TO '/tmp/users.csv'",
        "COPY users TO PROGRAM 'true'",
        "SELECT pg_reload_conf()",
        "SELECT lo_import('/etc/hostname')",
        "CREATE EXTENSION dblink",
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'x', 'y'",
        "\\connect other",
    ],
)
def test_the_migrator_could_not_run_what_is_refused(medianest: Database, sql: str) -> None:
    (finding,) = lint(migrations_from_mapping({f"{NEXT}.sql": sql}), sizes(medianest))
    assert finding.severity is Severity.REFUSED
    with medianest.connect("medianest_migrator") as connection, pytest.raises(psycopg.Error):
        connection.execute(sql.encode())
