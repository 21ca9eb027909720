"""A database made for a restore: filled under a name of its own, given its settings and rights, and renamed at the end.

Nobody finds it before it is whole. What a run that was killed has left is removed by the next one for the same name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any, Final, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator.backups.repository import layout
from medianest_operator.backups.repository.manifest import DatabaseProperties, Manifest
from medianest_operator.postgres.database_rights import DatabaseRight, grants
from medianest_operator.postgres.setting_values import name_and_value
from medianest_operator.results.backup import Reason, RunFailure

MAINTENANCE: Final = "postgres"
_WORD: Final = "_restoring_"
_THERE: LiteralString = "SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s"
# One that still has a session is another run's.
_LEFT: LiteralString = """
SELECT datname::text FROM pg_catalog.pg_database d
 WHERE pg_catalog.starts_with(datname, %s)
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid)
"""
_ORDINARY: LiteralString = "SELECT name FROM pg_catalog.pg_settings WHERE context = 'user'"
_ROLES: LiteralString = "SELECT rolname::text FROM pg_catalog.pg_roles"

Connect = Callable[[str], Connection[Any]]
"""Connects to a database of the server."""


class NewDatabase:
    """A database that is being made.

    Attributes:
        name: what it will be called.
        filling: what it is called until then.
    """

    def __init__(self, connect: Connect, name: str, manifest: Manifest) -> None:
        self._connect = connect
        self._manifest = manifest
        self.name = name
        self.filling = f"{_beginning(name)}{layout.token()}"

    def make(self) -> None:
        """Make it, empty, with the encoding and the collation of the one that was backed up; nobody else gets in.

        Raises:
            RunFailure: one of that name is there, or the collation isn't.
            psycopg.Error: as the server says.
        """
        with closing(self._connect(MAINTENANCE)) as connection:
            _sweep(connection, self.name)
            if connection.execute(_THERE, (self.name,)).fetchone():
                raise RunFailure(
                    Reason.TARGET_NOT_EMPTY,
                    f"Database {self.name} exists. --create makes it: give another name, or drop it; nothing was"
                    " changed.",
                )
            create_database(connection, self.filling, self._manifest)
            _run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", self.filling)

    def drop(self) -> None:
        """Take it away again."""
        with closing(self._connect(MAINTENANCE)) as connection:
            _run(connection, "DROP DATABASE IF EXISTS {} WITH (FORCE)", self.filling)

    def finish(self) -> list[str]:
        """Give it the rights, the settings and the name; returns what it could not be given, in words.

        Raises:
            psycopg.Error: as the server says; it has the name that it was filled under then.
        """
        with closing(self._connect(MAINTENANCE)) as connection:
            notes = _give_properties(connection, self.filling, self._manifest)
            _run(connection, "ALTER DATABASE {} RENAME TO {}", self.filling, self.name)
            # The server may not have known at the beginning that a killed run was gone.
            _sweep(connection, self.name)
        return notes


def create_database(connection: Connection[Any], name: str, manifest: Manifest) -> None:
    """Make an empty database with the encoding and the collation that the backed-up one had.

    Raises:
        RunFailure: the collation isn't there.
    """
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
        sql.Identifier(name),
        sql.Literal(manifest.encoding),
        sql.Literal(manifest.collate),
        sql.Literal(manifest.ctype),
    )
    properties = manifest.database
    if properties is not None and properties.icu_locale is not None:
        statement += sql.SQL(" LOCALE_PROVIDER icu ICU_LOCALE {}").format(sql.Literal(properties.icu_locale))
    try:
        connection.execute(statement)
    except (psycopg.errors.WrongObjectType, psycopg.errors.InvalidParameterValue) as error:
        raise collation_missing(manifest, error) from error


def collation_missing(manifest: Manifest, error: psycopg.Error) -> RunFailure:
    """What it means that a database can't be made as the one was that was backed up."""
    return RunFailure(
        Reason.TARGET_UNFIT,
        f"The backup's collation {manifest.collate} (encoding {manifest.encoding}) is not installed on this server:"
        f" {' '.join(str(error).split())}",
    )


def _beginning(name: str) -> str:
    return f"{name.encode()[:40].decode(errors='ignore')}{_WORD}"


def _sweep(connection: Connection[Any], name: str) -> None:
    """Drop what runs that were killed have left."""
    for left in _left_over(connection, name):
        # Somebody else may sweep, or look at it.
        with suppress(psycopg.errors.ObjectInUse, psycopg.errors.InvalidCatalogName):
            _run(connection, "DROP DATABASE IF EXISTS {}", left)


def _left_over(connection: Connection[Any], name: str) -> list[str]:
    beginning = _beginning(name)
    pattern = re.compile(re.escape(beginning) + r"[a-z0-9]{4}")
    rows = connection.cursor(row_factory=tuple_row).execute(_LEFT, (beginning,)).fetchall()
    return [found for (found,) in rows if pattern.fullmatch(found)]


def _give_properties(connection: Connection[Any], name: str, manifest: Manifest) -> list[str]:
    """What is the database's own, besides what is in it."""
    properties = manifest.database
    if properties is None:
        # An earlier version didn't note any: whoever may connect to a new database.
        _run(connection, "GRANT CONNECT, TEMPORARY ON DATABASE {} TO PUBLIC", name)
        return []
    database = sql.Identifier(name)
    # The others may load code, and a manifest is anybody's who can write into the repository.
    ordinary = {parameter for (parameter,) in connection.cursor(row_factory=tuple_row).execute(_ORDINARY).fetchall()}
    roles = {role for (role,) in connection.cursor(row_factory=tuple_row).execute(_ROLES).fetchall()}
    notes: list[str] = []
    if manifest.owner in roles:
        statement = sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, sql.Identifier(manifest.owner))
        _attempt(connection, statement, f"the owner {manifest.owner}", notes)
    for whose, settings in properties.settings.items():
        if whose and whose not in roles:
            notes.append(f"settings of role {whose}, which is not here, were left out")
            continue
        for setting in settings:
            parameter, value = name_and_value(setting)
            if parameter not in ordinary:
                notes.append(f"setting {setting}, which a superuser alone may make, was left out")
                continue
            statement = sql.SQL("ALTER DATABASE {} SET {} = {}").format(database, sql.Identifier(parameter), value)
            if whose:
                statement = sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}").format(
                    sql.Identifier(whose), database, sql.Identifier(parameter), value
                )
            _attempt(connection, statement, f"setting {setting}", notes)
    _give_rights(connection, name, properties, roles, notes)
    if properties.connection_limit >= 0:
        limit = sql.Literal(properties.connection_limit)
        statement = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(database, limit)
        _attempt(connection, statement, "the connection limit", notes)
    if properties.comment is not None:
        text = sql.Literal(properties.comment)
        _attempt(connection, sql.SQL("COMMENT ON DATABASE {} IS {}").format(database, text), "the comment", notes)
    return notes


def _give_rights(
    connection: Connection[Any], name: str, properties: DatabaseProperties, roles: Collection[str], notes: list[str]
) -> None:
    gone = [role for role in properties.rights if role != "public" and role not in roles]
    notes += [f"rights of role {role}, which is not here, were left out" for role in gone]
    rights = [
        # Of somebody who isn't here it comes from the owner.
        item if item.by_owner or item.grantor in roles else replace(item, by_owner=True)
        for item in _rights(properties)
        if item.grantee is None or item.grantee in roles
    ]
    for grant in grants(rights, name):
        what = f"rights of {grant.right.grantee or 'public'}"
        if grant.role is not None:
            role = sql.Identifier(grant.role)
            _attempt(connection, sql.SQL("SET ROLE {}").format(role), what, notes)
        _attempt(connection, grant.statement, what, notes)
        connection.execute("RESET ROLE")


def _rights(properties: DatabaseProperties) -> Sequence[DatabaseRight]:
    """Also as an earlier version noted them, without who granted them."""
    if properties.grants:
        return properties.grants
    return [
        DatabaseRight("", right, is_grantable=False, by_owner=True, grantee=None if grantee == "public" else grantee)
        for grantee, rights in properties.rights.items()
        for right in rights
    ]


def _attempt(connection: Connection[Any], statement: sql.Composed, what: str, notes: list[str]) -> None:
    try:
        connection.execute(statement)
    except psycopg.DatabaseError as error:
        if connection.broken:
            raise
        notes.append(f"{what} could not be given: {error.diag.message_primary}")


def _run(connection: Connection[Any], statement: LiteralString, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
