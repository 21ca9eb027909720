"""One backup: a snapshot of the database, dumped, counted and stored in all repositories; then what is too old goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from medianest_operator.backups.logical.counting import Counting
from medianest_operator.backups.logical.dump import DumpError, dump, sequence_values
from medianest_operator.backups.logical.server import (
    Server,
    check_readable,
    lock_tables,
    lost,
    open_connection,
    open_replica,
    open_server,
    read_clock,
)
from medianest_operator.backups.repository import layout, retention
from medianest_operator.backups.repository.catalog import Catalog, ids_ahead, remove
from medianest_operator.backups.repository.client import Repository, RepositoryError
from medianest_operator.backups.repository.encryption import encrypt
from medianest_operator.backups.repository.facts import catalog_content, pg_dump_version, read_facts
from medianest_operator.backups.repository.layout import Format, Origin, Place, Tier
from medianest_operator.backups.repository.manifest import File, Manifest, operator_version
from medianest_operator.backups.repository.packing import pack
from medianest_operator.backups.repository.store import Content, cleanup, store
from medianest_operator.backups.repository.store import Result as Stored
from medianest_operator.backups.verification.comparison import dumped_catalog
from medianest_operator.errors import Interrupted
from medianest_operator.postgres.catalog import Catalog as SchemaCatalog
from medianest_operator.postgres.catalog import Definitions, read_definitions
from medianest_operator.postgres.contents import read_schema_version, read_sequences, sequence_names, snapshot
from medianest_operator.postgres.throwaway import ThrowawayError
from medianest_operator.results.backup import Reason, Result, RunFailure
from medianest_operator.results.text import cut
from medianest_operator.timestamps import stamp

TELL_EVERY = 10.0
"""Seconds between two lines about the progress."""
# A dump's table of contents, in which the sequences stand, is looked for in so much of its beginning, bytes.
_HEAD = 16 << 20


@dataclass(frozen=True)
class BackupOptions:
    """What is asked for.

    Attributes:
        tier: of the backup.
        database: namespace and name of the MediaNestDatabase; `None`: a local one, named after the database.
        formats: files with data or definitions.
        recipients: age's public keys; none: not encrypted.
        keep: how long a tier's backups stay; those of others stay indefinitely.
        keep_until: of this backup.
        replica_host: where a replica may be found.
        conninfo: libpq's; empty: its variables.
        wait: seconds that the server gets to let us in.
        now: the clock.
    """

    tier: Tier
    database: tuple[str, str] | None = None
    formats: Sequence[Format] = (Format.CUSTOM,)
    recipients: Sequence[str] = ()
    keep: Mapping[Tier, timedelta] = field(default_factory=dict)
    keep_until: datetime | None = None
    replica_host: str | None = None
    conninfo: str = ""
    wait: float = 60.0
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


@dataclass
class Taken:
    """A backup that is stored.

    Attributes:
        place: where.
        manifest: what was written.
        results: what became of it in each repository.
    """

    place: Place
    manifest: Manifest | None
    source: str
    results: dict[str, Stored]
    seconds: float = 0.0


class BackupRun:
    """Takes one backup.

    Args:
        repositories: with different names.
        report: called with a line of text now and then.
    """

    def __init__(
        self, repositories: Sequence[Repository], options: BackupOptions, report: Callable[[str], None] = print
    ) -> None:
        self._repositories = list(repositories)
        self._options = options
        self._report = report
        self._failed: dict[str, Stored] = {}
        self._removed: list[str] = []
        self.origin: Origin | None = None

    def run(self) -> Result:
        """Take it; nothing is raised but what a bug raises."""
        began, started = self._options.now(), time.monotonic()
        more: dict[str, Any] = {"tier": self._options.tier.value, "startedAt": stamp(began)}
        try:
            taken = self._take(began)
        except RunFailure as failure:
            result = Result.failure(failure, **more)
        except Interrupted:
            message = "The backup was asked to stop; what it had stored is removed."
            result = Result.failure(RunFailure(Reason.INTERRUPTED, message, transient=True), **more)
        else:
            result = self._told(taken, more)
        result.more["seconds"] = round(time.monotonic() - started, 1)
        result.more["finishedAt"] = stamp(self._options.now(), up=True)
        if self._failed and "repositories" not in result.more:
            result.more["repositories"] = _told_repositories(self._failed)
        return result

    def clean_up(self, result: Result) -> None:
        """Remove what is too old and what was left over, and summarise what there is; a failure is only told.

        After a backup that failed nothing goes but what was left over.
        """
        if self.origin is None:
            return
        summaries = {}
        told = result.more.get("repositories", {})
        for repository in self._repositories:
            if repository.name in self._failed:
                continue
            try:
                cleanup(repository, self.origin)
                catalog = Catalog.read(repository, self.origin)
                if told.get(repository.name, {}).get("ok"):
                    catalog = self._retain(repository, catalog)
                summaries[repository.name] = catalog.summary()
            except RepositoryError as error:
                self._report(f"warning: older backups were not looked after: {error}")
                told.setdefault(repository.name, {"ok": False})["message"] = cut(f"not cleaned up: {error}", 300)
        result.more["catalog"] = summaries
        if self._removed:
            result.more["removed"] = sorted(set(self._removed))

    def _retain(self, repository: Repository, catalog: Catalog) -> Catalog:
        gone = False
        for removal in retention.plan(catalog.backups, self._options.now(), self._options.keep):
            if remove(repository, removal.backup):
                self._report(f"removed {removal.backup.id} from {repository.name}: {removal.why}")
                self._removed.append(removal.backup.id)
                gone = True
        return Catalog.read(repository, self.origin) if gone else catalog

    def _take(self, began: datetime) -> Taken:
        primary = open_server(self._options.conninfo, self._options.wait, self._report)
        with primary.connection:
            self.origin = self._origin(primary)
            known = self._known_ids(self.origin, began)
            replica = None
            if self._options.replica_host:
                replica = open_replica(primary, self._options.conninfo, self._options.replica_host, self._report)
            if replica is not None:
                with replica.connection:
                    try:
                        return self._back_up(replica, began, known)
                    except RunFailure as failure:
                        if not failure.transient:
                            raise
                        self._report(f"not from {replica.name}: {failure.message}; now from the primary")
            return self._back_up(primary, began, known)

    def _origin(self, primary: Server) -> Origin:
        identifier = primary.system_identifier
        try:
            if self._options.database is None:
                return Origin.local(primary.connection.info.dbname, identifier)
            return Origin(*self._options.database, identifier)
        except ValueError as error:
            raise RunFailure(Reason.INVALID_OPTIONS, str(error)) from error

    def _known_ids(self, origin: Origin, began: datetime) -> list[str]:
        """The ids that this one's has to be later than; a repository that can't be listed is out of it."""

        def look(repository: Repository) -> list[str] | RepositoryError:
            try:
                return ids_ahead(repository, origin, began)
            except RepositoryError as error:
                return error

        ids: list[str] = []
        with ThreadPoolExecutor(max(1, len(self._repositories))) as pool:
            for repository, found in zip(self._repositories, pool.map(look, self._repositories), strict=True):
                if isinstance(found, RepositoryError):
                    self._report(f"left out: {found}")
                    self._failed[repository.name] = Stored(False, "", str(found), found.transient)
                else:
                    ids += found
        if len(self._failed) == len(self._repositories):
            raise RunFailure(Reason.REPOSITORY_FAILED, *_why(self._failed.values()))
        return ids

    def _back_up(self, server: Server, began: datetime, known: Sequence[str]) -> Taken:
        try:
            return self._store(server, began, known)
        except DumpError as error:
            raise RunFailure(Reason.DUMP_FAILED, f"{error}", error.transient or error.vanished) from error
        except psycopg.Error as error:
            raise lost(error) from error
        except ThrowawayError as error:
            raise RunFailure(Reason.INTERNAL_ERROR, str(error)) from error

    def _store(self, server: Server, began: datetime, known: Sequence[str]) -> Taken:
        started = time.monotonic()
        place = Place(self.origin_or_fail, self._options.tier, layout.new_id(self._options.tier, began, known))
        version = pg_dump_version()
        before = read_definitions(server.connection)
        with snapshot(server.connection) as exported:
            taken_at, contents_at = self._options.now(), read_clock(server.connection)
            tables = check_readable(server)
            lock_tables(server.connection, tables)
            facts = read_facts(server.connection)
            catalog = dumped_catalog(server.connection)
            schema_version = read_schema_version(server.connection)
            self._report(f"backing up {facts.dbname} ({facts.database_bytes >> 20} MiB) of {server.name} as {place.id}")
            with Counting(server, exported, tables) as counting:
                head = _Head()
                names = sequence_names(server.connection)

                def sequences() -> dict[str, tuple[int, bool]]:
                    if head.values is None:
                        return read_sequences(server.connection)
                    return {names[name]: value for name, value in head.values.items() if name in names}

                def manifest(files: tuple[File, ...]) -> Manifest:
                    return Manifest(
                        id=place.id,
                        tier=place.tier,
                        origin=place.origin,
                        taken_at=taken_at,
                        contents_at=contents_at,
                        finished_at=self._options.now(),
                        pg_dump_version=version,
                        source=server.name,
                        schema_version=schema_version,
                        fingerprint=catalog.fingerprint(),
                        catalog_version=catalog.version,
                        moved=self._moved(before, counting.environment),
                        rows=counting.rows(),
                        sequences=sequences(),
                        keep_until=self._options.keep_until,
                        files=files,
                        operator_version=operator_version(),
                        **facts.for_manifest(),
                    )

                def files() -> Iterator[Content]:
                    for format in self._options.formats:
                        chunks = dump(counting.environment, exported, format=format)
                        if format is Format.CUSTOM and names:
                            chunks = head.keep(chunks)
                        yield pack(format, self._progress(format, chunks), self._options.recipients)
                    yield self._catalog(catalog)

                alive = [item for item in self._repositories if item.name not in self._failed]
                written, results = store(alive, place, files(), manifest)
        seconds = time.monotonic() - started
        return Taken(place, written, server.name, {**self._failed, **results}, seconds)

    @property
    def origin_or_fail(self) -> Origin:
        """Whose backups these are; known once the server is."""
        assert self.origin is not None
        return self.origin

    @staticmethod
    def _moved(before: Definitions, environment: Mapping[str, str]) -> tuple[str, ...]:
        with closing(open_connection(environment)) as connection:
            return tuple(before.moved(read_definitions(connection)))

    def _catalog(self, catalog: SchemaCatalog) -> Content:
        content = catalog_content(catalog)
        if not self._options.recipients:
            return content
        return replace(content, chunks=encrypt(content.chunks, self._options.recipients), encrypted=True)

    def _progress(self, format: Format, chunks: Iterable[bytes]) -> Iterator[bytes]:
        size, began = 0, time.monotonic()
        told = began
        for chunk in chunks:
            yield chunk
            size += len(chunk)
            now = time.monotonic()
            if now - told >= TELL_EVERY:
                told = now
                self._report(f"{format}: {size >> 20} MiB, {size / 2**20 / (now - began):.1f} MiB/s")
        self._report(f"{format}: {size} bytes in {time.monotonic() - began:.1f} s")

    def _told(self, taken: Taken, more: dict[str, Any]) -> Result:
        more = {**more, "source": taken.source, "repositories": _told_repositories(taken.results)}
        failed = {name: item for name, item in taken.results.items() if not item.ok}
        self._failed = failed
        good = [name for name, item in taken.results.items() if item.ok]
        if good:
            manifest = taken.manifest
            assert manifest is not None
            more |= {"backup": taken.place.id, "bytes": manifest.bytes}
        if failed:
            text, transient = _why(failed.values())
            kept = f" The backup is in {', '.join(good)}." if good else ""
            return Result.failure(RunFailure(Reason.REPOSITORY_FAILED, f"{text}.{kept}", transient), **more)
        assert taken.manifest is not None
        rows = sum(taken.manifest.rows.values())
        message = (
            f"{taken.place.id}: {len(taken.manifest.rows)} tables with {rows} rows of {taken.source},"
            f" {taken.manifest.bytes >> 10} KiB in {taken.seconds:.1f} s, in {', '.join(good)}."
        )
        return Result.success(message, **more)


class _Head:
    """The beginning of a stream, until the sequences' values are found in it."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[int, bool]] | None = None

    def keep(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        head = b""
        for chunk in chunks:
            if self.values is None and len(head) < _HEAD:
                head += chunk
                self.values = sequence_values(head)
            yield chunk


def _why(failed: Iterable[Stored]) -> tuple[str, bool]:
    """What is wrong with repositories, and whether that may pass."""
    items = list(failed)
    return "; ".join(item.message for item in items), any(item.transient for item in items)


def _told_repositories(results: Mapping[str, Stored]) -> dict[str, Any]:
    return {
        name: {"ok": True} if item.ok else {"ok": False, "message": cut(item.message, 400)}
        for name, item in results.items()
    }
