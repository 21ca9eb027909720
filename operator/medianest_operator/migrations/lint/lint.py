"""Look at migrations before they run: what is refused, what loses data, and what holds up others.

All is found by parsing (pglast, which is PostgreSQL's own parser), never by pattern. DO blocks and functions' bodies
are looked into as well, as far as their SQL is written out.
"""

from __future__ import annotations

import contextlib
import gc
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, LiteralString

from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.migrations.lint import squawk
from medianest_operator.migrations.lint.destructive import DataLoss
from medianest_operator.migrations.lint.findings import Finding, LiveTables, Severity, TableSize
from medianest_operator.migrations.lint.refused import offences
from medianest_operator.migrations.lint.syntax import (
    ParsedStatement,
    SyntaxProblem,
    body_of,
    names_of,
    nodes,
    parse_statements,
)
from medianest_operator.migrations.lint.warnings import not_transactional, warnings
from medianest_operator.migrations.script import Kind, in_ascii, line_of, ordinal_at
from medianest_operator.migrations.source import Migration
from medianest_operator.naming import JOURNAL_SCHEMA

__all__ = ["Finding", "Severity", "TableSize", "lint", "read_table_sizes"]

_SPACES = frozenset("\u00a0\u1680\u2007\u200b\u202f\u2060\u3000\ufeff")
# For the advice alone, in a file that has no tree.
_COPY = re.compile(r"^\s*COPY\b[^;]*\bFROM\s+STDIN\b", re.IGNORECASE | re.MULTILINE)
_OWN_TRANSACTION = {Kind.BEGINS, Kind.COMMITS}
# Rows are counted, not estimated, in tables up to this size: a few milliseconds.
COUNTED_UP_TO = 8 * 1024 * 1024

# A partitioned table holds what its partitions hold.
SELECT_SIZES: LiteralString = """
SELECT CASE WHEN n.nspname = 'public' THEN '' ELSE quote_ident(n.nspname) || '.' END || quote_ident(c.relname),
       quote_ident(n.nspname) || '.' || quote_ident(c.relname), s.bytes, s.rows, s.analysed,
       (SELECT json_object_agg(a.attname, format_type(a.atttypid, a.atttypmod))
          FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL (
       SELECT sum(pg_total_relation_size(p.oid))::bigint AS bytes, sum(greatest(p.reltuples, 0))::bigint AS rows,
              bool_and(p.reltuples >= 0) AS analysed
         FROM pg_class p
        WHERE p.oid = c.oid
           OR c.relkind = 'p' AND p.relkind <> 'p' AND p.oid IN (SELECT relid FROM pg_partition_tree(c.oid))
       ) s
 WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT IN ('information_schema', %s) AND n.nspname !~ '^pg_'
 ORDER BY 1
"""


def read_table_sizes(connection: Connection[Any]) -> dict[str, TableSize]:
    """How much each table and materialized view of the application holds, by its name as the catalog spells it.

    Rows are the server's estimate (`pg_class.reltuples`), which the last VACUUM or ANALYZE left; they are counted where
    the table is small. A large one that was never analysed is told by a guess of 100 bytes a row.

    Raises:
        psycopg.Error: as the server says.
    """
    found = {}
    with connection.cursor(row_factory=tuple_row) as cursor:
        for name, full_name, size, rows, analysed, columns in cursor.execute(
            SELECT_SIZES, (JOURNAL_SCHEMA,)
        ).fetchall():
            if size <= COUNTED_UP_TO:
                counted = _count(connection, full_name)
                rows = rows if counted is None else counted
            elif not analysed:
                rows = max(rows, size // 100)
            found[name] = TableSize(rows=rows, bytes=size, columns=columns or {})
    return found


def lint(migrations: Sequence[Migration], tables: Mapping[str, TableSize]) -> tuple[Finding, ...]:
    """All findings of migrations that are to run after each other, in the order of files and statements.

    Args:
        migrations: what is pending, in order.
        tables: what is in the database now; see `read_table_sizes`.
    """
    with _collector_paused():
        return tuple(_Lint(tables).look(migrations))


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Megabytes of SQL are millions of nodes without a cycle, which the collector would go through again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _count(connection: Connection[Any], full_name: str) -> int | None:
    """How many rows a small table has; `None` if it can't be read, or is being changed by a migration that locks it."""
    import psycopg

    try:
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '1s'; SET LOCAL row_security = off")
            row = connection.execute(f"SELECT count(*) FROM {full_name}".encode()).fetchone()
    except (
        psycopg.errors.LockNotAvailable,
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.ObjectNotInPrerequisiteState,
    ):
        return None
    return int(row[0]) if row else None


class _Lint:
    """One look at one run's migrations."""

    def __init__(self, tables: Mapping[str, TableSize]) -> None:
        self._tables = LiveTables(tables)
        self._losses = DataLoss(self._tables)
        self._squawk = squawk.program()
        self._called: set[str] = set()
        # What a function would do, told only if some statement of the run calls it.
        self._in_functions: list[tuple[str, Finding]] = []

    def look(self, migrations: Sequence[Migration]) -> list[Finding]:
        found: list[Finding] = []
        if self._squawk is None and migrations:
            found.append(_no_squawk(f"{squawk.PROGRAM} is not installed"))
        for migration in migrations:
            found += self._file(migration)
        found += [finding for function, finding in self._in_functions if function in self._called]
        order = {migration.name: number for number, migration in enumerate(migrations)}
        return sorted(dict.fromkeys(found), key=lambda item: (order.get(item.migration, -1), item.statement))

    def _file(self, migration: Migration) -> Iterator[Finding]:
        try:
            statements = parse_statements(migration.sql)
        except SyntaxProblem as problem:
            yield _unparsed(migration, problem)
            return
        kinds = [statement.kind for statement in statements]
        one_transaction = len(statements) > 1 and not _OWN_TRANSACTION & set(kinds)
        # Names are looked up as they are at each statement, so squawk's findings are told on the way.
        said = self._squawk_said(migration, statements, one_transaction)
        if isinstance(said, Finding):
            yield said
            said = {}
        own_hands = False
        for statement, kind in zip(statements, kinds, strict=True):
            place = (migration.name, statement.ordinal, statement.line)
            found = list(self._statement(statement, place))
            warned = not_transactional(kind, alone=len(statements) == 1)
            # BEGIN and COMMIT come in pairs; one word is enough.
            if warned is not None and (kind not in _OWN_TRANSACTION or not own_hands):
                found.append(Finding(Severity.WARNING, warned.rule, *place, warned.message))
            own_hands = own_hands or kind in _OWN_TRANSACTION
            for rule in said.get(statement.ordinal, ()):
                found += self._squawk_words(rule, statement, place)
            # A statement that has to go needs no advice.
            refused = any(item.severity is Severity.REFUSED for item in found)
            yield from (item for item in found if not refused or item.severity is not Severity.WARNING)
            self._losses.follow(statement.tag, statement.node)

    def _statement(self, statement: ParsedStatement, place: tuple[str, int, int]) -> Iterator[Finding]:
        tree: Any = {statement.tag: statement.node}
        function = statement.tag == "CreateFunctionStmt"
        if function:
            tree = {statement.tag: {key: value for key, value in statement.node.items() if key != "sql_body"}}
        yield from self._nodes(tree, place)
        if not function and statement.tag != "DoStmt":
            return
        body = body_of(statement)
        inside = list(self._nodes(list(body.trees), place, "in its body: "))
        if function:
            name = names_of(statement.node["funcname"])[-1]
            self._in_functions += [(name, item) for item in inside if item.severity is not Severity.REFUSED]
            inside = [item for item in inside if item.severity is Severity.REFUSED]
        yield from inside
        if body.dynamic:
            yield Finding(
                Severity.WARNING,
                "dynamic-sql",
                *place,
                "puts SQL together and runs it with EXECUTE, so what it does can't be known beforehand. Write the"
                " statement out, if it can be.",
            )
        if body.unreadable is not None:
            yield Finding(
                Severity.WARNING, "unreadable-body", *place, f"its body can't be looked into: {body.unreadable}."
            )

    def _nodes(self, tree: Any, place: tuple[str, int, int], where: str = "") -> Iterator[Finding]:
        for tag, node in nodes(tree):
            for offence in offences(tag, node):
                yield Finding(Severity.REFUSED, offence.rule, *place, where + offence.message)
            for loss in self._losses.losses(tag, node):
                yield Finding(Severity.DESTRUCTIVE, loss.rule, *place, where + loss.message, loss.table)
            for warned in warnings(tag, node, self._tables):
                yield Finding(Severity.WARNING, warned.rule, *place, where + warned.message, warned.table)
            if tag == "FuncCall":
                self._called.update(names_of(node.get("funcname"))[-1:])

    def _squawk_said(
        self, migration: Migration, statements: Sequence[ParsedStatement], one_transaction: bool
    ) -> dict[int, list[str]] | Finding:
        said: dict[int, list[str]] = {}
        if self._squawk is None:
            return said
        try:
            for remark in squawk.remarks(self._squawk, statements, one_transaction):
                said.setdefault(remark.statement.ordinal, []).append(remark.rule)
        except squawk.SquawkProblem as problem:
            self._squawk = None
            return _no_squawk(str(problem))
        return said

    def _squawk_words(self, rule: str, statement: ParsedStatement, place: tuple[str, int, int]) -> Iterator[Finding]:
        words, table = squawk.WORDS[rule], None
        if "{table}" in words:
            relation = squawk.locked_relation(statement)
            if relation is None:
                return
            table = self._tables.find(relation.get("schemaname"), relation["relname"])
            if table is None:
                return
            words = words.format(table=f"{table.name}, {table.size},")
        yield Finding(Severity.WARNING, rule, *place, words, table.name if table else None)


def _unparsed(migration: Migration, problem: SyntaxProblem) -> Finding:
    sql = migration.sql
    line = line_of(sql, problem.position)
    # The statement that doesn't parse is the last that the lexer finds before the place.
    ordinal = ordinal_at(in_ascii(sql), problem.position) or 1
    if sql[problem.position : problem.position + 1] == "\\":
        command = sql[problem.position :].split(maxsplit=1)[0]
        return Finding(
            Severity.REFUSED,
            "psql-command",
            *(migration.name, ordinal, line),
            f"{command} is a command of psql, which reads it itself; it is not SQL and the server doesn't know it. Take"
            " it out; what it stands for must be written as SQL.",
        )
    return Finding(Severity.REFUSED, "syntax", *(migration.name, ordinal, line), f"{problem}. {_advice(sql, problem)}")


def _advice(sql: str, problem: SyntaxProblem) -> str:
    """What to do about a file that doesn't parse."""
    line = sql[sql.rfind("\n", 0, problem.position) + 1 :].split("\n", 1)[0]
    strange = next((letter for letter in line if letter in _SPACES), None)
    if strange is not None:
        return (
            f"The line holds U+{ord(strange):04X} ({unicodedata.name(strange)}), which is a letter to PostgreSQL and no"
            " white space: write a space instead."
        )
    if _COPY.search(sql, 0, problem.position):
        return (
            "COPY FROM STDIN waits for data that a migration file can't carry (psql reads the lines that follow,"
            " PostgreSQL does not); write the rows as INSERT statements."
        )
    return (
        "What can't be parsed here isn't sent, since what it does and how it is rolled back can't be known. A name that"
        " newer versions of PostgreSQL reserve, as system_user or json_value, is read once it stands in double quotes."
    )


def _no_squawk(why: str) -> Finding:
    return Finding(
        Severity.WARNING,
        "no-squawk",
        "",
        0,
        0,
        f"{why}, so its findings on locks are left out; what is refused or loses data is found without it.",
    )
