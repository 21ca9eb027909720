"""Roles, the database and its grants: what the server has, and the statements that make it what it should be.

The application never owns a table: the owner can't log in, and whatever the migrator creates belongs to the owner.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql
from psycopg.rows import dict_row

from medianest_operator.api.database import DatabaseSpec
from medianest_operator.postgres import scram
from medianest_operator.postgres.sessions import Connection
from medianest_operator.resources import secrets


@dataclass(frozen=True)
class LiveRole:
    """A role as pg_authid has it."""

    can_login: bool
    verifier: str | None
    config: tuple[str, ...]
    member_of: frozenset[str]


@dataclass(frozen=True)
class WantedRole:
    """A role as it should be. `password` None: it can't log in."""

    name: str
    password: str | None = None
    member_of: frozenset[str] = frozenset()
    acts_as: str | None = None
    """The role that its sessions take on at login."""


def wanted_roles(spec: DatabaseSpec, passwords: Mapping[str, str]) -> list[WantedRole]:
    """The roles of a database; `passwords` by the suffix of the login role."""
    owner = spec.database.owner

    def login(role: secrets.LoginRole, *groups: str, acts_as: str | None = None) -> WantedRole:
        return WantedRole(secrets.role_name(spec, role), passwords[role.suffix], frozenset(groups), acts_as)

    return [
        WantedRole(owner),
        login(secrets.APP),
        login(secrets.READ_ONLY),
        # To end the sessions of writers that a run holds off, and to see who keeps it waiting.
        login(secrets.MIGRATOR, owner, "pg_signal_backend", "pg_read_all_stats", acts_as=owner),
        login(secrets.MONITOR, "pg_monitor"),
    ]


def role_statements(wanted: WantedRole, live: LiveRole | None) -> list[sql.Composed]:
    """What to run so that the live role is the wanted one; nothing where it is."""
    name = sql.Identifier(wanted.name)
    statements = []
    login = wanted.password is not None
    if live is None:
        statements.append(sql.SQL("CREATE ROLE {} {}").format(name, sql.SQL("LOGIN" if login else "NOLOGIN")))
    elif live.can_login != login:
        statements.append(sql.SQL("ALTER ROLE {} {}").format(name, sql.SQL("LOGIN" if login else "NOLOGIN")))
    if wanted.password is not None and not scram.matches(wanted.password, live.verifier if live else None):
        verifier = sql.Literal(scram.verifier(wanted.password))
        statements.append(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, verifier))
    for group in sorted(wanted.member_of - (live.member_of if live else frozenset())):
        statements.append(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), name))
    if wanted.acts_as and (live is None or f"role={wanted.acts_as}" not in live.config):
        statements.append(sql.SQL("ALTER ROLE {} SET role = {}").format(name, sql.Literal(wanted.acts_as)))
    return statements


_LIVE_ROLES: LiteralString = """
SELECT r.rolname AS name, r.rolcanlogin AS can_login, r.rolpassword AS verifier,
       coalesce((SELECT s.setconfig FROM pg_db_role_setting s
                 WHERE s.setrole = r.oid AND s.setdatabase = 0), '{}') AS config,
       coalesce((SELECT array_agg(g.rolname::text) FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                 WHERE m.member = r.oid), '{}') AS member_of
FROM pg_authid r WHERE r.rolname = ANY(%s)
"""


async def reconcile_roles(connection: Connection, wanted: list[WantedRole]) -> list[str]:
    """Make the roles what they should be. Returns the names of those that changed."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_LIVE_ROLES, [[role.name for role in wanted]])
        live = {
            row["name"]: LiveRole(row["can_login"], row["verifier"], tuple(row["config"]), frozenset(row["member_of"]))
            for row in await cursor.fetchall()
        }
    changed = []
    for role in wanted:
        statements = role_statements(role, live.get(role.name))
        for statement in statements:
            await connection.execute(statement)
        if statements:
            changed.append(role.name)
    return changed


async def ensure_database(connection: Connection, spec: DatabaseSpec) -> bool:
    """Create the application's database where it is missing. `connection` is to another one. Returns whether it was."""
    cursor = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [spec.database.name])
    if await cursor.fetchone():
        return False
    await connection.execute(
        sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(
            sql.Identifier(spec.database.name), sql.Identifier(spec.database.owner)
        )
    )
    return True


_GRANTED: LiteralString = """
SELECT count(*) FROM pg_default_acl a JOIN pg_roles o ON o.oid = a.defaclrole, aclexplode(a.defaclacl) x
JOIN pg_roles g ON g.oid = x.grantee
WHERE o.rolname = %(owner)s AND a.defaclnamespace = 'public'::regnamespace
  AND ((a.defaclobjtype = 'r' AND g.rolname = %(app)s AND x.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE'))
    OR (a.defaclobjtype = 'r' AND g.rolname = %(readonly)s AND x.privilege_type = 'SELECT')
    OR (a.defaclobjtype = 'S' AND g.rolname = %(app)s AND x.privilege_type IN ('USAGE', 'SELECT'))
    OR (a.defaclobjtype = 'S' AND g.rolname = %(readonly)s AND x.privilege_type = 'SELECT'))
"""
_GRANTS_EXPECTED = 4 + 1 + 2 + 1


async def ensure_grants(connection: Connection, spec: DatabaseSpec) -> bool:
    """Grant the login roles what they need, on what there is and on what the owner will create.

    `connection` is to the application's database. Returns whether anything was missing.
    """
    app, readonly = secrets.role_name(spec, secrets.APP), secrets.role_name(spec, secrets.READ_ONLY)
    cursor = await connection.execute(_GRANTED, {"owner": spec.database.owner, "app": app, "readonly": readonly})
    row = await cursor.fetchone()
    if row and row[0] == _GRANTS_EXPECTED:
        return False
    names = {
        "database": sql.Identifier(spec.database.name),
        "owner": sql.Identifier(spec.database.owner),
        "app": sql.Identifier(app),
        "readonly": sql.Identifier(readonly),
        "logins": sql.SQL(", ").join(sql.Identifier(secrets.role_name(spec, role)) for role in secrets.LOGIN_ROLES),
    }
    async with connection.transaction():
        for statement in _GRANTS:
            await connection.execute(sql.SQL(statement).format(**names))
    return True


_GRANTS: tuple[LiteralString, ...] = (
    "REVOKE ALL ON DATABASE {database} FROM PUBLIC",
    "GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {logins}",
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
