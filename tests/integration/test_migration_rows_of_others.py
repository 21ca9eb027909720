"""No rollback drops a row that others wrote, and no loss is put down to them."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest

from integration.conftest import migrate
from integration.crashes import AT_THE_GATE, PEOPLE, Start, at_the_gate, open_runs
from integration.outside import migrate_and_look
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions

NEVER = RunOptions(rehearse=Rehearse.NEVER)
A, B = "20260101000000_a.sql", "20260102000000_b.sql"
BAD = "CREATE UNIQUE INDEX CONCURRENTLY bad_uq ON media_requests (media_type);\n"
EVENTS = """
CREATE TABLE events (id int, at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE events_rest PARTITION OF events FOR VALUES FROM ('2020-01-01') TO ('2027-01-01');
"""
REDIRECT = """
CREATE TABLE rate_limits_new (LIKE rate_limits);
CREATE FUNCTION redirect() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO rate_limits_new SELECT NEW.*; RETURN NULL; END $$;
CREATE TRIGGER redirect BEFORE INSERT ON rate_limits FOR EACH ROW EXECUTE FUNCTION redirect();
"""
REDIRECTING = {
    "partition": (
        "CREATE TABLE events_2027 PARTITION OF events FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');\n",
        "INSERT INTO events VALUES (%s, '2027-05-05')",
        "SELECT id FROM events",
    ),
    "trigger": (
        REDIRECT,
        "INSERT INTO rate_limits (user_id, endpoint, request_count) VALUES ('u1', 'e', %s)",
        "SELECT request_count FROM rate_limits",
    ),
    "rule": (
        "CREATE TABLE rate_limits_new (LIKE rate_limits INCLUDING DEFAULTS);\n"
        "CREATE RULE redirect AS ON INSERT TO rate_limits DO INSTEAD INSERT INTO rate_limits_new VALUES (NEW.*);\n",
        "INSERT INTO rate_limits (user_id, endpoint, request_count) VALUES ('u1', 'e', %s)",
        "SELECT request_count FROM rate_limits",
    ),
}


class Application(threading.Thread):
    """Writes numbered rows as fast as it may, and remembers what was acknowledged."""

    def __init__(self, database: Database, insert: str) -> None:
        super().__init__(daemon=True)
        self.database, self.insert = database, insert
        self.acknowledged: list[int] = []
        self.ending = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.ending.is_set():
            try:
                with self.database.connect("medianest_app") as connection:
                    while not self.ending.wait(0.003):
                        number += 1
                        connection.execute(self.insert.encode(), (number,))
                        self.acknowledged.append(number)
            except psycopg.Error:
                self.ending.wait(0.02)


@pytest.mark.parametrize(("sql", "insert", "query"), REDIRECTING.values(), ids=REDIRECTING.keys())
def test_writes_that_a_migration_redirects_are_kept(
    medianest: Database, tmp_path: Path, sql: str, insert: str, query: str
) -> None:
    medianest.execute(f"{PEOPLE}; SET ROLE medianest; {EVENTS}")
    application = Application(medianest, insert)
    application.start()
    try:
        files = {"20260101000000_a.sql": sql, "20260102000000_b.sql": BAD}
        result = migrate(medianest, files, NEVER, folder=tmp_path)
    finally:
        application.ending.set()
        application.join(30)
    assert result.rollback is not None, result
    assert result.rollback.verified, result
    there = {row[0] for row in medianest.execute(query)}
    lost = set(application.acknowledged) - there
    assert not lost, f"{len(lost)} of {len(application.acknowledged)} acknowledged writes are lost"


def test_table_with_rows_of_others_is_not_dropped(database: Database, start: Start) -> None:
    """The application knows of the new table and writes to it before the run has ended."""
    files = {
        "20260101000000_a": "CREATE TABLE notes (id int);\nALTER TABLE users ADD COLUMN nickname text;\n",
        "20260102000000_b": "CREATE INDEX CONCURRENTLY notes_id ON notes (id);\n",
        "20260103000000_c": AT_THE_GATE + "SELECT 1/0;\n",
    }
    with at_the_gate(database, start, files) as job:
        database.execute(
            "INSERT INTO notes VALUES (1), (2); UPDATE users SET nickname = 'ann' WHERE id = 'u1'", user="medianest_app"
        )
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert result["message"].startswith("The application is not locked out. "), result
    assert "table notes holds 2 rows that others wrote meanwhile, so it was not dropped" in result["message"]
    assert "1 values in column nickname" in result["message"]
    assert database.execute("SELECT count(*) FROM notes") == [(2,)]
    assert database.execute("SELECT nickname FROM users WHERE id = 'u1'") == [("ann",)]
    assert len(open_runs(database)) == 1


@pytest.mark.parametrize("locks_out", [False, True])
def test_what_a_superuser_made_meanwhile_is_not_dropped(database: Database, start: Start, locks_out: bool) -> None:
    """Nobody can lock him out, and the owner of the schema could drop what is his."""
    files = {
        "20260101000000_a": "CREATE TABLE a (id int);\n",
        "20260102000000_b": "CREATE INDEX CONCURRENTLY a_id ON a (id);\n",
        "20260103000000_c": AT_THE_GATE + "SELECT 1/0;\n",
    }
    if locks_out:
        files["20260101000000_a"] += "UPDATE users SET name = 'x';\nCOMMIT;\n"
    with at_the_gate(database, start, files) as job:
        database.execute("CREATE TABLE kept_by_hand (one) AS SELECT 1; CREATE VIEW activity AS SELECT 1 AS one")
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    first = "The application is locked out of its database. " if locks_out else "The application is not locked out. "
    assert result["message"].startswith(first), result
    assert database.execute("SELECT to_regclass('a')") == [(None,)]
    assert "table kept_by_hand belongs to postgres, so it was not dropped" in result["message"]
    assert database.execute("SELECT k.one, a.one FROM kept_by_hand k, activity a") == [(1, 1)]


ELSEWHERE = {
    "function of a trigger": (
        "CREATE OR REPLACE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';\n"
    ),
    "view": "CREATE OR REPLACE VIEW limits AS SELECT user_id, endpoint, request_count FROM other_limits;\n",
}


@pytest.mark.parametrize("rehearse", [Rehearse.NEVER, Rehearse.AUTO])
@pytest.mark.parametrize("sql", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_writes_that_a_replaced_definition_leads_elsewhere_are_kept(
    medianest: Database, tmp_path: Path, sql: str, rehearse: Rehearse
) -> None:
    medianest.execute(
        f"{PEOPLE}; SET ROLE medianest;"
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER see BEFORE INSERT ON rate_limits FOR EACH ROW EXECUTE FUNCTION see();"
        "CREATE TABLE other_limits (LIKE rate_limits INCLUDING DEFAULTS);"
        "CREATE VIEW limits AS SELECT user_id, endpoint, request_count FROM rate_limits;"
        "RESET ROLE; GRANT ALL ON limits, other_limits TO medianest_app"
    )
    application = Application(medianest, "INSERT INTO limits VALUES ('u1', 'e', %s)")
    application.start()
    try:
        files = {A: sql, B: BAD}
        result = migrate(medianest, files, RunOptions(rehearse=rehearse), folder=tmp_path)
    finally:
        application.ending.set()
        application.join(30)
    assert result.rollback is None or result.rollback.verified, result
    lost = set(application.acknowledged) - {
        row[0] for row in medianest.execute("SELECT request_count FROM rate_limits")
    }
    assert not lost, f"{len(lost)} of {len(application.acknowledged)} acknowledged writes are lost"


WRITING = {
    "operator in a check": "ALTER TABLE sessions ADD CONSTRAINT z CHECK (id ==> 1);\n",
    "cast to a domain": "ALTER TABLE sessions ADD CONSTRAINT z CHECK (id::dm IS NOT NULL);\n",
    "operator in an index": "CREATE INDEX z ON sessions ((id ==> 1));\n",
    "operator of a generated column": (
        "ALTER TABLE sessions ADD COLUMN z boolean GENERATED ALWAYS AS (id ==> 1) STORED;\n"
    ),
    "materialized view of a view": "CREATE MATERIALIZED VIEW z AS SELECT b FROM v;\n",
    "function in a check": "ALTER TABLE sessions ADD CONSTRAINT z CHECK (f() = 1);\n",
    "function in a check of a domain": (
        "CREATE DOMAIN d AS int CHECK (f() = 1);\nALTER TABLE sessions ADD COLUMN z d DEFAULT 1;\n"
    ),
    "function behind an index": (
        "CREATE FUNCTION g(text) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN public.f(); END';\n"
        "CREATE INDEX z ON sessions (g(id));\n"
    ),
    "rows moved by CREATE TABLE AS": "CREATE TABLE archived AS WITH gone AS (DELETE FROM media_requests WHERE id < 'm5'"
    " RETURNING *) SELECT * FROM gone;\n",
    "function in CREATE TABLE AS": "CREATE TABLE t AS SELECT f();\n",
    "function in a materialized view": "CREATE MATERIALIZED VIEW t AS SELECT f();\n",
    "function in a default": "ALTER TABLE sessions ADD COLUMN z int DEFAULT f();\n",
}


@pytest.mark.parametrize("options", [NEVER, RunOptions(rehearsal_limit=1)], ids=["not rehearsed", "definitions"])
@pytest.mark.parametrize("sql", WRITING.values(), ids=WRITING.keys())
def test_definitions_that_write_rows_are_taken_back_with_the_rows(
    medianest: Database, tmp_path: Path, sql: str, options: RunOptions
) -> None:
    medianest.execute(
        f"{PEOPLE}; INSERT INTO sessions SELECT 's' || n, 't' || n, 'u1', now() FROM generate_series(1, 3) n;"
        "SET ROLE medianest; CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS"
        " $$ BEGIN UPDATE public.media_requests SET title = 'changed'; RETURN 1; END $$;"
        "CREATE FUNCTION o(text, int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS"
        " $$ BEGIN RETURN public.f() = $2; END $$;"
        "CREATE OPERATOR ==> (LEFTARG = text, RIGHTARG = int, FUNCTION = o);"
        "CREATE DOMAIN dm AS text CHECK (VALUE ==> 1); CREATE VIEW v AS SELECT f() AS b"
    )
    result, left = migrate_and_look(medianest, {A: sql, B: BAD}, options, tmp_path)
    assert not left, result
    assert result.rollback is not None, result
    assert result.rollback.verified, result
    assert "by the application alone" not in result.message


@pytest.mark.parametrize(
    "down",
    [
        "UPDATE users SET name = 'down'",
        "TRUNCATE media_requests",
        "WITH gone AS (DELETE FROM media_requests RETURNING *) SELECT * FROM gone",
        "PREPARE p AS DELETE FROM media_requests;\nEXECUTE p",
        "ALTER TABLE users DROP COLUMN image;\nALTER TABLE users ADD COLUMN image text",
        "DROP TABLE media_requests CASCADE",
    ],
    ids=["update", "truncate", "query that deletes", "prepared statement", "column made anew", "table dropped"],
)
def test_down_script_with_data_locks_writers_out(medianest: Database, tmp_path: Path, down: str) -> None:
    medianest.execute(PEOPLE)
    files = {
        A: "CREATE TABLE a (id text);\n",
        "20260101000000_a.down.sql": f"{down};\nDROP TABLE a;\n",
        B: BAD,
        "20260102000000_b.down.sql": "DROP INDEX CONCURRENTLY bad_uq;\n",
    }
    result, left = migrate_and_look(medianest, files, NEVER, tmp_path)
    assert not left, result
    assert result.rollback is not None, result
    assert (result.rollback.strategy, result.rollback.verified) == ("Restore", True), result


UNSURE = {
    "constraint over an index": "ALTER TABLE users ADD CONSTRAINT c UNIQUE USING INDEX users_uq;\n",
    "view with one column more": "CREATE OR REPLACE VIEW people AS SELECT id, email FROM users;\n",
    "trigger replaced": "CREATE OR REPLACE TRIGGER t BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION n();\n",
    "index on a partitioned table": "CREATE INDEX events_at ON events (at);\n",
    "comment on a constraint": "COMMENT ON CONSTRAINT users_pkey ON users IS 'the key';\n",
    "index on a table with a dot": 'CREATE INDEX dotted ON "c.d" (id);\n',
}


@pytest.mark.parametrize("sql", UNSURE.values(), ids=UNSURE.keys())
def test_without_a_rehearsal_the_backup_is_there_where_the_inverse_does_not_lead_back(
    medianest: Database, tmp_path: Path, sql: str
) -> None:
    medianest.execute(
        f"{PEOPLE}; SET ROLE medianest; {EVENTS} CREATE UNIQUE INDEX users_uq ON users (email);"
        'CREATE VIEW people AS SELECT id FROM users; CREATE TABLE "c.d" (id int);'
        "CREATE FUNCTION n() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER t BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION n()"
    )
    result, left = migrate_and_look(medianest, {A: sql, B: BAD}, NEVER, tmp_path)
    assert not left, result
    assert result.rollback is not None, result
    assert (result.reason, result.rollback.verified) == ("MigrationFailed", True), result


def test_a_function_with_a_named_argument_goes_by_its_inverse(medianest: Database, tmp_path: Path) -> None:
    """Its rights are listed by the types of its arguments alone, the function with their names."""
    medianest.execute(PEOPLE)
    medianest.execute("ALTER DEFAULT PRIVILEGES FOR ROLE medianest GRANT EXECUTE ON FUNCTIONS TO medianest_app")
    files = {A: "CREATE FUNCTION twice(i int, t text) RETURNS int LANGUAGE sql AS 'SELECT 2 * i';\n", B: BAD}
    result, left = migrate_and_look(medianest, files, NEVER, tmp_path)
    assert not left, result
    assert result.rollback is not None, result
    assert (result.rollback.strategy, result.rollback.verified) == ("Inverse", True), result
