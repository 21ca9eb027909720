"""An index by its definition, as migrations make it and as catalogs have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IndexDefinition:
    """An index as it should be.

    Attributes:
        name: as pg_class has it.
        table: as pg_class has it.
        definition: as pg_get_indexdef writes it where names are found in `pg_catalog` alone: each carries its schema.
        primary: it is a primary key's.
    """

    name: str
    table: str
    definition: str
    primary: bool = False
