"""Fill an empty database from a dump, with all that the role at work may bring back."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, LiteralString

from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator.backups.logical.dump import DumpError
from medianest_operator.backups.logical.loading import load
from medianest_operator.backups.logical.toc import (
    Entry,
    LeftOut,
    choose,
    described,
    extensions_of,
    owners_of,
    pieces,
    read_toc,
)
from medianest_operator.backups.verification.archive import Archive
from medianest_operator.backups.verification.comparison import Contents, Losses, read_contents
from medianest_operator.postgres.contents import count_rows, read_tables
from medianest_operator.postgres.copies import PUBLIC
from medianest_operator.postgres.rows import only
from medianest_operator.results.backup import Reason, RunFailure

_TARGET: LiteralString = """
SELECT pg_catalog.pg_get_userbyid(d.datdba)::text, pg_catalog.pg_has_role(session_user, d.datdba, 'MEMBER'),
       pg_catalog.pg_is_in_recovery()
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
_SUPERUSER: LiteralString = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user"
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
_ROLES: LiteralString = "SELECT rolname::text, pg_catalog.pg_has_role(%s::name, oid, 'MEMBER') FROM pg_catalog.pg_roles"
_EXTENSIONS: LiteralString = """
SELECT x, e.extname IS NOT NULL, a.name IS NOT NULL,
       coalesce((SELECT bool_or(v.trusted) FROM pg_catalog.pg_available_extension_versions v WHERE v.name = x), false)
  FROM unnest(%s::text[]) x LEFT JOIN pg_catalog.pg_extension e ON e.extname = x
  LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = x
"""
_SCHEMAS: LiteralString = "SELECT nspname::text FROM pg_catalog.pg_namespace"
_RIGHTS: Final = frozenset({"ACL", "DEFAULT ACL"})
_SESSION = re.compile(r"^SET SESSION AUTHORIZATION", re.MULTILINE)
# As pg_dump writes what somebody has passed on.
_OF_OTHERS = re.compile(r"^SET SESSION AUTHORIZATION .*?^RESET SESSION AUTHORIZATION;$", re.MULTILINE | re.DOTALL)
_GRANT = re.compile(r"^(?:GRANT|REVOKE) .*?;$", re.MULTILINE | re.DOTALL)
_DEFAULTS_FOR = re.compile(r"ALTER DEFAULT PRIVILEGES FOR ROLE (\"(?:[^\"]|\"\")+\"|\S+)")


@dataclass(frozen=True)
class Target:
    """The database that is filled.

    Attributes:
        owner: the role that owns it.
        is_superuser: whether the session's role is one.
        inherit: pg_restore gets this process's environment as well.
    """

    connection: Connection[Any]
    environment: Mapping[str, str]
    owner: str
    is_superuser: bool
    inherit: bool = True


@dataclass
class Plan:
    """What is restored.

    Attributes:
        entries: of the dump's table of contents.
        losses: what can't be brought back.
        extensions: those among it that are lost only because a superuser has to make them beforehand, and their
            schemas.
        options: pg_restore's.
        rights: statements that grant the rest of what others have passed on.
    """

    entries: list[Entry]
    losses: Losses
    extensions: Mapping[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    rights: list[str] = field(default_factory=list)


RESTORE_ELSEWHERE = "Restore into a new one (--create makes it)"
IMPORT_ELSEWHERE = "Import into a new one (CREATE DATABASE)"


def inspect(
    connection: Connection[Any],
    environment: Mapping[str, str],
    *,
    inherit: bool = True,
    elsewhere: str = RESTORE_ELSEWHERE,
) -> Target:
    """Look whether a database can be filled.

    Args:
        elsewhere: what to do where it isn't empty, as a clause.

    Raises:
        RunFailure: it isn't empty, or the role may not.
        psycopg.Error: the connection is lost.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    owner = owner_of(connection)
    (is_superuser,) = only(cursor.execute(_SUPERUSER))
    found = [line[0] for line in cursor.execute(_NOT_EMPTY).fetchall()]
    if found:
        raise RunFailure(
            Reason.TARGET_NOT_EMPTY,
            f"Database {connection.info.dbname} is not empty, it has {', '.join(found)}. {elsewhere}; nothing was"
            " changed.",
        )
    return Target(connection, environment, owner, is_superuser, inherit)


def owner_of(connection: Connection[Any]) -> str:
    """The role that owns the database of a connection, which its own role is a member of.

    Raises:
        RunFailure: it isn't one, or the server is a replica.
        psycopg.Error: the connection is lost.
    """
    owner, is_member, in_recovery = only(connection.cursor(row_factory=tuple_row).execute(_TARGET))
    info = connection.info
    if in_recovery:
        raise RunFailure(Reason.TARGET_UNFIT, f"{info.host} is a replica: restore on the primary", transient=True)
    if not is_member:
        raise RunFailure(
            Reason.PERMISSION_DENIED,
            f"Role {info.user} is not a member of {owner}, which owns database {info.dbname}: GRANT {owner} TO"
            f" {info.user}.",
        )
    return str(owner)


def plan(target: Target, archive: Archive) -> Plan:
    """What of a dump this role can restore, and what is lost.

    A superuser can restore all of it, and another role all that needs none. Where the owner of something is not a role
    that the database's owner is a member of, it belongs to the latter afterwards.

    Raises:
        RunFailure: an extension isn't installed on the server, or default privileges are in the way.
        DumpError: the dump can't be read.
        psycopg.Error: the connection is lost.
    """
    entries = [entry for entry in read_toc(archive.path) if not entry.is_comment_on_extension]
    cursor = target.connection.cursor(row_factory=tuple_row)
    acted_for: dict[str, bool] = dict(cursor.execute(_ROLES, (target.owner,)).fetchall())
    named = {role.name for role in archive.manifest.roles}
    owners = owners_of(entries, named | acted_for.keys()) | named
    there = {name for (name,) in cursor.execute(_SCHEMAS).fetchall()} - {PUBLIC}
    entries = [entry for entry in entries if not (entry.kind == "SCHEMA" and entry.name(owners) in there)]
    left, extensions = _left_out(target, archive, entries, owners)
    kept = [entry for entry in entries if entry.number not in left.numbers]
    if missing := sorted(owners - acted_for.keys()):
        note = (
            f"everything belongs to {target.owner} and no rights were granted, because role {_listed(missing)} is not"
            " here"
        )
        losses = Losses(left, (note,), all_rights=True)
        kept = [entry for entry in kept if entry.kind not in _RIGHTS]
        return Plan(kept, losses, extensions, ["--no-owner", "--no-privileges", f"--role={target.owner}"])
    _check_default_rights(target)
    if target.is_superuser:
        return Plan(kept, Losses(left), extensions)
    options = [f"--role={target.owner}"]
    notes = []
    foreign = frozenset(name for name in owners_of(kept, owners) if not acted_for[name])
    if foreign:
        options.append("--no-owner")
        notes.append(f"what belonged to {_listed(sorted(foreign))} belongs to {target.owner}")
    refused = dict(_refused_rights(archive.path, kept, acted_for))
    if refused:
        shown = [described(entry, owners) for entry in kept if entry.number in refused]
        notes.append(f"what others granted was left out of {_listed(shown)}")
    losses = Losses(left, tuple(notes), foreign, some_rights=bool(refused))
    granted = [statement for statements in refused.values() for statement in statements]
    return Plan([entry for entry in kept if entry.number not in refused], losses, extensions, options, granted)


def fill(target: Target, archive: Archive, made: Plan, jobs: int) -> None:
    """Restore; at the end the connection acts as the database's owner, and the server knows the tables' statistics.

    Raises:
        RunFailure: an error: what is there then is no copy.
        psycopg.Error: as the server says.
    """
    try:
        load(archive.path, made.entries, target.environment, jobs, made.options, inherit=target.inherit)
    except DumpError as error:
        raise RunFailure(Reason.RESTORE_FAILED, f"{error}", error.transient) from error
    act_as_owner(target)
    for statement in made.rights:
        target.connection.execute(statement.encode())
    target.connection.execute("ANALYZE")


def act_as_owner(target: Target) -> None:
    """Have the rights of the database's owner from now on."""
    if not target.is_superuser:
        target.connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(target.owner)))


def read_restored(target: Target) -> Contents:
    """What the database holds now that it is filled.

    Where policies bind the owner, too, its tables' rows are counted while they don't (PostgreSQL manual, ALTER TABLE,
    FORCE ROW LEVEL SECURITY); nobody else is there.

    Raises:
        psycopg.Error: as the server says.
    """
    connection = target.connection
    found = read_contents(connection)
    forced = [table for table in read_tables(connection) if table.has_policies]
    if not forced:
        return found
    with connection.transaction(force_rollback=True):
        for table in forced:
            name = sql.Identifier(table.schema, table.plain)
            connection.execute(sql.SQL("ALTER TABLE {} NO FORCE ROW LEVEL SECURITY").format(name))
        return replace(found, rows={**found.rows, **dict(count_rows(connection, forced))})


def _left_out(
    target: Target, archive: Archive, entries: Sequence[Entry], owners: Collection[str]
) -> tuple[LeftOut, dict[str, str]]:
    """What this role can't make, and those extensions of it that somebody else could."""
    wanted = [name for name in archive.manifest.extensions if name != "plpgsql"]
    possible, refused = {"plpgsql"}, set[str]()
    cursor = target.connection.cursor(row_factory=tuple_row)
    for name, is_there, is_known, trusted in cursor.execute(_EXTENSIONS, (wanted,)).fetchall():
        if not (is_there or is_known):
            raise RunFailure(
                Reason.TARGET_UNFIT,
                f"The server doesn't have the extension {name}, which the backup needs: install it.",
            )
        (possible if is_there or trusted or target.is_superuser else refused).add(name)
    if target.is_superuser:
        return LeftOut(), {}
    places = extensions_of(archive.path, entries, owners, refused) if refused else {}
    return choose(archive.path, entries, owners, possible), places


def _refused_rights(
    archive: Path, entries: Sequence[Entry], acted_for: Mapping[str, bool]
) -> Iterator[tuple[int, list[str]]]:
    """Entries with rights that somebody granted for whom the database's owner can't act, and the statements of each
    that the owner can run."""
    wanted = [entry for entry in entries if entry.kind in _RIGHTS]
    for number, piece in pieces(archive, wanted):
        if _SESSION.search(piece):
            yield number, _GRANT.findall(_OF_OTHERS.sub("", piece))
        elif found := _DEFAULTS_FOR.search(piece):
            name = found[1]
            plain = name[1:-1].replace('""', '"') if name.startswith('"') else name
            if not acted_for.get(plain, False):
                yield number, []


def _check_default_rights(target: Target) -> None:
    """They would come on top of the rights that the dump grants."""
    rows = target.connection.cursor(row_factory=tuple_row).execute(_DEFAULT_RIGHTS).fetchall()
    if rows:
        raise RunFailure(
            Reason.TARGET_NOT_EMPTY,
            f"Database {target.connection.info.dbname} has default privileges for objects of {rows[0][0]}, which would"
            " add to the backup's own rights. Restore into a new database (--create makes it); nothing was changed.",
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
