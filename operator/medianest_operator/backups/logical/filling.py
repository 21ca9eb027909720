"""Fill an empty database from a dump, with all that the role at work may bring back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString

from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator.backups.logical.dump import DumpError, restore_archive
from medianest_operator.backups.verification.archive import Archive, write_entries
from medianest_operator.postgres.catalog import Catalog
from medianest_operator.postgres.rows import only
from medianest_operator.results.backup import Reason, RunFailure

_TARGET: LiteralString = """
SELECT pg_catalog.pg_get_userbyid(d.datdba)::text, pg_catalog.pg_has_role(session_user, d.datdba, 'MEMBER'),
       (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user),
       pg_catalog.pg_is_in_recovery()
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
# An extension's own objects don't count: a template may bring extensions.
_NOT_EMPTY: LiteralString = """
SELECT n.nspname || '.' || c.relname
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
                      AND d.deptype = 'e')
 ORDER BY 1 LIMIT 3
"""
_DEFAULT_RIGHTS: LiteralString = "SELECT DISTINCT pg_get_userbyid(defaclrole)::text FROM pg_catalog.pg_default_acl"
_ROLES: LiteralString = "SELECT r FROM unnest(%s::text[]) r WHERE r NOT IN (SELECT rolname FROM pg_catalog.pg_roles)"
# The restore acts as the database's owner.
_NO_MEMBER: LiteralString = """
SELECT rolname FROM pg_catalog.pg_roles
 WHERE rolname = ANY(%s) AND NOT pg_catalog.pg_has_role(%s::name, oid, 'MEMBER')
"""
_EXTENSIONS: LiteralString = """
SELECT x, e.extname IS NOT NULL, a.name IS NOT NULL,
       coalesce((SELECT bool_or(v.trusted) FROM pg_catalog.pg_available_extension_versions v WHERE v.name = x), false)
  FROM unnest(%s::text[]) x LEFT JOIN pg_catalog.pg_extension e ON e.extname = x
  LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = x
"""
_DEFAULTS_FOR = re.compile(r"defaults for (.+?)(?: in .+)? \w$")
_ENTRY = re.compile(r"\d+; \d+ \d+ (?P<what>.+)")


@dataclass(frozen=True)
class Target:
    """The database that is filled.

    Attributes:
        owner: the role that owns it.
        is_superuser: whether the session's role is one.
    """

    connection: Connection[Any]
    environment: Mapping[str, str]
    owner: str
    is_superuser: bool


@dataclass
class Plan:
    """What is restored.

    Attributes:
        entries: of the dump's table of contents.
        privileges: with owners and rights.
        notes: what isn't restored, in words.
        left_out: labels of objects that aren't.
        options: pg_restore's.
    """

    entries: list[str]
    privileges: bool
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)


def inspect(connection: Connection[Any], environment: Mapping[str, str]) -> Target:
    """Look whether a database can be filled.

    Raises:
        RunFailure: it isn't empty, or the role may not.
        psycopg.Error: the connection is lost.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    owner, is_member, is_superuser, in_recovery = only(cursor.execute(_TARGET))
    info = connection.info
    if in_recovery:
        raise RunFailure(Reason.TARGET_UNFIT, f"{info.host} is a replica: restore on the primary", transient=True)
    if not is_member:
        raise RunFailure(
            Reason.PERMISSION_DENIED,
            f"Role {info.user} is not a member of {owner}, which owns database {info.dbname}: GRANT {owner} TO"
            f" {info.user}.",
        )
    found = [line[0] for line in cursor.execute(_NOT_EMPTY).fetchall()]
    if found:
        raise RunFailure(
            Reason.TARGET_NOT_EMPTY,
            f"Database {info.dbname} is not empty, it has {', '.join(found)}. Restore into a new one (--create makes"
            " it); nothing was changed.",
        )
    return Target(connection, environment, owner, is_superuser)


def plan(target: Target, archive: Archive) -> Plan:
    """What of a dump can be restored by this role.

    Raises:
        RunFailure: an extension isn't there.
        psycopg.Error: the connection is lost.
    """
    missing = missing_roles(target, archive)
    made = Plan([], privileges=not missing)
    if made.privileges:
        _check_default_rights(target)
    if missing:
        shown = ", ".join(missing[:5])
        made.notes.append(
            f"everything belongs to {target.owner} and no rights were granted, because role {shown} is not here"
            " (or can't be acted for)"
        )
        made.options += ["--no-owner", "--no-privileges"]
    if missing or not target.is_superuser:
        made.options.append(f"--role={target.owner}")
    refused = _refused_extensions(target, archive)
    for name in refused:
        made.notes.append(f"extension {name} was left out: only a superuser may make it")
        made.left_out.append(f"extension {name}")
    for line in archive.entries:
        if not _left_out(line, target, refused, archive.catalog, made):
            made.entries.append(line)
    return made


def fill(target: Target, archive: Archive, made: Plan, jobs: int) -> None:
    """Restore; at the end the connection acts as the database's owner, and the server knows the tables' statistics.

    Raises:
        RunFailure: an error: what is there then is no copy.
        psycopg.Error: as the server says.
    """
    try:
        restore_archive(archive.path, target.environment, write_entries(archive, made.entries), jobs, made.options)
    except DumpError as error:
        raise RunFailure(Reason.RESTORE_FAILED, f"{error}", error.transient) from error
    act_as_owner(target)
    target.connection.execute("ANALYZE")


def act_as_owner(target: Target) -> None:
    """Have the rights of the database's owner from now on."""
    if not target.is_superuser:
        target.connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(target.owner)))


def missing_roles(target: Target, archive: Archive) -> list[str]:
    """Roles without which owners and rights can't come back as they were: that aren't there, or own something and
    can't be acted for."""
    cursor = target.connection.cursor(row_factory=tuple_row)
    needed = [role.name for role in archive.manifest.roles]
    missing = [row[0] for row in cursor.execute(_ROLES, (needed,)).fetchall()]
    if target.is_superuser:
        return missing
    acted_for = (_owners(archive.catalog), target.owner)
    return missing + [row[0] for row in cursor.execute(_NO_MEMBER, acted_for).fetchall()]


def _check_default_rights(target: Target) -> None:
    """They would come on top of the rights that the dump grants."""
    rows = target.connection.cursor(row_factory=tuple_row).execute(_DEFAULT_RIGHTS).fetchall()
    if rows:
        raise RunFailure(
            Reason.TARGET_NOT_EMPTY,
            f"Database {target.connection.info.dbname} has default privileges for objects of {rows[0][0]}, which would"
            " add to the backup's own rights. Restore into a new database (--create makes it); nothing was changed.",
        )


def _owners(catalog: Catalog | None) -> list[str]:
    if catalog is None:
        return []
    owners = {str(item.attributes["owner"]) for item in catalog.objects.values() if "owner" in item.attributes}
    for item in catalog.of_kind("grants"):
        # Whose objects get default privileges: only that role itself may say so.
        if (found := _DEFAULTS_FOR.match(item.name)) is not None:
            owners.add(found[1])
    # The schema public belongs to pg_database_owner, which is whoever owns the database.
    return sorted(owners - {"pg_database_owner"})


def _refused_extensions(target: Target, archive: Archive) -> list[str]:
    """Those that only a superuser may make."""
    wanted = [name for name in archive.manifest.extensions if name != "plpgsql"]
    refused = []
    for name, is_there, is_known, trusted in target.connection.cursor(row_factory=tuple_row).execute(
        _EXTENSIONS, (wanted,)
    ):
        if is_there:
            continue
        if not is_known:
            raise RunFailure(
                Reason.TARGET_UNFIT,
                f"The server doesn't have the extension {name}, which the backup needs: install it.",
            )
        if not trusted and not target.is_superuser:
            refused.append(name)
    return refused


def _left_out(line: str, target: Target, refused: Sequence[str], catalog: Catalog | None, made: Plan) -> bool:
    found = _ENTRY.match(line)
    if found is None:
        return False
    what = found["what"]
    # Belongs to the extension's owner, and comes with the extension anyway.
    if what.startswith("COMMENT - EXTENSION "):
        return True
    if any(what.startswith(f"EXTENSION - {name} ") for name in refused):
        return True
    if target.is_superuser:
        return False
    if what.startswith("EVENT TRIGGER - "):
        made.notes.append(f"{what.rsplit(' ', 1)[0].lower()} was left out: only a superuser may make it")
        return True
    if what.startswith("PUBLICATION - ") and catalog is not None:
        name = what.removeprefix("PUBLICATION - ").rsplit(" ", 1)[0]
        for item in catalog.of_kind("publication"):
            if item.name.strip('"') == name and item.attributes.get("all_tables"):
                made.notes.append(f"publication {name} was left out: only a superuser may publish all tables")
                made.left_out.append(item.label)
                return True
    return False
