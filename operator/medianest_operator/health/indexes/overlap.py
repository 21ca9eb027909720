"""Which indexes can go because of another one on the same table."""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from dataclasses import dataclass

from medianest_operator.health.indexes.catalog import Index


@dataclass(frozen=True)
class Overlap:
    """An index that answers nothing, and enforces nothing, that another one doesn't.

    Attributes:
        equal: the other one answers nothing more either.
    """

    index: Index
    kept: Index
    equal: bool


def overlaps(
    indexes: Iterable[Index], stays: Callable[[Index], bool] = lambda _: False, made: Container[str] = ()
) -> list[Overlap]:
    """Every index that can go, each with one that stays, by name.

    Of several that can replace each other the one stays that enforces most: primary key, what a foreign key refers to,
    replica identity, constraint, unique, clustered, part of a partitioned index, made by a migration, plain.

    Args:
        stays: whether an index is never to go, whatever is equal to it.
        made: the names of those that migrations make: the equal one goes that none makes.
    """
    by_table: dict[int, list[Index]] = defaultdict(list)
    for index in indexes:
        if index.usable:
            by_table[index.table_oid].append(index)
    found = [overlap for table in by_table.values() for overlap in _of_table(table, stays, made)]
    return sorted(found, key=lambda overlap: overlap.index.name)


class _Table:
    """A table's indexes as sets, so that what replaces one is found without comparing it with each of the others.

    A set is an integer with a bit for each index, the lowest for the one to keep first.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        self._shapes: dict[Hashable, int] = defaultdict(int)
        self._begun: dict[Hashable, int] = defaultdict(int)
        self._held: dict[str, int] = defaultdict(int)
        self._enforced: dict[Hashable, int] = defaultdict(int)
        for place, index in enumerate(indexes):
            bit = 1 << place
            keys = _keys(index)
            self._shapes[index.shape] |= bit
            if index.unique:
                self._enforced[keys, index.nulls_not_distinct, index.immediate] |= bit
            if index.method != "btree":
                continue
            for width in range(1, len(keys) + 1):
                self._begun[keys[:width], index.conditions] |= bit
            for definition in {item.definition for item in (*index.keys, *index.included)}:
                self._held[definition] |= bit

    def equal(self, index: Index) -> int:
        return self._shapes[index.shape]

    def replacing(self, index: Index) -> int:
        """As `replaces`, of all at once; itself among them."""
        keys = _keys(index)
        found = self._shapes[index.shape]
        if index.method == "btree":
            found = self._begun[keys, index.conditions]
            for item in index.included:
                found &= self._held[item.definition]
        if index.unique:
            found &= functools.reduce(
                operator.or_,
                (
                    self._enforced.get((keys, nulls, immediate), 0)
                    for nulls in ((True,) if index.nulls_not_distinct else (True, False))
                    for immediate in ((True,) if index.immediate else (True, False))
                ),
            )
        return found


def _keys(index: Index) -> tuple[tuple[str, str], ...]:
    return tuple((key.definition, key.rule) for key in index.keys)


def _of_table(indexes: Sequence[Index], stays: Callable[[Index], bool], made: Container[str]) -> Iterable[Overlap]:
    ordered = sorted(indexes, key=lambda index: (not stays(index), _worth(index, made)))
    table = _Table(ordered)
    left = (1 << len(ordered)) - 1
    going: dict[int, Overlap] = {}
    # Whoever is worth least goes first, and never because of one that goes itself.
    for place in reversed(range(len(ordered))):
        index = ordered[place]
        if stays(index) or not can_go(index):
            continue
        others = table.replacing(index) & left & ~(1 << place)
        if others:
            best = others & table.equal(index) or others
            going[index.oid] = Overlap(index, ordered[(best & -best).bit_length() - 1], equal=False)
            left &= ~(1 << place)
    # Of a chain each names the last, which stays: the one that went last knows it already.
    resolved: dict[int, Index] = {}
    for overlap in reversed(going.values()):
        kept = resolved.get(overlap.kept.oid, overlap.kept)
        resolved[overlap.index.oid] = kept
        yield Overlap(overlap.index, kept, _is_equal(kept, overlap.index))


def _worth(index: Index, made: Container[str]) -> tuple[bool | int | str, ...]:
    """Sorts the index to keep first; of equal ones in all this the one with more columns, then by name."""
    return (
        not index.primary,
        not index.referenced,
        not index.replica_identity,
        not index.constraint,
        not index.unique,
        not index.clustered,
        index.parent is None,
        index.name not in made,
        -len(index.keys),
        -len(index.included),
        index.name,
    )


def can_go(index: Index) -> bool:
    """Whether an index is of a kind that may be dropped where another one does all that it does.

    Not a primary key; not one that a foreign key or logical replication names, which no equal one takes over; not one
    of an exclusion constraint; and not a part of a partitioned index, which goes only as a whole (PostgreSQL manual,
    DROP INDEX and ALTER TABLE ... REPLICA IDENTITY).
    """
    held = index.primary or index.referenced or index.replica_identity or index.exclusion or index.clustered
    return not held and index.parent is None


def replaces(other: Index, index: Index) -> bool:
    """Whether another index answers whatever an index answers, and enforces what it enforces."""
    if other.table_oid != index.table_oid or other.method != index.method or other.conditions != index.conditions:
        return False
    if index.unique and not _enforces(other, index):
        return False
    if other.shape == index.shape:
        return True
    # Only a btree's order makes its first columns an index of their own (PostgreSQL manual, 11.3).
    if index.method != "btree":
        return False
    first = other.keys[: len(index.keys)]
    if [(key.definition, key.rule) for key in first] != [(key.definition, key.rule) for key in index.keys]:
        return False
    held = {item.definition for item in (*other.keys, *other.included)}
    return all(item.definition in held for item in index.included)


def _is_equal(other: Index, index: Index) -> bool:
    return other.shape == index.shape


def _enforces(other: Index, index: Index) -> bool:
    """Whether another unique index lets nothing through that a unique one refuses, nor later."""
    return (
        other.unique
        and [(key.definition, key.rule) for key in other.keys] == [(key.definition, key.rule) for key in index.keys]
        and (other.nulls_not_distinct or not index.nulls_not_distinct)
        and (other.immediate or not index.immediate)
    )
