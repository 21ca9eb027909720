"""A database that has tables and no history: adopted where its schema shows which migrations made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.conftest import migrate
from integration.postgres_server import Database
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.run.evidence import application_catalog
from medianest_operator.migrations.source import Migration

BUNDLED = bundled_migrations()
NEXT = Migration.from_bytes("20260101120000_next", b"CREATE TABLE notes (id text)")


def lose_history(database: Database, applied: int) -> None:
    """The bundled schema at one of its versions, with data, and without a word on how it came about."""
    assert migrate(database, BUNDLED[:applied]).outcome == "Applied"
    database.execute("INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org')", user="medianest_app")
    database.execute("DROP TABLE _prisma_migrations; DROP SCHEMA medianest_operator CASCADE")


@pytest.mark.parametrize("applied", range(1, len(BUNDLED) + 1))
def test_known_schema_is_adopted_and_the_rest_applied(
    empty: Database, template: Database, applied: int, tmp_path: Path
) -> None:
    lose_history(empty, applied)
    lines: list[str] = []

    result = migrate(empty, (*BUNDLED, NEXT), folder=tmp_path, report=lines.append)

    assert (result.outcome, result.version) == ("Applied", NEXT.name), result
    names = [migration.name for migration in BUNDLED]
    assert [item.name for item in result.applied] == [*names[applied:], NEXT.name]
    assert any(
        line.startswith(f"adopted: the schema equals that of {names[applied - 1]} (verified)") for line in lines
    ), lines
    rows = empty.execute(
        "SELECT migration_name, checksum, applied_steps_count, logs, rolled_back_at, started_at = finished_at"
        " FROM _prisma_migrations WHERE applied_steps_count = 0 ORDER BY migration_name"
    )
    # As `prisma migrate resolve --applied` leaves them.
    assert rows == [(m.name, m.checksum, 0, None, None, True) for m in BUNDLED[:applied]]
    assert empty.execute("SELECT id FROM users") == [("u1",)]
    empty.execute("SET ROLE medianest; DROP TABLE notes")
    assert catalog(empty) == catalog(template)
    assert migrate(empty, (*BUNDLED, NEXT)).reason == "UpToDate"


def test_target_holds_back_what_was_not_there(empty: Database, tmp_path: Path) -> None:
    lose_history(empty, 1)
    result = migrate(empty, BUNDLED, RunOptions(target=BUNDLED[1].name), folder=tmp_path)
    assert (result.outcome, result.version) == ("Applied", BUNDLED[1].name)
    assert [item.name for item in result.applied] == [BUNDLED[1].name]


def test_foreign_column_is_told_with_the_nearest_version(empty: Database, tmp_path: Path) -> None:
    lose_history(empty, 2)
    empty.execute("ALTER TABLE users ADD COLUMN nickname text")
    before = catalog(empty)

    result = migrate(empty, BUNDLED, folder=tmp_path)

    assert (result.outcome, result.reason, result.version) == ("Failed", "BaselineRequired", None)
    assert result.message.endswith(
        f"Nothing was changed. Its schema is that of no migration; nearest is {BUNDLED[1].name}, but"
        " table users: column nickname (text) is not expected."
    )
    assert catalog(empty) == before
    assert empty.execute("SELECT to_regclass('_prisma_migrations')") == [(None,)]


def test_without_room_for_a_copy_a_person_has_to_say(empty: Database) -> None:
    lose_history(empty, len(BUNDLED))
    result = migrate(empty, BUNDLED)
    assert (result.outcome, result.reason) == ("Failed", "BaselineRequired")
    assert "`prisma migrate resolve --applied <name>`" in result.message
    assert "nearest" not in result.message
    assert empty.execute("SELECT to_regclass('_prisma_migrations')") == [(None,)]


def test_source_that_cannot_be_replayed_is_told(empty: Database, tmp_path: Path) -> None:
    lose_history(empty, 1)
    broken = Migration.from_bytes("20250601000000_broken", b"SELECT 1/0")
    result = migrate(empty, (broken, *BUNDLED), folder=tmp_path)
    assert result.reason == "BaselineRequired"
    assert "The source could not be replayed: Statement 1 (line 1) of 20250601000000_broken" in result.message


def catalog(database: Database) -> str:
    with database.connect() as connection:
        return application_catalog(connection).fingerprint()
