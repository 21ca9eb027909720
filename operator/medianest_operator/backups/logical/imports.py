"""A running server's database into an empty one: one snapshot, nothing written at the source, all of it compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from medianest_operator.backups.ending import timed_result
from medianest_operator.backups.logical.counting import Counting
from medianest_operator.backups.logical.dump import DumpError, dump, sequence_values
from medianest_operator.backups.logical.filling import IMPORT_ELSEWHERE, Target, act_as_owner, inspect, read_restored
from medianest_operator.backups.logical.loading import load
from medianest_operator.backups.logical.restore import open_target
from medianest_operator.backups.logical.server import Server, check_readable, lock_tables, lost
from medianest_operator.backups.logical.source import open_source
from medianest_operator.backups.logical.toc import Entry, read_toc
from medianest_operator.backups.repository.facts import Collation, read_collation
from medianest_operator.backups.verification.comparison import (
    Contents,
    row_differences,
    sequence_differences,
    without_invalid_indexes,
    without_versions,
)
from medianest_operator.postgres.catalog import Catalog, difference, read_catalog
from medianest_operator.postgres.connect import libpq_environment
from medianest_operator.postgres.contents import (
    count_large_objects,
    read_schema_version,
    read_sequences,
    sequence_names,
    snapshot,
)
from medianest_operator.postgres.rows import only
from medianest_operator.postgres.sandbox import LocalSandbox, Sandbox
from medianest_operator.postgres.scratch import scratch_folder
from medianest_operator.results.backup import Reason, Result, RunFailure
from medianest_operator.results.text import cut

SCHEMA = "public"
_HEAD = 16 << 20
_TELL_EVERY = 10.0
# What comes with an extension, or is there already.
_NOT_RESTORED = frozenset({("COMMENT", "- EXTENSION"), ("SCHEMA", "- public"), ("COMMENT", "- SCHEMA public")})
# In no schema, so that no dump of one has them.
_OF_NO_SCHEMA = frozenset({
    "access method", "cast", "event trigger", "foreign data wrapper", "foreign server", "language", "publication",
    "security label", "subscription", "transform", "user mapping",
})  # fmt: skip
# Something needs an extension if it depends on one of its members and is none itself, nor a member's rule or default.
_EXTENSIONS: LiteralString = """
WITH members AS (
    SELECT classid, objid, refobjid AS extension FROM pg_catalog.pg_depend
     WHERE refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND deptype = 'e'
), relations AS (
    SELECT objid FROM members WHERE classid = 'pg_catalog.pg_class'::pg_catalog.regclass
)
SELECT e.extname::text, n.nspname::text,
       EXISTS (SELECT FROM members m
                 JOIN pg_catalog.pg_depend d ON d.refclassid = m.classid AND d.refobjid = m.objid
                WHERE m.extension = e.oid AND d.deptype IN ('n', 'a')
                  AND (d.classid, d.objid) NOT IN (SELECT classid, objid FROM members)
                  AND NOT (d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
                           AND EXISTS (SELECT FROM pg_catalog.pg_rewrite r
                                        WHERE r.oid = d.objid AND r.ev_class IN (SELECT objid FROM relations)))
                  AND NOT (d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                           AND EXISTS (SELECT FROM pg_catalog.pg_attrdef r
                                        WHERE r.oid = d.objid AND r.adrelid IN (SELECT objid FROM relations))))
  FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname <> 'plpgsql' ORDER BY 1
"""
_AVAILABLE: LiteralString = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = %(name)s),
       count(*) > 0, coalesce(bool_or(trusted), false)
  FROM pg_catalog.pg_available_extension_versions WHERE name = %(name)s
"""
_OTHER_SCHEMAS: LiteralString = """
SELECT quote_ident(nspname) FROM pg_catalog.pg_namespace n
 WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.objid = n.oid
                      AND d.deptype = 'e')
 ORDER BY 1
"""
# The catalogs of what stands in a schema, and their column that says in which.
_IN_SCHEMAS: tuple[tuple[LiteralString, LiteralString], ...] = (
    ("pg_class", "relnamespace"), ("pg_type", "typnamespace"), ("pg_proc", "pronamespace"),
    ("pg_operator", "oprnamespace"), ("pg_opclass", "opcnamespace"), ("pg_collation", "collnamespace"),
    ("pg_ts_config", "cfgnamespace"), ("pg_ts_dict", "dictnamespace"),
)  # fmt: skip
_THINGS: LiteralString = " UNION ALL ".join(
    f"SELECT 'pg_catalog.{catalog}'::pg_catalog.regclass AS class, c.oid, p.own"
    f" FROM pg_catalog.{catalog} c JOIN places p ON p.oid = c.{schema}"
    for catalog, schema in _IN_SCHEMAS
)
# What stands in the imported schema and needs something that stands in another and is no extension's.
_NEEDS_OTHERS: LiteralString = f"""
WITH places AS (
    SELECT n.oid, n.nspname = 'public' AS own FROM pg_catalog.pg_namespace n
     WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
), things AS (
    {_THINGS}
), own AS (
    SELECT class, oid FROM things WHERE own
     UNION ALL
    SELECT d.classid, d.objid
      FROM pg_catalog.pg_depend d JOIN things t ON (t.class, t.oid) = (d.refclassid, d.refobjid) AND t.own
     WHERE d.deptype IN ('a', 'i')
       AND d.classid IN ('pg_catalog.pg_attrdef'::pg_catalog.regclass, 'pg_catalog.pg_constraint'::pg_catalog.regclass,
                         'pg_catalog.pg_trigger'::pg_catalog.regclass, 'pg_catalog.pg_rewrite'::pg_catalog.regclass,
                         'pg_catalog.pg_policy'::pg_catalog.regclass)
)
SELECT DISTINCT ON (1) pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid),
       pg_catalog.pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
  FROM pg_catalog.pg_depend d
  JOIN own ON (own.class, own.oid) = (d.classid, d.objid)
  JOIN things t ON (t.class, t.oid) = (d.refclassid, d.refobjid) AND NOT t.own
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend e
                    WHERE e.deptype = 'e'
                      AND (e.classid, e.objid) IN ((d.refclassid, d.refobjid), (d.classid, d.objid)))
 ORDER BY 1, 2
"""


SchemaReport = Callable[[Catalog, str | None, Sandbox, Callable[[str], None]], list[str]]
"""How a schema differs from the migrations' own, in words (`migrations.bundled.report`)."""


@dataclass(frozen=True)
class ImportOptions:
    """What is asked for.

    Attributes:
        source_file: holds the source's URL.
        work: a folder with room for the dump.
        schema_report: tells what is unlike the bundled migrations' schema.
        jobs: connections that restore at the same time.
        conninfo: the target's, for libpq; empty: its variables.
        wait: seconds that the target gets to let us in.
        sandbox: where the bundled migrations are tried; a server beside this process without it.
    """

    source_file: Path
    work: Path
    schema_report: SchemaReport
    jobs: int = 2
    conninfo: str = ""
    wait: float = 60.0
    sandbox: Sandbox | None = None


@dataclass(frozen=True)
class Seen:
    """The source at one moment.

    Attributes:
        contents: of the schema public, without owners and rights, and the number of large objects.
        collation: by what it sorts.
        extensions: name, schema, and whether anything needs it.
        version: the newest applied migration.
        notes: what isn't brought in, in words.
    """

    contents: Contents
    collation: Collation
    extensions: tuple[tuple[str, str, bool], ...]
    version: str | None
    notes: tuple[str, ...]


class ImportRun:
    """Imports one database.

    Args:
        report: called with a line of text now and then.
    """

    def __init__(self, options: ImportOptions, report: Callable[[str], None] = print) -> None:
        self._options = options
        self._report = report
        self._more: dict[str, Any] = {}

    def run(self) -> Result:
        """Import; nothing is raised but what a bug raises."""
        return timed_result(self._with_room, "The import was asked to stop; it is not complete.", self._more)

    def _with_room(self) -> Result:
        try:
            return self._import()
        except OSError as error:
            text = f"{self._options.work}: {error.strerror}; the source's dump has to fit there"
            raise RunFailure(Reason.NO_ROOM, text) from error

    def _import(self) -> Result:
        options = self._options
        # The target first: it must not be found unfit after an hour's dump.
        with closing(open_target(options.conninfo, options.wait, self._report)) as connection:
            target = inspect(connection, libpq_environment(connection), elsewhere=IMPORT_ELSEWHERE)
            with scratch_folder(options.work, "import-") as folder:
                path = folder / "data.dump"
                source = open_source(options.source_file, self._report)
                with closing(source.connection):
                    seen = self._dump(source, path)
                self._more["schemaVersion"] = seen.version
                notes = [*seen.notes, *self._make_extensions(target, seen)]
                self._fill(target, path)
            return self._compare(target, seen, notes)

    def _dump(self, source: Server, path: Path) -> Seen:
        try:
            with snapshot(source.connection) as exported:
                tables = check_readable(source, SCHEMA)
                _check_needs(source.connection)
                lock_tables(source.connection, tables)
                cursor = source.connection.cursor(row_factory=tuple_row)
                others = [row[0] for row in cursor.execute(_OTHER_SCHEMAS).fetchall()]
                extensions = tuple(cursor.execute(_EXTENSIONS).fetchall())
                whole = read_catalog(source.connection)
                catalog = imported_part(whole, others)
                large_objects = count_large_objects(source.connection)
                collation = read_collation(source.connection)
                version = read_schema_version(source.connection)
                names = sequence_names(source.connection)
                self._report(f"dumping {source.connection.info.dbname} of {source.connection.info.host}")
                with Counting(source, exported, tables) as counting:
                    values = self._write(dump(counting.environment, exported, schema=SCHEMA), path, bool(names))
                    rows = counting.rows()
                if values is None:
                    sequences = read_sequences(source.connection)
                else:
                    sequences = {names[name]: value for name, value in values.items() if name in names}
        except DumpError as error:
            raise RunFailure(Reason.DUMP_FAILED, str(error), error.transient or error.vanished) from error
        except psycopg.Error as error:
            raise lost(error) from error
        used = [name for name in others if name not in {f"{schema}" for _, schema, _ in extensions}]
        notes = [f"schema {name} of the source is not imported" for name in used]
        left = sorted(item.label for item in whole.objects.values() if item.kind in _OF_NO_SCHEMA)
        notes += [f"{label} of the source is not imported" for label in left]
        # Each says which it is of: the database, or a role in it. A role's own are the server's.
        settings = sorted(item.name for item in whole.of_kind("settings") if item.name.startswith("database"))
        notes += [f"settings of the source's {name} are not imported" for name in settings]
        return Seen(Contents(catalog, rows, sequences, large_objects), collation, extensions, version, tuple(notes))

    def _write(self, chunks: Any, path: Path, look: bool) -> dict[str, tuple[int, bool]] | None:
        """Store the dump; returns how it will set the sequences."""
        values: dict[str, tuple[int, bool]] | None = None if look else {}
        head, size, told = b"", 0, time.monotonic()
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                size += len(chunk)
                if values is None and len(head) < _HEAD:
                    head += chunk
                    values = sequence_values(head)
                if time.monotonic() - told >= _TELL_EVERY:
                    told = time.monotonic()
                    self._report(f"dumped {size >> 20} MiB")
        self._report(f"dumped {size} bytes")
        return values

    def _make_extensions(self, target: Target, seen: Seen) -> list[str]:
        """The source's extensions, as far as the target's owner may make them."""
        notes = []
        act_as_owner(target)
        cursor = target.connection.cursor(row_factory=tuple_row)
        for name, schema, is_needed in seen.extensions:
            is_there, is_known, trusted = only(cursor.execute(_AVAILABLE, {"name": name}))
            if is_there:
                continue
            if not is_known or not (trusted or target.is_superuser):
                why = "only a superuser may make it" if is_known else "the server doesn't have it"
                if is_needed:
                    raise RunFailure(
                        Reason.TARGET_UNFIT, f"The source needs the extension {name}, and here {why}: install it first."
                    )
                notes.append(f"extension {name} is not imported, nothing needs it: {why}")
                continue
            place = sql.Identifier(schema)
            if schema not in (SCHEMA, "pg_catalog"):
                cursor.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(place))
            cursor.execute(sql.SQL("CREATE EXTENSION {} SCHEMA {}").format(sql.Identifier(name), place))
        return notes

    def _fill(self, target: Target, path: Path) -> None:
        began = time.monotonic()
        options = ["--no-owner", "--no-privileges", f"--role={target.owner}"]
        try:
            entries = [entry for entry in read_toc(path) if not _is_there(entry)]
            load(path, entries, target.environment, self._options.jobs, options)
        except DumpError as error:
            raise RunFailure(Reason.RESTORE_FAILED, str(error), error.transient) from error
        act_as_owner(target)
        target.connection.execute("ANALYZE")
        self._report(f"restored in {time.monotonic() - began:.1f} s; comparing")

    def _compare(self, target: Target, seen: Seen, notes: Sequence[str]) -> Result:
        found = read_restored(target)
        self._more |= {"tables": len(found.rows), "rows": sum(found.rows.values())}
        # The schemas that were made for extensions are no part of it.
        cursor = target.connection.cursor(row_factory=tuple_row)
        others = [row[0] for row in cursor.execute(_OTHER_SCHEMAS).fetchall()]
        expected, actual, versions = without_versions(seen.contents.catalog, imported_part(found.catalog, others))
        left = {name for name, _, _ in seen.extensions} - {item.name for item in actual.of_kind("extension")}
        expected = Catalog({key: item for key, item in expected.objects.items() if not _is_extension(key, left)})
        unlike = [
            *row_differences(seen.contents.rows, found.rows),
            *sequence_differences(seen.contents.sequences, found.sequences),
            *difference(expected, actual),
        ]
        if (there := seen.contents.large_objects) != found.large_objects:
            unlike.append(f"there are {found.large_objects} large objects, expected {there}")
        if (here := read_collation(target.connection)) != seen.collation:
            notes = [*notes, f"the database sorts by {here}, and the source by {seen.collation}"]
        if unlike:
            self._more["differences"] = unlike
            raise RunFailure(
                Reason.NOT_EQUAL, f"What was imported is not what the source holds: {'; '.join(unlike[:3])}."
            )
        report = [
            *notes,
            *versions,
            *self._options.schema_report(
                actual, seen.version, self._options.sandbox or LocalSandbox(self._options.work), self._report
            ),
        ]
        told = f" To know: {'; '.join(report[:3])}." if report else ""
        message = (
            f"Imported {self._more['tables']} tables with {self._more['rows']} rows; row counts, sequences and catalog"
            f" equal the source's (owners and rights are the target's own).{told}"
        )
        return Result.success(cut(message), **self._more, differences=report)


def imported_part(catalog: Catalog, others: Sequence[str]) -> Catalog:
    """What an import brings in of a catalog: the schema public and the extensions, without owners and rights.

    Args:
        others: the names of other schemas, as SQL has them.
    """
    prefixes = tuple(f"{name}." for name in others)
    kept = {}
    for key, item in without_invalid_indexes(catalog.without_privileges()).objects.items():
        kind, table, name = key
        if kind in _OF_NO_SCHEMA or (kind == "schema" and name in others):
            continue
        plain = name.split(" ", 1)[1] if kind == "comment" and " " in name else name
        if prefixes and (table.startswith(prefixes) or plain.startswith(prefixes)):
            continue
        kept[key] = item
    return Catalog(kept)


def _check_needs(connection: psycopg.Connection[Any]) -> None:
    rows = connection.cursor(row_factory=tuple_row).execute(_NEEDS_OTHERS).fetchall()
    if rows:
        needs = "; ".join(f"{what} needs {other}" for what, other in rows[:3])
        more = f"; and {len(rows) - 3} more" if len(rows) > 3 else ""
        raise RunFailure(
            Reason.SOURCE_UNFIT,
            f"Only the schema {SCHEMA} of the source is imported, and {needs}{more}. Move what is needed there (ALTER"
            f" ... SET SCHEMA {SCHEMA}), then import again; nothing was changed.",
        )


def _is_there(entry: Entry) -> bool:
    """What comes with an extension, or is there already."""
    return any(
        entry.kind == kind and f"{entry.schema} {entry.rest} ".startswith(f"{rest} ") for kind, rest in _NOT_RESTORED
    )


def _is_extension(key: tuple[str, str, str], names: set[str]) -> bool:
    return key[0] == "extension" and key[2] in names
