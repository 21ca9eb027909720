"""What a committed statement leaves, by its tree: what a rollback of it has to bring back."""

from __future__ import annotations

import enum
from collections.abc import Iterable
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
            | ast.CreateExtensionStmt()
            | ast.CommentStmt()
        ):
            return Trace.DEFINITIONS
        case ast.CreateSchemaStmt():
            # What it holds may be a partition of another table, or stand before others in a search path.
            return Trace.DATA if node.schemaElts else Trace.DEFINITIONS
        case ast.CreateStmt(relation=ast.RangeVar(relpersistence="t")):
            # Of the session alone, and gone with the file.
            return Trace.NOTHING
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


def called(node: Any) -> frozenset[str]:
    """The names, without their schema, of the functions that a statement names in calls."""
    return _called([node])


def computes(node: Any) -> bool:
    """Whether a statement that leaves definitions evaluates expressions as it runs, on the rows that are there or for
    them: an operator, a cast or a function in them may write."""
    from pglast import ast, enums

    kinds = enums.AlterTableType
    match node:
        case ast.IndexStmt():
            return node.whereClause is not None or any(item.expr is not None for item in node.indexParams or ())
        case ast.ReindexStmt() | ast.CreateTableAsStmt():
            return True
        case ast.SelectStmt():
            return _holds(node, ast.FuncCall, ast.A_Expr, ast.TypeCast)
        case ast.AlterTableStmt():
            commands = node.cmds or ()
            if any(c.subtype == kinds.AT_ValidateConstraint for c in commands):
                return True
            added = [c.def_ for c in commands if c.subtype in (kinds.AT_AddColumn, kinds.AT_AddConstraint)]
            return any(_is_computed(definition) for definition in added)
        case _:
            return False


def _is_computed(definition: Any) -> bool:
    """Whether a column or a constraint that is added holds an expression that is more than a constant."""
    from pglast import ast

    constraints = definition.constraints or () if isinstance(definition, ast.ColumnDef) else (definition,)
    expressions = [c.raw_expr for c in constraints if c.raw_expr is not None]
    return not all(isinstance(expression, ast.A_Const) for expression in expressions)


def deletes_along(node: Any) -> str | None:
    """The table, without its schema, whose rows go, or refer to something else, when others are deleted or get another
    key, by a foreign key that a statement adds to it."""
    from pglast import ast, enums

    if not isinstance(node, ast.AlterTableStmt) or node.relation is None:
        return None
    kinds = enums.AlterTableType
    added = [c.def_ for c in node.cmds or () if c.subtype in (kinds.AT_AddColumn, kinds.AT_AddConstraint)]
    keys = [
        constraint
        for definition in added
        for constraint in (definition.constraints or () if isinstance(definition, ast.ColumnDef) else (definition,))
        if constraint.contype == enums.ConstrType.CONSTR_FOREIGN
    ]
    # NO ACTION and RESTRICT (PostgreSQL's source, parsenodes.h, FKCONSTR_ACTION).
    # CASCADE follows a key that changes, and takes nothing away.
    acts = any(key.fk_del_action not in ("a", "r") or key.fk_upd_action in ("n", "d") for key in keys)
    return node.relation.relname if acts else None


def types_of_columns(node: Any) -> frozenset[str]:
    """The names, without their schema, of the types of the columns that a statement adds to a table: a domain has
    checks of its own."""
    from pglast import ast, enums

    if not isinstance(node, ast.AlterTableStmt):
        return frozenset()
    columns = [c.def_ for c in node.cmds or () if c.subtype == enums.AlterTableType.AT_AddColumn]
    return frozenset(column.typeName.names[-1].sval for column in columns if column.typeName)


def given(node: Any) -> frozenset[tuple[str, str]]:
    """The columns, as (table, name) without the table's schema, that a statement adds with a default: the rows that are
    there have it from then on."""
    from pglast import ast, enums

    if not isinstance(node, ast.AlterTableStmt) or node.relation is None:
        return frozenset()
    columns = [c.def_ for c in node.cmds or () if c.subtype == enums.AlterTableType.AT_AddColumn]
    default = enums.ConstrType.CONSTR_DEFAULT
    return frozenset(
        (str(node.relation.relname), str(column.colname))
        for column in columns
        if any(constraint.contype == default for constraint in column.constraints or ())
    )


def made(node: Any) -> str | None:
    """The name, without its schema, of the function or the domain that a statement makes."""
    from pglast import ast

    match node:
        case (
            ast.CreateFunctionStmt(funcname=(*_, ast.String(sval=str(name))))
            | ast.CreateDomainStmt(domainname=(*_, ast.String(sval=str(name))))
        ):
            return name
        case _:
            return None


def replaced(node: Any) -> str | None:
    """The name, without its schema, of the function or the view that a statement replaces if there is one; `None` for
    every other statement."""
    from pglast import ast

    match node:
        case (
            ast.CreateFunctionStmt(replace=True, funcname=(*_, ast.String(sval=str(name))))
            | ast.ViewStmt(replace=True, view=ast.RangeVar(relname=str(name)))
        ):
            return name
        case _:
            return None


def removed(node: Any) -> frozenset[tuple[str, str | None]] | None:
    """The tables, and the columns and constraints as (table, name), that a statement removes, where it does nothing
    else that could take rows with it or let others in; `None` where it may."""
    from pglast import ast, enums

    kinds, objects, cascade = enums.AlterTableType, enums.ObjectType, enums.DropBehavior.DROP_CASCADE
    if isinstance(node, ast.DropStmt | ast.AlterTableStmt):
        commands: tuple[Any, ...] = getattr(node, "cmds", None) or ()
        if any(c.behavior == cascade for c in (*commands, node) if hasattr(c, "behavior")):
            return None
    match node:
        case ast.DropStmt(removeType=objects.OBJECT_TABLE):
            return frozenset((names[-1].sval, None) for names in node.objects or ())
        case ast.DropStmt():
            holds = (objects.OBJECT_MATVIEW, objects.OBJECT_FOREIGN_TABLE, objects.OBJECT_SEQUENCE)
            # Without these, writes come in otherwise than before.
            leads = (objects.OBJECT_TRIGGER, objects.OBJECT_RULE, objects.OBJECT_POLICY)
            return None if node.removeType in (*holds, *leads) else frozenset()
        case ast.AlterTableStmt(relation=ast.RangeVar(relname=str(table))):
            harmless = (
                *(kinds.AT_DropColumn, kinds.AT_DropConstraint, kinds.AT_AddConstraint, kinds.AT_ValidateConstraint),
                *(kinds.AT_ColumnDefault, kinds.AT_SetNotNull, kinds.AT_DropNotNull),
            )
            if any(c.subtype not in harmless for c in commands):
                return None
            dropping = (kinds.AT_DropColumn, kinds.AT_DropConstraint)
            return frozenset((table, str(c.name)) for c in commands if c.subtype in dropping)
        case ast.SelectStmt(intoClause=None) if not (writes_rows(node) or _holds(node, ast.RangeVar)):
            # What is named might be a view, and a view may call what writes.
            return frozenset()
        case _:
            return frozenset() if trace_of(node) in (Trace.NOTHING, Trace.DEFINITIONS) else None


def _called(nodes: Iterable[Any]) -> frozenset[str]:
    """The names, without their schema, of the functions that are called anywhere below any of these."""
    from pglast import ast
    from pglast.visitors import Visitor

    class Search(Visitor):
        def __init__(self) -> None:
            super().__init__()
            self.names: set[str] = set()

        def visit_FuncCall(self, ancestors: Any, call: ast.FuncCall) -> None:  # noqa: N802
            self.names.update(name.sval for name in (call.funcname or ())[-1:])

    search = Search()
    for node in nodes:
        if node is not None:
            search(node)
    return frozenset(search.names)


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
