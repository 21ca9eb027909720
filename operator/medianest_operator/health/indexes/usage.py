"""Indexes that no query has used for so long that none will miss them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import date, timedelta
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from medianest_operator.health.indexes.catalog import Catalog, Index, Statistics
from medianest_operator.health.indexes.foreign_keys import Needed
from medianest_operator.health.indexes.overlap import Overlap, overlaps
from medianest_operator.health.indexes.queries import MOST

UNUSED_AFTER: Final = timedelta(days=14)
"""So long nobody must have used an index. Two weeks hold everything that is done once a week twice; what is done once a
month or once a year nobody sees in them, which the verdict says."""
SMALLEST: Final = 1 << 20
"""Bytes below which an unused index isn't worth a word: it stays in memory, and a write to it costs microseconds."""
_MOST_STAMPS: Final = 2000
"""Indexes whose first sight is remembered; more than that are never called unused."""


class Seen(BaseModel):
    """What has to be remembered so that no index is taken for an old one.

    The catalogs don't say when an index was made, and counters don't say whether they have counted long enough for it.

    Attributes:
        database: the identifier of the database that this is of.
        indexes: by the day on which they were first seen, the stamps of indexes.
        instances: the servers that counted, by name.
        left: the day on which one of them was seen no more: what it had counted is lost.
    """

    model_config = ConfigDict(frozen=True)

    database: int = 0
    indexes: dict[str, list[str]] = {}
    instances: list[str] = []
    left: date | None = None

    @classmethod
    def parse(cls, text: str | None) -> Seen:
        """From what was kept; anybody who may write to the place may have put in anything, which is as nothing then."""
        if not text:
            return cls()
        try:
            found = cls.model_validate_json(text)
            for day in found.indexes:
                date.fromisoformat(day)
        except (ValidationError, ValueError):
            return cls()
        return found

    def first_seen(self) -> Mapping[str, date]:
        """The day by stamp."""
        return {stamp: date.fromisoformat(day) for day, stamps in self.indexes.items() for stamp in stamps}

    def after(self, catalog: Catalog, instances: Collection[str], today: date) -> Seen:
        """With another look at all instances.

        A new database, a new identifier or another row in pg_class makes an index a new one: at worst one that was
        renamed or rebuilt waits as long again.
        """
        same = self.database == catalog.database
        known = self.first_seen() if same else {}
        days: dict[str, list[str]] = {}
        for index in sorted(catalog.indexes, key=lambda index: index.oid)[:_MOST_STAMPS]:
            # A day that is yet to come was never seen.
            day = min(known.get(index.stamp, today), today)
            days.setdefault(day.isoformat(), []).append(index.stamp)
        gone = bool(set(self.instances) - set(instances))
        return Seen(
            database=catalog.database,
            indexes=dict(sorted(days.items())),
            instances=sorted(instances),
            left=today if gone else self.left,
        )

    def departed_within(self, today: date, period: timedelta) -> bool:
        return self.left is not None and today - self.left < period


def unused(
    catalog: Catalog, statistics: Mapping[str, Statistics | None], seen: Seen, today: date, smallest: int = SMALLEST
) -> list[Index]:
    """The indexes that were not scanned once on any instance, and that nothing but queries needs.

    Nobody is called unused unless every instance has counted for `UNUSED_AFTER`: one that can't be asked, has counted
    for less (a crash, a copy and a restore make it begin again) or went away may have used any of them.

    Args:
        statistics: by instance; `None` where it couldn't be asked.
        seen: as it is after this look.
        today: in UTC.
        smallest: bytes.
    """
    if len(catalog.foreign_keys) >= MOST:
        # One that wasn't read may need any of them.
        return []
    if not statistics or seen.departed_within(today, UNUSED_AFTER):
        return []
    used: set[int] = set()
    for counted in statistics.values():
        if counted is None or not _is_old_enough(counted) or counted.database != catalog.database:
            return []
        used |= counted.used
    first_seen = seen.first_seen()
    found = [
        index
        for index in catalog.indexes
        if index.oid not in used
        and index.bytes >= smallest
        and _serves_queries_alone(index)
        and index.stamp in first_seen
        and today - first_seen[index.stamp] >= UNUSED_AFTER
    ]
    return without_needed(catalog, found, overlaps(catalog.indexes))


def without_needed(catalog: Catalog, unused: Iterable[Index], overlapping: Iterable[Overlap]) -> list[Index]:
    """Those of the unused ones that can be dropped beside all that can go because of another one.

    What can go isn't named twice, and what it can go because of takes over its queries, so it isn't unused. Of those
    that support one foreign key the last one stays.
    """
    going, kept = set(), set()
    for item in overlapping:
        going.add(item.index.oid)
        kept.add(item.kept.oid)
    needed = Needed(catalog, going)
    return [index for index in unused if index.oid not in going and index.oid not in kept and needed.give_up(index.oid)]


def _is_old_enough(counted: Statistics) -> bool:
    return counted.counting and counted.since is not None and counted.now - counted.since >= UNUSED_AFTER


def _serves_queries_alone(index: Index) -> bool:
    """Not one that enforces a rule, that something refers to, or that is part of a partitioned index: what that is used
    for its parts' counters say, each alone."""
    enforces = index.unique or index.exclusion or index.constraint or index.replica_identity or index.referenced
    return index.usable and not enforces and not index.partitioned and index.parent is None


def counts_for_all(statistics: Iterable[Statistics | None]) -> bool:
    """Whether every instance has counted for long enough."""
    return all(counted is not None and _is_old_enough(counted) for counted in statistics)
