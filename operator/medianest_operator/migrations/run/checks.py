"""The last looks before a run counts as applied."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, LiteralString

from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.errors import RunError
from medianest_operator.migrations.history import TABLE
from medianest_operator.migrations.run.evidence import but_for_gone
from medianest_operator.migrations.run.parts import Part
from medianest_operator.migrations.script import name_in_ascii
from medianest_operator.naming import JOURNAL_SCHEMA
from medianest_operator.postgres.catalog import Catalog, difference
from medianest_operator.results.migration import Reason
from medianest_operator.results.text import first_three

# Data is known by its table's identity and its column's number, which a new name leaves as they are.
_HOLDERS: LiteralString = """
SELECT c.oid::int8, a.attnum,
       CASE a.attnum WHEN 0 THEN 'table ' || c.oid::regclass ELSE 'column ' || quote_ident(a.attname) || ' of '
                                                                  || c.oid::regclass END
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL (SELECT 0::int2, NULL::name
                      UNION ALL
                     SELECT attnum, attname FROM pg_catalog.pg_attribute
                      WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) a(attnum, attname)
 WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('information_schema', %s) AND n.nspname !~ '^pg_'
   AND NOT (n.nspname = 'public' AND c.relname = %s)
"""

# As the evidence names them.
_TABLES: LiteralString = """
SELECT CASE WHEN n.nspname = 'public' THEN '' ELSE quote_ident(n.nspname) || '.' END || quote_ident(c.relname)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't'
"""

Holders = Mapping[tuple[int, int], str]
"""What holds data, by identity, and how people call it."""


def read_holders(connection: Connection[Any]) -> Holders:
    """The tables and columns of the application's schemas."""
    rows = connection.cursor(row_factory=tuple_row).execute(_HOLDERS, (JOURNAL_SCHEMA, TABLE)).fetchall()
    return {(oid, number): label for oid, number, label in rows}


def check_destruction(before: Holders, after: Holders, options: RunOptions) -> None:
    """Tables and columns must not go unless that was allowed, however the SQL went about it.

    Raises:
        RunError: one is gone.
    """
    if options.allow_destructive:
        return
    lost = sorted(before.keys() - after.keys())
    # A table stands for its columns.
    tables = {oid for oid, number in lost if number == 0}
    gone = [before[oid, number] for oid, number in lost if number == 0 or oid not in tables]
    if gone:
        raise RunError(
            Reason.DESTRUCTIVE,
            f"The run drops {first_three(gone, ', ')} with the data in it. Set spec.migrations.allowDestructive to"
            " true if that is meant.",
        )


def check_emptied(connection: Connection[Any], rows: Mapping[str, int], options: RunOptions) -> None:
    """A table that held rows must not be without any, whatever took them: a function, or SQL put together at run time.

    Args:
        rows: how many rows each table held before.

    Raises:
        RunError: one is empty.
    """
    if options.allow_destructive:
        return
    there = {name for (name,) in connection.cursor(row_factory=tuple_row).execute(_TABLES).fetchall()}
    emptied = [
        f"{name} ({count:,} rows)"
        for name, count in sorted(rows.items())
        if count and name in there and not _has_rows(connection, name)
    ]
    if emptied:
        raise RunError(
            Reason.DESTRUCTIVE,
            f"The run empties {first_three(emptied, ', ')}. Set spec.migrations.allowDestructive to true if that is"
            " meant.",
        )


def _has_rows(connection: Connection[Any], name: str) -> bool:
    row = (
        connection.cursor(row_factory=tuple_row).execute(f"SELECT EXISTS (SELECT FROM ONLY {name})".encode()).fetchone()
    )
    return row is not None and bool(row[0])


def named_indexes(parts: Sequence[Part]) -> set[str]:
    """The indexes that a run's statements make, or take for made."""
    return {statement.makes_index for part in parts for statement in part.statements if statement.makes_index}


def check_indexes(before: Catalog, after: Catalog, named: Collection[str]) -> None:
    """No index may be invalid that the run made, or that it takes for made (`IF NOT EXISTS` looks at the name only).

    Args:
        named: as `named_indexes`.

    Raises:
        RunError: one is.
    """
    for key, item in sorted(after.objects.items()):
        if item.kind != "index" or item.attributes.get("valid", True):
            continue
        known = before.objects.get(key)
        was_valid = known is None or known.attributes.get("valid", True)
        if was_valid or name_in_ascii(item.name.strip('"')) in named:
            raise RunError(
                Reason.INVALID_INDEX,
                f"Index {item.name} on {item.table} is INVALID: an interrupted or failed CREATE INDEX CONCURRENTLY left"
                " it, it serves no query, and IF NOT EXISTS takes it for the index that was wanted. Drop it with"
                f" DROP INDEX CONCURRENTLY {item.name}.",
            )


def check_rehearsed(rehearsed: Catalog, reached: Catalog) -> None:
    """The database must come to where the copy came.

    Raises:
        RunError: it came elsewhere.
    """
    # The copy has no half-built index of the database's.
    unlike = difference(rehearsed, but_for_gone(reached, rehearsed))
    if unlike:
        raise RunError(
            Reason.REHEARSAL_DIFFERS,
            f"The database came to another schema than its copy in the rehearsal: {first_three(unlike)}."
            " Something else changed it meanwhile, or the migration does something else each time, as DEFAULT 'now' and"
            " names made from now() do: write such a value as a constant, or set spec.migrations.rehearse to Never.",
        )
