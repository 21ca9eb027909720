"""Bad migrations: what they leave (nothing, where a rollback can see to it), and what they tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.bad_migrations import BAD, NAME, Bad
from integration.conftest import migrate
from integration.postgres_server import Database
from medianest_operator.api.migrations import OnFailure, Rehearse
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.run.evidence import application_catalog
from medianest_operator.migrations.source import Migration, migrations_from_mapping
from medianest_operator.postgres.catalog import read_catalog
from medianest_operator.results.migration import Reason

ADVICE = "Fix the migration or the data, then change the source or set a new spec.migrations.retry."
TIMEOUT_ADVICE = (
    "Give it more time (spec.migrations.statementTimeout), or end what it waited for and set a new"
    " spec.migrations.retry."
)
PEOPLE = """
INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org'), ('u2', 'bob@example.org');
INSERT INTO media_requests (id, user_id, title, media_type)
VALUES ('m1', 'u1', 'Dune', 'movie'), ('m2', 'u2', 'Dune', 'movie'), ('m3', 'u2', 'Alien', 'movie');
"""


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_file_leaves_nothing_and_says_why(medianest: Database, bad: Bad, tmp_path: Path) -> None:
    medianest.execute(PEOPLE)
    with prepared(medianest, bad.before):
        before = state(medianest)

        result = migrate(medianest, plus(bad.sql), bad.options, folder=tmp_path)

        assert state(medianest) == before
    assert (result.outcome, result.reason) == (reason_outcome(bad.reason), bad.reason), result
    assert result.message.startswith(bad.message), result.message
    advice = TIMEOUT_ADVICE if bad.reason == "StatementTimeout" else ADVICE
    told = result.message.removesuffix(result.rollback.executed if result.rollback else "")
    assert told.endswith(advice if result.outcome == "Failed" and bad.by else told[-1:])
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
        assert (result.rollback.strategy, result.rollback.verified) == (bad.by, True)
        assert " those before (verified)" in result.message
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
        assert (result.rollback.strategy, result.rollback.verified) == (by, True)
        finished = medianest.execute("SELECT migration_name FROM _prisma_migrations WHERE rolled_back_at IS NULL")
        assert len(finished) == 3
    # Nobody is locked out any more.
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
    assert any("the rollback by down fails on the copy" in line for line in lines)
    assert any(line.startswith("locking writers out: the rollback by down doesn't lead back") for line in lines)


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
            if "Rolled back; trying again" in line:
                blocker.execute("COMMIT")

        sql = "CREATE TABLE notes (id text);\nALTER TABLE users ADD COLUMN nickname text;"
        result = migrate(medianest, plus(sql), RunOptions(lock_timeout=200), report=report)
    assert result.outcome == "Applied", result
    assert [line for line in lines if "Rolled back; trying again" in line] != []


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
