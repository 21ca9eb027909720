"""What PostgreSQL's own grammar says about a migration file: its statements, where they begin, and what they commit.

Found by parsing with pglast (PostgreSQL's parser as a library), never by pattern: `COMMIT` inside a string, a comment
or a function's body is none. pglast is imported on first use, because it is only needed where migrations run.
"""

from __future__ import annotations

import enum
import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medianest_operator.migrations import traces
from medianest_operator.migrations.traces import Trace

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
# PostgreSQL's source, scan.l, dolqdelim.
_TAG = re.compile(r"[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*")
_LONGEST_TAG = 1000
# How much of a statement is quoted to people.
EXCERPT = 60


class Kind(enum.Enum):
    """What a statement does to the transaction that it runs in."""

    ORDINARY = "ordinary"
    # Opens an explicit transaction, which the file has to end itself.
    BEGINS = "begins"
    # Ends the transaction around it: what came before it stays, whatever fails later.
    COMMITS = "commits"
    # The server refuses it inside a transaction block (PreventInTransactionBlock in PostgreSQL's source).
    STANDALONE = "standalone"
    # Likewise, but made to wait for others without making them wait: CREATE INDEX CONCURRENTLY and its kin.
    CONCURRENT = "concurrent"
    # A DO block or CALL that, alone in its file, may commit from the inside.
    MAY_COMMIT = "may commit"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a file.

    Attributes:
        ordinal: its number from 1.
        line: the line it begins on.
        kind: what it does to the transaction.
        excerpt: its beginning in one line.
        trace: what it leaves once it is committed.
        adds_enum_value: its new value can't be used before the transaction has ended (PostgreSQL manual, ALTER TYPE).
        drops_indexes: names of the indexes that it drops.
        makes_index: the name of the index that it creates.
        makes: the name of the function or the domain that it creates.
        moves_sequence: it calls setval, which no rollback reverts.
        indexes_table: the table that the index which it creates is on.
        only_rows: it changes rows at the most, and no definition.
        writes_rows: it changes rows, or calls what may.
        calls: the functions that it names in calls.
        computes: it leaves definitions, and evaluates more than constants for them.
        deletes_along: the table to which it adds a foreign key that deletes, or clears, rows with those of others.
        types: of the columns that it adds.
        gives: the columns, as (table, name), that it adds with a default.
        replaces: the function or the view that it replaces where there is one.
        removes: the tables, columns and constraints that it removes; `None` where it may take rows in other ways.
    """

    ordinal: int
    line: int
    kind: Kind
    excerpt: str
    trace: Trace = Trace.DATA
    adds_enum_value: bool = False
    drops_indexes: tuple[str, ...] = ()
    makes_index: str | None = None
    makes: str | None = None
    moves_sequence: bool = False
    indexes_table: str | None = None
    only_rows: bool = False
    writes_rows: bool = False
    calls: frozenset[str] = frozenset()
    computes: bool = False
    deletes_along: str | None = None
    types: frozenset[str] = frozenset()
    gives: frozenset[tuple[str, str]] = frozenset()
    replaces: str | None = None
    removes: frozenset[tuple[str, str | None]] | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """A parsed file.

    Attributes:
        statements: in order; the server answers one result for each.
        parsed: False if the grammar refused the file. The server then refuses it as a whole as well, before it runs
            anything; if it does not (a grammar newer or older than pglast's), nothing is known about the file.
    """

    statements: tuple[Statement, ...]
    parsed: bool = True

    @property
    def is_empty(self) -> bool:
        """Nothing but white space and comments."""
        return self.parsed and not self.statements

    @property
    def is_atomic(self) -> bool:
        """Whether the whole file can run inside one transaction, and so be rolled back by rolling that back.

        A file of several statements is one transaction to the server unless it commits by itself. Within it a DO block
        can't commit and a statement that must stand alone is refused, so neither leaves anything behind.
        """
        if not self.parsed:
            return False
        kinds = [statement.kind for statement in self.statements]
        if len(kinds) == 1:
            return kinds[0] is Kind.ORDINARY
        return Kind.COMMITS not in kinds and Kind.BEGINS not in kinds

    @property
    def standalone(self) -> Statement | None:
        """The first statement that can't run inside a transaction block."""
        return next((s for s in self.statements if s.kind in (Kind.STANDALONE, Kind.CONCURRENT)), None)

    @property
    def waits_harmlessly(self) -> bool:
        """Whether the file is one statement that blocks nobody while it waits for others."""
        return len(self.statements) == 1 and self.statements[0].kind is Kind.CONCURRENT


def parse(sql: str) -> Script:
    """Parse a file; a file that isn't SQL gives a script that says so rather than an error."""
    from pglast import ast, parse_sql
    from pglast.parser import ParseError

    try:
        tree = parse_sql(in_ascii(sql))
    except ParseError:
        return Script((), parsed=False)
    statements = []
    line, counted = 1, 0
    for ordinal, raw in enumerate(tree, start=1):
        start = raw.stmt_location or 0
        end = start + raw.stmt_len if raw.stmt_len else len(sql)
        text = sql[start:end]
        line, counted = line + sql.count("\n", counted, start), start
        statements.append(
            Statement(
                ordinal=ordinal,
                line=line,
                kind=_kind(raw.stmt, text),
                excerpt=_excerpt(text),
                trace=traces.trace_of(raw.stmt),
                adds_enum_value=isinstance(raw.stmt, ast.AlterEnumStmt) and raw.stmt.oldVal is None,
                drops_indexes=_dropped_indexes(raw.stmt),
                makes_index=raw.stmt.idxname if isinstance(raw.stmt, ast.IndexStmt) else None,
                moves_sequence="setval" in text.lower(),
                indexes_table=raw.stmt.relation.relname
                if isinstance(raw.stmt, ast.IndexStmt) and raw.stmt.relation
                else None,
                writes_rows=traces.writes_rows(raw.stmt),
                only_rows=traces.writes_rows_alone(raw.stmt),
                makes=traces.made(raw.stmt),
                calls=traces.called(raw.stmt),
                computes=traces.computes(raw.stmt),
                deletes_along=traces.deletes_along(raw.stmt),
                types=traces.types_of_columns(raw.stmt),
                gives=traces.given(raw.stmt),
                replaces=traces.replaced(raw.stmt),
                removes=traces.removed(raw.stmt),
            )
        )
    return Script(tuple(statements))


def line_of(sql: str, position: int) -> int:
    """The line, from 1, of a character's index from 0."""
    return sql.count("\n", 0, position) + 1


def ordinal_at(sql: str, position: int) -> int | None:
    """Which statement of a file that doesn't parse holds a character (from 0), counted by the lexer alone."""
    from pglast import split
    from pglast.parser import ParseError

    try:
        # The error's token may be the first of its statement; the lexer counts a statement once it holds a keyword.
        return len(split(in_ascii(sql[:position]) + " SELECT", with_parser=False))
    except ParseError:
        return None


def name_in_ascii(name: str) -> str:
    """A name as `in_ascii` leaves it, and so as the statements of a script have it: names that differ may become the
    same."""
    return _BEYOND_ASCII.sub("_", name)


def in_ascii(sql: str) -> str:
    """The same text, character by character, for asking about its structure alone.

    To PostgreSQL's lexer every character beyond ASCII is a letter, as `_` is. pglast turns positions in bytes into
    positions in characters, which takes minutes for a megabyte of other letters and nothing for ASCII. Only the tags of
    dollar quotes have to stay apart from each other: where one ends decides what is a statement.
    """
    if sql.isascii():
        return sql
    # Whatever may be a tag stands between two dollar signs.
    pieces = sql.split("$")
    used = {piece for piece in pieces if piece.isascii()}
    tags: dict[str, str] = {}
    for piece in pieces:
        if not piece.isascii() and piece not in tags and len(piece) <= _LONGEST_TAG and _TAG.fullmatch(piece):
            tags[piece] = _stand_in(piece, used)
            used.add(tags[piece])
    return "$".join(tags.get(piece) or _BEYOND_ASCII.sub("_", piece) for piece in pieces)


def _stand_in(tag: str, used: set[str]) -> str:
    """A tag in ASCII that no other is."""
    for letter in string.ascii_letters:
        if (found := _BEYOND_ASCII.sub(letter, tag)) not in used:
            return found
    longer = _BEYOND_ASCII.sub("_", tag)
    while longer in used:
        longer += "_"
    return longer


def _excerpt(text: str) -> str:
    words = " ".join(text[: EXCERPT * 4].split())
    return words if len(words) <= EXCERPT else words[: EXCERPT - 1] + "…"


def _kind(node: Any, text: str) -> Kind:
    from pglast import ast, enums

    transaction = enums.TransactionStmtKind
    match node:
        case ast.TransactionStmt():
            # Savepoints stay inside a transaction; ending it in any way is what breaks the file in two.
            if node.kind in (transaction.TRANS_STMT_BEGIN, transaction.TRANS_STMT_START):
                return Kind.BEGINS
            inside = (
                transaction.TRANS_STMT_SAVEPOINT,
                transaction.TRANS_STMT_RELEASE,
                transaction.TRANS_STMT_ROLLBACK_TO,
            )
            return Kind.ORDINARY if node.kind in inside else Kind.COMMITS
        case ast.IndexStmt(concurrent=True) | ast.DropStmt(concurrent=True):
            return Kind.CONCURRENT
        case ast.ReindexStmt():
            return _kind_of_reindex(node)
        case ast.AlterTableStmt():
            detaches = (c for c in node.cmds or () if c.subtype == enums.AlterTableType.AT_DetachPartition)
            return Kind.CONCURRENT if any(getattr(c.def_, "concurrent", False) for c in detaches) else Kind.ORDINARY
        case ast.VacuumStmt():
            return Kind.STANDALONE if node.is_vacuumcmd else Kind.ORDINARY
        case ast.ClusterStmt():
            return Kind.ORDINARY if node.relation else Kind.STANDALONE
        case (
            ast.AlterSystemStmt()
            | ast.CreatedbStmt()
            | ast.DropdbStmt()
            | ast.CreateTableSpaceStmt()
            | ast.DropTableSpaceStmt()
            | ast.CreateSubscriptionStmt()
            | ast.AlterSubscriptionStmt()
            | ast.DropSubscriptionStmt()
        ):
            return Kind.STANDALONE
        case ast.AlterDatabaseStmt():
            return Kind.STANDALONE if any(o.defname == "tablespace" for o in node.options or ()) else Kind.ORDINARY
        case ast.DoStmt():
            return Kind.MAY_COMMIT if _block_may_commit(node, text) else Kind.ORDINARY
        case ast.CallStmt():
            return Kind.MAY_COMMIT
        case _:
            return Kind.ORDINARY


def _kind_of_reindex(node: Any) -> Kind:
    from pglast import enums

    for option in node.params or ():
        if option.defname == "concurrently":
            value = getattr(option.arg, "sval", None) or getattr(option.arg, "boolval", None)
            if option.arg is None or str(value).lower() in ("true", "on", "1"):
                return Kind.CONCURRENT
    whole = (
        enums.ReindexObjectType.REINDEX_OBJECT_SCHEMA,
        enums.ReindexObjectType.REINDEX_OBJECT_SYSTEM,
        enums.ReindexObjectType.REINDEX_OBJECT_DATABASE,
    )
    return Kind.STANDALONE if node.kind in whole else Kind.ORDINARY


def _dropped_indexes(node: Any) -> tuple[str, ...]:
    from pglast import ast, enums

    match node:
        case ast.DropStmt(removeType=enums.ObjectType.OBJECT_INDEX):
            return tuple(names[-1].sval for names in node.objects or ())
        case _:
            return ()


def _block_may_commit(node: Any, text: str) -> bool:
    """Whether a DO block holds a COMMIT, a ROLLBACK or a CALL of its own; what can't be read may."""
    from pglast import parse_plpgsql
    from pglast.parser import ParseError

    language = next((o.arg.sval for o in node.args or () if o.defname == "language"), "plpgsql")
    if language.lower() != "plpgsql":
        return True
    try:
        tree = parse_plpgsql(text)
    except (ParseError, json.JSONDecodeError, ValueError):
        return True
    ending = {"PLpgSQL_stmt_commit", "PLpgSQL_stmt_rollback", "PLpgSQL_stmt_call"}
    return any(key in ending for key in _keys(tree))


def _keys(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from _keys(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _keys(value)
