"""Sources and histories that a run meets: what it applies, what it warns of, and what it refuses before it begins."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.conftest import migrate, write_folder
from integration.postgres_server import Database, wait_for_backend
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.source import migrations_from_directory
from medianest_operator.postgres.catalog import difference, read_catalog

LONE = "lone block that commits"
"""Only a backup leads back from what it may have left."""

FINE = {
    "comments only": "-- nothing yet\n/* later; perhaps */\n",
    "empty": "",
    "semicolons only": ";;\n;",
    "byte order mark": "\ufeffCREATE TABLE notes (id text);\n",
    "windows line ends": "CREATE TABLE notes (\r\n  id text\r\n);\r\n",
    "dollar quotes": "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $b$ SELECT 'a;b' || $x$;$x$ $b$;\nSELECT f();",
    "procedural body": (
        "CREATE FUNCTION g() RETURNS int LANGUAGE plpgsql AS $$ BEGIN -- ;\n RETURN 1; END $$;\nDO $$ BEGIN\n"
        " PERFORM g();\nEND $$;"
    ),
    "own transaction": "BEGIN;\nCREATE TABLE notes (id text);\nCOMMIT;\n",
    "commit in the middle": "CREATE TABLE notes (id text);\nCOMMIT;\nCREATE TABLE more (id text);\n",
    "concurrently alone": "CREATE INDEX CONCURRENTLY users_name_idx ON users (name);",
    "vacuum alone": "VACUUM (ANALYZE) users;",
    "reindex concurrently alone": "REINDEX INDEX CONCURRENTLY users_email_key;",
    LONE: "DO $$ BEGIN CREATE TABLE notes (id text); COMMIT; CREATE TABLE more (id text); END $$",
    "rows returned": "SELECT generate_series(1, 10000); COPY users TO STDOUT; TABLE users;",
    "session settings": "SET search_path = ''; SET lock_timeout = '1ms'; SET ROLE medianest_migrator;",
    "column renamed": "ALTER TABLE users RENAME COLUMN name TO display_name;",
}


@pytest.mark.parametrize("kind", FINE)
def test_file_is_applied_once(medianest: Database, tmp_path: Path, kind: str) -> None:
    files = {"20260101120000_next": FINE[kind], "20260102120000_after": "CREATE TABLE after (id text);"}
    folder = write_folder(tmp_path / "migrations", files)
    source = (*bundled_migrations(), *migrations_from_directory(folder))
    result = migrate(medianest, source, folder=tmp_path if kind == LONE else None)
    assert (result.outcome, result.version) == ("Applied", "20260102120000_after"), result
    assert [item.name for item in result.applied] == ["20260101120000_next", "20260102120000_after"]
    rows = medianest.execute(
        "SELECT migration_name, applied_steps_count, logs, rolled_back_at, finished_at >= started_at"
        " FROM _prisma_migrations WHERE migration_name > '2026' ORDER BY started_at"
    )
    assert rows == [(name, 1, None, None, True) for name in ("20260101120000_next", "20260102120000_after")]
    assert medianest.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'after'") == [("medianest",)]
    assert migrate(medianest, source).reason == "UpToDate"


def test_settings_of_one_file_do_not_reach_the_next(medianest: Database) -> None:
    source = {
        "20260101000000_a.sql": "SET check_function_bodies = off",
        "20260102000000_b.sql": "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT nothing'",
    }
    result = migrate(medianest, source)
    assert result.message.startswith('Statement 1 (line 1) of 20260102000000_b: column "nothing" does not exist.')


def test_ten_megabytes_in_one_file(medianest: Database) -> None:
    rows = "".join(f"INSERT INTO big VALUES ({number}, 'é{'z' * 970}');\n" for number in range(10_000))
    script = f"CREATE TABLE big (id int, text text);\n{rows}"
    result = migrate(medianest, {"20260101120000_big.sql": f"{script}SELECT 1/0;"})
    assert result.message.startswith("Statement 10002 (line 10002) of 20260101120000_big: division by zero.")
    assert migrate(medianest, {"20260101120000_big.sql": script}).outcome == "Applied"
    assert medianest.execute("SELECT count(*) FROM big") == [(10_000,)]


def test_concurrent_index_is_built(medianest: Database) -> None:
    migrate(medianest, {"20260101120000_i.sql": FINE["concurrently alone"]})
    assert medianest.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'users_name_idx'::regclass") == [
        (True,)
    ]


def test_concurrent_index_outwaits_the_lock_timeout(medianest: Database) -> None:
    """It holds up nobody while it waits, and ending it early would leave an invalid index."""
    source = {"20260101120000_i.sql": FINE["concurrently alone"]}
    with medianest.connect() as writer, ThreadPoolExecutor() as threads:
        writer.execute("INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org')")
        with writer.transaction():
            writer.execute("UPDATE users SET name = 'Ann'")
            run = threads.submit(migrate, medianest, source, RunOptions(lock_timeout=1))
            with medianest.connect() as watcher:
                wait_for_backend(watcher, "CREATE INDEX CONCURRENTLY", waiting=True)
        assert run.result().outcome == "Applied"


def test_tables_without_history_need_a_baseline(empty: Database) -> None:
    empty.execute("SET ROLE medianest; CREATE TABLE users (id text)")
    result = migrate(empty, bundled_migrations())
    assert (result.outcome, result.reason, result.version) == ("Failed", "BaselineRequired", None)
    assert result.message == (
        "The database already holds 1 table or view but no applied migration, so it isn't known which migrations they"
        " came from. Record those that the database already contains with `prisma migrate resolve --applied <name>`,"
        " oldest first, or start with an empty database. Nothing was changed."
    )
    assert empty.execute("SELECT to_regclass('_prisma_migrations')") == [(None,)]


def test_an_extensions_views_need_no_baseline(empty: Database) -> None:
    empty.execute("CREATE EXTENSION pg_stat_statements")
    assert migrate(empty, bundled_migrations()).outcome == "Applied"


def test_a_lockout_that_no_record_explains_is_told_first(medianest: Database) -> None:
    """SQL that a file put together dropped the journal and committed, and the run was killed."""
    medianest.execute(
        "DROP SCHEMA medianest_operator CASCADE;"
        "INSERT INTO _prisma_migrations (id, checksum, migration_name, started_at)"
        " VALUES ('x', 'y', '20251201000000_theirs', '2025-12-01 10:00:00Z')"
    )
    rights = medianest.execute(
        "SELECT coalesce(nullif(grantee, 0)::regrole::text, 'PUBLIC')"
        "  FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba)))"
        " WHERE datname = current_database() AND privilege_type = 'CONNECT'"
        "   AND grantee NOT IN (SELECT oid FROM pg_roles WHERE rolname = 'medianest_migrator')"
    )
    medianest.execute(f'GRANT CONNECT ON DATABASE "{medianest.name}" TO medianest_migrator')
    for (grantee,) in rights:
        medianest.execute(f'REVOKE CONNECT ON DATABASE "{medianest.name}" FROM {grantee}')
    result = migrate(medianest, {"20260101120000_next.sql": "CREATE TABLE notes (id text)"})
    assert (result.outcome, result.reason) == ("Failed", "UnresolvedFailure")
    assert result.message.startswith("The application is locked out of its database. An earlier run of 2025120100")
    assert f'GRANT CONNECT ON DATABASE "{medianest.name}" TO' in result.message


def test_unresolved_failure_of_prisma_stops_everything(medianest: Database) -> None:
    medianest.execute(
        "INSERT INTO _prisma_migrations (id, checksum, migration_name, started_at, logs)"
        " VALUES ('x', 'y', '20251201000000_theirs', '2025-12-01 10:00:00Z', 'ERROR:  division by\nzero')"
    )
    result = migrate(medianest, {"20260101120000_next.sql": "CREATE TABLE notes (id text)"})
    assert (result.outcome, result.reason) == ("Failed", "UnresolvedFailure")
    assert result.message == (
        "An earlier run of 20251201000000_theirs (started 2025-12-01 10:00:00 UTC) neither finished nor was rolled"
        " back, so parts of it may be in the database. It said: ERROR: division by zero. Look at what it left, then"
        " record it with `prisma migrate resolve --rolled-back 20251201000000_theirs` once its changes are removed, or"
        " `--applied 20251201000000_theirs` once they are complete. This run changed nothing."
    )
    assert medianest.execute("SELECT to_regclass('notes')") == [(None,)]


def test_unknown_target_is_refused(medianest: Database) -> None:
    result = migrate(medianest, bundled_migrations(), RunOptions(target="20260101000000_nope"))
    assert (result.outcome, result.reason) == ("Failed", "UnknownTarget")
    assert result.message == (
        "Target 20260101000000_nope is not in the source; it ends with 20250704075237_init,"
        " 20250720000000_add_error_logs_and_missing_indexes, 20250905150611_add_password_hash_to_users."
        " Correct spec.migrations.target."
    )


def test_target_behind_the_database_reverts_nothing(medianest: Database) -> None:
    result = migrate(medianest, bundled_migrations(), RunOptions(target="20250704075237_init"))
    assert (result.reason, result.version) == ("UpToDate", "20250905150611_add_password_hash_to_users")
    assert result.warnings == (
        "the database is at 20250905150611_add_password_hash_to_users, past the target 20250704075237_init;"
        " applied migrations stay.",
    )


def test_oddities_are_told_and_do_not_stop_the_run(medianest: Database) -> None:
    source = {
        "20250704075237_init.sql": "SELECT 'edited'",
        "20250801000000_late.sql": "CREATE TABLE late (id text)",
        "20250905150611_add_password_hash_to_users.sql": "ALTER TABLE users ADD COLUMN password_hash text",
    }
    result = migrate(medianest, source)
    assert (result.outcome, [item.name for item in result.applied]) == ("Applied", ["20250801000000_late"])
    assert [warning.split(" ")[0] + " … " + warning.split(" ")[-1] for warning in result.warnings] == [
        "20250704075237_init … migration.",
        "20250905150611_add_password_hash_to_users … migration.",
        "20250720000000_add_error_logs_and_missing_indexes … source.",
        "20250801000000_late … order.",
    ]
    assert "was edited after it was applied; the edit has no effect on this database" in result.warnings[0]


def test_role_without_rights_is_told(empty: Database) -> None:
    result = migrate(empty, bundled_migrations(), user="stranger")
    assert (result.outcome, result.reason) == ("Failed", "PermissionDenied")
    assert result.message == (
        "The run could not go on as role stranger: permission denied for schema public. Everything in the database has"
        " to belong to its owner. Nothing was changed."
    )


def test_own_files_and_the_applications_give_one_history(empty: Database) -> None:
    """A database migrated in two runs is the same as one migrated at once."""
    migrate(empty, bundled_migrations()[:1])
    with empty.connect() as connection:
        first = read_catalog(connection)
    migrate(empty, bundled_migrations())
    with empty.connect() as connection:
        changes = difference(first, read_catalog(connection))
    assert "table users: column password_hash (text) is not expected" in changes
    assert "table error_logs is not expected" in changes
