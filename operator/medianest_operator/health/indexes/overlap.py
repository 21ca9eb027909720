"""Which indexes can go because of another one on the same table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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


def overlaps(indexes: Iterable[Index]) -> list[Overlap]:
    """Every index that can go, each with one that stays, by name.

    Of several that can replace each other the one stays that enforces most: primary key, what a foreign key refers to,
    replica identity, constraint, unique, clustered, part of a partitioned index, plain.
    """
    by_table: dict[int, list[Index]] = defaultdict(list)
    for index in indexes:
        if index.usable:
            by_table[index.table_oid].append(index)
    found = [overlap for table in by_table.values() for overlap in _of_table(table)]
    return sorted(found, key=lambda overlap: overlap.index.name)


def _of_table(indexes: Sequence[Index]) -> Iterable[Overlap]:
    going: dict[int, Overlap] = {}
    # Whoever is worth least goes first, and never because of one that goes itself.
    for index in sorted(indexes, key=_worth, reverse=True):
        replacing = [
            other
            for other in indexes
            if other.oid != index.oid and other.oid not in going and can_go(index) and replaces(other, index)
        ]
        if replacing:
            kept = min(replacing, key=lambda other: (not _is_equal(other, index), _worth(other)))
            going[index.oid] = Overlap(index, kept, _is_equal(kept, index))
    # Of a chain each names the last, which stays.
    return [_resolved(overlap, going) for overlap in going.values()]


def _resolved(overlap: Overlap, going: Mapping[int, Overlap]) -> Overlap:
    kept = overlap.kept
    while kept.oid in going:
        kept = going[kept.oid].kept
    return Overlap(overlap.index, kept, _is_equal(kept, overlap.index))


def _worth(index: Index) -> tuple[bool, bool, bool, bool, bool, bool, bool, int, int, str]:
    """Sorts the index to keep first; of equal ones in all this the one with more columns, then by name."""
    return (
        not index.primary,
        not index.referenced,
        not index.replica_identity,
        not index.constraint,
        not index.unique,
        not index.clustered,
        index.parent is None,
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
