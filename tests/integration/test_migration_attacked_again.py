"""What a second adversary broke, with an oracle of its own: each case with what it was claimed to be."""

from __future__ import annotations

import pytest

from integration.crashes import AT_THE_GATE, CONCURRENTLY, FAILS, A, B, C, Start, at_the_gate, is_locked_out
from integration.outside import outside, unlike
from integration.postgres_server import Database


def test_a_table_with_a_column_named_as_an_alias_is_compared(database: Database, start: Start) -> None:
    """`t::text` is the column's where there is one of that name."""
    database.execute(
        "SET ROLE medianest; CREATE TABLE samples (id int PRIMARY KEY, t int, value int);"
        "INSERT INTO samples SELECT g, 1, g FROM generate_series(1, 20) g"
    )
    before = outside(database)
    files = {
        A: "UPDATE samples SET value = value + 1000; COMMIT;\nUPDATE samples SET value = 0 WHERE id < 5;\n",
        B: FAILS,
    }
    code, result, output = start(files).end()
    assert (code, result["reason"]) == (1, "MigrationFailed"), output
    assert result["rollback"]["verified"], result
    assert not unlike(before, outside(database))


OF_OTHERS = {
    "column of a type": "CREATE TABLE audit.log (id int, state public.mood)",
    "column of a row type": "CREATE TABLE audit.log (id int, who public.users)",
    "default": "CREATE TABLE audit.log (id int, n int DEFAULT public.one())",
    "check": "CREATE TABLE audit.log (id int CHECK (id > public.one()))",
    "index": "CREATE TABLE audit.log (id int); CREATE INDEX ON audit.log ((id + public.one()))",
    "trigger": "CREATE TABLE audit.log (id int); CREATE TRIGGER g BEFORE INSERT ON audit.log FOR EACH ROW"
    " EXECUTE FUNCTION public.touched()",
    "statistics": "CREATE STATISTICS audit.seen ON id, name FROM public.users",
}


@pytest.mark.parametrize("rehearse", ["Auto", "Never"])
@pytest.mark.parametrize("made", OF_OTHERS.values(), ids=OF_OTHERS.keys())
def test_a_restore_takes_nothing_of_others_with_it(database: Database, start: Start, made: str, rehearse: str) -> None:
    """They let nobody look, so that none of it is in a copy or in a backup."""
    database.execute(
        "SET ROLE medianest; CREATE TYPE mood AS ENUM ('happy', 'sad');"
        "CREATE FUNCTION one() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';"
        "CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
    )
    database.execute(f"CREATE SCHEMA audit; {made}")
    before = outside(database)
    files = {A: "ALTER TYPE mood ADD VALUE 'tired';\n", B: "ALTER TABLE users ADD COLUMN x int;\n"}
    code, result, output = start(files, "--rehearse", rehearse).end()
    assert (code, result["reason"]) == (1, "RollbackImpossible"), output
    assert not unlike(before, outside(database))


def test_a_row_that_comes_while_down_scripts_wait_is_kept(database: Database, start: Start) -> None:
    """Between the look and the drop somebody had the time to write."""
    files = {
        A: "CREATE TABLE visits (id int);\n",
        f"{A}/down": "DROP TABLE visits;\n",
        B: CONCURRENTLY,
        f"{B}/down": "LOCK TABLE media_requests;\nDROP INDEX users_by_night;\n",
        C: FAILS,
    }
    with database.connect() as reader:
        with at_the_gate(database, start, files) as job:
            reader.execute("BEGIN; SELECT count(*) FROM media_requests")
        job.wait_for_line("reverting by down")
        with database.connect() as watcher:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'media_requests'::regclass"
            while watcher.execute(waiting).fetchone() == (0,):
                pass
        database.execute("INSERT INTO visits VALUES (1)", user="medianest_app")
        reader.execute("COMMIT")
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert "table visits holds 1 rows that others wrote" in result["message"], result
    assert database.execute("SELECT id FROM visits") == [(1,)]


WRITTEN = {
    "row with an empty field": ("ADD COLUMN x pair", "x = ROW('Elm St', NULL)"),
    "no value in place of a default": ("ADD COLUMN x boolean DEFAULT true", "x = NULL"),
    "the later default": (
        "ADD COLUMN x text NOT NULL DEFAULT 'old'; ALTER TABLE users ALTER COLUMN x SET DEFAULT 'new'",
        "x = 'new'",
    ),
    "the only default": ("ADD COLUMN x text; ALTER TABLE users ALTER COLUMN x SET DEFAULT 'new'", "x = 'new'"),
    "list": ("ADD COLUMN x int[] DEFAULT ARRAY[]::int[]", "x = '{1}'"),
}


@pytest.mark.parametrize(("column", "written"), WRITTEN.values(), ids=WRITTEN.keys())
def test_every_value_that_others_wrote_into_a_new_column_is_seen(
    database: Database, start: Start, column: str, written: str
) -> None:
    database.execute("SET ROLE medianest; CREATE TYPE pair AS (street text, zip text)")
    files = {A: f"ALTER TABLE users {column};\n", B: CONCURRENTLY, C: FAILS}
    with at_the_gate(database, start, files) as job:
        database.execute(f"UPDATE users SET {written} WHERE id = 'u3'", user="medianest_app")
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert "table users holds 1 values in column x that others wrote" in result["message"], result


UNTOUCHED = {
    "list": ("users", "ADD COLUMN x int[] DEFAULT ARRAY[]::int[]"),
    "odd name": ("users", 'ADD COLUMN "a{b}%s" int DEFAULT 7'),
    "list of an enum": ("users", "ADD COLUMN x mood[] DEFAULT ARRAY[]::mood[]"),
    "of a partitioned table": ("ev", "ADD COLUMN x text DEFAULT 'x'; ALTER TABLE ev ALTER COLUMN x DROP DEFAULT"),
}


@pytest.mark.parametrize(("table", "column"), UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_what_the_run_gave_is_nobodys_value(database: Database, start: Start, table: str, column: str) -> None:
    database.execute(
        "SET ROLE medianest; CREATE TYPE mood AS ENUM ('happy'); CREATE TABLE ev (id int) PARTITION BY RANGE (id);"
        "CREATE TABLE ev_1 PARTITION OF ev FOR VALUES FROM (0) TO (9); INSERT INTO ev VALUES (1), (2)"
    )
    before = outside(database)
    files = {A: f"ALTER TABLE {table} {column};\n", B: CONCURRENTLY, C: "SELECT 1/0;\n"}
    code, result, output = start(files).end()
    assert (code, result["reason"]) == (1, "MigrationFailed"), output
    assert result["rollback"]["verified"], result
    assert not unlike(before, outside(database))


def test_a_detachment_that_was_cut_off_is_no_state_of_before(database: Database, start: Start) -> None:
    """The partition's rows are out of sight, although it is still listed."""
    database.execute(
        "SET ROLE medianest; CREATE TABLE ev (id int) PARTITION BY RANGE (id);"
        "CREATE TABLE ev_1 PARTITION OF ev FOR VALUES FROM (0) TO (9); INSERT INTO ev VALUES (1), (2)"
    )
    detach = {A: "ALTER TABLE ev DETACH PARTITION ev_1 CONCURRENTLY;\n"}
    with database.connect() as reader:
        reader.execute("BEGIN; SELECT count(*) FROM ev")
        job = start(detach, "--allow-destructive", "--statement-timeout", "3s")
        job.wait_for_line("statement timeout")
        reader.execute("COMMIT")
        code, result, output = job.end()
    assert code == 1, output
    pending = database.execute("SELECT count(*) FROM pg_inherits WHERE inhdetachpending") != [(0,)]
    seen = database.execute("SELECT count(*) FROM ev")
    assert (pending, seen) == (False, [(2,)]) or result["reason"] == "RollbackUnverified", result


def test_a_materialized_view_that_can_not_be_read_any_more_is_no_state_of_before(
    database: Database, start: Start
) -> None:
    database.execute("SET ROLE medianest; CREATE MATERIALIZED VIEW names AS SELECT id, name FROM users")
    before = outside(database)
    files = {A: "REFRESH MATERIALIZED VIEW names WITH NO DATA; COMMIT;\n", B: FAILS}
    code, result, output = start(files).end()
    assert (code, result["reason"]) == (1, "MigrationFailed"), output
    assert result["rollback"]["verified"], result
    assert not unlike(before, outside(database))


def test_what_others_built_on_a_new_table_goes_with_nothing(database: Database, start: Start) -> None:
    files = {A: "CREATE TABLE fresh (id int);\n", B: CONCURRENTLY, C: FAILS}
    with at_the_gate(database, start, files) as job:
        database.execute("CREATE SCHEMA rep; CREATE TABLE rep.archive (id int, was fresh)")
        database.execute("INSERT INTO rep.archive VALUES (1, ROW(7))")
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert "fresh was not dropped, because of column was of table rep.archive" in result["message"], output
    assert database.execute("SELECT (was).id FROM rep.archive") == [(7,)]


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE INDEX hardening_users_name ON users (name);\n",
        "ALTER TABLE users ADD COLUMN hardening_x int;\n",
        "CREATE FUNCTION hardening_f() RETURNS int LANGUAGE sql AS 'SELECT 1';\n",
        "ALTER TABLE users ADD CONSTRAINT hardening_c CHECK (true);\n",
        "ALTER TABLE users RENAME COLUMN name TO hardening_name;\n",
    ],
)
def test_the_operators_own_names_are_refused(database: Database, start: Start, sql: str) -> None:
    """No comparison sees them."""
    code, result, output = start({A: sql}).end()
    assert (code, result["reason"]) == (1, "StatementRefused"), output
    assert "Names that begin with hardening_" in result["message"], result


def test_a_sequence_that_is_moved_two_calls_away_locks_out(database: Database, start: Start) -> None:
    database.execute(
        "SET ROLE medianest; CREATE SEQUENCE numbers; SELECT setval('numbers', 50);"
        "CREATE FUNCTION fix_one() RETURNS bigint LANGUAGE sql AS $$ SELECT setval('public.numbers', 1) $$;"
        "CREATE FUNCTION fix_all() RETURNS bigint LANGUAGE sql AS $$ SELECT public.fix_one() $$"
    )
    with at_the_gate(database, start, {A: f"SELECT fix_all();\n{FAILS}"}) as job:
        assert is_locked_out(database)
    _, result, output = job.end()
    assert result["rollback"]["verified"], output
    assert database.execute("SELECT last_value FROM numbers") == [(50,)]


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE sessions ADD CONSTRAINT k FOREIGN KEY (user_id) REFERENCES users (id) ON UPDATE SET NULL;\n",
        "CREATE FUNCTION upper(varchar) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;\n",
    ],
)
def test_what_leads_writes_elsewhere_locks_out(database: Database, start: Start, sql: str) -> None:
    with at_the_gate(database, start, {A: sql, B: CONCURRENTLY, C: FAILS}) as job:
        assert is_locked_out(database)
    _, result, output = job.end()
    assert result["rollback"]["verified"], output


def test_an_application_that_empties_its_queue_stops_no_harmless_run(database: Database, start: Start) -> None:
    database.execute("INSERT INTO rate_limits (user_id, endpoint) VALUES ('u1', 'job')")
    with database.connect() as reader:
        reader.execute("BEGIN; SELECT count(*) FROM users")
        job = start({A: "ALTER TABLE users ADD COLUMN x int;\n"}, "--rehearse", "Never")
        job.wait_for_line("applying")
        database.execute("DELETE FROM rate_limits", user="medianest_app")
        reader.execute("COMMIT")
    code, result, output = job.end()
    assert (code, result["reason"]) == (0, "MigrationsApplied"), output


def test_a_range_type_that_is_there_stops_no_rehearsal(database: Database, start: Start) -> None:
    database.execute("SET ROLE medianest; CREATE TYPE span AS RANGE (subtype = float8)")
    code, result, output = start({A: "ALTER TABLE users ADD COLUMN x int;\n"}, "--rehearse", "Always").end()
    assert (code, result["reason"]) == (0, "MigrationsApplied"), output


def test_a_time_zone_of_the_databases_own_stops_no_rehearsal(database: Database, start: Start) -> None:
    database.execute(f"ALTER DATABASE {database.name} SET timezone = 'Europe/Berlin'")
    database.execute(
        "SET ROLE medianest; CREATE TABLE ev (at timestamptz) PARTITION BY RANGE (at);"
        "CREATE TABLE ev_1 PARTITION OF ev FOR VALUES FROM ('2026-01-01 00:00+01') TO ('2027-01-01 00:00+01')"
    )
    code, result, output = start({A: "ALTER TABLE users ADD COLUMN x int;\n"}, "--rehearse", "Always").end()
    assert (code, result["reason"]) == (0, "MigrationsApplied"), output


@pytest.mark.parametrize("sql", ["TRUNCATE rate_limits", "SELECT setval('numbers', 77)"])
def test_what_a_person_takes_away_after_it_stays_away(database: Database, start: Start, sql: str) -> None:
    database.execute("SET ROLE medianest; CREATE SEQUENCE numbers")
    database.execute("INSERT INTO rate_limits (user_id, endpoint) VALUES ('u1', 'x')")
    files = {A: "UPDATE users SET name = 'x'; COMMIT;\n", B: FAILS}
    with at_the_gate(database, start, files) as job:
        database.execute("CREATE PUBLICATION meanwhile")
    assert job.end()[1]["reason"] == "RollbackUnverified"
    database.execute(f"DROP PUBLICATION meanwhile; {sql}")
    repaired = outside(database)
    _, result, output = start(files, "--retry", "2").end()
    assert result["reason"] == "RollbackUnverified", output
    assert not unlike(repaired, outside(database))
    assert database.execute("SELECT last_value FROM numbers") == [(77 if "setval" in sql else 1,)]


def test_a_prepared_transaction_is_waited_for(database: Database, start: Start) -> None:
    """Nobody sees what it has written, and a restore would have taken it away for good."""
    gid = f"of {database.name}"
    with database.connect("medianest_app") as application:
        application.execute("BEGIN; INSERT INTO rate_limits (user_id, endpoint) VALUES ('u1', 'prepared')")
        application.execute(f"PREPARE TRANSACTION '{gid}'")
    files = {A: "UPDATE users SET name = 'x'; COMMIT;\n", B: "SELECT 1;\n"}
    code, result, output = start(files).end()
    assert (code, result["reason"]) == (2, "LockoutFailed"), output
    assert f"the prepared transaction '{gid}' of medianest_app is open" in result["message"], result
    assert not is_locked_out(database)
    database.execute(f"COMMIT PREPARED '{gid}'", user="medianest_app")
    code, result, output = start(files).end()
    assert (code, result["reason"]) == (0, "MigrationsApplied"), output
    assert database.execute("SELECT user_id FROM rate_limits WHERE endpoint = 'prepared'") == [("u1",)]


def test_an_index_of_large_values_that_was_left_half_built_is_told(database: Database, start: Start) -> None:
    """Only a superuser may drop it: its owner has no right on PostgreSQL's schema for large values."""
    database.execute("SET ROLE medianest; CREATE TABLE docs (id int PRIMARY KEY, body text)")
    before = outside(database)
    with database.connect() as reader:
        reader.execute("BEGIN; SELECT count(*) FROM docs")
        job = start({A: "REINDEX TABLE CONCURRENTLY docs;\n"}, "--statement-timeout", "2s")
        job.wait_for_line("reverting: ")
        reader.execute("COMMIT")
    code, result, output = job.end()
    assert (code, result["reason"], result["rollback"]["verified"]) == (1, "StatementTimeout", True), output
    left = database.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
    assert [f"DROP INDEX IF EXISTS {name}" in result["message"] for (name,) in left] == [True], result
    # It holds up no other run.
    _, result, output = start({A: "SELECT 1;\n"}).end()
    assert result["reason"] == "MigrationsApplied", output
    database.execute(f"DROP INDEX {left[0][0]}")
    assert not unlike(before, outside(database))


def test_rows_that_others_wrote_beside_a_killed_run_are_called_so(database: Database, start: Start) -> None:
    """Its own statements write rows as well; all of them went with its only transaction."""
    files = {A: f"UPDATE media_requests SET title = 'x';\n{AT_THE_GATE}"}
    with at_the_gate(database, start, files) as job:
        database.execute("INSERT INTO rate_limits (user_id, endpoint) VALUES ('u1', 'job')", user="medianest_app")
        job.kill()
    _, _, output = start({B: "SELECT 1;\n"}).end()
    assert "(verified); rows changed meanwhile, and nothing of the run is committed" in output
