"""A migration file as PostgreSQL's grammar reads it, for rules to look at: statements, and what is nested in them.

The parser's tree is taken as JSON (libpg_query's format): for megabytes of INSERT it is some ten times faster than
objects. A node is a mapping with one key, its type in capitals; names are lists of `String` nodes, while a constant is
an `A_Const`, so that the text of a literal is never taken for a name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medianest_operator.migrations.script import Kind, in_ascii, parse

Node = dict[str, Any]

# Statements that move data: they never end a transaction, and no finding about them names what they touch.
_DATA = frozenset({"InsertStmt", "SelectStmt", "UpdateStmt", "MergeStmt", "CopyStmt"})
# Another statement beyond ASCII is parsed once more as it is, for the sake of names, unless that would be slow.
_SMALL = 50_000
_LEAVES = frozenset({"A_Const", "ColumnRef"})
# How an assignment's target is told from its expression (pl_gram.y).
_ASSIGNMENT_SIGNS = ("COLON_EQUALS", "ASCII_61")
_PARSE_EXPRESSION = 2


class SyntaxProblem(Exception):
    """The grammar refuses a text.

    Attributes:
        position: the character, from 0, at which it stops.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class ParsedStatement:
    """One statement of a file.

    Attributes:
        ordinal: its number, from 1.
        line: the line, from 1, on which it begins.
        tag: the type of its node, such as `DropStmt`.
        node: what the node holds.
        text: the statement as written.
    """

    ordinal: int
    line: int
    tag: str
    node: Node
    text: str

    @property
    def is_data(self) -> bool:
        """Whether it only reads or writes rows."""
        return self.tag in _DATA

    @property
    def kind(self) -> Kind:
        """What it does to the transaction around it."""
        return Kind.ORDINARY if self.is_data else parse(self.text).statements[0].kind


def parse_statements(sql: str) -> tuple[ParsedStatement, ...]:
    """The statements of a file.

    Raises:
        SyntaxProblem: the grammar refuses the file.
    """
    found = []
    line, counted = 1, 0
    for ordinal, raw in enumerate(_tree(in_ascii(sql)), start=1):
        start = raw.get("stmt_location", 0)
        end = start + raw["stmt_len"] if raw.get("stmt_len") else len(sql)
        line, counted = line + sql.count("\n", counted, start), start
        text = sql[start:end]
        ((tag, node),) = raw["stmt"].items()
        if tag not in _DATA and len(text) <= _SMALL and not text.isascii():
            ((tag, node),) = _tree(text)[0]["stmt"].items()
        found.append(ParsedStatement(ordinal, line, tag, node, text))
    return tuple(found)


def nodes(tree: Any) -> Iterator[tuple[str, Node]]:
    """Every node below, with its type; constants and column references end the way.

    Two kinds are added: tables are told as `RangeVar` also where the grammar leaves the type out, and a list of
    `String` nodes is told as `Names`, with `names` as plain text.
    """
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            if item and all(isinstance(entry, dict) and "String" in entry for entry in item):
                yield "Names", {"names": [entry["String"].get("sval", "") for entry in item]}
            else:
                stack.extend(reversed(item))
            continue
        for key, value in item.items():
            if isinstance(value, dict):
                if key in _LEAVES:
                    continue
                if key[0].isupper():
                    yield key, value
                elif "relname" in value:
                    yield "RangeVar", value
                elif "funcname" in value:
                    yield "FuncCall", value
                stack.append(value)
            elif isinstance(value, list):
                stack.append(value)


def names_of(items: Any) -> list[str]:
    """The plain text of a name's parts: a list of `String` nodes, a `List` of them, a `TypeName`, a lone `String`."""
    if isinstance(items, list):
        return [part for item in items for part in names_of(item)]
    if not isinstance(items, dict):
        return []
    if "sval" in items:
        return [str(items["sval"])]
    for key in ("String", "List", "items", "TypeName", "names", "ObjectWithArgs", "objname"):
        if key in items:
            return names_of(items[key])
    return []


def option(node: Node, name: str) -> Any:
    """The argument of an option (`DefElem`) of a CREATE FUNCTION or DO, `None` without it."""
    for item in [*node.get("options", []), *node.get("args", [])]:
        element = item.get("DefElem", {})
        if element.get("defname") == name:
            return element.get("arg", True)
    return None


def constant_text(tree: Any) -> str | None:
    """The text of a node that is a string constant."""
    value = tree.get("A_Const", {}).get("sval") if isinstance(tree, dict) else None
    return str(value.get("sval", "")) if value is not None else None


@dataclass(frozen=True, slots=True)
class Body:
    """What a DO block or a function's body holds.

    Attributes:
        trees: the statements and expressions in it.
        dynamic: whether it runs SQL that it puts together itself.
        unreadable: why it could not be looked into, in words.
    """

    trees: tuple[Any, ...] = ()
    dynamic: bool = False
    unreadable: str | None = None


def body_of(statement: ParsedStatement) -> Body:
    """Look into a DO block, or into the function of a CREATE FUNCTION or PROCEDURE."""
    node = statement.node
    if statement.tag == "CreateFunctionStmt" and "sql_body" in node:
        return Body((node["sql_body"],))
    language = (names_of(option(node, "language")) or ["plpgsql" if statement.tag == "DoStmt" else "sql"])[0].lower()
    try:
        if language == "plpgsql":
            return _plpgsql_body(statement.text)
        if language == "sql":
            return Body((_tree("".join(names_of(option(node, "as")))),))
    except SyntaxProblem as problem:
        return Body(unreadable=str(problem))
    return Body(unreadable=f"it is written in {language}")


def _plpgsql_body(text: str) -> Body:
    from pglast.parser import ParseError, parse_plpgsql_json

    try:
        functions = json.loads(parse_plpgsql_json(text))
    except (ParseError, ValueError) as error:
        raise SyntaxProblem(str(error.args[0]), 0) from None
    trees: list[Any] = []
    dynamic = False
    for tag, node in nodes(functions):
        if tag == "PLpgSQL_expr":
            trees.append(_expression(node))
        running = node.get("dynquery") or (node.get("query") if tag in _DYNAMIC else None)
        if running:
            constant = _constant_query(running["PLpgSQL_expr"])
            if constant is None:
                dynamic = True
            else:
                trees.append(_tree(constant))
    return Body(tuple(trees), dynamic)


_DYNAMIC = ("PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_dynfors")


def _expression(node: Node) -> Any:
    """The tree of a PL/pgSQL expression, which the grammar alone would not take."""
    from pglast.parser import scan

    query, mode = str(node["query"]), node.get("parseMode", 0)
    if mode == _PARSE_EXPRESSION:
        return _tree(f"SELECT {query}")
    if mode > _PARSE_EXPRESSION:
        sign = next((token for token in scan(in_ascii(query)) if token.name in _ASSIGNMENT_SIGNS), None)
        return _tree(f"SELECT {query[sign.end + 1 :]}") if sign else _tree(f"SELECT {query}")
    return _tree(query)


def _constant_query(node: Node) -> str | None:
    """The text that `EXECUTE 'text'` runs, `None` if it is put together at run time."""
    targets = _expression(node)[0]["stmt"]["SelectStmt"].get("targetList", [])
    return constant_text(targets[0]["ResTarget"].get("val")) if len(targets) == 1 else None


def _tree(sql: str) -> list[Node]:
    from pglast.parser import ParseError, parse_sql_json

    try:
        statements: list[Node] = json.loads(parse_sql_json(sql)).get("stmts", [])
    except ParseError as error:
        position = error.args[1] if len(error.args) > 1 else 0
        raise SyntaxProblem(str(error.args[0]), position or 0) from None
    except RecursionError:
        raise SyntaxProblem("nested too deeply", 0) from None
    return statements


def type_of(spelled: str) -> Node:
    """The `TypeName` node of a type as `format_type` spells it.

    Raises:
        SyntaxProblem: it isn't a type.
    """
    select = _tree(f"SELECT NULL::{spelled}")[0]["stmt"]["SelectStmt"]
    node: Node = select["targetList"][0]["ResTarget"]["val"]["TypeCast"]["typeName"]
    return node
