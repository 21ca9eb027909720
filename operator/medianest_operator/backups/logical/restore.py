"""A backup back into an empty database: all of it, or an error; and verified equal to what was backed up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from medianest_operator.backups.ending import timed_result
from medianest_operator.backups.logical.dump import DumpError
from medianest_operator.backups.logical.filling import Plan, Target, fill, inspect, plan, read_restored
from medianest_operator.backups.logical.finding import Found, Wanted, choose, look
from medianest_operator.backups.logical.new_database import NewDatabase
from medianest_operator.backups.logical.room import check_room, taken_before
from medianest_operator.backups.logical.server import is_final
from medianest_operator.backups.repository.catalog import LATEST, LATEST_VERIFIED, Backup, write_verification
from medianest_operator.backups.repository.client import Repository, RepositoryError
from medianest_operator.backups.repository.facts import Collation, read_collation
from medianest_operator.backups.repository.layout import Tier
from medianest_operator.backups.repository.manifest import Manifest, Verification
from medianest_operator.backups.verification.archive import Archive, downloaded
from medianest_operator.backups.verification.comparison import ACCEPTED, Comparison, compare
from medianest_operator.postgres.connect import ConnectError, connect, libpq_environment
from medianest_operator.results.backup import Reason, Result, RunFailure
from medianest_operator.results.text import cut, first_three

COLLATION = "collation of the database"
"""How a difference of it is accepted."""
_ELSEWHERE = (Reason.BACKUP_DAMAGED, Reason.REPOSITORY_FAILED)
"""What another repository's copy may not have."""


@dataclass(frozen=True)
class RestoreOptions:
    """What is asked for.

    Attributes:
        wanted: whose backup.
        which: `latest`, `latest-verified` or an id.
        work: a folder with room for the dump.
        identities: age's private keys.
        jobs: connections that restore at the same time.
        create: make the database first; until it is whole it has another name.
        keep: leave one that is not equal, under that name.
        strict: refuse what this role can't bring back as it was, unless it is accepted; otherwise it is only told.
        accepted: labels of objects that may differ, or may be lost (`CatalogObject.label`).
        asks: give up at once where somebody else could make extensions beforehand, and say which.
        accept_unsigned: restore a backup that is named by its id although it isn't signed by the present key.
        conninfo: the target's, for libpq; empty: its variables.
        wait: seconds that the server gets to let us in.
        before: only backups whose contents are of this moment or an earlier one.
        volume: bytes of the server's volume; 0: not known, and not looked at.
    """

    wanted: Wanted
    which: str
    work: Path
    identities: Sequence[str] = ()
    jobs: int = 2
    create: bool = False
    keep: bool = False
    strict: bool = False
    accepted: Sequence[str] = ()
    asks: bool = False
    accept_unsigned: bool = False
    conninfo: str = ""
    wait: float = 60.0
    before: datetime | None = None
    volume: int = 0


class RestoreRun:
    """Restores one backup.

    Args:
        repositories: where it may be, the preferred one first.
        report: called with a line of text now and then.
    """

    def __init__(
        self, repositories: Sequence[Repository], options: RestoreOptions, report: Callable[[str], None] = print
    ) -> None:
        self._repositories = repositories
        self._options = options
        self._report = report
        self._more: dict[str, Any] = {}

    def run(self) -> Result:
        """Restore; nothing is raised but what a bug raises."""
        return timed_result(self._restore, "The restore was asked to stop; it is not complete.", self._more)

    def _restore(self) -> Result:
        return from_newest_whole(self._repositories, self._options, self._report, self._restore_one)

    def _restore_one(self, places: Sequence[tuple[Repository, Backup]], notes: Sequence[str]) -> Result:
        options = self._options
        manifest = places[0][1].manifest
        assert manifest is not None
        self._more["backup"] = manifest.id
        check_version(manifest)
        with ExitStack() as stack:
            connection, made_for_it = self._connect(manifest, stack)
            stack.enter_context(closing(connection))
            check_server(manifest, connection)
            different = [] if made_for_it else self._other_collation(manifest, connection)
            check_room(connection, manifest, options.volume)
            target = inspect(connection, libpq_environment(connection))
            archive, repository = stack.enter_context(first_whole(places, options, self._report))
            self._more |= {"repository": repository.name, "schemaVersion": manifest.schema_version}
            made = self._plan(target, archive)
            began = time.monotonic()
            self._report(f"restoring {len(made.entries)} entries with {options.jobs} connections")
            fill(target, archive, made, options.jobs)
            self._report(f"restored in {time.monotonic() - began:.1f} s; comparing")
            comparison = compare(
                manifest,
                archive.catalog,
                read_restored(target),
                losses=None if options.strict else made.losses,
                accepted=options.accepted,
            )
            # Where it is strict, each difference that was accepted is a note already.
            comparison.notes[:0] = [*notes, *different, *(() if options.strict else made.losses.told())]
            self._check(manifest, comparison)
            connection.close()
            if made_for_it is not None:
                comparison.notes += made_for_it.finish()
            result = self._told(manifest, comparison)
            stack.pop_all().close()
        return result

    def _plan(self, target: Target, archive: Archive) -> Plan:
        """What is restored.

        Raises:
            RunFailure: not all of it can be, and that was not accepted.
        """
        options = self._options
        try:
            made = plan(target, archive)
        except DumpError as error:
            raise RunFailure(Reason.BACKUP_DAMAGED, f"{archive.manifest.id} can't be read: {error}") from error
        if made.extensions and options.asks:
            self._more["extensions"] = dict(made.extensions)
            names = ", ".join(sorted(made.extensions))
            text = f"Extensions {names} have to be made by a superuser before {archive.manifest.id} is restored."
            raise RunFailure(Reason.EXTENSIONS_MISSING, text, transient=True)
        if not options.strict or archive.catalog is None:
            return made
        lost = [label for label in made.losses.objects(archive.catalog) if label not in options.accepted]
        if lost:
            self._tell_differences(lost)
            shown = "; ".join(lost[:5]) + (f"; and {len(lost) - 5} more" if len(lost) > 5 else "")
            raise RunFailure(
                Reason.NOT_RESTORABLE,
                f"{archive.manifest.id} has what role {target.connection.info.user} can't bring back as it was:"
                f" {shown}. Nothing was changed.",
            )
        return made

    def _other_collation(self, manifest: Manifest, connection: Connection[Any]) -> list[str]:
        """Where the database sorts otherwise than the one that was backed up, in words.

        Raises:
            RunFailure: it does, and that was not accepted.
        """
        here = read_collation(connection)
        there = Collation.of(manifest)
        if here == there or COLLATION in self._options.accepted:
            return [] if here == there else [f"{ACCEPTED}the database sorts by {here}, and sorted by {there}"]
        text = f"the database sorts by {here}, and the one that was backed up by {there}"
        if not self._options.strict:
            return [text]
        self._more["differences"] = [COLLATION]
        raise RunFailure(
            Reason.NOT_RESTORABLE,
            f"{manifest.id} can't be restored as it was: {text} ({COLLATION}). Nothing was changed.",
        )

    def _connect(self, manifest: Manifest, stack: ExitStack) -> tuple[Connection[Any], NewDatabase | None]:
        """The database to fill; one that is made for it is taken away again where the restore fails."""
        options = self._options
        if not options.create:
            return open_target(options.conninfo, options.wait, self._report), None

        def connect(dbname: str) -> Connection[Any]:
            return open_target(options.conninfo, options.wait, self._report, dbname)

        made = NewDatabase(connect, _target_name(options.conninfo), manifest)
        made.make()

        def end(kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
            if kind is None:
                return
            if options.keep and isinstance(error, RunFailure) and error.reason is Reason.NOT_EQUAL:
                error.message += f" It is kept as database {made.filling}."
            else:
                made.drop()

        stack.push(end)
        return connect(made.filling), made

    def _check(self, manifest: Manifest, comparison: Comparison) -> None:
        self._more |= {"tables": comparison.tables, "rows": comparison.rows}
        if comparison.differences:
            self._tell_differences(comparison.differences)
            raise RunFailure(
                Reason.NOT_EQUAL, f"{manifest.id} was restored, but is not what was backed up: {comparison.describe()}."
            )

    def _tell_differences(self, lines: Sequence[str]) -> None:
        """All of them in the log, too: a result holds only so many."""
        self._more["differences"] = list(lines)
        for line in lines:
            self._report(f"difference: {line}")

    def _told(self, manifest: Manifest, comparison: Comparison) -> Result:
        verification = "catalog, row counts and sequences equal those of the backup"
        if comparison.exact:
            verification = "fingerprint, row counts and sequences are exactly those of the backup"
        if any(note.startswith(ACCEPTED) for note in comparison.notes):
            verification = f"but for what was accepted, {verification}"
        notes = "".join(f" Note: {note}." for note in comparison.notes)
        message = f"Restored {manifest.id}: {comparison.tables} tables, {comparison.rows} rows; {verification}.{notes}"
        return Result.success(cut(message), **self._more, differences=[])


def from_newest_whole(
    repositories: Sequence[Repository],
    options: RestoreOptions,
    report: Callable[[str], None],
    attempt: Callable[[Sequence[tuple[Repository, Backup]], Sequence[str]], Result],
) -> Result:
    """Restore the backup that is asked for; whoever asks for the latest asks for one that is good.

    Args:
        attempt: restores one backup, out of one of the repositories that have it; told why it isn't a newer one.

    Raises:
        RunFailure: there is none, or `attempt` fails.
    """
    found = eligible(repositories, options, report)
    places = choose(found, options.which, accept_unsigned=options.accept_unsigned)
    unread = why_not_newer(found, options, places[0][1])
    rotten: dict[str, str] = {}
    while True:
        try:
            return attempt(places, [*unread, *rotten.values()])
        except RunFailure as failure:
            if failure.reason is not Reason.BACKUP_DAMAGED or options.which not in (LATEST, LATEST_VERIFIED):
                raise
            rotten[places[0][1].id] = f"{failure.message}, so the one before was taken"
            try:
                places = choose(found, options.which, but=rotten)
            except RunFailure:
                raise failure from None
            report(f"{failure.message}; trying the one before")


def why_not_newer(found: Found, options: RestoreOptions, taken: Backup) -> list[str]:
    """What may be newer than the backup that is taken, and why it isn't that one, in words."""
    if options.which not in (LATEST, LATEST_VERIFIED):
        return []
    unread = [f"repository {name} could not be looked into ({text})" for name, text in found.failures.items()]
    every = sorted((backup for catalog in found.catalogs for backup in catalog.backups), key=lambda item: item.rank)
    newer = [
        item
        for item in every
        if item.rank > taken.rank and item.place.origin == taken.place.origin and item.tier != Tier.REPLACED
    ]
    if unsigned := list(dict.fromkeys(item.id for item in newer if item.is_whole and not item.is_authentic)):
        count = f"{len(unsigned)} newer ones are" if len(unsigned) > 1 else "a newer one is"
        unread.append(f"{count} not signed by the present key ({first_three(unsigned[::-1], ', ')})")
    return unread


@contextmanager
def first_whole(
    places: Sequence[tuple[Repository, Backup]], options: RestoreOptions, report: Callable[[str], None]
) -> Iterator[tuple[Archive, Repository]]:
    """A backup's dump on this machine, from the first repository that has all of it.

    Raises:
        RunFailure: none has, or it can't be read here.
    """
    with ExitStack() as stack:
        for number, (repository, backup) in enumerate(places, start=1):
            try:
                archive = stack.enter_context(downloaded(repository, backup, options.work, options.identities, report))
                break
            except RunFailure as failure:
                if failure.reason is Reason.BACKUP_DAMAGED:
                    _note_damage(repository, backup, failure.message)
                if number == len(places) or failure.reason not in _ELSEWHERE:
                    raise
                report(f"{failure.message}; trying {places[number][0].name}")
        yield archive, repository


def _note_damage(repository: Repository, backup: Backup, message: str) -> None:
    """So that nobody else takes it. A repository that can only be read is good enough to restore from."""
    with suppress(RepositoryError):
        write_verification(repository, backup, Verification.of(False, datetime.now(UTC), 0, cut(message)))


def eligible(repositories: Sequence[Repository], options: RestoreOptions, report: Callable[[str], None]) -> Found:
    """The backups that come into question.

    Raises:
        RunFailure: there are backups, but all are of a later moment than the one that is asked for.
    """
    found = look(repositories, options.wanted, report)
    return found if options.before is None else taken_before(found, options.before)


def open_target(
    conninfo: str, wait: float, report: Callable[[str], None], dbname: str | None = None
) -> Connection[Any]:
    """A connection to the database that is to be filled.

    Raises:
        RunFailure: there is none.
    """
    text = psycopg.conninfo.make_conninfo(conninfo, dbname=dbname) if dbname else conninfo
    try:
        return connect(text, wait, report, "restore")
    except ConnectError as error:
        raise RunFailure(
            Reason.CONNECT_FAILED, f"No connection within {wait:g} s: {error}", not is_final(error)
        ) from error


def check_version(manifest: Manifest) -> None:
    """Refuse a dump that this pg_restore can't read.

    Raises:
        RunFailure: it is of a newer one.
    """
    from medianest_operator.backups.repository.facts import pg_dump_version

    own = pg_dump_version()
    if _major(manifest.pg_dump_version) > _major(own):
        raise RunFailure(
            Reason.UNSUPPORTED_VERSION,
            f"{manifest.id} was made by pg_dump {manifest.pg_dump_version}, which pg_restore {own} can't read.",
        )


def check_server(manifest: Manifest, connection: Connection[Any]) -> None:
    """Refuse a dump of a newer server.

    Raises:
        RunFailure: it is of one.
    """
    version = connection.info.server_version // 10000
    if _major(manifest.postgres_version) > version:
        raise RunFailure(
            Reason.UNSUPPORTED_VERSION,
            f"{manifest.id} is of PostgreSQL {manifest.postgres_version}; it can't go back to a server of version"
            f" {version}. Nothing was changed.",
        )


def _major(version: str) -> int:
    digits = version.partition(".")[0].partition(" ")[0]
    return int(digits) if digits.isdigit() else 0


def _target_name(conninfo: str) -> str:
    from os import environ

    given = psycopg.conninfo.conninfo_to_dict(conninfo)
    return str(given.get("dbname") or environ.get("PGDATABASE") or given.get("user") or environ.get("PGUSER", ""))
