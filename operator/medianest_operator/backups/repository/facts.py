"""What a manifest says of a database beside its contents, read on a connection to it."""

from __future__ import annotations

import gzip
import io
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.backups.repository.client import CHUNK
from medianest_operator.backups.repository.layout import Format
from medianest_operator.backups.repository.manifest import DatabaseProperties, Manifest, RoleNeed
from medianest_operator.backups.repository.store import Content
from medianest_operator.postgres.catalog import Catalog
from medianest_operator.postgres.database_rights import SELECT_RIGHTS, DatabaseRight
from medianest_operator.postgres.rows import only
from medianest_operator.postgres.throwaway import ThrowawayError, postgres_program

_DATABASE: LiteralString = """
SELECT d.datname::text, pg_catalog.pg_get_userbyid(d.datdba)::text, pg_catalog.pg_encoding_to_char(d.encoding)::text,
       d.datcollate, d.datctype, pg_catalog.current_setting('server_version'),
       CASE WHEN pg_catalog.has_database_privilege(d.oid, 'CONNECT') THEN pg_catalog.pg_database_size(d.oid)
            ELSE (SELECT pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid))::bigint FROM pg_catalog.pg_class c
                   WHERE c.relkind IN ('r', 'm', 'S')) END,
       (SELECT system_identifier::text FROM pg_catalog.pg_control_system())
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
_COLLATION: LiteralString = """
SELECT pg_catalog.pg_encoding_to_char(d.encoding)::text, d.datcollate, d.datctype,
       coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c'), pg_catalog.to_jsonb(d) ->> 'daticulocale'
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
# Without what the operator sets while a volume is full: a restored database begins with room (`postgres.read_only`).
_PROPERTIES: LiteralString = """
SELECT coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c'), pg_catalog.to_jsonb(d) ->> 'daticulocale',
       d.datconnlimit, pg_catalog.shobj_description(d.oid, 'pg_database'),
       coalesce((SELECT pg_catalog.json_object_agg(
                            CASE s.setrole WHEN 0 THEN '' ELSE pg_catalog.pg_get_userbyid(s.setrole)::text END,
                            o.own)
                   FROM pg_catalog.pg_db_role_setting s,
                        LATERAL (SELECT pg_catalog.array_agg(v) FROM pg_catalog.unnest(s.setconfig) v
                                  WHERE pg_catalog.split_part(v, '=', 1) <> 'medianest.read_only_since'
                                    AND NOT (v = 'default_transaction_read_only=on'
                                             AND EXISTS (SELECT FROM pg_catalog.unnest(s.setconfig) m
                                                          WHERE pg_catalog.split_part(m, '=', 1)
                                                                = 'medianest.read_only_since'
                                                            AND pg_catalog.right(m, 3) <> ' on'))) o(own)
                  WHERE s.setdatabase = d.oid AND o.own IS NOT NULL), '{}'),
       coalesce((SELECT pg_catalog.json_object_agg(a.grantee, a.rights)
                   FROM (SELECT CASE x.grantee WHEN 0 THEN 'public'
                                               ELSE pg_catalog.pg_get_userbyid(x.grantee)::text END AS grantee,
                                pg_catalog.array_agg(x.privilege_type ORDER BY x.privilege_type) AS rights
                           FROM pg_catalog.aclexplode(
                                    coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) x
                          GROUP BY 1) a), '{}'),
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata)
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
_EXTENSIONS: LiteralString = "SELECT extname::text, extversion FROM pg_catalog.pg_extension ORDER BY 1"
# Whoever owns something of this database, has a right on it or is named by a policy (PostgreSQL manual, pg_shdepend),
# with the roles that these are members of. The bootstrap superuser isn't noted there.
_ROLES: LiteralString = """
WITH RECURSIVE here AS (
    SELECT oid, datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
), needed AS (
    SELECT datdba AS role FROM here
     UNION
    SELECT s.refobjid FROM pg_catalog.pg_shdepend s, here
     WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass
       AND (s.dbid = here.oid OR (s.classid = 'pg_catalog.pg_database'::pg_catalog.regclass AND s.objid = here.oid))
     UNION
    SELECT m.roleid FROM needed JOIN pg_catalog.pg_auth_members m ON m.member = needed.role
)
SELECT r.rolname::text, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication,
       r.rolbypassrls,
       coalesce((SELECT array_agg(g.rolname::text ORDER BY 1)
                   FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                  WHERE m.member = r.oid), '{}')
  FROM pg_catalog.pg_roles r JOIN needed ON needed.role = r.oid
 WHERE r.rolname !~ '^pg_' ORDER BY 1
"""
_ATTRIBUTES = (
    "rolsuper",
    "rolinherit",
    "rolcreaterole",
    "rolcreatedb",
    "rolcanlogin",
    "rolreplication",
    "rolbypassrls",
)


@dataclass(frozen=True)
class DatabaseFacts:
    """The fields of a manifest with the same names; `system_identifier` is its origin's."""

    dbname: str
    owner: str
    encoding: str
    collate: str
    ctype: str
    postgres_version: str
    database_bytes: int
    system_identifier: str
    extensions: dict[str, str]
    roles: tuple[RoleNeed, ...]
    database: DatabaseProperties

    def for_manifest(self) -> dict[str, Any]:
        """Arguments of `Manifest`."""
        return {name: value for name, value in vars(self).items() if name != "system_identifier"}


def read_facts(connection: Connection[Any]) -> DatabaseFacts:
    """What there is to say of the database that the connection is in; any role may read it.

    Its size is the server's own figure, which asks for the right to connect (PostgreSQL manual, Database Object
    Management Functions); to a role without it, as a lockout leaves it, the sum of what the relations take.

    Raises:
        psycopg.Error: the connection is lost.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    row = only(cursor.execute(_DATABASE))
    extensions: dict[str, str] = dict(cursor.execute(_EXTENSIONS).fetchall())
    roles = tuple(
        RoleNeed(name=name, attributes=dict(zip(_ATTRIBUTES, flags, strict=True)), member_of=tuple(groups))
        for name, *flags, groups in cursor.execute(_ROLES).fetchall()
    )
    dbname, owner, encoding, collate, ctype, version, size, identifier = row
    rights = [DatabaseRight(*row) for row in cursor.execute(SELECT_RIGHTS, [dbname]).fetchall()]
    # In the order in which they are declared.
    values = (*only(cursor.execute(_PROPERTIES)), rights)
    properties = DatabaseProperties(**dict(zip(DatabaseProperties.model_fields, values, strict=True)))
    return DatabaseFacts(
        dbname, owner, encoding, collate, ctype, version, size, identifier, extensions, roles, properties
    )


@dataclass(frozen=True)
class Collation:
    """By what a database sorts and compares texts."""

    encoding: str
    collate: str
    ctype: str
    provider: str
    icu_locale: str | None

    def __str__(self) -> str:
        own = f"ICU's {self.icu_locale}" if self.provider == "i" else self.collate
        other = f" with characters of {self.ctype}" if self.ctype != self.collate else ""
        return f"{own}{other} ({self.encoding})"

    @classmethod
    def of(cls, manifest: Manifest) -> Collation:
        """Of the database that was backed up; an earlier version didn't note the provider."""
        known = manifest.database or DatabaseProperties()
        return cls(manifest.encoding, manifest.collate, manifest.ctype, known.provider, known.icu_locale)


def read_collation(connection: Connection[Any]) -> Collation:
    """Of the database that the connection is in.

    Raises:
        psycopg.Error: the connection is lost.
    """
    return Collation(*only(connection.cursor(row_factory=tuple_row).execute(_COLLATION)))


def pg_dump_version() -> str:
    """The version of the program that makes the dumps, `15.4`.

    Raises:
        ThrowawayError: it isn't installed here, or doesn't run.
    """
    try:
        told = subprocess.run([postgres_program("pg_dump"), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ThrowawayError(f"pg_dump doesn't print its version: {error}") from error
    # pg_dump (PostgreSQL) 15.4 (Debian 15.4-1)
    return told.stdout.partition(")")[2].split()[0]


def catalog_content(catalog: Catalog) -> Content:
    """A catalog as one of a backup's files, so that later on a difference can be told in words.

    Its plain text's SHA-256 is the manifest's fingerprint.
    """

    def chunks() -> Iterator[bytes]:
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
            file.write(catalog.to_json().encode())
        text = packed.getvalue()
        for start in range(0, len(text), CHUNK):
            yield text[start : start + CHUNK]

    return Content(Format.CATALOG, chunks())
