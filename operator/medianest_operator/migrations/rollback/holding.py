"""Whether what is about to be dropped holds something that others wrote: then it isn't dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator.postgres.catalog import Catalog, CatalogObject, Key
from medianest_operator.postgres.rows import only

# What the rows got that were there when the column came, whatever its default is now.
_GIVEN: LiteralString = """
SELECT attmissingval::text FROM pg_catalog.pg_attribute
 WHERE attrelid = %s::pg_catalog.regclass AND pg_catalog.quote_ident(attname) = %s
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
    column that aren't its default, are somebody else's.

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
    # Partitions and what inherits go with it.
    query: list[sql.Composable] = [sql.SQL(f"SELECT count(*) FROM {table}")]
    if item.kind == "column":
        column, kind = item.name, item.attributes["type"]
        (given,) = only(cursor.execute(_GIVEN, (table, column)))
        # As text: not every type can be compared.
        unlike = f"AND {column}::text IS DISTINCT FROM"
        default = f"(({item.attributes.get('default') or 'NULL'})::{kind})::text"
        query += [sql.SQL(f" WHERE {column} IS NOT NULL {unlike} {default} {unlike} (("), sql.Literal(given)]
        query += [sql.SQL(f")::{kind}[])[1]::text")]
    (count,) = only(cursor.execute(sql.Composed(query)))
    return int(count)


def _is_generated(item: CatalogObject) -> bool:
    return bool(item.attributes.get("generated"))
