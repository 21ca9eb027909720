"""The indexes, foreign keys and collations of a database as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from medianest_operator.health.indexes.predicates import conjuncts

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
        return conjuncts(self.predicate) if self.predicate else frozenset()

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
