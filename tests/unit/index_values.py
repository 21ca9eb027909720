"""Indexes, keys and catalogs as values, for verdicts that need no server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from medianest_operator.health.indexes.catalog import Catalog, Column, ForeignKey, Index


def column(name: str) -> Column:
    """A column of type int, of number 1 for `a` and so on; an expression where it has parentheses."""
    number = 0 if "(" in name else ord(name[0]) - 96 + 26 * int(name[1:] or 0)
    return Column(number, name, "1978 0 0", 0, 1976, 4, "i", None)


def index(oid: int, keys: str, include: str = "", /, table: str = "t", **other: Any) -> Index:
    """A plain btree on the columns of these names, of 2 MiB."""
    name = other.pop("name", f"{table}_{oid}")
    plain = Index(
        oid=oid, stamp=f"{oid}:1", name=name, identifier=f"public.{name}",
        table_oid=sum(map(ord, table)), table=table, table_identifier=f"public.{table}",
        partitioned=False, parent=None, method="btree", unique=False, nulls_not_distinct=False, primary=False,
        exclusion=False, immediate=True, clustered=False, replica_identity=False, valid=True, ready=True, live=True,
        keys=tuple(map(column, keys.split())), included=tuple(map(column, include.split())), predicate=None, options=(),
        constraint=None, referenced=False,
        definition=f"CREATE INDEX {name} ON public.{table} USING btree ({', '.join(keys.split())})",
        pages=256, rows=-1.0, collations=frozenset(), in_work=False,
    )  # fmt: skip
    return replace(plain, **other)


def foreign_key(oid: int, columns: str, *indexes: int, table: str = "t") -> ForeignKey:
    """On the columns of these names; the indexes are those that its look-ups can use."""
    return ForeignKey(
        oid, 0, sum(map(ord, table)), table, f"public.{table}", partitioned=False, name=f"fk_{oid}",
        identifiers=tuple(columns.split()), referenced="other", indexes=frozenset(indexes),
    )  # fmt: skip


def catalog(*indexes: Index, foreign_keys: tuple[ForeignKey, ...] = (), **other: Any) -> Catalog:
    return Catalog(database=5, database_name="app", indexes=indexes, foreign_keys=foreign_keys, **other)
