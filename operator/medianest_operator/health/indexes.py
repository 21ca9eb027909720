"""Index health from the live catalog: what is missing, invalid, duplicate, and which foreign keys have no index."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString

from psycopg import AsyncConnection, Connection
from psycopg.rows import tuple_row
from pydantic import BaseModel, ConfigDict

from medianest_operator.postgres.rows import only, only_async
from medianest_operator.postgres.trusted import bounded, too_large

# The application's schema; other schemas are other people's.
_IN_PUBLIC: LiteralString = """
     c.relnamespace = to_regnamespace('public') AND NOT EXISTS (
       SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""

# One row: all indexes and all foreign keys, each as a JSON array. Keys and their operator classes, collations and
# directions are compared by identifier, which is exact within one database.
SELECT_INDEXES: LiteralString = f"""
SELECT (SELECT coalesce(json_agg(q ORDER BY q.name), '[]'::json) FROM (
        SELECT c.relname AS table, i.relname AS name, x.indisunique AS unique, x.indisprimary AS primary,
               x.indisvalid AND x.indisready AND x.indislive AS valid,
               EXISTS (SELECT FROM pg_catalog.pg_constraint k
                        WHERE k.conindid = x.indexrelid AND k.contype IN ('p', 'u', 'x')) AS constraint,
               x.indnkeyatts AS keys, x.indkey::int2[] AS columns,
               (SELECT array_agg(a.attname ORDER BY u.ord)
                  FROM unnest(x.indkey::int2[]) WITH ORDINALITY u(num, ord)
                  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = u.num) AS column_names,
               concat_ws('|', i.relam, x.indclass, x.indcollation, x.indoption, x.indnullsnotdistinct,
                         pg_get_expr(x.indexprs, x.indrelid)) AS shape,
               pg_get_expr(x.indpred, x.indrelid) AS predicate
          FROM pg_catalog.pg_index x
          JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
          JOIN pg_catalog.pg_class c ON c.oid = x.indrelid
         WHERE {_IN_PUBLIC}) q),
       (SELECT coalesce(json_agg(q ORDER BY q.table, q.name), '[]'::json) FROM (
        SELECT c.relname AS table, k.conname AS name, k.conkey AS columns,
               (SELECT array_agg(a.attname ORDER BY u.ord)
                  FROM unnest(k.conkey) WITH ORDINALITY u(num, ord)
                  JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num) AS column_names
          FROM pg_catalog.pg_constraint k
          JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
         WHERE k.contype = 'f' AND {_IN_PUBLIC}) q)
"""

HISTORY_TABLE = "_prisma_migrations"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class DuplicateIndex(_Frozen):
    """An index that answers nothing that another one doesn't.

    Attributes:
        table: its table.
        name: the index that could go.
        duplicate_of: the one to keep: primary key before constraint before unique before plain.
    """

    table: str
    name: str
    duplicate_of: str


class UnindexedForeignKey(_Frozen):
    """A foreign key whose columns lead no index: deleting or re-keying a referenced row reads the whole table."""

    table: str
    name: str
    columns: tuple[str, ...]


class IndexHealth(_Frozen):
    """The state of the indexes in schema `public`.

    Attributes:
        total: all indexes on the application's tables, primary keys and invalid ones included, without those of
            `_prisma_migrations` (33 after the bundled migrations).
        total_with_history: the same with `_prisma_migrations` (34 after the bundled migrations).
        critical_expected: how many indexes are called critical.
        critical_present: how many of them exist and are valid.
        missing: the critical ones that don't exist or are invalid, by name.
        invalid: indexes that no query uses, such as a failed CREATE INDEX CONCURRENTLY leaves.
        duplicates: valid indexes that repeat another one.
        unindexed_foreign_keys: foreign keys that no index supports.
    """

    total: int
    total_with_history: int
    critical_expected: int
    critical_present: int
    missing: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    duplicates: tuple[DuplicateIndex, ...] = ()
    unindexed_foreign_keys: tuple[UnindexedForeignKey, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Every critical index is there and no index is invalid; duplicates only cost, they break nothing."""
        return not self.missing and not self.invalid


def evaluate(
    indexes: Iterable[Mapping[str, Any]], foreign_keys: Iterable[Mapping[str, Any]], critical: Sequence[str]
) -> IndexHealth:
    """Judge the rows of `SELECT_INDEXES`."""
    everything = list(indexes)
    own = [index for index in everything if index["table"] != HISTORY_TABLE]
    valid = [index for index in own if index["valid"]]
    present = {index["name"] for index in valid}
    missing = tuple(name for name in critical if name not in present)
    return IndexHealth(
        total=len(own),
        total_with_history=len(everything),
        critical_expected=len(critical),
        critical_present=len(critical) - len(missing),
        missing=missing,
        invalid=tuple(index["name"] for index in everything if not index["valid"]),
        duplicates=tuple(_duplicates(valid)),
        unindexed_foreign_keys=tuple(
            UnindexedForeignKey(table=key["table"], name=key["name"], columns=tuple(key["column_names"]))
            for key in foreign_keys
            if not any(_supports(index, key) for index in valid)
        ),
    )


def read_index_health(connection: Connection[Any], critical: Sequence[str]) -> IndexHealth:
    """Read and judge the indexes of the database that the connection is in.

    Raises:
        psycopg.Error: as the server says.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        indexes, foreign_keys = only(cursor.execute(SELECT_INDEXES))
    return evaluate(indexes, foreign_keys, critical)


async def read_index_health_async(connection: AsyncConnection[Any], critical: Sequence[str]) -> IndexHealth:
    """As `read_index_health`, for the controller.

    Raises:
        UntrustedContent: there are more than can be read.
        psycopg.Error: as the server says.
    """
    async with connection.cursor(row_factory=tuple_row) as cursor:
        row = await only_async(await cursor.execute(bounded(SELECT_INDEXES, 2)))
    if None in row:
        raise too_large("The definitions of indexes and foreign keys")
    return evaluate(row[0], row[1], critical)


def _duplicates(indexes: Iterable[Mapping[str, Any]]) -> Iterable[DuplicateIndex]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for index in indexes:
        groups[index["table"], index["keys"], tuple(index["columns"]), index["shape"], index["predicate"]].append(index)
    for group in groups.values():
        kept, *others = sorted(group, key=_worth)
        for index in others:
            yield DuplicateIndex(table=index["table"], name=index["name"], duplicate_of=kept["name"])


def _worth(index: Mapping[str, Any]) -> tuple[bool, bool, bool, str]:
    """Sorts the index to keep first; a plain one never comes before a unique one, whose rule would be lost."""
    return not index["primary"], not index["constraint"], not index["unique"], index["name"]


def _supports(index: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether an index finds a foreign key's rows: its columns come first, in any order, and no row is left out."""
    width = len(key["columns"])
    return (
        index["table"] == key["table"]
        and index["predicate"] is None
        and set(index["columns"][: min(width, index["keys"])]) == set(key["columns"])
    )
