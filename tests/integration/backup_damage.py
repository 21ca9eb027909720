"""Ways to spoil a backup, or the making of one: the rows of the damage table."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from integration.backup_runs import NAME, NAMESPACE, WHOSE, Answer, Bench, Run, candidate, contents, until
from integration.object_store import IMPATIENT, Bucket, Front, cut, silence, status
from integration.postgres_server import Database
from medianest_operator.backups.finding import Wanted
from medianest_operator.backups.layout import Tier
from medianest_operator.backups.repository import Repository, open_folder
from medianest_operator.backups.restore import RestoreOptions, RestoreRun
from medianest_operator.backups.result import Result
from medianest_operator.backups.run import BackupOptions, BackupRun

FLIPS = 20
_SEED = 20261122


@dataclass
class Arena:
    """A database, its last good backup, and the place where the next one is spoiled.

    Attributes:
        bench: with one repository, a folder.
        good: the id of the last good backup.
        truth: what the database held then, told by other means than ours.
        spoiled: a later backup in the same place, for damage to what is stored.
    """

    bench: Bench
    good: str
    truth: dict[str, str]
    spoiled: str = ""
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    store: Bucket | None = None

    @property
    def folder(self) -> Path:
        """Of the repository."""
        return self.bench.folder / "main"

    @property
    def bucket(self) -> Bucket:
        """A bucket of its own."""
        assert self.store is not None
        return self.store

    def file(self, name: str, backup: str | None = None) -> Path:
        """One of the spoiled backup's files."""
        return next(self.folder.rglob(f"{backup or self.spoiled}/{name}"))

    def conninfo(self, user: str, database: Database | None = None) -> str:
        source = database or self.bench.source
        return f"host={source.server.folder} port=5432 user={user} dbname={source.name}"

    def backup(self, *repositories: Repository, **options: Any) -> Result:
        """Take one in this process, as impatient as a test has to be."""
        made = BackupOptions(
            **{"tier": Tier.DAILY, "database": (NAMESPACE, NAME), "conninfo": self.conninfo("medianest_backup"),
               "wait": 1.0, **options}
        )  # fmt: skip
        run = BackupRun(repositories or [self.bench.open()], made)
        result = run.run()
        run.clean_up(result)
        assert len(result.to_json().encode()) <= 4096
        return result

    def restore(self, which: str, *identities: str) -> tuple[Result, dict[str, str]]:
        """Restore into a new database; returns what that holds then."""
        target = candidate(self.bench.source.server)
        try:
            options = RestoreOptions(
                Wanted(NAMESPACE, NAME),
                which,
                self.bench.work,
                identities,
                conninfo=self.conninfo("medianest_migrator", target),
            )
            return RestoreRun([self.bench.open()], options).run(), contents(target)
        finally:
            self.bench.source.server.drop_database(target)

    def start(self, *arguments: str) -> Run:
        return self.bench.start("backup", *self.bench.places, *WHOSE, "--tier", "daily", *arguments)

    def start_and_wait(self, *arguments: str) -> Run:
        """A backup that is in the middle of its dump."""
        run = self.start(*arguments)
        until(lambda: any(path.stat().st_size > 1 << 20 for path in self.folder.rglob("data.dump#*")))
        return run


Spoil = Callable[[Arena], None]


@dataclass(frozen=True)
class Stored:
    """Damage to a backup that is stored.

    Attributes:
        words: what the restore of it has to say.
        reason: its reason.
    """

    name: str
    spoil: Spoil
    words: str
    reason: str = "NoSuchBackup"


@dataclass(frozen=True)
class Making:
    """Damage while a backup is made.

    Attributes:
        spoil: makes one, and checks what the run says.
        backups: so many complete ones there are afterwards.
    """

    name: str
    spoil: Spoil
    backups: int = 1


def _cut(tenths: int) -> Spoil:
    def spoil(arena: Arena) -> None:
        path = arena.file("data.dump")
        os.truncate(path, path.stat().st_size * tenths // 10)

    return spoil


def _flip(number: int) -> Spoil:
    def spoil(arena: Arena) -> None:
        path = arena.file("data.dump")
        data = bytearray(path.read_bytes())
        place = random.Random(_SEED + number).randrange(len(data))
        data[place] ^= 1 << random.Random(number).randrange(8)
        path.write_bytes(data)

    return spoil


def _edit(change: Callable[[dict[str, Any]], None]) -> Spoil:
    def spoil(arena: Arena) -> None:
        path = arena.file("manifest.json")
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return spoil


def _copy_manifest(arena: Arena) -> None:
    shutil.copy(arena.file("manifest.json", arena.good), arena.file("manifest.json"))


def _copy_data(arena: Arena) -> None:
    """Another backup's dump, and of the right length, as far as the manifest knows."""
    other, own = arena.file("data.dump", arena.good), arena.file("data.dump")
    own.write_bytes(other.read_bytes().ljust(own.stat().st_size, b"\0")[: own.stat().st_size])


def _flip_catalog(arena: Arena) -> None:
    path = arena.file("catalog.json.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


STORED = [
    *(Stored(f"cut at {tenths} tenths", _cut(tenths), "is damaged: data.dump has") for tenths in range(10)),
    *(Stored(f"flipped byte {n}", _flip(n), "SHA-256 is not the manifest's", "BackupDamaged") for n in range(FLIPS)),
    Stored("manifest missing", lambda arena: arena.file("manifest.json").unlink(), "it has no manifest"),
    Stored("manifest of another backup", _copy_manifest, "that of another backup"),
    Stored("manifest cut", lambda arena: os.truncate(arena.file("manifest.json"), 100), "the manifest can't be read"),
    Stored("manifest empty", lambda arena: os.truncate(arena.file("manifest.json"), 0), "the manifest can't be read"),
    Stored("manifest of a newer version", _edit(lambda d: d.update(format_version=99)), "newer version"),
    Stored("manifest with another sum", _edit(lambda d: d["files"][0].update(sha256="0" * 64)), "SHA-256",
           "BackupDamaged"),
    Stored("manifest with other rows", _edit(lambda d: d["rows"].update(users=7)), "expected 7", "NotEqual"),
    Stored("manifest of PostgreSQL 16", _edit(lambda d: d.update(postgres_version="16.1", pg_dump_version="16.1")),
           "pg_dump 16.1", "UnsupportedVersion"),
    Stored("data missing", lambda arena: arena.file("data.dump").unlink(), "data.dump is missing"),
    Stored("data of another backup", _copy_data, "SHA-256 is not the manifest's", "BackupDamaged"),
    Stored("catalog missing", lambda arena: arena.file("catalog.json.gz").unlink(), "catalog.json.gz is missing"),
    Stored("flipped byte in the catalog", _flip_catalog, "SHA-256 is not the manifest's", "BackupDamaged"),
]  # fmt: skip


# While a backup is made.


def _failed(result: Result | Answer, reason: str, *words: str, outcome: str = "") -> None:
    told = result.result if isinstance(result, Answer) else json.loads(result.to_json())
    assert told["outcome"] in ((outcome,) if outcome else ("Failed", "Transient")), told
    assert told["reason"] == reason, told
    for word in words:
        assert word in told["message"], told


def _wrong_password(arena: Arena) -> None:
    server = arena.bench.source.server
    hba = server.folder / "data" / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(f"local all medianest_backup scram-sha-256\n{before}")
    server.maintenance.execute("SELECT pg_reload_conf()")
    try:
        result = arena.backup(conninfo=f"{arena.conninfo('medianest_backup')} password=wrong")
    finally:
        hba.write_text(before)
        server.maintenance.execute("SELECT pg_reload_conf()")
    _failed(result, "ConnectFailed", "password authentication failed", outcome="Failed")


def _no_database(arena: Arena) -> None:
    result = arena.backup(conninfo=arena.conninfo("medianest_backup").replace("dbname=", "dbname=not_"))
    _failed(result, "ConnectFailed", "does not exist", outcome="Failed")


def _bucket(arena: Arena, fault: Any) -> tuple[Front, Repository]:
    front = arena.stack.enter_context(Front(arena.bucket.server))
    repository = arena.bucket.open(IMPATIENT, endpoint=front.endpoint)
    front.spoil(fault)
    return front, repository


def _store_fails(fault: Callable[[], Any], *words: str) -> Spoil:
    def spoil(arena: Arena) -> None:
        front, repository = _bucket(arena, fault())
        _failed(arena.backup(repository), "RepositoryFailed", *words)
        front.spoil(None)
        assert [item.path for item in repository.list() if "writing-" not in item.path] == []
        assert arena.backup(repository).outcome == "Succeeded"

    return spoil


def _bucket_gone(arena: Arena) -> None:
    repository = arena.bucket.open(IMPATIENT)
    shutil.rmtree(arena.bucket.server.data / arena.bucket.name)
    _failed(arena.backup(repository), "RepositoryFailed", "no such bucket", outcome="Failed")


def _one_of_two(arena: Arena) -> None:
    """The other repository keeps its backup, and the run fails all the same."""
    _, repository = _bucket(arena, status(500, method="PUT"))
    result = arena.backup(arena.bench.open(), repository)
    _failed(result, "RepositoryFailed", "the server fails", "It is in main", outcome="Transient")
    assert {name: item["ok"] for name, item in result.more["repositories"].items()} == {"main": True, "bucket": False}


@contextlib.contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder, *options], check=False).returncode:
        pytest.skip("file systems can't be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _volume_full(arena: Arena) -> None:
    with _mounted(arena.bench.folder / "small", "-o", "size=48k") as folder:
        result = arena.backup(open_folder(folder, "small"))
        _failed(result, "RepositoryFailed", "no space is left", outcome="Failed")
        assert [path for path in folder.rglob("*") if path.is_file()] == []


def _read_only(arena: Arena) -> None:
    with _mounted(arena.bench.folder / "ro", "-o", "ro") as folder:
        _failed(arena.backup(open_folder(folder, "ro")), "RepositoryFailed", "read-only", outcome="Failed")


def _work_full(arena: Arena) -> None:
    """No room to verify in: the backup stays, unverified, and the run fails."""
    with _mounted(arena.bench.folder / "small", "-o", "size=1m") as folder:
        folder.chmod(0o777)
        answer = arena.start("--verify", "--work-dir", str(folder)).end()
    _failed(answer, "VerificationFailed", "No space left")
    assert answer.result["verification"]["ok"] is False
    assert answer.code == 1


def _no_room_to_restore(arena: Arena) -> None:
    """There is room for a server and for the dump, but not for the tables: that says nothing of the backup."""
    with _mounted(arena.bench.folder / "small", "-o", "size=110m") as folder:
        folder.chmod(0o777)
        answer = arena.start("--verify", "--work-dir", str(folder)).end()
    _failed(answer, "VerificationFailed", "No space left", "is stored, but not verified")
    assert all(item["verification"] is None for item in arena.bench.listed())


def _killed(number: int) -> Spoil:
    def spoil(arena: Arena) -> None:
        run = arena.start()
        # Any moment at all is meant.
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(random.Random(_SEED + number).uniform(0.3, 3))
        run.send(signal.SIGKILL)
        run.process.wait()

    return spoil


def _killed_in_the_middle(arena: Arena) -> None:
    run = arena.start_and_wait()
    run.send(signal.SIGKILL)
    run.process.wait()


def _stopped_in_the_middle(arena: Arena) -> None:
    run = arena.start_and_wait()
    run.send(signal.SIGTERM)
    _failed(run.end(), "Interrupted", outcome="Transient")
    assert list(arena.folder.rglob("data.dump#*")) == []


def _pg_dump_killed(arena: Arena) -> None:
    run = arena.start_and_wait()
    for pid in run.children("pg_dump"):
        os.kill(pid, signal.SIGKILL)
    _failed(run.end(), "DumpFailed", "SIGKILL", outcome="Transient")


def _pg_dump_asked_to_end(arena: Arena) -> None:
    run = arena.start_and_wait()
    for pid in run.children("pg_dump"):
        os.kill(pid, signal.SIGTERM)
    _failed(run.end(), "DumpFailed")


def _session_terminated(arena: Arena) -> None:
    run = arena.start_and_wait()
    arena.bench.source.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_dump'"
    )
    _failed(run.end(), "DumpFailed", outcome="Transient")


def _counting_terminated(arena: Arena) -> None:
    """The dump would be good, but nobody could say how many rows it has."""
    run = arena.start_and_wait()
    arena.bench.source.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'medianest_backup' AND pid <>"
        " (SELECT max(pid) FROM pg_stat_activity WHERE application_name = 'pg_dump')"
    )
    answer = run.end()
    assert answer.result["outcome"] in ("Transient", "Succeeded"), answer.text


def _volume_full_in_the_middle(arena: Arena) -> None:
    with _mounted(arena.bench.folder / "small", "-o", "size=3m") as folder:
        arena.bench.repositories.append(f"small=file://{folder}")
        try:
            answer = arena.start().end()
        finally:
            arena.bench.repositories.pop()
        _failed(answer, "RepositoryFailed", "no space is left", "It is in main", outcome="Failed")
        assert [path for path in folder.rglob("*") if path.is_file()] == []


def _table_dropped(arena: Arena) -> None:
    """It waits for the dump, which has it."""
    database = arena.bench.source
    database.execute("CREATE TABLE doomed AS SELECT 1 AS n")
    run = arena.start_and_wait()
    dropping = threading.Thread(target=database.execute, args=("DROP TABLE doomed",))
    dropping.start()
    answer = run.end()
    dropping.join()
    assert answer.result["outcome"] == "Succeeded", answer.text
    assert database.execute("SELECT to_regclass('doomed')") == [(None,)]
    result, found = arena.restore(answer.result["backup"])
    assert result.outcome == "Succeeded", result
    assert "public.doomed" in found


def _at_once(arena: Arena) -> None:
    runs = [arena.start(), arena.start()]
    answers = [run.end() for run in runs]
    assert [answer.code for answer in answers] == [0, 0], "".join(answer.text for answer in answers)
    assert len({answer.result["backup"] for answer in answers}) == 2


def _clock_back(arena: Arena) -> None:
    then = datetime.now(UTC) - timedelta(days=31)
    result = arena.backup(now=lambda: then, keep={Tier.DAILY: timedelta(days=7)})
    assert result.outcome == "Succeeded", result
    assert result.more["backup"] > arena.good
    assert "removed" not in result.more
    restored, _ = arena.restore("latest")
    assert restored.more["backup"] == result.more["backup"]
    # Set right again, the clock makes newer ones still.
    assert arena.backup().more["backup"] > result.more["backup"]


def _clock_ahead(arena: Arena) -> None:
    """What it makes is newest, what there was stays as long as it is the last of its tier that is good."""
    result = arena.backup(tier=Tier.WEEKLY, now=lambda: datetime.now(UTC) + timedelta(days=400))
    assert result.outcome == "Succeeded", result
    assert arena.good in arena.bench.complete()


def _server_stops(arena: Arena) -> None:
    run = arena.start_and_wait()
    arena.bench.source.server.process.kill()
    _failed(run.end(), "DumpFailed", outcome="Transient")


MAKING = [
    Making("wrong password", _wrong_password),
    Making("database missing", _no_database),
    Making("bucket gone", _bucket_gone),
    Making("bucket full", _store_fails(lambda: status(507, "QuotaExceeded", "PUT"), "bucket is full")),
    Making("bucket may not be written", _store_fails(lambda: status(403, "AccessDenied", "PUT"), "access denied")),
    Making("bucket fails with 500", _store_fails(lambda: status(500, method="PUT"), "the server fails")),
    Making("bucket fails with 503", _store_fails(lambda: status(503, "SlowDown", "PUT"), "overloaded or down")),
    Making("bucket never answers", _store_fails(lambda: silence("PUT"), "no answer came")),
    Making("network cut in the upload", _store_fails(lambda: cut("PUT"), "the connection broke")),
    Making("one repository of two fails", _one_of_two, backups=2),
    Making("volume full", _volume_full),
    Making("volume read-only", _read_only),
    Making("no room to verify", _work_full, backups=2),
    Making("two backups at once", _at_once, backups=3),
    Making("clock set back a month", _clock_back, backups=3),
    Making("clock ahead by a year", _clock_ahead, backups=2),
]
"""With little data."""

IN_THE_MIDDLE = [
    *(Making(f"killed at random moment {n}", _killed(n), backups=0) for n in range(4)),
    Making("killed in the middle of the dump", _killed_in_the_middle),
    Making("stopped in the middle of the dump", _stopped_in_the_middle),
    Making("pg_dump killed", _pg_dump_killed),
    Making("pg_dump asked to end", _pg_dump_asked_to_end),
    Making("pg_dump's session terminated", _session_terminated),
    Making("the other sessions terminated", _counting_terminated, backups=0),
    Making("no room to restore what is verified", _no_room_to_restore, backups=2),
    Making("table dropped during the dump", _table_dropped, backups=2),
    Making("volume full in the middle of the dump", _volume_full_in_the_middle, backups=2),
]
"""With so much that there is a middle. `backups` 0: as it happens."""
