"""Bad migrations, one a row: what each does, and what must be told of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions

NAME = "20260101120000_next"
DESTRUCTIVE = RunOptions(rehearse=Rehearse.NEVER, allow_destructive=True)

# Several have parts that can't be dropped by themselves: a sequence, constructors, row types, partition keys.
EVERY_KIND = """
CREATE TABLE numbered (id int GENERATED ALWAYS AS IDENTITY, old serial);
CREATE TYPE span AS RANGE (subtype = int4);
CREATE TYPE mood AS ENUM ('fine');
CREATE TYPE pair AS (a int, b mood);
CREATE DOMAIN small AS int CHECK (VALUE < 10);
CREATE TABLE parts (n int, s small, p pair, r span) PARTITION BY RANGE (n);
CREATE TABLE part PARTITION OF parts FOR VALUES FROM (1) TO (9);
CREATE VIEW seen AS SELECT * FROM parts;
CREATE MATERIALIZED VIEW kept AS SELECT * FROM seen;
CREATE SEQUENCE counter;
CREATE FUNCTION of_part(part) RETURNS int LANGUAGE sql RETURN 1;
CREATE PROCEDURE work() LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE total(int) (sfunc = pg_catalog.int4pl, stype = int);
CREATE SCHEMA beside CREATE TABLE there (id int);
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO medianest_readonly
"""


@dataclass(frozen=True)
class Bad:
    """A file, and what is told of it: where, the server's words, and what the sentence for people says first."""

    sql: str
    statement: int | None
    line: int | None
    sqlstate: str | None
    message: str
    reason: str = "MigrationFailed"
    options: RunOptions = field(default_factory=lambda: RunOptions(rehearse=Rehearse.NEVER))
    by: str = "Transaction"
    """How it is rolled back; empty where it is refused before anything runs."""
    before: str = ""
    """SQL that is run first, as the owner."""


BAD = {
    "syntax error late in the file": Bad(
        "ALTER TABLE users ADD COLUMN nickname text;\n\nCREATE TABLE notes (id text);\nCREAT INDEX x ON notes (id);\n",
        *(3, 4, None),
        f'Statement 3 (line 4) of {NAME}: syntax error at or near "CREAT".',
        reason="StatementRefused",
        by="",
    ),
    "unterminated string": Bad(
        "SELECT 1;\nSELECT 'open;\n",
        *(2, 2, None),
        f'Statement 2 (line 2) of {NAME}: unterminated quoted string at or near "\'open;\n".',
        reason="StatementRefused",
        by="",
    ),
    "psql command": Bad(
        "CREATE TABLE notes (id text);\n\\connect other\n",
        *(2, 2, None),
        "",
        reason="StatementRefused",
        by="",
    ),
    "unknown column, found when it is analysed": Bad(
        "CREATE TABLE notes (id text);\nCREATE INDEX notes_id\n  ON notes (id);\nUPDATE users\n   SET nick = 'x';\n",
        *(3, 5, "42703"),
        f'Statement 3 (line 5) of {NAME}: column "nick" of relation "users" does not exist.',
    ),
    "unique index over duplicates": Bad(
        "-- One request a title.\nALTER TABLE media_requests ADD COLUMN note text;\n\n"
        "/* the rule */\nCREATE UNIQUE INDEX media_requests_title_key\n  ON media_requests (title);\n",
        *(2, 5, "23505"),
        f'Statement 2 (line 5) of {NAME}: could not create unique index "media_requests_title_key":'
        " Key (title)=(Dune) is duplicated.",
    ),
    "check that rows break": Bad(
        "ALTER TABLE users ADD COLUMN age integer;\nALTER TABLE users ADD CONSTRAINT x CHECK (email LIKE 'a%');",
        *(2, 2, "23514"),
        f'Statement 2 (line 2) of {NAME}: check constraint "x" of relation "users" is violated by some row.',
    ),
    "NOT NULL without a default": Bad(
        "ALTER TABLE users ADD COLUMN age integer NOT NULL;",
        *(1, 1, "23502"),
        f'Statement 1 (line 1) of {NAME}: column "age" of relation "users" contains null values.',
    ),
    "DO block raises": Bad(
        "CREATE TABLE notes (id text);\nDO $$\nBEGIN\n  UPDATE users SET name = 'gone';\n"
        "  RAISE EXCEPTION 'too many; stop' USING HINT = 'Ask Ann';\nEND $$;\n",
        *(2, 2, "P0001"),
        f"Statement 2 (line 2) of {NAME}: too many; stop. Hint: Ask Ann.",
    ),
    "all rows changed, then a failure": Bad(
        "UPDATE users SET status = 'banned';\nDELETE FROM media_requests;\nTRUNCATE rate_limits;\nSELECT 1/0;\n",
        *(4, 4, "22012"),
        f"Statement 4 (line 4) of {NAME}: division by zero.",
        options=DESTRUCTIVE,
    ),
    "table dropped, then a failure": Bad(
        "DROP TABLE media_requests;\nDROP TABLE users;\n",
        *(2, 2, "2BP01"),
        f"Statement 2 (line 2) of {NAME}: cannot drop table users because other objects depend on it:",
        options=DESTRUCTIVE,
    ),
    "enum value used where it was added": Bad(
        "CREATE TYPE mood AS ENUM ('ok');\nALTER TYPE mood ADD VALUE 'bad';\nSELECT 'worse'::mood;\n",
        *(3, 3, "22P02"),
        f'Statement 3 (line 3) of {NAME}: invalid input value for enum mood: "worse".',
    ),
    "deferred constraint at the commit": Bad(
        "ALTER TABLE sessions DROP CONSTRAINT sessions_user_id_fkey,\n"
        "  ADD FOREIGN KEY (user_id) REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED;\n"
        "INSERT INTO sessions VALUES ('s', 't', 'nobody', now());\n",
        *(None, None, "23503"),
        f'Commit of {NAME}: insert or update on table "sessions" violates foreign key constraint'
        ' "sessions_user_id_fkey": Key (user_id)=(nobody) is not present in table "users".',
    ),
    "concurrently beside other statements": Bad(
        "CREATE TABLE notes (id text);\nCREATE INDEX CONCURRENTLY users_name_idx ON users (name);\n",
        *(2, 2, "25001"),
        f"Statement 2 (line 2) of {NAME}: CREATE INDEX CONCURRENTLY cannot run inside a transaction block. The server"
        " runs a file of several statements as one transaction, so this statement needs a migration of its own with"
        " nothing else in it.",
    ),
    "vacuum beside other statements": Bad(
        "DELETE FROM users WHERE id = 'u9';\nVACUUM users;\n",
        *(2, 2, "25001"),
        f"Statement 2 (line 2) of {NAME}: VACUUM cannot run inside a transaction block. The server",
    ),
    "data that COPY waits for": Bad(
        "CREATE TABLE notes (id text);\nCOPY notes FROM STDIN;\nSELECT 1;\n",
        *(2, 2, None),
        f"Statement 2 (line 2) of {NAME}",
        reason="StatementRefused",
        by="",
    ),
    "outside the migrator's rights": Bad(
        "CREATE TABLE notes (id text);\nCREATE ROLE intruder;\n",
        *(2, 2, None),
        f"Statement 2 (line 2) of {NAME}",
        reason="StatementRefused",
        by="",
    ),
    "server program": Bad(
        "CREATE TABLE notes (line text);\nCOPY notes FROM PROGRAM 'id';\n",
        *(2, 2, None),
        f"Statement 2 (line 2) of {NAME}",
        reason="StatementRefused",
        by="",
    ),
    "statement timeout": Bad(
        "UPDATE users SET name = 'slow';\nSELECT pg_sleep(30);\n",
        *(2, 2, "57014"),
        f"Statement 2 (line 2) of {NAME}: canceling statement due to statement timeout.",
        reason="StatementTimeout",
        options=RunOptions(statement_timeout=100, rehearse=Rehearse.NEVER),
    ),
    "DO block with a COMMIT among others": Bad(
        "CREATE TABLE notes (id text);\nDO $$ BEGIN CREATE TABLE more (id text); COMMIT; END $$;\n",
        *(2, 2, "2D000"),
        f"Statement 2 (line 2) of {NAME}: invalid transaction termination.",
    ),
    "own transaction that fails inside": Bad(
        "BEGIN;\nCREATE TABLE notes (id text);\nSELECT 1/0;\nCOMMIT;\n",
        *(3, 3, "22012"),
        f"Statement 3 (line 3) of {NAME}: division by zero.",
    ),
    "own transaction that is never committed": Bad(
        "BEGIN;\nCREATE TABLE notes (id text);\n",
        *(None, None, None),
        f"{NAME}: the file begins a transaction and never commits it.",
        reason="TransactionLeftOpen",
    ),
    "syntax error in a file that commits": Bad(
        "CREATE TABLE notes (id text);\nCOMMIT;\nCREAT TABLE more ();\n",
        *(3, 3, None),
        f'Statement 3 (line 3) of {NAME}: syntax error at or near "CREAT".',
        reason="StatementRefused",
        by="",
    ),
    "concurrently on a table that isn't there": Bad(
        "CREATE INDEX CONCURRENTLY notes_idx ON notes (id);\n",
        *(1, 1, "42P01"),
        f'Statement 1 (line 1) of {NAME}: relation "notes" does not exist.',
    ),
    "windows line ends": Bad(
        "CREATE TABLE notes (id text);\r\n\r\nSELECT 1/0;\r\n",
        *(2, 3, "22012"),
        f"Statement 2 (line 3) of {NAME}: division by zero.",
    ),
    "byte order mark before the failure": Bad(
        "\ufeffSELECT 1/0;\n",
        *(1, 1, "22012"),
        f"Statement 1 (line 1) of {NAME}: division by zero.",
    ),
    "letters beyond ASCII before the failure": Bad(
        "SELECT 'Amélie – 東京';\nSELECT nope;\n",
        *(2, 2, "42703"),
        f'Statement 2 (line 2) of {NAME}: column "nope" does not exist.',
    ),
    "search path and role changed before the failure": Bad(
        "SET search_path = '';\nSET ROLE medianest_migrator;\nSELECT 1/0;\n",
        *(3, 3, "22012"),
        f"Statement 3 (line 3) of {NAME}: division by zero.",
    ),
    "unique index built concurrently over duplicates": Bad(
        "CREATE UNIQUE INDEX CONCURRENTLY titles ON media_requests (title);\n",
        *(1, 1, "23505"),
        f'Statement 1 (line 1) of {NAME}: could not create unique index "titles": Key (title)=(Dune) is duplicated.',
        by="Inverse",
    ),
    "index that an interrupted build left, taken for the one that is wanted": Bad(
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS titles ON media_requests (title);\n",
        *(None, None, None),
        "Index titles on media_requests is INVALID: an interrupted or failed CREATE INDEX CONCURRENTLY left it,",
        reason="InvalidIndex",
        before="UPDATE pg_index SET indisvalid = false WHERE indexrelid = (SELECT 'titles'::regclass)",
    ),
    "commit inside the file": Bad(
        "UPDATE users SET name = 'gone';\nCREATE TABLE notes (id text);\nCOMMIT;\nSELECT 1/0;\n",
        *(4, 4, "22012"),
        f"Statement 4 (line 4) of {NAME}: division by zero.",
        by="Restore",
    ),
    "commit inside the file, in a schema with every kind of object": Bad(
        "UPDATE users SET name = 'gone';\nCREATE TABLE notes (id text);\nCOMMIT;\nSELECT 1/0;\n",
        *(4, 4, "22012"),
        f"Statement 4 (line 4) of {NAME}: division by zero.",
        by="Restore",
        before=EVERY_KIND,
    ),
    "rollback inside the file": Bad(
        "CREATE TABLE notes (id text);\nROLLBACK;\nCREATE TABLE more (id text);\nSELECT 1/0;\n",
        *(4, 4, "22012"),
        f"Statement 4 (line 4) of {NAME}: division by zero.",
    ),
    "block that commits and then raises": Bad(
        "DO $$ BEGIN DELETE FROM media_requests; CREATE TABLE kept (id text); COMMIT; RAISE EXCEPTION 'late'; END $$",
        *(1, 1, "P0001"),
        f"Statement 1 (line 1) of {NAME}: late.",
        options=DESTRUCTIVE,
        by="Restore",
    ),
    "column dropped with its data": Bad(
        "ALTER TABLE users DROP COLUMN email;\n",
        *(1, 1, None),
        "",
        reason="DestructiveStatement",
        by="",
    ),
    "column dropped with its data, allowed, then a failure": Bad(
        "ALTER TABLE users DROP COLUMN email;\nSELECT 1/0;\n",
        *(2, 2, "22012"),
        f"Statement 2 (line 2) of {NAME}: division by zero.",
        options=DESTRUCTIVE,
    ),
    "column dropped by SQL that nobody can read beforehand": Bad(
        "DO $$ BEGIN EXECUTE 'ALTER TABLE users DROP ' || 'COLUMN email'; PERFORM 1; END $$;\nSELECT 1;\n",
        *(None, None, None),
        "The run drops column email of users with the data in it. Set spec.migrations.allowDestructive to true if that",
        reason="DestructiveStatement",
    ),
    "table dropped and made again under its name": Bad(
        "DO $$ BEGIN EXECUTE 'DROP TABLE rate_' || 'limits'; END $$;\n"
        "CREATE TABLE rate_limits (id text PRIMARY KEY);\n",
        *(None, None, None),
        "The run drops table rate_limits with the data in it.",
        reason="DestructiveStatement",
    ),
    "truncate": Bad("TRUNCATE media_requests;\n", *(1, 1, None), "", reason="DestructiveStatement", by=""),
    "functions, views and triggers, then a failure": Bad(
        "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';\n"
        "CREATE VIEW people AS SELECT id, email FROM users;\n"
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$;\n"
        "CREATE TRIGGER touched BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch();\n"
        "UPDATE users SET name = 'x';\nSELECT one() / 0;\n",
        *(6, 6, "22012"),
        f"Statement 6 (line 6) of {NAME}: division by zero.",
    ),
    "policies and grants, then a failure": Bad(
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY;\nCREATE POLICY own ON users USING (true);\n"
        "REVOKE ALL ON users FROM medianest_app;\nGRANT SELECT ON users TO stranger;\nSELECT 1/0;\n",
        *(5, 5, "22012"),
        f"Statement 5 (line 5) of {NAME}: division by zero.",
    ),
    "extension and sequence, then a failure": Bad(
        "CREATE EXTENSION citext;\nCREATE SEQUENCE numbers;\nSELECT nextval('numbers');\nSELECT 1/0;\n",
        *(4, 4, "22012"),
        f"Statement 4 (line 4) of {NAME}: division by zero.",
    ),
    "sequence set back, which no rollback reverts": Bad(
        "SELECT setval('counter', 3);\nSELECT 1/0;\n",
        *(2, 2, "22012"),
        f"Statement 2 (line 2) of {NAME}: division by zero.",
        before="CREATE SEQUENCE counter; SELECT setval('counter', 500)",
    ),
    "enum value added, then a failure": Bad(
        "ALTER TYPE mood ADD VALUE 'bad';\nSELECT 1/0;\n",
        *(2, 2, "22012"),
        f"Statement 2 (line 2) of {NAME}: division by zero.",
        before="CREATE TYPE mood AS ENUM ('ok')",
    ),
    "enum value used in the file that adds it": Bad(
        "ALTER TYPE mood ADD VALUE 'bad';\nSELECT 'bad'::mood;\n",
        *(2, 2, "55P04"),
        f'Statement 2 (line 2) of {NAME}: unsafe use of new value "bad" of enum type mood.',
        before="CREATE TYPE mood AS ENUM ('ok')",
    ),
    "column that needs a rewrite fails on the data": Bad(
        "ALTER TABLE users ALTER COLUMN email TYPE integer USING email::integer;\n",
        *(1, 1, "22P02"),
        f'Statement 1 (line 1) of {NAME}: invalid input syntax for type integer: "',
        options=DESTRUCTIVE,
    ),
    "lock that is never granted": Bad(
        "CREATE TABLE notes (id text);\nALTER TABLE users ADD COLUMN nickname text;\n",
        *(2, 2, "55P03"),
        f"Statement 2 (line 2) of {NAME}: canceling statement due to lock timeout. It waited for pid ",
        reason="LockTimeout",
        options=RunOptions(rehearse=Rehearse.NEVER, lock_timeout=1500, lock_attempts=1),
        before="LOCK",
    ),
    "ten megabytes, the last statement wrong": Bad(
        ("SELECT '" + "z" * 990 + "';\n") * 10_000 + "SELECT nope;\n",
        *(10_001, 10_001, "42703"),
        f'Statement 10001 (line 10001) of {NAME}: column "nope" does not exist.',
    ),
    "system settings": Bad("ALTER SYSTEM SET work_mem = '1GB';\n", *(1, 1, None), "", reason="StatementRefused", by=""),
    "the run's own journal": Bad(
        "DELETE FROM medianest_operator.migration_runs WHERE true;\n",
        *(1, 1, None),
        "",
        reason="StatementRefused",
        by="",
    ),
}
