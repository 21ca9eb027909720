"""Reading a table that the application owns, and nothing else that bears its name.

Whoever may change the schema can put anything in a table's place: a view that calls a function, a foreign table, a
column of a type with a domain's checks, an index whose expression the planner works out. So a table is locked, looked
at in the catalog, and read, in this order and in one transaction that can write nothing and is rolled back at its end.
The lock keeps the table from being dropped, renamed or altered between the check and the reading.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import tuple_row


class UntrustedRelation(Exception):
    """What bears a table's name is not the table that the operator or Prisma made; nothing of it was read."""

    def __init__(self, name: str, owner: str, problem: str) -> None:
        super().__init__(
            f"{name} (owner {owner}) is not the table that it should be: {problem}. It was not read, so nobody knows"
            f" which migrations are applied. Whoever changed it may take it back; then it is read again automatically."
        )
        self.name = name


class Withheld(Exception):
    """The reader may not read a table, of an older operator or from a backup; it is given the right at the next run."""


class UntrustedContent(Exception):
    """A table's rows are not what the operator or Prisma writes; the message says which, and what is wrong."""


@dataclass(frozen=True)
class Relation:
    """A table to read, with the columns that are read and their types, all of them PostgreSQL's own."""

    schema: str
    name: str
    columns: Mapping[str, str]

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.name}"


def clamped(column: LiteralString) -> LiteralString:
    """A moment that Python has: 'infinity' is one of PostgreSQL's only (PostgreSQL manual, 8.5.1.4)."""
    least, most = "'1000-01-01Z'::pg_catalog.timestamptz", "'9000-01-01Z'::pg_catalog.timestamptz"
    return f"CASE WHEN {column} IS NOT NULL THEN LEAST(GREATEST({column}, {least}), {most}) END"


LARGEST_ANSWER = 1 << 23
"""Bytes of JSON that the controller takes in one value from the catalog: fifty times what MediaNest's is."""


def bounded(query: LiteralString, columns: int) -> LiteralString:
    """A query for JSON whose values are NULL where they are larger than `LARGEST_ANSWER`."""
    names: list[LiteralString] = ["a", "b", "c"]
    values: LiteralString = ", ".join(
        f"CASE WHEN pg_catalog.octet_length({name}::pg_catalog.text) <= {LARGEST_ANSWER} THEN {name} END"
        for name in names[:columns]
    )
    # OFFSET keeps the planner from working each value out twice.
    return f"SELECT {values} FROM ({query} OFFSET 0) answer({', '.join(names[:columns])})"


def too_large(what: str) -> UntrustedContent:
    """The error for what `bounded` left out."""
    return UntrustedContent(f"{what} take more than {LARGEST_ANSWER >> 20} MiB, so they were not read")


# Every reason why reading a relation could run somebody's code, or tell something else than its own rows. What has an
# expression is worked out by the planner of whoever reads (optimizer/util/plancat.c), functions in it included.
_LOOK = sql.SQL("""
SELECT pg_catalog.pg_get_userbyid(c.relowner)::text,
       CASE WHEN c.relkind <> 'r' THEN
              'it is a ' || CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                              WHEN 'f' THEN 'foreign table' WHEN 'p' THEN 'partitioned table'
                              ELSE 'relation of kind ' || c.relkind::text END
            WHEN c.relowner <> d.datdba THEN
              'it should belong to the database''s owner, ' || pg_catalog.pg_get_userbyid(d.datdba)
            WHEN c.relpersistence <> 'p' THEN 'it is not permanent'
            WHEN c.relam <> 2 THEN 'its access method is not heap'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
              THEN 'it inherits from a table, or one inherits from it'
            WHEN c.relhasrules OR EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid)
              THEN 'it has rules'
            WHEN c.relrowsecurity OR EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid)
              THEN 'it has row-level security'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_index x
                          WHERE x.indrelid = c.oid AND (x.indexprs IS NOT NULL OR x.indpred IS NOT NULL))
              THEN 'it has an index with an expression or a condition'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_statistic_ext s
                          WHERE s.stxrelid = c.oid AND s.stxexprs IS NOT NULL)
              THEN 'it has statistics over an expression'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c')
              THEN 'it has a CHECK constraint'
       END,
       (SELECT pg_catalog.json_object_agg(a.attname, CASE WHEN a.attgenerated <> '' THEN 'generated'
                 WHEN t.typnamespace <> 'pg_catalog'::pg_catalog.regnamespace THEN 'of somebody''s own type'
                 ELSE t.typname END)
          FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           AND a.attname = ANY ({columns}::pg_catalog.name[]))
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
 WHERE n.nspname = {schema} AND c.relname = {name}
""")
# What runs in here by mistake can't write: no transaction becomes read-write after its first query.
_BEGINNING = sql.SQL(
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY; SET LOCAL search_path = pg_catalog, pg_temp; "
)


@contextlib.asynccontextmanager
async def reading(connection: AsyncConnection[Any], relation: Relation) -> AsyncIterator[bool]:
    """A read-only transaction in which a table can be read; the value says whether it exists.

    Names are found in `pg_catalog` alone meanwhile.

    Raises:
        UntrustedRelation: it is not the plain table that it should be.
        Withheld: this session's role may not read it.
        psycopg.OperationalError: as the server says.
    """
    try:
        async with connection.transaction(force_rollback=True):
            exists = await _is_there(connection, relation, _BEGINNING)
            if exists:
                lock = sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE; ").format(relation.identifier)
                # What was there before the lock may be another one.
                if not await _is_there(connection, relation, lock):
                    raise UntrustedRelation(relation.label, "unknown", "it was exchanged while it was being checked")
            yield exists
    except psycopg.OperationalError:
        raise
    except psycopg.errors.InsufficientPrivilege as error:
        raise Withheld(f"The right to read {relation.label} is missing") from error
    except psycopg.DatabaseError as error:
        words = " ".join(str(error).split())[:200]
        raise UntrustedRelation(relation.label, "unknown", f"it can't be read: {words}") from error


async def _is_there(connection: AsyncConnection[Any], relation: Relation, before: sql.Composable) -> bool:
    """Whether it exists. Raises UntrustedRelation where it is something else.

    Args:
        before: statements that are sent along, which saves a round trip; each sees what was committed before it.
    """
    look = _LOOK.format(
        columns=sql.Literal(list(relation.columns)),
        schema=sql.Literal(relation.schema),
        name=sql.Literal(relation.name),
    )
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(before + look, prepare=False)
        while cursor.nextset():
            pass
        row = await cursor.fetchone()
    if row is None:
        return False
    _check(relation, row)
    return True


def _check(relation: Relation, row: tuple[Any, ...]) -> None:
    owner, problem, found = row
    columns = found or {}
    for name, wanted in relation.columns.items():
        if problem is None and columns.get(name) != wanted:
            problem = f"column {name} is {columns.get(name, 'missing')}, and should be {wanted}"
    if problem is not None:
        raise UntrustedRelation(relation.label, owner, problem)
