"""Labels are anybody's to write: what they name must not stay in the cache when the objects are gone."""

from __future__ import annotations

import sys
from typing import Any

from medianest_operator import naming
from medianest_operator.kubernetes.cache import Cache
from medianest_operator.kubernetes.kinds import CONFIG_MAP


def labelled(number: int) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "tenant",
            "name": "x",
            "uid": f"uid-{number}",
            "resourceVersion": str(number),
            "labels": naming.Names("tenant", f"no-such-{number}").labels(),
        }
    }


def size(value: object, seen: set[int]) -> int:
    """Bytes of an object with all that hangs on it."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    whole = sys.getsizeof(value)
    if isinstance(value, dict):
        return whole + sum(size(key, seen) + size(item, seen) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return whole + sum(size(item, seen) for item in value)
    return whole + (size(vars(value), seen) if hasattr(value, "__dict__") else 0)


def test_databases_that_only_labels_name_leave_nothing_behind() -> None:
    """One object whose label somebody changes over and over; the memory of deletions has a bound of its own."""
    cache = Cache()

    def change(numbers: range) -> int:
        for number in numbers:
            cache.put(CONFIG_MAP, labelled(number) | {"data": {"a": str(number)}})
            cache.remove(CONFIG_MAP, labelled(number))
        return size(cache, set())

    # Beyond what is remembered of deletions.
    before = change(range(25_000))
    assert change(range(25_000, 50_000)) - before < 100_000
