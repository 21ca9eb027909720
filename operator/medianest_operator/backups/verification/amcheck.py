"""PostgreSQL's own check of its files (contrib amcheck; manual, F.4): tables, and indexes against their tables."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row

_PLACE: LiteralString = """
SELECT n.nspname::text FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname = 'amcheck'
"""
_INDEXES: LiteralString = """
SELECT c.oid::regclass::text, c.oid
  FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class c ON c.oid = x.indexrelid
  JOIN pg_catalog.pg_am a ON a.oid = c.relam JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE a.amname = 'btree' AND c.relkind = 'i' AND x.indisvalid AND x.indisready AND c.relpersistence <> 't'
   AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
 ORDER BY 1
"""
_TABLES: LiteralString = """
SELECT c.oid::regclass::text, c.oid
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
   AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
 ORDER BY 1
"""


def check(connection: Connection[Any]) -> tuple[int, list[str]]:
    """Check everything in the database that the connection is in; its role may execute amcheck's functions.

    Returns the number of tables and indexes that were looked at, and what is wrong with them, in words.

    Raises:
        psycopg.Error: the extension isn't there, or the connection is lost.
    """
    problems = []
    with connection.cursor(row_factory=tuple_row) as cursor:
        place = cursor.execute(_PLACE).fetchone()
        schema = sql.Identifier(place[0] if place else "pg_catalog")
        heap = sql.SQL("SELECT blkno, msg FROM {}.verify_heapam(%s::pg_catalog.regclass)").format(schema)
        index = sql.SQL("SELECT {}.bt_index_check(%s::pg_catalog.regclass, heapallindexed => true)").format(schema)
        tables = cursor.execute(_TABLES).fetchall()
        for name, oid in tables:
            found = cursor.execute(heap, (oid,)).fetchmany(3)
            problems += [f"table {name}, block {block}: {text}" for block, text in found]
        indexes = cursor.execute(_INDEXES).fetchall()
        for name, oid in indexes:
            try:
                cursor.execute(index, (oid,))
            except (psycopg.errors.IndexCorrupted, psycopg.errors.DataCorrupted) as error:
                problems.append(f"index {name}: {' '.join(str(error).split())}")
    return len(tables) + len(indexes), problems
