"""Bring rows back where every definition is as before: the tables stay, and with them all that others built on them.

A view of a DBA's, a publication of a replication tool's, an audit trigger's function in a monitoring schema hold on to
the table itself. So only the rows are taken out of the backup: of the tables that differ, and of those that refer to
them, in one transaction, parents first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, LiteralString

from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator.backups.logical.toc import Entry, parse_entry
from medianest_operator.migrations.rollback.clearing import UNLINK
from medianest_operator.migrations.run.evidence import LARGE_OBJECTS

# Tables with all that refer to them, each with those that it refers to. A partition has the constraints of its table.
_CLOSURE: LiteralString = """
WITH RECURSIVE hit AS (
    SELECT oid FROM pg_class WHERE oid = ANY(%s::text[]::regclass[])
    UNION
    SELECT k.conrelid FROM pg_constraint k JOIN hit ON k.confrelid = hit.oid WHERE k.contype = 'f')
SELECT n.nspname::text, c.relname::text, c.relkind::text, hit.oid::int8,
       coalesce((SELECT array_agg(k.confrelid::int8) FROM pg_constraint k JOIN hit h ON h.oid = k.confrelid
                  WHERE k.conrelid = hit.oid AND k.contype = 'f' AND k.confrelid <> hit.oid), '{}'),
       coalesce((SELECT array_agg(ARRAY[t.tgname::text, t.tgenabled::text])
                   FROM pg_trigger t WHERE t.tgrelid = hit.oid AND NOT t.tgisinternal), '{}')
  FROM hit JOIN pg_class c ON c.oid = hit.oid JOIN pg_namespace n ON n.oid = c.relnamespace
"""
# pg_trigger.tgenabled (PostgreSQL manual, System Catalogs).
_ENABLING: Mapping[str, LiteralString] = {
    "O": "ENABLE TRIGGER",
    "A": "ENABLE ALWAYS TRIGGER",
    "R": "ENABLE REPLICA TRIGGER",
}
_OF_LARGE_OBJECTS = frozenset({"BLOB", "BLOBS", "BLOB DATA", "BLOB METADATA", "LARGE OBJECT"})


@dataclass(frozen=True)
class Refill:
    """How the rows are brought back.

    Attributes:
        before: statements that make room, in the transaction.
        after: statements that end it.
        chosen: takes the lines of the dump's table of contents that are wanted, in the order in which they are.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    chosen: Callable[[Sequence[str]], Iterable[str]]


@dataclass(frozen=True)
class _Table:
    schema: str
    name: str
    kind: str
    oid: int
    parents: tuple[int, ...]
    triggers: tuple[tuple[str, str], ...]

    @property
    def identifier(self) -> str:
        return sql.Identifier(self.schema, self.name).as_string(None)


def plan_refill(connection: Connection[Any], tables: Collection[str]) -> Refill | None:
    """Plan it for these tables; `None` where tables refer to each other in a circle.

    Args:
        tables: as the evidence names them, `LARGE_OBJECTS` among them.

    Raises:
        psycopg.Error: as the server says.
    """
    names = sorted(name for name in tables if name != LARGE_OBJECTS)
    rows = connection.cursor(row_factory=tuple_row).execute(_CLOSURE, (names,)).fetchall()
    found = {
        oid: _Table(schema, name, kind, oid, tuple(parents), tuple((trigger, state) for trigger, state in triggers))
        for schema, name, kind, oid, parents, triggers in rows
    }
    try:
        order = list(TopologicalSorter({table.oid: table.parents for table in found.values()}).static_order())
    except CycleError:
        return None
    ordered = [found[oid] for oid in order if found[oid].kind == "r"]
    views = [table.identifier for table in found.values() if table.kind == "m"]
    before = [f"ALTER TABLE {table.identifier} DISABLE TRIGGER USER" for table in ordered if table.triggers]
    if ordered:
        before.append(f"TRUNCATE ONLY {', '.join(table.identifier for table in ordered)}")
    if LARGE_OBJECTS in tables:
        before.append(UNLINK)
    after = ["SET CONSTRAINTS ALL IMMEDIATE"]
    for table in ordered:
        after += [
            f"ALTER TABLE {table.identifier} {_ENABLING[state]} {sql.Identifier(name).as_string(None)}"
            for name, state in table.triggers
            if state in _ENABLING
        ]
    after += [f"REFRESH MATERIALIZED VIEW {view}" for view in views]
    places = {(table.schema, table.name): number for number, table in enumerate(ordered)}
    return Refill(tuple(before), tuple(after), _choice(connection, places, LARGE_OBJECTS in tables))


def _choice(
    connection: Connection[Any], places: Mapping[tuple[str, str], int], large_objects: bool
) -> Callable[[Sequence[str]], Iterable[str]]:
    query = "SELECT rolname::text FROM pg_catalog.pg_roles"
    roles = [row[0] for row in connection.cursor(row_factory=tuple_row).execute(query).fetchall()]

    def place(entry: Entry) -> int | None:
        if entry.kind == "TABLE DATA":
            return places.get((entry.schema, entry.name(roles)))
        if large_objects and (entry.kind in _OF_LARGE_OBJECTS or " LARGE OBJECT " in f" {entry.rest}"):
            return len(places)
        return None

    def chosen(lines: Sequence[str]) -> Iterable[str]:
        placed = [(place(entry), line) for line in lines if (entry := parse_entry(line)) is not None]
        return [line for _, line in sorted(((at, line) for at, line in placed if at is not None), key=lambda it: it[0])]

    return chosen
