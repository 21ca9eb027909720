"""Runs that are killed at random moments with a writer at work: always applied, or rolled back and verified.

What is killed is the run itself, its session in the server, and the server's own process. The moments are random with a
fixed seed; how often each end was reached is printed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from integration.conftest import migrate
from integration.crashes import (
    PEOPLE,
    RUN,
    SHAPES,
    Job,
    Truth,
    apply_by_psql,
    assert_whole,
    bad,
    look,
    open_runs,
    write_source,
    writing,
)
from integration.postgres_server import Database, PostgresServer, running_server
from medianest_operator.migrations.bundled import bundled_migrations
from soaking import rounds

SEED = 20260101
AT_ONCE = 3
BOTH_ENDS = {"applied", "rolled back and verified"}
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND usename = 'medianest_migrator'"

Kill = Callable[[Job], None]


@dataclass(frozen=True)
class Source:
    """Files, what they lead to (`None` where they fail), and how long a run of them takes, seconds."""

    files: Mapping[str, str]
    folder: Path
    after: Truth | None
    rehearse: str
    seconds: float


@dataclass(frozen=True)
class Case:
    """One kill: of a run of what, when, and whether the same source follows.

    Attributes:
        part: after which part of its time; `None`: as soon as its row is open in the journal.
    """

    source: Source
    part: float | None
    same: bool


@dataclass(frozen=True)
class Played:
    """How often each end was reached, and after how many kills a run was left open for the next one."""

    outcomes: Counter[str]
    left_open: int


class Field:
    """A server with a database to copy, and the sources."""

    def __init__(self, server: PostgresServer, template: str, folder: Path) -> None:
        self.server = server
        self.folder = folder
        for path in (folder, folder.parent, folder.parent.parent):
            path.chmod(path.stat().st_mode | 0o055)
        self.people = server.create_database(template)
        self.people.execute(PEOPLE)
        self.before = look(self.people)
        self._rooms = 0
        self._lock = threading.Lock()

    def room(self) -> Path:
        with self._lock:
            self._rooms += 1
            path = self.folder / f"room{self._rooms}"
        path.mkdir()
        return path

    def copy(self) -> Database:
        # A template must have no other session, and two copies at once are each other's.
        with self._lock:
            return self.server.create_database(self.people.name)

    def source(self, shape: str, fails: bool, rehearse: str = "Never") -> Source:
        """Run it once without a kill: that tells how long it takes, and psql tells where it leads to."""
        files = bad(shape) if fails else SHAPES[shape]
        room = self.room()
        folder = write_source(room / "source", files)
        after = None
        if not fails:
            database = self.copy()
            apply_by_psql(database, files)
            after = look(database)
            self.server.drop_database(database)
        database = self.copy()
        job = Job(database, room, folder, "--rehearse", rehearse)
        wait_for_session(job)
        begun = time.monotonic()
        code, _, output = job.end()
        seconds = time.monotonic() - begun
        assert code == (1 if fails else 0), output
        with writing(database) as writers:
            assert_whole(database, files, self.before, after, writers)
        self.server.drop_database(database)
        return Source(files, folder, after, rehearse, seconds)

    def cases(self, sources: Sequence[Source], count: int) -> list[Case]:
        """Moments from the beginning to a little after the end, spread over the sources.

        Two are told: the first run, of files that are good, has ended before; the second, of files that fail, has
        begun. So both ends are reached and a run is left open, whatever the others come to.
        """
        dice = random.Random(SEED)
        drawn = [Case(sources[n % len(sources)], dice.uniform(0, 1.1), dice.random() < 0.3) for n in range(count)]
        first, second, *others = drawn
        return [replace(first, part=2.0), replace(second, part=None), *others]

    def play(self, case: Case, kill: Kill) -> tuple[str, bool]:
        """Kill a run, let one more go through, look. Returns the end, and whether the kill left something open."""
        database, room, source = self.copy(), self.room(), case.source
        try:
            with writing(database) as writers:
                job = Job(database, room, source.folder, "--rehearse", source.rehearse)
                wait_for_session(job)
                if _goes_on(job, case):
                    kill(job)
                job.process.communicate()
                job.wait_until_forgotten()
                left = bool(open_runs(database))
                second = Job(database, room, source.folder if case.same else None, "--rehearse", source.rehearse)
                code, _, output = second.end()
                assert code == (1 if case.same and source.after is None else 0), output
            outcome = assert_whole(database, source.files, self.before, source.after, writers)
            assert outcome == "applied" or not case.same or source.after is None
            return outcome, left
        except AssertionError as error:
            error.add_note(f"killed as {case} says")
            raise
        finally:
            self.server.drop_database(database)

    def play_all(self, what: str, cases: Sequence[Case], kill: Kill, at_once: int = AT_ONCE) -> Played:
        """Play every case, and print what came of them."""
        with ThreadPoolExecutor(at_once) as pool:
            played = list(pool.map(lambda case: self.play(case, kill), cases))
        counted = Counter(outcome for outcome, _ in played)
        left_open = sum(is_open for _, is_open in played)
        told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counted.items()))
        print(f"{len(cases)} {what}: {told}; {left_open} left a run open for the next one")
        return Played(counted, left_open)


@pytest.fixture(scope="module")
def field(server: PostgresServer, template: Database, tmp_path_factory: pytest.TempPathFactory) -> Field:
    return Field(server, template.name, tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def sources(field: Field) -> list[Source]:
    """Every shape, well and failing, and three of them with a rehearsal."""
    found = [field.source(shape, fails) for shape in SHAPES for fails in (False, True)]
    rehearsed = [("one transaction", True), ("concurrently in the middle", False), ("commit inside", False)]
    return found * 3 + [field.source(shape, fails, "Always") for shape, fails in rehearsed]


# Three minutes on a machine that does nothing else, as CI is not while it builds.
@pytest.mark.timeout(rounds(1500, 20_000))
def test_run_killed_at_random_moments(field: Field, sources: list[Source]) -> None:
    count = rounds(20, 1000)
    played = field.play_all("kills", field.cases(sources, count), lambda job: job.process.kill())
    assert played.outcomes.total() == count
    assert played.outcomes.keys() == BOTH_ENDS
    assert played.left_open > 0


@pytest.mark.timeout(rounds(900, 9_000))
def test_session_ended_at_random_moments(field: Field, sources: list[Source]) -> None:
    """The connection is cut, by an administrator or by a network."""

    def cut(job: Job) -> None:
        with job.database.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = %s",
                (job.database.name, RUN),
            )

    count = rounds(10, 200)
    played = field.play_all("sessions ended", field.cases(sources[:10], count), cut)
    assert played.outcomes.total() == count
    assert played.outcomes.keys() == BOTH_ENDS
    assert played.left_open > 0


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """A server of its own that keeps what it acknowledged through a crash."""
    with running_server("fsync=on") as server:
        template = server.create_database()
        assert migrate(template, bundled_migrations()).outcome == "Applied"
        yield Field(server, template.name, tmp_path_factory.mktemp("crashes"))


@pytest.mark.timeout(rounds(900, 9_000))
def test_server_that_crashes(careful: Field) -> None:
    """A backend that is killed takes all others with it; the server recovers from its log."""

    def crash(job: Job) -> None:
        with job.database.connect() as connection:
            found = connection.execute(SESSIONS, (job.database.name,)).fetchall()
            if not found:
                return
            os.kill(found[0][0], signal.SIGKILL)
            # The server ends everybody's session once it has noticed.
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT pg_sleep(60)")
        wait_until_up(job.database)

    sources = [
        careful.source(shape, fails) for shape in ("one transaction", "commit inside") for fails in (False, True)
    ]
    count = rounds(5, 80)
    played = careful.play_all("crashes of the server", careful.cases(sources, count), crash, at_once=1)
    assert played.outcomes.total() == count
    assert played.outcomes.keys() == BOTH_ENDS
    assert played.left_open > 0


def _goes_on(job: Job, case: Case) -> bool:
    """Whether the run is still at work when its moment has come."""
    if case.part is None:
        while job.process.poll() is None and not open_runs(job.database):
            threading.Event().wait(0.005)
        return job.process.poll() is None
    try:
        job.process.wait(case.part * case.source.seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def wait_until_up(database: Database) -> None:
    """Until a crashed server lets people in again."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            database.execute("SELECT 1")
            return
        except psycopg.Error:
            threading.Event().wait(0.05)
    raise AssertionError("the server did not come back")


def wait_for_session(job: Job) -> None:
    """Until the run is connected: what comes before it is only Python's own start."""
    with job.database.connect() as connection:
        while job.process.poll() is None:
            row: Any = connection.execute(SESSIONS, (job.database.name,)).fetchone()
            if row:
                return
            threading.Event().wait(0.005)
