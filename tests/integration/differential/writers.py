"""The application at work: what it was told is committed has to be there afterwards, wherever a migration led it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection

from integration.differential.state import marks
from integration.postgres_server import Database

_INSERTS = (
    "INSERT INTO rate_limits (user_id, endpoint) VALUES ('u1', %s)",
    "INSERT INTO events (id, at, note) VALUES (%s, '2026-05-05', %s)",
    # Where a migration has made such a partition, it is written to at once.
    "INSERT INTO events (id, at, note) VALUES (%s, make_date(%s, 5, 5), %s)",
)
_YEARS = range(2031, 2040)


class Writer(threading.Thread):
    """Inserts numbered rows and remembers each commit that was acknowledged."""

    def __init__(self, database: Database, number: int) -> None:
        super().__init__(daemon=True)
        self.acknowledged: set[str] = set()
        self.first = threading.Event()
        """Set once it has written."""
        self._database = database
        self._number = number
        self._next = 0
        self._ending = threading.Event()

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                with self._database.connect("medianest_app") as connection:
                    while not self._ending.wait(0.01):
                        self._write(connection)
            except psycopg.Error:
                self._ending.wait(0.02)

    def _write(self, connection: Connection[Any]) -> None:
        self._next += 1
        number, mark = 1000 + self._next, f"w:{self._number}:{self._next}"
        which = self._next % 3
        years = [_YEARS[self._next // 3 % len(_YEARS)]] if which == 2 else []
        values = [mark] if which == 0 else [number, *years, mark]
        try:
            connection.execute(_INSERTS[which].encode(), values)
        except psycopg.errors.IntegrityError:
            return
        self.acknowledged.add(mark)
        self.first.set()

    def stop(self) -> None:
        self._ending.set()
        self.join(30)
        if self.is_alive():
            raise AssertionError("the writer hangs")


@contextmanager
def writing(database: Database, at_work: bool) -> Iterator[list[Writer]]:
    """A writer at work, who has written once; none where the application sleeps. He is gone after the block."""
    writers = [Writer(database, 0)] if at_work else []
    for writer in writers:
        writer.start()
    try:
        for writer in writers:
            if not writer.first.wait(30):
                raise AssertionError("the writer never wrote")
        yield writers
    finally:
        for writer in writers:
            writer.stop()


def lost(database: Database, writers: list[Writer]) -> set[str]:
    """What was acknowledged and is nowhere."""
    known = set[str]().union(*(set(writer.acknowledged) for writer in writers))
    return known - marks(database) if known else set()
