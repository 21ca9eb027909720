"""Ordinary databases hold what others made in them: a rollback leaves it alone, or the run doesn't begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.crashes import PEOPLE
from integration.outside import migrate_and_look
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions
from medianest_operator.results.migration import MigrationResult

NAME = "20260101000000_a"
ROWS = "UPDATE users SET name = 'gone';\nDELETE FROM media_requests WHERE id = 'm7';\nCOMMIT;\nSELECT 1/0;\n"
SHAPE = "UPDATE users SET name = 'gone';\nALTER TABLE users DROP COLUMN image;\nCOMMIT;\nSELECT 1/0;\n"
# Made by the owner, then by the superuser.
FURNITURE = {
    "collation": ("CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)", ""),
    "text search": ("CREATE TEXT SEARCH CONFIGURATION media_search (COPY = english)", ""),
    "operator": ("CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)", ""),
    "function of a superuser": (
        "",
        "CREATE FUNCTION user_lookup(text) RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT $1'",
    ),
    "view of a superuser": ("", "CREATE VIEW activity AS SELECT pid, state FROM pg_stat_activity"),
    "schema of a superuser": (
        "",
        "CREATE SCHEMA metric_helpers; CREATE TABLE metric_helpers.t (id int); INSERT INTO metric_helpers.t VALUES (1);"
        "CREATE FUNCTION metric_helpers.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ),
    "audit trigger": (
        "",
        "CREATE SCHEMA audit; GRANT USAGE ON SCHEMA audit TO medianest;"
        "CREATE FUNCTION audit.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER audit AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION audit.note()",
    ),
    "publication for all tables": ("", "CREATE PUBLICATION cdc FOR ALL TABLES"),
    "extension": ("CREATE SCHEMA tools; CREATE TABLE tools.t (id int)", "CREATE EXTENSION pgrowlocks SCHEMA tools"),
}
BUILT_ON = {
    "publication over a table": "CREATE PUBLICATION dbz FOR TABLE users, media_requests",
    "view over a table": "CREATE VIEW people AS SELECT id, email FROM users",
}


def furnish(database: Database, own: str, others: str) -> None:
    database.execute(PEOPLE)
    database.execute("INSERT INTO rate_limits (user_id, endpoint) SELECT 'u1', 'e' || n FROM generate_series(1, 9) n")
    if own:
        database.execute(f"SET ROLE medianest; {own}")
    if others:
        database.execute(others)


RESTORED = ("MigrationFailed", "Restore", True)
"""How a run ends that has committed something and fails: why, how it was rolled back, and whether that was verified."""


def run(
    database: Database, folder: Path, sql: str, rehearse: Rehearse = Rehearse.NEVER, *, destroys: bool = True
) -> tuple[MigrationResult, dict[str, list[str]]]:
    options = RunOptions(rehearse=rehearse, allow_destructive=destroys)
    return migrate_and_look(database, {f"{NAME}.sql": sql}, options, folder)


def ending(result: MigrationResult) -> tuple[str, str, bool] | None:
    if result.rollback is None:
        return None
    return result.reason, result.rollback.strategy, result.rollback.verified


@pytest.mark.parametrize("sql", [ROWS, SHAPE], ids=["rows", "definitions"])
@pytest.mark.parametrize(("own", "others"), FURNITURE.values(), ids=FURNITURE.keys())
def test_restore_leaves_others_alone(medianest: Database, tmp_path: Path, own: str, others: str, sql: str) -> None:
    furnish(medianest, own, others)
    result, left = run(medianest, tmp_path, sql)
    assert (left, ending(result)) == ({}, RESTORED), result


@pytest.mark.parametrize("others", BUILT_ON.values(), ids=BUILT_ON.keys())
def test_rows_come_back_under_what_others_built(medianest: Database, tmp_path: Path, others: str) -> None:
    furnish(medianest, "", others)
    result, left = run(medianest, tmp_path, ROWS)
    assert (left, ending(result)) == ({}, RESTORED), result


@pytest.mark.parametrize("rehearse", [Rehearse.NEVER, Rehearse.ALWAYS])
def test_restore_that_would_drop_what_others_built_is_refused_before(
    medianest: Database, tmp_path: Path, rehearse: Rehearse
) -> None:
    """A dropped column comes back by a restore of its table alone, which the publication would not outlive."""
    furnish(medianest, "", BUILT_ON["publication over a table"])
    result, left = run(medianest, tmp_path, SHAPE.replace("SELECT 1/0;\n", "SELECT 1;\n"), rehearse)
    assert not left, result
    assert result.reason == "RollbackImpossible", result
    assert "publication dbz of postgres over " in result.message
    assert "Nothing was changed." in result.message


@pytest.mark.parametrize("rehearse", [Rehearse.NEVER, Rehearse.ALWAYS])
def test_foreign_key_of_others_is_named_before(medianest: Database, tmp_path: Path, rehearse: Rehearse) -> None:
    furnish(medianest, "", "CREATE SCHEMA dba; CREATE TABLE dba.notes (id text REFERENCES media_requests (id))")
    sql = ROWS.replace("SELECT 1/0;\n", "SELECT 1;\n")
    result, left = run(medianest, tmp_path, sql, rehearse, destroys=False)
    assert not left, result
    assert result.reason == "RollbackImpossible", result
    assert "dba.notes" in result.message, result


def test_table_of_the_runs_own_login_is_left_alone(medianest: Database, tmp_path: Path) -> None:
    furnish(medianest, "", "CREATE TABLE mine (id int); ALTER TABLE mine OWNER TO medianest_migrator")
    medianest.execute("GRANT SELECT ON mine TO medianest")
    result, left = run(medianest, tmp_path, SHAPE)
    assert (left, ending(result)) == ({}, RESTORED), result


def test_restore_is_rehearsed_and_needed_on_live_only(medianest: Database, tmp_path: Path) -> None:
    furnish(medianest, *FURNITURE["collation"])
    sql = "UPDATE users SET name = 'gone';\nALTER TABLE users DROP COLUMN image;\nCOMMIT;\n"
    sql += "SELECT 1/(NOT pg_has_role('postgres', 'pg_read_server_files', 'MEMBER'))::int;\n"
    result, left = run(medianest, tmp_path, sql, Rehearse.ALWAYS)
    assert (left, ending(result)) == ({}, RESTORED), result
    assert result.rehearsal is not None
