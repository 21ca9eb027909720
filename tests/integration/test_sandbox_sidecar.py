"""Copies in another process that has nothing, as in the Jobs' pods: `medianest-dbctl sandbox` beside the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import psycopg
import pytest

from integration.backup_runs import Bench, new_bench, until
from integration.conftest import workbench
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.run.options import Workbench
from medianest_operator.migrations.run.run import MigrationRun
from medianest_operator.migrations.source import Migration
from medianest_operator.postgres import sandbox as module
from medianest_operator.postgres.sandbox import SidecarSandbox
from medianest_operator.postgres.throwaway import ThrowawayError
from medianest_operator.results.migration import MigrationResult

NEXT = Migration.from_bytes("20260101120000_next", b"CREATE TABLE notes (id text)")
SECRET = "canary-77c0"


class Sidecar:
    """The other container's process; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "medianest_operator.agent", "sandbox", "--folder", str(self.folder)]
        # As a container has it, and one secret that a webhook might have put there.
        environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**environment, "AWS_WEB_IDENTITY_TOKEN": SECRET}
        )
        assert self.process.stdout is not None
        assert "waiting for requests" in self.process.stdout.readline()
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()

    def _listen(self, stream: IO[str]) -> None:
        self.lines += stream

    def postgres(self) -> list[int]:
        """The server's processes."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "/postgres\0" in text and str(self.folder) in text:
                found.append(int(path.parent.name))
        return found

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(10)


@pytest.fixture
def sidecar(room: Path) -> Iterator[Sidecar]:
    (room / "sandbox").mkdir()
    (room / "sandbox").chmod(0o755)
    running = Sidecar(room / "sandbox")
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main")


def migrate(database: Database, room: Path, sidecar: Sidecar, report: Callable[[str], None] = print) -> MigrationResult:
    bench = workbench(database, room)
    made = Workbench(bench.environment, bench.repositories, bench.scratch, sandbox=SidecarSandbox(sidecar.folder))
    with database.connect("medianest_migrator") as connection:
        options = RunOptions(rehearse=Rehearse.ALWAYS)
        return MigrationRun(connection, (*bundled_migrations(), NEXT), options, report, made).run()


def test_a_backup_is_verified_there(bench: Bench, sidecar: Sidecar) -> None:
    assert bench.backup().code == 0
    answer = bench.verify("--sandbox", str(sidecar.folder))
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    until(lambda: any("ends" in line for line in sidecar.lines))
    # Nothing is left, and nothing was put where the dump is downloaded.
    assert [path.name for path in sidecar.folder.iterdir()] == ["control"]
    assert list(bench.work.iterdir()) == []
    again = bench.backup("--verify", "--work-dir", str(bench.work), "--sandbox", str(sidecar.folder))
    assert again.result["verification"]["ok"] is True, again.text


def test_a_migration_is_rehearsed_there(people: Database, room: Path, sidecar: Sidecar) -> None:
    result = migrate(people, room, sidecar)
    assert result.outcome == "Applied", result
    assert result.rehearsal is not None
    assert result.rehearsal.data
    assert any("runs" in line for line in sidecar.lines)


def test_its_programs_find_nothing_in_their_environment(sidecar: Sidecar) -> None:
    with SidecarSandbox(sidecar.folder).server():
        processes = sidecar.postgres()
        assert processes
        for pid in processes:
            # A server that shows what it does overwrites this with its title (PostgreSQL, ps_status.c).
            assert SECRET not in Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")


def test_nobody_is_trusted(sidecar: Sidecar) -> None:
    with SidecarSandbox(sidecar.folder).server() as server:
        for name in (server.admin.name, "postgres"):
            with pytest.raises(psycopg.OperationalError, match=r"password|does not exist"):
                psycopg.connect(host=str(server.folder), user=name, dbname="postgres")
        with closing(server.connect("postgres", server.admin)) as connection:
            assert connection.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'postgres'").fetchone() == (0,)


@pytest.mark.parametrize("victim", ["server", "container"])
def test_killed_meanwhile_is_told_and_tried_again(people: Database, room: Path, sidecar: Sidecar, victim: str) -> None:
    def kill(line: str) -> None:
        if line == "rehearsing on a copy":
            if victim == "container":
                sidecar.stop(signal.SIGKILL)
            for pid in sidecar.postgres():
                os.kill(pid, signal.SIGKILL)

    result = migrate(people, room, sidecar, kill)
    assert result.outcome == "Transient", result
    assert people.execute("SELECT to_regclass('notes')") == [(None,)]
    if victim == "container":
        sidecar.start()
    assert migrate(people, room, sidecar).outcome == "Applied"


def test_a_verification_that_lost_it_says_nothing_of_the_backup(bench: Bench, sidecar: Sidecar) -> None:
    assert bench.backup().code == 0
    bench.source.execute("CREATE TABLE slow (n int CHECK (pg_sleep(n) IS NOT NULL)); INSERT INTO slow VALUES (0)")
    bench.source.execute(
        "ALTER TABLE slow DROP CONSTRAINT slow_n_check; UPDATE slow SET n = 60;"
        " ALTER TABLE slow ADD CHECK (pg_sleep(n) IS NOT NULL) NOT VALID;"
    )
    assert bench.backup().code == 0
    run = bench.start(
        "verify", *bench.places, "--namespace", "media", "--name", "nest", "--work-dir", str(bench.work),
        "--sandbox", str(sidecar.folder),
    )  # fmt: skip
    until(lambda: bool(sidecar.postgres()))
    sidecar.stop(signal.SIGKILL)
    answer = run.end()
    assert answer.code == 2, answer.text
    assert [item["verification"] for item in bench.listed()] == [None, None]


def test_without_one_the_run_is_tried_again(bench: Bench, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "APPEAR_LIMIT", 0.5)
    with pytest.raises(ThrowawayError, match="the sandbox is not there") as raised, SidecarSandbox(room).server():
        pass
    assert raised.value.transient


def test_it_ends_when_whoever_asked_is_gone(sidecar: Sidecar) -> None:
    code = (
        "import os, pathlib\nfrom medianest_operator.postgres.sandbox import SidecarSandbox\n"
        f"with SidecarSandbox(pathlib.Path({str(sidecar.folder)!r})).server(): os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    until(lambda: not sidecar.postgres())
    with SidecarSandbox(sidecar.folder).server():
        pass


@pytest.mark.parametrize(
    "request_",
    [
        b"\n",
        b"{}\n",
        b"x" * 100_000,
        json.dumps({"folder": "../../x", "superuser": "a", "verifier": "b", "settings": {}}).encode() + b"\n",
        b"",
    ],
)
def test_it_answers_only_what_is_a_request(sidecar: Sidecar, request_: bytes) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(sidecar.folder / "control"))
        control.settimeout(20)
        try:
            control.sendall(request_)
            control.shutdown(socket.SHUT_WR)
            said = control.recv(4096)
        except OSError:
            said = b""
        assert b"null" not in said
    with SidecarSandbox(sidecar.folder).server():
        pass


def test_what_lies_in_the_folder_is_not_followed(room: Path, sidecar: Sidecar) -> None:
    (room / "theirs").mkdir()
    (room / "theirs" / "control").symlink_to(sidecar.folder / "control")
    with pytest.raises(ThrowawayError, match="no control socket"), SidecarSandbox(room / "theirs").server():
        pass


def test_it_ends_at_once_when_asked_to(sidecar: Sidecar) -> None:
    assert sidecar.stop() == 0
    sidecar.start()
    with SidecarSandbox(sidecar.folder).server():
        assert sidecar.stop() == 0
        assert sidecar.postgres() == []
