"""The server that a backup is taken from: the primary, or a replica in sync; and whether all of it can be read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.backups.logical.dump import LOCK_WAIT
from medianest_operator.postgres.connect import ConnectError, connect, libpq_environment
from medianest_operator.postgres.contents import Table, read_tables
from medianest_operator.postgres.rows import only
from medianest_operator.results.backup import Reason, RunFailure

IN_SYNC_WITHIN = 30.0
"""Seconds that a replica gets to replay what the primary had written when the backup began."""
_LOOK_AGAIN = 0.2
_MOST_LOCKS = 1000
_REPLICA_WAIT = 5.0
# Final for whoever tries again: the words are the server's (src/backend/utils/init/postinit.c, libpq/auth.c).
_FINAL = ("password authentication failed", "no pg_hba.conf entry", "does not exist", "permission denied for database")

# What was dropped meanwhile, or a snapshot that went with its server, is another one the next time.
_PASSING = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedObject,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InvalidParameterValue,
    # Of a relation or a function that goes while its definition is spelled: no SQLSTATE of its own.
    psycopg.errors.InternalError_,
)

_NEUTRAL: tuple[LiteralString, ...] = (
    "SET search_path = pg_catalog, pg_temp",
    "SET row_security = off",
    "SET constraint_exclusion = partition",
    "SET quote_all_identifiers = off",
    "SET transform_null_equals = off",
    "SET DateStyle = 'ISO, MDY'",
    "SET exit_on_error = off",
    "SET client_encoding = 'UTF8'",
)

_STATE: LiteralString = """
SELECT pg_catalog.pg_is_in_recovery(),
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_lsn() END::text,
       (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
       pg_catalog.host(pg_catalog.inet_server_addr()),
       pg_catalog.current_setting('primary_slot_name')
"""
_REPLAYED: LiteralString = "SELECT pg_catalog.pg_last_wal_replay_lsn() >= %s::pg_lsn"
_SEQUENCES: LiteralString = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), n.nspname::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
   AND n.nspname NOT IN ('information_schema', 'medianest_operator')
   AND NOT (CASE c.relkind WHEN 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT') END
            AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'))
 ORDER BY 1
"""
_LARGE_OBJECTS: LiteralString = """
SELECT count(*) FROM pg_catalog.pg_largeobject_metadata l
 WHERE NOT EXISTS (SELECT FROM pg_catalog.aclexplode(coalesce(l.lomacl, pg_catalog.acldefault('L', l.lomowner))) a
                    WHERE a.privilege_type = 'SELECT'
                      AND (a.grantee = 0 OR pg_catalog.pg_has_role(a.grantee, 'USAGE')))
"""


@dataclass
class Server:
    """A connection to the server that is dumped, and how pg_dump finds the same one.

    Attributes:
        name: `primary`, or `replica NAME`.
        environments: libpq's variables that may lead to the same server: with its own address, for where many share a
            name; and without, for networks that show another one. A snapshot tells which did.
        lsn: where its log stood when it was looked at.
        system_identifier: its cluster's.
    """

    name: str
    connection: Connection[Any]
    environments: Sequence[Mapping[str, str]]
    lsn: str
    system_identifier: str

    @property
    def is_replica(self) -> bool:
        """Whether it replays another one's log."""
        return self.name != "primary"


def open_server(conninfo: str, wait: float, report: Callable[[str], None], host: str | None = None) -> Server:
    """Connect, and see what the server is.

    Args:
        conninfo: for libpq; empty takes everything from the environment.
        host: another one than libpq's variables say.

    Raises:
        RunFailure: there is no connection.
    """
    text = psycopg.conninfo.make_conninfo(conninfo, host=host) if host else conninfo
    try:
        connection = connect(text, wait, report, "backup")
    except ConnectError as error:
        text = f"No connection within {wait:g} s: {error}"
        raise RunFailure(Reason.CONNECT_FAILED, text, not is_final(error)) from error
    try:
        without_limits(connection)
        return _look(connection)
    except psycopg.Error as error:
        connection.close()
        raise lost(error) from error


def open_replica(primary: Server, conninfo: str, host: str, report: Callable[[str], None]) -> Server | None:
    """A replica that has all that the primary had; `None`, and a word why, where there is none."""
    try:
        replica = open_server(conninfo, _REPLICA_WAIT, lambda line: None, host)
    except RunFailure as failure:
        report(f"no replica: {failure.message}")
        return None
    try:
        problem = _unfit(primary, replica)
    except psycopg.Error as error:
        problem = " ".join(str(error).split())
    if problem is None:
        return replica
    replica.connection.close()
    report(f"not from the replica: {problem}")
    return None


def check_readable(server: Server, schema: str | None = None) -> list[Table]:
    """The tables, all of whose rows this role can read.

    Args:
        schema: look at this one alone.

    Raises:
        RunFailure: which can't be read, and why.
        psycopg.Error: the connection is lost.
    """
    tables = [table for table in read_tables(server.connection) if schema in (None, table.schema)]
    user = server.connection.info.user
    cursor = server.connection.cursor(row_factory=tuple_row)
    closed = [table.name for table in tables if not table.is_readable]
    if closed:
        raise RunFailure(
            Reason.PERMISSION_DENIED,
            f"Role {user} may not read {_listed(closed, 'table')}. Grant it pg_read_all_data.",
        )
    sequences = [name for name, place in cursor.execute(_SEQUENCES).fetchall() if schema in (None, place)]
    if sequences:
        raise RunFailure(
            Reason.PERMISSION_DENIED,
            f"Role {user} may not read {_listed(sequences, 'sequence')}. Grant it pg_read_all_data.",
        )
    hidden = [table.name for table in tables if table.has_policies]
    if hidden:
        raise RunFailure(
            Reason.PERMISSION_DENIED,
            f"Policies hide rows of {_listed(hidden, 'table')} from role {user}, so a backup would miss them:"
            f" ALTER ROLE {user} BYPASSRLS.",
        )
    row = cursor.execute(_LARGE_OBJECTS).fetchone()
    if row and row[0]:
        raise RunFailure(
            Reason.PERMISSION_DENIED,
            f"Role {user} may not read {row[0]} large objects, which no general right covers in PostgreSQL 15."
            " MediaNest has none: remove them, or grant the role their owner's rights.",
        )
    return tables


def lock_tables(connection: Connection[Any], tables: Sequence[Table]) -> None:
    """Keep the tables from being changed or dropped until the transaction ends; readers and writers go on.

    Where there are very many, pg_dump's own locks have to do: the server has room for so many, and one that is dropped
    before pg_dump has got there fails the dump, which is tried again.

    Raises:
        psycopg.Error: somebody else has one locked for too long, or it is gone.
    """
    if len(tables) > _MOST_LOCKS:
        return
    for table in tables:
        name = psycopg.sql.Identifier(table.schema, table.plain)
        connection.execute(psycopg.sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(name))


def read_clock(connection: Connection[Any]) -> datetime:
    """What time the server has.

    Raises:
        psycopg.Error: as the server says.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    (seconds,) = only(cursor.execute("SELECT extract(epoch FROM pg_catalog.clock_timestamp())::float8"))
    return datetime.fromtimestamp(seconds, UTC)


def open_connection(environment: Mapping[str, str]) -> Connection[Any]:
    """One connection, now or not at all, with libpq's variables over those of this process.

    Raises:
        psycopg.OperationalError: there is none.
    """
    names = {
        "PGHOST": "host", "PGHOSTADDR": "hostaddr", "PGPORT": "port", "PGUSER": "user", "PGDATABASE": "dbname",
        "PGPASSWORD": "password", "PGSSLMODE": "sslmode", "PGSSLROOTCERT": "sslrootcert", "PGSSLCERT": "sslcert",
        "PGSSLKEY": "sslkey", "PGOPTIONS": "options",
    }  # fmt: skip
    given: dict[str, Any] = {name: environment[variable] for variable, name in names.items() if variable in environment}
    connection = psycopg.connect(
        autocommit=True, connect_timeout=10, keepalives_idle=10, keepalives_interval=5, keepalives_count=3, **given
    )
    without_limits(connection)
    return connection


def without_limits(connection: Connection[Any]) -> None:
    """Take as long as a dump takes, as pg_dump itself does: time limits are for the application's sessions.

    What the database's owner set for it doesn't hold either, again as for pg_dump: names are found in `pg_catalog`
    alone, no row is hidden without an error, and the planner works out no CHECK constraint's functions.
    """
    limits = ["statement_timeout", "idle_in_transaction_session_timeout"]
    if connection.info.server_version >= 140000:
        limits.append("idle_session_timeout")
    for limit in limits:
        connection.execute(psycopg.sql.SQL("SET {} = 0").format(psycopg.sql.Identifier(limit)))
    # Definitions of tables wait for locks as well, and so would who asks for them in vain.
    connection.execute(f"SET lock_timeout = {LOCK_WAIT}")
    for setting in _NEUTRAL:
        connection.execute(setting)


def is_final(error: ConnectError) -> bool:
    """Whether the server refuses for a reason that doesn't pass by itself."""
    return any(words in str(error) for words in _FINAL)


def lost(error: psycopg.Error, reason: Reason = Reason.DUMP_FAILED) -> RunFailure:
    """What an error of the server's means for a run."""
    text = " ".join(str(error).split())
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return RunFailure(Reason.PERMISSION_DENIED, f"A right is missing: {text}")
    return RunFailure(reason, f"The server gave up: {text}", transient=isinstance(error, _PASSING))


def _look(connection: Connection[Any]) -> Server:
    cursor = connection.cursor(row_factory=tuple_row)
    in_recovery, lsn, identifier, address, slot = only(cursor.execute(_STATE))
    # Patroni's slots bear their members' names (docs/replication_modes, "slots"), and a pod's name has no underscore.
    name = f"replica {slot.replace('_', '-') or address or connection.info.host}" if in_recovery else "primary"
    environments: list[Mapping[str, str]] = [libpq_environment(connection)]
    if address and not os.path.isabs(connection.info.host):
        environments.insert(0, {**environments[0], "PGHOSTADDR": address})
    return Server(name, connection, environments, lsn, identifier)


def _unfit(primary: Server, replica: Server) -> str | None:
    """Why a server isn't the replica to dump."""
    if not replica.is_replica:
        return "that host is a primary"
    if replica.system_identifier != primary.system_identifier:
        return "that host belongs to another cluster"
    if any(table.is_unlogged for table in read_tables(primary.connection)):
        # pg_dump leaves them out there without a word.
        return "there are unlogged tables, whose rows no replica has"
    deadline = time.monotonic() + IN_SYNC_WITHIN
    cursor = replica.connection.cursor(row_factory=tuple_row)
    while True:
        row = cursor.execute(_REPLAYED, (primary.lsn,)).fetchone()
        if row and row[0]:
            return None
        if time.monotonic() > deadline:
            return f"{replica.name} did not get to where the primary was ({primary.lsn}) within {IN_SYNC_WITHIN:.0f} s"
        time.sleep(_LOOK_AGAIN)


def _listed(names: Sequence[str], noun: str) -> str:
    shown = ", ".join(names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{noun}{'s' if len(names) > 1 else ''} {shown}{more}"
