"""The damage table's rows for the making of backups."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from integration.backup_arena import Arena, Making, Spoil, failed
from integration.object_store import IMPATIENT, Front, cut, silence, status
from medianest_operator.backups.repository.catalog import Catalog
from medianest_operator.backups.repository.client import Repository, open_folder
from medianest_operator.backups.repository.layout import Tier
from medianest_operator.backups.verification.verifying import verify_taken

_SEED = 20261122


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
    failed(result, "ConnectFailed", "password authentication failed", outcome="Failed")


def _no_database(arena: Arena) -> None:
    result = arena.backup(conninfo=arena.conninfo("medianest_backup").replace("dbname=", "dbname=not_"))
    failed(result, "ConnectFailed", "does not exist", outcome="Failed")


def _bucket(arena: Arena, fault: Any) -> tuple[Front, Repository]:
    front = arena.stack.enter_context(Front(arena.bucket.server))
    repository = arena.bucket.open(IMPATIENT, endpoint=front.endpoint)
    front.spoil(fault)
    return front, repository


def _store_fails(fault: Callable[[], Any], *words: str) -> Spoil:
    def spoil(arena: Arena) -> None:
        front, repository = _bucket(arena, fault())
        failed(arena.backup(repository), "RepositoryFailed", *words)
        front.spoil(None)
        assert [item.path for item in repository.list() if "writing-" not in item.path] == []
        assert arena.backup(repository).outcome == "Succeeded"

    return spoil


def _bucket_that_is_verified_at_last(arena: Arena) -> None:
    """It can't be read for a while: the same backup is tried again, and no other is taken for that."""
    front, repository = _bucket(arena, None)
    result = arena.backup(repository)
    refused = 0

    async def refuse(request: web.Request) -> web.StreamResponse | None:
        nonlocal refused
        if request.method != "GET" or not request.path.endswith("/data.dump.zst") or refused > IMPATIENT.retries:
            return None
        refused += 1
        return web.Response(status=503)

    front.spoil(refuse)
    [origin] = Catalog.read(repository).origins
    said: list[str] = []
    verify_taken(origin, [repository], result, arena.bench.work, (), said.append, pauses=(0.01, 0.01))
    assert result.outcome == "Succeeded", result
    assert result.more["verification"]["ok"] is True
    assert any("Trying again." in line for line in said)
    [backup] = Catalog.read(repository, origin).backups
    assert backup.is_verified


def _bucket_slow(arena: Arena) -> None:
    """Each request waits: that takes its time, and is a good backup."""

    async def wait(request: web.Request) -> None:
        await asyncio.sleep(0.3)

    _, repository = _bucket(arena, wait)
    result = arena.backup(repository)
    assert result.outcome == "Succeeded", result
    assert [item["count"] for item in result.more["catalog"].values()] == [1]


def _bucket_gone(arena: Arena) -> None:
    repository = arena.bucket.open(IMPATIENT)
    shutil.rmtree(arena.bucket.server.data / arena.bucket.name)
    failed(arena.backup(repository), "RepositoryFailed", "no such bucket", outcome="Failed")


def _one_of_two(arena: Arena) -> None:
    """The other repository keeps its backup, and the run fails all the same."""
    _, repository = _bucket(arena, status(500, method="PUT"))
    result = arena.backup(arena.bench.open(), repository)
    failed(result, "RepositoryFailed", "the server fails", "The backup is in main", outcome="Transient")
    assert {name: item["ok"] for name, item in result.more["repositories"].items()} == {"main": True, "bucket": False}


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder, *options], check=False).returncode:
        pytest.skip("file systems can't be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _volume_full(arena: Arena) -> None:
    with mounted(arena.bench.folder / "small", "-o", "size=48k") as folder:
        result = arena.backup(open_folder(folder, "small"))
        failed(result, "RepositoryFailed", "no space is left", outcome="Failed")
        assert [path for path in folder.rglob("*") if path.is_file()] == []


def _read_only(arena: Arena) -> None:
    with mounted(arena.bench.folder / "ro", "-o", "ro") as folder:
        failed(arena.backup(open_folder(folder, "ro")), "RepositoryFailed", "read-only", outcome="Failed")


def _work_full(arena: Arena) -> None:
    """No room to verify in: the backup stays, unverified, and the run fails."""
    with mounted(arena.bench.folder / "small", "-o", "size=1m") as folder:
        folder.chmod(0o777)
        answer = arena.start("--verify", "--work-dir", str(folder)).end()
    failed(answer, "VerificationFailed")
    assert re.search("No space left|could not (extend|write)", answer.result["message"]), answer.result
    assert answer.result["verification"]["ok"] is False
    assert answer.code == 1


def _no_room_to_restore(arena: Arena) -> None:
    """There is room for a server and for the dump, but not for the tables: that says nothing of the backup."""
    with mounted(arena.bench.folder / "small", "-o", "size=88m") as folder:
        folder.chmod(0o777)
        answer = arena.start("--verify", "--work-dir", str(folder)).end()
    failed(answer, "VerificationFailed", "is stored, but not verified")
    # PostgreSQL words it in two ways: by the error, or by what a short write left out.
    assert re.search("No space left on device|could not extend file", answer.result["message"]), answer.result
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
    failed(run.end(), "Interrupted", outcome="Transient")
    assert list(arena.folder.rglob("data.dump.zst#*")) == []


def _pg_dump_killed(arena: Arena) -> None:
    run = arena.start_and_wait()
    for pid in run.children("pg_dump"):
        os.kill(pid, signal.SIGKILL)
    failed(run.end(), "DumpFailed", "SIGKILL", outcome="Transient")


def _pg_dump_asked_to_end(arena: Arena) -> None:
    run = arena.start_and_wait()
    for pid in run.children("pg_dump"):
        os.kill(pid, signal.SIGTERM)
    failed(run.end(), "DumpFailed")


def _session_terminated(arena: Arena) -> None:
    run = arena.start_and_wait()
    arena.bench.source.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_dump'"
    )
    failed(run.end(), "DumpFailed", outcome="Transient")


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
    with mounted(arena.bench.folder / "small", "-o", "size=3m") as folder:
        arena.bench.repositories.append(f"small=file://{folder}")
        try:
            answer = arena.start().end()
        finally:
            arena.bench.repositories.pop()
        failed(answer, "RepositoryFailed", "no space is left", "The backup is in main", outcome="Failed")
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


def server_stops(arena: Arena) -> None:
    run = arena.start_and_wait()
    arena.bench.source.server.process.kill()
    failed(run.end(), "DumpFailed", outcome="Transient")


MAKING = [
    Making("wrong password", _wrong_password),
    Making("database missing", _no_database),
    Making("bucket gone", _bucket_gone),
    Making("bucket slow", _bucket_slow),
    Making("bucket can't be read for a while", _bucket_that_is_verified_at_last),
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
