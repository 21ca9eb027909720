"""Whether a restored database is the one that was backed up: its definitions, every table's rows, its sequences."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

from medianest_operator.backups.logical.toc import RIGHTS_ON, LeftOut, Name
from medianest_operator.backups.repository.client import Repository
from medianest_operator.backups.repository.encryption import decrypt
from medianest_operator.backups.repository.layout import Format, Tier
from medianest_operator.backups.repository.manifest import Manifest
from medianest_operator.backups.repository.store import fetch
from medianest_operator.hardening.fingerprint import without_hardening
from medianest_operator.postgres.catalog import Catalog, CatalogObject, Key, differences, read_catalog
from medianest_operator.postgres.contents import count_large_objects, count_rows, read_sequences, read_tables
from medianest_operator.postgres.copies import PUBLIC
from medianest_operator.results.backup import Reason, RunFailure

LARGE_OBJECTS = "large objects"
"""How the lack of them is accepted."""
ACCEPTED = "accepted: "
"""How a note on a difference that was accepted begins."""
_KEPT_BY_NO_DUMP = {"column": ("position", "compression"), "collation": ("encoding",)}
_LARGEST_CATALOG = 512 << 20
"""Bytes: more is unpacked of no catalog, whatever a forged one may hold."""
_HISTORY = "_prisma_migrations"
_NAMED_WITH_AN_INDEX = frozenset({"index", "constraint"})
_INDEX_NAME = re.compile(r'^(CREATE (?:UNIQUE )?INDEX )(?:"(?:[^"]|"")*"|[^" ]+)')
# What a dump of one database doesn't hold: who may connect, and settings of roles and of the database itself.
_OUTSIDE = ("grants", "", "database")


@dataclass(frozen=True)
class Contents:
    """What has to be equal.

    Attributes:
        catalog: every definition.
        rows: of each table.
        sequences: the last value of each, and whether it was handed out.
        large_objects: how many there are.
    """

    catalog: Catalog
    rows: Mapping[str, int]
    sequences: Mapping[str, tuple[int, bool]]
    large_objects: int = 0


@dataclass(frozen=True)
class Losses:
    """What a restore knows that it doesn't bring back.

    Attributes:
        left: what isn't made at all.
        notes: the rest, in words.
        owners: roles whose objects belong to the database's owner instead.
        some_rights: some rights were not granted.
        all_rights: none were, and everything belongs to the database's owner.
    """

    left: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    owners: frozenset[str] = frozenset()
    some_rights: bool = False
    all_rights: bool = False

    def __bool__(self) -> bool:
        return bool(self.left.numbers or self.owners or self.some_rights or self.all_rights)

    def told(self) -> list[str]:
        """All of it in words."""
        return [*self.left.notes, *self.notes]

    def objects(self, expected: Catalog) -> list[str]:
        """The labels of what is lost wholly, or as its owner's, as far as that is known beforehand."""
        lost = [
            item
            for item in expected.objects.values()
            if item.kind not in ("grants", "comment")
            and (item.kind == "subscription" or self.left.covers(item) or item.attributes.get("owner") in self.owners)
        ]
        names = {item.name for item in lost if not item.table}
        # What the catalog of an earlier version doesn't know.
        unknown = [label for name, label in self.left.refused.items() if not any(map(name.is_of, lost))]
        return sorted([*(item.label for item in lost if item.table not in names), *unknown])


@dataclass
class Comparison:
    """What was found.

    Attributes:
        differences: what isn't equal, in words; empty if all is.
        objects: of the definitions among them, the objects by their labels (`CatalogObject.label`).
        notes: what was left out of the comparison, in words.
        exact: the fingerprint itself is the same.
        rows: rows that there are.
    """

    differences: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    exact: bool = False
    tables: int = 0
    rows: int = 0

    def describe(self) -> str:
        """For the end of a sentence."""
        shown = "; ".join(self.differences[:3])
        more = f"; and {len(self.differences) - 3} more" if len(self.differences) > 3 else ""
        return shown + more


def dumped_catalog(connection: Connection[Any]) -> Catalog:
    """The catalog of what pg_dump writes of a database: all but what belongs to its surroundings."""
    return _dumped(read_catalog(connection))


def read_contents(connection: Connection[Any], report: Callable[[str], None] = lambda line: None) -> Contents:
    """What a database holds now.

    Raises:
        psycopg.Error: as the server says.
    """
    rows = {}
    for name, count in count_rows(connection, read_tables(connection)):
        rows[name] = count
        report(f"counted {name}: {count}")
    return Contents(dumped_catalog(connection), rows, read_sequences(connection), count_large_objects(connection))


def stored_catalog(repository: Repository, manifest: Manifest, identities: Sequence[str]) -> Catalog | None:
    """The catalog that was stored with a backup; `None` where it has none.

    Raises:
        RunFailure: it is damaged.
        RepositoryError: it can't be read.
        EncryptionError: it can't be decrypted.
    """
    file = manifest.file(Format.CATALOG)
    if file is None:
        return None
    chunks = fetch(repository, manifest.place, file)
    packed = b"".join(decrypt(chunks, identities) if file.encrypted else chunks)
    try:
        text = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(_LARGEST_CATALOG + 1)
        if len(text) > _LARGEST_CATALOG:
            raise ValueError("it is larger than any catalog")
        if hashlib.sha256(text).hexdigest() != manifest.fingerprint:
            raise ValueError("its SHA-256 is not the manifest's fingerprint")
        return parse_catalog(text)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise RunFailure(Reason.BACKUP_DAMAGED, f"{file.name} of {manifest.id} is damaged: {error}") from error


def parse_catalog(text: bytes) -> Catalog:
    """A catalog out of its canonical JSON."""
    objects = {}
    for raw in json.loads(text):
        kind, table, name = raw.pop("kind"), raw.pop("table"), raw.pop("name")
        item = CatalogObject(kind, table, name, raw)
        objects[item.key] = item
    return Catalog(objects).as_read_today()


def compare(
    manifest: Manifest,
    expected: Catalog | None,
    found: Contents,
    *,
    losses: Losses | None = None,
    accepted: Collection[str] = (),
) -> Comparison:
    """A restored database with its backup's manifest.

    Args:
        expected: the stored catalog, so that differences have words.
        losses: what the restore could not bring back, where that is no difference.
        accepted: labels of objects that may differ.
    """
    known, losses = losses is not None, losses or Losses()
    result = Comparison(tables=len(found.rows), rows=sum(found.rows.values()))
    gone = {*losses.left.names, *_tables(accepted)}
    rows = {
        name: count
        for name, count in _expected_rows(manifest, found).items()
        if name in found.rows or Name.table(name) not in gone
    }
    result.differences += row_differences(rows, _rows_of(manifest, found))
    if manifest.tier is not Tier.PRE_MIGRATION:
        # There the sequences were read before the dump, while others were writing.
        there = {
            name: value
            for name, value in manifest.sequences.items()
            if name in found.sequences or Name.table(name.removeprefix(f"{PUBLIC}.")) not in gone
        }
        result.differences += sequence_differences(there, found.sequences)
    lacks = (known and manifest.tier is Tier.PRE_MIGRATION) or LARGE_OBJECTS in accepted
    _compare_large_objects(result, manifest, found, lacks)
    catalog = _scope(manifest, found.catalog).as_of(manifest.catalog_version)
    mappings = catalog.of_kind("user mapping")
    result.notes += [f"{item.label} has no options now: they may hold a password" for item in mappings]
    result.exact = catalog.fingerprint() == manifest.fingerprint
    if result.exact:
        return result
    if expected is None:
        if not losses and not accepted:
            result.differences.append(
                "the catalog's fingerprint is not the manifest's, which has no catalog to compare"
            )
        else:
            result.notes.append("the definitions were not compared: the backup has no catalog, only a fingerprint")
        return result
    expected = _dumped(expected).as_of(manifest.catalog_version)
    expected, catalog, notes = without_versions(expected, catalog)
    result.notes += notes
    catalog, notes = _as_no_dump_keeps_it(expected, catalog)
    result.notes += notes
    if known:
        expected, unknown = _without_subscriptions(expected, catalog)
        result.notes += unknown
    expected, catalog = _less(losses, expected, catalog)
    is_accepted = _accepted(accepted, expected, catalog)
    renamed = _renamed(manifest.moved, expected, catalog)
    for item, lines in differences(expected, catalog):
        if item.key in renamed or (
            item.label in manifest.moved and item.key in expected.objects and item.key in catalog.objects
        ):
            result.notes.append(f"{item.label} was changed while it was backed up, and isn't compared")
        elif is_accepted(item):
            result.notes += [f"{ACCEPTED}{line}" for line in lines]
        else:
            result.objects.append(item.label)
            result.differences += lines
    return result


def _renamed(moved: Collection[str], expected: Catalog, found: Catalog) -> set[Key]:
    """The indexes that differ in their names alone, of tables whose indexes were renamed while they were backed up:
    that takes no lock which a dump would wait for (PostgreSQL manual, ALTER INDEX), so that the dump may have a third
    name, which neither the look before it nor the one after it has seen."""
    keys: set[Key] = set()
    for item in expected.objects.values():
        prefix = item.label.removesuffix(item.name)
        if item.kind not in _NAMED_WITH_AN_INDEX or not any(label.startswith(prefix) for label in moved):
            continue
        same = found.objects.get(item.key)
        new = [other for key, other in found.objects.items() if key not in expected.objects and key not in keys]
        like = next((other for other in ([same] if same else new) if _nameless(other) == _nameless(item)), None)
        if like is not None:
            keys |= {item.key, like.key}
    return keys


def _nameless(item: CatalogObject) -> tuple[str, str, dict[str, Any]]:
    definition = _INDEX_NAME.sub(r"\1", str(item.attributes.get("definition")), count=1)
    return item.kind, item.table, {**item.attributes, "definition": definition}


def _compare_large_objects(result: Comparison, manifest: Manifest, found: Contents, may_lack: bool) -> None:
    if manifest.database is None or found.large_objects == manifest.database.large_objects:
        return
    text = f"there are {found.large_objects} large objects, expected {manifest.database.large_objects}"
    if may_lack and not found.large_objects:
        # Before a migration none is dumped where some belong to others, who alone may read them.
        result.notes.append(text)
    else:
        result.objects.append(LARGE_OBJECTS)
        result.differences.append(text)


def _as_no_dump_keeps_it(expected: Catalog, found: Catalog) -> tuple[Catalog, list[str]]:
    """What was found, as if pg_dump reproduced what it doesn't, whoever restores; and a word on each of that.

    A column that was added to a parent stands last in the child, and comes back among the inherited ones; their
    compression comes back as the parent's. A collation copied from one without an encoding gets the database's.
    """
    kept, notes = dict(found.objects), []
    heirs = {item.name for item in expected.of_kind("table") if item.attributes.get("parents")}
    for key, item in expected.objects.items():
        names, other = _KEPT_BY_NO_DUMP.get(item.kind), found.objects.get(key)
        if names is None or other is None or (item.kind == "column" and item.table not in heirs):
            continue
        was = {name: item.attributes.get(name) for name in names}
        unlike = sorted(name for name in names if other.attributes.get(name) != was[name])
        if unlike:
            notes.append(f"{item.label} has another {' and '.join(unlike)}, which pg_dump doesn't keep")
            attributes = {name: value for name, value in {**other.attributes, **was}.items() if value is not None}
            kept[key] = CatalogObject(item.kind, item.table, item.name, attributes)
    return Catalog(kept), notes


def _without_subscriptions(expected: Catalog, found: Catalog) -> tuple[Catalog, list[str]]:
    """Nobody but a superuser gets them from pg_dump: they hold passwords."""
    missing = [item for item in expected.of_kind("subscription") if item.key not in found.objects]
    kept = Catalog({key: item for key, item in expected.objects.items() if item not in missing})
    return kept, [f"{item.label} is not in the backup: it would hold its password" for item in missing]


def _less(losses: Losses, expected: Catalog, found: Catalog) -> tuple[Catalog, Catalog]:
    """Both catalogs without what a restore could not bring back."""
    if losses.all_rights:
        expected, found = expected.without_privileges(), found.without_privileges()
    expected, found = losses.left.without_rights(expected), losses.left.without_rights(found)
    expected = losses.left.without(expected, found)
    if losses.owners or losses.some_rights:
        moved = {key for key, item in expected.objects.items() if item.attributes.get("owner") in losses.owners}
        expected, found = _without_owners(expected, moved), _without_owners(found, moved)
    return expected, found


def _without_owners(catalog: Catalog, moved: Collection[Key]) -> Catalog:
    """Without the owners of some objects, and without rights, which name their owner."""
    kept = {}
    for key, item in catalog.objects.items():
        if item.kind == "grants":
            continue
        attributes = {name: value for name, value in item.attributes.items() if name != "owner" or key not in moved}
        kept[key] = CatalogObject(item.kind, item.table, item.name, attributes)
    return Catalog(kept)


def _tables(labels: Iterable[str]) -> set[Name]:
    """The tables among some labels."""
    return {Name.table(label.removeprefix("table ")) for label in labels if label.startswith("table ")}


def _accepted(accepted: Collection[str], expected: Catalog, found: Catalog) -> Callable[[CatalogObject], bool]:
    """Whether an object is one of those with such labels, a part of one, its rights or a comment on it."""
    items = [item for side in (expected, found) for item in side.objects.values() if item.label in accepted]
    keys, names = {item.key for item in items}, {Name.of(item.kind, item.name) for item in items if not item.table}
    names |= {Name.of("grants", label.removeprefix(RIGHTS_ON)) for label in accepted if label.startswith(RIGHTS_ON)}
    return lambda item: item.key in keys or any(name.is_of(item) for name in names)


def without_versions(expected: Catalog, found: Catalog) -> tuple[Catalog, Catalog, list[str]]:
    """Both without the versions of extensions, which are the server's own, and a word on those that aren't equal."""
    notes = []
    for item in expected.of_kind("extension"):
        other = found.objects.get(item.key)
        if other is not None and other.attributes.get("version") != item.attributes.get("version"):
            versions = other.attributes.get("version"), item.attributes.get("version")
            notes.append(f"extension {item.name} is version {versions[0]} here and was {versions[1]}")
    return _versionless(expected), _versionless(found), notes


def row_differences(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """In words."""
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        was, now = expected.get(name), found.get(name)
        if was is None:
            lines.append(f"table {name} is not expected")
        elif now is None:
            lines.append(f"table {name} is missing")
        elif was != now:
            lines.append(f"table {name} holds {now} rows, expected {was}")
    return lines


def sequence_differences(expected: Mapping[str, tuple[int, bool]], found: Mapping[str, tuple[int, bool]]) -> list[str]:
    """In words; a sequence that is missing is told by the catalog."""
    return [
        f"sequence {name} stands at {found[name][0]}, expected {value[0]}"
        for name, value in sorted(expected.items())
        if name in found and tuple(found[name]) != tuple(value)
    ]


def _dumped(catalog: Catalog) -> Catalog:
    kept = {key: item for key, item in catalog.objects.items() if key != _OUTSIDE and key[0] != "settings"}
    return without_invalid_indexes(Catalog(kept))


def without_invalid_indexes(catalog: Catalog) -> Catalog:
    """pg_dump leaves out what CREATE INDEX CONCURRENTLY and REINDEX CONCURRENTLY left behind when they failed, or have
    not ended yet (PostgreSQL manual, CREATE INDEX); of a partitioned table it has them all."""
    partitioned = {item.name for item in catalog.of_kind("table") if item.attributes.get("partitioned")}
    invalid = [
        item
        for item in catalog.of_kind("index")
        if item.attributes.get("valid") is False and item.table not in partitioned
    ]
    if not invalid:
        return catalog
    keys = {item.key for item in invalid}
    schemas = (_schema_of(item.table) for item in invalid)
    comments = {f"index {schema}.{item.name}" for schema, item in zip(schemas, invalid, strict=True)}
    return Catalog(
        {
            key: item
            for key, item in catalog.objects.items()
            if key not in keys and not (item.kind == "comment" and item.name in comments)
        }
    )


def _schema_of(table: str) -> str:
    """Of a table as the catalog calls it."""
    found = re.match(r'("(?:[^"]|"")+"|[^".]+)\.', table)
    return found[1] if found else PUBLIC


def _expected_rows(manifest: Manifest, found: Contents) -> Mapping[str, int]:
    if manifest.tier is not Tier.PRE_MIGRATION:
        return manifest.rows
    # The first versions counted the rows of materialized views as well there.
    derived = {item.name for item in found.catalog.of_kind("materialized view")}
    return {name: count for name, count in manifest.rows.items() if name not in derived}


def _rows_of(manifest: Manifest, found: Contents) -> Mapping[str, int]:
    if manifest.tier is not Tier.PRE_MIGRATION:
        return found.rows
    return {name: count for name, count in found.rows.items() if name in manifest.rows or name != _HISTORY}


def _scope(manifest: Manifest, catalog: Catalog) -> Catalog:
    """A migration's own backup speaks of what migrations change: no history, none of the operator's own objects."""
    if manifest.tier is not Tier.PRE_MIGRATION:
        return catalog
    return without_hardening(catalog.without_table(_HISTORY))


def _versionless(catalog: Catalog) -> Catalog:
    objects = dict(catalog.objects)
    for item in catalog.of_kind("extension"):
        attributes = {name: value for name, value in item.attributes.items() if name != "version"}
        objects[item.key] = CatalogObject(item.kind, item.table, item.name, attributes)
    return Catalog(objects)
