"""A dump's table of contents is read as pg_restore writes it: one line an entry, whatever names hold.

pg_restore replaces line feeds and carriage returns in names (its source, sanitize_line); it knows no other line ends.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from integration.backup_runs import Bench, new_bench, unpacked
from integration.postgres_server import Database
from medianest_operator.backups.logical.dump import DumpError
from medianest_operator.backups.logical.toc import read_toc

_NAMES = {
    "line-separator": "a\u2028b",
    "next-line": "a\u0085b",
    "vertical-tab": "a\vb",
    "an-entry-of-its-own": "a\u20285; 0 0 EVENT TRIGGER - users medianest ",
    "a-dependency": "a\u2028;\tdepends on: 5",
}


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main")


def test_a_table_takes_no_rows_of_another_out_of_the_copy(bench: Bench, tmp_path: Path) -> None:
    """Whoever may make tables writes a line of the table of contents: the rows of `users` are an event trigger's."""
    bench.source.execute('SET ROLE medianest; CREATE TABLE public."a" (id text)')
    assert bench.backup().code == 0
    dumped = tmp_path / "data.dump"
    dumped.write_bytes(unpacked(next((bench.folder / "main").rglob("data.dump.zst"))))
    lines = listing(dumped)
    number = next(line for line in lines if b" TABLE DATA public users " in line).split(b";")[0].decode()
    name = f"a\u2028{number}; 0 0 EVENT TRIGGER - x medianest "
    bench.source.execute(f'ALTER TABLE public."a" RENAME TO "{name}"')
    assert bench.backup().code == 0
    answer = bench.verify()
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text


@pytest.mark.parametrize("name", _NAMES.values(), ids=_NAMES.keys())
def test_every_entry_is_one(medianest: Database, tmp_path: Path, name: str) -> None:
    medianest.execute(f'SET ROLE medianest; CREATE TABLE public."{name}" (id text)')
    archive = dump(medianest, tmp_path)
    assert len(read_toc(archive)) == len(listing(archive))


def test_a_name_that_is_no_utf_8_is_reported_in_words(medianest: Database, tmp_path: Path) -> None:
    """As in a dump that somebody forged, or of a server with another encoding."""
    medianest.execute("SET ROLE medianest; CREATE TABLE public.aaaaaaaa (id text)")
    archive = dump(medianest, tmp_path)
    archive.write_bytes(archive.read_bytes().replace(b"aaaaaaaa", b"\xff" * 8))
    try:
        read_toc(archive)
    except DumpError as error:
        assert str(error)  # noqa: PT017


def dump(database: Database, folder: Path) -> Path:
    archive = folder / "data.dump"
    place = ["-h", str(database.server.folder), "-U", "postgres", "-d", database.name]
    subprocess.run(["pg_dump", "-Fc", f"--file={archive}", *place], check=True)
    return archive


def listing(archive: Path) -> list[bytes]:
    """The lines of pg_restore's own list, one an entry."""
    listed = subprocess.run(["pg_restore", "--list", "--verbose", archive], capture_output=True, check=True).stdout
    return [line for line in listed.split(b"\n") if re.match(rb"\d+; \d+ \d+ ", line)]
