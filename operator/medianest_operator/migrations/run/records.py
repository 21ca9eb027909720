"""Whether the run still has what it lives by: its lock, its journal and Prisma's history.

Lint refuses statements that name them. SQL that is put together at run time has no name that could be read beforehand,
so the last look before each commit is at the things themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.migrations.errors import HISTORY_DROPPED, touches_records
from medianest_operator.migrations.journal import Entry, Journal
from medianest_operator.migrations.run.parts import Part
from medianest_operator.postgres import run_lock

_ROWS: LiteralString = "SELECT id, migration_name, finished_at, h::text FROM public._prisma_migrations h"


class Records:
    """What the history said as the run began, to compare with.

    Args:
        connection: the run's; it holds the lock.
        entry: the run's row in the journal.
    """

    def __init__(self, connection: Connection[Any], journal: Journal, entry: Entry) -> None:
        self._connection = connection
        self._journal = journal
        self._entry = entry
        self._before = self._read()

    def check(self, part: Part) -> None:
        """Look before a part is committed, or once a file that stands alone has run.

        Raises:
            RunError: something is gone, or isn't as the run left it.
        """
        touched = self._touched(part)
        if touched is not None:
            names = ", ".join(item.name for item in part.planned)
            raise touches_records(names, touched)

    def _touched(self, part: Part) -> str | None:
        if not run_lock.is_held(self._connection):
            # A second run could begin beside this one, and take it for cut off.
            regained = run_lock.try_lock(self._connection)
            return f"gave up the lock of the run{'' if regained else ', and another run has taken it'}"
        if not self._journal.holds(self._entry):
            return "touched the run's journal, without which an interrupted run could not be finished or rolled back"
        try:
            with self._connection.transaction():
                now = self._read()
        except psycopg.errors.UndefinedTable:
            return HISTORY_DROPPED
        own = {item.name for item in part.planned}
        if any(now.get(id_) != row for id_, row in self._before.items() if row[0] not in own):
            return "changed rows of _prisma_migrations, which says what is applied"
        finished = {name for name, is_finished, _ in now.values() if is_finished}
        if part.is_transaction and not own <= finished:
            return "changed rows of _prisma_migrations, which says what is applied"
        return None

    def _read(self) -> Mapping[str, tuple[str, bool, str]]:
        rows = self._connection.cursor(row_factory=tuple_row).execute(_ROWS).fetchall()
        return {id_: (name, finished is not None, text) for id_, name, finished, text in rows}
