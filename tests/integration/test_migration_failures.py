"""Bad migrations: what they leave (nothing, where a rollback can see to it), and what they tell."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from integration.conftest import migrate
from integration.postgres_server import Database
from medianest_operator.migrations.options import RunOptions
from medianest_operator.migrations.source import Migration, migrations_from_mapping
from medianest_operator.postgres.catalog import read_catalog
from medianest_operator.schema import bundled_migrations

NAME = "20260101120000_next"
UNDONE = " It was undone: catalog and row counts equal those before (proved). Fix the migration or the data, then change the source or set a new spec.migrations.retry."
PEOPLE = """
INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org'), ('u2', 'bob@example.org');
INSERT INTO media_requests (id, user_id, title, media_type)
VALUES ('m1', 'u1', 'Dune', 'movie'), ('m2', 'u2', 'Dune', 'movie'), ('m3', 'u2', 'Alien', 'movie');
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
    options: RunOptions = field(default_factory=RunOptions)


BAD = {
    "syntax error late in the file": Bad(
        "ALTER TABLE users ADD COLUMN nickname text;\n\nCREATE TABLE notes (id text);\nCREAT INDEX x ON notes (id);\n",
        *(3, 4, "42601"),
        f'Statement 3 (line 4) of {NAME}: syntax error at or near "CREAT".',
    ),
    "unterminated string": Bad(
        "SELECT 1;\nSELECT 'open;\n",
        *(2, 2, "42601"),
        f'Statement 2 (line 2) of {NAME}: unterminated quoted string at or near "\'open;\n".',
    ),
    "psql command": Bad(
        "CREATE TABLE notes (id text);\n\\connect other\n",
        *(2, 2, "42601"),
        f'Statement 2 (line 2) of {NAME}: syntax error at or near "\\".',
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
    ),
    "table dropped, then a failure": Bad(
        "DROP TABLE media_requests;\nDROP TABLE users;\n",
        *(2, 2, "2BP01"),
        f"Statement 2 (line 2) of {NAME}: cannot drop table users because other objects depend on it:",
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
        *(2, 2, "57014"),
        f"Statement 2 (line 2) of {NAME}: COPY from stdin failed: a migration file can't carry data for"
        " COPY FROM STDIN.",
    ),
    "outside the migrator's rights": Bad(
        "CREATE TABLE notes (id text);\nCREATE ROLE intruder;\n",
        *(2, 2, "42501"),
        f"Statement 2 (line 2) of {NAME}: permission denied to create role.",
    ),
    "server program": Bad(
        "CREATE TABLE notes (line text);\nCOPY notes FROM PROGRAM 'id';\n",
        *(2, 2, "42501"),
        f"Statement 2 (line 2) of {NAME}: must be superuser or have privileges of the pg_execute_server_program role"
        " to COPY to or from an external program. Hint: Anyone can COPY to stdout or from stdin.",
    ),
    "statement timeout": Bad(
        "UPDATE users SET name = 'slow';\nSELECT pg_sleep(30);\n",
        *(2, 2, "57014"),
        f"Statement 2 (line 2) of {NAME}: canceling statement due to statement timeout.",
        reason="StatementTimeout",
        options=RunOptions(statement_timeout=100),
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
        *(3, 3, "42601"),
        f'Statement 3 (line 3) of {NAME}: syntax error at or near "CREAT".',
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
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_file_leaves_nothing_and_says_why(medianest: Database, bad: Bad) -> None:
    medianest.execute(PEOPLE)
    before = state(medianest)

    result = migrate(medianest, plus(bad.sql), bad.options)

    assert (result.outcome, result.reason) == ("Failed", bad.reason), result
    assert result.message.startswith(bad.message), result.message
    assert result.message.endswith(UNDONE)
    assert result.failed is not None
    assert (result.failed.migration, result.failed.statement, result.failed.line, result.failed.sqlstate) == (
        *(NAME, bad.statement, bad.line, bad.sqlstate),
    )
    assert (result.version, result.pending) == ("20250905150611_add_password_hash_to_users", (NAME,))
    assert len(result.to_json().encode()) <= 4096
    assert state(medianest) == before
    [(finished, rolled_back, steps, logs)] = rows_of(medianest, NAME)
    assert (finished, rolled_back, steps) == (None, True, 0)
    assert f"Migration name: {NAME}\n" in logs
    assert result.failed.message in logs

    # A corrected source recovers by itself.
    fixed = migrate(medianest, plus("ALTER TABLE users ADD COLUMN nickname text;"))
    assert (fixed.outcome, fixed.version) == ("Applied", NAME), fixed
    assert [row[:3] for row in rows_of(medianest, NAME)] == [(None, True, 0), (True, False, 1)]


def test_earlier_migrations_of_the_run_stay(medianest: Database) -> None:
    source = {
        "20260101000000_a.sql": "CREATE TABLE a (id text);",
        "20260102000000_b.sql": "CREATE TABLE b (id text); SELECT 1/0;",
        "20260103000000_c.sql": "CREATE TABLE c (id text);",
    }
    result = migrate(medianest, (*bundled_migrations(), *migrations_from_mapping(source)))
    assert result.reason == "MigrationFailed"
    assert "Applied before it and kept: 20260101000000_a." in result.message
    assert result.version == "20260101000000_a"
    assert [item.name for item in result.applied] == ["20260101000000_a"]
    assert result.pending == ("20260102000000_b", "20260103000000_c")
    assert tables(medianest) >= {"a"}
    assert not tables(medianest) & {"b", "c"}


def test_commit_inside_the_file_may_leave_its_first_half(medianest: Database) -> None:
    result = migrate(
        medianest, plus("CREATE TABLE kept (id text);\nCOMMIT;\nCREATE TABLE lost (id text);\nSELECT 1/0;")
    )
    assert (result.outcome, result.reason) == ("Failed", "PartiallyApplied")
    assert result.message == (
        f"Statement 4 (line 4) of {NAME}: division by zero. The file commits by itself, so what it did before the"
        " failure may have stayed in the database (3 of 4 statements went through). Remove or complete that, then"
        f" record it with `prisma migrate resolve --rolled-back {NAME}` or `--applied {NAME}`."
    )
    assert tables(medianest) >= {"kept"}
    assert "lost" not in tables(medianest)
    assert [row[:3] for row in rows_of(medianest, NAME)] == [(None, False, 0)]

    # Until somebody resolves it, nothing else runs.
    again = migrate(medianest, plus("SELECT 1;"))
    assert (again.outcome, again.reason) == ("Failed", "UnresolvedFailure")
    assert f"an earlier run of {NAME} " in again.message[0].lower() + again.message[1:]
    assert "division by zero" in again.message
    medianest.execute("DROP TABLE kept; UPDATE _prisma_migrations SET rolled_back_at = now() WHERE finished_at IS NULL")
    assert migrate(medianest, plus("SELECT 1;")).outcome == "Applied"


def test_lone_block_that_commits_may_leave_its_first_half(medianest: Database) -> None:
    block = "DO $$ BEGIN CREATE TABLE kept (id text); COMMIT; RAISE EXCEPTION 'late'; END $$"
    result = migrate(medianest, plus(block))
    assert result.reason == "PartiallyApplied"
    assert "kept" in tables(medianest)


def test_invalid_index_is_named(medianest: Database) -> None:
    medianest.execute(PEOPLE)
    result = migrate(medianest, plus("CREATE UNIQUE INDEX CONCURRENTLY titles ON media_requests (title)"))
    assert (result.outcome, result.reason) == ("Failed", "PartiallyApplied")
    assert result.message.startswith(
        f'Statement 1 (line 1) of {NAME}: could not create unique index "titles": Key (title)=(Dune) is duplicated.'
        " It could not run in a transaction and left: table media_requests: index titles is not expected."
    )
    assert [row[:3] for row in rows_of(medianest, NAME)] == [(None, False, 0)]


def test_lock_timeout_is_worth_another_try(medianest: Database) -> None:
    before = state(medianest)
    with medianest.connect() as blocker, blocker.transaction():
        blocker.execute("LOCK TABLE users IN ACCESS SHARE MODE")
        sql = "CREATE TABLE notes (id text);\nALTER TABLE users ADD COLUMN nickname text;"
        result = migrate(medianest, plus(sql), RunOptions(lock_timeout=100))
    assert (result.outcome, result.reason) == ("Transient", "LockTimeout")
    assert result.message == (
        f"Statement 2 (line 2) of {NAME}: canceling statement due to lock timeout. It was undone: nothing of it is left"
        " in the database. Trying again."
    )
    assert state(medianest) == before
    assert rows_of(medianest, NAME) == []
    assert migrate(medianest, plus(sql)).outcome == "Applied"


def test_deadlock_is_worth_another_try(medianest: Database) -> None:
    # A trigger stands in for the other side: which side a real deadlock ends is the server's choice.
    result = migrate(medianest, plus("DO $$ BEGIN RAISE SQLSTATE '40P01' USING MESSAGE = 'deadlock detected'; END $$"))
    assert (result.outcome, result.reason) == ("Transient", "Conflict")


def plus(sql: str) -> tuple[Migration, ...]:
    """The bundled migrations and one more."""
    return (*bundled_migrations(), Migration.from_bytes(NAME, sql.encode("utf-8")))


def state(database: Database) -> tuple[str, list[tuple[object, ...]]]:
    """What must be as before: the whole catalog, and every table's content but for the history's."""
    with database.connect() as connection:
        fingerprint = read_catalog(connection).fingerprint()
    contents = [
        (table, *database.execute(f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t")[0])
        for table in sorted(tables(database) - {"_prisma_migrations"})
    ]
    return fingerprint, contents


def tables(database: Database) -> set[str]:
    return {row[0] for row in database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def rows_of(database: Database, name: str) -> list[tuple[bool | None, bool, int, str]]:
    return database.execute(
        "SELECT CASE WHEN finished_at IS NOT NULL THEN true END, rolled_back_at IS NOT NULL, applied_steps_count, logs"
        f" FROM _prisma_migrations WHERE migration_name = '{name}' ORDER BY started_at"
    )
