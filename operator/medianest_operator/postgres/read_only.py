"""A database that the application can only read: before a volume is full and PostgreSQL stops (PANIC).

What is set is the database's own default for a transaction, so that it holds on whichever server leads next, and a
restarted operator finds it. Every session begins with it, whatever its login; those that there were are ended. Nothing
else is taken: a session that sets `default_transaction_read_only = off` on purpose, or begins a transaction with READ
WRITE, still writes, as migrations and the operator itself do.

Beside it stands since when, in a parameter of our own, and whether the database had the setting before: only what the
operator set is taken back by it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

from psycopg import sql

from medianest_operator.postgres.rows import only_async
from medianest_operator.postgres.sessions import Connection

SINCE: Final = "medianest.read_only_since"
"""The parameter that says since when, on the database."""
_MARK: Final = sql.Identifier(*SINCE.split("."))
_WAS_ON: Final = " on"
"""Ends the parameter where the database's owner had the setting on before."""

_SETTING: LiteralString = """
SELECT coalesce((SELECT 'default_transaction_read_only=on' = ANY (s.setconfig)
                   FROM pg_db_role_setting s WHERE s.setdatabase = d.oid AND s.setrole = 0), false),
       (SELECT split_part(v, '=', 2) FROM pg_db_role_setting s, unnest(s.setconfig) v
         WHERE s.setdatabase = d.oid AND s.setrole = 0 AND split_part(v, '=', 1) = %s)
  FROM pg_database d WHERE d.datname = %s
"""
_NOW: LiteralString = "SELECT clock_timestamp()"
# pg_dump reads under a snapshot that must not end; the controller's reader writes nothing.
_END: LiteralString = """
SELECT count(pg_terminate_backend(a.pid))
  FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
 WHERE a.datname = %(database)s AND NOT r.rolsuper AND r.rolname <> ALL (%(spared)s::name[])
   AND a.backend_type = 'client backend' AND a.backend_start < %(before)s
"""


@dataclass(frozen=True)
class Mark:
    """What stands beside the setting; whoever owns the database may have written anything.

    Attributes:
        since: the sessions that began before this may still write; `None` where it says no moment.
        was_on: the setting was on before, by the owner's own wish.
        is_on: the setting is on now. The owner may have taken it back.
    """

    since: datetime | None
    was_on: bool = False
    is_on: bool = True

    @classmethod
    def parse(cls, text: str, *, is_on: bool = True) -> Mark:
        """What the database's parameter says."""
        moment = text.removesuffix(_WAS_ON)
        try:
            since = datetime.fromisoformat(moment)
        except ValueError:
            since = None
        return cls(since if since is not None and since.tzinfo else None, text != moment, is_on)


async def begin(connection: Connection, database: str, spared: Collection[str]) -> int | None:
    """Let the application only read, and end its sessions. Returns how many were ended; `None` where there is no such
    database.

    Args:
        connection: the superuser's, to the maintenance database.
        spared: roles whose sessions stay as they are.
    """
    found = await (await connection.execute(_SETTING, [SINCE, database])).fetchone()
    if found is None:
        return None
    is_on, marked = found
    # What stands there by the operator's own hand isn't the owner's wish.
    was_on = Mark.parse(marked).was_on if is_on and marked is not None else bool(is_on)
    name = sql.Identifier(database)

    async def marked_now() -> tuple[datetime, sql.Composed]:
        (now,) = await only_async(await connection.execute(_NOW))
        text = f"{now.isoformat()}{_WAS_ON if was_on else ''}"
        return now, sql.SQL("ALTER DATABASE {} SET {} = {}").format(name, _MARK, sql.Literal(text))

    # Never the setting without the mark: nothing would take it back.
    _, mark = await marked_now()
    await _change(connection, sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name), mark)
    # Who connected while that waited, for a lock or for the disk, read the setting before it.
    now, mark = await marked_now()
    await _change(connection, mark)
    return await end_sessions(connection, database, spared, now)


async def end(connection: Connection, database: str, spared: Collection[str], mark: Mark) -> int:
    """Let the application write again, unless the owner had it read only before. Its sessions are ended once more: each
    would go on to read only. Where the owner has taken the setting back already, only the mark goes."""
    name = sql.Identifier(database)
    default = sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name)
    unmark = sql.SQL("ALTER DATABASE {} RESET {}").format(name, _MARK)
    if not mark.is_on or mark.was_on:
        await _change(connection, unmark)
        return 0
    await _change(connection, default, unmark)
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


async def end_late_sessions(connection: Connection, database: str, spared: Collection[str], mark: Mark) -> int:
    """End the sessions that were about to begin when `begin` set what they read."""
    return await end_sessions(connection, database, spared, mark.since) if mark.since is not None else 0


async def end_sessions(connection: Connection, database: str, spared: Collection[str], before: datetime) -> int:
    """End the sessions of a database that began before a moment, but superusers' and those of these roles."""
    values = {"database": database, "spared": sorted(spared), "before": before}
    (ended,) = await only_async(await connection.execute(_END, values))
    return int(ended)
