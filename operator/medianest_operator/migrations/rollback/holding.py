"""Whether what is about to be dropped holds something that others wrote: then it isn't dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator.postgres.catalog import Catalog, CatalogObject, Key
from medianest_operator.postgres.rows import only

# The tables in which a column lies: its own, its partitions, what inherits it. And what the rows in each got that were
# there when it came, whatever its default is now (PostgreSQL manual, pg_attribute, attmissingval: an array of one).
_GIVEN: LiteralString = """
WITH RECURSIVE tables (oid) AS (
  SELECT %s::pg_catalog.regclass::oid
  UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tables t ON t.oid = i.inhparent)
SELECT c.oid::pg_catalog.regclass::text, (a.attmissingval::text::text[])[1]
  FROM tables t JOIN pg_catalog.pg_class c ON c.oid = t.oid
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND pg_catalog.quote_ident(a.attname) = %s
 WHERE c.relkind = 'r'
"""


def added_holders(before: Catalog, after: Catalog) -> list[CatalogObject]:
    """The tables that a run made, and the columns that it added to others."""
    added = [after.objects[key] for key in sorted(after.objects.keys() - before.objects.keys())]
    tables = {item.name for item in added if item.kind == "table"}
    return [
        item
        for item in added
        if item.kind == "table" or (item.kind == "column" and item.table not in tables and not _is_generated(item))
    ]


def made_since(before: Catalog, now: Catalog, known: Collection[Key] | None) -> list[Key]:
    """What came after an attempt at a rollback that could not be verified: none of it is the run's.

    Args:
        known: what was there beside `before` at that time; `None` where there was no such attempt.
    """
    return [] if known is None else sorted(now.objects.keys() - before.objects.keys() - set(known))


def written_by_others(connection: Connection[Any], items: Collection[CatalogObject]) -> Iterator[str]:
    """Lock each in turn and look, within the transaction that is open; tells what holds something, in words.

    A run whose writers aren't locked out writes no rows (`traces.Trace`): rows of a new table, and values of a new
    column that it didn't bring, are somebody else's.

    Raises:
        psycopg.Error: a lock isn't granted, among others.
    """
    for item in items:
        table = item.name if item.kind == "table" else item.table
        try:
            with connection.transaction():
                connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
                count = _count(connection, item, table)
        except (psycopg.errors.UndefinedTable, psycopg.errors.WrongObjectType, psycopg.errors.UndefinedColumn):
            continue
        if count:
            what = "rows" if item.kind == "table" else f"values in column {item.name}"
            yield f"table {table} holds {count} {what} that others wrote meanwhile, so it was not dropped"


def _count(connection: Connection[Any], item: CatalogObject, table: str) -> int:
    cursor = connection.cursor(row_factory=tuple_row)
    if item.kind == "table":
        # Partitions and what inherits go with it.
        (count,) = only(cursor.execute(f"SELECT count(*) FROM {table}".encode()))
        return int(count)
    column, kind, total = item.name, item.attributes["type"], 0
    for holder, given in cursor.execute(_GIVEN, (table, column)).fetchall():
        # As text: not every type can be compared. By way of its type: a text of it may be spelled in several ways.
        start = sql.SQL(f"SELECT count(*) FROM ONLY {holder} WHERE {column}::text IS DISTINCT FROM (")
        (count,) = only(cursor.execute(start + sql.Literal(given) + sql.SQL(f"::{kind})::text")))
        total += int(count)
    return total


def _is_generated(item: CatalogObject) -> bool:
    return bool(item.attributes.get("generated"))
