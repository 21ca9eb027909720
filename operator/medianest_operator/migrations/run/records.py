"""Whether the run still has what it lives by: its lock, its journal, Prisma's history, and who may connect.

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
from medianest_operator.postgres.rows import only

# What would act as the run writes its last words, after the last look.
_ACTING: LiteralString = """
WITH tables AS (
  SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname = 'medianest_operator' OR (n.nspname = 'public' AND c.relname = '_prisma_migrations'))
SELECT t.oid, t.xmin::text FROM pg_catalog.pg_trigger t JOIN tables ON tables.oid = t.tgrelid WHERE NOT t.tgisinternal
 UNION ALL
SELECT r.oid, r.xmin::text FROM pg_catalog.pg_rewrite r JOIN tables ON tables.oid = r.ev_class
"""
_ROWS: LiteralString = "SELECT id, migration_name, finished_at, h::text FROM public._prisma_migrations h"


# Sorted: the order is that of the grants. A row that the transaction itself has written is of one in progress.
_RIGHTS: LiteralString = """
SELECT ARRAY(SELECT granted::text
               FROM pg_catalog.unnest(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) granted ORDER BY 1),
       d.xmin::text,
       pg_catalog.pg_xact_status(
           greatest(pg_catalog.pg_current_xact_id()::text::bigint - pg_catalog.age(d.xmin), 3)::text::xid8
       ) IS NOT DISTINCT FROM 'in progress'
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""


class DatabaseRights:
    """The rights on the database itself as the run began: no migration changes them.

    Lint refuses to GRANT and to REVOKE them; here is noticed what SQL does that is put together at run time.

    Args:
        is_copy: nobody else is there, so that every change is the run's; on a copy not all of them are the same rights.
    """

    def __init__(self, connection: Connection[Any], *, is_copy: bool = False) -> None:
        self._connection = connection
        self._is_copy = is_copy
        self._rights, self._mark, _ = self._read()

    def check(self, part: Part) -> None:
        """Look before a part is committed, or once a file that stands alone has run.

        Raises:
            RunError: it has changed them. What somebody else changes while a transaction runs is not put down to it.
        """
        rights, mark, by_itself = self._read()
        changed = mark != self._mark if self._is_copy else rights != self._rights
        if changed and (by_itself or not part.is_transaction):
            perhaps = "" if part.is_transaction else ", or somebody did meanwhile"
            raise touches_records(
                ", ".join(item.name for item in part.planned),
                f"changed rights on the database{perhaps}",
            )

    def _read(self) -> tuple[list[str], str, bool]:
        return only(self._connection.cursor(row_factory=tuple_row).execute(_RIGHTS))


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
        self._acting = self._read_acting()

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
        if self._read_acting() - self._acting:
            return "put a trigger or a rule on _prisma_migrations or on the run's journal, or somebody did meanwhile"
        own = {item.name for item in part.planned}
        if any(now.get(id_) != row for id_, row in self._before.items() if row[0] not in own):
            return "changed rows of _prisma_migrations, which says what is applied, or somebody did meanwhile"
        finished = {name for name, is_finished, _ in now.values() if is_finished}
        if part.is_transaction and not own <= finished:
            return "changed rows of _prisma_migrations, which says what is applied"
        return None

    def _read_acting(self) -> set[tuple[int, str]]:
        rows = self._connection.cursor(row_factory=tuple_row).execute(_ACTING).fetchall()
        return {(oid, version) for oid, version in rows}

    def _read(self) -> Mapping[str, tuple[str, bool, str]]:
        rows = self._connection.cursor(row_factory=tuple_row).execute(_ROWS).fetchall()
        return {id_: (name, finished is not None, text) for id_, name, finished, text in rows}
