"""Single tables out of a backup, into a schema of their own beside the live ones: nothing that is there is touched.

Only their rows are taken from the dump, and nothing of it is executed: the tables are made from the stored catalog,
columns alone. So they have no keys, indexes, defaults and triggers, and take none of the schema's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator import naming
from medianest_operator.backups.ending import timed_result
from medianest_operator.backups.logical.dump import DumpError, rows_of
from medianest_operator.backups.logical.filling import owner_of
from medianest_operator.backups.logical.restore import (
    RestoreOptions,
    check_server,
    check_version,
    first_whole,
    from_newest_whole,
    open_target,
)
from medianest_operator.backups.logical.room import room_left
from medianest_operator.backups.logical.server import without_limits
from medianest_operator.backups.logical.toc import Entry, read_toc, write_list
from medianest_operator.backups.repository.catalog import Backup
from medianest_operator.backups.repository.client import Repository
from medianest_operator.backups.repository.manifest import Manifest
from medianest_operator.backups.verification.archive import Archive, told
from medianest_operator.backups.verification.comparison import stored_catalog
from medianest_operator.postgres.catalog import Catalog, CatalogObject, read_catalog
from medianest_operator.postgres.contents import Table, count_rows
from medianest_operator.postgres.rows import only
from medianest_operator.postgres.run_lock import lock_holder, try_lock
from medianest_operator.results.backup import Reason, Result, RunFailure
from medianest_operator.results.text import cut

_LOCK_WAIT = 60.0
"""Seconds for a migration to end."""
_SHOWN = 5
_TYPES = ("enum type", "domain", "composite type", "range type")
_COMMENT: LiteralString = """
SELECT pg_catalog.obj_description(oid, 'pg_namespace') FROM pg_catalog.pg_namespace WHERE nspname = %s
"""
_SPELLED: LiteralString = """
SELECT pg_catalog.string_agg(pg_catalog.quote_ident(part), '.' ORDER BY number)
  FROM pg_catalog.unnest(pg_catalog.parse_ident(%s)) WITH ORDINALITY part(part, number)
"""
_USABLE: LiteralString = """
SELECT coalesce(pg_catalog.has_type_privilege(pg_catalog.to_regtype(%s), 'USAGE'), false)
"""


@dataclass(frozen=True)
class TablesWanted:
    """What is wanted.

    Attributes:
        names: of the tables, as in SQL; without a schema they are in `public`.
        schema: the one that is made for them.
        request: whose it is: one that another run for the same request has made is as good. Empty: nobody's.
        dry: only say what would be done.
    """

    names: Sequence[str]
    schema: str
    request: str = ""
    dry: bool = False


@dataclass(frozen=True)
class _Chosen:
    """A table of a backup.

    Attributes:
        name: as the catalog has it.
        schema: its schema's plain name.
        plain: its own.
        columns: those that a dump holds, in their order.
        parts: the tables whose rows it has, by schema and plain name; itself, where it isn't partitioned.
        rows: as the manifest counts them.
    """

    name: str
    schema: str
    plain: str
    columns: Sequence[CatalogObject]
    parts: Sequence[tuple[str, str]]
    rows: int


class TablesRun:
    """Brings tables back beside the live ones.

    Args:
        repositories: where the backup may be, the preferred one first.
        report: called with a line of text now and then.
    """

    def __init__(
        self,
        repositories: Sequence[Repository],
        options: RestoreOptions,
        wanted: TablesWanted,
        report: Callable[[str], None] = print,
    ) -> None:
        self._repositories = repositories
        self._options = options
        self._wanted = wanted
        self._report = report
        self._more: dict[str, Any] = {}
        self._notes: list[str] = []

    def run(self) -> Result:
        """Restore; nothing is raised but what a bug raises."""
        return timed_result(self._restore, "It was asked to stop. Nothing was changed.", self._more)

    def _restore(self) -> Result:
        return from_newest_whole(self._repositories, self._options, self._report, self._restore_one)

    def _restore_one(self, places: Sequence[tuple[Repository, Backup]], notes: Sequence[str]) -> Result:
        options = self._options
        repository, backup = places[0]
        manifest = backup.manifest
        assert manifest is not None
        self._notes = [f"{note}." for note in notes]
        self._more |= {"backup": manifest.id, "repository": repository.name}
        check_version(manifest)
        with closing(open_target(options.conninfo, options.wait, self._report)) as connection:
            without_limits(connection)
            check_server(manifest, connection)
            if self._wanted.dry:
                with told(options.work, manifest, 0):
                    catalog = stored_catalog(repository, manifest, options.identities)
                chosen = self._choose(connection, manifest, catalog)
                return Result.success(cut(self._would(backup, chosen)), **self._more)
            with first_whole(places, options, self._report) as (archive, taken_from):
                self._more["repository"] = taken_from.name
                return self._fill(connection, archive)

    def _fill(self, connection: Connection[Any], archive: Archive) -> Result:
        manifest, schema = archive.manifest, self._wanted.schema
        chosen = self._choose(connection, manifest, archive.catalog)
        assert archive.catalog is not None
        self._more["schema"] = schema
        self._take_lock(connection)
        mark = f"{naming.RESTORED_TABLES} {manifest.id}"
        if self._wanted.request:
            mark = f"{mark}, request {self._wanted.request}"
        there = connection.cursor(row_factory=tuple_row).execute(_COMMENT, (schema,)).fetchone()
        if there is not None and self._wanted.request and there[0] == mark:
            return Result.success(cut(self._done(manifest, chosen)), **self._more)
        if there is not None:
            raise RunFailure(
                Reason.TARGET_NOT_EMPTY,
                f"Schema {schema} is there already. Choose another name, or, if nobody needs what is in it any more,"
                f" DROP SCHEMA {schema} CASCADE.",
            )
        kinds = self._kinds(connection, archive.catalog, chosen)
        allowance = room_left(connection, self._options.volume)
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner_of(connection))))
            connection.execute("SELECT pg_catalog.set_config('search_path', 'public', true)")
            connection.execute("SELECT pg_catalog.set_config('client_encoding', %s, true)", (manifest.encoding,))
            # The role that the session logs in as may make no schema; the database's owner may.
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            comment = sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(schema), sql.Literal(mark))
            connection.execute(comment)
            entries = read_toc(archive.path)
            for table in chosen:
                allowance = self._fill_one(connection, archive, entries, table, kinds, allowance)
        return Result.success(cut(self._done(manifest, chosen)), **self._more)

    def _fill_one(
        self,
        connection: Connection[Any],
        archive: Archive,
        entries: Sequence[Entry],
        table: _Chosen,
        kinds: Mapping[str, str],
        allowance: int | None,
    ) -> int | None:
        """Make a table and fill it. Returns the bytes that others may take."""
        target = sql.Identifier(self._wanted.schema, table.plain)
        names = [_plain(connection, column.name) for column in table.columns]
        columns = [
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kinds[column.attributes["type"]]))
            for name, column in zip(names, table.columns, strict=True)
        ]
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(target, sql.SQL(", ").join(columns)))
        listed = sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, names))) if names else sql.SQL("")
        began, size = time.monotonic(), 0
        copy = sql.SQL("COPY {}{} FROM STDIN").format(target, listed)
        with connection.cursor().copy(copy) as stream:
            for chunk in chain.from_iterable(map(partial(_rows, archive, entries), table.parts)):
                size += len(chunk)
                if allowance is not None and size > allowance:
                    raise RunFailure(
                        Reason.NO_ROOM,
                        f"There is not enough space for {table.name} beside the live database. Raise spec.storage.size"
                        " first, or ask for fewer tables.",
                    )
                stream.write(chunk)
        made = Table(self._wanted.schema, table.plain, table.name, False, False, True)
        [(_, count)] = count_rows(connection, [made])
        if count != table.rows:
            raise RunFailure(
                Reason.NOT_EQUAL,
                f"{table.name} of {archive.manifest.id} came back with {count} rows, the manifest counts {table.rows}.",
            )
        self._report(f"{table.name}: {count} rows, {size >> 20} MiB in {time.monotonic() - began:.1f} s")
        return None if allowance is None else allowance - size

    def _choose(self, connection: Connection[Any], manifest: Manifest, catalog: Catalog | None) -> list[_Chosen]:
        if catalog is None:
            raise RunFailure(
                Reason.UNSUPPORTED_VERSION,
                f"{manifest.id} was stored without its catalog: restore all of it into another database.",
            )
        there = {item.name: item for item in catalog.of_kind("table")}
        wanted = dict.fromkeys(_spelled(connection, name) for name in self._wanted.names)
        missing = [name for name in wanted if name not in there]
        if missing:
            shown = sorted(name for name in there if name != "_prisma_migrations")
            more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
            raise RunFailure(
                Reason.INVALID_OPTIONS,
                f"{manifest.id} has no table {', '.join(missing)}. It has {', '.join(shown[:20])}{more}.",
            )
        chosen = []
        for name in wanted:
            columns = [item for item in catalog.of_kind("column") if item.table == name]
            stored = [item for item in columns if "generated" not in item.attributes]
            parts = _parts(there, name)
            places = [_place(connection, part) for part in parts]
            rows = sum(manifest.rows.get(part, 0) for part in parts)
            ordered = sorted(stored, key=lambda item: int(item.attributes["position"]))
            chosen.append(_Chosen(name, *_place(connection, name), ordered, places, rows))
        if len({table.plain for table in chosen}) < len(chosen):
            raise RunFailure(
                Reason.INVALID_OPTIONS,
                "Two of the tables have the same name in different schemas: bring them back one after the other.",
            )
        return chosen

    def _kinds(self, connection: Connection[Any], catalog: Catalog, chosen: Sequence[_Chosen]) -> dict[str, str]:
        """The type that each column's type becomes: text where it isn't here, or is another one here."""
        live = read_catalog(connection)
        types = {column.attributes["type"] for table in chosen for column in table.columns}
        owner = owner_of(connection)
        kinds = {kind: kind if _is_same(connection, catalog, live, kind, owner) else "text" for kind in types}
        others = sorted(kind for kind, own in kinds.items() if kind != own)
        if others:
            self._notes.append(
                f"Columns of type {', '.join(others[:_SHOWN])} came back as text: the type is not here, or another one,"
                " or not for this owner to use."
            )
        return kinds

    def _take_lock(self, connection: Connection[Any]) -> None:
        deadline = time.monotonic() + _LOCK_WAIT
        while not try_lock(connection):
            if time.monotonic() > deadline:
                holder = lock_holder(connection) or "somebody who has just ended"
                raise RunFailure(
                    Reason.RESTORE_FAILED, f"A migration is under way: {holder} holds its lock.", transient=True
                )
            time.sleep(0.5)

    def _would(self, backup: Backup, chosen: Sequence[_Chosen]) -> str:
        assert backup.manifest is not None
        verified = "verified by a test restore" if backup.is_verified else "not verified so far"
        return (
            f"It would bring {_listed(chosen)} of backup {backup.id}, {verified}, into schema {self._wanted.schema}"
            " beside the live tables, which stay as they are."
        )

    def _done(self, manifest: Manifest, chosen: Sequence[_Chosen]) -> str:
        notes = "".join(f" {note}" for note in self._notes)
        return (
            f"Restored {_listed(chosen)} of {manifest.id} into schema {self._wanted.schema}, columns and rows alone."
            f" The live tables are as they were.{notes} DROP SCHEMA {self._wanted.schema} CASCADE, once you have what"
            " you need."
        )


def _listed(chosen: Sequence[_Chosen]) -> str:
    shown = ", ".join(f"{table.name} ({table.rows} row{'' if table.rows == 1 else 's'})" for table in chosen[:_SHOWN])
    more = f" and {len(chosen) - _SHOWN} more" if len(chosen) > _SHOWN else ""
    return f"table{'' if len(chosen) == 1 else 's'} {shown}{more}"


def _parts(tables: Mapping[str, CatalogObject], name: str) -> list[str]:
    """The tables that hold a table's rows: itself, or its partitions, and theirs."""
    if not tables[name].attributes.get("partitioned"):
        return [name]
    found: list[str] = []
    for part, item in tables.items():
        if name in (item.attributes.get("parents") or ()):
            found += _parts(tables, part)
    return found


def _place(connection: Connection[Any], name: str) -> tuple[str, str]:
    """The plain names of a table's schema and of itself."""
    (parts,) = only(connection.cursor(row_factory=tuple_row).execute("SELECT pg_catalog.parse_ident(%s)", (name,)))
    return ("public", parts[0]) if len(parts) == 1 else (parts[0], parts[1])


def _plain(connection: Connection[Any], name: str) -> str:
    (parts,) = only(connection.cursor(row_factory=tuple_row).execute("SELECT pg_catalog.parse_ident(%s)", (name,)))
    return str(parts[0])


def _is_same(connection: Connection[Any], catalog: Catalog, live: Catalog, kind: str, owner: str) -> bool:
    """Whether a type of the backup's is the same here, and the owner of the tables may use it."""
    base = kind.rstrip("[]").partition("(")[0].strip()
    if any(item.name == base for item in catalog.of_kind("table")):
        return False
    for key in ((sort, "", base) for sort in _TYPES):
        if (known := catalog.objects.get(key)) is not None:
            here = live.objects.get(key)
            if here is None or _definition(here) != _definition(known):
                return False
    with connection.transaction(force_rollback=True), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))
        cursor.execute("SELECT pg_catalog.set_config('search_path', 'public', true)")
        try:
            (usable,) = only(cursor.execute(_USABLE, (kind,)))
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.SyntaxError):
            # What the server takes for a type's name is one, and nothing else: it goes into a statement.
            return False
        return bool(usable)


def _spelled(connection: Connection[Any], name: str) -> str:
    """A table's name as catalogs spell it: `Users`, `"users"` and `public.users` are `users`, as in SQL."""
    try:
        (known,) = only(connection.cursor(row_factory=tuple_row).execute(_SPELLED, (name,)))
    except psycopg.errors.InvalidParameterValue:
        return name
    return str(known).removeprefix("public.")


def _definition(item: CatalogObject) -> dict[str, Any]:
    return {name: value for name, value in item.attributes.items() if name != "owner"}


def _rows(archive: Archive, entries: Sequence[Entry], part: tuple[str, str]) -> Iterator[bytes]:
    """A table's rows as COPY writes them."""
    owners = {role.name for role in archive.manifest.roles} | {archive.manifest.owner}
    found = [entry for entry in entries if entry.kind == "TABLE DATA" and (entry.schema, entry.name(owners)) == part]
    if len(found) != 1:
        raise RunFailure(
            Reason.RESTORE_FAILED, f"{archive.manifest.id}: no rows of {'.'.join(part)} alone are in its dump."
        )
    with TemporaryDirectory(dir=archive.path.parent) as folder:
        try:
            yield from rows_of(archive.path, write_list(Path(folder) / "entries", found))
        except DumpError as error:
            raise RunFailure(Reason.BACKUP_DAMAGED, f"{archive.manifest.id} can't be read: {error}") from error
