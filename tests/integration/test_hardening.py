"""`spec.hardening` on a real server: on, off and on again, with data in the way, cut short, and as the application."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from integration.conftest import migrate
from integration.postgres_server import Database, PostgresServer, wait_for_backend, wait_until
from medianest_operator.api.hardening import Hardening
from medianest_operator.hardening.fingerprint import without_hardening
from medianest_operator.hardening.naming import MARK, PREFIX, Option
from medianest_operator.hardening.result import HardeningResult
from medianest_operator.hardening.run import HardeningRun, RunOptions
from medianest_operator.hardening.state import read_state
from medianest_operator.postgres.catalog import Catalog, difference, read_catalog
from medianest_operator.schema import bundled_migrations

APP, READ_ONLY, MIGRATOR = "medianest_app", "medianest_readonly", "medianest_migrator"
OFF = Hardening()
EACH: dict[Option, dict[str, Any]] = {
    Option.RECOMMENDED_INDEXES: {"recommendedIndexes": True},
    Option.CHECK_CONSTRAINTS: {"checkConstraints": {"enabled": True}},
    Option.AUDIT_COLUMNS: {"auditColumns": True},
    Option.ROW_LEVEL_SECURITY: {"rowLevelSecurity": True},
}
ALL: dict[str, Any] = {name: value for options in EACH.values() for name, value in options.items()}
QUICK = RunOptions(lock_timeout=200, index_lock_timeout=200, run_lock_timeout=0.5)


def harden(database: Database, options: dict[str, Any] | Hardening, run_options: RunOptions = QUICK) -> HardeningResult:
    """Run as the Job does, as the migrator role."""
    wanted = options if isinstance(options, Hardening) else Hardening.model_validate(options)
    with database.connect(MIGRATOR) as connection:
        return HardeningRun(connection, wanted, APP, run_options).run()


def states(result: HardeningResult) -> dict[str, str]:
    return {option.value: item.state.value for option, item in result.options.items() if item.state != "Off"}


def catalog(database: Database) -> Catalog:
    with database.connect() as connection:
        return read_catalog(connection)


def own_names(database: Database) -> set[str]:
    with database.connect() as connection:
        return {name for _, _, name in read_state(connection).objects}


@pytest.fixture
def people(medianest: Database) -> Database:
    """A database with two users and an admin, made by the application."""
    medianest.execute(
        """
        INSERT INTO users (id, email, role) VALUES
          ('ann', 'ann@example.org', 'user'), ('bob', 'bob@example.org', 'USER'), ('eve', 'eve@example.org', 'admin');
        INSERT INTO media_requests (id, user_id, title, media_type, status) VALUES
          ('r1', 'ann', 'Dune', 'movie', 'pending'), ('r2', 'bob', 'Andor', 'tv', 'completed');
        INSERT INTO session_tokens (id, user_id, token_hash, expires_at) VALUES ('s1', 'ann', 'hash', now());
        INSERT INTO service_config (service_name, service_url, updated_by) VALUES ('plex', 'http://plex', 'eve');
        """,
        user=APP,
    )
    return medianest


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
        assert [migrate(database, migration).outcome for database in (people, twin)] == ["Applied", "Applied"]
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


# Indexes.


@contextmanager
def open_transaction(database: Database, statement: str) -> Iterator[Connection[Any]]:
    with database.connect(APP) as connection, connection.transaction():
        connection.execute(statement.encode())
        yield connection


def test_an_interrupted_build_is_never_a_success(people: Database) -> None:
    """A session that keeps CREATE INDEX CONCURRENTLY waiting until it gives up leaves an INVALID index: the run says
    so, takes it away where it can, and the next one builds it."""
    with open_transaction(people, "UPDATE users SET name = 'Ann'"):
        result = harden(people, EACH[Option.RECOMMENDED_INDEXES])
    assert (result.outcome, result.reason) == ("Transient", "LockTimeout")
    assert states(result) == {"recommendedIndexes": "Applying"}
    assert "role medianest_app" in result.message
    assert invalid_indexes(people) == ["hardening_users_status_idx"]
    assert states(harden(people, EACH[Option.RECOMMENDED_INDEXES])) == {"recommendedIndexes": "Applied"}
    assert invalid_indexes(people) == []


def test_a_killed_build_is_built_again(people: Database) -> None:
    results: list[HardeningResult] = []
    with open_transaction(people, "UPDATE users SET name = 'Ann'"), people.connect() as watcher:
        arguments = (people, EACH[Option.RECOMMENDED_INDEXES], RunOptions())
        runner = threading.Thread(target=lambda: results.append(harden(*arguments)))
        runner.start()
        pid = wait_for_backend(watcher, "CREATE INDEX CONCURRENTLY", waiting=True)
        watcher.execute("SELECT pg_terminate_backend(%s)", (pid,))
        runner.join()
        wait_until(watcher, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)
    assert results[0].reason == "ConnectionLost"
    assert invalid_indexes(people) == ["hardening_users_status_idx"]
    assert harden(people, EACH[Option.RECOMMENDED_INDEXES]).outcome == "Applied"
    assert invalid_indexes(people) == []
    assert len(own_names(people)) == 9


def invalid_indexes(database: Database) -> list[str]:
    rows = database.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
    return [name for (name,) in rows]


def test_writers_go_on_while_an_index_is_built(people: Database) -> None:
    with open_transaction(people, "UPDATE users SET name = 'Ann' WHERE id = 'ann'") as writer:
        results: list[HardeningResult] = []
        arguments = (people, EACH[Option.RECOMMENDED_INDEXES], RunOptions())
        runner = threading.Thread(target=lambda: results.append(harden(*arguments)))
        runner.start()
        with people.connect() as watcher:
            wait_for_backend(watcher, "CREATE INDEX CONCURRENTLY", waiting=True)
        with people.connect(APP, options="-c lock_timeout=2s") as other:
            other.execute("UPDATE users SET name = 'Bob' WHERE id = 'bob'")
        writer.execute("UPDATE users SET image = 'x' WHERE id = 'ann'")
    runner.join()
    assert results[0].outcome == "Applied"


# Audit columns.


def test_audit_columns_are_kept_and_old_rows_have_none(people: Database) -> None:
    size = "SELECT relfilenode FROM pg_class WHERE relname IN ('users', 'service_config') ORDER BY relname"
    before = people.execute(size)
    harden(people, EACH[Option.AUDIT_COLUMNS])
    assert people.execute(size) == before, "a table was rewritten"
    assert people.execute("SELECT count(hardening_updated_at) FROM users") == [(0,)]
    assert people.execute("SELECT count(hardening_created_at) FROM service_config") == [(0,)]
    with people.connect(APP) as app:
        app.execute("INSERT INTO service_config (service_name, service_url) VALUES ('tautulli', 'http://tautulli')")
        app.execute("UPDATE users SET last_login_at = now() WHERE id = 'ann'")
    recent = "now() AT TIME ZONE 'UTC' - {} BETWEEN '0' AND '1 minute'"
    changed = people.execute(f"SELECT id FROM users WHERE {recent.format('hardening_updated_at')}")
    assert changed == [("ann",)]
    made = people.execute(f"SELECT service_name FROM service_config WHERE {recent.format('hardening_created_at')}")
    assert made == [("tautulli",)]


def test_a_view_on_an_audit_column_keeps_it(people: Database) -> None:
    """Nothing of somebody else's goes with our objects."""
    harden(people, EACH[Option.AUDIT_COLUMNS])
    people.execute("CREATE VIEW changes AS SELECT id, hardening_updated_at FROM users")
    result = harden(people, OFF)
    assert (result.outcome, result.reason) == ("Failed", "DependentObjects")
    assert "view changes depends on column hardening_updated_at of table users" in result.message
    people.execute("DROP VIEW changes")
    assert harden(people, OFF).outcome == "Applied"


PRISMA_STATEMENTS = (
    'INSERT INTO "public"."users" ("id","email","role","requires_password_change","created_at","status") VALUES '
    "('cat','cat@example.org','user',false,now(),'active') RETURNING \"public\".\"users\".\"id\", "
    '"public"."users"."email", "public"."users"."role"',
    'SELECT "public"."users"."id", "public"."users"."plex_id", "public"."users"."status" FROM "public"."users" '
    'WHERE ("public"."users"."email" = \'cat@example.org\' AND 1=1) LIMIT 1 OFFSET 0',
    'UPDATE "public"."users" SET "last_login_at" = now() WHERE ("public"."users"."id" = \'cat\' AND 1=1) '
    'RETURNING "public"."users"."id"',
    'INSERT INTO "public"."media_requests" ("id","user_id","title","media_type","status","created_at") VALUES '
    "('r9','cat','Arrival','movie','pending',now()) RETURNING \"public\".\"media_requests\".\"id\"",
    'SELECT COUNT(*) FROM (SELECT "public"."media_requests"."id" FROM "public"."media_requests" '
    'WHERE "public"."media_requests"."user_id" = \'cat\' OFFSET 0) AS "sub"',
    'INSERT INTO "public"."service_config" ("service_name","service_url","enabled","updated_at") VALUES '
    "('overseerr','http://o',true,now()) ON CONFLICT (\"service_name\") DO UPDATE SET \"enabled\" = true "
    'RETURNING "public"."service_config"."id"',
    'DELETE FROM "public"."media_requests" WHERE ("public"."media_requests"."id" = \'r9\' AND 1=1)',
    'DELETE FROM "public"."users" WHERE ("public"."users"."id" = \'cat\' AND 1=1) RETURNING "public"."users"."id"',
)


def test_statements_as_prisma_sends_them(people: Database) -> None:
    """With every option on, the application's statements give what they give without."""

    def answers() -> list[Any]:
        with people.connect(APP) as app:
            cursors = [app.execute(statement.encode()) for statement in PRISMA_STATEMENTS]
            result = [cursor.fetchall() if cursor.description else cursor.rowcount for cursor in cursors]
            app.execute("DELETE FROM service_config WHERE service_name = 'overseerr'")
        # The sequence of service_config goes on by itself.
        return [*result[:5], *result[6:]]

    before = answers()
    assert harden(people, ALL).outcome == "Applied"
    assert answers() == before


# Row-level security.


@pytest.fixture
def secured(people: Database) -> Database:
    assert harden(people, EACH[Option.ROW_LEVEL_SECURITY]).outcome == "Applied"
    return people


def ids(connection: Connection[Any], table: str = "media_requests") -> list[str]:
    return [row[0] for row in connection.execute(f"SELECT id FROM {table} ORDER BY id".encode())]


def as_user(database: Database, user: str) -> Connection[Any]:
    connection = database.connect(APP)
    connection.execute("SELECT set_config('app.current_user_id', %s, false)", (user,))
    return connection


def test_without_a_user_the_application_works_as_before(secured: Database) -> None:
    with secured.connect(APP) as app:
        assert app.execute("SELECT current_user_id()").fetchone() == (None,)
        assert ids(app) == ["r1", "r2"]
        assert ids(app, "users") == ["ann", "bob", "eve"]
        app.execute("INSERT INTO media_requests (id, user_id, title, media_type) VALUES ('r3', 'bob', 'Heat', 'movie')")
        assert app.execute("UPDATE media_requests SET status = 'approved'").rowcount == 3
        assert app.execute("DELETE FROM media_requests WHERE id = 'r3'").rowcount == 1
        assert app.execute("SELECT user_id FROM session_tokens WHERE token_hash = 'hash'").fetchone() == ("ann",)


def test_with_a_user_only_their_rows_are_there(secured: Database) -> None:
    with as_user(secured, "ann") as app:
        assert app.execute("SELECT current_user_id()").fetchone() == ("ann",)
        assert ids(app) == ["r1"]
        assert ids(app, "users") == ["ann"]
        assert ids(app, "session_tokens") == ["s1"]
        app.execute("INSERT INTO media_requests (id, user_id, title, media_type) VALUES ('r3', 'ann', 'Heat', 'movie')")
        assert app.execute("UPDATE media_requests SET status = 'completed'").rowcount == 2
        assert app.execute("DELETE FROM media_requests WHERE id = 'r2'").rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            app.execute(
                "INSERT INTO media_requests (id, user_id, title, media_type) VALUES ('r4', 'bob', 'Ran', 'movie')"
            )
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            app.execute("UPDATE media_requests SET user_id = 'bob' WHERE id = 'r1'")
    with as_user(secured, "bob") as app:
        assert ids(app) == ["r2"]
        assert ids(app, "session_tokens") == []
    with as_user(secured, "nobody") as app:
        assert ids(app) == ids(app, "users") == []


def test_an_admin_reads_and_writes_all_rows(secured: Database) -> None:
    with as_user(secured, "eve") as app:
        assert ids(app) == ["r1", "r2"]
        assert ids(app, "users") == ["ann", "bob", "eve"]
        assert app.execute("UPDATE media_requests SET status = 'approved'").rowcount == 2
        app.execute("INSERT INTO users (id, email) VALUES ('new', 'new@example.org')")


def test_a_user_of_one_transaction_is_gone_with_it(secured: Database) -> None:
    """A pooled connection goes to somebody else: SET LOCAL leaves an empty setting, which is none."""
    with secured.connect(APP) as app:
        with app.transaction():
            app.execute("SELECT set_config('app.current_user_id', 'ann', true)")
            assert ids(app) == ["r1"]
        assert app.execute("SELECT current_setting('app.current_user_id')").fetchone() == ("",)
        assert ids(app) == ["r1", "r2"]


@pytest.mark.parametrize("user", [READ_ONLY, MIGRATOR, "postgres", "stranger"])
def test_other_roles_see_what_they_are_granted(secured: Database, user: str) -> None:
    secured.execute("GRANT SELECT ON media_requests TO stranger")
    with secured.connect(user) as connection:
        connection.execute("SELECT set_config('app.current_user_id', 'ann', false)")
        assert ids(connection) == ["r1", "r2"]


def test_a_user_cannot_be_deleted_from_under_rows_that_are_not_seen(secured: Database) -> None:
    """Foreign keys look at all rows, whoever asks."""
    secured.execute("DELETE FROM session_tokens")
    with as_user(secured, "ann") as app, pytest.raises(psycopg.errors.ForeignKeyViolation):
        app.execute("DELETE FROM users WHERE id = 'ann'")


def test_policies_of_somebody_else_are_left_alone(people: Database) -> None:
    people.execute(
        "ALTER TABLE error_logs ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY mine ON error_logs TO medianest_app USING (status_code >= 500)"
    )
    before = catalog(people)
    result = harden(people, EACH[Option.ROW_LEVEL_SECURITY])
    assert (result.outcome, result.reason) == ("Failed", "ConflictingObjects")
    assert "Table error_logs has row-level security of its own (mine)" in result.message
    assert difference(before, without_hardening(catalog(people))) == []
    with as_user(people, "ann") as app:
        assert ids(app) == ["r1"]
    assert harden(people, OFF).outcome == "Applied"
    assert difference(before, catalog(people)) == []


def test_policies_that_come_later_take_over(secured: Database) -> None:
    """Ours would let through what theirs refuse: they go, and the switch stays on."""
    secured.execute("CREATE POLICY mine ON error_logs TO medianest_app USING (false)")
    assert harden(secured, EACH[Option.ROW_LEVEL_SECURITY]).reason == "ConflictingObjects"
    rows = secured.execute(
        "SELECT relrowsecurity, (SELECT array_agg(polname::text) FROM pg_policy WHERE polrelid = c.oid)"
        " FROM pg_class c WHERE relname = 'error_logs'"
    )
    assert rows == [(True, ["mine"])]


def test_a_function_of_that_name_is_not_taken_over(people: Database) -> None:
    people.execute("CREATE FUNCTION current_user_id() RETURNS text LANGUAGE sql AS 'SELECT ''x'''")
    before = catalog(people)
    result = harden(people, EACH[Option.ROW_LEVEL_SECURITY])
    assert (result.outcome, result.reason) == ("Failed", "ConflictingObjects")
    assert harden(people, OFF).outcome == "Applied"
    assert difference(before, catalog(people)) == []


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
    from medianest_operator.migrations.history import try_lock

    with people.connect(MIGRATOR) as migration:
        assert try_lock(migration)
        result = harden(people, ALL)
        assert (result.outcome, result.reason) == ("Transient", "LockNotGranted")
        assert own_names(people) == set()
