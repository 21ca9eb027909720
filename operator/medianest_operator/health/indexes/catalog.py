"""The indexes, foreign keys and collations of a database as values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from psycopg import AsyncConnection, Connection
from psycopg.rows import tuple_row

from medianest_operator.health.indexes import queries
from medianest_operator.postgres.catalog_queries import SET_SEARCH_PATH
from medianest_operator.postgres.rows import only, only_async
from medianest_operator.postgres.trusted import bounded, too_large

PAGE: Final = 8192
"""Bytes of a page of PostgreSQL as Debian builds it."""
HISTORY_TABLE: Final = "_prisma_migrations"


@dataclass(frozen=True)
class Column:
    """A key or an included column of an index.

    Attributes:
        column: the table's column by its number; 0 for an expression.
        definition: the column's name or the expression, as PostgreSQL writes it.
        rule: operator class and its parameters, collation and direction, by their identifiers.
        collation: its collation's identifier; 0 where its type has none.
        length: bytes of its type, below 0 where they vary.
        align: how its type is aligned: `c`, `s`, `i` or `d`.
        width: the average bytes of its values; `None` where there are no statistics, or none that the reader may see.
    """

    column: int
    definition: str
    rule: str
    collation: int
    length: int
    align: str
    width: int | None


@dataclass(frozen=True)
class Constraint:
    """The constraint that an index is of; its name is quoted."""

    name: str
    type: str
    deferrable: bool


@dataclass(frozen=True)
class Index:
    """An index on one of the application's tables.

    Attributes:
        oid: its identifier.
        stamp: another text for another index, also where that has the name or the identifier of an earlier one.
        identifier: its name as a statement has it, with its schema.
        parent: the partitioned index that it is part of.
        immediate: a unique one checks each row at once.
        referenced: a foreign key refers to what it makes unique.
        pages: its size when it was last vacuumed, analyzed or made.
        rows: the same of its entries; below 0 where nobody knows.
        collations: those that its expressions and predicate name.
        in_work: a session is building or dropping it.
    """

    oid: int
    stamp: str
    name: str
    identifier: str
    table_oid: int
    table: str
    table_identifier: str
    partitioned: bool
    parent: int | None
    method: str
    unique: bool
    nulls_not_distinct: bool
    primary: bool
    exclusion: bool
    immediate: bool
    clustered: bool
    replica_identity: bool
    valid: bool
    ready: bool
    live: bool
    keys: tuple[Column, ...]
    included: tuple[Column, ...]
    predicate: str | None
    options: tuple[str, ...]
    constraint: Constraint | None
    referenced: bool
    definition: str
    pages: int
    rows: float
    collations: frozenset[int]
    in_work: bool

    @property
    def usable(self) -> bool:
        """Whether queries use it."""
        return self.valid and self.ready and self.live

    @property
    def bytes(self) -> int:
        return self.pages * PAGE

    @cached_property
    def conditions(self) -> frozenset[str]:
        """What its predicate asks for, all of which has to hold; empty where it has none.

        `a AND b` and `b AND a` are the same, which their texts don't show.
        """
        return _conjuncts(self.predicate) if self.predicate else frozenset()

    @property
    def shape(self) -> tuple[Any, ...]:
        """Equal for indexes that find the same rows in the same order, whatever rule they enforce."""
        return (
            self.table_oid,
            self.method,
            tuple((key.definition, key.rule) for key in self.keys),
            frozenset(item.definition for item in self.included),
            self.conditions,
            # What the other access methods are given as parameters changes what it answers, or how exactly.
            () if self.method in ("btree", "hash") else self.options,
        )


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key, and the indexes on its own columns that its look-ups could use."""

    oid: int
    parent: int
    table_oid: int
    table: str
    table_identifier: str
    partitioned: bool
    name: str
    columns: tuple[str, ...]
    identifiers: tuple[str, ...]
    referenced: str
    indexes: frozenset[int]


@dataclass(frozen=True)
class Collation:
    """A collation whose version differs from the one that its indexes were built with."""

    oid: int
    name: str
    recorded: str
    actual: str


@dataclass(frozen=True)
class Unvalidated:
    """A constraint that was never checked against the rows that were there before it."""

    table: str
    table_identifier: str
    name: str
    identifier: str
    type: str


@dataclass(frozen=True)
class Catalog:
    """What one look at the catalogs shows.

    Attributes:
        database: the database's identifier.
        database_collation: its default collation, where that has another version by now.
        database_name: quoted.
    """

    database: int
    database_name: str
    indexes: tuple[Index, ...]
    foreign_keys: tuple[ForeignKey, ...]
    collations: tuple[Collation, ...] = ()
    database_collation: Collation | None = None
    unvalidated: tuple[Unvalidated, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """What one server has counted.

    Attributes:
        now: the server's clock.
        since: when it began to count; `None` where it doesn't say.
        counting: whether it counts at all.
        database: the database's identifier.
        used: the indexes, by their identifiers, that were scanned since.
    """

    now: datetime
    since: datetime | None
    counting: bool
    database: int
    used: frozenset[int]


_DEFAULT_COLLATION: Final = 100
"""The identifier of `pg_catalog."default"`: whatever the database's is."""


def read(connection: Connection[Any]) -> Catalog:
    """The indexes of the database that the connection is in; leaves the session as it was.

    Raises:
        psycopg.Error: as the server says.
    """
    with connection.transaction(force_rollback=True), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY")
        cursor.execute(SET_SEARCH_PATH)
        found = _parse(*only(cursor.execute(queries.SELECT_INDEXES)))
        if suspects := _suspects(found):
            (still,) = only(cursor.execute(queries.SELECT_STILL_INVALID, (suspects,)))
            found = _without_built(found, still)
    return found


async def read_async(connection: AsyncConnection[Any]) -> Catalog:
    """As `read`, for the controller, whose sessions find names in `pg_catalog` alone.

    Raises:
        UntrustedContent: there are more than can be read.
        psycopg.Error: as the server says.
    """
    async with connection.cursor(row_factory=tuple_row) as cursor:
        row = await only_async(await cursor.execute(bounded(queries.SELECT_INDEXES, 3)))
        if None in row:
            raise too_large("The definitions of indexes and foreign keys")
        found = _parse(*row)
        if suspects := _suspects(found):
            (still,) = await only_async(await cursor.execute(queries.SELECT_STILL_INVALID, (suspects,)))
            found = _without_built(found, still)
    return found


async def read_statistics(connection: AsyncConnection[Any]) -> Statistics:
    """What the server has counted of the indexes.

    Raises:
        UntrustedContent: there are more indexes than can be read.
        psycopg.Error: as the server says.
    """
    async with connection.cursor(row_factory=tuple_row) as cursor:
        (row,) = await only_async(await cursor.execute(bounded(queries.SELECT_STATISTICS, 1)))
    if row is None:
        raise too_large("The statistics of indexes")
    since = row["since"]
    return Statistics(
        datetime.fromisoformat(row["now"]),
        datetime.fromisoformat(since) if since else None,
        row["counting"],
        row["database"],
        frozenset(row["used"]),
    )


def _suspects(found: Catalog) -> list[int]:
    return [index.oid for index in found.indexes if not index.valid and not index.in_work]


def _without_built(found: Catalog, still: Iterable[int]) -> Catalog:
    """Without the indexes that were finished between the look at the catalog and that at the locks.

    Who is no more invalid, and was neither locked before, was built meanwhile. Who is, wasn't in work in between.
    """
    left = set(still)
    kept = tuple(index for index in found.indexes if index.valid or index.in_work or index.oid in left)
    return Catalog(**{**vars(found), "indexes": kept})


def _parse(
    indexes: Iterable[Mapping[str, Any]], foreign_keys: Iterable[Mapping[str, Any]], others: Mapping[str, Any]
) -> Catalog:
    database = others["database"]
    recorded, actual = database["recorded"], database["actual"]
    return Catalog(
        database["oid"],
        database["name"],
        # One that was dropped meanwhile has no definition.
        tuple(_index(item) for item in indexes if item["definition"] is not None),
        tuple(_foreign_key(item) for item in foreign_keys),
        tuple(Collation(**item) for item in others["collations"]),
        Collation(_DEFAULT_COLLATION, database["name"], recorded, actual)
        if recorded is not None and actual is not None and recorded != actual
        else None,
        tuple(Unvalidated(**item) for item in others["constraints"]),
    )


def _index(item: Mapping[str, Any]) -> Index:
    raw = dict(item)
    columns = [Column(**(column | {"definition": column["definition"] or ""})) for column in raw.pop("columns")]
    width = raw.pop("width")
    constraint = raw.pop("constraint")
    return Index(
        **raw
        | {
            "keys": tuple(columns[:width]),
            "included": tuple(columns[width:]),
            "options": tuple(sorted(raw["options"] or ())),
            "constraint": Constraint(**constraint) if constraint else None,
            "collations": frozenset(raw["collations"]),
        }
    )


def _foreign_key(item: Mapping[str, Any]) -> ForeignKey:
    return ForeignKey(
        **{
            **item,
            "columns": tuple(item["columns"]),
            "identifiers": tuple(item["identifiers"]),
            "indexes": frozenset(item["indexes"]),
        }
    )


# Texts, names and what parentheses hold are skipped as they are.
_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\(|\)| AND |.", re.DOTALL)


def _conjuncts(text: str) -> frozenset[str]:
    """The parts of a condition that AND joins, as PostgreSQL writes them: each in parentheses, and all together."""
    inner = _unwrapped(text)
    parts, depth, begun = [], 0, 0
    for match in _TOKEN.finditer(inner):
        token = match[0]
        depth += (token == "(") - (token == ")")
        if token == " AND " and depth == 0:
            parts.append(inner[begun : match.start()])
            begun = match.end()
    if not parts:
        return frozenset({inner})
    # Without parentheses of its own a part may be the end of a BETWEEN SYMMETRIC or the like.
    pieces = [*parts, inner[begun:]]
    if not all(piece.startswith("(") and piece.endswith(")") for piece in pieces):
        return frozenset({inner})
    return frozenset().union(*(_conjuncts(piece) for piece in pieces))


def _unwrapped(text: str) -> str:
    """Without parentheses around the whole."""
    while text.startswith("(") and text.endswith(")"):
        depth = 0
        for match in _TOKEN.finditer(text):
            depth += (match[0] == "(") - (match[0] == ")")
            if depth == 0 and match.end() < len(text):
                return text
        text = text[1:-1]
    return text
