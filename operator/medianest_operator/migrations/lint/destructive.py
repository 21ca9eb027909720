"""Statements that take rows or values out of a live table: they run only with `allowDestructive`.

Judged by the tables as they are before the run. What a migration of the same run has made holds nothing of value, and
a rename before the loss doesn't hide it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from medianest_operator.migrations.lint.findings import LiveTable, LiveTables
from medianest_operator.migrations.lint.syntax import Node, SyntaxProblem, names_of, type_of
from medianest_operator.results.text import first_three

_TABLES = frozenset({"OBJECT_TABLE", "OBJECT_MATVIEW"})
_TYPES = {"OBJECT_TYPE": "type", "OBJECT_DOMAIN": "domain", "OBJECT_EXTENSION": "extension"}


class Loss(NamedTuple):
    """A rule's name, what is lost in words, and the live table that loses it."""

    rule: str
    message: str
    table: str | None = None


class DataLoss:
    """Goes through the statements of a run in order, and knows what is a live table by then."""

    def __init__(self, tables: LiveTables) -> None:
        self._tables = tables
        self._made: set[tuple[str | None, str]] = set()

    def losses(self, tag: str, node: Node) -> Iterator[Loss]:
        """What a node would lose, wherever in a statement it stands."""
        match tag:
            case "DropStmt":
                yield from self._drop(node)
            case "TruncateStmt":
                yield from self._truncate(node)
            case "DeleteStmt":
                yield from self._delete(node)
            case "MergeStmt":
                yield from self._merge(node)
            case "UpdateStmt":
                yield from self._update(node)
            case "AlterTableStmt":
                yield from self._alter(node)
            case _:
                pass

    def follow(self, tag: str, node: Node) -> None:
        """Note what a statement makes or renames; to be called after `losses`."""
        match tag:
            case "CreateSeqStmt":
                self._made.add(_table_name(node["sequence"]))
            case "DropStmt" if node.get("removeType") in _TABLES:
                for name in map(names_of, node.get("objects", [])):
                    self._tables.forget(name[-2] if len(name) > 1 else None, name[-1])
            case "RenameStmt" if node.get("renameType") in _TABLES:
                self._tables.rename(*_table_name(node["relation"]), new_name=node["newname"])
            case "RenameStmt" if node.get("renameType") == "OBJECT_SCHEMA":
                self._tables.rename_schema(node["subname"], node["newname"])
            case "RenameStmt" if node.get("renameType") == "OBJECT_COLUMN" and "relation" in node:
                table = self._find(node["relation"])
                if table is not None and node["subname"] in table.columns:
                    table.columns[node["newname"]] = table.columns.pop(node["subname"])
            case "AlterObjectSchemaStmt" if node.get("objectType") in _TABLES:
                self._tables.rename(*_table_name(node["relation"]), new_schema=node["newschema"])
            case _:
                pass

    def _find(self, relation: Node) -> LiveTable | None:
        return self._tables.find(*_table_name(relation))

    def _drop(self, node: Node) -> Iterator[Loss]:
        kind, cascades = node.get("removeType", ""), node.get("behavior") == "DROP_CASCADE"
        for item in node.get("objects", []):
            name = names_of(item)
            spelled = ".".join(name)
            if kind in _TABLES:
                table = self._tables.find(name[-2] if len(name) > 1 else None, name[-1])
                if table is not None:
                    word = "table" if kind == "OBJECT_TABLE" else "materialized view"
                    yield Loss("drop-table", f"drops {word} {table.name}: {table.size} are lost.", table.name)
            elif kind == "OBJECT_SCHEMA":
                lost = self._tables.in_schema(spelled)
                if lost:
                    listed = first_three([f"{table.name} with {table.size}" for table in lost], ", ")
                    yield Loss("drop-schema", f"drops schema {spelled} and its tables: {listed} are lost.")
            elif kind == "OBJECT_SEQUENCE" and (name[-2] if len(name) > 1 else None, name[-1]) not in self._made:
                yield Loss(
                    "drop-sequence",
                    f"drops sequence {spelled}: where it stood is lost, so numbers would be given out again.",
                )
            elif kind in _TYPES and cascades:
                yield Loss(
                    "drop-type",
                    f"drops {_TYPES[kind]} {spelled} with CASCADE: every column of its kind, in any table, loses its"
                    " values. Without CASCADE the server refuses as long as there is such a column.",
                )

    def _truncate(self, node: Node) -> Iterator[Loss]:
        also = ", and every table that refers to it is emptied too" if node.get("behavior") == "DROP_CASCADE" else ""
        for item in node.get("relations", []):
            table = self._find(item["RangeVar"])
            if table is not None:
                yield Loss("truncate", f"empties {table.name}: {table.size} are lost{also}.", table.name)

    def _delete(self, node: Node) -> Iterator[Loss]:
        table = self._whole(node)
        if table is not None:
            yield Loss(
                "delete-all",
                f"deletes from {table.name} without a condition: {table.size} are lost. Say with WHERE which rows are"
                " meant.",
                table.name,
            )

    def _whole(self, node: Node) -> LiveTable | None:
        """The table of a statement that speaks of no row of it, and so of all; `None` for others."""
        condition = node.get("whereClause")
        return self._find(node["relation"]) if condition is None or _is_constant(condition) else None

    def _merge(self, node: Node) -> Iterator[Loss]:
        table = self._find(node["relation"])
        clauses = [item["MergeWhenClause"] for item in node.get("mergeWhenClauses", [])]
        deletes = any(clause.get("commandType") == "CMD_DELETE" and "condition" not in clause for clause in clauses)
        if table is not None and deletes:
            yield Loss(
                "delete-matched",
                f"deletes from {table.name} every row that is matched: up to {table.size} are lost. Say with AND which"
                " rows are meant.",
                table.name,
            )

    def _update(self, node: Node) -> Iterator[Loss]:
        table = self._whole(node)
        if table is None or "fromClause" in node:
            return
        cleared = [
            target["name"]
            for target in (item["ResTarget"] for item in node.get("targetList", []))
            if target.get("val", {}).get("A_Const", {}).get("isnull")
            and (not table.columns or target["name"] in table.columns)
        ]
        if cleared:
            yield Loss(
                "clear-column",
                f"sets {', '.join(cleared)} of {table.name} to NULL in every row: {table.size} lose what stood there."
                " Say with WHERE which rows are meant.",
                table.name,
            )

    def _alter(self, node: Node) -> Iterator[Loss]:
        commands = [item["AlterTableCmd"] for item in node.get("cmds", [])]
        if node.get("objtype") == "OBJECT_TYPE":
            name = ".".join(_spelled(node["relation"]))
            for command in commands:
                if command.get("subtype") == "AT_DropColumn":
                    yield Loss(
                        "drop-attribute",
                        f"drops attribute {command['name']} of type {name}: every column of that type loses it.",
                    )
            return
        table = self._find(node["relation"])
        if table is None:
            return
        for command in commands:
            column = str(command.get("name", ""))
            if table.columns and "name" in command and column not in table.columns:
                continue
            match command.get("subtype"):
                case "AT_DropColumn":
                    yield Loss(
                        "drop-column",
                        f"drops column {column} of {table.name}: {table.size} lose it.",
                        table.name,
                    )
                case "AT_DetachPartition":
                    part = ".".join(_spelled(command["def"]["PartitionCmd"]["name"]))
                    yield Loss(
                        "detach-partition",
                        f"takes partition {part} out of {table.name}: its rows stay in {part}, and whoever reads"
                        f" {table.name} no longer finds them.",
                        table.name,
                    )
                case "AT_AlterColumnType":
                    yield from _type_change(table, column, command["def"]["ColumnDef"])
                case _:
                    pass


def _type_change(table: LiveTable, column: str, definition: Node) -> Iterator[Loss]:
    old, new = table.columns.get(column), _Type.of(definition["typeName"])
    if "raw_default" in definition:
        why = "its USING expression decides what is kept of each value"
    elif new.holds_all_of(_Type.parse(old) if old else None):
        return
    else:
        why = "the new type may round or cut values, or refuse them" + ("" if old else " (the old type isn't known)")
    before = f" from {old}" if old else ""
    yield Loss(
        "change-type",
        f"changes the type of column {column} of {table.name}{before} to {new}: {table.size} are rewritten, and {why}."
        " A new column beside the old one keeps both.",
        table.name,
    )


_INTEGERS = ("int2", "int4", "int8")
_TEXTS = ("text", "varchar")
_SPELLED = {"int2": "smallint", "int4": "integer", "int8": "bigint", "float4": "real", "float8": "double precision"}
_WIDER = {
    ("float4", "float8"),
    ("date", "timestamp"),
    ("jsonb", "json"),
    ("cidr", "inet"),
    *((integer, "float8") for integer in ("int2", "int4")),
    *((integer, "numeric") for integer in _INTEGERS),
}
# Without a limit of their own: digits before the point, places after it, of the types that turn into numeric.
_DIGITS = {"int2": 5, "int4": 10, "int8": 19}


class _Type(NamedTuple):
    """A type's name, its modifiers, and whether it is an array."""

    name: str
    limits: tuple[int, ...]
    array: bool

    @classmethod
    def of(cls, node: Node) -> _Type:
        limits = (item.get("A_Const", {}).get("ival", {}).get("ival", 0) for item in node.get("typmods", []))
        return cls(names_of(node.get("names"))[-1], tuple(limits), bool(node.get("arrayBounds")))

    @classmethod
    def parse(cls, spelled: str) -> _Type | None:
        """A type as `format_type` spells it; `None` if the grammar doesn't know it."""
        try:
            return cls.of(type_of(spelled))
        except SyntaxProblem:
            return None

    def __str__(self) -> str:
        limits = f"({', '.join(map(str, self.limits))})" if self.limits else ""
        return f"{_SPELLED.get(self.name, self.name)}{limits}{'[]' if self.array else ''}"

    def holds_all_of(self, old: _Type | None) -> bool:
        """Whether each value of the old type keeps its meaning as one of this type."""
        if self.name in _TEXTS and not self.limits:
            return old is None or self.array == old.array
        if old is None or self.array != old.array:
            return False
        if self.name == old.name or {self.name, old.name} <= {"varchar", "bpchar"}:
            return self._is_as_wide(old)
        if self.name == "numeric" and self.limits and old.name in _DIGITS:
            return self.limits[0] - (self.limits[1] if len(self.limits) > 1 else 0) >= _DIGITS[old.name]
        if old.name in _INTEGERS and self.name in _INTEGERS:
            return _INTEGERS.index(old.name) <= _INTEGERS.index(self.name)
        # A limit on a type of another name, such as timestamp(0) for a date, is too rare to be worked out.
        return (old.name, self.name) in _WIDER and not self.limits

    def _is_as_wide(self, old: _Type) -> bool:
        if self.limits == old.limits or not self.limits:
            return True
        if not old.limits:
            return False
        if self.name == "numeric":
            (digits, places), (old_digits, old_places) = ((*limits, 0)[:2] for limits in (self.limits, old.limits))
            return places >= old_places and digits - places >= old_digits - old_places
        return len(self.limits) == len(old.limits) == 1 and self.limits[0] >= old.limits[0]


def _is_constant(condition: Any) -> bool:
    """Whether a condition speaks of no row, as `true` or `1 = 1` do: it holds for all of them or for none."""
    words = json.dumps(condition)
    return not any(f'"{tag}"' in words for tag in ("ColumnRef", "FuncCall", "SubLink", "CurrentOfExpr", "ParamRef"))


def _table_name(relation: Node) -> tuple[str | None, str]:
    return relation.get("schemaname"), str(relation["relname"])


def _spelled(relation: Node) -> list[str]:
    return [part for part in _table_name(relation) if part]
