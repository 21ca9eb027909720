"""Foreign keys whose own look-ups no index supports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container

from medianest_operator.health.indexes.catalog import Catalog, ForeignKey


class Support:
    """By which indexes PostgreSQL finds the rows of foreign keys when a referenced one is deleted or changed."""

    def __init__(self, catalog: Catalog) -> None:
        self._conditions = {index.oid: index.conditions for index in catalog.indexes}
        self._known: dict[tuple[frozenset[int], frozenset[str]], frozenset[int]] = {}

    def of(self, key: ForeignKey) -> frozenset[int]:
        """Their identifiers, the same set for keys on the same columns.

        A predicate does no harm where it leaves out only rows in which a column of the key is NULL: those refer to
        nothing, and the look-up's own comparison shows that (PostgreSQL manual, 11.8).
        """
        asked = (key.indexes, frozenset(f"{name} IS NOT NULL" for name in key.identifiers))
        if asked not in self._known:
            indexes, harmless = asked
            self._known[asked] = frozenset(
                oid for oid in indexes if (found := self._conditions.get(oid)) is not None and found <= harmless
            )
        return self._known[asked]


def without_index(catalog: Catalog) -> list[ForeignKey]:
    """The foreign keys that no index supports, each once: of a partitioned table's the one that was declared.

    On a partitioned table the key holds for every partition, and its look-ups read each: one without an index is
    enough.
    """
    by_oid = {key.oid: key for key in catalog.foreign_keys}
    tables_of_parts = defaultdict(set)
    for key in catalog.foreign_keys:
        tables_of_parts[key.parent].add(key.table_oid)
    support = Support(catalog)
    found = {}
    for key in catalog.foreign_keys:
        parent = by_oid.get(key.parent)
        if parent is not None and parent.table_oid == key.table_oid:
            # One of several that PostgreSQL keeps because the referenced table has partitions.
            continue
        if tables_of_parts[key.oid] - {key.table_oid} or support.of(key):
            continue
        root = key
        while (above := by_oid.get(root.parent)) is not None:
            root = above
        found[root.oid] = root
    return sorted(found.values(), key=lambda key: (key.table, key.name))


class Needed:
    """What the foreign keys need of the indexes that are left, as one after the other is given up."""

    def __init__(self, catalog: Catalog, gone: Container[int] = ()) -> None:
        """
        Args:
            gone: the identifiers of indexes that are given up already.
        """
        support = Support(catalog)
        # Keys with the same support are one.
        groups = {support.of(key) for key in catalog.foreign_keys}
        self._left = [sum(oid not in gone for oid in oids) for oids in groups]
        self._groups: dict[int, list[int]] = defaultdict(list)
        for number, oids in enumerate(groups):
            for oid in oids:
                self._groups[oid].append(number)

    def give_up(self, oid: int) -> bool:
        """Give up an index, unless a foreign key has none but this; says whether it was given up."""
        groups = self._groups.get(oid, [])
        if any(self._left[number] <= 1 for number in groups):
            return False
        for number in groups:
            self._left[number] -= 1
        return True
