"""How full the file systems of a server are, by SQL: the one way into a restricted pod that is open anyway.

A foreign table in the maintenance database has the answer of `stat -f`, run by the server itself in its data directory
(PostgreSQL manual, file_fdw): so it is the file systems that PostgreSQL writes to that are measured, whatever they are
mounted at, on a replica as on the primary. The table is the superuser's, in a schema that nobody else may use. It is
made on the primary, and replicas get it from there.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg

from medianest_operator.health.storage import Evidence, Slot, Usage
from medianest_operator.naming import VOLUME_DATA, VOLUME_WAL
from medianest_operator.postgres.rows import only_async
from medianest_operator.postgres.sessions import Connection

_THERE: LiteralString = "SELECT pg_catalog.to_regclass('medianest_operator.file_systems') IS NOT NULL"
# Its number, the size of a block, then blocks: all, free, free for ordinary users (coreutils manual, stat).
_MAKE: tuple[LiteralString, ...] = (
    # Whoever waits for a synchronous replica waits indefinitely, and this is needed on the primary alone.
    "SET LOCAL synchronous_commit = local",
    "CREATE SCHEMA IF NOT EXISTS medianest_operator",
    "CREATE EXTENSION IF NOT EXISTS file_fdw SCHEMA medianest_operator",
    "CREATE SERVER IF NOT EXISTS medianest_files FOREIGN DATA WRAPPER file_fdw",
    """CREATE FOREIGN TABLE medianest_operator.file_systems
         (id text, block bigint, blocks bigint, free bigint, available bigint)
       SERVER medianest_files
       OPTIONS (program 'stat -f -c "%i %S %b %f %a" . pg_wal/.', format 'text', delimiter ' ')""",
)
_USAGE: LiteralString = "SELECT id, (blocks - free) * block, available * block FROM medianest_operator.file_systems"

_EVIDENCE: LiteralString = """
SELECT coalesce((SELECT json_agg(json_build_array(slot_name, quote_literal(slot_name),
                   pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                        ELSE pg_current_wal_lsn() END, restart_lsn)::bigint))
                   FROM pg_replication_slots WHERE NOT active AND restart_lsn IS NOT NULL), '[]'),
       CASE WHEN current_setting('archive_mode') = 'off' THEN 0
            ELSE (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name ~ '[.]ready$')
                 * pg_size_bytes(current_setting('wal_segment_size')) END,
       (SELECT json_build_array(extract(epoch FROM clock_timestamp() - xact_start)::float8, pid, usename)
          FROM pg_stat_activity WHERE backend_type = 'client backend' AND xact_start IS NOT NULL
         ORDER BY xact_start LIMIT 1),
       coalesce((SELECT json_agg(json_build_array(datname, pg_database_size(oid)) ORDER BY datname)
                   FROM pg_database WHERE datname = ANY(%(replaced)s)), '[]')
"""


# The program reads nothing; the server must be able to write to it all the same.
_PUT_BACK: LiteralString = "COPY (SELECT) TO PROGRAM 'cat > /dev/null; exec roomy_postgres --put-back'"


# What the shell answers by 127 and 126, in the server's words; the latter where it may not look into all of its path.
_NO_SUCH_PROGRAM = frozenset({"command not found", "command not executable"})


async def put_ballast_back(connection: Connection) -> bool:
    """Let the server keep some room for a start on a full volume again, where there is room by now. Returns whether its
    image has the program for that.

    Raises:
        psycopg.Error: it failed.
    """
    try:
        await connection.execute(_PUT_BACK)
    except psycopg.errors.ExternalRoutineException as error:
        if error.diag.message_detail not in _NO_SUCH_PROGRAM:
            raise
        return False
    return True


async def is_measured(connection: Connection) -> bool:
    """Whether the server has the table. The connection is the superuser's to the maintenance database."""
    (there,) = await only_async(await connection.execute(_THERE))
    return bool(there)


async def make_measurable(connection: Connection) -> None:
    """Make the table on the primary."""
    async with connection.transaction():
        for statement in _MAKE:
            await connection.execute(statement)


async def file_systems(connection: Connection) -> dict[str, Usage]:
    """The file systems of the server, by volume: `data`, and `wal` where the log lies on another one.

    Raises:
        psycopg.Error: as the server says, for instance that it can't run the program.
    """
    rows = await (await connection.execute(_USAGE)).fetchall()
    data, log = (Usage(int(used), int(available), str(number)) for number, used, available in rows)
    found = {VOLUME_DATA: data}
    if log.file_system != data.file_system:
        found[VOLUME_WAL] = log
    return found


async def evidence(connection: Connection, replaced: list[str]) -> Evidence:
    """What may fill a server's volumes.

    Args:
        replaced: databases that restores have replaced.
    """
    slots, waits, transaction, sizes = await only_async(await connection.execute(_EVIDENCE, {"replaced": replaced}))
    return Evidence(
        tuple(Slot(str(name), str(literal), max(0, int(kept or 0))) for name, literal, kept in slots),
        int(waits),
        (float(transaction[0]), int(transaction[1]), str(transaction[2])) if transaction else None,
        tuple((str(name), int(size)) for name, size in sizes),
    )
