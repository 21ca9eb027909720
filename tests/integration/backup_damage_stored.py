"""The damage table's rows for backups that are stored."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

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


def _overwrite(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(arena: Arena) -> None:
        path = arena.file(name)
        path.write_bytes(change(path.read_bytes()))

    return spoil


def _swap_bytes(data: bytes) -> bytes:
    place = next(n for n in range(len(data) // 2, len(data)) if data[n] != data[n + 1])
    return data[:place] + data[place + 1 : place + 2] + data[place : place + 1] + data[place + 2 :]


def _zero_block(data: bytes) -> bytes:
    return data[:512] + bytes(512) + data[1024:]


def _reseal(arena: Arena, stored: bytes, unpacked: int) -> None:
    """Other data, of which the manifest says what is true: as a writer that lost half of it would leave both."""
    arena.file("data.dump.zst").write_bytes(stored)
    told = {"bytes": len(stored), "sha256": hashlib.sha256(stored).hexdigest(), "unpacked_bytes": unpacked}
    edit_document(arena.file("manifest.json"), lambda d: _data_of(d).update(told))


def _unpacked(path: Path) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())


def _data_of(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(file for file in document["files"] if file["name"].startswith("data."))
    return found


def _half_a_dump(arena: Arena) -> None:
    dump = _unpacked(arena.file("data.dump.zst"))
    half = dump[: len(dump) * 2 // 3]
    _reseal(arena, zstandard.ZstdCompressor().compress(half), len(half))


def _half_a_frame(arena: Arena) -> None:
    path = arena.file("data.dump.zst")
    stored = path.read_bytes()
    _reseal(arena, stored[: len(stored) // 2], len(_unpacked(path)))


def _another_dump(arena: Arena) -> None:
    """Whole, sealed anew, and of another moment."""
    path = arena.file("data.dump.zst", arena.good)
    _reseal(arena, path.read_bytes(), len(_unpacked(path)))


def _folder_in_its_place(name: str) -> Spoil:
    def spoil(arena: Arena) -> None:
        path = arena.file(name)
        path.unlink()
        path.mkdir()

    return spoil


def _link_to_nothing(arena: Arena) -> None:
    path = arena.file("data.dump.zst")
    path.unlink()
    path.symlink_to(arena.bench.folder / "elsewhere")


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
    Stored("manifest edited by hand", _overwrite("manifest.json", lambda text: text.replace(b'"UTF8"', b'"LATIN1"')),
           "the manifest can't be read"),
    Stored("manifest without end", _overwrite("manifest.json", lambda text: text + b" " * (17 << 20)),
           "which none of ours has"),
    Stored("manifest that is a folder", _folder_in_its_place("manifest.json"), "it has no manifest"),
    Stored("manifest that names a file elsewhere", _edit(lambda d: _data_of(d).update(name="../../data.dump.zst")),
           "the manifest can't be read"),
    Stored("manifest without the dump", _edit(lambda d: d["files"].remove(_data_of(d))),
           "has no file of the format custom"),
    Stored("manifest with a table more", _edit(lambda d: d["rows"].update(ghosts=1)), "table ghosts is missing",
           "NotEqual"),
    Stored("manifest with other rows", _edit(lambda d: d["rows"].update(users=7)), "expected 7", "NotEqual"),
    Stored("manifest of PostgreSQL 16", _edit(lambda d: d.update(postgres_version="16.1", pg_dump_version="16.1")),
           "pg_dump 16.1", "UnsupportedVersion"),
    Stored("data missing", lambda arena: arena.file("data.dump.zst").unlink(), "data.dump.zst is missing"),
    Stored("data longer", _overwrite("data.dump.zst", lambda data: data + b"x"), "is damaged: data.dump.zst has"),
    Stored("two bytes swapped", _overwrite("data.dump.zst", _swap_bytes), "SHA-256 is not the manifest's",
           "BackupDamaged"),
    Stored("a block of zeros", _overwrite("data.dump.zst", _zero_block), "SHA-256 is not the manifest's",
           "BackupDamaged"),
    Stored("data that is a folder", _folder_in_its_place("data.dump.zst"), "data.dump.zst is missing"),
    Stored("a link that leads nowhere", _link_to_nothing, "data.dump.zst is missing"),
    Stored("half a dump, sealed anew", _half_a_dump, "", "RestoreFailed"),
    Stored("half a frame, sealed anew", _half_a_frame, "", "BackupDamaged"),
    Stored("another dump, sealed anew", _another_dump, "users", "NotEqual"),
    Stored("data of another backup", _copy_data, "SHA-256 is not the manifest's", "BackupDamaged"),
    Stored("catalog missing", lambda arena: arena.file("catalog.json.gz").unlink(), "catalog.json.gz is missing"),
    Stored("catalog empty", lambda arena: os.truncate(arena.file("catalog.json.gz"), 0),
           "is damaged: catalog.json.gz has"),
    Stored("catalog that is no gzip", _overwrite("catalog.json.gz", lambda data: b"x" * len(data)),
           "SHA-256 is not the manifest's", "BackupDamaged"),
    Stored("flipped byte in the catalog", _flip_catalog, "SHA-256 is not the manifest's", "BackupDamaged"),
]  # fmt: skip
