"""Which indexes a database's applied migrations make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeGuard

from medianest_operator.migrations.bundled import application_facts
from medianest_operator.migrations.history import TABLE, History
from medianest_operator.postgres.catalog import Catalog, CatalogObject
from medianest_operator.postgres.index_definition import IndexDefinition

_LONGEST_NAME: Final = 63
"""Bytes (PostgreSQL manual, 4.1.1)."""


def is_bundled(history: History) -> bool:
    """Whether the history holds bundled migrations alone, so that what they make is known without asking."""
    known = application_facts().checksums
    return all(row.migration_name in known for row in history.applied)


def made_indexes(history: History, recorded: Catalog | None) -> tuple[IndexDefinition, ...] | None:
    """The indexes in `public`, without that of the history itself; `None` where nobody knows.

    Of the bundled migrations each one's indexes are known. With others among them, it is those of the catalog that the
    last run recorded for the version: what a later migration dropped isn't in there.

    Args:
        recorded: the journal's catalog of the history's version, if there is one.
    """
    if is_bundled(history):
        applied = {row.migration_name for row in history.applied}
        return tuple(index for migration, index in application_facts().indexes if migration in applied)
    return None if recorded is None else tuple(_recorded(recorded.of_kind("index")))


def critical_indexes() -> tuple[IndexDefinition, ...]:
    """The six that the application's queries can't do without."""
    names = application_facts().critical_indexes
    by_name = {index.name: index for _, index in application_facts().indexes}
    return tuple(by_name[name] for name in names)


def _recorded(items: Iterable[CatalogObject]) -> Iterable[IndexDefinition]:
    for item in items:
        table, name = _plain(item.table), _plain(item.name)
        definition = item.attributes.get("definition")
        # Names carry their schema unless it is public.
        if isinstance(definition, str) and _is_a_name(name) and _is_a_name(table) and table != TABLE:
            yield IndexDefinition(name, table, definition, item.attributes.get("primary") is True)


def _is_a_name(name: str | None) -> TypeGuard[str]:
    """Whether PostgreSQL has such names; the journal may hold anything."""
    return name is not None and 0 < len(name.encode(errors="replace")) <= _LONGEST_NAME


def _plain(identifier: str) -> str | None:
    """A name as pg_class has it; `None` for one in another schema."""
    if identifier.startswith('"') and identifier.endswith('"') and '"' not in identifier[1:-1].replace('""', ""):
        return identifier[1:-1].replace('""', '"')
    return None if "." in identifier or '"' in identifier else identifier
