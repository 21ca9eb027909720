"""The statements that turn one catalog back into another, as far as definitions alone can. Pure.

Only what adds nothing but definitions has an inverse here: what was added is dropped, an index that was dropped or
left invalid is built again, defaults and the like are set back. Where the difference holds anything else, there is
none, and another way of reverting has to be taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from medianest_operator.postgres.catalog import Catalog, CatalogObject, Key

# How each kind is dropped, in the order in which it is done: what depends on others goes first.
_DROPS: Mapping[str, str] = {
    "policy": "DROP POLICY IF EXISTS {name} ON {table}",
    "trigger": "DROP TRIGGER IF EXISTS {name} ON {table}",
    "rule": "DROP RULE IF EXISTS {name} ON {table}",
    "publication": "DROP PUBLICATION IF EXISTS {name}",
    "statistics object": "DROP STATISTICS IF EXISTS {name}",
    "view": "DROP VIEW IF EXISTS {name} CASCADE",
    "materialized view": "DROP MATERIALIZED VIEW IF EXISTS {name} CASCADE",
    "constraint": "ALTER TABLE IF EXISTS {table} DROP CONSTRAINT IF EXISTS {name}",
    "index": "DROP INDEX CONCURRENTLY IF EXISTS {schema}{name}",
    "invalid index of large values": "DROP INDEX IF EXISTS pg_toast.{name}",
    "table": "DROP TABLE IF EXISTS {name} CASCADE",
    "column": "ALTER TABLE IF EXISTS {table} DROP COLUMN IF EXISTS {name}",
    "cast": "DROP CAST IF EXISTS ({name})",
    "transform": "DROP TRANSFORM IF EXISTS {name}",
    "operator class": "DROP OPERATOR CLASS IF EXISTS {name}",
    "operator family": "DROP OPERATOR FAMILY IF EXISTS {name}",
    "operator": "DROP OPERATOR IF EXISTS {name}",
    "text search configuration": "DROP TEXT SEARCH CONFIGURATION IF EXISTS {name}",
    "text search dictionary": "DROP TEXT SEARCH DICTIONARY IF EXISTS {name}",
    "conversion": "DROP CONVERSION IF EXISTS {name}",
    "function": "DROP FUNCTION IF EXISTS {name}",
    "procedure": "DROP PROCEDURE IF EXISTS {name}",
    "aggregate": "DROP AGGREGATE IF EXISTS {name}",
    "sequence": "DROP SEQUENCE IF EXISTS {name}",
    "domain": "DROP DOMAIN IF EXISTS {name}",
    "enum type": "DROP TYPE IF EXISTS {name}",
    "composite type": "DROP TYPE IF EXISTS {name}",
    "range type": "DROP TYPE IF EXISTS {name}",
    "collation": "DROP COLLATION IF EXISTS {name}",
    "extension": "DROP EXTENSION IF EXISTS {name}",
    "schema": "DROP SCHEMA IF EXISTS {name}",
}
HOLDERS = ("table", "view", "materialized view")
"""What has columns, indexes and the like, which go with it."""
# What goes with the object that it belongs to.
_FOLLOWERS = frozenset({"grants"})

_COMMENTED: Mapping[str, str] = {
    "table": "TABLE", "table column": "COLUMN", "index": "INDEX", "view": "VIEW", "schema": "SCHEMA", "type": "TYPE",
    "function": "FUNCTION", "sequence": "SEQUENCE", "materialized view": "MATERIALIZED VIEW",
}  # fmt: skip


class NoInverse(Exception):
    """The difference holds something that definitions alone don't bring back; the text says what."""


def inverse(before: Catalog, after: Catalog) -> list[str]:
    """The statements that lead from `after` back to `before`, in order, each to be run on its own.

    Raises:
        NoInverse: something was removed or changed whose data or whose definition is gone.
    """
    added = {key: after.objects[key] for key in after.objects.keys() - before.objects.keys()}
    removed = {key: before.objects[key] for key in before.objects.keys() - after.objects.keys()}
    changed = [
        (before.objects[key], after.objects[key])
        for key in sorted(before.objects.keys() & after.objects.keys())
        if before.objects[key] != after.objects[key]
    ]
    statements: list[str] = []
    rebuilt: list[str] = []
    comments: list[str] = []
    for was, now in changed:
        (comments if was.kind == "comment" else rebuilt).extend(_change_back(was, now))
    for item in sorted(removed.values(), key=lambda item: item.key):
        # A comment is on something that has to be there again.
        (comments if item.kind == "comment" else rebuilt).extend(_bring_back(item))
    dropped_tables = {item.name for item in added.values() if item.kind in HOLDERS}
    for kind in _DROPS:
        for item in sorted((item for item in added.values() if item.kind == kind), key=lambda item: item.key):
            if not _goes_with_another(item, dropped_tables, added):
                statements.append(drop_of(item))
    for item in added.values():
        if item.kind == "comment":
            statements.append(_comment(item.name, None))
        elif item.kind not in _DROPS and item.kind not in _FOLLOWERS:
            raise NoInverse(f"{item.label} was added, and nothing is known that removes it")
        elif item.kind in _FOLLOWERS and not _is_of_added(item, added):
            raise NoInverse(f"{item.label} was added")
    return statements + rebuilt + comments


def _goes_with_another(item: CatalogObject, dropped_tables: set[str], added: Mapping[Key, CatalogObject]) -> bool:
    if item.table in dropped_tables:
        return True
    if item.kind == "index":
        # A constraint's index is named like it and goes with it.
        return ("constraint", item.table, item.name) in added
    if item.kind == "sequence" and "owned_by" in item.attributes:
        owner = str(item.attributes["owned_by"])
        columns = (f"{other.table}.{other.name}" for other in added.values() if other.kind == "column")
        return owner in columns or any(owner.startswith(f"{table}.") for table in dropped_tables)
    return False


def _is_of_added(item: CatalogObject, added: Mapping[Key, CatalogObject]) -> bool:
    _, _, name = item.name.partition(" ")
    return any(
        _called_as(name) == _called_as(other.name) or name.startswith(f"{other.name}.")
        for other in added.values()
        if other.kind != item.kind
    )


def _called_as(name: str) -> tuple[str, int] | str:
    """A function's name and the number of its arguments: rights are listed by their types alone, functions with their
    names, too. Whether the inverse leads back is verified in any case."""
    called, bracket, arguments = name.partition("(")
    return (called, arguments.count(",") + (arguments != ")")) if bracket else name


def drop_of(item: CatalogObject) -> str:
    """The statement that drops an object which a run has added."""
    return _DROPS[item.kind].format(name=item.name, table=item.table, schema=_schema_of(item.table))


def _schema_of(table: str) -> str:
    """An index is in its table's schema: that of `beside.there` is `beside.`, that of `"c.d"` is `public`."""
    found = re.fullmatch(r'((?:"(?:[^"]|"")+"|[^".]+)\.)(?:"(?:[^"]|"")+"|[^".]+)', table)
    return found[1] if found else ""


def _bring_back(item: CatalogObject) -> list[str]:
    """Make something again that is gone and holds no data."""
    definition = item.attributes.get("definition")
    match item.kind:
        case "index" if item.attributes.get("unique") is False:
            return [str(definition).replace("CREATE INDEX ", "CREATE INDEX CONCURRENTLY ", 1)]
        case "trigger" | "statistics object" | "function" | "procedure":
            return [str(definition)]
        case "view":
            return [f"CREATE VIEW {item.name} AS {definition}"]
        case "comment":
            return [_comment(item.name, str(item.attributes["text"]))]
        case _:
            raise NoInverse(f"{item.label} is gone")


def _change_back(was: CatalogObject, now: CatalogObject) -> list[str]:
    statements: list[str] = []
    names = sorted(was.attributes.keys() | now.attributes.keys())
    for name in names:
        before, after = was.attributes.get(name), now.attributes.get(name)
        if before == after:
            continue
        change = _CHANGES.get((was.kind, name))
        if change is None:
            raise NoInverse(f"{was.label}: {name.replace('_', ' ')} was changed")
        statements += change(was)
    return statements


def _default(was: CatalogObject) -> list[str]:
    value = was.attributes.get("default")
    action = f"SET DEFAULT {value}" if value is not None else "DROP DEFAULT"
    return [f"ALTER TABLE {was.table} ALTER COLUMN {was.name} {action}"]


def _nullable(was: CatalogObject) -> list[str]:
    if not was.attributes["nullable"]:
        raise NoInverse(f"{was.label} no longer refuses nulls, and may hold some")
    return [f"ALTER TABLE {was.table} ALTER COLUMN {was.name} DROP NOT NULL"]


def _valid(was: CatalogObject) -> list[str]:
    if not was.attributes["valid"]:
        return []
    return [f"REINDEX INDEX CONCURRENTLY {_schema_of(was.table)}{was.name}"]


def _validated(was: CatalogObject) -> list[str]:
    return [
        f"ALTER TABLE {was.table} DROP CONSTRAINT {was.name}, ADD CONSTRAINT {was.name} {was.attributes['definition']}"
    ]


def _redefine(was: CatalogObject) -> list[str]:
    return [str(was.attributes["definition"])]


def _redefine_view(was: CatalogObject) -> list[str]:
    return [f"CREATE OR REPLACE VIEW {was.name} AS {was.attributes['definition']}"]


def _nothing(was: CatalogObject) -> list[str]:
    """Follows from another change, or from columns that come and go."""
    return []


_CHANGES: Mapping[tuple[str, str], Callable[[CatalogObject], list[str]]] = {
    ("column", "default"): _default,
    ("column", "nullable"): _nullable,
    ("column", "position"): _nothing,
    ("index", "valid"): _valid,
    ("constraint", "validated"): _validated,
    ("constraint", "definition"): _nothing,
    ("function", "definition"): _redefine,
    ("procedure", "definition"): _redefine,
    ("view", "definition"): _redefine_view,
    ("comment", "text"): lambda was: [_comment(was.name, str(was.attributes["text"]))],
}


def _comment(name: str, text: str | None) -> str:
    for kind in sorted(_COMMENTED, key=len, reverse=True):
        if name.startswith(f"{kind} "):
            identity = name.removeprefix(f"{kind} ")
            quoted = "NULL" if text is None else "'" + text.replace("'", "''") + "'"
            return f"COMMENT ON {_COMMENTED[kind]} {identity} IS {quoted}"
    raise NoInverse(f"the comment on {name} was changed")
