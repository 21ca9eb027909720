"""What a committed statement leaves, by its tree: what a rollback of it has to bring back."""

from __future__ import annotations

import enum
from typing import Any

# Types that stand for a sequence (PostgreSQL manual, Serial Types).
_SERIALS = frozenset({"serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"})


class Trace(enum.Enum):
    """What a committed statement leaves, for reverting it."""

    # Nothing that a later statement would see.
    NOTHING = "nothing"
    # Definitions only, whose inverse follows from the catalogs before and after.
    DEFINITIONS = "definitions"
    # Definitions likewise, but the catalogs may not say enough: only a rehearsal tells whether the inverse leads back.
    UNSURE = "unsure"
    # Rows, or what the catalog doesn't tell in full: only a script that reverts it or a restore brings it back.
    DATA = "data"


def trace_of(node: Any) -> Trace:
    """What a statement leaves, by its tree."""
    from pglast import ast, enums

    match node:
        case (
            ast.TransactionStmt()
            | ast.VariableSetStmt()
            | ast.VariableShowStmt()
            | ast.VacuumStmt()
            | ast.LockStmt()
            | ast.ConstraintsSetStmt()
            | ast.CheckPointStmt()
        ):
            return Trace.NOTHING
        case (
            ast.IndexStmt()
            | ast.ReindexStmt()
            | ast.CreateFunctionStmt()
            | ast.CreateSeqStmt()
            | ast.CreateEnumStmt()
            | ast.CompositeTypeStmt()
            | ast.CreateDomainStmt()
            | ast.CreateStatsStmt()
            | ast.CreatePolicyStmt()
            | ast.CreateSchemaStmt()
            | ast.CreateExtensionStmt()
            | ast.CommentStmt()
        ):
            return Trace.DEFINITIONS
        case ast.CreateStmt():
            # What hangs on another table, as a partition does, is written to by whoever writes to that one.
            return Trace.DATA if node.inhRelations else Trace.DEFINITIONS
        case ast.CreateTableAsStmt():
            # The query may call what writes, and a table's rows are nobody else's to look at.
            keeps_rows = not (node.into and node.into.skipData) and (
                node.objtype is not enums.ObjectType.OBJECT_MATVIEW or _calls(node.query)
            )
            return Trace.DATA if keeps_rows else Trace.DEFINITIONS
        case ast.ViewStmt():
            return Trace.UNSURE if node.replace else Trace.DEFINITIONS
        case ast.DropStmt(removeType=enums.ObjectType.OBJECT_INDEX):
            return Trace.DEFINITIONS
        case ast.AlterTableStmt(objtype=enums.ObjectType.OBJECT_TABLE):
            kinds = enums.AlterTableType
            # What tightens or adds. What loosens, as DROP NOT NULL does, lets rows in that its inverse refuses.
            invertible = {
                kinds.AT_AddColumn,
                kinds.AT_AddConstraint,
                kinds.AT_ValidateConstraint,
                kinds.AT_ColumnDefault,
                kinds.AT_SetNotNull,
            }
            commands = node.cmds or ()
            if not all(c.subtype in invertible for c in commands) or any(map(_fills_column, commands)):
                return Trace.DATA
            uses_index = any(getattr(c.def_, "indexname", None) for c in commands)
            return Trace.UNSURE if uses_index else Trace.DEFINITIONS
        case _:
            return Trace.DATA


def writes_rows(node: Any) -> bool:
    """Whether a statement changes rows, or calls what may."""
    from pglast import ast

    if isinstance(node, ast.SelectStmt | ast.CreateTableAsStmt):
        return _calls(node) or _changes_below(node)
    return isinstance(
        node,
        (
            *(ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt, ast.TruncateStmt),
            *(ast.DoStmt, ast.CallStmt, ast.ExecuteStmt),
        ),
    )


def writes_rows_alone(node: Any) -> bool:
    """Whether a statement changes rows at the most, and no definition."""
    from pglast import ast

    if isinstance(node, ast.SelectStmt):
        return node.intoClause is None and not _calls(node)
    return isinstance(node, ast.InsertStmt | ast.UpdateStmt | ast.DeleteStmt | ast.MergeStmt | ast.TruncateStmt)


def _calls(node: Any) -> bool:
    """Whether a function is called anywhere below; what it does isn't known here."""
    from pglast import ast

    return _holds(node, ast.FuncCall, ast.SQLValueFunction)


def _changes_below(node: Any) -> bool:
    """Whether a query has a part that changes rows (PostgreSQL manual, 7.8.4), or runs a prepared statement."""
    from pglast import ast

    return _holds(node, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt, ast.ExecuteStmt)


def _holds(node: Any, *kinds: type) -> bool:
    """Whether there is a node of one of these kinds anywhere below."""
    from pglast.visitors import Visitor

    class Search(Visitor):
        found = False

        def visit(self, ancestors: Any, below: Any) -> None:
            self.found = self.found or isinstance(below, kinds)

    search = Search()
    search(node)
    return search.found


def _fills_column(command: Any) -> bool:
    """Whether a command adds a column whose values come of more than a constant: a function that may write, a sequence,
    the time. What others wrote into it later can't be told from that."""
    from pglast import ast, enums

    if command.subtype != enums.AlterTableType.AT_AddColumn:
        return False
    column: ast.ColumnDef = command.def_
    names = column.typeName.names if column.typeName else None
    if names and names[-1].sval in _SERIALS:
        return True
    defaults = (enums.ConstrType.CONSTR_DEFAULT, enums.ConstrType.CONSTR_GENERATED)
    constraints = column.constraints or ()
    return any(
        c.contype == enums.ConstrType.CONSTR_IDENTITY or (c.contype in defaults and _calls(c.raw_expr))
        for c in constraints
    )
