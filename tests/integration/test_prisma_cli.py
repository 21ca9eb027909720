"""The real Prisma command line and the operator take turns on one database, and agree.

Skipped only where there is no npm, and not even there in CI.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from integration import prisma_cli
from integration.commands import dbctl
from integration.conftest import migrate
from integration.crashes import SHAPES, Start, fail_unverified
from integration.postgres_server import Database, PostgresServer, wait_until
from integration.prisma_cli import Prisma
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.source import migrations_from_directory
from medianest_operator.results.migration import MigrationResult

UP_TO_DATE = "Database schema is up to date!"
NOTHING = "No pending migrations to apply."
BUNDLED = Path(__file__).parents[2] / "operator/medianest_operator/migrations/bundled/migrations"

FIRST, SECOND, THIRD = "20260101000000_first", "20260102000000_second", "20260103000000_third"
FILES = {
    FIRST: "CREATE TABLE notes (id serial PRIMARY KEY, body text NOT NULL);\n",
    # Semicolons inside of a body, a letter beyond ASCII, and the line ends of Windows.
    SECOND: "-- für später\r\nCREATE FUNCTION one() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END; $$;\r\n"
    "INSERT INTO notes (body) VALUES ('a;b');\r\n",
}
NEXT = {THIRD: "ALTER TABLE notes ADD COLUMN colour text;\n"}
BROKEN = {THIRD: "ALTER TABLE notes ADD COLUMN colour text;\nSELECT 1/0;\n"}


@pytest.fixture(scope="session")
def installed() -> Path:
    try:
        return prisma_cli.install()
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def prisma(installed: Path, tmp_path: Path) -> Prisma:
    return Prisma(installed, tmp_path / "project")


@pytest.fixture
def other(server: PostgresServer) -> Any:
    """A second database, for what Prisma leaves by itself."""
    database = server.create_database()
    yield database
    server.drop_database(database)


def ours(database: Database, prisma: Prisma, options: RunOptions | None = None) -> MigrationResult:
    """The operator's run over the project's migrations."""
    return migrate(database, migrations_from_directory(prisma.migrations), options)


def history(database: Database) -> list[tuple[Any, ...]]:
    """What the history says, but for times and identifiers."""
    return database.execute(
        "SELECT migration_name, checksum, finished_at IS NOT NULL, rolled_back_at IS NOT NULL, logs IS NOT NULL,"
        " applied_steps_count, started_at IS NOT NULL, length(id) FROM _prisma_migrations ORDER BY started_at"
    )


def test_the_bundled_schema_is_up_to_date_to_prisma(medianest: Database, prisma: Prisma) -> None:
    prisma.write(
        {folder.name: (folder / "migration.sql").read_text() for folder in BUNDLED.iterdir() if folder.is_dir()}
    )
    status = prisma.status(medianest)
    assert UP_TO_DATE in status.text
    assert (status.code, f"{len(bundled_migrations())} migrations found" in status.text) == (0, True)
    deploy = prisma.deploy(medianest)
    assert NOTHING in deploy.text
    assert deploy.code == 0


def test_both_leave_the_same_history_and_schema(empty: Database, other: Database, prisma: Prisma) -> None:
    prisma.write(FILES)
    assert ours(empty, prisma).outcome == "Applied"
    assert prisma.deploy(other).code == 0
    assert history(empty) == history(other)
    columns = (
        "SELECT column_name, data_type, character_maximum_length, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_name = '_prisma_migrations' ORDER BY ordinal_position"
    )
    assert empty.execute(columns) == other.execute(columns)
    assert UP_TO_DATE in prisma.status(empty).text


def test_prisma_goes_on_from_ours_and_ours_from_prismas(empty: Database, prisma: Prisma) -> None:
    prisma.write(FILES)
    assert ours(empty, prisma).version == SECOND

    prisma.write(NEXT)
    assert f"not yet been applied:\n{THIRD}" in prisma.status(empty).text
    deploy = prisma.deploy(empty)
    assert (deploy.code, THIRD in deploy.text, SECOND in deploy.text) == (0, True, False)
    seen = ours(empty, prisma)
    assert (seen.reason, seen.version, seen.warnings) == ("UpToDate", THIRD, ())

    fourth = "20260104000000_fourth"
    prisma.write({fourth: "CREATE INDEX CONCURRENTLY notes_colour ON notes (colour);\n"})
    assert [item.name for item in ours(empty, prisma).applied] == [fourth]
    status = prisma.status(empty)
    assert (status.code, UP_TO_DATE in status.text) == (0, True)
    assert NOTHING in prisma.deploy(empty).text


def test_a_migration_that_we_undid_is_to_prisma_as_if_resolved(
    empty: Database, other: Database, prisma: Prisma
) -> None:
    prisma.write(FILES)
    ours(empty, prisma)
    prisma.deploy(other)

    prisma.write(BROKEN)
    assert ours(empty, prisma).outcome != "Applied"
    failed = prisma.deploy(other)
    assert (failed.code, "division by zero" in failed.text) == (1, True)
    assert "P3009" in prisma.deploy(other).text
    assert prisma.run(other, "migrate", "resolve", "--rolled-back", THIRD).code == 0

    assert history(empty) == history(other)
    assert prisma.status(empty) == prisma.status(other)

    prisma.write(NEXT)
    deploys = [prisma.deploy(database) for database in (empty, other)]
    assert deploys[0] == deploys[1]
    assert (deploys[0].code, THIRD in deploys[0].text) == (0, True)
    assert history(empty) == history(other)
    assert ours(empty, prisma).reason == "UpToDate"


def test_a_failure_that_prisma_left_stops_ours_until_it_is_resolved(empty: Database, prisma: Prisma) -> None:
    prisma.write(FILES | BROKEN)
    assert "division by zero" in prisma.deploy(empty).text
    stopped = ours(empty, prisma)
    assert stopped.reason == "UnresolvedFailure"
    assert f"`prisma migrate resolve --rolled-back {THIRD}`" in stopped.message
    # What the message says helps.
    assert prisma.run(empty, "migrate", "resolve", "--rolled-back", THIRD).code == 0
    prisma.write(NEXT)
    assert ours(empty, prisma).version == THIRD
    assert UP_TO_DATE in prisma.status(empty).text


def test_an_unverified_end_stops_prisma_too_until_a_person_resolves_it(
    database: Database, start: Start, prisma: Prisma
) -> None:
    files = fail_unverified(database, start, "concurrently in the middle")
    prisma.write(files)
    refused = prisma.deploy(database)
    assert (refused.code, "P3009" in refused.text) == (1, True)
    assert "20260103000000_c" in refused.text
    assert dbctl(database.environment("postgres"), "resolve").returncode == 0

    sound = SHAPES["concurrently in the middle"]
    prisma.write(sound)
    deploy = prisma.deploy(database)
    assert (deploy.code, [name for name in sound if name in deploy.text]) == (0, list(sound))
    assert UP_TO_DATE in prisma.status(database).text


def test_tables_without_a_history_stop_both(empty: Database, prisma: Prisma) -> None:
    prisma.write(FILES)
    empty.execute("SET ROLE medianest; CREATE TABLE notes (id serial PRIMARY KEY, body text NOT NULL)")
    stopped = ours(empty, prisma)
    assert stopped.reason == "BaselineRequired"
    deploy = prisma.deploy(empty)
    assert (deploy.code, "P3005" in deploy.text) == (1, True)

    # What the message says helps: both go on from the baseline.
    assert prisma.run(empty, "migrate", "resolve", "--applied", FIRST).code == 0
    assert [item.name for item in ours(empty, prisma).applied] == [SECOND]
    assert UP_TO_DATE in prisma.status(empty).text


def test_prisma_waits_for_our_run(empty: Database, prisma: Prisma) -> None:
    prisma.write(FILES)
    ours(empty, prisma)
    prisma.write(NEXT)
    results: list[MigrationResult] = []
    # However long Prisma takes to start on a busy machine, ours still waits.
    patient = RunOptions(lock_timeout=300_000)
    running = threading.Thread(target=lambda: results.append(ours(empty, prisma, patient)))
    with empty.connect() as holder, empty.connect() as watcher:
        # Only the ALTER TABLE waits for this, not what reads the table's definition before it.
        holder.execute("BEGIN; LOCK TABLE notes IN ACCESS SHARE MODE")
        running.start()
        waits = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = %s AND NOT granted"
        wait_until(watcher, waits, "relation")
        deploy = prisma.start(empty, "migrate", "deploy")
        wait_until(watcher, waits, "advisory")
        holder.execute("ROLLBACK")
        running.join()
    answer = prisma_cli.finish(deploy)
    assert [item.name for item in results[0].applied] == [THIRD]
    assert (answer.code, NOTHING in answer.text) == (0, True)


def test_prisma_gives_up_on_a_run_that_takes_long(empty: Database, prisma: Prisma) -> None:
    prisma.write(FILES)
    with empty.connect() as holder:
        holder.execute("SELECT pg_advisory_lock(72707369)")
        answer = prisma.deploy(empty)
    assert (answer.code, "P1002" in answer.text) == (1, True)
    assert empty.execute("SELECT to_regclass('notes')") == [(None,)]
