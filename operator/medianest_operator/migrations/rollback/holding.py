"""Whether what is about to be dropped holds something that others wrote: then it isn't dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.rows import tuple_row

from medianest_operator.migrations.run.parts import bare
from medianest_operator.postgres.catalog import Catalog, CatalogObject, Key
from medianest_operator.postgres.rows import only

# The tables in which a column lies: its own, its partitions, what inherits it. And what the rows in each got that were
# there when it came, whatever its default is now (PostgreSQL manual, pg_attribute, attmissingval: an array of one). A
# table that was written anew, by another column that is computed or by VACUUM FULL, has the values in its rows instead:
# those of a default that is a constant, brought to the column's type by PostgreSQL's own functions, are known all the
# same.
_GIVEN: LiteralString = r"""
WITH RECURSIVE tables (oid) AS (
  SELECT %s::pg_catalog.regclass::oid
  UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tables t ON t.oid = i.inhparent)
SELECT c.oid::pg_catalog.regclass::text, (a.attmissingval::text::text[])[1],
       CASE WHEN NOT a.atthasmissing AND NOT EXISTS (
              SELECT FROM pg_catalog.regexp_matches(d.adbin::text, '{([A-Z]+)', 'g') node(name)
               WHERE node.name[1] NOT IN ('CONST', 'RELABELTYPE', 'COERCETODOMAIN', 'FUNCEXPR', 'ARRAYEXPR',
                                          'COERCEVIAIO', 'ARRAYCOERCEEXPR'))
             AND NOT EXISTS (
              SELECT FROM pg_catalog.regexp_matches(d.adbin::text, ':funcid (\d+)', 'g') called(id)
                JOIN pg_catalog.pg_proc p ON p.oid = called.id[1]::oid
               WHERE p.provolatile <> 'i' OR p.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace)
            THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END
  FROM tables t JOIN pg_catalog.pg_class c ON c.oid = t.oid
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND pg_catalog.quote_ident(a.attname) = %s
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
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


def written_by_others(
    connection: Connection[Any], items: Collection[CatalogObject], given: Collection[tuple[str, str]]
) -> Iterator[str]:
    """Lock each in turn and look, within the transaction that is open; tells what holds something, in words.

    A run whose writers aren't locked out writes no rows (`traces.Trace`): rows of a new table, and values of a new
    column that it didn't bring, are somebody else's.

    Args:
        given: the columns, as (table, name), that the run has added with a default.

    Raises:
        psycopg.Error: a lock isn't granted, among others.
    """
    for item in items:
        table = item.name if item.kind == "table" else item.table
        try:
            with connection.transaction():
                connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
                with connection.transaction(force_rollback=True):
                    count = _count(connection, item, table, given)
        except (psycopg.errors.UndefinedTable, psycopg.errors.WrongObjectType, psycopg.errors.UndefinedColumn):
            continue
        if count:
            what = "rows" if item.kind == "table" else f"values in column {item.name}"
            yield f"table {table} holds {count} {what} that others wrote meanwhile, so it was not dropped"


def _count(connection: Connection[Any], item: CatalogObject, table: str, given: Collection[tuple[str, str]]) -> int:
    cursor = connection.cursor(row_factory=tuple_row)
    if item.kind == "table":
        # Partitions and what inherits go with it.
        _show_all(cursor, table)
        (count,) = only(cursor.execute(f"SELECT count(*) FROM {table}".encode()))
        return int(count)
    column, kind, total = item.name, item.attributes["type"], 0
    has_default = (bare(table), bare(column)) in given
    for holder, brought, constant in cursor.execute(_GIVEN, (table, column)).fetchall():
        _show_all(cursor, holder)
        # As text: not every type can be compared, and what a collation calls equal may differ. By way of its type: a
        # text of it may be spelled in several ways.
        value = sql.SQL(f"({constant})") if constant is not None and has_default else sql.Literal(brought)
        start = sql.SQL(f'SELECT count(*) FROM ONLY {holder} WHERE {column}::text COLLATE "C" IS DISTINCT FROM (')
        (count,) = only(cursor.execute(start + value + sql.SQL(f'::{kind})::text COLLATE "C"')))
        total += int(count)
    return total


def _show_all(cursor: Cursor[Any], table: str) -> None:
    """Until the transaction is rolled back: policies hide rows from a table's owner where they are forced on it."""
    query = "SELECT relforcerowsecurity FROM pg_catalog.pg_class WHERE oid = %s::pg_catalog.regclass"
    (forced,) = only(cursor.execute(query, (table,)))
    if forced:
        cursor.execute(f"ALTER TABLE ONLY {table} NO FORCE ROW LEVEL SECURITY".encode())


def _is_generated(item: CatalogObject) -> bool:
    return bool(item.attributes.get("generated"))
