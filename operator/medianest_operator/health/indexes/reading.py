"""The indexes of a database, and what its servers have counted of them, read from the catalogs."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from psycopg import AsyncConnection, Connection
from psycopg.rows import tuple_row

from medianest_operator.health.indexes import queries
from medianest_operator.health.indexes.catalog import (
    Catalog,
    Collation,
    Column,
    Constraint,
    ForeignKey,
    Index,
    Statistics,
    Unvalidated,
)  # fmt: skip
from medianest_operator.postgres.catalog_queries import SET_SEARCH_PATH
from medianest_operator.postgres.rows import only, only_async
from medianest_operator.postgres.trusted import bounded, too_large

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
