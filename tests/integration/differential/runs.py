"""One run of a case: in this process where nothing kills it, as the agent's own process where something does."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from integration.conftest import migrate
from integration.crashes import RUN, Job, gate, trap, write_source
from integration.differential import meddling
from integration.differential.case import LOCK_LIMIT, STATEMENT_LIMIT, Case, Fault
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions

_WAITING = """
SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted
                  AND l.pid <> pg_backend_pid())
"""
_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s
"""
_END = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND usename = %s
"""
_HELD_FOR = 0.9
"""Seconds for which somebody holds a lock at the most: longer than a run waits for it."""
_LIMIT = 120.0


@dataclass
class Ran:
    """How a run ended.

    Attributes:
        result: what it says of itself; `None` where it was killed.
        code: its exit code, where it was a process.
        lines: what it printed.
        meddled: a DBA did what he wanted to.
    """

    result: Mapping[str, Any] | None = None
    code: int | None = None
    lines: list[str] = field(default_factory=list)
    meddled: bool = False


def run_here(database: Database, case: Case, files: Mapping[str, str], room: Path, *, spoilt: bool) -> Ran:
    """A run in this process.

    Args:
        spoilt: with the case's limits, its DBA and its lock; otherwise an ordinary one.

    Raises:
        Exception: it didn't end in a result.
    """
    ran = Ran()
    limits = case.fault if spoilt else None
    options = RunOptions(
        rehearse=Rehearse.AUTO if case.rehearse == "Definitions" else Rehearse(case.rehearse),
        rehearsal_limit=1 if case.rehearse == "Definitions" else 2 << 30,
        allow_destructive=case.destroys,
        lock_timeout=LOCK_LIMIT if limits is Fault.LOCK else 10_000,
        lock_attempts=1 if limits is Fault.LOCK else 3,
        statement_timeout=STATEMENT_LIMIT if limits is Fault.TIMEOUT else 0,
    )
    with _listening(database, case, ran, spoilt) as listen:
        named = {f"{name.replace('/', '.')}.sql": text for name, text in files.items()}
        ran.result = json.loads(migrate(database, named, options, folder=room, report=listen).to_json())
    return ran


@contextmanager
def _listening(database: Database, case: Case, ran: Ran, spoilt: bool) -> Iterator[Callable[[str], None]]:
    """Hears what a run says, and does what is to be done at that."""
    lock = _Lock(database, case.table) if spoilt and case.fault is Fault.LOCK else None

    def listen(line: str) -> None:
        ran.lines.append(line)
        if spoilt and case.act is not None and not ran.meddled and line.startswith(case.moment):
            ran.meddled = meddling.do(database, case.act)
        if lock is not None:
            if line.startswith("applying"):
                lock.take()
            elif "lock timeout" in line or "everting" in line or "olled back" in line:
                lock.release()

    try:
        yield listen
    finally:
        if lock is not None:
            lock.release()


class _Lock:
    """Somebody who reads a table in an open transaction, for a while."""

    def __init__(self, database: Database, table: str) -> None:
        self._database, self._table = database, table
        self._holder: Connection[Any] | None = None
        self._timer: threading.Timer | None = None

    def take(self) -> None:
        """Once; not where another one is in the way."""
        if self._timer is not None:
            return
        self._holder = self._database.connect(options="-c lock_timeout=100ms")
        self._timer = threading.Timer(_HELD_FOR, self.release)
        with contextlib.suppress(psycopg.Error):
            self._holder.execute(f"BEGIN; LOCK TABLE {self._table} IN ACCESS SHARE MODE".encode())
        self._timer.start()

    def release(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.close()
        if self._timer is not None and self._timer is not threading.current_thread():
            self._timer.cancel()


def run_as_process(database: Database, case: Case, room: Path) -> Ran:
    """A run as a process of its own, to which happens what the case says."""
    ran = Ran()
    with contextlib.ExitStack() as stack:
        if case.fault.at_gate:
            watcher = stack.enter_context(gate(database))
        elif case.fault is Fault.KILL_AT_STEP:
            watcher = stack.enter_context(trap(database, case.step))
        else:
            watcher = stack.enter_context(database.connect())
        job = Job(database, room, write_source(room / "source", case.files), *_arguments(case))
        stack.callback(job.stop)
        if case.fault.at_gate:
            _at_gate(case, job, watcher, ran)
        elif case.fault is Fault.KILL_AT_STEP:
            if _waits(job, watcher):
                job.process.kill()
        else:
            _after_line(case, job, ran)
        if job.process.poll() is None:
            watcher.execute("SELECT pg_advisory_unlock_all()")
        output, _ = job.process.communicate(timeout=_LIMIT)
        ran.lines += output.splitlines()
        ran.code = job.process.returncode
        if ran.code < 0:
            _end_sessions(watcher)
    if ran.code is not None and ran.code >= 0:
        ran.result = json.loads(job.result_file.read_text())
    return ran


def _arguments(case: Case) -> list[str]:
    rehearse = "Auto" if case.rehearse == "Definitions" else case.rehearse
    limit = ["--rehearsal-limit", "1"] if case.rehearse == "Definitions" else []
    return ["--rehearse", rehearse, *limit, *(["--allow-destructive"] if case.destroys else [])]


def _at_gate(case: Case, job: Job, watcher: Connection[Any], ran: Ran) -> None:
    if not _waits(job, watcher):
        return
    if case.act is not None:
        ran.meddled = meddling.do(job.database, case.act)
    match case.fault:
        case Fault.KILL_AT_GATE:
            job.process.kill()
        case Fault.TERM_AT_GATE:
            job.process.terminate()
        case _:
            watcher.execute(_SESSIONS, (RUN,))


def _after_line(case: Case, job: Job, ran: Ran) -> None:
    """Read until the line after which it is killed."""
    assert job.process.stdout is not None
    for count, line in enumerate(job.process.stdout, start=1):
        ran.lines.append(line.rstrip("\n"))
        if (case.fault is Fault.KILL_AT_LINE and count >= case.line) or (
            case.fault is Fault.KILL_GOING_BACK and "everting" in line
        ):
            _wait(job, case.delay)
            job.process.kill()
            return


def _wait(job: Job, seconds: float) -> None:
    """A moment later, or at its end: what is killed at random moments is killed in the midst of something."""
    deadline = time.monotonic() + seconds
    while job.process.poll() is None and time.monotonic() < deadline:
        threading.Event().wait(0.002)


def _waits(job: Job, watcher: Connection[Any]) -> bool:
    """Until the run stands at the gate or in the trap; false if it ends before."""
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        row = watcher.execute(_WAITING).fetchone()
        if row and row[0]:
            return True
        if job.process.poll() is not None:
            return False
        threading.Event().wait(0.01)
    raise AssertionError("the run neither stands at the gate nor ends")


def _end_sessions(watcher: Connection[Any]) -> None:
    """What the server does by itself within two seconds of a client's death (test_migration_interruptions.py)."""
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        row = watcher.execute(_END, ("medianest_migrator",)).fetchone()
        if row and row[0] == 0:
            return
        threading.Event().wait(0.005)
    raise AssertionError("the run's sessions never end")
