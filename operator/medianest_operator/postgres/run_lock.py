"""Prisma's advisory lock, by which its runs and ours keep out of each other's way."""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg import Connection

from medianest_operator.postgres.rows import only

# The key that Prisma's schema engine hands to pg_advisory_lock.
LOCK_KEY = 72707369
# Who holds the lock, for people: a bigint key is split over classid and objid, and objsubid is 1 for it.
SELECT_LOCK_HOLDER: LiteralString = """
SELECT a.pid, a.usename, a.application_name, pg_catalog.host(a.client_addr),
       pg_catalog.floor(extract(epoch FROM pg_catalog.now() - a.backend_start))::bigint
  FROM pg_catalog.pg_locks l
  JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 0 AND l.objid = 72707369 AND l.objsubid = 1
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
 LIMIT 1
"""
_HELD: LiteralString = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l
                WHERE l.locktype = 'advisory' AND l.granted AND l.pid = pg_catalog.pg_backend_pid()
                  AND l.classid = 0 AND l.objid = 72707369 AND l.objsubid = 1)
"""


def try_lock(connection: Connection[Any]) -> bool:
    """Take Prisma's session-level advisory lock if it is free; it ends with the session.

    Asked for rather than waited for: a session that waits inside `pg_advisory_lock` holds a snapshot, and a
    `CREATE INDEX CONCURRENTLY` of the lock's holder would wait for that snapshot in turn.
    """
    return bool(only(connection.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", (LOCK_KEY,)))[0])


def is_held(connection: Connection[Any]) -> bool:
    """Whether this session holds the lock."""
    row = connection.execute(_HELD).fetchone()
    return row is not None and bool(row[0])


def lock_holder(connection: Connection[Any]) -> str | None:
    """The lock's holder in words, `None` if it has just been released."""
    row = connection.execute(SELECT_LOCK_HOLDER).fetchone()
    if row is None:
        return None
    pid, user, application, address, age = row
    # Without pg_read_all_stats the server hides another role's details.
    who = f" ({application or 'unnamed'}, role {user or 'hidden'}, from {address or 'a local socket'})"
    since = f", connected for {age} s" if age is not None else ""
    return f"pid {pid}{who}{since}"
