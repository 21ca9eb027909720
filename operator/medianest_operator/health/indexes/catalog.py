"""The indexes, foreign keys and collations of a database as values."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
        family: its operator class' family; `None` of an included one.
        length: bytes of its type, below 0 where they vary.
        align: how its type is aligned: `c`, `s`, `i` or `d`.
        width: the average bytes of its values; `None` where there are no statistics, or none that the reader may see.
    """

    column: int
    definition: str
    rule: str
    collation: int
    family: int | None
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
        collations: those that its expressions and predicate name, and those of the columns that they read.
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

    @cached_property
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
    identifiers: tuple[str, ...]
    referenced: str
    indexes: frozenset[int]


@dataclass(frozen=True)
class Collation:
    """A collation whose version differs from the one that its indexes were built with.

    Attributes:
        elsewhere: indexes of other schemas and of extensions that it may order.
    """

    oid: int
    name: str
    recorded: str
    actual: str
    elsewhere: int = 0


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
        unread: indexes that there are beside these, of which nothing was read.
    """

    database: int
    database_name: str
    indexes: tuple[Index, ...]
    foreign_keys: tuple[ForeignKey, ...]
    collations: tuple[Collation, ...] = ()
    database_collation: Collation | None = None
    unvalidated: tuple[Unvalidated, ...] = ()
    unread: int = 0


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


def read(connection: Connection[Any], first: Iterable[str] = ()) -> Catalog:
    """The indexes of the database that the connection is in; leaves the session as it was.

    Args:
        first: names of the indexes that are read although there are more than `queries.MOST`.

    Raises:
        psycopg.Error: as the server says.
    """
    with connection.transaction(force_rollback=True), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY")
        cursor.execute(SET_SEARCH_PATH)
        found = _parse(*only(cursor.execute(queries.SELECT_INDEXES, (list(first),))))
        if suspects := _suspects(found):
            (still,) = only(cursor.execute(queries.SELECT_STILL_INVALID, (suspects,)))
            found = _without_built(found, still)
    return found


async def read_async(connection: AsyncConnection[Any], first: Iterable[str] = ()) -> Catalog:
    """As `read`, for the controller, whose sessions find names in `pg_catalog` alone.

    Raises:
        UntrustedContent: there are more than can be read.
        psycopg.Error: as the server says.
    """
    async with connection.cursor(row_factory=tuple_row) as cursor:
        row = await only_async(await cursor.execute(bounded(queries.SELECT_INDEXES, 3), (list(first),)))
        if None in row:
            raise too_large("The definitions of indexes and foreign keys")
        # Megabytes, where somebody made thousands: the other databases' runs go on meanwhile.
        found = await asyncio.to_thread(_parse, *row)
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
    return replace(found, indexes=kept)


def _parse(
    indexes: Iterable[Mapping[str, Any]], foreign_keys: Iterable[Mapping[str, Any]], others: Mapping[str, Any]
) -> Catalog:
    database = others["database"]
    recorded, actual = database["recorded"], database["actual"]
    widths = {(table, column): width for table, column, width in others["widths"]}
    raw = list(indexes)
    # One that was dropped meanwhile has no definition.
    found = tuple(_index(item, widths) for item in raw if item["definition"] is not None)
    look_ups = _LookUps(found)
    return Catalog(
        database["oid"],
        database["name"],
        found,
        tuple(_foreign_key(item, look_ups) for item in foreign_keys),
        tuple(Collation(**item) for item in others["collations"]),
        Collation(_DEFAULT_COLLATION, database["name"], recorded, actual, database["elsewhere"] or 0)
        if recorded is not None and actual is not None and recorded != actual
        else None,
        tuple(Unvalidated(**item) for item in others["constraints"]),
        others["indexes"] - len(raw),
    )


def _index(item: Mapping[str, Any], widths: Mapping[tuple[str, str], int]) -> Index:
    raw = dict(item)
    columns = [_column(column, widths) for column in raw.pop("columns")]
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


def _column(item: Mapping[str, Any], widths: Mapping[tuple[str, str], int]) -> Column:
    raw = dict(item)
    table, name = raw.pop("counted")
    return Column(**raw | {"definition": raw["definition"] or "", "width": widths.get((table, name))})


def _foreign_key(item: Mapping[str, Any], look_ups: _LookUps) -> ForeignKey:
    raw = dict(item)
    found = look_ups.indexes(raw["table_oid"], raw.pop("look_up"))
    return ForeignKey(**raw | {"identifiers": tuple(raw["identifiers"]), "indexes": found})


class _LookUps:
    """Which indexes the look-ups of foreign keys can use: the key's columns come first, in any order, with its own
    equality and the columns' collations. Which predicates do no harm is for `foreign_keys` to say."""

    def __init__(self, indexes: Iterable[Index]) -> None:
        self._leading: dict[tuple[int, frozenset[int]], list[Index]] = defaultdict(list)
        for index in indexes:
            if not index.usable or index.method not in ("btree", "hash"):
                continue
            columns: set[int] = set()
            for place, key in enumerate(index.keys[: 1 if index.method == "hash" else None], 1):
                columns.add(key.column)
                if key.column == 0 or len(columns) < place:
                    break
                self._leading[index.table_oid, frozenset(columns)].append(index)
        self._known: dict[tuple[int, str], frozenset[int]] = {}

    def indexes(self, table: int, look_up: Sequence[Sequence[Any]]) -> frozenset[int]:
        """The same for each key on the same columns.

        Args:
            look_up: column, collation and operator families of each.
        """
        asked = (table, repr(look_up))
        if asked not in self._known:
            wanted = {column: ((0, collation), families) for column, collation, families in look_up}
            self._known[asked] = frozenset(
                index.oid
                for index in self._leading.get((table, frozenset(wanted)), ())
                if all(_looked_up(key, *wanted[key.column]) for key in index.keys[: len(wanted)])
            )
        return self._known[asked]


def _looked_up(key: Column, collations: Collection[int], families: Collection[int]) -> bool:
    return key.collation in collations and key.family in families


# Texts and names are skipped as they are.
_TOKEN = re.compile(r"'(?:[^']|'')*+'|\"(?:[^\"]|\"\")*+\"|[()]| AND ")


class _Group:
    """What two parentheses hold, or the whole text: where it begins and ends, what is in it, and where it has AND."""

    __slots__ = ("begin", "conjunctions", "end", "inner")

    def __init__(self, begin: int) -> None:
        self.begin, self.end = begin, begin
        self.inner: dict[int, _Group] = {}
        """By the place of its opening parenthesis."""
        self.conjunctions: list[tuple[int, int]] = []

    def pieces(self) -> list[tuple[int, int]]:
        """Where the parts that AND joins begin and end."""
        begins = [self.begin, *(end for _, end in self.conjunctions)]
        ends = [*(begin for begin, _ in self.conjunctions), self.end]
        return list(zip(begins, ends, strict=True))


def _conjuncts(text: str) -> frozenset[str]:
    """The parts of a condition that AND joins, as PostgreSQL writes them: each in parentheses, and all together.

    The text is read once, and each group looked at once, however deep it is: whoever makes an index chooses both.
    """
    whole = _grouped(text)
    if whole is None:
        return frozenset({text})
    found: set[str] = set()
    groups = [whole]
    while groups:
        group = groups.pop()
        pieces = group.pieces()
        # Without parentheses of its own a part may be the end of a BETWEEN SYMMETRIC or the like.
        if len(pieces) > 1 and not all(text[begin] == "(" and text[end - 1] == ")" for begin, end in pieces):
            found.add(text[group.begin : group.end])
            continue
        for begin, end in pieces:
            inner = group.inner.get(begin)
            if inner is not None and inner.end + 1 == end:
                groups.append(inner)
            else:
                found.add(text[begin:end])
    return frozenset(found)


def _grouped(text: str) -> _Group | None:
    """The text by its parentheses; `None` where they don't match."""
    whole = _Group(0)
    opened = [whole]
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "(":
            inner = _Group(match.end())
            opened[-1].inner[match.start()] = inner
            opened.append(inner)
        elif token == ")":
            if len(opened) == 1:
                return None
            opened.pop().end = match.start()
        elif token == " AND ":
            opened[-1].conjunctions.append(match.span())
    whole.end = len(text)
    return whole if len(opened) == 1 else None
