"""Indexes that no query uses although they are there: what left them, and what to do about each."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from medianest_operator.health.indexes.catalog import Index


class Cause(Enum):
    """What leaves an invalid index (PostgreSQL manual, CREATE INDEX, DROP INDEX and REINDEX, "Concurrently")."""

    NEW_OF_REINDEX = "ccnew"
    OLD_OF_REINDEX = "ccold"
    DROP = "drop"
    CREATE = "create"
    SUPERFLUOUS = "superfluous"
    PARTITION_MISSING = "partition"


@dataclass(frozen=True)
class Invalid:
    """An index that costs every write, or waits to be removed, and serves no query."""

    index: Index
    cause: Cause
    evidence: str
    fix: str | None


_LEFTOVER: Final = re.compile(r"(?P<of>.*)_(?P<kind>ccnew|ccold)\d*", re.DOTALL)


def invalid(indexes: Iterable[Index]) -> list[Invalid]:
    """The invalid indexes but those that a session is building or dropping, by name."""
    everything = list(indexes)
    beside = _Beside(everything)
    return [_explained(index, beside) for index in everything if not index.usable and not index.in_work]


class _Beside:
    """The indexes by what they answer, so that each invalid one finds its like without looking at all."""

    def __init__(self, indexes: Sequence[Index]) -> None:
        self._usable: dict[tuple[Any, ...], Index] = {}
        originals: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for index in indexes:
            if index.usable:
                self._usable.setdefault(index.shape, index)
            if not _LEFTOVER.fullmatch(index.name):
                originals[index.shape, index.unique].append(index.name)
        self._originals = {like: sorted(names) for like, names in originals.items()}

    def equal(self, index: Index) -> Index | None:
        """A usable one that answers the same; a shape holds the table."""
        return self._usable.get(index.shape)

    def has_original(self, index: Index, beginning: str) -> bool:
        """Whether a rebuild of one that answers and enforces the same, and whose name begins so, can have left it.

        PostgreSQL cuts the name of the original where the whole gets longer than 63 bytes.
        """
        names = self._originals.get((index.shape, index.unique), [])
        place = bisect_left(names, beginning)
        return place < len(names) and names[place].startswith(beginning)


def _explained(index: Index, beside: _Beside) -> Invalid:
    drop = f"DROP INDEX CONCURRENTLY {index.identifier};"
    again = f"REINDEX INDEX CONCURRENTLY {index.identifier};"
    equal = beside.equal(index)
    leftover = _LEFTOVER.fullmatch(index.name)
    original = leftover is not None and beside.has_original(index, leftover["of"])
    # Only its own table's index is that of a table's overflow, which a login sees by its name alone.
    if leftover and (original or index.table_identifier.startswith("pg_toast.")):
        if leftover["kind"] == "ccnew":
            evidence = (
                "a REINDEX CONCURRENTLY was interrupted before its new index took over; the original serves queries as"
                " before. Drop this one and rebuild again"
            )
            return Invalid(index, Cause.NEW_OF_REINDEX, evidence, drop)
        evidence = (
            "a REINDEX CONCURRENTLY was interrupted after its new index took over; this is the old one, which only has"
            " to be dropped"
        )
        return Invalid(index, Cause.OLD_OF_REINDEX, evidence, drop)
    if index.partitioned:
        evidence = (
            "it is a partitioned index to which not every partition has an attached index; it becomes valid with the"
            " last ALTER INDEX ... ATTACH PARTITION"
        )
        return Invalid(index, Cause.PARTITION_MISSING, evidence, None)
    if not index.live:
        return Invalid(index, Cause.DROP, "a DROP INDEX CONCURRENTLY was interrupted; it has to be finished", drop)
    if equal is not None:
        evidence = f"a CREATE INDEX CONCURRENTLY or a DROP INDEX CONCURRENTLY didn't end, and {equal.name} is equal"
        return Invalid(index, Cause.SUPERFLUOUS, evidence, drop)
    evidence = "a CREATE INDEX CONCURRENTLY didn't end, or a DROP INDEX CONCURRENTLY was interrupted"
    if index.unique:
        evidence += "; as it is unique, rows that break its rule may be why, and have to be found first"
    elif index.ready:
        evidence += "; every write keeps it up to date all the same"
    return Invalid(index, Cause.CREATE, evidence, again)
