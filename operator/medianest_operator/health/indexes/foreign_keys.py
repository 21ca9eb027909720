"""Foreign keys whose own look-ups no index supports."""

from __future__ import annotations

from collections.abc import Iterable

from medianest_operator.health.indexes.catalog import Catalog, ForeignKey, Index


def supporting(key: ForeignKey, indexes: Iterable[Index]) -> list[Index]:
    """The indexes by which PostgreSQL finds a foreign key's rows when a referenced one is deleted or changed.

    A predicate does no harm where it leaves out only rows in which a column of the key is NULL: those refer to nothing,
    and the look-up's own comparison shows that (PostgreSQL manual, 11.8).
    """
    harmless = {f"{name} IS NOT NULL" for name in key.identifiers}
    return [index for index in indexes if index.oid in key.indexes and index.conditions <= harmless]


def without_index(catalog: Catalog) -> list[ForeignKey]:
    """The foreign keys that no index supports, each once: of a partitioned table's the one that was declared.

    On a partitioned table the key holds for every partition, and its look-ups read each: one without an index is
    enough.
    """
    by_oid = {key.oid: key for key in catalog.foreign_keys}
    found = {}
    for key in catalog.foreign_keys:
        parent = by_oid.get(key.parent)
        if parent is not None and parent.table_oid == key.table_oid:
            # One of several that PostgreSQL keeps because the referenced table has partitions.
            continue
        parts = [item for item in catalog.foreign_keys if item.parent == key.oid and item.table_oid != key.table_oid]
        if parts or supporting(key, catalog.indexes):
            continue
        root = key
        while (above := by_oid.get(root.parent)) is not None:
            root = above
        found[root.oid] = root
    return sorted(found.values(), key=lambda key: (key.table, key.name))


def only_support(catalog: Catalog) -> frozenset[int]:
    """The indexes without which a foreign key had none."""
    alone = set()
    for key in catalog.foreign_keys:
        found = supporting(key, catalog.indexes)
        if len(found) == 1:
            alone.add(found[0].oid)
    return frozenset(alone)
