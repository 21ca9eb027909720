"""The damage table's rows for backups that are stored."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from typing import Any

from backup_documents import edit_document
from integration.backup_arena import Arena, Spoil, Stored

FLIPS = 20
_SEED = 20261122


def _cut(tenths: int) -> Spoil:
    def spoil(arena: Arena) -> None:
        path = arena.file("data.dump.zst")
        os.truncate(path, path.stat().st_size * tenths // 10)

    return spoil


def _flip(number: int) -> Spoil:
    def spoil(arena: Arena) -> None:
        path = arena.file("data.dump.zst")
        data = bytearray(path.read_bytes())
        place = random.Random(_SEED + number).randrange(len(data))
        data[place] ^= 1 << random.Random(number).randrange(8)
        path.write_bytes(data)

    return spoil


def _edit(change: Callable[[dict[str, Any]], None]) -> Spoil:
    def spoil(arena: Arena) -> None:
        edit_document(arena.file("manifest.json"), change)

    return spoil


def _copy_manifest(arena: Arena) -> None:
    shutil.copy(arena.file("manifest.json", arena.good), arena.file("manifest.json"))


def _copy_data(arena: Arena) -> None:
    """Another backup's dump, and of the right length, as far as the manifest knows."""
    other, own = arena.file("data.dump.zst", arena.good), arena.file("data.dump.zst")
    own.write_bytes(other.read_bytes().ljust(own.stat().st_size, b"\0")[: own.stat().st_size])


def _flip_catalog(arena: Arena) -> None:
    path = arena.file("catalog.json.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


STORED = [
    *(Stored(f"cut at {tenths} tenths", _cut(tenths), "is damaged: data.dump.zst has") for tenths in range(10)),
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
    Stored("data missing", lambda arena: arena.file("data.dump.zst").unlink(), "data.dump.zst is missing"),
    Stored("data of another backup", _copy_data, "SHA-256 is not the manifest's", "BackupDamaged"),
    Stored("catalog missing", lambda arena: arena.file("catalog.json.gz").unlink(), "catalog.json.gz is missing"),
    Stored("flipped byte in the catalog", _flip_catalog, "SHA-256 is not the manifest's", "BackupDamaged"),
]  # fmt: skip
