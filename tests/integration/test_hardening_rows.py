"""`spec.hardening.rowLevelSecurity` on a real server, read and written as the application and as others."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import Connection

from integration.hardening import (
    APP,
    EACH,
    MIGRATOR,
    OFF,
    READ_ONLY,
    catalog,
    harden,
)
from integration.postgres_server import Database
from medianest_operator.api.hardening import Option
from medianest_operator.hardening.fingerprint import without_hardening
from medianest_operator.postgres.catalog import difference

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
