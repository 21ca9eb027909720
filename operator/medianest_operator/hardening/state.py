"""What there is: the operator's own objects in a live database, and what they need, read in one query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import AsyncConnection, Connection
from psycopg.rows import tuple_row

from medianest_operator.hardening.naming import CURRENT_USER_ID, MARK, is_own
from medianest_operator.hardening.objects import Column
from medianest_operator.postgres.trusted import UntrustedContent

Key = tuple[str, str, str]

_TABLE: LiteralString = """
  JOIN pg_catalog.pg_class c ON c.oid = {relation}
       AND c.relnamespace = pg_catalog.to_regnamespace('public') AND c.relkind IN ('r', 'p')
"""

# Rows of: kind, table, name, comment, whether it is complete, and what tells it from another of that name.
# An object of somebody else's is told only where it is in our way.
SELECT_STATE: LiteralString = f"""
SELECT 'column', c.relname, a.attname, pg_catalog.col_description(c.oid, a.attnum), true, NULL
  FROM pg_catalog.pg_attribute a {_TABLE.replace("{relation}", "a.attrelid")}
 WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'index', c.relname, i.relname, pg_catalog.obj_description(i.oid, 'pg_class'),
       x.indisvalid AND x.indisready AND x.indislive,
       (SELECT pg_catalog.string_agg(pg_catalog.pg_get_indexdef(i.oid, k, false), ',' ORDER BY k)
          FROM pg_catalog.generate_series(1, x.indnkeyatts) k)
  FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
       {_TABLE.replace("{relation}", "x.indrelid")}
 WHERE pg_catalog.starts_with(i.relname::text, 'hardening_')
UNION ALL
SELECT 'constraint', c.relname, k.conname, pg_catalog.obj_description(k.oid, 'pg_constraint'), k.convalidated, NULL
  FROM pg_catalog.pg_constraint k {_TABLE.replace("{relation}", "k.conrelid")}
 WHERE pg_catalog.starts_with(k.conname::text, 'hardening_')
UNION ALL
SELECT 'trigger', c.relname, t.tgname, pg_catalog.obj_description(t.oid, 'pg_trigger'), t.tgenabled = 'O', NULL
  FROM pg_catalog.pg_trigger t {_TABLE.replace("{relation}", "t.tgrelid")}
 WHERE NOT t.tgisinternal AND pg_catalog.starts_with(t.tgname::text, 'hardening_')
UNION ALL
SELECT 'policy', c.relname, p.polname, pg_catalog.obj_description(p.oid, 'pg_policy'), true, NULL
  FROM pg_catalog.pg_policy p {_TABLE.replace("{relation}", "p.polrelid")}
UNION ALL
SELECT 'row security', c.relname, '', NULL, true, NULL
  FROM pg_catalog.pg_class c
 WHERE c.relrowsecurity AND c.relnamespace = pg_catalog.to_regnamespace('public') AND c.relkind IN ('r', 'p')
UNION ALL
SELECT 'function', '', f.proname, pg_catalog.obj_description(f.oid, 'pg_proc'), true, f.prosrc
  FROM pg_catalog.pg_proc f
 WHERE f.pronamespace = pg_catalog.to_regnamespace('public') AND f.pronargs = 0
   AND (pg_catalog.starts_with(f.proname::text, 'hardening_') OR f.proname = '{CURRENT_USER_ID}')
"""


MOST_OBJECTS = 50_000
"""Rows that the controller takes: the database's owner can make any number."""

_SELECT_BOUNDED: LiteralString = f"""
SELECT kind, relation, name, pg_catalog.left(comment, 4096), complete, pg_catalog.left(detail, 65536)
  FROM ({SELECT_STATE}) found(kind, relation, name, comment, complete, detail)
 LIMIT {MOST_OBJECTS + 1}
"""


@dataclass(frozen=True, slots=True)
class LiveObject:
    """An object of ours as it is.

    Attributes:
        comment: what it says of itself; another one than the wanted object's means that it is made otherwise.
        complete: an index that is valid, a constraint that is validated, a trigger that is enabled.
        detail: an index's columns, a function's body.
    """

    kind: str
    table: str
    name: str
    comment: str | None = None
    complete: bool = True
    detail: str | None = None

    @property
    def key(self) -> Key:
        return self.kind, self.table, self.name


@dataclass(frozen=True)
class State:
    """What the plan is made from.

    Attributes:
        columns: every column of every table in `public`, ours not counted.
        objects: our own objects.
        row_security: the tables that have row-level security turned on.
        foreign_policies: the policies on each table that aren't ours.
        foreign_function: there is a `current_user_id()` that isn't ours.
    """

    columns: frozenset[Column]
    objects: Mapping[Key, LiveObject]
    row_security: frozenset[str] = frozenset()
    foreign_policies: Mapping[str, tuple[str, ...]] | None = None
    foreign_function: bool = False

    def policies_of_others(self, table: str) -> tuple[str, ...]:
        return (self.foreign_policies or {}).get(table, ())

    def of(self, kind: str, table: str | None = None) -> list[LiveObject]:
        """Our objects of a kind, in the order of their keys."""
        found = [self.objects[key] for key in sorted(self.objects) if key[0] == kind]
        return [item for item in found if table is None or item.table == table]


def state_from_rows(rows: Iterable[Sequence[Any]]) -> State:
    """Build a `State` from what `SELECT_STATE` returns."""
    columns, objects, secured = set(), {}, set()
    foreign: dict[str, tuple[str, ...]] = {}
    foreign_function = False
    for row in rows:
        item = LiveObject(*row)
        if item.kind == "row security":
            secured.add(item.table)
        elif item.kind == "column" and not is_own(item.name):
            columns.add((item.table, item.name))
        elif item.kind == "policy" and not is_own(item.name):
            foreign[item.table] = (*foreign.get(item.table, ()), item.name)
        elif item.name == CURRENT_USER_ID and not (item.comment or "").startswith(MARK):
            foreign_function = True
        else:
            objects[item.key] = item
    return State(frozenset(columns), objects, frozenset(secured), foreign, foreign_function)


def read_state(connection: Connection[Any]) -> State:
    """Read the state of the database that the connection is in.

    Raises:
        psycopg.Error: as the server says.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        return state_from_rows(cursor.execute(SELECT_STATE).fetchall())


async def read_state_async(connection: AsyncConnection[Any]) -> State:
    """As `read_state`, for the controller.

    Raises:
        UntrustedContent: there are more columns and objects than a schema has.
        psycopg.Error: as the server says.
    """
    async with connection.cursor(row_factory=tuple_row) as cursor:
        rows = await (await cursor.execute(_SELECT_BOUNDED)).fetchall()
    if len(rows) > MOST_OBJECTS:
        raise UntrustedContent(f"Schema public has more than {MOST_OBJECTS} columns, so they were not read")
    return state_from_rows(rows)
