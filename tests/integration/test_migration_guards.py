"""What is refused before it is sent or noticed before it is committed, and what must not stand in a run's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.conftest import migrate
from integration.crashes import PEOPLE
from integration.outside import migrate_and_look, outside, unlike
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions

NAME = "20260101000000_a"
NEVER = RunOptions(rehearse=Rehearse.NEVER)
ALWAYS = RunOptions(rehearse=Rehearse.ALWAYS)

UNPARSED = {
    "word that is reserved later": (
        "CREATE TABLE audit (system_user text);\nUPDATE users SET name = 'gone';\nCOMMIT;\nSELECT 1/0;\n",
        "double quotes",
    ),
    "function that is grammar later": (
        "CREATE FUNCTION json_value(jsonb, text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1->>$2';\n"
        "SELECT json_value(metadata, 'k') FROM error_logs;\nCOMMIT;\nSELECT 1/0;\n",
        "double quotes",
    ),
    "no-break space": ("ALTER TABLE users ADD\u00a0COLUMN nickname text;\n", "U+00A0 (NO-BREAK SPACE)"),
    "lines of data": ("CREATE TABLE n (a int, b text);\nCOPY n FROM STDIN;\n1\tzz\n\\.\n", "INSERT statements"),
}


@pytest.mark.parametrize(("sql", "advice"), UNPARSED.values(), ids=UNPARSED.keys())
def test_unparsed_is_unsent(medianest: Database, tmp_path: Path, sql: str, advice: str) -> None:
    medianest.execute(PEOPLE)
    result, left = migrate_and_look(medianest, {f"{NAME}.sql": sql}, NEVER, tmp_path)
    assert not left, result
    assert result.reason == "StatementRefused", result
    assert advice in result.message
    assert result.message.endswith("Nothing was changed.")


def test_quoted_word_that_is_reserved_later_is_applied(medianest: Database) -> None:
    result = migrate(medianest, {f"{NAME}.sql": 'CREATE TABLE audit ("system_user" text);\n'})
    assert result.outcome == "Applied", result


def test_dollar_tags_beyond_ascii_are_told_apart(medianest: Database, tmp_path: Path) -> None:
    medianest.execute(PEOPLE)
    sql = "SELECT $é$x$è$ , $é$; UPDATE users SET name = 'gone'; COMMIT; SELECT $é$,$è$ , $é$; SELECT 1/0;\n"
    result, left = migrate_and_look(medianest, {f"{NAME}.sql": sql}, NEVER, tmp_path)
    assert not left, result
    assert result.rollback is not None, result
    assert (result.rollback.strategy, result.rollback.verified) == ("Restore", True), result


LEFT_OVER = {
    "temporary table": (
        "CREATE TEMP TABLE users AS SELECT * FROM public.users;\n",
        "ALTER TABLE users ADD COLUMN nickname text;\n",
    ),
    "cursor": (
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1;\n",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1;\nALTER TABLE users ADD COLUMN nickname text;\n",
    ),
    "prepared statement": (
        "PREPARE p AS SELECT 1;\n",
        "PREPARE p AS SELECT 1;\nALTER TABLE users ADD COLUMN nickname text;\n",
    ),
}


@pytest.mark.parametrize("rehearse", [Rehearse.NEVER, Rehearse.ALWAYS])
@pytest.mark.parametrize("own_transactions", [False, True])
@pytest.mark.parametrize(("first", "second"), LEFT_OVER.values(), ids=LEFT_OVER.keys())
def test_every_file_finds_a_session_as_new(
    medianest: Database, tmp_path: Path, first: str, second: str, own_transactions: bool, rehearse: Rehearse
) -> None:
    if own_transactions:
        first = f"BEGIN;\n{first}COMMIT;\n"
    files = {f"{NAME}.sql": first, "20260102000000_b.sql": second}
    result = migrate(medianest, files, RunOptions(rehearse=rehearse), folder=tmp_path)
    assert result.outcome == "Applied", result
    assert medianest.execute("SELECT nickname FROM public.users") == []


DYNAMIC = {
    "history emptied": ("'DELETE FROM _prisma_'||'migrations'", "_prisma_migrations"),
    "history edited": ("'UPDATE _prisma_'||'migrations SET checksum = md5(id)'", "_prisma_migrations"),
    "history dropped": ("'DROP TABLE _prisma_'||'migrations'", "_prisma_migrations"),
    "lock given up": ("'SELECT pg_advisory_'||'unlock_all()'", "gave up the lock"),
    "journal dropped": ("'DROP SCHEMA medianest_'||'operator CASCADE'", "journal"),
}


@pytest.mark.parametrize("commits", [False, True])
@pytest.mark.parametrize(("sql", "words"), DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sql_that_reaches_the_runs_own_records_is_noticed(
    medianest: Database, tmp_path: Path, sql: str, words: str, commits: bool
) -> None:
    medianest.execute(PEOPLE)
    before = outside(medianest)
    history = medianest.execute("SELECT * FROM _prisma_migrations WHERE migration_name < '2026' ORDER BY id")
    text = f"DO $$ BEGIN EXECUTE {sql}; END $$;\nUPDATE users SET name = 'gone';\n" + ("COMMIT;\n" if commits else "")
    result = migrate(medianest, {f"{NAME}.sql": text}, NEVER, folder=tmp_path)
    left = unlike(before, outside(medianest))
    assert not left, f"{result} {left}"
    assert result.reason == "StatementRefused", result
    assert words in result.message
    assert result.rollback is not None
    assert result.rollback.verified
    assert medianest.execute("SELECT * FROM _prisma_migrations WHERE migration_name < '2026' ORDER BY id") == history
    medianest.execute("SELECT 1", user="medianest_app")


SETTINGS = {
    "idle in transaction": "ALTER DATABASE {} SET idle_in_transaction_session_timeout = 50",
    "idle session": "ALTER DATABASE {} SET idle_session_timeout = 50",
    "encoding": "ALTER DATABASE {} SET client_encoding = 'LATIN1'",
    "read only": "ALTER DATABASE {} SET default_transaction_read_only = on",
    "statement timeout": "ALTER DATABASE {} SET statement_timeout = '1s'",
    "large object of the application's": "SELECT lo_create(77); ALTER LARGE OBJECT 77 OWNER TO medianest_app",
    "table of another role": "CREATE TABLE theirs (id int)",
}


EARLY = "UPDATE users SET name = 'x';\nCOMMIT;\n"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_ordinary_settings_stand_in_no_runs_way(medianest: Database, tmp_path: Path, setting: str, fails: bool) -> None:
    medianest.execute(PEOPLE)
    medianest.execute(setting.format(medianest.name))
    before = outside(medianest)
    sql = EARLY + ("SELECT 1/(current_setting('cluster_name') <> '')::int;\n" if fails else "SELECT 1;\n")
    result = migrate(medianest, {f"{NAME}.sql": sql}, NEVER if fails else ALWAYS, folder=tmp_path)
    if fails:
        assert not unlike(before, outside(medianest)), result
        assert result.reason == "MigrationFailed", result
    else:
        assert result.outcome == "Applied", result
        assert result.rehearsal is not None
        assert result.rehearsal.data


def test_rows_that_policies_hide_from_the_backup_are_named(medianest: Database, tmp_path: Path) -> None:
    medianest.execute(f"{PEOPLE}; ALTER TABLE users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    files = {f"{NAME}.sql": "CREATE TABLE a (id text);\n"}
    result = migrate(medianest, files, NEVER, folder=tmp_path)
    assert (result.outcome, result.reason) == ("Failed", "RollbackImpossible"), result
    assert "Policies may hide rows of users" in result.message

    medianest.execute("ALTER TABLE users NO FORCE ROW LEVEL SECURITY")
    assert migrate(medianest, files, NEVER, folder=tmp_path).outcome == "Applied"


LOSSES = {
    "constant condition": "DELETE FROM media_requests WHERE 1 = 1;\n",
    "USING without a condition": "DELETE FROM media_requests USING users;\n",
    "merge": "MERGE INTO media_requests m USING users u ON m.user_id = u.id WHEN MATCHED THEN DELETE;\n",
    "columns set to null": "UPDATE users SET password_hash = NULL, plex_token = NULL, name = NULL;\n",
    "function that truncates": "SELECT tidy();\n",
    "condition that holds for all": "DELETE FROM media_requests WHERE id IS NOT NULL;\n",
    "partition taken out": "ALTER TABLE events DETACH PARTITION events_2026;\n",
}


@pytest.mark.parametrize("options", [NEVER, ALWAYS], ids=["Never", "Always"])
@pytest.mark.parametrize("sql", LOSSES.values(), ids=LOSSES.keys())
def test_loss_is_refused_however_it_is_spelled(
    medianest: Database, tmp_path: Path, sql: str, options: RunOptions
) -> None:
    medianest.execute(
        f"{PEOPLE}; SET ROLE medianest; CREATE TABLE events (at date NOT NULL) PARTITION BY RANGE (at);"
        "CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');"
        "INSERT INTO events VALUES ('2026-05-05'); CREATE FUNCTION tidy() RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE 'TRUNCATE media_requests'; END $$"
    )
    result, left = migrate_and_look(medianest, {f"{NAME}.sql": sql}, options, tmp_path)
    assert not left, result
    assert result.reason == "DestructiveStatement", result
    assert "allowDestructive" in result.message
