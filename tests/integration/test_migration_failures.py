"""Bad migrations: what they leave (nothing, where a rollback can see to it), and what they tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from integration.conftest import migrate
from integration.postgres_server import Database
from medianest_operator.migrations.evidence import application_catalog
from medianest_operator.migrations.options import OnFailure, Rehearse, RunOptions
from medianest_operator.migrations.reasons import Reason
from medianest_operator.migrations.source import Migration, migrations_from_mapping
from medianest_operator.postgres.catalog import read_catalog
from medianest_operator.schema import bundled_migrations

NAME = "20260101120000_next"
ADVICE = "Fix the migration or the data, then change the source or set a new spec.migrations.retry."
PEOPLE = """
INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org'), ('u2', 'bob@example.org');
INSERT INTO media_requests (id, user_id, title, media_type)
VALUES ('m1', 'u1', 'Dune', 'movie'), ('m2', 'u2', 'Dune', 'movie'), ('m3', 'u2', 'Alien', 'movie');
"""


DESTRUCTIVE = RunOptions(rehearse=Rehearse.NEVER, allow_destructive=True)


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
    """How it is undone; empty where it is refused before anything runs."""
    before: str = ""
    """SQL that is run first, as the owner."""


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
    "sequence set back, which no rollback undoes": Bad(
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


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_file_leaves_nothing_and_says_why(medianest: Database, bad: Bad, tmp_path: Path) -> None:
    medianest.execute(PEOPLE)
    with prepared(medianest, bad.before):
        before = state(medianest)

        result = migrate(medianest, plus(bad.sql), bad.options, folder=tmp_path)

        assert state(medianest) == before
    assert (result.outcome, result.reason) == (reason_outcome(bad.reason), bad.reason), result
    assert result.message.startswith(bad.message), result.message
    assert result.message.endswith(ADVICE if result.outcome == "Failed" and bad.by else result.message[-1:])
    assert (result.version, result.pending) == ("20250905150611_add_password_hash_to_users", (NAME,))
    assert len(result.to_json().encode()) <= 4096
    if result.failed is not None:
        assert (result.failed.migration, result.failed.statement, result.failed.line, result.failed.sqlstate) == (
            *(NAME, bad.statement, bad.line, bad.sqlstate),
        )
    else:
        assert bad.statement is None
    if bad.by:
        assert result.rollback is not None
        assert (result.rollback.strategy, result.rollback.proved) == (bad.by, True)
        assert " those before (proved)" in result.message
    else:
        assert result.rollback is None
        assert result.message.endswith("Nothing was changed.")
    if bad.by and result.failed is not None and result.outcome == "Failed":
        [(finished, rolled_back, steps, logs)] = rows_of(medianest, NAME)
        assert (finished, rolled_back, steps) == (None, True, 0)
        assert f"Migration name: {NAME}\n" in logs
        assert result.failed.message in logs

    # A corrected source recovers by itself.
    fixed = migrate(medianest, plus("ALTER TABLE users ADD COLUMN nickname text;"), folder=tmp_path)
    assert (fixed.outcome, fixed.version) == ("Applied", NAME), fixed
    assert rows_of(medianest, NAME)[-1][:3] == (True, False, 1)


@contextmanager
def prepared(database: Database, sql: str) -> Iterator[None]:
    """What a bad migration finds: made as the owner, or a session that holds a lock."""
    if sql == "LOCK":
        with database.connect() as blocker, blocker.transaction():
            blocker.execute("LOCK TABLE users IN ACCESS SHARE MODE")
            yield
        return
    if "titles" in sql:
        database.execute("SET ROLE medianest; CREATE INDEX titles ON media_requests (title); RESET ROLE; " + sql)
    elif sql:
        database.execute(f"SET ROLE medianest; {sql}")
    yield


def reason_outcome(reason: str) -> str:
    return str(Reason(reason).outcome)


FOUR = {
    "20260101000000_a.sql": "CREATE TABLE a (id text); UPDATE users SET name = 'a';",
    "20260102000000_b.sql": "CREATE TABLE b (id text);",
    "20260103000000_c.sql": "CREATE TABLE c (id text); SELECT 1/0;",
    "20260104000000_d.sql": "CREATE TABLE d (id text);",
}
MIDDLE = {
    "20260101000000_a.sql": "CREATE TABLE a (id text); ALTER TABLE users ADD COLUMN nickname text NOT NULL DEFAULT '';",
    "20260102000000_b.sql": "CREATE INDEX CONCURRENTLY users_nickname ON users (nickname);",
    "20260103000000_c.sql": "ALTER TABLE users ADD CONSTRAINT c CHECK (nickname <> '');",
}
DOWN = {
    **MIDDLE,
    "20260101000000_a.down.sql": "ALTER TABLE users DROP COLUMN nickname; DROP TABLE a;",
    "20260102000000_b.down.sql": "DROP INDEX CONCURRENTLY users_nickname;",
}
WRONG_DOWN = {**DOWN, "20260101000000_a.down.sql": "DROP TABLE a;"}
ENUM = {
    "20260101000000_a.sql": "CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE moods (mood mood); "
    "UPDATE users SET name = 'a';",
    "20260102000000_b.sql": "ALTER TYPE mood ADD VALUE 'bad';",
    "20260103000000_c.sql": "INSERT INTO moods VALUES ('bad'); SELECT 1/0;",
}
DROPPED = {
    "20260101000000_a.sql": "DROP INDEX CONCURRENTLY users_role_idx;",
    "20260102000000_b.sql": "SELECT 1/0;",
}
VACUUM = {"20260101000000_a.sql": "VACUUM ANALYZE users;", "20260102000000_b.sql": "SELECT 1/0;"}


@pytest.mark.parametrize("rehearse", [Rehearse.NEVER, Rehearse.ALWAYS])
@pytest.mark.parametrize(
    ("files", "failing", "by"),
    [
        pytest.param(FOUR, "20260103000000_c", "Transaction", id="third of four"),
        pytest.param(MIDDLE, "20260103000000_c", "Inverse", id="concurrently in the middle"),
        pytest.param(DOWN, "20260103000000_c", "Down", id="down scripts"),
        pytest.param(WRONG_DOWN, "20260103000000_c", "Inverse", id="a down script that forgets"),
        pytest.param(ENUM, "20260103000000_c", "Restore", id="enum value in a file of its own"),
        pytest.param(DROPPED, "20260102000000_b", "Inverse", id="index dropped"),
        pytest.param(VACUUM, "20260102000000_b", "Transaction", id="vacuum"),
    ],
)
def test_run_goes_back_to_its_start(
    medianest: Database, files: dict[str, str], failing: str, by: str, rehearse: Rehearse, tmp_path: Path
) -> None:
    medianest.execute(PEOPLE)
    medianest.execute("SET ROLE medianest; CREATE INDEX users_role_idx ON users (role)")
    before = state(medianest)
    source = (*bundled_migrations(), *migrations_from_mapping(files))

    result = migrate(medianest, source, RunOptions(rehearse=rehearse), folder=tmp_path)

    assert (result.outcome, result.reason) == ("Failed", "MigrationFailed"), result.message
    assert state(medianest) == before
    assert result.failed is not None
    assert result.failed.migration == failing
    assert (result.version, result.applied) == ("20250905150611_add_password_hash_to_users", ())
    if rehearse is Rehearse.ALWAYS:
        assert result.rollback is None
        assert "That was the rehearsal on a copy; the database itself was not touched." in result.message
    else:
        assert result.rollback is not None
        assert (result.rollback.strategy, result.rollback.proved) == (by, True)
        finished = medianest.execute("SELECT migration_name FROM _prisma_migrations WHERE rolled_back_at IS NULL")
        assert len(finished) == 3
    # Nobody is held off any more.
    medianest.execute("SELECT count(*) FROM users", user="medianest_app")


@pytest.mark.parametrize(
    "files",
    [
        MIDDLE | {"20260103000000_c.sql": "SELECT 1"},
        ENUM | {"20260103000000_c.sql": "INSERT INTO moods VALUES ('bad')"},
    ],
    ids=["concurrently in the middle", "enum value in a file of its own"],
)
def test_run_in_parts_reaches_what_was_rehearsed(medianest: Database, files: dict[str, str], tmp_path: Path) -> None:
    medianest.execute(PEOPLE)
    source = (*bundled_migrations(), *migrations_from_mapping(files))
    result = migrate(medianest, source, folder=tmp_path)
    assert (result.outcome, result.version) == ("Applied", "20260103000000_c"), result
    assert result.rehearsal is not None
    assert result.rehearsal.data
    with medianest.connect() as connection:
        assert application_catalog(connection).fingerprint() == result.rehearsal.fingerprint
    medianest.execute("SELECT count(*) FROM users", user="medianest_app")


def test_way_back_that_fails_on_the_copy_is_not_taken(medianest: Database, tmp_path: Path) -> None:
    """A down script that destroys more than it should is found out before it is needed."""
    medianest.execute(PEOPLE)
    files = DOWN | {
        "20260101000000_a.down.sql": "ALTER TABLE users DROP COLUMN nickname; DROP TABLE a; DELETE FROM sessions; "
        "DELETE FROM media_requests;",
        "20260103000000_c.sql": "SELECT 1",
    }
    lines: list[str] = []
    source = (*bundled_migrations(), *migrations_from_mapping(files))
    result = migrate(medianest, source, folder=tmp_path, report=lines.append)
    assert result.outcome == "Applied", result
    assert medianest.execute("SELECT count(*) FROM media_requests") == [(3,)]
    assert any("the way back by down fails on the copy" in line for line in lines)
    assert any(line.startswith("holding writers off: the way back by down doesn't lead back") for line in lines)


def test_without_a_way_back_nothing_is_begun(medianest: Database) -> None:
    """No volume for a backup, and a file that commits by itself."""
    before = state(medianest)
    result = migrate(medianest, plus("UPDATE users SET name = 'x';\nCOMMIT;\nSELECT 1;"))
    assert (result.outcome, result.reason) == ("Failed", "RollbackImpossible")
    assert "no place for a backup was given" in result.message
    assert state(medianest) == before


class TestHalt:
    """`onFailure: Halt` leaves what Prisma's deploy leaves."""

    OPTIONS = RunOptions(on_failure=OnFailure.HALT)

    def test_earlier_migrations_stay(self, medianest: Database) -> None:
        source = (*bundled_migrations(), *migrations_from_mapping(FOUR))
        result = migrate(medianest, source, self.OPTIONS)
        assert result.reason == "MigrationFailed"
        assert "Applied before it and kept: 20260101000000_a, 20260102000000_b." in result.message
        assert result.version == "20260102000000_b"
        assert [item.name for item in result.applied] == ["20260101000000_a", "20260102000000_b"]
        assert result.pending == ("20260103000000_c", "20260104000000_d")
        assert tables(medianest) >= {"a", "b"}
        assert not tables(medianest) & {"c", "d"}

    def test_commit_inside_the_file_leaves_its_first_half(self, medianest: Database) -> None:
        sql = "CREATE TABLE kept (id text);\nCOMMIT;\nCREATE TABLE lost (id text);\nSELECT 1/0;"
        result = migrate(medianest, plus(sql), self.OPTIONS)
        assert (result.outcome, result.reason) == ("Failed", "PartiallyApplied")
        assert "(3 of 4 statements went through)" in result.message
        assert f"`prisma migrate resolve --rolled-back {NAME}` or `--applied {NAME}`" in result.message
        assert tables(medianest) >= {"kept"}
        assert [row[:3] for row in rows_of(medianest, NAME)] == [(None, False, 0)]

        # Until somebody resolves it, nothing else runs.
        again = migrate(medianest, plus("SELECT 1;"), self.OPTIONS)
        assert (again.outcome, again.reason) == ("Failed", "UnresolvedFailure")
        assert "division by zero" in again.message
        medianest.execute(
            "DROP TABLE kept; UPDATE _prisma_migrations SET rolled_back_at = now() WHERE finished_at IS NULL"
        )
        assert migrate(medianest, plus("SELECT 1;"), self.OPTIONS).outcome == "Applied"


def test_lock_is_waited_for_in_small_turns(medianest: Database) -> None:
    """Between two tries the queue behind the lock moves, and the run gets it once the blocker is gone."""
    lines: list[str] = []
    with medianest.connect() as blocker:
        blocker.execute("BEGIN")
        blocker.execute("LOCK TABLE users IN ACCESS SHARE MODE")

        def report(line: str) -> None:
            lines.append(line)
            if "Undone; trying again" in line:
                blocker.execute("COMMIT")

        sql = "CREATE TABLE notes (id text);\nALTER TABLE users ADD COLUMN nickname text;"
        result = migrate(medianest, plus(sql), RunOptions(lock_timeout=200), report=report)
    assert result.outcome == "Applied", result
    assert [line for line in lines if "Undone; trying again" in line] != []


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
