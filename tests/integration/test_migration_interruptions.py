"""Runs that are cut short or meet one another, through the command line as the Job calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.pq import TransactionStatus

from integration.conftest import migrate, write_folder
from integration.forked import Dbctl
from integration.postgres_server import Database, wait_for_backend, wait_until
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.run.evidence import application_catalog
from medianest_operator.migrations.run.session import roll_back
from medianest_operator.postgres.catalog import read_catalog
from medianest_operator.postgres.run_lock import LOCK_KEY

OPERATOR = Path(__file__).parents[2] / "operator"
SLOW = "CREATE TABLE notes (id text);\nUPDATE users SET status = 'gone';\nSELECT pg_sleep(120);\n"
NAME = "20260101120000_slow"


class Job:
    """A running `medianest-dbctl migrate`."""

    def __init__(self, database: Database, folder: Path, *arguments: str) -> None:
        self.result_file = folder.parent / "termination-log"
        self.process = Dbctl(
            *("migrate", "--source", str(folder), "--result-file", str(self.result_file), *arguments),
            env={**os.environ, **database.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def end(self) -> tuple[int, dict[str, Any], str]:
        output, _ = self.process.communicate(timeout=180)
        return self.process.returncode, json.loads(self.result_file.read_text()), output


@pytest.fixture
def start(medianest: Database, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts Jobs over a folder with one migration."""
    jobs: list[Job] = []

    def begin(sql: str, *arguments: str) -> Job:
        folder = write_folder(tmp_path / f"migrations{len(jobs)}", {NAME: sql})
        jobs.append(Job(medianest, folder, *arguments))
        return jobs[-1]

    medianest.execute("INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org')")
    yield begin
    for job in jobs:
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait()


def test_killed_connection_is_never_a_success(medianest: Database, start: Callable[..., Job]) -> None:
    before = state(medianest)
    job = start(SLOW)
    with medianest.connect() as watcher:
        pid = wait_for_backend(watcher, "pg_sleep")
        watcher.execute("SELECT pg_terminate_backend(%s)", (pid,))
    code, result, _ = job.end()
    assert (code, result["outcome"], result["reason"]) == (2, "Transient", "ConnectionLost")
    assert "terminating connection due to administrator command" in result["message"]
    assert result["pending"] == [NAME]
    assert state(medianest) == before
    assert migrate(medianest, {f"{NAME}.sql": "CREATE TABLE notes (id text)"}).outcome == "Applied"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_cancels_and_reverts(medianest: Database, start: Callable[..., Job], number: signal.Signals) -> None:
    before = state(medianest)
    job = start(SLOW)
    with medianest.connect() as watcher:
        wait_for_backend(watcher, "pg_sleep")
    job.process.send_signal(number)
    code, result, output = job.end()
    assert (code, result["outcome"], result["reason"]) == (2, "Transient", "Interrupted"), output
    assert "Traceback" not in output
    assert state(medianest) == before
    assert medianest.execute(f"SELECT count(*) FROM _prisma_migrations WHERE migration_name = '{NAME}'") == [(0,)]


CONCURRENTLY = "CREATE INDEX CONCURRENTLY users_name_idx ON users (name);"


def test_signal_while_an_index_is_built_concurrently(medianest: Database, start: Callable[..., Job]) -> None:
    """The half-built index goes again as soon as it can, and the next try builds it."""
    before = catalog(medianest)
    with medianest.connect() as writer, medianest.connect() as watcher:
        writer.execute("BEGIN; UPDATE users SET name = 'Ann'")
        job = start(CONCURRENTLY)
        wait_for_backend(watcher, "CREATE INDEX CONCURRENTLY", waiting=True)
        job.process.terminate()
        wait_for_backend(watcher, "DROP INDEX CONCURRENTLY", waiting=True)
        writer.execute("COMMIT")
        code, result, output = job.end()
    assert (code, result["reason"]) == (2, "Interrupted"), output
    assert (result["rollback"]["strategy"], result["rollback"]["verified"]) == ("Inverse", True)
    assert catalog(medianest) == before
    assert migrate(medianest, {f"{NAME}.sql": CONCURRENTLY}).outcome == "Applied"


def test_way_back_that_gets_no_lock_is_finished_by_the_next_run(medianest: Database, start: Callable[..., Job]) -> None:
    before = catalog(medianest)
    with medianest.connect() as writer, medianest.connect() as watcher:
        writer.execute("BEGIN; UPDATE users SET name = 'Ann'")
        job = start(CONCURRENTLY, "--lock-timeout", "50ms")
        wait_for_backend(watcher, "CREATE INDEX CONCURRENTLY", waiting=True)
        job.process.terminate()
        code, result, output = job.end()
    assert (code, result["reason"]) == (2, "RollbackUnfinished"), output
    assert "DROP INDEX CONCURRENTLY IF EXISTS users_name_idx gets no lock" in result["message"]
    lines: list[str] = []
    assert migrate(medianest, {f"{NAME}.sql": "SELECT 1/0"}, report=lines.append).reason == "MigrationFailed"
    assert any(line.startswith("rolled back by inverse: catalog and row counts equal those before") for line in lines)
    assert catalog(medianest) == before


def test_killed_process_leaves_nothing(medianest: Database, start: Callable[..., Job]) -> None:
    before = state(medianest)
    job = start(SLOW)
    with medianest.connect() as watcher:
        pid = wait_for_backend(watcher, "pg_sleep")
        job.process.kill()
        job.process.wait()
        # The server looks after a dead client by itself, within its connection check.
        wait_until(watcher, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)
    assert not job.result_file.exists()
    assert state(medianest) == before


def test_second_runner_waits_and_then_gives_way(medianest: Database, start: Callable[..., Job]) -> None:
    first = start(SLOW)
    with medianest.connect() as watcher:
        pid = wait_for_backend(watcher, "pg_sleep")
        code, result, output = start(SLOW, "--run-lock-timeout", "300ms").end()
        assert (code, result["outcome"], result["reason"]) == (2, "Transient", "LockNotGranted")
        assert result["message"].startswith(f"Another migration run holds the lock for 0.3 s already: pid {pid} (")
        assert f"waiting for another migration run to end: pid {pid} (medianest-dbctl migrate" in output
        watcher.execute("SELECT pg_cancel_backend(%s)", (pid,))
    code, result, _ = first.end()
    assert (code, result["reason"]) == (1, "MigrationFailed")
    assert "canceling statement due to user request" in result["message"]


def test_prismas_own_lock_holds_us_off(medianest: Database) -> None:
    with medianest.connect() as prisma:
        prisma.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        result = migrate(medianest, bundled_migrations(), RunOptions(run_lock_timeout=0.1))
    assert result.reason == "LockNotGranted"


def test_lock_is_free_after_the_run(medianest: Database) -> None:
    migrate(medianest, bundled_migrations())
    assert medianest.execute(f"SELECT pg_try_advisory_lock({LOCK_KEY})") == [(True,)]


def test_two_runners_at_once_apply_everything_once(empty: Database) -> None:
    arguments = [sys.executable, "-m", "medianest_operator.agent", "migrate", "--bundled"]
    environment = {**os.environ, **empty.environment(), "PYTHONPATH": str(OPERATOR)}
    runners = [subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [runner.communicate(timeout=180)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0] * 4
    assert sum("Applied 3 migrations" in output for output in outputs) == 1
    assert empty.execute("SELECT count(*), count(finished_at) FROM _prisma_migrations") == [(3, 3)]


def test_role_that_may_not_log_in_is_waited_for(medianest: Database, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "migrations", {NAME: "SELECT 1"})
    job = Job(Database(medianest.server, "nowhere"), folder, "--connect-timeout", "1s")
    code, result, output = job.end()
    assert (code, result["outcome"], result["reason"]) == (2, "Transient", "ConnectFailed")
    assert 'database "nowhere" does not exist' in result["message"]
    assert output.count("waiting for the server") == 1


def catalog(database: Database) -> str:
    with database.connect() as connection:
        return application_catalog(connection).fingerprint()


def state(database: Database) -> tuple[str, list[tuple[Any, ...]]]:
    with database.connect() as connection:
        return read_catalog(connection).fingerprint(), database.execute("SELECT * FROM users")


@pytest.mark.parametrize(
    "query",
    ["SELECT pg_sleep(600)", "BEGIN; DELETE FROM users; SELECT pg_sleep(600)", "COPY users FROM STDIN", "SELECT 1"],
)
def test_a_signal_between_sending_and_receiving_leaves_a_session_that_can_be_used(
    medianest: Database, query: str
) -> None:
    """psycopg cancels what it waits for; what was just sent, when a signal came, nobody waits for."""
    medianest.execute("INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org')")
    with medianest.connect("medianest_migrator") as connection:
        connection.pgconn.send_query(query.encode())
        roll_back(connection)
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (1,)
        assert connection.info.transaction_status is TransactionStatus.IDLE
