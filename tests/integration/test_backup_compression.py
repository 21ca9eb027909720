"""What zstd packs: read back whole, or called damaged in words; and the backups of before it stay good."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from integration.backup_runs import Bench, candidate, contents, new_bench, replace_stored, unpacked
from integration.postgres_server import Database, binary
from medianest_operator.backups.logical import premigration
from medianest_operator.backups.repository.client import open_folder

# Packed by pg_dump's own zlib, and not a word of a compression in their manifests.
BEFORE = Path(__file__).parent / "data" / "backups" / "format-1" / "repository"
_MEBIBYTE = 1 << 20


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main")


def dumped(bench: Bench) -> Path:
    [path] = (bench.folder / "main").rglob("data.dump.zst")
    return path


def test_every_file_is_one_frame_of_the_said_size(bench: Bench) -> None:
    assert bench.backup("--format", "custom", "--format", "plain", "--format", "schema").code == 0
    document = json.loads(dumped(bench).with_name("manifest.json").read_text())
    assert document["format_version"] == 2
    files = {file["name"]: file for file in document["files"]}
    assert set(files) == {"data.dump.zst", "data.sql.zst", "schema.sql.zst", "catalog.json.gz"}
    assert files.pop("catalog.json.gz")["compression"] == "none"
    for name, file in files.items():
        path = dumped(bench).with_name(name)
        assert (file["compression"], file["unpacked_bytes"]) == ("zstd", len(unpacked(path)))
        assert zstandard.get_frame_parameters(path.read_bytes()).has_checksum
    assert unpacked(dumped(bench)).startswith(b"PGDMP")
    packed_by_pg_dump = bench.folder / "z9.dump"
    command = [binary("pg_dump"), "-Fc", "-Z9", f"--file={packed_by_pg_dump}"]
    subprocess.run(command, env={**os.environ, **bench.source.environment("postgres")}, check=True)
    assert files["data.dump.zst"]["bytes"] < packed_by_pg_dump.stat().st_size


FORGED: dict[str, tuple[Callable[[bytes], bytes], dict[str, object], str]] = {
    "cut off": (lambda stored: stored[: len(stored) // 2], {}, "the compressed data are cut off"),
    "without its end": (lambda stored: stored[:-1], {}, "the compressed data are cut off"),
    "no zstd": (lambda stored: b"PGDMP" + stored, {}, "the compressed data are damaged"),
    "other bytes": (lambda stored: stored[:999] + bytes(99) + stored[1098:], {}, "the compressed data are damaged"),
    "a byte more": (lambda stored: stored + b"x", {}, "something follows the compressed data"),
    "a frame more": (
        lambda stored: stored + zstandard.ZstdCompressor().compress(b"-- more"),
        {},
        "something follows the compressed data",
    ),
    "an empty frame more": (
        lambda stored: stored + zstandard.ZstdCompressor().compress(b""),
        {},
        "something follows the compressed data",
    ),
    "a large window": (
        lambda stored: _with_window(27),
        {},
        "the compressed data are damaged",
    ),
    "less than was said": (lambda stored: stored, {"unpacked_bytes": 1 << 30}, "bytes come out of it, not 1073741824"),
    "more than was said": (lambda stored: stored, {"unpacked_bytes": 1 << 16}, "more than 65536 bytes come out of it"),
    "a bomb": (lambda stored: _bomb(), {"unpacked_bytes": 1 << 20}, "more than 1048576 bytes come out of it"),
}


def _with_window(log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=log)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(bytes(_MEBIBYTE)) + packer.flush()


def _bomb() -> bytes:
    """Some 330 KiB that become 10 GiB."""
    packer = zstandard.ZstdCompressor().compressobj()
    return b"".join(packer.compress(bytes(_MEBIBYTE)) for _ in range(10 << 10)) + packer.flush()


@pytest.mark.parametrize("name", FORGED)
def test_what_is_no_such_frame_is_damaged(bench: Bench, name: str) -> None:
    """Sizes and sums are the manifest's, so that only unpacking it shows."""
    forge, said, words = FORGED[name]
    assert bench.backup().code == 0
    replace_stored(dumped(bench), forge(dumped(bench).read_bytes()), **said)
    target = candidate(bench.source.server)
    try:
        answer = bench.restore(target)
        assert answer.told == (1, "Failed", "BackupDamaged"), answer.text
        assert "data.dump.zst is damaged: " in answer.result["message"]
        assert words in answer.result["message"]
        assert contents(target) == {}
    finally:
        target.server.drop_database(target)
    answer = bench.verify("--backup", dumped(bench).parent.name)
    assert answer.told == (1, "Failed", "VerificationFailed"), answer.text
    assert words in answer.result["message"]
    assert list(bench.work.iterdir()) == []


def test_without_room_for_the_unpacked_dump_it_is_said_how_much_it_takes(bench: Bench, tmp_path: Path) -> None:
    assert bench.backup().code == 0
    replace_stored(dumped(bench), dumped(bench).read_bytes(), unpacked_bytes=1 << 50)
    answer = bench.restore(bench.source.server.maintenance, user="postgres")
    assert answer.told == (1, "Failed", "NoRoom"), answer.text
    needed = (1 << 30) + 1
    assert f"No space left on device; about {needed} MiB are needed there to restore" in answer.result["message"]
    assert list(bench.work.iterdir()) == []


def test_backups_of_before_lie_beside_those_of_now(bench: Bench) -> None:
    """That each of them is verified and comes back is shown in `test_backup_formats.py`."""
    shutil.copytree(BEFORE, bench.folder / "main")
    assert bench.backup("--verify", "--work-dir", str(bench.work)).code == 0
    assert {item["state"] for item in bench.listed()} == {"Complete"}
    assert len(bench.complete()) == 3
    stored = sorted(path for path in (bench.folder / "main").rglob("data.dump*"))
    assert sorted(path.name for path in stored) == ["data.dump", "data.dump", "data.dump.zst"]
    for path in stored:
        chunks = premigration.read([open_folder(bench.folder / "main")], str(path.relative_to(bench.folder / "main")))
        assert b"".join(chunks) == (path.read_bytes() if path.suffix == ".dump" else unpacked(path))
