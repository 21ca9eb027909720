"""What is looked at every five minutes in the application's database: sequences, dead rows, the planner's statistics.

It is read as a role that may read the tables and do nothing else, from views and columns that show it as much.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from medianest_operator.api.conditions import Reason
from medianest_operator.health.findings import Finding, coarse
from medianest_operator.postgres.sessions import Connection

_RUNNING_OUT: Final = 0.75
"""Share of a sequence's numbers."""
_BEHIND: Final = 5
"""So many times as many dead rows as make autovacuum begin: it can't keep up, or something holds it."""
_STALE: Final = 5
_MANY: Final = 10_000
"""Rows; with fewer, neither dead rows nor old statistics matter."""
_LISTED: Final = 50

# The columns that take their default from a sequence, and that lead an index: their greatest value costs one look.
_SEQUENCES: LiteralString = """
SELECT n.nspname AS schema, s.relname AS name, t.relname AS table, tn.nspname AS table_schema, a.attname AS column,
       q.seqincrement AS increment, q.seqmin AS minimum,
       least(q.seqmax, CASE a.atttypid WHEN 'int2'::regtype THEN 32767 WHEN 'int4'::regtype THEN 2147483647
                            ELSE q.seqmax END) AS maximum
  FROM pg_sequence q
  JOIN pg_class s ON s.oid = q.seqrelid
  JOIN pg_namespace n ON n.oid = s.relnamespace
  JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refclassid = 'pg_class'::regclass
                  AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
  JOIN pg_class t ON t.oid = d.refobjid AND t.relkind IN ('r', 'p')
  JOIN pg_namespace tn ON tn.oid = t.relnamespace
  JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
 WHERE q.seqincrement > 0 AND NOT q.seqcycle AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
   AND CASE s.relkind WHEN 'S' THEN has_sequence_privilege(s.oid, 'SELECT') END AND has_table_privilege(t.oid, 'SELECT')
   -- A sequence stays the column's own after DROP DEFAULT.
   AND (d.deptype = 'i' OR EXISTS (
          SELECT FROM pg_attrdef f JOIN pg_depend e ON e.classid = 'pg_attrdef'::regclass AND e.objid = f.oid
           WHERE f.adrelid = t.oid AND f.adnum = a.attnum AND e.refclassid = 'pg_class'::regclass
             AND e.refobjid = s.oid))
   AND EXISTS (SELECT FROM pg_index x WHERE x.indrelid = t.oid AND x.indisvalid AND x.indkey[0] = a.attnum
                                        AND x.indpred IS NULL)
 ORDER BY 1, 2 LIMIT %s
"""

_TABLES: LiteralString = """
SELECT schemaname AS schema, t.relname AS name, n_live_tup AS live, n_dead_tup AS dead, n_mod_since_analyze AS changed,
       c.reltuples < 0 AND last_analyze IS NULL AND last_autoanalyze IS NULL AS never_analyzed,
       coalesce(o.vacuum_threshold, current_setting('autovacuum_vacuum_threshold')::float)
         + coalesce(o.vacuum_share, current_setting('autovacuum_vacuum_scale_factor')::float)
           * greatest(c.reltuples, 0) AS vacuums_at,
       coalesce(o.analyze_threshold, current_setting('autovacuum_analyze_threshold')::float)
         + coalesce(o.analyze_share, current_setting('autovacuum_analyze_scale_factor')::float)
           * greatest(c.reltuples, 0) AS analyzes_at,
       coalesce(o.off, false) AS without_autovacuum
  FROM pg_stat_user_tables t JOIN pg_class c ON c.oid = t.relid
  CROSS JOIN LATERAL (
    SELECT max(option_value) FILTER (WHERE option_name = 'autovacuum_vacuum_threshold')::float AS vacuum_threshold,
           max(option_value) FILTER (WHERE option_name = 'autovacuum_vacuum_scale_factor')::float AS vacuum_share,
           max(option_value) FILTER (WHERE option_name = 'autovacuum_analyze_threshold')::float AS analyze_threshold,
           max(option_value) FILTER (WHERE option_name = 'autovacuum_analyze_scale_factor')::float AS analyze_share,
           bool_or(NOT option_value::bool) FILTER (WHERE option_name = 'autovacuum_enabled') AS off
      FROM pg_options_to_table(c.reloptions)) o
 WHERE c.relpersistence <> 't'
   AND (n_dead_tup > %(many)s OR n_mod_since_analyze > %(many)s OR o.off OR (n_live_tup > %(many)s AND c.reltuples < 0))
 ORDER BY n_dead_tup DESC LIMIT %(listed)s
"""


async def read_findings(connection: Connection) -> list[Finding]:
    """What is wrong with the application's tables.

    Args:
        connection: to the application's database, as a role that may read its tables and do nothing else.

    Raises:
        psycopg.Error: as the server says.
    """
    found = [finding async for finding in _sequences(connection)]
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_TABLES, {"many": _MANY, "listed": _LISTED})
        rows = await cursor.fetchall()
    return [*found, *(finding for row in rows for finding in _of_table(row))]


async def _sequences(connection: Connection) -> AsyncIterator[Finding]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_SEQUENCES, [_LISTED])
        rows = await cursor.fetchall()
        for row in rows:
            sequence, table = (
                sql.Identifier(row["schema"], row["name"]),
                sql.Identifier(row["table_schema"], row["table"]),
            )
            column = sql.Identifier(row["column"])
            try:
                # In this order: a row that comes in between has taken its number by then.
                await cursor.execute(sql.SQL("SELECT max({}) AS greatest FROM {}").format(column, table))
                greatest = (await cursor.fetchone() or {})["greatest"]
                await cursor.execute(sql.SQL("SELECT last_value, is_called FROM {}").format(sequence))
                state = await cursor.fetchone() or {}
            except psycopg.ProgrammingError:
                # Dropped in this moment, or its rows are hidden.
                continue
            following = state["last_value"] + (row["increment"] if state["is_called"] else 0)
            name = f"{row['schema']}.{row['name']}"
            if greatest is not None and following <= greatest:
                message = (
                    f"Sequence {name} is behind {row['table']}.{row['column']}: its next numbers are taken already, so"
                    " rows that ask it for one are refused, or get one twice."
                )
                fix = sql.SQL("SELECT setval({}, (SELECT max({}) FROM {}));").format(
                    sql.Literal(sequence.as_string()), column, table
                )
                yield Finding(Reason.SEQUENCE_BEHIND, f"sequence {name}", message, fix.as_string())
            numbers = row["maximum"] - row["minimum"]
            share = (state["last_value"] - row["minimum"]) / numbers if numbers > 0 else 1.0
            if share >= _RUNNING_OUT:
                message = (
                    f"Sequence {name} has given out {int(share * 20) * 5} % of the numbers that {row['table']}."
                    f"{row['column']} can hold; after the last one, rows that ask it for one are refused."
                )
                yield Finding(Reason.SEQUENCE_RUNNING_OUT, f"sequence {name}", message)


def _of_table(row: Mapping[str, Any]) -> Iterable[Finding]:
    table = sql.Identifier(row["schema"], row["name"])
    name = f"table {row['schema']}.{row['name']}"
    title = f"T{name[1:]}"
    if row["without_autovacuum"]:
        fix = sql.SQL("ALTER TABLE {} RESET (autovacuum_enabled);").format(table).as_string()
        yield Finding(Reason.AUTOVACUUM_OFF, name, f"Autovacuum is off for {name}: it grows, and gets slower.", fix)
    elif row["dead"] > _MANY and row["dead"] > row["vacuums_at"] * _BEHIND:
        message = (
            f"{title} has more than {coarse(row['dead'])} dead rows, {_BEHIND} times as many as make autovacuum begin:"
            " it can't keep up, or an old transaction keeps it from removing them."
        )
        fix = sql.SQL("VACUUM {};").format(table).as_string()
        yield Finding(Reason.AUTOVACUUM_BEHIND, name, message, fix)
    never = row["never_analyzed"] and row["live"] > _MANY
    if never or (row["changed"] > _MANY and row["changed"] > row["analyzes_at"] * _STALE):
        how = "has never been analyzed" if never else f"has changed in more than {coarse(row['changed'])} rows since"
        tail = "" if never else " its last ANALYZE"
        message = f"{title} {how}{tail}: the planner guesses how many rows a query finds."
        yield Finding(Reason.STATISTICS_STALE, name, message, sql.SQL("ANALYZE {};").format(table).as_string())
