"""What a database holds beside its definitions at one moment: its tables' rows, and where its sequences stand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator import naming
from medianest_operator.postgres.rows import only

# Tables that hold rows of their own. A materialized view's rows follow from others'.
_TABLES: LiteralString = """
SELECT n.nspname, c.relname,
       CASE WHEN n.nspname = 'public' THEN '' ELSE quote_ident(n.nspname) || '.' END || quote_ident(c.relname),
       c.relpersistence = 'u',
       pg_catalog.row_security_active(c.oid),
       pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('information_schema', %s) AND n.nspname !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
                      AND d.deptype = 'e')
 ORDER BY 1, 2
"""

_SEQUENCES: LiteralString = """
SELECT n.nspname, c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'S' AND c.relpersistence <> 't'
   AND CASE c.relkind WHEN 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT') END
   AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
   AND n.nspname NOT IN ('information_schema', %s) AND n.nspname !~ '^pg_'
 ORDER BY 1, 2
"""

# As Prisma names them, the newest applied migration is the last by name.
_VERSION: LiteralString = """
SELECT pg_catalog.left(migration_name, 255) FROM ONLY public._prisma_migrations
 WHERE finished_at IS NOT NULL AND rolled_back_at IS NULL ORDER BY migration_name DESC LIMIT 1
"""

# Anything but a table could run somebody's functions.
_HISTORY: LiteralString = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = 'public' AND c.relname = '_prisma_migrations' AND c.relkind = 'r')
"""


# What this session's role may not read, and so a dump of its own can't hold.
_UNREADABLE: LiteralString = """
SELECT n.nspname::text, c.relname::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'm', 'S') AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('information_schema', %s) AND n.nspname !~ '^pg_'
   AND NOT (pg_catalog.has_schema_privilege(n.oid, 'USAGE')
            AND CASE c.relkind WHEN 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                               ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END)
 ORDER BY 1, 2
"""

_OTHERS_LARGE_OBJECTS: LiteralString = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata WHERE NOT pg_catalog.pg_has_role(lomowner, 'USAGE'))
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with rows of its own.

    Attributes:
        schema: its schema's plain name.
        plain: its own plain name.
        name: as in messages and manifests: quoted, without the schema in `public`.
        is_unlogged: a replica doesn't have its rows.
        has_policies: policies decide which rows this session sees.
        is_readable: this session's role may read it.
    """

    schema: str
    plain: str
    name: str
    is_unlogged: bool
    has_policies: bool
    is_readable: bool


def read_tables(connection: Connection[Any]) -> list[Table]:
    """All tables of the database's own schemas, without those of extensions.

    Raises:
        psycopg.Error: as the server says.
    """
    rows = connection.cursor(row_factory=tuple_row).execute(_TABLES, (naming.JOURNAL_SCHEMA,)).fetchall()
    return [Table(*row) for row in rows]


def count_rows(connection: Connection[Any], tables: Sequence[Table]) -> Iterator[tuple[str, int]]:
    """Each table's exact number of rows, one after the other; what inherits is counted on its own.

    Raises:
        psycopg.Error: as the server says.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        for table in tables:
            query = sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(table.schema, table.plain))
            yield table.name, only(cursor.execute(query))[0]


def count_large_objects(connection: Connection[Any]) -> int:
    """How many large objects there are, whoever may read them.

    Raises:
        psycopg.Error: as the server says.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    (found,) = only(cursor.execute("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata"))
    return int(found)


def read_sequences(connection: Connection[Any]) -> dict[str, tuple[int, bool]]:
    """Where each sequence stands, and whether that value was handed out, by its quoted name with its schema.

    Raises:
        psycopg.Error: as the server says.
    """
    found: dict[str, tuple[int, bool]] = {}
    with connection.cursor(row_factory=tuple_row) as cursor:
        for schema, name, _ in cursor.execute(_SEQUENCES, (naming.JOURNAL_SCHEMA,)).fetchall():
            identifier = sql.Identifier(schema, name)
            last, called = only(cursor.execute(sql.SQL("SELECT last_value, is_called FROM {}").format(identifier)))
            found[identifier.as_string(None)] = (last, called)
    return found


def sequence_names(connection: Connection[Any]) -> dict[str, str]:
    """The sequences' names as pg_dump writes them, quoted where they have to be, and as `read_sequences` does.

    Raises:
        psycopg.Error: as the server says.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        found = cursor.execute(_SEQUENCES, (naming.JOURNAL_SCHEMA,)).fetchall()
    return {row[2]: sql.Identifier(row[0], row[1]).as_string(None) for row in found}


def read_schema_version(connection: Connection[Any]) -> str | None:
    """The newest applied migration of Prisma's history, `None` where there is no history.

    Raises:
        psycopg.Error: as the server says.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(_HISTORY).fetchone()
        if row is None or not row[0]:
            return None
        newest = cursor.execute(_VERSION).fetchone()
        return newest[0] if newest else None


def read_unreadable(connection: Connection[Any]) -> list[tuple[str, str]]:
    """The tables and sequences of others that this session's role may not read, by schema and name.

    Raises:
        psycopg.Error: as the server says.
    """
    rows = connection.cursor(row_factory=tuple_row).execute(_UNREADABLE, (naming.JOURNAL_SCHEMA,)).fetchall()
    return [(row[0], row[1]) for row in rows]


def has_large_objects_of_others(connection: Connection[Any]) -> bool:
    """Whether a large object belongs to somebody whose rights this session's role doesn't have.

    Raises:
        psycopg.Error: as the server says.
    """
    row = connection.cursor(row_factory=tuple_row).execute(_OTHERS_LARGE_OBJECTS).fetchone()
    return row is not None and bool(row[0])


def _end(connection: Connection[Any]) -> None:
    """End a transaction that only reads: where the server is gone, so is the transaction, and what was read is true."""
    if not connection.broken and not connection.closed:
        with contextlib.suppress(psycopg.OperationalError):
            connection.execute("ROLLBACK")


@contextmanager
def snapshot(connection: Connection[Any]) -> Iterator[str]:
    """A transaction that sees one moment, and the name under which others, such as pg_dump, can see the same one."""
    connection.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    try:
        (name,) = only(connection.cursor(row_factory=tuple_row).execute("SELECT pg_catalog.pg_export_snapshot()"))
        yield str(name)
    finally:
        _end(connection)


@contextmanager
def at_snapshot(connection: Connection[Any], name: str) -> Iterator[None]:
    """A transaction that sees the moment of an exported snapshot; it has to be on the same server.

    Raises:
        psycopg.Error: the snapshot isn't there.
    """
    connection.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    try:
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(name)))
        yield
    finally:
        _end(connection)
