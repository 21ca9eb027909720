"""How much of an index is air: an estimate from the catalogs as a filter, and a measurement that confirms it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection, errors, sql
from psycopg.rows import tuple_row

from medianest_operator.health.indexes.catalog import PAGE, Column, Index

BLOATED: Final = 30.0
"""Points by which an index is emptier than its fillfactor where it counts as bloated. One into which values come in no
order stays at about 69 % (the classic result for B-trees), 21 points below the default of 90."""
NO_MORE: Final = 25.0
"""Points below which one that counted as bloated no longer does: an estimate moves with every VACUUM."""
_STEP: Final = 10
_SLACK: Final = 5
"""What is said stays until the points are so far outside of their step."""
SMALLEST: Final = 8 << 20
"""Bytes below which a rebuild gains too little to be worth its locks."""
_FILLFACTOR: Final = 90
"""Of a btree that sets none (PostgreSQL manual, CREATE INDEX)."""
# src/include/storage/bufpage.h and access/nbtree.h, itup.h: a page's header and the btree's own end of it, the pointer
# to an entry and the entry's header.
_USABLE: Final = PAGE - 24 - 16
_ENTRY: Final = 4 + 8
_ALIGN: Final = {"c": 1, "s": 2, "i": 4, "d": 8}


def fillfactor(index: Index) -> int:
    """In percent."""
    given = dict(option.partition("=")[::2] for option in index.options)
    value = given.get("fillfactor", "")
    return int(value) if value.isascii() and value.isdigit() else _FILLFACTOR


def estimate(index: Index) -> float | None:
    """By how many points an index is emptier than its fillfactor, at least; `None` where nobody can tell.

    From its pages and entries as of the last VACUUM or ANALYZE, and the width of its columns. Where a column's width
    varies, it takes statistics of the column that the reader may see: the controller's sees none, since pg_stats shows
    the columns only that one may read, and PostgreSQL keeps no other. Equal values that are stored once (deduplication,
    PostgreSQL manual, 67.4.3) make an index smaller than is assumed here, so bloat may be overlooked, not invented.
    """
    if index.method != "btree" or index.rows < 0 or index.pages < 2 or index.partitioned:
        return None
    width = 0
    for column in (*index.keys, *index.included):
        own = column.length if column.length > 0 else column.width
        if own is None:
            return None
        width = _aligned(width, column) + own
    entry = _ENTRY + -(-width // 8) * 8
    # Upper levels take less than a hundredth, which counts for the index; the first page holds no entries.
    full = index.rows * entry / (_USABLE * (index.pages - 1))
    return max(0.0, fillfactor(index) - 100 * full)


def _aligned(offset: int, column: Column) -> int:
    # A short text has a header of one byte and no alignment.
    step = _ALIGN[column.align] if column.length > 0 else 1
    return -(-offset // step) * step


def step(points: float, before: int | None = None) -> int | None:
    """About how many points are said, in steps of ten; `None` where an index doesn't count as bloated.

    Args:
        before: what was said of it the last time.
    """
    if points < (BLOATED if before is None else NO_MORE):
        return None
    if before is not None and before - _SLACK <= points < before + _STEP + _SLACK:
        return before
    return max(int(BLOATED), int(points // _STEP) * _STEP)


def candidates(
    indexes: Iterable[Index], smallest: int = SMALLEST, before: Mapping[str, int] | None = None
) -> list[Index]:
    """The btrees that are worth measuring, the largest first: large ones but those that are estimated to be full.

    Args:
        before: what was said the last time of those that counted as bloated, by name.
    """
    known = before or {}
    found = []
    for index in indexes:
        estimated = estimate(index)
        worth = index.method == "btree" and index.usable and not index.partitioned and index.bytes >= smallest
        if worth and (estimated is None or step(estimated, known.get(index.name)) is not None):
            found.append(index)
    return sorted(found, key=lambda index: (-index.bytes, index.name))


@dataclass(frozen=True)
class Budget:
    """What a confirmation may cost.

    Attributes:
        per_minute: bytes read in a minute, on average from the beginning on: a large index is read at once, after a
            pause in which as much could have been read.
        largest: bytes of the largest index that is read at all.
        seconds: for everything, pauses included.
    """

    per_minute: int = 64 << 20
    largest: int = 4 << 30
    seconds: float = 3600.0


@dataclass(frozen=True)
class Measured:
    """What pgstatindex said of an index.

    Attributes:
        points: by how much it is emptier than its fillfactor, in points of percent; `None` where it wasn't measured.
        bytes: its size.
        wasted: the bytes that a rebuild would free, about.
        why: why it wasn't measured.
    """

    index: Index
    points: float | None = None
    bytes: int = 0
    wasted: int = 0
    why: str | None = None

    @property
    def bloated(self) -> bool:
        return self.points is not None and self.points >= BLOATED


_EXTENSION: Final = """
SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname = 'pgstattuple'
"""
_SIZE: Final = "SELECT pg_catalog.pg_relation_size(%s::pg_catalog.oid)"
_MEASURE: Final = (
    "SELECT index_size, avg_leaf_density, leaf_pages, empty_pages, deleted_pages FROM {}.pgstatindex(%s::{}.regclass)"
)


class NoExtension(Exception):
    """The database has no pgstattuple."""


def confirm(
    connection: Connection[Any],
    found: Iterable[Index],
    budget: Budget | None = None,
    pause: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[Measured]:
    """Measure candidates with pgstatindex, which reads each index whole (PostgreSQL manual, F.34).

    The role needs to be a member of pg_stat_scan_tables or to have been granted the function.

    Args:
        found: in the order in which they are to be measured.
        pause: waits for so many seconds.
        clock: seconds.

    Raises:
        NoExtension: pgstattuple is not installed in the database.
        psycopg.Error: as the server says, but for an index that is gone or locked.
    """
    budget = budget or Budget()
    cursor = connection.cursor(row_factory=tuple_row)
    row = cursor.execute(_EXTENSION).fetchone()
    if row is None:
        raise NoExtension("the extension pgstattuple is not installed in the database")
    measure = sql.SQL(_MEASURE).format(sql.Identifier(row[0]), sql.Identifier("pg_catalog"))
    begun, read, results = clock(), 0, []
    for index in found:
        size = _size_of(cursor.execute(_SIZE, (index.oid,)).fetchone())
        if size is None:
            results.append(Measured(index, why="it is gone"))
            continue
        due = begun + 60.0 * max(0, read + size - budget.per_minute) / budget.per_minute
        if size > budget.largest:
            results.append(Measured(index, bytes=size, why="it is larger than what may be read"))
            continue
        if due - begun > budget.seconds:
            results.append(Measured(index, bytes=size, why="the time was over"))
            continue
        if (wait := due - clock()) > 0:
            pause(wait)
        try:
            answer = cursor.execute(measure, (index.oid,)).fetchone()
        except (errors.UndefinedTable, errors.UndefinedObject, errors.InternalError_, errors.LockNotAvailable) as error:
            results.append(Measured(index, bytes=size, why=" ".join(str(error).split())[:200]))
            continue
        read += size
        results.append(_measured(index, answer or (size, 0, 0, 0, 0)))
    return results


def _size_of(row: tuple[Any, ...] | None) -> int | None:
    return row[0] if row else None


def _measured(index: Index, answer: tuple[Any, ...]) -> Measured:
    size, density, leaves, empty, deleted = answer
    if not leaves or density != density:
        return Measured(index, 0.0, size)
    # Pages that were emptied are waste as well; they are in no leaf's density.
    density = density * leaves / (leaves + empty + deleted)
    points = max(0.0, fillfactor(index) - density)
    return Measured(index, points, size, int((leaves + empty + deleted) * PAGE * points / fillfactor(index)))
