"""What stops no run and still wants a word, beside what squawk says: other locks, and what outlasts an revert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from medianest_operator.migrations.lint.findings import LiveTables
from medianest_operator.migrations.lint.syntax import Node, names_of
from medianest_operator.migrations.script import Kind

_LOCKS_ALL = "nobody can read or write {table} while it is rewritten."
# LOCK TABLE's modes that readers or writers wait for (lockdefs.h): SHARE and above.
_SHARE, _EXCLUSIVE_TO_ALL = 5, 8


class Warned(NamedTuple):
    """A rule's name, what is to be known, and the live table that it is about."""

    rule: str
    message: str
    table: str | None = None


def warnings(tag: str, node: Node, tables: LiveTables) -> Iterator[Warned]:
    """What a node is warned of, wherever in a statement it stands."""
    match tag:
        case "VacuumStmt" if any(item["DefElem"]["defname"] == "full" for item in node.get("options", [])):
            for item in node.get("rels", []):
                yield from _locked("vacuum-full", _LOCKS_ALL, item["VacuumRelation"]["relation"], tables)
        case "ClusterStmt" if "relation" in node:
            yield from _locked("cluster", _LOCKS_ALL, node["relation"], tables)
        case "RefreshMatViewStmt" if not node.get("concurrent"):
            words = (
                "nobody can read {table} while it is filled again. REFRESH MATERIALIZED VIEW CONCURRENTLY lets them."
            )
            yield from _locked("refresh", words, node["relation"], tables)
        case "LockStmt" if node.get("mode", 0) >= _SHARE:
            whom = "read or write" if node["mode"] == _EXCLUSIVE_TO_ALL else "write to"
            for item in node.get("relations", []):
                words = f"nobody can {whom} {{table}} until the migration ends."
                yield from _locked("lock-table", words, item["RangeVar"], tables)
        case "UpdateStmt" if "whereClause" not in node and "fromClause" not in node:
            words = (
                "writes every row of {table} again: whoever changes one of them waits until the migration ends, and the"
                " table takes twice the space until it is vacuumed. Say with WHERE which rows need it."
            )
            yield from _locked("update-all", words, node["relation"], tables)
        case "AlterTableCmd" if node.get("subtype") == "AT_SetUnLogged":
            yield Warned("unlogged", "an UNLOGGED table is emptied by a crash, and replicas don't have its rows.")
        case "FuncCall" if names_of(node.get("funcname"))[-1:] == ["setval"]:
            yield Warned(
                "setval",
                "setval moves a sequence at once, also when the migration is rolled back later. ALTER SEQUENCE ..."
                " RESTART is rolled back with it.",
            )
        case _:
            pass


def not_transactional(kind: Kind, alone: bool) -> Warned | None:
    """What it means for reverting a file that a statement can't run in a transaction, or ends it.

    Args:
        kind: the statement's.
        alone: whether it is the file's only one.
    """
    match kind:
        case Kind.STANDALONE | Kind.CONCURRENT if not alone:
            words = (
                "can't run in a transaction, and the server runs a file of several statements as one. Put it into a"
                " migration of its own."
            )
        case Kind.STANDALONE | Kind.CONCURRENT:
            words = "can't run in a transaction, so a failure is rolled back by its inverse or by restoring the backup."
        case Kind.COMMITS | Kind.BEGINS:
            words = (
                "takes the transaction into the file's own hands, so a failure after it is rolled back by its inverse"
                " or by restoring the backup. Without such statements the whole file is one transaction."
            )
        case Kind.MAY_COMMIT if alone:
            words = (
                "may commit from the inside, so a failure after that is rolled back by its inverse or by restoring the"
                " backup."
            )
        case _:
            return None
    return Warned("not-transactional", words)


def _locked(rule: str, words: str, relation: Node, tables: LiveTables) -> Iterator[Warned]:
    table = tables.find(relation.get("schemaname"), relation["relname"])
    if table is not None:
        yield Warned(rule, words.format(table=f"{table.name}, {table.size},"), table.name)
