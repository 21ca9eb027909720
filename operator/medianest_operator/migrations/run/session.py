"""The session that a run speaks through: what every file finds set, and how it is found so again by the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString

from psycopg import Connection, sql
from psycopg.pq import TransactionStatus

from medianest_operator.api.run_options import RunOptions
from medianest_operator.postgres.execute import drain

# Deferrable constraints that start out deferred, by schema and name, as far as they can be named: others of the name in
# the schema would have to be deferrable, too.
_DEFERRED: LiteralString = """
SELECT n.nspname, k.conname
  FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_namespace n ON n.oid = k.connamespace
 WHERE n.nspname !~ '^pg_' AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND k.contype <> 'c'
 GROUP BY n.nspname, k.conname HAVING bool_or(k.condeferred) AND bool_and(k.condeferrable)
"""


LOCK_LIMIT = 10.0
"""Seconds that a run's own statements, those of a rollback among them, wait for a lock at a time."""

# What the run's session needs whatever was set for all sessions of the database or the role (ALTER DATABASE ... SET):
# between two statements a run waits for its backup and its rehearsal.
_OWN: Mapping[str, str] = {
    # As Prisma sets it; a schema named like the role would otherwise come first.
    "search_path": "public",
    "client_encoding": "UTF8",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
    "lock_timeout": f"{LOCK_LIMIT * 1000:.0f}ms",
    # A server whose client died stops working for it and gives up its locks.
    "client_connection_check_interval": "2s",
}
_SET_OWN = sql.SQL("SELECT {}").format(
    sql.SQL(", ").join(
        sql.SQL("pg_catalog.set_config({}, {}, false)").format(sql.Literal(name), sql.Placeholder(name))
        for name in _OWN
    )
)
# DISCARD ALL would do it all, and drop the run's lock (PostgreSQL manual, DISCARD).
_DISCARDING: tuple[LiteralString, ...] = ("CLOSE ALL", "UNLISTEN *", "DEALLOCATE ALL", "DISCARD TEMP")

PROGRAM_OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in {**_OWN, "lock_timeout": f"{LOCK_LIMIT * 3000:.0f}ms"}.items()
    if name not in ("search_path", "client_encoding")
)
"""The same for PostgreSQL's own programs (`PGOPTIONS`); they wait for a lock once, and not again and again."""


def prepare(connection: Connection[Any]) -> None:
    """Set what the run's own statements must find: no limit but that for locks."""
    # The server forgets prepared statements between two files.
    connection.prepare_threshold = None
    # All at once: a session that may be idle for a moment only would end between two of them.
    connection.execute(_SET_OWN, _OWN)


def limit(connection: Connection[Any], options: RunOptions, *, waits: bool = True) -> None:
    """Set a file's own limits; `prepare` takes them away.

    Args:
        waits: false: for locks it may wait indefinitely.
    """
    limits = {"lock_timeout": options.lock_timeout if waits else 0, "statement_timeout": options.statement_timeout}
    for name, value in limits.items():
        connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, f"{value}ms"))


def reset(connection: Connection[Any]) -> None:
    """Revert what a file's SET left for the session: the next file, and the history, mustn't depend on it.

    RESET ROLE goes back to what ALTER ROLE ... SET role gave the login.
    """
    connection.execute("RESET ROLE")
    connection.execute("RESET ALL")
    prepare(connection)


def discard(connection: Connection[Any]) -> None:
    """Take away what a file made for its session alone: a temporary table would hide a real one from the next file.

    Raises:
        psycopg.Error: a deferred constraint of a temporary table waits for the commit.
    """
    for statement in _DISCARDING:
        connection.execute(statement)


def roll_back(connection: Connection[Any]) -> None:
    """Leave whatever transaction is open; on a lost connection the server does it."""
    if connection.broken or connection.closed:
        return
    drain(connection)
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        connection.execute("ROLLBACK")


def settle_constraints(connection: Connection[Any], *, is_last: bool) -> None:
    """At the end of a file in a transaction: check what is deferred, as the file's own commit would have.

    Args:
        is_last: no other file comes, which would find everything as a new transaction does.

    Raises:
        psycopg.Error: a constraint is broken.
    """
    connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    if is_last:
        return
    names = [sql.Identifier(schema, name) for schema, name in connection.execute(_DEFERRED).fetchall()]
    if names:
        # Back to what a new transaction begins with.
        connection.execute(sql.SQL("SET CONSTRAINTS {} DEFERRED").format(sql.SQL(", ").join(names)))
