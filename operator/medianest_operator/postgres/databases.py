"""Whole databases: one that takes another's place, and what is remembered of each so that a later run knows it again.

What an operator remembers of a database lies in a table of the maintenance database, by the database's OID: it outlives
the operator, the object's status and the cluster's etcd, and unlike a comment the database's owner can't write it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from medianest_operator.postgres.database_rights import SELECT_RIGHTS, DatabaseRight, grants
from medianest_operator.postgres.rows import only_async
from medianest_operator.postgres.sessions import Connection
from medianest_operator.postgres.setting_values import name_and_value

_KEY = "medianest-operator"
PATIENCE = 120.0
"""Seconds that a statement on a whole database may take: dropping one waits for a checkpoint."""
_DRAIN = 20.0
_DAYS = re.compile(r"[1-9][0-9]{0,3}d")
_PAUSE = 0.05


class Role(StrEnum):
    """What a database is there for."""

    CANDIDATE = "candidate"
    LIVE = "live"
    KEPT = "kept"


@dataclass(frozen=True)
class Mark:
    """What is remembered of a database.

    Attributes:
        role: a candidate is being filled; the live one came in by a request; a kept one was replaced.
        request: the request's id.
        at: when it took this role, in UTC.
        backup: which backup it was filled from, where it is the live one.
        keep: how long it stays, where it was replaced and the request said so: a number of days, such as `7d`.
    """

    role: Role
    request: str
    at: str
    backup: str | None = None
    keep: str | None = None

    @property
    def moment(self) -> datetime:
        return datetime.fromisoformat(self.at)


@dataclass(frozen=True)
class LiveDatabase:
    """A database that there is."""

    name: str
    connects: bool
    """Whether it takes connections at all (`datallowconn`)."""
    mark: Mark | None
    limit: int = -1
    """How many may connect at the same time; -1: as many as the server takes (`datconnlimit`)."""


# PostgreSQL's own are known by their names: being a template is a switch of the owner's.
_DATABASES: LiteralString = """
SELECT d.datname::text, d.datallowconn, d.datconnlimit, m.mark
  FROM pg_catalog.pg_database d LEFT JOIN medianest_operator.database_marks m ON m.database = d.oid
 WHERE d.datname NOT IN ('postgres', 'template0', 'template1')
"""
_THERE: LiteralString = "SELECT pg_catalog.to_regclass('medianest_operator.database_marks') IS NOT NULL"
_MARKS: LiteralString = """
CREATE SCHEMA IF NOT EXISTS medianest_operator;
CREATE TABLE medianest_operator.database_marks (database oid PRIMARY KEY, mark jsonb NOT NULL);
"""
# Earlier versions kept them as comments.
_COMMENTS: LiteralString = """
SELECT d.datname::text, pg_catalog.left(pg_catalog.shobj_description(d.oid, 'pg_database'), 4096)
  FROM pg_catalog.pg_database d WHERE pg_catalog.shobj_description(d.oid, 'pg_database') IS NOT NULL
"""
_FORGET: LiteralString = """
DELETE FROM medianest_operator.database_marks WHERE database NOT IN (SELECT oid FROM pg_catalog.pg_database)
"""
_REMEMBER: LiteralString = """
INSERT INTO medianest_operator.database_marks (database, mark)
SELECT oid, %(mark)s::jsonb FROM pg_catalog.pg_database WHERE datname = %(name)s
ON CONFLICT (database) DO UPDATE SET mark = excluded.mark
"""


async def read_databases(connection: Connection) -> dict[str, LiveDatabase]:
    """All databases but PostgreSQL's own, by name. The connection is to the maintenance database."""
    try:
        cursor = await connection.execute(_DATABASES)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        await _ensure_marks(connection)
        cursor = await connection.execute(_DATABASES)
    return {
        name: LiveDatabase(name, connects, _mark(mark), limit)
        for name, connects, limit, mark in await cursor.fetchall()
    }


async def _ensure_marks(connection: Connection) -> None:
    """Make the table where it is missing, with what the comments say that an earlier version wrote."""
    row = await (await connection.execute(_THERE)).fetchone()
    if row is not None and row[0]:
        return
    async with connection.transaction():
        for statement in _MARKS.strip().split(";\n"):
            await connection.execute(sql.SQL(statement))
        for name, comment in await (await connection.execute(_COMMENTS)).fetchall():
            if (mark := _in_comment(comment)) is not None:
                await _remember(connection, name, mark)


async def _remember(connection: Connection, name: str, mark: Mark) -> None:
    document = {key: value for key, value in asdict(mark).items() if value is not None}
    await connection.execute(_FORGET)
    await connection.execute(_REMEMBER, {"mark": json.dumps(document), "name": name})


def _mark(document: Any) -> Mark | None:
    """What isn't a mark in every part is none."""
    try:
        mark = Mark(
            Role(document["role"]), document["request"], document["at"], document.get("backup"), document.get("keep")
        )
        whole = isinstance(mark.request, str) and isinstance(mark.backup, str | None) and _is_days(mark.keep)
        return mark if whole and mark.moment.tzinfo is not None else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_days(text: Any) -> bool:
    return text is None or (isinstance(text, str) and _DAYS.fullmatch(text) is not None)


def _in_comment(comment: str | None) -> Mark | None:
    """The mark that an earlier version wrote; a comment is its owner's to write, too."""
    try:
        return _mark(json.loads(comment or "")[_KEY])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


async def create(connection: Connection, name: str, owner: str) -> None:
    """Make an empty database."""
    async with _patient(connection):
        await connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(
                sql.Identifier(name), sql.Identifier(owner)
            )
        )


async def create_candidate(connection: Connection, name: str, owner: str, migrator: str, mark: Mark) -> None:
    """Make an empty database that only the migrator may connect to. Mark and rights follow its creation, which can't be
    part of a transaction: one without them is found without a mark, and is made again."""
    database, role = sql.Identifier(name), sql.Identifier(migrator)
    await _ensure_marks(connection)
    await create(connection, name, owner)
    async with _patient(connection), connection.transaction():
        await connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
        await connection.execute(sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {}").format(database, role))
        await _remember(connection, name, mark)


async def make_extensions(connection: Connection, extensions: Mapping[str, str], owner: str) -> None:
    """Make extensions that only a superuser may make, in a database in which there is nothing yet.

    Args:
        extensions: and the schema of each, which belongs to `owner` where it has to be made.
    """
    async with _patient(connection), connection.transaction():
        for name, schema in extensions.items():
            if schema not in ("public", "pg_catalog"):
                statement = sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}")
                await connection.execute(statement.format(sql.Identifier(schema), sql.Identifier(owner)))
            statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {} CASCADE")
            await connection.execute(statement.format(sql.Identifier(name), sql.Identifier(schema)))


async def system_identifier(connection: Connection) -> str:
    """The server's own number, which its replicas share and no other server has (PostgreSQL manual, pg_control)."""
    cursor = await connection.execute("SELECT system_identifier::text FROM pg_control_system()")
    (found,) = await only_async(cursor)
    return str(found)


_PREPARED: LiteralString = """
SELECT quote_literal(gid), date_trunc('second', clock_timestamp() - prepared)::text
  FROM pg_prepared_xacts WHERE database = %s ORDER BY prepared LIMIT 1
"""


async def prepared(connection: Connection, name: str) -> str | None:
    """A prepared transaction of a database, with its age: it can be neither ended from outside nor renamed around."""
    row = await (await connection.execute(_PREPARED, [name])).fetchone()
    return f"{row[0]} (prepared {row[1]} ago)" if row else None


async def now(connection: Connection) -> datetime:
    """The server's own time, in UTC: what marks are compared with, wherever the operator runs."""
    (found,) = await only_async(await connection.execute("SELECT clock_timestamp() AT TIME ZONE 'UTC'"))
    return datetime.fromisoformat(str(found)).replace(tzinfo=UTC)


_GRANTEES: LiteralString = """
SELECT DISTINCT CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee)::text END
  FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
 WHERE d.datname = %s
"""


async def open_to(connection: Connection, name: str, role: str) -> None:
    """Let one role into a database, and nobody else but superusers."""
    database = sql.Identifier(name)
    cursor = await connection.execute(_GRANTEES, [name])
    grantees = [row[0] for row in await cursor.fetchall()]
    async with connection.transaction():
        for grantee in grantees:
            whom = sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee)
            await connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM {} CASCADE").format(database, whom))
        await connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, sql.Identifier(role)))
        await connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(database))


async def drop(connection: Connection, name: str) -> None:
    """Remove a database, and whoever is connected to it."""
    async with _patient(connection):
        await connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


async def allow_connections(connection: Connection, name: str) -> None:
    """Let people into a database again that a swap had closed."""
    await connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))


async def swap_in(
    connection: Connection, candidate: str, live: str, mark: Mark, kept: tuple[str, Mark] | None = None
) -> None:
    """Give a candidate the live database's name, and the live one the name `kept`: both renames are one transaction.

    From the moment on that the live database closes no write is acknowledged there, so none is lost unseen: the old one
    stays whole, and stays closed. Where the swap fails, the live one is opened again.

    Raises:
        TimeoutError: sessions didn't end.
        psycopg.Error: as the server says, for instance that a prepared transaction keeps the live one from being
            renamed.
    """
    await _ensure_marks(connection)
    async with _patient(connection):
        try:
            if kept is not None:
                closing = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(live))
                await connection.execute(closing)
            await _end_sessions(connection, [candidate, live])
            async with connection.transaction():
                if kept is not None:
                    await _copy_properties(connection, live, candidate)
                    await connection.execute(_rename(live, kept[0]))
                    await _remember(connection, *kept)
                await connection.execute(_rename(candidate, live))
                await _remember(connection, live, mark)
        except BaseException:
            if kept is not None and not connection.broken and not connection.closed:
                await allow_connections(connection, live)
            raise


def _rename(name: str, to: str) -> sql.Composed:
    return sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(name), sql.Identifier(to))


_SETTINGS: LiteralString = """
SELECT CASE s.setrole WHEN 0 THEN NULL ELSE pg_get_userbyid(s.setrole)::text END, item
  FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) item
 WHERE d.datname = %s
"""
_OWN: LiteralString = "SELECT datconnlimit, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"


async def _copy_properties(connection: Connection, source: str, target: str) -> None:
    """What is a database's own, besides what is in it: it is in no dump of it."""
    database = sql.SQL("DATABASE {}").format(sql.Identifier(target))
    for role, setting in await (await connection.execute(_SETTINGS, [source])).fetchall():
        whom = sql.SQL("ROLE {} IN {}").format(sql.Identifier(role), database) if role else database
        name, value = name_and_value(setting)
        await connection.execute(sql.SQL("ALTER {} SET {} = {}").format(whom, sql.Identifier(*name.split(".")), value))
    limit, comment = await only_async(await connection.execute(_OWN, [source]))
    await connection.execute(sql.SQL("ALTER {} CONNECTION LIMIT {}").format(database, sql.Literal(limit)))
    await connection.execute(sql.SQL("COMMENT ON {} IS {}").format(database, sql.Literal(comment)))
    rights = [DatabaseRight(*row) for row in await (await connection.execute(SELECT_RIGHTS, [source])).fetchall()]
    for grant in grants(rights, target):
        if grant.role is not None:
            await connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(grant.role)))
        await connection.execute(grant.statement)
        if grant.role is not None:
            await connection.execute("RESET ROLE")


async def end_sessions(connection: Connection, name: str) -> None:
    """End whoever is connected to a database. A replica's sessions stay in a database that was renamed."""
    await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])


_SESSIONS: LiteralString = "SELECT pid FROM pg_stat_activity WHERE datname = ANY(%s) AND pid <> pg_backend_pid()"


async def _end_sessions(connection: Connection, names: list[str]) -> None:
    async with asyncio.timeout(_DRAIN):
        while True:
            cursor = await connection.execute(_SESSIONS, [names])
            pids = [row[0] for row in await cursor.fetchall()]
            if not pids:
                return
            await connection.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", [pids])
            await asyncio.sleep(_PAUSE)


@asynccontextmanager
async def _patient(connection: Connection) -> AsyncIterator[None]:
    await connection.execute(sql.SQL("SET statement_timeout = {}").format(sql.Literal(f"{PATIENCE:.0f}s")))
    try:
        yield
    finally:
        if not connection.broken and not connection.closed:
            await connection.execute("RESET statement_timeout")
