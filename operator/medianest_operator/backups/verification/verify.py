"""The verification that a backup can be restored: it is, into a throwaway server, and compared and checked there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from medianest_operator.backups.ending import result_of
from medianest_operator.backups.logical.copying import copy_archive
from medianest_operator.backups.logical.dump import DumpError
from medianest_operator.backups.logical.finding import Wanted, choose, look, of_newest
from medianest_operator.backups.logical.new_database import collation_missing
from medianest_operator.backups.logical.restore import check_version
from medianest_operator.backups.logical.toc import LeftOut, read_toc
from medianest_operator.backups.repository.catalog import (
    LATEST,
    LATEST_VERIFIED,
    Backup,
    Catalog,
    write_verification,
)
from medianest_operator.backups.repository.client import Repository, RepositoryError
from medianest_operator.backups.repository.manifest import Manifest, Verification
from medianest_operator.backups.repository.store import DamagedError, fetch
from medianest_operator.backups.verification import amcheck
from medianest_operator.backups.verification.archive import Archive, downloaded
from medianest_operator.backups.verification.comparison import Comparison, Contents, Losses, compare, read_contents
from medianest_operator.backups.verification.in_place import restore_in_place
from medianest_operator.backups.verification.rereading import read_again
from medianest_operator.postgres.copies import DatabaseCopy, RoleCopy, seal
from medianest_operator.postgres.sandbox import LocalSandbox, Sandbox
from medianest_operator.postgres.throwaway import ThrowawayError, ThrowawayServer
from medianest_operator.results.backup import Reason, Result, RunFailure
from medianest_operator.results.text import cut

JOBS = 2
_READ_BACK = "readBack"
"""The only stage of a copy that has the same bytes as one that was restored."""
# Beside this process and pg_restore in the same container, whose memory is small.
_SETTINGS = {
    "shared_buffers": "8MB",
    "maintenance_work_mem": "8MB",
    "wal_buffers": "1MB",
    "max_wal_size": "256MB",
    "max_connections": "8",
    # ANALYZE holds 300 rows for each, and large ones are some 100 MiB otherwise; nobody plans by its figures here.
    "default_statistics_target": "10",
}
# What speaks of the backup itself; everything else, of the place where it was tried.
_OF_BACKUP = frozenset({Reason.BACKUP_DAMAGED, Reason.RESTORE_FAILED, Reason.NOT_EQUAL})
_NO_ROOM = (
    "No space left on device", "could not extend file", "could not write", "Disk quota exceeded", "out of memory",
    "Cannot allocate memory", "out of shared memory",
)  # fmt: skip
_WORDS = {
    "rolsuper": ("SUPERUSER", ""),
    "rolinherit": ("", "NOINHERIT"),
    "rolcreatedb": ("CREATEDB", ""),
    "rolcanlogin": ("LOGIN", ""),
    "rolbypassrls": ("BYPASSRLS", ""),
}


@dataclass
class Stages:
    """How long each part took, seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - began, 2)


@dataclass(frozen=True)
class VerifyOptions:
    """What is asked for.

    Attributes:
        wanted: whose backup.
        which: `latest`, `latest-verified` or an id.
        work: a folder with room for the dump and, without a sandbox, for the restored database.
        identities: age's private keys.
        reread: how long a verified backup may stay unread; the others are read back afterwards where it is set.
        now: the clock.
        sandbox: where the copy is made; a server beside this process without it.
    """

    wanted: Wanted
    which: str
    work: Path
    identities: Sequence[str] = ()
    reread: timedelta | None = None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sandbox: Sandbox | None = None


class VerifyRun:
    """Verifies one backup.

    Args:
        repositories: where it may be.
        report: called with a line of text now and then.
    """

    def __init__(
        self, repositories: Sequence[Repository], options: VerifyOptions, report: Callable[[str], None] = print
    ) -> None:
        self._repositories = repositories
        self._options = options
        self._report = report
        self._more: dict[str, Any] = {}
        self._lost: list[str] = []

    def run(self) -> Result:
        """Verify; nothing is raised but what a bug raises."""
        stages = Stages()
        stopped = "The verification was asked to stop; it says nothing."
        result = result_of(lambda: self._verify(stages), stopped, self._more)
        result.more = {**self._more, "seconds": stages.seconds, **result.more}
        return result

    def _verify(self, stages: Stages) -> Result:
        found = look(self._repositories, self._options.wanted, self._report)
        for catalog in found.catalogs:
            self._more.setdefault("catalog", {})[catalog.repository.name] = catalog.summary()
        wanted = self._options.wanted
        if wanted.namespace and wanted.name and self._options.which in (LATEST, LATEST_VERIFIED) and found.origins():
            # A drill replaces nothing: it needn't be told which system of this name is meant.
            found = of_newest(found)
        places = choose(found, self._options.which)
        repository, backup = _least_verified(places)
        self._more |= {"backup": backup.id, "repository": repository.name}
        failure: RunFailure | None = None
        began = time.monotonic()
        try:
            message = self._try(repository, backup, stages)
        except RunFailure as error:
            if error.reason not in _OF_BACKUP or error.transient:
                raise
            failure, message = error, error.message
        seconds = time.monotonic() - began
        verification = Verification.of(
            failure is None, self._options.now(), seconds, cut(message), stages.seconds, self._lost
        )
        noted = self._note(repository, backup, verification)
        if failure is None:
            noted += self._read_back(backup, [place for place in places if place[0] is not repository], verification)
        if failure is not None:
            return Result.failure(RunFailure(Reason.VERIFICATION_FAILED, f"{backup.id} is not good: {message}{noted}"))
        told = f"Verified {backup.id} of {repository.name}: {message}{noted}"
        if rotten := self._read_again(backup):
            return Result.failure(RunFailure(Reason.VERIFICATION_FAILED, f"{'. '.join(rotten)}. {told}"))
        return Result.success(told)

    def _read_again(self, but: Backup) -> list[str]:
        """What has rotted since it was verified, in words."""
        if self._options.reread is None:
            return []
        try:
            catalogs = [Catalog.read(repository, but.place.origin) for repository in self._repositories]
            rotten = read_again(catalogs, self._options.reread, self._options.now(), self._report, but.id)
            for catalog in catalogs if rotten else ():
                summary = Catalog.read(catalog.repository, but.place.origin).summary()
                self._more["catalog"][catalog.repository.name] = summary
        except RepositoryError as error:
            self._report(f"verified backups were not read back: {error}")
            return []
        return rotten

    def _read_back(self, good: Backup, places: Sequence[tuple[Repository, Backup]], verification: Verification) -> str:
        """Another repository's copy is as good if it has the same bytes: they are read back and summed up again."""
        noted = ""
        for repository, copy in places:
            assert good.manifest is not None
            assert copy.manifest is not None
            if copy.manifest.files != good.manifest.files:
                noted += f" The one in {repository.name} is another: it needs a verification of its own."
                continue
            began = time.monotonic()
            try:
                for file in copy.manifest.files:
                    for _ in fetch(repository, copy.place, file):
                        pass
            except DamagedError as error:
                # What is left of it has to be told now, not at the next drill.
                damaged = Verification.of(False, self._options.now(), 0, cut(str(error)), {})
                self._note(repository, copy, damaged)
                raise RunFailure(
                    Reason.VERIFICATION_FAILED, f"{good.id} is good, but not in {repository.name}: {error}"
                ) from error
            except RepositoryError as error:
                noted += f" The one in {repository.name} could not be read back: {error}"
                continue
            seconds = round(time.monotonic() - began, 2)
            same = {**dict(verification), "message": f"the same bytes: {verification.message}"}
            self._note(repository, copy, Verification.model_validate(same | {"stages": {_READ_BACK: seconds}}))
            noted += f" The same bytes in {repository.name}."
        return noted

    def _note(self, repository: Repository, backup: Backup, verification: Verification) -> str:
        try:
            write_verification(repository, backup, verification)
            catalog = Catalog.read(repository, backup.place.origin)
        except RepositoryError as error:
            return f" That could not be noted: {error}"
        self._more["catalog"][repository.name] = catalog.summary()
        return ""

    def _try(self, repository: Repository, backup: Backup, stages: Stages) -> str:
        manifest = backup.manifest
        assert manifest is not None
        check_version(manifest)
        work = self._options.work
        identities, size = self._options.identities, manifest.database_bytes
        with downloaded(repository, backup, work, identities, self._report, size) as archive:
            stages.seconds["download"] = round(archive.seconds, 2)
            try:
                return self._restore(archive, stages)
            except ThrowawayError as error:
                reason = Reason.INTERNAL_ERROR if error.transient else Reason.NO_ROOM
                raise RunFailure(reason, f"{work}: {error}", error.transient) from error
            except (psycopg.errors.WrongObjectType, psycopg.errors.InvalidParameterValue) as error:
                raise collation_missing(manifest, error) from error
            except psycopg.errors.FeatureNotSupported as error:
                # An extension whose files aren't there.
                raise RunFailure(
                    Reason.TARGET_UNFIT, f"The backup needs what is not installed here: {_plain(error)}"
                ) from error
            except psycopg.Error as error:
                text = f"The throwaway server gave up: {_plain(error)}"
                raise RunFailure(Reason.INTERNAL_ERROR, text, transient=True) from error

    def _restore(self, archive: Archive, stages: Stages) -> str:
        """As a restore in place does it; where that doesn't bring everything back, as a superuser would."""
        try:
            with self._server(archive) as server:
                database, roles = _database(archive.manifest), _roles(archive.manifest)
                tried = restore_in_place(server, archive, database, roles, JOBS, stages.timed)
        except (RunFailure, DumpError) as error:
            failure = _failure(error)
            if failure.reason is not Reason.RESTORE_FAILED or failure.transient:
                raise failure from error
            told = self._as_superuser(archive, stages)
            self._lost = [f"anything: {failure.message}"]
            return f"{told} A restore in place fails: {failure.message}"
        _check(tried.problems)
        if not tried.lost and not tried.comparison.differences:
            return _told(tried.comparison, tried.checked, stages)
        told = self._as_superuser(archive, stages)
        self._lost = [*tried.lost, *tried.comparison.objects] or tried.comparison.differences
        return f"{told} A restore in place doesn't bring back: {_listed(self._lost)}."

    def _as_superuser(self, archive: Archive, stages: Stages) -> str:
        """With all owners and rights, and what the restore in place has no right to."""
        manifest = archive.manifest
        self._report("a restore in place doesn't bring everything back; trying it as a superuser would")
        with self._server(archive) as server:
            try:
                with stages.timed("restore"):
                    copied = copy_archive(server, archive.path, _database(manifest), _roles(manifest), JOBS)
            except DumpError as error:
                raise _failure(error) from error
            seal(copied.room)
            with closing(copied.room.connect_reader()) as connection:
                with stages.timed("compare"):
                    found = read_contents(connection)
                    found = replace(found, catalog=found.catalog.without_extensions(copied.room.brought))
                    _check_tables(manifest, found, copied.left)
                    comparison = compare(manifest, archive.catalog, found, losses=Losses(copied.left))
                if comparison.differences:
                    raise RunFailure(Reason.NOT_EQUAL, f"it is not what was backed up: {comparison.describe()}")
                with stages.timed("amcheck"), closing(copied.room.connect_reader()) as beside:
                    checked, problems = amcheck.check([connection, beside])
        _check(problems)
        comparison.notes[:0] = copied.left.notes
        return _told(comparison, checked, stages)

    def _server(self, archive: Archive) -> AbstractContextManager[ThrowawayServer]:
        # One transaction may lock as much as there is, as a view of many partitions does.
        locks = max(64, len(read_toc(archive.path)) // 2)
        sandbox = self._options.sandbox or LocalSandbox(self._options.work)
        return sandbox.server({**_SETTINGS, "max_locks_per_transaction": str(locks)})


def _check_tables(manifest: Manifest, found: Contents, left: LeftOut) -> None:
    """A backup isn't verified where rows of it were left out; neither is it bad."""
    lacking = sorted(
        name for name, count in manifest.rows.items() if count and name not in found.rows and left.has_table(name)
    )
    if lacking:
        raise RunFailure(
            Reason.TARGET_UNFIT,
            f"Nothing is known of the rows of {_listed(lacking)}: the table needs what only a superuser may make, and a"
            " sandbox makes nothing of the kind. It stays unverified.",
        )


def _check(problems: Sequence[str]) -> None:
    if problems:
        raise RunFailure(Reason.NOT_EQUAL, f"amcheck found damage: {'; '.join(problems[:3])}")


def _failure(error: RunFailure | DumpError) -> RunFailure:
    """What a restore that failed says of the backup: nothing, where there was no room for it here."""
    transient = error.transient
    if isinstance(error, RunFailure) and error.reason is not Reason.RESTORE_FAILED:
        return error
    here = any(words in str(error) for words in _NO_ROOM)
    return RunFailure(Reason.NO_ROOM if here else Reason.RESTORE_FAILED, f"it can't be restored: {error}", transient)


def _told(comparison: Comparison, checked: int, stages: Stages) -> str:
    seconds = stages.seconds
    notes = "".join(f" Note: {note}." for note in comparison.notes)
    return (
        f"{comparison.tables} tables with {comparison.rows} rows restored in"
        f" {seconds['download'] + seconds['restore']:.1f} s, {'fingerprint' if comparison.exact else 'catalog'},"
        f" rows and sequences equal, {checked} tables and indexes checked.{notes}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _database(manifest: Manifest) -> DatabaseCopy:
    icu_locale = manifest.database.icu_locale if manifest.database else None
    # The sandbox's server has a database of PostgreSQL's own already.
    name = f"{manifest.dbname}_copy" if manifest.dbname in ("postgres", "template1") else manifest.dbname
    return DatabaseCopy(name, manifest.owner, manifest.encoding, manifest.collate, manifest.ctype, icu_locale)


def _plain(error: psycopg.Error) -> str:
    return " ".join(str(error).split())


def _least_verified(places: Sequence[tuple[Repository, Backup]]) -> tuple[Repository, Backup]:
    """Of the copies of a backup the one that was not verified, or only read back, or longest ago: they take turns."""

    def merit(place: tuple[Repository, Backup]) -> tuple[int, datetime]:
        verification = place[1].verification
        if verification is None:
            return 0, datetime.min.replace(tzinfo=UTC)
        return 1 if _READ_BACK in verification.stages else 2, verification.at

    return min(places, key=merit)


def _roles(manifest: Manifest) -> list[RoleCopy]:
    roles = []
    for role in manifest.roles:
        words = [_WORDS[name][0 if value else 1] for name, value in role.attributes.items() if name in _WORDS]
        roles.append(RoleCopy(role.name, tuple(word for word in words if word), role.member_of))
    return roles
