"""The live catalog as a value: read in one query, compared in words, and reduced to a fingerprint.

Two databases that hold the same schema give equal catalogs, whatever their object identifiers, their server's minor
version or the order in which things were made (the order of a table's columns is part of its schema).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from psycopg import AsyncConnection, Connection
from psycopg.rows import tuple_row

from medianest_operator.naming import RESTORED_TABLES
from medianest_operator.postgres.catalog_extras import ATTRIBUTES, KINDS, RIGHTS_ON
from medianest_operator.postgres.catalog_queries import SELECT_TRACES, SET_SEARCH_PATH
from medianest_operator.postgres.catalog_select import SELECT_CATALOG, SELECT_VERSIONS, catalog_query
from medianest_operator.postgres.rows import only, only_async
from medianest_operator.postgres.trusted import bounded, too_large

VERSION: Final = 2
"""What a catalog knows. 1: tables and all that is around them; 2: `catalog_extras` as well. A catalog says itself which
it is of, and two are compared in what both know (`difference`)."""
_CONSTRUCTOR = re.compile(r"\$function\$(multi)?range_constructor\d\$function\$")
_MARK: Final = ("catalog version", "", "number")
# Kinds and attributes that follow from roles and the server's setup rather than from the schema.
PRIVILEGE_KINDS = frozenset({"grants", "settings"})
PRIVILEGE_ATTRIBUTES = frozenset({"owner"})
# Kinds that hold other objects: where one is absent, its parts aren't told one by one.
_HOLDERS = ("table", "view", "materialized view", "foreign table")

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class CatalogObject:
    """One object of the database.

    Attributes:
        kind: `table`, `column`, `index`, `constraint`, `sequence`, `function`, `grants` and so on.
        table: the table that it belongs to, empty if none. Names carry their schema unless it is `public`.
        name: its name, quoted as in SQL; a function's carries its arguments.
        attributes: what makes it equal to another, as JSON values; absent ones are left out.
    """

    kind: str
    table: str
    name: str
    attributes: Mapping[str, Any]

    @property
    def key(self) -> Key:
        return self.kind, self.table, self.name

    @property
    def label(self) -> str:
        """How messages call it: `table users: column nickname (text)`."""
        extra = f" ({self.attributes['type']})" if self.kind == "column" else ""
        own = f"{self.kind} {self.name}{extra}"
        return f"table {self.table}: {own}" if self.table else own


@dataclass(frozen=True)
class Catalog:
    """All objects of a database's own schemas, by kind, table and name."""

    objects: Mapping[Key, CatalogObject]

    def of_kind(self, kind: str) -> tuple[CatalogObject, ...]:
        """The objects of one kind, in the order of table and name."""
        return tuple(self.objects[key] for key in sorted(self.objects) if key[0] == kind)

    def without_privileges(self) -> Catalog:
        """The schema alone: no owners, grants and settings, which carry the names of this database's roles."""
        return self._filtered(lambda item: item.kind not in PRIVILEGE_KINDS, PRIVILEGE_ATTRIBUTES)

    def without_table(self, table: str) -> Catalog:
        """Leave out a table with everything that belongs to it, such as `_prisma_migrations`."""
        return self._filtered(
            lambda item: (
                item.table != table
                and not (item.kind in _HOLDERS and item.name == table)
                and not (item.kind == "grants" and item.name == f"table {table}")
            )
        )

    def without_extensions(self, names: Collection[str]) -> Catalog:
        """Leave out these extensions, which a copy has for its own use."""
        return self._filtered(lambda item: item.kind != "extension" or item.name not in names)

    def without_restored(self) -> Catalog:
        """Leave out the schemas that hold tables out of a backup."""
        made = {
            item.name.removeprefix("schema ")
            for item in self.of_kind("comment")
            if item.name.startswith("schema ") and str(item.attributes.get("text")).startswith(RESTORED_TABLES)
        }
        if not made:
            return self

        def is_kept(item: CatalogObject) -> bool:
            # Rights and comments are called by what they are on: `table restored.users`.
            what = item.name.partition(" ")[2] if item.kind in ("grants", "comment") else item.table or item.name
            return what not in made and what.partition(".")[0] not in made

        return self._filtered(is_kept)

    @property
    def version(self) -> int:
        """Which kinds of objects it would have found, see `VERSION`; 1 where it says nothing."""
        mark = self.objects.get(_MARK)
        number = mark.attributes.get("is") if mark else 1
        return number if isinstance(number, int) else 1

    def as_of(self, version: int) -> Catalog:
        """What a catalog of an earlier version would have found."""
        if version >= self.version:
            return self
        known = self._filtered(
            lambda item: (
                item.key != _MARK
                and item.kind not in KINDS
                and not (item.kind == "grants" and item.name.startswith(RIGHTS_ON))
            )
        )
        return Catalog({key: _without(item, ATTRIBUTES.get(item.kind)) for key, item in known.objects.items()})

    def as_read_today(self) -> Catalog:
        """A stored catalog of version 1 without the constructors of range types, which it listed."""
        if self.version > 1:
            return self
        made = {
            key for key, item in self.objects.items() if _CONSTRUCTOR.search(str(item.attributes.get("definition")))
        }
        names = {f"function {name.replace('VARIADIC ', '').replace(', ', ',')}" for _, _, name in made}
        return self._filtered(lambda item: item.key not in made and not (item.kind == "grants" and item.name in names))

    def to_json(self) -> str:
        """Canonical JSON: equal catalogs give equal text."""
        document = [
            {"kind": item.kind, "table": item.table, "name": item.name, **item.attributes}
            for _, item in sorted(self.objects.items())
        ]
        return json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def fingerprint(self) -> str:
        """SHA-256 over `to_json`, lowercase hex."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()

    def _filtered(
        self, keep: Callable[[CatalogObject], bool], dropped_attributes: frozenset[str] = frozenset()
    ) -> Catalog:
        return Catalog({key: _without(item, dropped_attributes) for key, item in self.objects.items() if keep(item)})


def _without(item: CatalogObject, attributes: Collection[str] | None) -> CatalogObject:
    if not attributes:
        return item
    kept = {name: value for name, value in item.attributes.items() if name not in attributes}
    return CatalogObject(item.kind, item.table, item.name, kept)


def _catalog_of(answer: Sequence[Any]) -> Catalog:
    """From the value that `SELECT_CATALOG` returns: its search path, and an array or nothing for each section."""
    objects = {_MARK: CatalogObject(*_MARK, {"is": VERSION})}
    _, *sections = answer
    for section in sections:
        for raw in section or ():
            if raw["name"] is None:
                # It was dropped while it was spelled, which doesn't go by the snapshot.
                continue
            attributes = {k: v for k, v in raw.items() if k not in ("kind", "owner_table", "name") and v is not None}
            item = CatalogObject(raw["kind"], raw["owner_table"] or "", raw["name"], attributes)
            objects[item.key] = item
    return Catalog(objects)


def read_catalog(connection: Connection[Any]) -> Catalog:
    """Read the catalog of the database that the connection is in; leaves the session as it was.

    Raises:
        psycopg.Error: as the server says.
    """
    with connection.transaction(force_rollback=True), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(SET_SEARCH_PATH)
        query = catalog_query(connection.info.server_version)
        (answer,) = only(cursor.execute(query))
    return _catalog_of(answer)


@dataclass(frozen=True)
class Definitions:
    """What a database's definitions are, and which versions of their rows they were read from."""

    catalog: Catalog
    versions: Mapping[str, str]

    def moved(self, later: Definitions) -> list[str]:
        """The labels of what was changed between two moments, also where it was changed back."""
        unlike = {item.label for item, _ in differences(self.catalog, later.catalog)}
        names = self.versions.keys() & later.versions.keys()
        return sorted(unlike | {name for name in names if self.versions[name] != later.versions[name]})


def read_definitions(connection: Connection[Any]) -> Definitions:
    """As `read_catalog`, for a comparison of two moments."""
    catalog = read_catalog(connection)
    with connection.transaction(force_rollback=True), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(SET_SEARCH_PATH)
        versions = cursor.execute(SELECT_VERSIONS).fetchall()
    # Without those that were dropped while they were spelled.
    return Definitions(catalog, {name: version for name, version in versions if name is not None})


async def read_catalog_async(connection: AsyncConnection[Any]) -> Catalog:
    """As `read_catalog`, for the controller.

    Raises:
        UntrustedContent: it is larger than a catalog is.
        psycopg.Error: as the server says.
    """
    async with connection.transaction(force_rollback=True), connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(SET_SEARCH_PATH)
        (answer,) = await only_async(await cursor.execute(bounded(SELECT_CATALOG, 1)))
    if answer is None:
        raise too_large("The definitions of the schema's objects")
    return _catalog_of(answer)


@dataclass(frozen=True)
class Traces:
    """What changes leave behind, which is much cheaper to read than what changed.

    Attributes:
        definitions: another text after each change of a definition.
        rows: another one after each change of a row in Prisma's history or in the journal, once the session that made
            it is idle (PostgreSQL manual, 28.2, the cumulative statistics system).
        in_transaction: whether any session is in the midst of a transaction, and so may be late with its rows.
    """

    definitions: str | None
    rows: str | None
    in_transaction: bool = field(default=True, compare=False)


async def read_traces_async(connection: AsyncConnection[Any]) -> Traces:
    """In one round trip: the controller's sessions find nothing outside `pg_catalog` anyway."""
    async with connection.cursor(row_factory=tuple_row) as cursor:
        row = await (await cursor.execute(SELECT_TRACES)).fetchone()
    return Traces(*row) if row else Traces(None, None)


def difference(expected: Catalog, actual: Catalog) -> list[str]:
    """What is unlike in `actual`, in words, in a stable order; empty if the catalogs are equal.

    Parts of a table that is missing or not expected as a whole are not listed one by one. Of catalogs of two versions
    the earlier one says what counts.
    """
    return [line for _, lines in differences(expected, actual) for line in lines]


def differences(expected: Catalog, actual: Catalog) -> Iterator[tuple[CatalogObject, list[str]]]:
    """As `difference`, by objects.

    Parts of a table that is missing or not expected as a whole are not listed one by one. Of catalogs of two versions
    the earlier one says what counts.
    """
    expected, actual = expected.as_of(actual.version), actual.as_of(expected.version)
    whole = _one_sided_holders(expected, actual)
    moved = _moved_columns(expected, actual)
    for key in sorted(expected.objects.keys() | actual.objects.keys(), key=lambda key: (key[1] or key[2], key)):
        wanted, found = expected.objects.get(key), actual.objects.get(key)
        item = wanted or actual.objects[key]
        if item.table in whole or (item.kind == "grants" and item.name.removeprefix("table ") in whole):
            continue
        if found is None:
            yield item, [f"{item.label} is missing"]
        elif wanted is None:
            yield item, [f"{item.label} is not expected"]
        elif lines := _changes(wanted, found, position_counts=key in moved):
            yield item, lines


def _one_sided_holders(one: Catalog, other: Catalog) -> set[str]:
    keys = one.objects.keys() ^ other.objects.keys()
    return {name for kind, _, name in keys if kind in _HOLDERS}


def _moved_columns(one: Catalog, other: Catalog) -> set[Key]:
    """The columns that stand elsewhere among those that both sides have: an added one shifts the rest, no more."""
    common = sorted(key for key in one.objects.keys() & other.objects.keys() if key[0] == "column")
    moved: set[Key] = set()
    for _, group in groupby(common, key=itemgetter(1)):
        keys = list(group)
        orders = [sorted(keys, key=lambda key: side.objects[key].attributes["position"]) for side in (one, other)]
        moved |= {key for key in keys if orders[0].index(key) != orders[1].index(key)}
    return moved


def _changes(wanted: CatalogObject, found: CatalogObject, position_counts: bool) -> list[str]:
    lines = []
    for name in sorted(wanted.attributes.keys() | found.attributes.keys()):
        before, after = wanted.attributes.get(name), found.attributes.get(name)
        if before == after or (name == "position" and not position_counts):
            continue
        if name == "valid" and after is False:
            lines.append(f"{found.label} is invalid")
        else:
            lines.append(f"{found.label}: {name.replace('_', ' ')} is {_word(after)}, expected {_word(before)}")
    return lines


def _word(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "(" + ", ".join(str(item) for item in value) + ")"
    return str(value)
