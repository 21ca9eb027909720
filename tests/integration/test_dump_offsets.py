"""A dump that came through a pipe gets the places of its rows, as pg_dump itself notes them in a file."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.backup_runs import SAMPLE
from integration.postgres_server import Database, binary
from medianest_operator.backups.logical.offsets import write_with_offsets


@pytest.fixture
def database(medianest: Database) -> Database:
    medianest.execute(SAMPLE)
    # Rows of all lengths, among them such whose length has zero bytes; and tables without columns, and without rows.
    medianest.execute(
        "CREATE TABLE long (t text); INSERT INTO long SELECT repeat('x', n)"
        " FROM unnest(ARRAY[0, 1, 254, 255, 256, 65534, 65535, 65536]) n;"
        " CREATE TABLE bare (); INSERT INTO bare SELECT FROM generate_series(1, 3); CREATE TABLE none (id int);"
        " CREATE TABLE raw (b bytea); INSERT INTO raw VALUES (decode(repeat('00', 100), 'hex'))"
    )
    return medianest


def dumped(database: Database, *options: str) -> bytes:
    command = [binary("pg_dump"), "-Fc", "-Z0", *options]
    return subprocess.run(command, env=database.environment("postgres"), stdout=subprocess.PIPE, check=True).stdout


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def noted(data: bytes, size: int = 1 << 20) -> bytes:
    target = io.BytesIO()
    write_with_offsets(pieces(data, size), target)
    return target.getvalue()


@pytest.mark.parametrize(("size", "longest"), [(1 << 20, 16777215), (4096, 5), (997, 5)])
def test_the_places_are_those_that_pg_dump_notes(database: Database, tmp_path: Path, size: int, longest: int) -> None:
    database.execute(f"INSERT INTO long VALUES (repeat('y', {longest}))")
    piped = dumped(database)
    path = tmp_path / "file.dump"
    dumped(database, f"--file={path}")
    itself, ours = path.read_bytes(), noted(piped, size)
    # The second at which each was made is in its first bytes.
    assert ours[64:] == itself[64:]
    assert piped[64:] != itself[64:]


def test_one_with_large_objects_is_restored_as_it_was(database: Database, tmp_path: Path) -> None:
    """They may hold anything, also what ends a table's rows."""
    database.execute("SELECT lo_from_bytea(0, decode(repeat('00', 5000), 'hex'))")
    try:
        piped = dumped(database)
    finally:
        database.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    path = tmp_path / "noted.dump"
    path.write_bytes(noted(piped))
    plain = tmp_path / "plain.dump"
    plain.write_bytes(piped)
    assert script(path) == script(plain)


def script(path: Path) -> list[bytes]:
    command = [binary("pg_restore"), "--file=-", str(path)]
    text = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return [line for line in text.splitlines() if b"restrict" not in line]


@pytest.mark.parametrize("spoil", [
    lambda data: b"",
    lambda data: data[:3],
    lambda data: data[:2000],
    lambda data: data[:-3],
    lambda data: b"PGDMP" + bytes([1, 15]) + data[7:],
    lambda data: b"-- SQL" + data,
], ids=["nothing", "its beginning", "in its contents", "in its rows", "a newer kind", "another thing"])  # fmt: skip
def test_what_is_no_whole_dump_is_written_all_the_same(database: Database, spoil: object) -> None:
    assert callable(spoil)
    data = spoil(dumped(database))
    found = noted(data)
    assert len(found) == len(data)
    if len(data) < 10_000 or data[6] == 15:
        assert found == data
