"""Roles, the database and its grants: what the server has, and the statements that make it what it should be.

The application never owns a table: the owner can't log in, and whatever the migrator creates belongs to the owner.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, LiteralString

from psycopg import Connection as SyncConnection
from psycopg import sql
from psycopg.rows import dict_row, tuple_row

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.postgres import logins, scram
from medianest_operator.postgres.rows import only_async
from medianest_operator.postgres.sessions import Connection
from medianest_operator.postgres.trusted import UntrustedContent


@dataclass(frozen=True)
class LiveRole:
    """A role as pg_authid has it."""

    can_login: bool
    verifier: str | None
    config: tuple[str, ...]
    member_of: frozenset[str]
    bypasses_row_security: bool = False


@dataclass(frozen=True)
class WantedRole:
    """A role as it should be. `password` None and not `by_certificate`: it can't log in."""

    name: str
    password: str | None = None
    member_of: frozenset[str] = frozenset()
    acts_as: str | None = None
    """The role that its sessions take on at login."""
    reads_everything: bool = False
    """Reads all rows of all tables, whatever their policies, and writes none."""
    by_certificate: bool = False
    """It logs in without a password; pg_hba lets it in by the controller's certificate alone."""


def wanted_roles(spec: DatabaseSpec, passwords: Mapping[str, str]) -> list[WantedRole]:
    """The roles of a database; `passwords` by the suffix of the login role."""
    owner = spec.database.owner

    def login(role: logins.LoginRole, *groups: str, acts_as: str | None = None) -> WantedRole:
        return WantedRole(logins.role_name(spec, role), passwords[role.suffix], frozenset(groups), acts_as)

    return [
        WantedRole(owner),
        login(logins.APP),
        login(logins.READ_ONLY),
        # To end the sessions of writers that a run locks out, and to see who keeps it waiting.
        login(logins.MIGRATOR, owner, "pg_signal_backend", "pg_read_all_stats", acts_as=owner),
        login(logins.MONITOR, "pg_monitor"),
        replace(login(logins.BACKUP, "pg_read_all_data", "pg_read_all_stats"), reads_everything=True),
        WantedRole(logins.controller_name(owner), by_certificate=True),
    ]


_READER_HERE: LiteralString = """
SELECT r.rolname FROM pg_catalog.pg_database d
  JOIN pg_catalog.pg_roles r ON r.rolname = pg_catalog.pg_get_userbyid(d.datdba) || %s
 WHERE d.datname = pg_catalog.current_database()
"""


def let_reader_in(connection: SyncConnection[Any], *names: tuple[str, str]) -> None:
    """Let the controller read tables that this session has just made, by schema and name. It does nothing on a server
    that isn't the operator's.

    Raises:
        psycopg.Error: as the server says.
    """
    row = connection.cursor(row_factory=tuple_row).execute(_READER_HERE, (f"_{logins.CONTROLLER_SUFFIX}",)).fetchone()
    if row is None:
        return
    role = sql.Identifier(row[0])
    for schema, name in names:
        if schema != "public":
            connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), role))
        connection.execute(sql.SQL("GRANT SELECT ON TABLE {} TO {}").format(sql.Identifier(schema, name), role))


def role_statements(wanted: WantedRole, live: LiveRole | None) -> list[sql.Composed]:
    """What to run so that the live role is the wanted one; nothing where it is."""
    name = sql.Identifier(wanted.name)
    statements = []
    login = wanted.password is not None or wanted.by_certificate
    if live is None:
        statements.append(sql.SQL("CREATE ROLE {} {}").format(name, sql.SQL("LOGIN" if login else "NOLOGIN")))
    elif live.can_login != login:
        statements.append(sql.SQL("ALTER ROLE {} {}").format(name, sql.SQL("LOGIN" if login else "NOLOGIN")))
    if wanted.password is not None and not scram.matches(wanted.password, live.verifier if live else None):
        verifier = sql.Literal(scram.verifier(wanted.password))
        statements.append(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, verifier))
    for group in sorted(wanted.member_of - (live.member_of if live else frozenset())):
        statements.append(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), name))
    if wanted.by_certificate and live is not None:
        # Whoever logs in may grant membership in its own role (PostgreSQL 15 manual, GRANT); this role takes none.
        for group in sorted(live.member_of - wanted.member_of):
            statements.append(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(group), name))
    if wanted.acts_as and (live is None or f"role={wanted.acts_as}" not in live.config):
        statements.append(sql.SQL("ALTER ROLE {} SET role = {}").format(name, sql.Literal(wanted.acts_as)))
    if wanted.reads_everything:
        # pg_dump refuses to leave out rows that a policy hides (PostgreSQL manual, pg_dump, --enable-row-security).
        if live is None or not live.bypasses_row_security:
            statements.append(sql.SQL("ALTER ROLE {} BYPASSRLS").format(name))
        if live is None or "default_transaction_read_only=on" not in live.config:
            statements.append(sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(name))
    return statements


_LIVE_ROLES: LiteralString = """
SELECT r.rolname AS name, r.rolcanlogin AS can_login, r.rolpassword AS verifier,
       r.rolbypassrls AS bypasses,
       coalesce((SELECT s.setconfig FROM pg_db_role_setting s
                 WHERE s.setrole = r.oid AND s.setdatabase = 0), '{}') AS config,
       coalesce((SELECT array_agg(g.rolname::text) FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                 WHERE m.member = r.oid), '{}') AS member_of
FROM pg_authid r WHERE r.rolname = ANY(%s)
"""


async def reconcile_roles(connection: Connection, wanted: list[WantedRole]) -> list[str]:
    """Make the roles what they should be. Returns the names of those that there were, and that changed."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_LIVE_ROLES, [[role.name for role in wanted]])
        live = {
            row["name"]: LiveRole(
                row["can_login"], row["verifier"], tuple(row["config"]), frozenset(row["member_of"]), row["bypasses"]
            )
            for row in await cursor.fetchall()
        }
    changed = []
    for role in wanted:
        statements = role_statements(role, live.get(role.name))
        for statement in statements:
            await connection.execute(statement)
        if statements and role.name in live:
            changed.append(role.name)
    return changed


_CONNECTS: LiteralString = """
SELECT d.datacl IS NULL,
       coalesce((SELECT array_agg(g.rolname::text) FROM aclexplode(d.datacl) x JOIN pg_roles g ON g.oid = x.grantee
                  WHERE x.privilege_type = 'CONNECT'), '{}')
  FROM pg_database d WHERE d.datname = %s
"""


async def ensure_connect(connection: Connection, spec: DatabaseSpec, name: str, *, replace: bool = False) -> bool:
    """Let the login roles, and only them, into a database: the application's, or one that takes its place.

    A database that a migration locks writers out of is left alone: there the application has no right to connect.
    Returns whether anything was missing.

    Args:
        replace: the database is nobody's yet, so nobody is locked out from it.
    """
    cursor = await connection.execute(_CONNECTS, [name])
    row = await cursor.fetchone()
    if row is None:
        return False
    untouched, may_connect = row[0], set(row[1])
    reader = logins.controller_name(spec.database.owner)
    if not untouched and reader not in may_connect:
        # It writes nothing, so a migration that locks writers out doesn't lock it out either.
        await connection.execute(
            sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(name), sql.Identifier(reader))
        )
    everybody = {logins.role_name(spec, role) for role in logins.LOGIN_ROLES}
    if everybody <= may_connect or not (replace or untouched or logins.role_name(spec, logins.APP) in may_connect):
        return False
    names = sql.SQL(", ").join(sql.Identifier(login) for login in sorted(everybody))
    database = sql.Identifier(name)
    async with connection.transaction():
        await connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
        await connection.execute(sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {}").format(database, names))
        await connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, sql.Identifier(reader)))
    return True


# In the application's database as the superuser: catalogs and built-in functions alone, each name qualified. Operators
# are PostgreSQL's own because the session's search path holds nothing else (`sessions`).
_GRANTED: LiteralString = """
SELECT pg_catalog.to_regnamespace('public') IS NOT NULL,
       pg_catalog.count(*)
FROM pg_catalog.pg_default_acl a JOIN pg_catalog.pg_roles o ON o.oid = a.defaclrole,
     pg_catalog.aclexplode(a.defaclacl) x
JOIN pg_catalog.pg_roles g ON g.oid = x.grantee
WHERE o.rolname = %(owner)s AND a.defaclnamespace = pg_catalog.to_regnamespace('public')
  AND ((a.defaclobjtype = 'r' AND g.rolname = %(app)s AND x.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE'))
    OR (a.defaclobjtype = 'r' AND g.rolname = %(readonly)s AND x.privilege_type = 'SELECT')
    OR (a.defaclobjtype = 'S' AND g.rolname = %(app)s AND x.privilege_type IN ('USAGE', 'SELECT'))
    OR (a.defaclobjtype = 'S' AND g.rolname = %(readonly)s AND x.privilege_type = 'SELECT'))
"""
_GRANTS_EXPECTED = 4 + 1 + 2 + 1


async def ensure_grants(connection: Connection, spec: DatabaseSpec) -> bool:
    """Grant the login roles what they need in the database, on what there is and on what the owner will create.

    `connection` is to the application's database, as the superuser. No statement calls what the application defines:
    GRANT and ALTER DEFAULT PRIVILEGES change catalogs only, and event triggers are a superuser's to make.

    Returns whether anything was missing.

    Raises:
        UntrustedContent: there is no schema `public` to grant rights in.
    """
    app, readonly = logins.role_name(spec, logins.APP), logins.role_name(spec, logins.READ_ONLY)
    cursor = await connection.execute(_GRANTED, {"owner": spec.database.owner, "app": app, "readonly": readonly})
    row = await only_async(cursor)
    if not row[0]:
        raise UntrustedContent(
            "The database has no schema public, in which MediaNest's tables are; somebody renamed or dropped it. Rename"
            " it back, or create it and grant the application's roles USAGE on it."
        )
    let_in = await _let_reader_in(connection, logins.controller_name(spec.database.owner))
    if row[1] == _GRANTS_EXPECTED:
        return let_in
    names = {
        "owner": sql.Identifier(spec.database.owner),
        "app": sql.Identifier(app),
        "readonly": sql.Identifier(readonly),
    }
    async with connection.transaction():
        for statement in _GRANTS:
            await connection.execute(sql.SQL(statement).format(**names))
    return True


_WITHHELD: LiteralString = """
SELECT n.nspname, c.relname
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN ROWS FROM (pg_catalog.unnest(%(schemas)s::pg_catalog.name[]),
                  pg_catalog.unnest(%(names)s::pg_catalog.name[])) w(schema, name)
    ON n.nspname = w.schema AND c.relname = w.name
 WHERE NOT (pg_catalog.has_schema_privilege(%(reader)s, n.oid, 'USAGE')
            AND pg_catalog.has_table_privilege(%(reader)s, c.oid, 'SELECT'))
"""


async def _let_reader_in(connection: Connection, reader: str) -> bool:
    """Where nobody did so yet: in a database of an older operator, or one that was restored."""
    schemas, names = zip(*naming.READ_BY_CONTROLLER, strict=True)
    values = {"schemas": list(schemas), "names": list(names), "reader": reader}
    withheld = await (await connection.execute(_WITHHELD, values)).fetchall()
    async with connection.transaction():
        for schema, name in withheld:
            table, role = sql.Identifier(schema, name), sql.Identifier(reader)
            await connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), role))
            await connection.execute(sql.SQL("GRANT SELECT ON TABLE {} TO {}").format(table, role))
    return bool(withheld)


_GRANTS: tuple[LiteralString, ...] = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {app}",
    "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {readonly}",
    "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {app}",
    "GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {readonly}",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public "
    "GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {app}",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT SELECT ON TABLES TO {readonly}",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {app}",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT SELECT ON SEQUENCES TO {readonly}",
)
