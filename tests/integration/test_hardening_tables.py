"""`spec.hardening`: the recommended indexes and the audit columns on a real server."""

from __future__ import annotations

import threading
from typing import Any

from integration.hardening import (
    ALL,
    APP,
    EACH,
    OFF,
    harden,
    open_transaction,
    own_names,
    states,
)
from integration.postgres_server import Database, wait_for_backend, wait_until
from medianest_operator.api.hardening import Option
from medianest_operator.hardening.run import RunOptions
from medianest_operator.results.hardening import HardeningResult

# Indexes.


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
