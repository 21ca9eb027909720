"""`spec.hardening` on a real server: on, off and on again, with data in the way, cut short."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from integration.commands import dbctl
from integration.conftest import migrate
from integration.hardening import (
    ALL,
    APP,
    EACH,
    MIGRATOR,
    OFF,
    QUICK,
    catalog,
    harden,
    open_transaction,
    own_names,
    states,
)
from integration.postgres_server import Database, PostgresServer, wait_for_backend
from medianest_operator.api.hardening import Hardening, Option
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions as MigrationOptions
from medianest_operator.hardening.fingerprint import without_hardening
from medianest_operator.hardening.naming import MARK, PREFIX
from medianest_operator.hardening.run import HardeningRun, RunOptions
from medianest_operator.hardening.state import read_state
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.run.evidence import application_catalog
from medianest_operator.postgres.catalog import difference
from medianest_operator.postgres.run_lock import try_lock
from medianest_operator.results.hardening import HardeningResult

# On, off, on again.


@pytest.mark.parametrize("option", [*EACH, None], ids=lambda option: option.value if option else "all")
def test_on_off_and_on_again(people: Database, option: Option | None) -> None:
    """Every option reaches its state, a second run does nothing, and off leaves what was there before."""
    options = ALL if option is None else EACH[option]
    expected = {item.value: "Applied" for item in (EACH if option is None else [option])}
    before = catalog(people)
    for _ in range(2):
        first = harden(people, options)
        assert (first.outcome, first.reason) == ("Applied", "HardeningApplied"), first
        assert states(first) == expected
        hardened = catalog(people)
        assert hardened.fingerprint() != before.fingerprint()
        assert without_hardening(hardened).to_json() == before.to_json()
        again = harden(people, options)
        assert (again.outcome, again.reason, states(again)) == ("Applied", "UpToDate", expected)
        assert catalog(people).fingerprint() == hardened.fingerprint()
        off = harden(people, OFF)
        assert (off.outcome, states(off)) == ("Applied", {})
        assert {name for name, item in off.options.items() if item.removed} == {Option(name) for name in expected}
        assert difference(before, catalog(people)) == []
        assert own_names(people) == set()


def test_a_fingerprint_does_not_change_with_what_comes_after(server: PostgresServer, people: Database) -> None:
    """A migration on top of hardening gives what it gives without: places of columns, grants and comments included."""
    twin = server.create_database(people.name)
    migration = {
        "20260101120000_more.sql": """
        ALTER TABLE users ADD COLUMN nickname text, ADD COLUMN updated_at timestamp(3);
        COMMENT ON COLUMN users.nickname IS 'what friends call them';
        GRANT SELECT (nickname) ON users TO stranger;
        CREATE TABLE notes (id text PRIMARY KEY, user_id text NOT NULL REFERENCES users (id));
        ALTER TABLE service_config DROP COLUMN config_data, ADD COLUMN settings jsonb;
        CREATE FUNCTION hello() RETURNS text LANGUAGE sql AS 'SELECT ''hello''';
        """
    }
    try:
        harden(people, ALL)
        allowed = MigrationOptions(allow_destructive=True)
        assert [migrate(database, migration, allowed).outcome for database in (people, twin)] == ["Applied", "Applied"]
        assert difference(catalog(twin), without_hardening(catalog(people))) == []
        assert without_hardening(catalog(people)).fingerprint() == catalog(twin).fingerprint()
        harden(people, OFF)
        assert catalog(people).fingerprint() == catalog(twin).fingerprint()
    finally:
        server.drop_database(twin)


def test_what_is_not_ours_stays_in_the_fingerprint(people: Database) -> None:
    harden(people, ALL)
    before = without_hardening(catalog(people))
    people.execute("CREATE OR REPLACE FUNCTION current_user_id() RETURNS text LANGUAGE sql STABLE AS 'SELECT ''eve'''")
    people.execute("CREATE POLICY mine ON accounts USING (true)")
    changes = difference(before, without_hardening(catalog(people)))
    assert "function current_user_id() is not expected" in changes
    assert "table accounts: policy mine is not expected" in changes
    assert "table accounts: row security is yes, expected no" in changes


def test_every_object_says_whose_it_is(people: Database) -> None:
    harden(people, ALL)
    with people.connect() as connection:
        objects = read_state(connection).objects.values()
    assert len(objects) == 9 + 4 + 2 + 1 + 3 + 16
    for item in objects:
        assert item.name.startswith(PREFIX) or item.name == "current_user_id"
        assert (item.comment or "").startswith(MARK)


def test_a_change_by_somebody_else_is_mended(people: Database) -> None:
    harden(people, ALL)
    good = catalog(people)
    people.execute(
        "CREATE OR REPLACE FUNCTION current_user_id() RETURNS text LANGUAGE sql STABLE AS 'SELECT NULL::text';"
        "ALTER TABLE accounts DISABLE ROW LEVEL SECURITY; DROP POLICY hardening_own_rows ON sessions;"
        "DROP INDEX hardening_users_role_idx; CREATE INDEX hardening_users_role_idx ON users (email);"
        "ALTER TABLE users DISABLE TRIGGER hardening_touch;"
        "ALTER TABLE users DROP CONSTRAINT hardening_users_role_check;"
    )
    assert harden(people, ALL).reason == "HardeningApplied"
    assert difference(good, catalog(people)) == []


def test_a_schema_that_is_not_there_yet_is_waited_for(empty: Database) -> None:
    nothing = harden(empty, ALL)
    assert (nothing.outcome, set(states(nothing).values())) == ("Applied", {"Waiting"})
    assert "users.role" in (nothing.options[Option.CHECK_CONSTRAINTS].message or "")
    migrate(empty, bundled_migrations())
    assert set(states(harden(empty, ALL)).values()) == {"Applied"}


def test_a_part_of_the_schema_gets_its_part(people: Database) -> None:
    """What can be had is; of the constraints, all or none."""
    people.execute("DROP TABLE media_requests")
    result = harden(people, ALL)
    assert states(result) == {
        "checkConstraints": "Waiting",
        "auditColumns": "Applied",
        "rowLevelSecurity": "Waiting",
        "recommendedIndexes": "Waiting",
    }
    names = own_names(people)
    assert "hardening_youtube_downloads_status_idx" in names
    assert not {name for name in names if name.endswith("_check")}
    assert harden(people, ALL).reason == "UpToDate"


# Constraints.


def test_rows_that_break_constraints_are_counted_and_nothing_is_added(people: Database) -> None:
    people.execute(
        "UPDATE users SET role = 'root' WHERE id = 'eve'; UPDATE media_requests SET status = 'lost';"
        "UPDATE media_requests SET media_type = 'opera' WHERE id = 'r2'"
    )
    before = catalog(people)
    result = harden(people, EACH[Option.CHECK_CONSTRAINTS])
    assert (result.outcome, result.reason) == ("Failed", "RowsBreakConstraints")
    message = result.options[Option.CHECK_CONSTRAINTS].message or ""
    assert "1 row breaks hardening_users_role_check: users.role holds 'root' (1)." in message
    assert (
        "1 row breaks hardening_media_requests_media_type_check: media_requests.media_type holds 'opera' (1)."
        in message
    )
    assert "2 rows break hardening_media_requests_status_check: media_requests.status holds 'lost' (2)." in message
    assert "hardening_users_status_check" not in message
    assert difference(before, catalog(people)) == []
    people.execute("UPDATE users SET role = 'admin'; UPDATE media_requests SET status = 'denied', media_type = 'tv'")
    assert harden(people, EACH[Option.CHECK_CONSTRAINTS]).outcome == "Applied"


def test_rows_are_looked_at_before_any_table_is_locked(people: Database) -> None:
    people.execute("UPDATE users SET role = 'root' WHERE id = 'eve'")
    lines: list[str] = []
    with people.connect(MIGRATOR) as connection:
        wanted = Hardening.model_validate(EACH[Option.CHECK_CONSTRAINTS])
        HardeningRun(connection, wanted, APP, QUICK, lines.append).run()
    (line,) = lines
    assert line.startswith("checkConstraints: Failed: 1 row breaks hardening_users_role_check")


def test_bad_rows_keep_no_other_option_from_being_applied(people: Database) -> None:
    people.execute("UPDATE users SET role = 'root' WHERE id = 'eve'")
    result = harden(people, ALL)
    assert result.outcome == "Failed"
    assert states(result) == dict.fromkeys((option.value for option in EACH), "Applied") | {
        "checkConstraints": "Failed"
    }


def test_constraints_admit_what_the_application_writes(people: Database) -> None:
    harden(people, EACH[Option.CHECK_CONSTRAINTS])
    with people.connect(APP) as app:
        app.execute("INSERT INTO users (id, email) VALUES ('new', 'new@example.org')")
        for role in ("user", "admin", "USER", "ADMIN"):
            app.execute("UPDATE users SET role = %s WHERE id = 'new'", (role,))
        for status in ("pending", "approved", "available", "completed", "failed"):
            app.execute("UPDATE media_requests SET status = %s", (status,))
        with pytest.raises(psycopg.errors.CheckViolation, match="hardening_users_role_check"):
            app.execute("UPDATE users SET role = 'root' WHERE id = 'new'")


def constraint(database: Database, name: str) -> str:
    query = f"SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = '{name}' AND convalidated"
    return str(database.execute(query)[0][0])


def test_other_allowed_values_replace_a_constraint(people: Database) -> None:
    harden(people, EACH[Option.CHECK_CONSTRAINTS])
    kept = constraint(people, "hardening_users_status_check")
    narrow = {"checkConstraints": {"enabled": True, "userRoles": ["user", "USER", "admin", "o'neill"]}}
    assert harden(people, narrow).outcome == "Applied"
    assert "'o''neill'::text" in constraint(people, "hardening_users_role_check")
    assert "moderator" not in constraint(people, "hardening_users_role_check")
    assert constraint(people, "hardening_users_status_check") == kept
    too_narrow = {"checkConstraints": {"enabled": True, "userRoles": ["user"], "userStatuses": ["active", "banned"]}}
    refused = harden(people, too_narrow)
    assert refused.reason == "RowsBreakConstraints"
    assert "2 rows break hardening_users_role_check: users.role holds 'USER' (1), 'admin' (1)." in refused.message
    assert "'o''neill'::text" in constraint(people, "hardening_users_role_check")
    assert constraint(people, "hardening_users_status_check") == kept


def test_a_row_that_is_committed_after_the_look(people: Database) -> None:
    """Validation finds it: all four are withdrawn, and rows are told as if they had been there before."""
    before = catalog(people)
    results: list[HardeningResult] = []
    arguments = (people, EACH[Option.CHECK_CONSTRAINTS], RunOptions())
    runner = threading.Thread(target=lambda: results.append(harden(*arguments)))
    with open_transaction(people, "UPDATE media_requests SET status = 'lost'"), people.connect() as watcher:
        runner.start()
        wait_for_backend(watcher, "NOT VALID", waiting=True)
    runner.join()
    assert (results[0].outcome, results[0].reason) == ("Failed", "RowsBreakConstraints"), results
    assert "2 rows break hardening_media_requests_status_check" in results[0].message
    assert difference(before, catalog(people)) == []


@pytest.mark.parametrize(
    "stop_after",
    ["add hardening_users_role_check", "validate hardening_users_role", "validate hardening_media_requests_s"],
)
def test_a_run_that_is_killed_is_finished_by_the_next(people: Database, stop_after: str) -> None:
    wanted = Hardening.model_validate(ALL)

    def kill(line: str) -> None:
        if line.startswith(stop_after):
            people.execute(f"SELECT pg_terminate_backend({pid}, 10000)")

    with people.connect(MIGRATOR) as connection:
        pid = connection.info.backend_pid
        result = HardeningRun(connection, wanted, APP, QUICK, kill).run()
    assert (result.outcome, result.reason) == ("Transient", "ConnectionLost")
    assert any(name.endswith("_check_new") for name in own_names(people))
    assert harden(people, ALL).outcome == "Applied"
    assert not any(name.endswith("_new") for name in own_names(people))
    harden(people, OFF)
    assert own_names(people) == set()


def test_leftovers_are_taken_away_when_the_option_goes_off(people: Database) -> None:
    people.execute("ALTER TABLE users ADD CONSTRAINT hardening_users_role_check_new CHECK (role <> 'x') NOT VALID")
    assert harden(people, OFF).outcome == "Applied"
    assert own_names(people) == set()


# Locks.


def test_a_lock_that_is_not_granted_is_tried_again_and_its_holder_named(people: Database) -> None:
    before = catalog(people)
    with open_transaction(people, "SELECT FROM users FOR UPDATE") as holder:
        result = harden(people, EACH[Option.AUDIT_COLUMNS])
        assert (result.outcome, result.reason) == ("Transient", "LockTimeout")
        assert f"pid {holder.info.backend_pid} (role medianest_app" in result.message.lower()
    assert difference(without_hardening(catalog(people)), before) == []
    assert harden(people, EACH[Option.AUDIT_COLUMNS]).outcome == "Applied"


def test_never_beside_a_migration(people: Database) -> None:
    with people.connect(MIGRATOR) as migration:
        assert try_lock(migration)
        result = harden(people, ALL)
        assert (result.outcome, result.reason) == ("Transient", "LockNotGranted")
        assert own_names(people) == set()


# The command line.


def test_as_the_job_calls_it(people: Database, tmp_path: Path) -> None:
    result_file = tmp_path / "termination-log"

    def call(options: str) -> tuple[int, str, dict[str, Any]]:
        arguments = ("harden", "--options", options, "--app-role", APP, "--result-file", str(result_file))
        done = dbctl(people.environment(), *arguments)
        return done.returncode, done.stdout, json.loads(result_file.read_text())

    code, output, result = call('{"auditColumns": true, "checkConstraints": {"enabled": true}}')
    assert (code, result["outcome"], result["reason"]) == (0, "Applied", "HardeningApplied")
    assert "make column users.hardening_updated_at" in output
    assert result["options"]["auditColumns"]["state"] == "Applied"
    assert result["options"]["rowLevelSecurity"]["state"] == "Off"

    code, output, result = call('{"checkConstraints": {"enabled": true, "userRoles": ["user"]}}')
    assert (code, result["outcome"], result["reason"]) == (1, "Failed", "RowsBreakConstraints")
    assert "users.role holds 'USER' (1), 'admin' (1)" in result["options"]["checkConstraints"]["message"]
    assert result["options"]["auditColumns"] == {"state": "Off", "removed": True}
    assert "auditColumns is off: its objects were removed" in output

    code, _, result = call('{"checkConstraints": {"enabled": true, "userRoles": []}}')
    assert (code, result["reason"]) == (1, "InvalidOptions")
    assert "checkConstraints.userRoles" in result["message"]


def test_a_server_that_is_away_is_worth_another_try(people: Database) -> None:
    environment = people.environment() | {"PGHOST": "/nonexistent"}
    done = dbctl(environment, "harden", "--options", "{}", "--connect-timeout", "300ms")
    assert (done.returncode, "ConnectFailed" in done.stdout) == (2, True)


# Beside migrations.

MORE = """
ALTER TABLE media_requests ADD COLUMN rating integer;
CREATE INDEX media_requests_rating_idx ON media_requests (rating);
"""
BAD = """
ALTER TABLE users ADD COLUMN nickname text;
DROP INDEX hardening_users_role_idx;
COMMIT;
CREATE UNIQUE INDEX media_requests_media_type_key ON media_requests (nothing);
"""


def test_migrations_go_on_above_hardening(people: Database, tmp_path: Path) -> None:
    """Backed up, rehearsed and verified as without it; nothing of ours is taken for drift."""
    assert migrate(people, bundled_migrations(), folder=tmp_path).outcome == "Applied"
    harden(people, ALL)
    source = {f"{item.name}.sql": item.sql for item in bundled_migrations()}
    applied = migrate(people, source | {"20260101120000_more.sql": MORE}, folder=tmp_path)
    assert applied.outcome == "Applied", applied
    assert harden(people, ALL).reason == "UpToDate"


def test_a_failed_migration_is_rolled_back_above_hardening(people: Database, tmp_path: Path) -> None:
    harden(people, ALL)
    with people.connect() as connection:
        before = application_catalog(connection)
    options = MigrationOptions(rehearse=Rehearse.NEVER)
    result = migrate(people, {"20260101120000_bad.sql": BAD}, options, folder=tmp_path)
    assert result.rollback is not None, result
    assert (result.outcome, result.rollback.verified) == ("Failed", True)
    with people.connect() as connection:
        assert difference(before, application_catalog(connection)) == []
    assert states(harden(people, ALL)) == {option.value: "Applied" for option in EACH}
