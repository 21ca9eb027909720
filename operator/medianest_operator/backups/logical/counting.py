"""Counting rows beside a dump: on a connection of its own to the same server, in the same snapshot."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import psycopg
from psycopg import Connection

from medianest_operator.backups.logical.server import Server, open_connection
from medianest_operator.postgres.contents import Table, at_snapshot, count_rows

_AT_ONCE = 200


class Counting:
    """Counts in a thread while the block lasts.

    Attributes:
        environment: libpq's variables that lead to the server that has the snapshot.
    """

    environment: Mapping[str, str]

    def __init__(self, server: Server, snapshot: str, tables: Sequence[Table]) -> None:
        self._server = server
        self._snapshot = snapshot
        self._tables = tables
        self._rows: dict[str, int] = {}
        self._error: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._count, name="counting", daemon=True)

    def __enter__(self) -> Counting:
        self._connection, self.environment = self._connect()
        self._thread.start()
        return self

    def rows(self) -> dict[str, int]:
        """The number of rows of each table, once all are counted.

        Raises:
            psycopg.Error: they could not be counted.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._rows

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(psycopg.Error):
                self._connection.cancel_safe(timeout=5)
        self._thread.join(10)
        self._connection.close()

    def _connect(self) -> tuple[Connection[Any], Mapping[str, str]]:
        """To the very server: another one doesn't know the snapshot."""
        failure: psycopg.Error | None = None
        for environment in self._server.environments:
            try:
                connection = open_connection(environment)
            except psycopg.Error as error:
                failure = failure or error
                continue
            try:
                with at_snapshot(connection, self._snapshot):
                    return connection, environment
            except psycopg.Error as error:
                failure = failure or error
            connection.close()
        assert failure is not None
        raise failure

    def _count(self) -> None:
        try:
            # A transaction keeps the locks of all that it has counted, and the server has room for so many.
            for start in range(0, len(self._tables), _AT_ONCE):
                with at_snapshot(self._connection, self._snapshot):
                    for name, count in count_rows(self._connection, self._tables[start : start + _AT_ONCE]):
                        self._rows[name] = count
        except psycopg.Error as error:
            self._error = error
