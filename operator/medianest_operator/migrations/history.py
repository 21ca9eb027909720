"""Prisma's migration history: the table `_prisma_migrations` and the lock that guards it.

The table, the lock's key and the meaning of a row are Prisma's (observed on 6.19): a migration is applied when
`finished_at` is set and `rolled_back_at` is not; a row with neither is a failure that nobody resolved; names repeat
when a migration was rolled back and applied again. The rows are written as Prisma writes them, so that its command
line and this operator can take turns on one database.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection, Connection
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from medianest_operator.migrations.source import Migration
from medianest_operator.postgres.roles import let_reader_in
from medianest_operator.postgres.rows import only, only_async
from medianest_operator.postgres.trusted import Relation, UntrustedContent, clamped, reading

TABLE = "_prisma_migrations"

CREATE_TABLE: LiteralString = """
CREATE TABLE IF NOT EXISTS public._prisma_migrations (
    id                  varchar(36) PRIMARY KEY NOT NULL,
    checksum            varchar(64) NOT NULL,
    finished_at         timestamptz,
    migration_name      varchar(255) NOT NULL,
    logs                text,
    rolled_back_at      timestamptz,
    started_at          timestamptz NOT NULL DEFAULT now(),
    applied_steps_count integer NOT NULL DEFAULT 0
)
"""

# One row always: whether there is a history, and whether the schema holds anything else (what Prisma calls P3005).
# An extension's own objects don't count: pg_stat_statements brings views into public.
SELECT_STATE: LiteralString = """
SELECT pg_catalog.to_regclass('public._prisma_migrations') IS NOT NULL,
       (SELECT pg_catalog.count(*)
          FROM pg_catalog.pg_class c
         WHERE c.relnamespace = pg_catalog.to_regnamespace('public')
           AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
           AND c.relname <> '_prisma_migrations'
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                            WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                              AND d.objid = c.oid AND d.deptype = 'e'))
"""

SELECT_ROWS: LiteralString = """
SELECT id, checksum, finished_at, migration_name, logs, rolled_back_at, started_at, applied_steps_count
  FROM public._prisma_migrations
 ORDER BY started_at, id
"""

MOST_ROWS = 5000
"""A history with more is nobody's: it isn't read, so that it can't fill the controller's memory."""

# For the controller, to which the rows are somebody's input: no text beyond the column's own length, and no moment that
# a calendar doesn't have ('infinity', years before 1 and after 9999).
_SELECT_BOUNDED: LiteralString = f"""
SELECT pg_catalog.left(id, 36), pg_catalog.left(checksum, 64), {clamped("finished_at")},
       pg_catalog.left(migration_name, 255), pg_catalog.left(logs, 4000), {clamped("rolled_back_at")},
       {clamped("started_at")}, applied_steps_count
  FROM ONLY public._prisma_migrations
 ORDER BY started_at, id
 LIMIT {MOST_ROWS + 1}
"""

RELATION = Relation(
    "public",
    TABLE,
    {
        "id": "varchar",
        "checksum": "varchar",
        "finished_at": "timestamptz",
        "migration_name": "varchar",
        "logs": "text",
        "rolled_back_at": "timestamptz",
        "started_at": "timestamptz",
        "applied_steps_count": "int4",
    },
)

INSERT_STARTED: LiteralString = """
INSERT INTO public._prisma_migrations (id, checksum, started_at, migration_name) VALUES (%s, %s, %s, %s)
"""

INSERT_RESOLVED: LiteralString = """
INSERT INTO public._prisma_migrations (id, checksum, started_at, finished_at, migration_name, applied_steps_count)
VALUES (%s, %s, %s, %s, %s, 0)
"""

MARK_FINISHED: LiteralString = """
UPDATE public._prisma_migrations
   SET finished_at = %s, applied_steps_count = applied_steps_count + 1
 WHERE id = %s
"""

MARK_FAILED: LiteralString = "UPDATE public._prisma_migrations SET logs = %s WHERE id = %s"

_PUT_BACK: LiteralString = """
INSERT INTO public._prisma_migrations
SELECT r.* FROM pg_catalog.jsonb_populate_recordset(NULL::public._prisma_migrations, %s) r
ON CONFLICT (id) DO UPDATE
   SET checksum = excluded.checksum, finished_at = excluded.finished_at, migration_name = excluded.migration_name,
       logs = excluded.logs, rolled_back_at = excluded.rolled_back_at, started_at = excluded.started_at,
       applied_steps_count = excluded.applied_steps_count
"""

MARK_ROLLED_BACK: LiteralString = "UPDATE public._prisma_migrations SET rolled_back_at = %s WHERE id = %s"


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One row of `_prisma_migrations`."""

    id: str
    checksum: str
    finished_at: datetime | None
    migration_name: str
    logs: str | None
    rolled_back_at: datetime | None
    started_at: datetime
    applied_steps_count: int

    @property
    def is_applied(self) -> bool:
        """Finished and not rolled back."""
        return self.finished_at is not None and self.rolled_back_at is None

    @property
    def is_failed(self) -> bool:
        """Neither finished nor rolled back: Prisma refuses to go on (P3009) until somebody resolves it."""
        return self.finished_at is None and self.rolled_back_at is None


@dataclass(frozen=True, slots=True)
class History:
    """What the database says about its migrations.

    Attributes:
        exists: whether `_prisma_migrations` is there at all.
        rows: its rows in the order in which they were started.
        other_relations: how many tables and views `public` holds beside it, not counting those of extensions.
    """

    exists: bool = False
    rows: tuple[HistoryRow, ...] = ()
    other_relations: int = 0

    @property
    def applied(self) -> tuple[HistoryRow, ...]:
        """The rows that count, in the order of names."""
        return tuple(sorted((row for row in self.rows if row.is_applied), key=lambda row: row.migration_name))

    @property
    def version(self) -> str | None:
        """The last applied migration's name, `None` on a database without one."""
        applied = self.applied
        return applied[-1].migration_name if applied else None


def history_from_rows(exists: bool, other_relations: int, rows: Iterable[Sequence[Any]]) -> History:
    """Build a `History` from what `SELECT_STATE` and `SELECT_ROWS` return."""
    return History(exists=exists, rows=tuple(HistoryRow(*row) for row in rows), other_relations=other_relations)


def read_history(connection: Connection[Any]) -> History:
    """Read the history; a database without one is no error.

    Raises:
        psycopg.Error: as the server says.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        state = only(cursor.execute(SELECT_STATE))
        rows = cursor.execute(SELECT_ROWS).fetchall() if state[0] else []
    return history_from_rows(state[0], state[1], rows)


async def read_history_async(connection: AsyncConnection[Any]) -> History:
    """As `read_history`, for the controller, which trusts neither the table nor what is in it.

    Raises:
        UntrustedRelation: the table is not the one that Prisma makes.
        UntrustedContent: it holds what no history holds.
        psycopg.OperationalError: as the server says.
    """
    async with reading(connection, RELATION) as exists, connection.cursor(row_factory=tuple_row) as cursor:
        state = await only_async(await cursor.execute(SELECT_STATE))
        rows = await (await cursor.execute(_SELECT_BOUNDED)).fetchall() if exists else []
    if len(rows) > MOST_ROWS:
        raise UntrustedContent(f"{RELATION.label} has more than {MOST_ROWS} rows; a history has one for each migration")
    for row in rows:
        if not (row[3] or "").isprintable():
            raise UntrustedContent(f"{RELATION.label} has a migration whose name is not one: {row[3]!r}")
    return history_from_rows(exists, state[1], rows)


def ensure_table(connection: Connection[Any]) -> None:
    """Create `_prisma_migrations` as Prisma does, if it isn't there."""
    connection.execute(CREATE_TABLE)
    let_reader_in(connection, (RELATION.schema, RELATION.name))


def rows_as_json(connection: Connection[Any]) -> list[Mapping[str, Any]]:
    """All rows as they are, for `put_rows_back`; none where there is no history."""
    if not read_history(connection).exists:
        return []
    query = "SELECT pg_catalog.to_jsonb(h) FROM public._prisma_migrations h"
    return [row[0] for row in connection.cursor(row_factory=tuple_row).execute(query).fetchall()]


def put_rows_back(connection: Connection[Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Make these rows what they were, or make them again; others stay."""
    ensure_table(connection)
    connection.execute(_PUT_BACK, (Jsonb(list(rows)),))


def insert_started(connection: Connection[Any], migration: Migration, started_at: datetime) -> str:
    """Record that a migration begins; returns the row's id."""
    row_id = str(uuid.uuid4())
    connection.execute(INSERT_STARTED, (row_id, migration.checksum, started_at, migration.name))
    return row_id


def insert_resolved(connection: Connection[Any], migration: Migration, at: datetime) -> None:
    """What `prisma migrate resolve --applied` leaves: a finished row of which no step was run."""
    connection.execute(INSERT_RESOLVED, (str(uuid.uuid4()), migration.checksum, at, at, migration.name))


def mark_finished(connection: Connection[Any], row_id: str) -> None:
    """Record that the migration's script has run."""
    connection.execute(MARK_FINISHED, (datetime.now(UTC), row_id))


def mark_failed(connection: Connection[Any], row_id: str, logs: str) -> None:
    """Record why the script failed; the row now blocks further runs until it is resolved."""
    connection.execute(MARK_FAILED, (logs, row_id))


def mark_rolled_back(connection: Connection[Any], row_id: str) -> None:
    """What `prisma migrate resolve --rolled-back` leaves: the failed row no longer counts, its logs stay."""
    connection.execute(MARK_ROLLED_BACK, (datetime.now(UTC), row_id))
