"""The session that a run speaks through: what every file finds set, and how it is found so again by the next."""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg import Connection, sql
from psycopg.pq import TransactionStatus

from medianest_operator.api.run_options import RunOptions

# Deferrable constraints that start out deferred, by schema and name.
_DEFERRED: LiteralString = """
SELECT DISTINCT n.nspname, k.conname
  FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_namespace n ON n.oid = k.connamespace
 WHERE k.condeferred AND n.nspname !~ '^pg_'
"""


def prepare(connection: Connection[Any], options: RunOptions) -> None:
    """Set what every file must find."""
    settings = {
        # As Prisma sets it; a schema named like the role would otherwise come first.
        "search_path": "public",
        "client_encoding": "UTF8",
        "lock_timeout": f"{options.lock_timeout}ms",
        "statement_timeout": f"{options.statement_timeout}ms",
        # A server whose client died stops working for it and gives up its locks.
        "client_connection_check_interval": "2s",
    }
    for name, value in settings.items():
        connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))


def reset(connection: Connection[Any]) -> None:
    """Revert what a file's SET left for the session: the next file, and the history, mustn't depend on it.

    RESET ROLE goes back to what ALTER ROLE ... SET role gave the login. DISCARD ALL would drop the run's lock.
    """
    connection.execute("RESET ROLE")
    connection.execute("RESET ALL")


def roll_back(connection: Connection[Any]) -> None:
    """Leave whatever transaction is open; on a lost connection the server does it."""
    if connection.broken or connection.closed:
        return
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        connection.execute("ROLLBACK")


def settle_constraints(connection: Connection[Any]) -> None:
    """Between two files of one transaction: check what is deferred, as the first file's own commit would have.

    Raises:
        psycopg.Error: a constraint is broken.
    """
    connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    names = [sql.Identifier(schema, name) for schema, name in connection.execute(_DEFERRED).fetchall()]
    if names:
        # Back to what a new transaction begins with.
        connection.execute(sql.SQL("SET CONSTRAINTS {} DEFERRED").format(sql.SQL(", ").join(names)))
