"""What the benchmarks have in common: the machine in a line, sizes, data, a table."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from shaped import rows

if TYPE_CHECKING:
    from integration.postgres_server import Database

_BATCH_USERS = 1000
_UNITS = {"": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3}


def size(text: str) -> int:
    """Bytes of `100MB`."""
    found = re.fullmatch(r"(\d+)(kB|MB|GB)?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 0, 100MB or 2GB")
    return int(found[1]) * _UNITS[found[2] or ""]


def machine() -> str:
    """The machine in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def fill(database: Database, wanted: int) -> None:
    """Put MediaNest-shaped rows into a migrated database until it has that many bytes."""
    first = 1
    with database.connect() as connection:
        while connection.execute("SELECT pg_database_size(current_database()) < %s", (wanted,)).fetchone() == (True,):
            connection.execute(rows(first, first + _BATCH_USERS - 1).encode())
            first += _BATCH_USERS
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def print_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> None:
    """A table in Markdown."""
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in body:
        print(f"| {' | '.join(row)} |")
