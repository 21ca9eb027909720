"""PostgreSQL's own check of its files (contrib amcheck; manual, F.4): tables, and the order of indexes.

That each row is in each index (`heapallindexed`) isn't asked: the copy's server has just built its indexes from these
rows, so that it says nothing of the backup. And it computes an index's expressions again, which come out differently
where a function is declared immutable and isn't: a good backup would count as damaged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row

_PLACE: LiteralString = """
SELECT n.nspname::text FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname = 'amcheck'
"""
_WHAT: LiteralString = """
SELECT c.oid::regclass::text, c.oid, c.relkind = 'i'
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_index x ON x.indexrelid = c.oid LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam
 WHERE (c.relkind IN ('r', 'm') OR (c.relkind = 'i' AND a.amname = 'btree' AND x.indisvalid AND x.indisready))
   AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
 ORDER BY pg_catalog.pg_relation_size(c.oid) DESC, 1
"""


def check(connections: Sequence[Connection[Any]]) -> tuple[int, list[str]]:
    """Check everything in the database that the connections are in; their roles may execute amcheck's functions.

    Returns the number of tables and indexes that were looked at, and what is wrong with them, in words.

    Args:
        connections: share the work: one check takes one processor.

    Raises:
        psycopg.Error: the extension isn't there, or a connection is lost.
    """
    with connections[0].cursor(row_factory=tuple_row) as cursor:
        place = cursor.execute(_PLACE).fetchone()
        schema = sql.Identifier(place[0] if place else "pg_catalog")
        # The largest first, so that none of the connections ends long after the others.
        wanted = cursor.execute(_WHAT).fetchall()
    waiting = deque(wanted)
    with ThreadPoolExecutor(len(connections), "amcheck") as pool:
        found = [problem for problems in pool.map(partial(_look, waiting, schema), connections) for problem in problems]
    return len(wanted), found


def _look(waiting: deque[tuple[str, int, bool]], schema: sql.Identifier, connection: Connection[Any]) -> list[str]:
    heap = sql.SQL("SELECT blkno, msg FROM {}.verify_heapam(%s::pg_catalog.regclass)").format(schema)
    index = sql.SQL("SELECT {}.bt_index_check(%s::pg_catalog.regclass, heapallindexed => false)").format(schema)
    problems = []
    with connection.cursor(row_factory=tuple_row) as cursor, suppress(IndexError):
        while True:
            name, oid, is_index = waiting.popleft()
            if not is_index:
                found = cursor.execute(heap, (oid,)).fetchmany(3)
                problems += [f"table {name}, block {block}: {text}" for block, text in found]
                continue
            try:
                cursor.execute(index, (oid,))
            except (psycopg.errors.IndexCorrupted, psycopg.errors.DataCorrupted) as error:
                problems.append(f"index {name}: {' '.join(str(error).split())}")
    return problems
