"""Rows that break a rule: references to rows that aren't there, and rows that a CHECK constraint would refuse.

PostgreSQL holds valid constraints. It doesn't where one is NOT VALID, was dropped, or was switched off while the rows
came (`session_replication_role`, DISABLE TRIGGER), so every relation is looked at, also those whose constraint is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from medianest_operator.api.conditions import Reason
from medianest_operator.health.findings import Finding, coarse
from medianest_operator.postgres.sessions import Connection

_COUNTED: Final = 1000
"""Rows that are counted of each rule at the most."""
_CONSTRAINTS: Final = 200

# The constraints of tables in schema public, which is the application's.
_RULES: LiteralString = """
SELECT k.conname AS name, k.contype::text AS type, c.relname AS table, k.convalidated AS valid,
       c.relkind = 'p' AS partitioned, coalesce(r.relkind = 'p', false) AS to_partitioned,
       (SELECT array_agg(a.attname ORDER BY u.ord) FROM unnest(k.conkey) WITH ORDINALITY u(num, ord)
          JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num) AS columns,
       r.relname AS referenced_table,
       (SELECT array_agg(a.attname ORDER BY u.ord) FROM unnest(k.confkey) WITH ORDINALITY u(num, ord)
          JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.num) AS referenced_columns,
       CASE k.contype WHEN 'c' THEN pg_get_expr(k.conbin, k.conrelid) END AS expression
  FROM pg_constraint k
  JOIN pg_class c ON c.oid = k.conrelid AND c.relkind IN ('r', 'p')
  LEFT JOIN pg_class r ON r.oid = k.confrelid
 -- Of a partitioned table's constraints those of its partitions have a parent, in both directions.
 WHERE k.connamespace = to_regnamespace('public') AND c.relnamespace = k.connamespace AND k.conparentid = 0
   AND (r.oid IS NULL OR (r.relnamespace = c.relnamespace AND r.relkind IN ('r', 'p')))
   AND (k.contype = 'f' OR (k.contype = 'c' AND NOT k.convalidated))
 ORDER BY c.relname, k.conname LIMIT %s
"""
_COLUMNS: LiteralString = """
SELECT c.relname AS table, array_agg(a.attname) AS columns
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = to_regnamespace('public') AND c.relkind = 'r' AND c.relname = ANY (%s)
 GROUP BY c.relname
"""


@dataclass(frozen=True)
class Relation:
    """A table whose rows refer to rows of another one, both in schema `public`."""

    table: str
    columns: tuple[str, ...]
    referenced_table: str
    referenced_columns: tuple[str, ...]
    partitioned: bool = field(default=False, compare=False)
    to_partitioned: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.table} ({', '.join(self.columns)})"


@dataclass(frozen=True)
class Integrity:
    """What was found.

    Attributes:
        findings: what breaks a rule.
        checked: how many rules were looked at to the end.
        unchecked: those that weren't, because the time was over or they can't be read.
    """

    findings: tuple[Finding, ...]
    checked: int
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rule:
    """Something that every row has to keep.

    Attributes:
        name: for people.
        broken: a query for one row a row that breaks it.
        finding: what is said of so many.
    """

    name: str
    broken: sql.Composed
    finding: Callable[[int], Finding]


async def check(connection: Connection, known: Iterable[Relation], budget: float, longest: float = 30.0) -> Integrity:
    """Look at every relation and every CHECK constraint that isn't valid.

    Args:
        connection: to the application's database, as a role that may read its tables and do nothing else: the planner,
            CHECK expressions and casts run what the owner defined. Tables whose rows a policy hides are left out.
        known: relations that are to hold also where no constraint says so.
        budget: seconds for all of it.
        longest: seconds for one rule.

    Raises:
        psycopg.OperationalError: the connection broke.
    """
    end = time.monotonic() + budget
    rules = await _rules(connection, known)
    found: list[Finding] = []
    unchecked: list[str] = []
    for rule in rules:
        left = min(longest, end - time.monotonic())
        count = await _count(connection, rule.broken, left) if left > 0 else None
        if count is None:
            unchecked.append(rule.name)
        elif count:
            found.append(rule.finding(count))
    return Integrity(tuple(found), len(rules) - len(unchecked), tuple(unchecked))


async def _rules(connection: Connection, known: Iterable[Relation]) -> list[_Rule]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_RULES, [_CONSTRAINTS])
        constraints = await cursor.fetchall()
        held = {_relation(row): row for row in constraints if row["type"] == "f"}
        # Whether a constraint holds a relation isn't known where there are more than were read.
        known = [item for item in known if item not in held] if len(constraints) < _CONSTRAINTS else []
        await cursor.execute(_COLUMNS, [[name for item in known for name in (item.table, item.referenced_table)]])
        columns = {row["table"]: set(row["columns"]) for row in await cursor.fetchall()}
    # A later migration may have dropped the table, or the column.
    loose = [
        item
        for item in known
        if columns.get(item.table, set()) >= set(item.columns)
        and columns.get(item.referenced_table, set()) >= set(item.referenced_columns)
    ]
    relations = [_Rule(str(item), _orphans(item), partial(_orphaned, item, held.get(item))) for item in [*held, *loose]]
    checks = [
        _Rule(f"constraint {row['name']}", _violations(row), partial(_violated, row))
        for row in constraints
        # Dropped in this moment, it has no expression any more.
        if row["type"] == "c" and row["expression"] is not None
    ]
    return relations + checks


def _relation(row: Mapping[str, Any]) -> Relation:
    return Relation(
        row["table"],
        tuple(row["columns"]),
        row["referenced_table"],
        tuple(row["referenced_columns"]),
        row["partitioned"],
        row["to_partitioned"],
    )


async def _count(connection: Connection, broken: sql.Composed, seconds: float) -> int | None:
    """How many rows break a rule, at the most one more than are counted; `None` where that can't be found out."""
    count = sql.SQL("SELECT count(*) FROM ({} LIMIT {}) q").format(broken, sql.Literal(_COUNTED + 1))
    try:
        async with connection.transaction(force_rollback=True):
            limit = str(max(1, int(seconds * 1000)))
            await connection.execute("SELECT set_config('statement_timeout', %s, true)", [limit])
            row = await (await connection.execute(count)).fetchone()
    except (
        psycopg.errors.QueryCanceled,
        psycopg.errors.LockNotAvailable,
        psycopg.errors.SerializationFailure,
        psycopg.errors.DeadlockDetected,
    ):
        # The last two: a stand-by had to remove what the query still saw, or held (PostgreSQL manual, 27.4.2).
        return None
    except psycopg.OperationalError:
        raise
    except psycopg.DatabaseError:
        # Dropped meanwhile, hidden, or an expression that fails.
        return None
    return int(row[0]) if row else None


def _orphans(relation: Relation) -> sql.Composed:
    """Rows that refer to none. A reference with a NULL in it refers to nothing (PostgreSQL manual, MATCH SIMPLE)."""
    pairs = list(zip(relation.columns, relation.referenced_columns, strict=True))
    given = [sql.SQL("c.{} IS NOT NULL").format(sql.Identifier(name)) for name in relation.columns]
    same = [sql.SQL("p.{} = c.{}").format(sql.Identifier(there), sql.Identifier(here)) for here, there in pairs]
    # A foreign key is of its own table alone, and of no table that inherits from it (PostgreSQL manual, 5.10).
    return sql.SQL("SELECT FROM {} c WHERE {} AND NOT EXISTS (SELECT FROM {} p WHERE {})").format(
        _rows_of(relation.table, partitioned=relation.partitioned),
        sql.SQL(" AND ").join(given),
        _rows_of(relation.referenced_table, partitioned=relation.to_partitioned),
        sql.SQL(" AND ").join(same),
    )


def _rows_of(table: str, *, partitioned: bool) -> sql.Composed:
    return sql.SQL("public.{}" if partitioned else "ONLY public.{}").format(sql.Identifier(table))


def _violations(row: Mapping[str, Any]) -> sql.Composed:
    # The expression is PostgreSQL's own spelling of what the constraint says.
    return sql.SQL("SELECT FROM {} WHERE NOT ({})").format(
        _rows_of(row["table"], partitioned=row["partitioned"]), sql.SQL(row["expression"])
    )


def _orphaned(relation: Relation, constraint: Mapping[str, Any] | None, count: int) -> Finding:
    if constraint is None:
        why = "no foreign key holds the relation any more"
    elif constraint["valid"]:
        why = f"foreign key {constraint['name']} was switched off while they came"
    else:
        why = f"foreign key {constraint['name']} is NOT VALID"
    message = f"{_rows(count)} of {relation} refer to rows of {relation.referenced_table} that aren't there: {why}."
    return Finding(Reason.ORPHANS_FOUND, f"table public.{relation}", message)


def _violated(row: Mapping[str, Any], count: int) -> Finding:
    message = (
        f"{_rows(count)} of {row['table']} break constraint {row['name']}, which is NOT VALID: it refuses new rows"
        " alone."
    )
    return Finding(Reason.CONSTRAINT_VIOLATED, f"constraint {row['name']} of public.{row['table']}", message)


def _rows(count: int) -> str:
    if count == 1:
        return "1 row"
    return f"More than {_COUNTED} rows" if count > _COUNTED else f"{coarse(count)} rows or more"
