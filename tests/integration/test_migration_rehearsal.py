"""The copy that a run is tried on, where the data are too large to be copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.conftest import migrate
from integration.postgres_server import Database
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.source import Migration

NAME = "20260101120000_next"
SMALL_LIMIT = RunOptions(rehearsal_limit=1)
CONCURRENTLY = "CREATE INDEX CONCURRENTLY more ON users (name);\n"


@pytest.fixture
def large(people: Database) -> Database:
    """More data than any pipe between two programs holds."""
    people.execute(
        "INSERT INTO error_logs (id, correlation_id, user_id, error_code, error_message, request_path, request_method)"
        " SELECT n, n, 'ann', 'E', (SELECT string_agg(md5(n || ' ' || m), '') FROM generate_series(1, 100) m), '/',"
        " 'GET' FROM generate_series(1, 500) n"
    )
    return people


def plus(sql: str) -> tuple[Migration, ...]:
    """The bundled migrations and one more."""
    return (*bundled_migrations(), Migration.from_bytes(NAME, sql.encode()))


def test_above_the_limit_the_definitions_are_rehearsed(large: Database, tmp_path: Path) -> None:
    result = migrate(large, plus("CREATE TABLE notes (id text)"), SMALL_LIMIT, folder=tmp_path)
    assert result.outcome == "Applied", result
    assert result.rehearsal is not None
    assert result.rehearsal.fingerprint is not None
    assert not result.rehearsal.data
    assert "only the definitions were rehearsed" in (result.rehearsal.note or "")


def test_what_only_wants_rows_is_not_refused(large: Database, tmp_path: Path) -> None:
    sql = "INSERT INTO media_requests (id, user_id, title, media_type) VALUES ('r9', 'ann', 'Dune', 'movie');\n"
    result = migrate(large, plus(sql), SMALL_LIMIT, folder=tmp_path)
    assert result.outcome == "Applied", result
    assert result.rehearsal is not None
    assert "The copy holds no rows, which may be the reason" in (result.rehearsal.note or "")


def test_what_the_definitions_refuse_never_reaches_the_database(large: Database, tmp_path: Path) -> None:
    sql = "CREATE TABLE notes (id text);\nCREATE INDEX x ON notes (title);"
    result = migrate(large, plus(sql), SMALL_LIMIT, folder=tmp_path)
    assert (result.outcome, result.rollback) == ("Failed", None)
    assert "That was the rehearsal on a copy; the database itself was not touched." in result.message


def test_damage_behind_the_definitions_is_found_as_well(large: Database, tmp_path: Path) -> None:
    def damage(line: str) -> None:
        if line.startswith("backed up to "):
            dump = tmp_path / "backups" / line.removeprefix("backed up to ")
            content = bytearray(dump.read_bytes())
            content[-1] ^= 1
            dump.write_bytes(content)

    result = migrate(large, plus("SELECT 1"), SMALL_LIMIT, folder=tmp_path, report=damage)
    assert (result.outcome, result.reason) == ("Transient", "BackupFailed")
    assert "is damaged: its SHA-256 is not the manifest's. Nothing was changed" in result.message


RESTORED = {
    "enum value": ("ALTER TYPE \"UserRole\" ADD VALUE 'guest';\n", "CREATE TABLE guests (id text);\n"),
    "nullable column": ("ALTER TABLE users ALTER name DROP NOT NULL, ALTER email DROP NOT NULL;\n", None),
    "view with one more column": ("CREATE OR REPLACE VIEW names AS SELECT id, name FROM users;\n", None),
    "function with a named argument": (
        "CREATE FUNCTION twice(i int) RETURNS int LANGUAGE sql AS 'SELECT 2 * i';\n",
        None,
    ),
    "procedure": ("CREATE PROCEDURE nothing(a int) LANGUAGE sql AS 'SELECT 1';\n", None),
}


@pytest.mark.parametrize(("first", "second"), RESTORED.values(), ids=RESTORED.keys())
def test_a_rollback_that_restored_the_copy_is_no_loss_of_data(
    people: Database, tmp_path: Path, first: str, second: str | None
) -> None:
    """The restore makes the copy's tables again, which are others then by their identity."""
    people.execute('CREATE TYPE "UserRole" AS ENUM (\'admin\'); ALTER TYPE "UserRole" OWNER TO medianest')
    people.execute("SET ROLE medianest; CREATE VIEW names AS SELECT id FROM users")
    files = {"20260101000000_a.sql": first, "20260102000000_b.sql": second or CONCURRENTLY}
    result = migrate(people, files, RunOptions(), folder=tmp_path)
    assert result.outcome == "Applied", result
    assert result.rehearsal is not None
    assert result.rehearsal.data
