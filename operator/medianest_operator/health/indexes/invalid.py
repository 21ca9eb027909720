"""Indexes that no query uses although they are there: what left them, and what to do about each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

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
    return [
        _explained(index, everything)
        for index in everything
        if not (index.valid and index.ready and index.live) and not index.in_work
    ]


def _explained(index: Index, everything: Iterable[Index]) -> Invalid:
    drop = f"DROP INDEX CONCURRENTLY {index.identifier};"
    again = f"REINDEX INDEX CONCURRENTLY {index.identifier};"
    beside = [other for other in everything if other.oid != index.oid and other.table_oid == index.table_oid]
    equal = next((other for other in beside if other.usable and other.shape == index.shape), None)
    leftover = _LEFTOVER.fullmatch(index.name)
    original = None
    if leftover:
        # PostgreSQL cuts the name of the original where the whole gets longer than 63 bytes.
        original = next(
            (
                other
                for other in beside
                if other.name.startswith(leftover["of"])
                and (other.shape, other.unique) == (index.shape, index.unique)
                and not _LEFTOVER.fullmatch(other.name)
            ),
            None,
        )
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
