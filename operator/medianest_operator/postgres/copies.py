"""A database's copy in a throwaway server: everything in it belongs to whom it belonged, and nobody is a superuser.

What only a superuser can do is done while the database is still empty: the roles, the schemas, the extensions of a
fixed list. From then on the code that a dump carries may run, and it runs as ordinary roles: a login of its own
restores, another one reads the evidence. `postgres` and whoever else was a superuser are ordinary roles here that are
members of all others. At the end the superuser can't log in any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator.postgres.rows import only
from medianest_operator.postgres.setting_values import name_and_value
from medianest_operator.postgres.throwaway import Login, ThrowawayServer

MAINTENANCE: Final = "postgres"
PUBLIC: Final = "public"
EXTENSIONS: Final = frozenset({
    "amcheck", "autoinc", "bloom", "btree_gin", "btree_gist", "citext", "cube", "dblink", "dict_int", "dict_xsyn",
    "earthdistance", "fuzzystrmatch", "hstore", "hypopg", "insert_username", "intagg", "intarray", "isn", "lo", "ltree",
    "moddatetime", "pg_buffercache", "pg_freespacemap", "pg_stat_statements", "pg_trgm", "pg_visibility", "pgcrypto",
    "pgrowlocks", "pgstattuple", "plpgsql", "refint", "seg", "sslinfo", "tablefunc", "tcn", "tsm_system_rows",
    "tsm_system_time", "unaccent", "uuid-ossp", "xml2",
})  # fmt: skip
"""What a copy may have: contrib's, as far as a schema can need it and it opens no way to files (PostgreSQL manual,
appendix F), and hypopg."""
# Predefined roles that lead to no program, no file and no other role (PostgreSQL manual, 22.5).
_GROUPS: Final = frozenset({
    "pg_checkpoint", "pg_monitor", "pg_read_all_data", "pg_read_all_settings", "pg_read_all_stats",
    "pg_signal_backend", "pg_stat_scan_tables", "pg_write_all_data",
})  # fmt: skip
_ATTRIBUTES: Final = frozenset({"LOGIN", "BYPASSRLS", "CREATEDB"})
READING: Final = {
    "search_path": "pg_catalog,pg_temp",
    "row_security": "off",
    "default_transaction_read_only": "on",
}
"""What the login that reads the evidence begins with."""
WRITING: Final = {"client_min_messages": "error", "default_transaction_read_only": "off"}
"""What the login that restores begins with, whatever the database's owner set for all sessions."""
_AMCHECK: Final = "amcheck"
_CHECKS: tuple[LiteralString, ...] = (
    "{}.bt_index_check(pg_catalog.regclass, boolean)",
    "{}.verify_heapam(pg_catalog.regclass, boolean, boolean, text, bigint, bigint)",
)


@dataclass(frozen=True)
class RoleCopy:
    """A role that a copy needs: its name, how it logs in, its groups and settings.

    Attributes:
        attributes: `LOGIN`, `NOINHERIT` and the like, as in `CREATE ROLE`; those of the role where it comes from.
        member_of: the roles that it is a member of.
        settings: `ALTER ROLE ... SET` for all databases, as `name=value`.
    """

    name: str
    attributes: tuple[str, ...] = ()
    member_of: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatabaseCopy:
    """A database that is to be copied, as far as it isn't in its dump.

    Attributes:
        name: its own.
        owner: the role that owns it.
        encoding: its own, with `collate` and `ctype`.
        icu_locale: where ICU is its provider.
        settings: `ALTER DATABASE ... SET` and, by role, `ALTER ROLE ... IN DATABASE ... SET`: the role or `None`, and
            `name=value`.
    """

    name: str
    owner: str
    encoding: str
    collate: str
    ctype: str
    icu_locale: str | None = None
    settings: tuple[tuple[str | None, tuple[str, ...]], ...] = ()


@dataclass
class Room:
    """A copy that is being made.

    Attributes:
        database: what is copied.
        restorer: the login that restores: a member of every role, and no superuser.
        reader: the login that reads everything and writes nothing.
        brought: extensions that the copy has for its own use.
        schemas: with their owners.
    """

    server: ThrowawayServer
    database: DatabaseCopy
    restorer: Login
    reader: Login
    holder: str
    _login: Login | None = None
    brought: tuple[str, ...] = ()
    schemas: Mapping[str, str] = field(default_factory=dict)
    roles: Sequence[RoleCopy] = ()

    @property
    def login(self) -> Login:
        """The role that a run logs in as, with a password.

        Raises:
            LookupError: the copy was made for no run.
        """
        if self._login is None:
            raise LookupError("the copy was made without a role that a run logs in as")
        return self._login

    def environment(self) -> dict[str, str]:
        """libpq's variables for whoever restores."""
        return self.server.environment(self.database.name, self.restorer)

    def connect(self, login: Login, settings: Mapping[str, str] | None = None) -> Connection[Any]:
        """A connection to the copy, in autocommit.

        Raises:
            psycopg.OperationalError: the server is gone.
        """
        return self.server.connect(self.database.name, login, settings)

    def connect_reader(self) -> Connection[Any]:
        """A connection that reads the evidence."""
        return self.connect(self.reader, READING)


def prepare(
    server: ThrowawayServer,
    database: DatabaseCopy,
    roles: Sequence[RoleCopy],
    schemas: Mapping[str, str],
    extensions: Mapping[str, str],
    login: str | None = None,
) -> Room:
    """Make an empty copy: roles, database, schemas, extensions; what comes next needs no superuser.

    Until `settle`, every role is a member of the one that holds the database and its schemas: whoever owns something
    needs the right to create in its schema at the moment when it becomes his (PostgreSQL manual, ALTER TABLE), whatever
    rights are granted later.

    Args:
        schemas: the owner of each, except `public`'s where it is the usual one.
        extensions: of `EXTENSIONS`, and the schema of each.
        login: the role that a run logs in as.

    Raises:
        psycopg.Error: an extension is not installed here, a collation isn't known.
    """
    room = Room(server, database, Login.new(), Login.new(), Login.new().name, schemas=schemas, roles=roles)
    names = {role.name for role in roles}
    needed = ({database.owner, *schemas.values(), *([login] if login else [])} - names) - {"pg_database_owner"}
    room.roles = [*roles, *(RoleCopy(name, ("SUPERUSER", "LOGIN")) for name in sorted(needed))]
    with server.connect(MAINTENANCE, server.admin) as admin:
        _make_roles(admin, room)
        if login is not None:
            room._login = Login.new(login)
            _run(admin, "ALTER ROLE {} LOGIN PASSWORD {}", login, sql.Literal(room.login.verifier()))
        _make_database(admin, room)
    with server.connect(database.name, server.admin) as admin:
        for name in schemas:
            if name != PUBLIC:
                _run(admin, "CREATE SCHEMA {} AUTHORIZATION {}", name, room.holder)
        for name, schema in extensions.items():
            _run(admin, "CREATE EXTENSION IF NOT EXISTS {} SCHEMA {} CASCADE", name, schema)
        _bring_checks(admin, room, extensions, room.reader.name)
    return room


def prepare_candidate(
    server: ThrowawayServer, database: DatabaseCopy, roles: Sequence[RoleCopy], extensions: Mapping[str, str]
) -> Room:
    """Make an empty database as the operator makes one for a restore in place, with those extensions that need a
    superuser: whoever restores acts for its owner alone.

    Args:
        extensions: of `EXTENSIONS`, and the schema of each.

    Raises:
        psycopg.Error: an extension is not installed here, a collation isn't known.
    """
    room = Room(server, database, Login.new(), Login.new(), database.owner, roles=roles)
    with server.connect(MAINTENANCE, server.admin) as admin:
        names = {role.name for role in roles} | {database.owner}
        for name in sorted(names):
            _run(admin, "CREATE ROLE {}", name)
        for role in roles:
            for group in role.member_of:
                if group in names or group in _GROUPS:
                    _run(admin, "GRANT {} TO {}", group, role.name)
        _run(admin, "CREATE ROLE {} LOGIN PASSWORD {}", room.restorer.name, sql.Literal(room.restorer.verifier()))
        _run(admin, "GRANT {} TO {}", database.owner, room.restorer.name)
        _make_database(admin, room)
    with server.connect(database.name, server.admin) as admin:
        for name, schema in extensions.items():
            if schema not in (PUBLIC, "pg_catalog"):
                _run(admin, "CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}", schema, database.owner)
            _run(admin, "CREATE EXTENSION IF NOT EXISTS {} SCHEMA {} CASCADE", name, schema)
        _bring_checks(admin, room, extensions, room.restorer.name, database.owner)
    return room


def settle(room: Room) -> None:
    """Give the database, its schemas and its settings to whom they belong, once everything in it is restored. Rights
    are granted after that.

    Every statement names roles, schemas and the database alone, so that nothing of the dump is run by it.

    Raises:
        psycopg.Error: as the server says.
    """
    with room.server.connect(MAINTENANCE, room.server.admin) as admin:
        _run(admin, "ALTER DATABASE {} OWNER TO {}", room.database.name, room.database.owner)
    with room.server.connect(room.database.name, room.server.admin, {"search_path": READING["search_path"]}) as admin:
        for name, owner in room.schemas.items():
            _run(admin, "ALTER SCHEMA {} OWNER TO {}", name, owner)
    with room.server.connect(MAINTENANCE, room.server.admin) as admin:
        for role in room.roles:
            _run(admin, "REVOKE {} FROM {}", room.holder, role.name)
            if "NOINHERIT" in role.attributes:
                _run(admin, "ALTER ROLE {} NOINHERIT", role.name)
            for setting in role.settings:
                _set(admin, "ALTER ROLE {} SET {} = {}", (role.name,), setting)
        for whose, settings in room.database.settings:
            for setting in settings:
                if whose is None:
                    _set(admin, "ALTER DATABASE {} SET {} = {}", (room.database.name,), setting)
                else:
                    _set(admin, "ALTER ROLE {} IN DATABASE {} SET {} = {}", (whose, room.database.name), setting)


def seal(room: Room) -> None:
    """Let nobody log in as the superuser any more; nothing needs it from now on.

    Raises:
        psycopg.Error: as the server says.
    """
    with room.server.connect(MAINTENANCE, room.server.admin) as admin:
        _run(admin, "ALTER ROLE {} NOLOGIN PASSWORD NULL", room.server.admin.name)


def _make_roles(admin: Connection[Any], room: Room) -> None:
    _run(admin, "CREATE ROLE {}", room.holder)
    for role in room.roles:
        words = [word for word in role.attributes if word in _ATTRIBUTES]
        if "SUPERUSER" in role.attributes and "BYPASSRLS" not in words:
            words.append("BYPASSRLS")
        _run(admin, "CREATE ROLE {} {}", role.name, sql.SQL(" ").join(sql.SQL(word) for word in words))
        _run(admin, "GRANT {} TO {}", room.holder, role.name)
    names = [role.name for role in room.roles]
    for role in room.roles:
        for group in role.member_of:
            if group in names or group in _GROUPS:
                _run(admin, "GRANT {} TO {}", group, role.name)
    for role in room.roles:
        if "SUPERUSER" in role.attributes:
            for group in [*sorted(_GROUPS), *(name for name in names if name != role.name)]:
                # A member of its own can't be its group as well.
                with contextlib.suppress(psycopg.errors.InvalidGrantOperation):
                    _run(admin, "GRANT {} TO {}", group, role.name)
    for login in (room.restorer, room.reader):
        verifier = sql.Literal(login.verifier())
        _run(admin, "CREATE ROLE {} LOGIN BYPASSRLS PASSWORD {}", login.name, verifier)
    for group in [room.holder, *names]:
        _run(admin, "GRANT {} TO {}", group, room.restorer.name)
    _run(admin, "GRANT pg_read_all_data TO {}", room.reader.name)


def _make_database(admin: Connection[Any], room: Room) -> None:
    wanted = room.database
    provider: sql.Composable = sql.SQL("")
    if wanted.icu_locale is not None:
        provider = sql.SQL("LOCALE_PROVIDER icu ICU_LOCALE {}").format(sql.Literal(wanted.icu_locale))
    statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {} {}")
    literals = (sql.Literal(text) for text in (wanted.encoding, wanted.collate, wanted.ctype))
    admin.execute(statement.format(sql.Identifier(wanted.name), sql.Identifier(room.holder), *literals, provider))


def _bring_checks(admin: Connection[Any], room: Room, extensions: Mapping[str, str], *readers: str) -> None:
    """amcheck, for who reads the copy; in pg_catalog, where nothing of the dump's own is, unless the dump has it."""
    schema = extensions.get(_AMCHECK, "pg_catalog")
    if _AMCHECK not in extensions:
        admin.execute("CREATE EXTENSION amcheck SCHEMA pg_catalog")
        room.brought = (_AMCHECK,)
    for function in _CHECKS:
        checked = sql.SQL(function).format(sql.Identifier(schema))
        for name in readers:
            _run(admin, "GRANT EXECUTE ON FUNCTION {} TO {}", checked, name)


def _set(admin: Connection[Any], statement: LiteralString, names: Iterable[str], setting: str) -> None:
    key, shown = name_and_value(setting)
    _run(admin, statement, *names, key, shown)


def _run(admin: Connection[Any], statement: LiteralString, *parts: str | sql.Composable) -> None:
    """A statement with names, or with what is SQL already, in its places."""
    composed = [sql.Identifier(part) if isinstance(part, str) else part for part in parts]
    admin.execute(sql.SQL(statement).format(*composed))


_ROLES: LiteralString = """
SELECT r.rolname::text,
       array_remove(ARRAY[CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN NOT r.rolinherit THEN 'NOINHERIT' END,
                          CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END, CASE WHEN r.rolcreatedb THEN 'CREATEDB' END,
                          'LOGIN'], NULL),
       coalesce((SELECT array_agg(g.rolname::text ORDER BY 1)
                   FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                  WHERE m.member = r.oid), '{}'),
       coalesce((SELECT s.setconfig FROM pg_catalog.pg_db_role_setting s
                  WHERE s.setrole = r.oid AND s.setdatabase = 0), '{}')
  FROM pg_catalog.pg_roles r WHERE r.rolname !~ '^pg_' ORDER BY 1
"""
_DATABASE: LiteralString = """
SELECT d.datname::text, pg_catalog.pg_get_userbyid(d.datdba)::text, pg_catalog.pg_encoding_to_char(d.encoding)::text,
       d.datcollate, d.datctype, pg_catalog.to_jsonb(d) ->> 'daticulocale'
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
_SETTINGS: LiteralString = """
SELECT CASE s.setrole WHEN 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(s.setrole)::text END, s.setconfig
  FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
 WHERE d.datname = pg_catalog.current_database() ORDER BY 1 NULLS FIRST
"""


def read_roles(connection: Connection[Any]) -> list[RoleCopy]:
    """The roles that a copy needs: with them its rights, policies and owners are the same."""
    rows = connection.cursor(row_factory=tuple_row).execute(_ROLES).fetchall()
    return [RoleCopy(name, tuple(words), tuple(groups), tuple(settings)) for name, words, groups, settings in rows]


def read_database(connection: Connection[Any]) -> DatabaseCopy:
    """The database that a connection is in, for a copy of it."""
    cursor = connection.cursor(row_factory=tuple_row)
    name, owner, encoding, collate, ctype, icu_locale = only(cursor.execute(_DATABASE))
    settings = tuple((whose, tuple(values)) for whose, values in cursor.execute(_SETTINGS).fetchall())
    return DatabaseCopy(name, owner, encoding, collate, ctype, icu_locale, settings)
