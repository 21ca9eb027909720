"""What an adversary once broke who wrote none of the code: each case with what it was claimed to be."""

from __future__ import annotations

import psycopg
import pytest

from integration.commands import dbctl
from integration.crashes import CONCURRENTLY, FAILS, A, B, C, Start, applied, at_the_gate, open_runs
from integration.outside import outside, unlike
from integration.postgres_server import Database

PARENTS = {
    "partitioned": "CREATE TABLE ev (id int, d int) PARTITION BY LIST (d);"
    "CREATE TABLE ev_1 PARTITION OF ev FOR VALUES IN (1);",
    "inherited": "CREATE TABLE ev (id int, d int); CREATE TABLE ev_1 () INHERITS (ev);",
}


@pytest.mark.parametrize("parent", PARENTS.values(), ids=PARENTS.keys())
@pytest.mark.parametrize("down", [{}, {f"{A}/down": "ALTER TABLE ev DROP COLUMN note;\n", f"{B}/down": "SELECT 1;\n"}])
def test_values_in_a_new_column_of_a_table_with_children_are_kept(
    database: Database, start: Start, parent: str, down: dict[str, str]
) -> None:
    """They lie in the children, which the parent's column goes with."""
    database.execute(f"SET ROLE medianest; {parent} INSERT INTO ev_1 SELECT g, 1 FROM generate_series(1, 5) g")
    files = {A: "ALTER TABLE ev ADD COLUMN note text;\n", B: CONCURRENTLY, C: FAILS, **down}
    with at_the_gate(database, start, files) as job:
        database.execute("UPDATE ev SET note = 'acknowledged' WHERE id = 3", user="medianest_app")
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert "table ev holds 1 values in column note that others wrote" in result["message"], result
    assert database.execute("SELECT note FROM ev WHERE id = 3") == [("acknowledged",)]


COLUMNS = (
    "numeric(10,2) NOT NULL DEFAULT 0",
    "decimal(65,30) NOT NULL DEFAULT 0",
    "double precision DEFAULT 0.0",
    "real DEFAULT 1.0",
    "money DEFAULT 0",
    "char(5) DEFAULT 'a'",
    "text[] DEFAULT '{}'",
    'jsonb DEFAULT \'{"a": "%s {}"}\'',
    "int; ALTER TABLE users ALTER COLUMN x SET DEFAULT 0",
    "text NOT NULL DEFAULT 'a'; ALTER TABLE users ALTER COLUMN x DROP DEFAULT",
)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_default_is_nobodys_value(database: Database, start: Start, column: str) -> None:
    """Compared as the text of the expression it isn't equal to what the column holds: 0 and 0.00."""
    before = outside(database)
    files = {A: f"ALTER TABLE users ADD COLUMN x {column};\n", B: CONCURRENTLY, C: "SELECT 1/0;\n"}
    code, result, output = start(files).end()
    assert (code, result["reason"]) == (1, "MigrationFailed"), output
    assert result["rollback"]["strategy"] == "Inverse", result
    assert result["rollback"]["verified"], result
    assert not unlike(before, outside(database))


def test_a_written_value_beside_a_default_is_kept(database: Database, start: Start) -> None:
    files = {A: "ALTER TABLE users ADD COLUMN x numeric(10,2) DEFAULT 0;\n", B: CONCURRENTLY, C: FAILS}
    with at_the_gate(database, start, files) as job:
        database.execute("UPDATE users SET x = 7 WHERE id = 'u3'", user="medianest_app")
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert "table users holds 1 values in column x" in result["message"], result


def test_what_somebody_makes_beside_a_run_is_not_taken_back_without_a_word(database: Database, start: Start) -> None:
    """As the owner, to whom all that the run makes belongs as well: nothing tells the two apart."""
    files = {A: "ALTER TABLE users ADD COLUMN x int;\n", B: CONCURRENTLY, C: FAILS}
    with at_the_gate(database, start, files) as job:
        database.execute(
            "CREATE TABLE theirs (id int); CREATE INDEX theirs_too ON users (name)", user="medianest_migrator"
        )
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "MigrationFailed"), output
    for words in ("DROP TABLE IF EXISTS theirs", "theirs_too"):
        assert words in result["message"], result["message"]
        assert any(words in statement for statement in result["rollback"]["statements"]), result


BY_OTHERS = {
    "settings of a role": "ALTER ROLE medianest_readonly SET work_mem = '5MB'",
    "membership": "GRANT pg_monitor TO medianest_readonly",
}
TAKEN_BACK = "ALTER ROLE medianest_readonly RESET work_mem; REVOKE pg_monitor FROM medianest_readonly"


@pytest.mark.parametrize("act", BY_OTHERS.values(), ids=BY_OTHERS.keys())
def test_what_a_dba_does_to_other_roles_stops_no_rollback(database: Database, start: Start, act: str) -> None:
    """Roles belong to the whole server."""
    files = {A: "ALTER TABLE users ADD COLUMN x int;\n", B: CONCURRENTLY, C: FAILS}
    try:
        with at_the_gate(database, start, files) as job:
            database.execute(act)
        code, result, output = job.end()
        query = "SELECT FROM information_schema.columns WHERE (table_name, column_name) = ('users', 'x')"
        added = database.execute(query)
    finally:
        database.execute(TAKEN_BACK)
    assert (code, result["reason"]) == (1, "MigrationFailed"), output
    assert result["rollback"]["verified"], result
    assert added == []


def test_a_sequence_that_a_function_moves_stands_where_it_stood(database: Database, start: Start) -> None:
    database.execute(
        "SET ROLE medianest; CREATE SEQUENCE numbers; SELECT setval('numbers', 100);"
        "CREATE FUNCTION bump() RETURNS bigint LANGUAGE sql AS $$ SELECT setval('public.numbers', 9000000) $$"
    )
    code, result, output = start({A: "SELECT bump();\n", B: "SELECT 1/0;\n"}).end()
    assert (code, result["reason"]) == (1, "MigrationFailed"), output
    assert result["rollback"]["verified"], result
    assert database.execute("SELECT last_value FROM numbers") == [(100,)]


GRANTS = {
    "own transaction": "BEGIN;\nDO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO PUBLIC',"
    " current_database()); END $$;\nCOMMIT;\n",
    "behind an index": "CREATE INDEX CONCURRENTLY users_f ON users (shown(id));\n",
}


@pytest.mark.parametrize("sql", GRANTS.values(), ids=GRANTS.keys())
def test_no_file_that_stands_alone_keeps_rights_on_the_database(database: Database, start: Start, sql: str) -> None:
    database.execute(
        "SET ROLE medianest; CREATE FUNCTION let() RETURNS text LANGUAGE plpgsql AS $$ BEGIN"
        " EXECUTE format('GRANT CREATE ON DATABASE %I TO PUBLIC', current_database()); RETURN 'x'; END $$;"
        "CREATE FUNCTION shown(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN public.let(); END $$;"
        # Autovacuum's ANALYZE computes the index's expression as well, and so grants once more, whenever it comes.
        "ALTER TABLE users SET (autovacuum_enabled = off)"
    )
    before = outside(database)
    code, result, output = start({A: sql}).end()
    assert code == 1, output
    assert "changed rights on the database" in result["message"], result
    if result["reason"] == "RollbackUnverified":
        # Nobody knows who was let in, so that the index stays.
        assert dbctl(database.environment("postgres"), "resolve").returncode == 0
        database.execute("DROP INDEX users_f")
    assert not unlike(before, outside(database))


def test_a_queue_that_the_application_empties_is_no_loss(database: Database, start: Start) -> None:
    """On the copy nobody emptied it, so that it was not the run."""
    database.execute("INSERT INTO rate_limits (user_id, endpoint) VALUES ('u1', 'job')")
    live = "pg_has_role('postgres', 'pg_read_server_files', 'MEMBER')"
    wait = f"SELECT pg_advisory_xact_lock(4712) FROM (SELECT {live}) AS here (live) WHERE live;\n"
    files = {A: f"ALTER TABLE users ADD COLUMN x int;\n{wait}"}
    with at_the_gate(database, lambda *given: start(*given, rehearse="Auto"), files) as job:
        database.execute("DELETE FROM rate_limits", user="medianest_app")
    code, result, output = job.end()
    assert (code, result["reason"]) == (0, "MigrationsApplied"), output
    assert applied(database, files) == [A]


def test_an_invalid_index_is_found_whatever_its_letters(database: Database, start: Start) -> None:
    index = 'INDEX CONCURRENTLY {} "größe_idx" ON users (status)'
    with database.connect("medianest_migrator") as connection, pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute(f"CREATE UNIQUE {index.format('')}".encode())
    code, result, output = start({A: f"CREATE UNIQUE {index.format('IF NOT EXISTS')};\n"}).end()
    assert (code, result["reason"]) == (1, "InvalidIndex"), output


def test_the_lockout_is_told_by_whoever_is_asked_again(database: Database, start: Start) -> None:
    """A run of the same source that isn't tried again tells what is remembered."""
    files = {A: "UPDATE users SET name = 'x';\nCOMMIT;\n", B: FAILS}
    with at_the_gate(database, start, files) as job:
        database.execute(f"GRANT CONNECT ON DATABASE {database.name} TO medianest_app")
        database.execute("UPDATE media_requests SET title = 'written'", user="medianest_app")
        job.kill()
    for _ in range(2):
        code, result, output = start(files).end()
        assert (code, result["reason"]) == (1, "RollbackUnverified"), output
        assert result["message"].startswith("The application is locked out of its database. "), result
    assert len(open_runs(database)) == 1
    assert database.execute("SELECT DISTINCT title FROM media_requests") == [("written",)]


def test_who_waits_for_a_run_that_locks_out_says_so(database: Database, start: Start) -> None:
    files = {A: "UPDATE users SET name = 'x';\nCOMMIT;\n", B: FAILS}
    with at_the_gate(database, start, files) as job:
        code, result, output = start({C: "SELECT 1;\n"}, "--run-lock-timeout", "1s").end()
        assert (code, result["reason"]) == (2, "LockNotGranted"), output
        assert result["message"].startswith("The application is locked out of its database. Another"), result
    assert job.end()[0] == 1
    database.execute("SELECT 1", user="medianest_app")
