"""The MediaNest schema: the bundled migrations and what is known of the application's own history.

The DDL is this project's own; it yields exactly the catalog of the application's three migrations and carries their
names. `_prisma_migrations` records the checksums of the *application's* files, so that the application's Prisma finds
its own history in a database that this operator migrated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from medianest_operator.migrations.source import Migration, migrations_from_mapping
from medianest_operator.postgres.index_definition import IndexDefinition


@dataclass(frozen=True, slots=True)
class ApplicationFacts:
    """What `application.json` holds about the MediaNest application.

    Attributes:
        checksums: SHA-256 of the application's own migration files, by migration name.
        critical_indexes: the six indexes that its production readiness report calls critical.
        relations: what its eight foreign keys relate: table, columns, referenced table, referenced columns.
        indexes: each index that a migration makes, after that migration's name.
    """

    checksums: dict[str, str]
    critical_indexes: tuple[str, ...]
    relations: tuple[tuple[str, tuple[str, ...], str, tuple[str, ...]], ...]
    indexes: tuple[tuple[str, IndexDefinition], ...]


def _root() -> Traversable:
    return resources.files(__package__)


@cache
def application_facts() -> ApplicationFacts:
    """Read the packaged facts, once a process."""
    raw = json.loads((_root() / "application.json").read_text(encoding="utf-8"))
    relations = tuple(
        (item["table"], tuple(item["columns"]), item["referenced_table"], tuple(item["referenced_columns"]))
        for item in raw["relations"]
    )
    indexes = tuple((name, IndexDefinition(**item)) for name, made in raw["indexes"].items() for item in made)
    return ApplicationFacts(dict(raw["checksums"]), tuple(raw["critical_indexes"]), relations, indexes)


@cache
def bundled_migrations() -> tuple[Migration, ...]:
    """The three bundled migrations in order, each carrying the checksum of the application's own file."""
    entries: dict[str, bytes] = {}
    for item in (_root() / "migrations").iterdir():
        if item.is_dir():
            entries[f"{item.name}/migration.sql"] = (item / "migration.sql").read_bytes()
        else:
            entries[item.name] = item.read_bytes()
    checksums = application_facts().checksums
    return tuple(
        migration.recorded_as(checksums[migration.name]) for migration in migrations_from_mapping(entries, "bundled")
    )
