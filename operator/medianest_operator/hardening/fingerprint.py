"""A catalog as it would be without the operator's own objects: drift and rollbacks are about the migrations alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from medianest_operator.hardening.naming import CURRENT_USER_ID, MARK, is_own
from medianest_operator.hardening.objects import BODIES
from medianest_operator.postgres.catalog import Catalog, CatalogObject, Key

_BY_NAME = frozenset({"index", "constraint", "column", "trigger", "policy", "function"})
_SIGNATURE = f"{CURRENT_USER_ID}()"


def without_hardening(catalog: Catalog) -> Catalog:
    """Leave out every object of `spec.hardening`, and what comes with it: comments, grants, the columns' places in
    their tables, the switch of row-level security.

    A catalog of a database with hardening gives what the same database gives without it. An object that only has one of
    our names, such as a `current_user_id()` with another body, stays.
    """
    ours = {key for key, item in catalog.objects.items() if _is_ours(item, catalog)}
    secured = {item.table for key, item in catalog.objects.items() if key in ours and item.kind == "policy"}
    secured -= {item.table for key, item in catalog.objects.items() if key not in ours and item.kind == "policy"}
    kept: dict[Key, CatalogObject] = {}
    for key, item in catalog.objects.items():
        if key in ours:
            continue
        if item.kind == "table" and item.name in secured:
            kept[key] = _with(item, {"row_security": False})
        else:
            kept[key] = item
    return Catalog(_renumbered(kept, {catalog.objects[key].table for key in ours if key[0] == "column"}))


def _is_ours(item: CatalogObject, catalog: Catalog) -> bool:
    match item.kind:
        case "comment":
            return str(item.attributes.get("text", "")).startswith(MARK)
        case "grants":
            kind, _, name = item.name.partition(" ")
            if kind == "column":
                return is_own(name.rpartition(".")[2])
            if name == _SIGNATURE:
                return kind == "function" and _is_our_function(catalog)
            return kind == "function" and is_own(name)
        case "function" if item.name == _SIGNATURE:
            return _is_our_function(catalog)
        case kind if kind in _BY_NAME:
            return is_own(item.name)
    return False


def _is_our_function(catalog: Catalog) -> bool:
    """Whether `current_user_id()`, which has no prefix, says that it is ours and does what ours does."""
    function = catalog.objects.get(("function", "", _SIGNATURE))
    comment = catalog.objects.get(("comment", "", f"function public.{_SIGNATURE}"))
    return (
        function is not None
        and comment is not None
        and str(comment.attributes.get("text", "")).startswith(MARK)
        and BODIES[CURRENT_USER_ID] in str(function.attributes.get("definition", ""))
    )


def _renumbered(objects: dict[Key, CatalogObject], tables: set[str]) -> dict[Key, CatalogObject]:
    """Count the columns of tables that had one of ours anew."""
    columns = sorted(key for key in objects if key[0] == "column" and key[1] in tables)
    for _, group in groupby(columns, key=lambda key: key[1]):
        ordered = sorted(group, key=lambda key: int(objects[key].attributes["position"]))
        for position, key in enumerate(ordered, start=1):
            objects[key] = _with(objects[key], {"position": position})
    return objects


def _with(item: CatalogObject, changes: Mapping[str, Any]) -> CatalogObject:
    return CatalogObject(item.kind, item.table, item.name, {**item.attributes, **changes})
