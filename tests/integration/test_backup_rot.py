"""Bytes that change after a backup was verified: they are found, said, and nobody restores them."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.backup_runs import Bench, contents, new_bench
from integration.postgres_server import Database


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    """With three backups, of which the two older ones are verified in both places."""
    made = new_bench(medianest, room, "main", "far")
    for _ in range(2):
        assert made.backup("--verify", "--work-dir", str(made.work)).code == 0
    assert made.backup().code == 0
    return made


def dumps(bench: Bench, place: str = "main") -> list[Path]:
    """The stored dumps, the oldest first."""
    return sorted((bench.folder / place).rglob("data.dump.zst"), key=lambda path: path.parent.name)


def rot(path: Path) -> None:
    """One bit in the middle, and the time stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_the_older_verified_ones_are_read_back_in_all_places(bench: Bench) -> None:
    rot(dumps(bench, "far")[0])
    answer = bench.verify("--reread", "30d")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    answer = bench.verify("--reread", "0d")
    assert answer.told == (1, "Failed", "VerificationFailed"), answer.text
    name = dumps(bench)[0].parent.name
    assert f"{name} of far was verified and is no longer good" in answer.result["message"]
    assert "no older one was verified" in answer.result["message"]
    assert answer.text.count(" back: ") == 3
    told = {(item["repository"], item["id"]): item["verification"]["ok"] for item in bench.listed()}
    assert [key for key, ok in told.items() if not ok] == [("far", name)]
    # What is known to be spoilt isn't read again, and the rest is as good as before.
    assert bench.verify("--reread", "0d").told == (0, "Succeeded", "Succeeded")


def test_the_latest_verified_is_the_next_one_where_the_newest_has_rotted(bench: Bench, target: Database) -> None:
    before = contents(bench.source)
    rot(dumps(bench)[1])
    rot(dumps(bench, "far")[1])
    answer = bench.restore(target, "--backup", "latest-verified")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["backup"] == dumps(bench)[0].parent.name
    assert f"{dumps(bench)[1].parent.name}" in answer.result["message"]
    assert "so the one before was taken" in answer.result["message"]
    assert contents(target) == before


def test_only_the_copy_that_has_rotted_is_called_so(bench: Bench, target: Database) -> None:
    """The other repository's is restored in its place."""
    rot(dumps(bench)[1])
    name = dumps(bench)[1].parent.name
    answer = bench.restore(target, "--backup", name)
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["repository"] == "far"
    told = {item["repository"]: item["verification"]["ok"] for item in bench.listed() if item["id"] == name}
    assert told == {"main": False, "far": True}


def test_one_that_is_named_is_that_one_or_none(bench: Bench, target: Database) -> None:
    rot(dumps(bench)[1])
    rot(dumps(bench, "far")[1])
    answer = bench.restore(target, "--backup", dumps(bench)[1].parent.name)
    assert answer.told == (1, "Failed", "BackupDamaged"), answer.text
