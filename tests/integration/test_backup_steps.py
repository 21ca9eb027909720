"""A backup with its verification and its retention, killed at each of its steps in the repository."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from integration.backup_runs import NAME, NAMESPACE, OPERATOR, WHOSE, Bench, contents, new_bench
from integration.postgres_server import Database
from medianest_operator.backups.logical.run import BackupOptions, BackupRun
from medianest_operator.backups.repository.layout import Tier

# Ends the process, as a node that loses its power does, before the nth change of the repository.
_UNTIL_STEP = """
import os, signal
from medianest_operator.agent.__main__ import main
from medianest_operator.backups.repository.client import Repository

left = int(os.environ["STEP"])

def counted(change):
    def call(*arguments):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments)
    return call

for name in ("write", "delete", "discard"):
    setattr(Repository, name, counted(getattr(Repository, name)))
main()
"""
_MOST_STEPS = 60


def good(folder: Path) -> dict[str, bool]:
    """The whole backups in a repository, and whether each was verified, told by its files alone."""
    found = {}
    for path in folder.rglob("manifest.json"):
        files = json.loads(path.read_text())["files"]
        places = [(path.with_name(file["name"]), file["sha256"]) for file in files]
        if all(place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == sum_ for place, sum_ in places):
            noted = path.with_name("verification.json")
            found[path.parent.name] = noted.is_file() and json.loads(noted.read_text())["outcome"] == "ok"
    return found


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    """With three old backups, the oldest of which alone is verified."""
    made = new_bench(medianest, room, "main")
    for days in (30, 20, 10):
        then = datetime.now(UTC) - timedelta(days=days)
        conninfo = f"host={medianest.server.folder} port=5432 user=medianest_backup dbname={medianest.name}"
        options = BackupOptions(Tier.DAILY, (NAMESPACE, NAME), conninfo=conninfo, now=lambda then=then: then)  # type: ignore[misc]
        assert BackupRun([made.open()], options).run().outcome == "Succeeded"
    assert made.verify("--backup", min(made.complete())).code == 0
    return made


def run(bench: Bench, step: int) -> int:
    """A daily backup with its verification, until then; returns its exit code."""
    what = ["backup", *bench.places, *WHOSE, "--tier", "daily", "--keep", "daily=7d", "--verify"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
        **bench.source.environment("medianest_backup"),
        "PYTHONPATH": str(OPERATOR),
        "STEP": str(step),
    }
    command = [sys.executable, "-c", _UNTIL_STEP, *what, "--work-dir", str(bench.work)]
    return subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False).returncode


def test_killed_at_any_step_nothing_good_is_lost(bench: Bench, medianest: Database, target: Database) -> None:
    folder, before = bench.folder / "main", bench.folder / "before"
    folder.rename(before)
    at_first = good(before)
    assert sorted(at_first.values()) == [False, False, True]
    ended = False
    for step in range(1, _MOST_STEPS):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        code = run(bench, step)
        assert code in (0, -signal.SIGKILL)
        after = good(folder)
        # The verified one goes only where a newer one is verified; each goes only where a newer one is there.
        assert any(after.values()), (step, after)
        assert max(at_first) in after or max(after) > max(at_first), (step, after)
        if ended := code == 0:
            break
    assert ended
    assert step > 12, "there were steps to be killed at"
    assert [verified for backup, verified in good(folder).items() if backup > max(at_first)] == [True]

    # What the last but one left behind is cleared away by the next run, and the latest verified one comes back.
    shutil.rmtree(folder)
    shutil.copytree(before, folder)
    assert run(bench, step - 1) == -signal.SIGKILL
    assert run(bench, _MOST_STEPS) == 0
    answer = bench.restore(target, "--backup", "latest-verified")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert contents(target) == contents(medianest)
