"""A database that the application can only read: before a volume is full and PostgreSQL stops (PANIC).

What is set is the database's own default for a transaction, so that it holds on whichever server leads next, and a
restarted operator finds it. Every session begins with it, whatever its login; those that there were are ended. Nothing
else is taken: a session that sets `default_transaction_read_only = off` on purpose, or begins a transaction with READ
WRITE, still writes, as migrations and the operator itself do.

Beside it stands since when, in a parameter of our own: only what the operator set is taken back by it.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final, LiteralString

from psycopg import sql

from medianest_operator.postgres.rows import only_async
from medianest_operator.postgres.sessions import Connection

SINCE: Final = "medianest.read_only_since"
"""The parameter that says since when, on the database."""
_MARK: Final = sql.Identifier(*SINCE.split("."))
_LATE: Final = timedelta(seconds=2)
"""Sessions that began so shortly after may have read the settings before."""

_THERE: LiteralString = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = %s)"
_NOW: LiteralString = "SELECT clock_timestamp()"
# pg_dump reads under a snapshot that must not end; the controller's reader writes nothing.
_END: LiteralString = """
SELECT count(pg_terminate_backend(a.pid))
  FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
 WHERE a.datname = %(database)s AND NOT r.rolsuper AND r.rolname <> ALL (%(spared)s::name[])
   AND a.backend_type = 'client backend' AND a.backend_start < %(before)s
"""


async def begin(connection: Connection, database: str, spared: Collection[str]) -> int | None:
    """Let the application only read, and end its sessions. Returns how many were ended; `None` where there is no such
    database.

    Args:
        connection: the superuser's, to the maintenance database.
        spared: roles whose sessions stay as they are.
    """
    if not (await only_async(await connection.execute(_THERE, [database])))[0]:
        return None
    (now,) = await only_async(await connection.execute(_NOW))
    name = sql.Identifier(database)
    default = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name)
    mark = sql.SQL("ALTER DATABASE {} SET {} = {}").format(name, _MARK, sql.Literal(now.isoformat()))
    await _change(connection, default, mark)
    return await end_sessions(connection, database, spared, now + _LATE)


async def end(connection: Connection, database: str, spared: Collection[str]) -> int:
    """Let the application write again. Its sessions are ended once more: each would go on to read only."""
    name = sql.Identifier(database)
    default = sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name)
    await _change(connection, default, sql.SQL("ALTER DATABASE {} RESET {}").format(name, _MARK))
    (now,) = await only_async(await connection.execute(_NOW))
    return await end_sessions(connection, database, spared, now)


async def _change(connection: Connection, *statements: sql.Composed) -> None:
    async with connection.transaction():
        # A commit that waits for a synchronous replica waits indefinitely.
        await connection.execute("SET LOCAL synchronous_commit = local")
        for statement in statements:
            await connection.execute(statement)


# What it writes to the log is as much as the tables hold; it begins again after autovacuum_naptime.
_HOLD_VACUUM: LiteralString = """
SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
 WHERE datname = %s AND backend_type = 'autovacuum worker' AND query NOT LIKE '%%to prevent wraparound%%'
"""


async def hold_vacuum(connection: Connection, database: str) -> None:
    """Interrupt autovacuum in a database: with checksums, a page that it marks as visible goes into the log whole.
    While nobody writes there, it misses nothing; what prevents a wraparound goes on."""
    await connection.execute(_HOLD_VACUUM, [database])


async def end_late_sessions(connection: Connection, database: str, spared: Collection[str], since: str) -> int:
    """End the sessions that were about to begin when `begin` set what they read.

    Args:
        since: what the database's parameter says; anybody who owns it may have written it.
    """
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        return 0
    return await end_sessions(connection, database, spared, moment + _LATE) if moment.tzinfo else 0


async def end_sessions(connection: Connection, database: str, spared: Collection[str], before: datetime) -> int:
    """End the sessions of a database that began before a moment, but superusers' and those of these roles."""
    values = {"database": database, "spared": sorted(spared), "before": before}
    (ended,) = await only_async(await connection.execute(_END, values))
    return int(ended)
