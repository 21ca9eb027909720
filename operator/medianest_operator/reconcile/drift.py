"""Whether the schema is still what its migrations made it: cheaply on every run, in full when something moved."""

from __future__ import annotations

from typing import LiteralString

from medianest_operator.hardening.fingerprint import without_hardening
from medianest_operator.migrations.history import TABLE, History
from medianest_operator.migrations.journal import read_version
from medianest_operator.postgres.catalog import difference, read_catalog_async
from medianest_operator.postgres.sessions import Connection
from medianest_operator.reconcile.context import Run

FULL_EVERY = 3600.0
"""Seconds until the catalogs are compared although nothing seems to have moved."""
_LONGEST = 10

# Every definition is a row of these catalogs, and another version of the row whenever it changes. VACUUM and ANALYZE
# write their figures into the row in place, which leaves its version alone.
_TRACES: LiteralString = """
SELECT md5(string_agg(t.trace, ',' ORDER BY t.trace)) FROM (
    SELECT 'c' || c.oid || ':' || c.xmin AS trace FROM pg_class c
     WHERE c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace,
                                  'pg_toast'::regnamespace)
    UNION ALL SELECT 'a' || a.attrelid || ':' || a.attnum || ':' || a.xmin FROM pg_attribute a
                JOIN pg_class c ON c.oid = a.attrelid
               WHERE c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace,
                                            'pg_toast'::regnamespace)
    UNION ALL SELECT 'd' || oid || ':' || xmin FROM pg_attrdef
    UNION ALL SELECT 'i' || indexrelid || ':' || xmin FROM pg_index WHERE indexrelid >= 16384
    UNION ALL SELECT 'k' || oid || ':' || xmin FROM pg_constraint WHERE oid >= 16384
    UNION ALL SELECT 'p' || oid || ':' || xmin FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 't' || oid || ':' || xmin FROM pg_trigger
    UNION ALL SELECT 'y' || oid || ':' || xmin FROM pg_type WHERE oid >= 16384
    UNION ALL SELECT 'e' || oid || ':' || xmin FROM pg_enum
    UNION ALL SELECT 'o' || oid || ':' || xmin FROM pg_policy
    UNION ALL SELECT 'r' || oid || ':' || xmin FROM pg_rewrite WHERE oid >= 16384
    UNION ALL SELECT 'n' || oid || ':' || xmin FROM pg_namespace
    UNION ALL SELECT 'x' || oid || ':' || xmin FROM pg_extension
    UNION ALL SELECT 's' || oid || ':' || xmin FROM pg_statistic_ext
    UNION ALL SELECT 'u' || oid || ':' || xmin FROM pg_publication
    UNION ALL SELECT 'm' || objoid || ':' || objsubid || ':' || xmin FROM pg_description WHERE objoid >= 16384
) t
"""


async def observe(run: Run, connection: Connection, history: History) -> tuple[str, ...] | None:
    """What no migration has made, in words; `None` where nobody recorded what the version should look like."""
    if history.version is None:
        return ()
    row = await (await connection.execute(_TRACES)).fetchone()
    token = (history.version, row[0] if row else None)
    memory = run.services.memory
    known = memory.recall(run.key, "drift", token, FULL_EVERY)
    if known is not None:
        found: tuple[str, ...] = known
        return found
    expected = await read_version(connection, history.version)
    if expected is None:
        return None
    # As `migrations.versions.schema_of`, whose module needs what only a run has.
    live = without_hardening((await read_catalog_async(connection)).without_table(TABLE)).without_privileges()
    lines = tuple(_in_words(line) for line in difference(expected, live))
    if len(lines) > _LONGEST:
        lines = (*lines[: _LONGEST - 1], f"and {len(lines) - _LONGEST + 1} more")
    memory.keep(run.key, "drift", token, lines)
    return lines


def _in_words(line: str) -> str:
    return line.replace(" is not expected", " is not part of any migration")
