"""Which backups there are: the repository is the truth, and this reads it. What isn't ours is ignored."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from medianest_operator.backups.repository import layout
from medianest_operator.backups.repository.client import NotThereError, Repository, RepositoryError, StoredObject
from medianest_operator.backups.repository.layout import Format, Origin, Place, Tier
from medianest_operator.backups.repository.manifest import (
    LARGEST,
    Manifest,
    ManifestError,
    NewerFormatError,
    Verification,
)
from medianest_operator.backups.repository.seals import Signature
from medianest_operator.backups.repository.store import ABANDONED, READ_AT_MOST
from medianest_operator.timestamps import stamp, stamp_exactly, stamp_now

LATEST = "latest"
LATEST_VERIFIED = "latest-verified"
# Documents that are read at the same time: in a bucket each of them is a round trip.
_READERS = 4
_MOST_LOST = 10
_MOST_SHOWN = 20
_ACCEPT = "To restore it all the same, accept that it is unsigned (acceptUnsigned, --accept-unsigned)"
_BESIDE = timedelta(minutes=1)
"""The clocks of those that take backups at the same time differ by less."""
_NEVER = datetime.min.replace(tzinfo=UTC)


class CatalogError(Exception):
    """There is no such backup; the text says what there is."""


class State(StrEnum):
    """What a folder with our files is."""

    COMPLETE = "Complete"
    INCOMPLETE = "Incomplete"
    """Without a manifest: being written, or left over. It is no backup."""
    DAMAGED = "Damaged"
    """With a manifest that can't be read, or that isn't true. What is left of it may still be of use to a person."""
    NEWER = "Newer"
    """Of a newer version of the operator, which alone can read it."""


@dataclass(frozen=True)
class Backup:
    """A backup in one repository, or what should be one.

    Attributes:
        repository: its name.
        place: where it lies.
        state: whether it is one.
        reason: what is damaged, or which format it has.
        manifest: of a complete one, and of a damaged one whose manifest can be read.
        verification: what its newest restore showed, if there was any.
        is_unclear: what a restore showed was noted, and can't be read, or is of another manifest.
        is_whole: all that its manifest names is there, in its size; a damaged one may still be signed by a key that is
            lost, or be somebody else's.
        signature: its manifest's.
        read: somebody reads it at the moment.
        modified: of its newest object, by the repository's clock.
        bytes: of all its objects.
    """

    repository: str
    place: Place
    state: State
    reason: str = ""
    manifest: Manifest | None = None
    verification: Verification | None = None
    is_unclear: bool = False
    is_whole: bool = False
    signature: Signature = Signature.UNCHECKED
    read: bool = False
    modified: datetime = _NEVER
    bytes: int = 0

    @property
    def id(self) -> str:
        """Its id."""
        return self.place.id

    @property
    def tier(self) -> Tier:
        """Its tier."""
        return self.place.tier

    @property
    def taken_at(self) -> datetime:
        """What moment its contents are of: its manifest's word, else its id's, which is when it began."""
        if self.manifest is not None:
            return self.manifest.taken_at
        moment = layout.id_moment(self.id)
        assert moment is not None
        return moment

    @property
    def moment(self) -> datetime:
        """As `taken_at`, by the server's clock where that is known."""
        return self.manifest.moment if self.manifest is not None else self.taken_at

    @property
    def rank(self) -> tuple[datetime, datetime, str]:
        """By which backups are newer than others: the moment of the id, see `layout.new_id`; of several of the same
        moment what their contents are of, rather than the letters at their ends."""
        moment = layout.id_moment(self.id)
        assert moment is not None
        return moment, self.taken_at, self.id

    @property
    def is_authentic(self) -> bool:
        """Whether it is signed, where there is a key to say so."""
        return self.signature in (Signature.GOOD, Signature.UNCHECKED)

    @property
    def is_good(self) -> bool:
        """Complete, and no restore of it has failed."""
        return self.state is State.COMPLETE and (self.verification is None or self.verification.ok)

    @property
    def is_verified(self) -> bool:
        """Complete, and restored with success."""
        return self.state is State.COMPLETE and self.verification is not None and self.verification.ok


class Catalog:
    """The backups of a repository, the oldest first.

    Ids, not clocks, say which is newer: see `layout.new_id`.

    Args:
        as_of: when it was looked at; what was changed later isn't in it.
    """

    def __init__(self, repository: Repository, backups: Sequence[Backup], as_of: datetime | None = None) -> None:
        self.repository = repository
        self.as_of = as_of
        self.backups = tuple(sorted(backups, key=lambda backup: (backup.rank, backup.place)))

    @classmethod
    def read(cls, repository: Repository, origin: Origin | None = None) -> Catalog:
        """Read it, of one database or of all.

        Raises:
            RepositoryError: it can't be read; never because of what a document says.
        """
        as_of = datetime.now(UTC)
        objects = repository.list(origin.prefix if origin else "")
        folders: dict[Place, dict[str, StoredObject]] = defaultdict(dict)
        for item in objects:
            parsed = layout.parse(item.path)
            if parsed is not None:
                folders[parsed[0]][parsed[1]] = item
        if not folders:
            return cls(repository, (), as_of)
        newest = max(item.modified for item in objects)
        with ThreadPoolExecutor(_READERS, "catalog") as pool:
            found = pool.map(lambda place: _look(repository, place, folders[place], newest), list(folders))
            return cls(repository, [backup for backup in found if backup is not None], as_of)

    def of(self, origin: Origin) -> Catalog:
        """The backups of one database."""
        return Catalog(
            self.repository, [backup for backup in self.backups if backup.place.origin == origin], self.as_of
        )

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The databases that have anything here."""
        return tuple(sorted({backup.place.origin for backup in self.backups}))

    def choose(
        self,
        which: str,
        needs: Format | None = Format.CUSTOM,
        *,
        accept_unsigned: bool = False,
        but: Collection[str] = (),
    ) -> Backup:
        """A backup to restore.

        Args:
            which: `latest`, the newest complete one that no restore has shown to be bad; `latest-verified`, the newest
                one that a restore has shown to be good; or an id.
            needs: the format of a file that it has to have.
            accept_unsigned: take one that is named by its id although it has no signature, or another key's.
            but: ids that are neither the latest nor the latest verified.

        Raises:
            CatalogError: there is none, it is none, or the backups are of several databases.
        """
        where = f"repository {self.repository.name}"
        if len(self.origins) > 1:
            known = ", ".join(origin.prefix for origin in self.origins[:5])
            raise CatalogError(f"{where} has backups of several databases, say which: {known}")
        if which in (LATEST, LATEST_VERIFIED):
            fitting = [
                backup
                for backup in self.backups
                if (backup.is_verified if which == LATEST_VERIFIED else backup.is_good)
                and backup.tier is not Tier.REPLACED
                and backup.is_authentic
                and backup.id not in but
                and _has(backup, needs)
            ]
            if not fitting:
                kind = "verified backup" if which == LATEST_VERIFIED else "backup"
                raise CatalogError(f"{where} has no {kind} that could be restored; {self._told()}{self._unsigned()}")
            return fitting[-1]
        found = next((backup for backup in self.backups if backup.id == which), None)
        if found is None:
            raise CatalogError(f"{where} has no backup {which}; {self._told()}")
        if found.state is State.INCOMPLETE:
            raise CatalogError(f"{where}: {which} is no backup: it has no manifest, so it never was complete")
        if found.state is State.DAMAGED and not (found.is_whole and accept_unsigned):
            how = f". {_ACCEPT}" if found.is_whole else ""
            raise CatalogError(f"{where}: the backup {which} is damaged: {found.reason}{how}")
        if found.state is State.NEWER:
            raise CatalogError(f"{where}: the backup {which} can't be read by this version: {found.reason}")
        if not found.is_authentic and not accept_unsigned:
            raise CatalogError(
                f"{where}: the backup {which} is not signed by the key that backups are signed with, so anybody who can"
                f" write there may have made it. {_ACCEPT}"
            )
        if not _has(found, needs):
            raise CatalogError(f"{where}: the backup {which} has no file of the format {needs}")
        return found

    def summary(self) -> dict[str, Any]:
        """What results and status say of it, about a kilobyte of JSON."""
        complete = [
            backup if backup.is_authentic else replace(backup, verification=None)
            for backup in self.backups
            if backup.state is State.COMPLETE
        ]
        tiers: dict[str, Any] = {}
        for backup in complete:
            count = tiers.get(backup.tier, {}).get("count", 0) + 1
            tiers[backup.tier.value] = {"count": count, "last": stamp(backup.taken_at), "backup": backup.id}
        summary: dict[str, Any] = {
            "count": len(complete),
            "bytes": sum(backup.bytes for backup in complete),
            "tiers": tiers,
            "newest": [_in_short(backup) for backup in complete[: -_MOST_SHOWN - 1 : -1]],
            "signed": sum(
                backup.signature is Signature.GOOD and backup.tier is not Tier.REPLACED for backup in complete
            ),
        }
        if (use := self.repository.volume_use()) is not None and use[1]:
            summary["usedPercent"] = use[0] * 100 // use[1]
        if self.as_of is not None:
            summary["asOf"] = stamp_exactly(self.as_of)
        verified = [backup for backup in complete if backup.is_verified and backup.tier is not Tier.REPLACED]
        if verified and (verification := verified[-1].verification) is not None:
            summary["lastVerified"] = {
                "backup": verified[-1].id,
                "at": stamp(verification.at),
                "seconds": verification.seconds,
                "lost": list(verification.lost[:_MOST_LOST]),
            }
        for state in (State.INCOMPLETE, State.DAMAGED, State.NEWER):
            count = sum(backup.state is state for backup in self.backups)
            if count:
                summary[state.lower()] = count
        return summary

    def _unsigned(self) -> str:
        """What to say of those that would be taken if they were signed by the present key; begins with a semicolon."""
        count = sum(backup.is_whole and not backup.is_authentic for backup in self.backups)
        if not count:
            return ""
        return (
            f"; {count} of them {'is' if count == 1 else 'are'} not signed by the present key, and can only be restored"
            " by id, with acceptUnsigned. Take a new backup, with verify: true"
        )

    def _told(self) -> str:
        # Also those that another key has signed: whoever has lost one looks for them.
        whole = [backup.id for backup in self.backups if backup.is_whole]
        if not whole:
            return "it has no complete backup of this database"
        return f"it has {len(whole)}, the newest {', '.join(whole[:-4:-1])}"


def _in_short(backup: Backup) -> list[Any]:
    """Id, bytes, whether a test restore of it went well, and the seconds from the id's moment to its contents' own,
    which come first where an id had to be later than one from a clock that was ahead: a result has little room."""
    began = layout.id_moment(backup.id)
    assert began is not None
    later = math.ceil((backup.moment - began).total_seconds())
    return [backup.id, backup.bytes, backup.verification.ok if backup.verification else None, later]


def ids_ahead(repository: Repository, origin: Origin, now: datetime) -> list[str]:
    """Of the ids that the clock isn't past those that a new one has to be later than, for `layout.new_id`.

    They are those of backups that count: of anything else somebody may have made that is far ahead, and letters at the
    end would then say which backup is the newest. What is hardly ahead may be one that is taken at the same time.

    Raises:
        RepositoryError: it can't be read.
    """
    ahead: dict[Place, StoredObject | None] = {}
    for item in repository.list(origin.prefix):
        place, name = layout.parse(item.path) or (None, "")
        if place is None or place.origin != origin or not _is_ahead(place, now.replace(microsecond=0)):
            continue
        ahead[place] = item if name == layout.MANIFEST else ahead.get(place)
    return [
        place.id
        for place, document in ahead.items()
        if not _is_ahead(place, now + _BESIDE) or _counts(repository, place, document)
    ]


def _is_ahead(place: Place, now: datetime) -> bool:
    moment = layout.id_moment(place.id)
    return moment is not None and moment >= now


def _counts(repository: Repository, place: Place, document: StoredObject | None) -> bool:
    """Whether there is a manifest that is this backup's, and signed where there is a key."""
    if document is None:
        return False
    try:
        return _manifest(repository, place, document)[0].signature in (Signature.GOOD, Signature.UNCHECKED)
    except ManifestError:
        return False
    except RepositoryError as error:
        # One that can't be read at all must not stop the backups.
        if error.transient:
            raise
        return False


@contextmanager
def reading(repository: Repository, backup: Backup | Place) -> Iterator[bool]:
    """Say that a backup is being read, so that nobody removes it meanwhile; for at most a day.

    Yields whether that could be said: a repository that can only be read is good enough to restore from.

    Raises:
        RepositoryError: the backup isn't there (any more).
    """
    place = backup if isinstance(backup, Place) else backup.place
    path = place.file(f"{layout.READING}{layout.token()}{layout.token()}.json")
    text = json.dumps({"at": stamp_now()}).encode()
    try:
        repository.write(path, [text])
        held = True
    except RepositoryError as error:
        if error.transient:
            raise
        held = False
    try:
        # Whoever removes looks for readers first; who reads looks whether it was removed before.
        if not [item for item in repository.list(place.folder) if item.path == place.file(layout.MANIFEST)]:
            raise NotThereError(f"repository {repository.name}: the backup {place.id} is not there any more")
        yield held
    finally:
        if held:
            with suppress(RepositoryError):
                repository.delete(path)


def write_verification(repository: Repository, backup: Backup | Place, verification: Verification) -> None:
    """Note what a restore of a backup showed, in place of what an earlier one did.

    Raises:
        RepositoryError: it can't be written.
    """
    place = backup if isinstance(backup, Place) else backup.place
    text = b"".join(repository.read(place.file(layout.MANIFEST)))
    noted = verification.model_copy(update={"manifest": hashlib.sha256(text).hexdigest()})
    repository.write(place.file(layout.VERIFICATION), [noted.to_bytes(repository.keys)])


def remove(repository: Repository, backup: Backup | Place) -> list[str]:
    """Remove a backup, unless somebody has begun to read it; returns the paths that are gone.

    The manifest goes first: from then on there is no such backup, whatever else can't be removed. A mark that is there
    before it, and goes last, tells the rest of a removal from a copy whose manifest is still to come.

    Raises:
        RepositoryError: something of it can't be removed.
    """
    place = backup if isinstance(backup, Place) else backup.place
    found = [item for item in repository.list(place.folder) if _is_of(item.path, place)]
    names = {item.path.rpartition("/")[2]: item for item in found}
    if any(name.startswith(layout.READING) for name in names):
        return []
    ordered = sorted(names, key=lambda name: (name != layout.MANIFEST, name))
    mark = place.file(f"{layout.WRITING}{layout.token()}{layout.token()}.json")
    # A repository that is full takes no mark, and is all the more to be freed.
    with suppress(RepositoryError):
        repository.write(mark, [json.dumps({"at": stamp_now()}).encode()])
    for name in ordered:
        repository.delete(names[name].path)
    repository.delete(mark)
    return [names[name].path for name in ordered]


def _is_of(path: str, place: Place) -> bool:
    parsed = layout.parse(path)
    return parsed is not None and parsed[0] == place


def _has(backup: Backup, format: Format | None) -> bool:
    return format is None or (backup.manifest is not None and backup.manifest.file(format) is not None)


def _look(repository: Repository, place: Place, files: Mapping[str, StoredObject], newest: datetime) -> Backup | None:
    """What a folder is; `None` where it has gone since it was listed."""
    modified = max(item.modified for item in files.values())
    common: dict[str, Any] = {
        "repository": repository.name,
        "place": place,
        "modified": modified,
        "bytes": sum(item.size for item in files.values()),
        "read": any(
            name.startswith(layout.READING) and newest - item.modified <= READ_AT_MOST for name, item in files.items()
        ),
    }
    document = files.get(layout.MANIFEST)
    if document is None:
        # Nothing but the mark of a reader or of a check: the backup was removed beside them.
        working = any(name.startswith(layout.WRITING) for name in files) and newest - modified <= ABANDONED
        return Backup(**common, state=State.INCOMPLETE, reason="being written" if working else "it has no manifest")
    try:
        manifest, digest = _manifest(repository, place, document)
    except NotThereError:
        return None
    except ManifestError as error:
        state = State.NEWER if isinstance(error.__cause__, NewerFormatError) else State.DAMAGED
        return Backup(**common, state=state, reason=str(error))
    verification = _verification(repository, files.get(layout.VERIFICATION), manifest, digest)
    common |= {
        "manifest": manifest,
        "signature": manifest.signature,
        "verification": verification,
        "is_unclear": verification is None and layout.VERIFICATION in files,
    }
    for file in manifest.files:
        stored = files.get(file.name)
        if stored is None:
            return Backup(**common, state=State.DAMAGED, reason=f"{file.name} is missing")
        if stored.size != file.bytes:
            reason = f"{file.name} has {stored.size} bytes, and had {file.bytes} when it was stored"
            return Backup(**common, state=State.DAMAGED, reason=reason)
    if manifest.signature is Signature.WRONG:
        reason = "its signature is by another key, or it was changed"
        return Backup(**common, state=State.DAMAGED, reason=reason, is_whole=True)
    return Backup(**common, state=State.COMPLETE, is_whole=True)


def _manifest(repository: Repository, place: Place, document: StoredObject) -> tuple[Manifest, str]:
    """The manifest, and its SHA-256."""
    if document.size > LARGEST:
        raise ManifestError(f"the manifest has {document.size} bytes, which none of ours has")
    text = b"".join(repository.read(document.path))
    try:
        manifest = Manifest.parse(text, repository.keys)
    except ManifestError as error:
        raise ManifestError(f"the manifest can't be read: {error}") from error
    if manifest.place != place:
        raise ManifestError(f"the manifest is that of another backup: {manifest.place.folder}")
    return manifest, hashlib.sha256(text).hexdigest()


def _verification(
    repository: Repository, document: StoredObject | None, manifest: Manifest, digest: str
) -> Verification | None:
    """What a restore showed of this very backup; one that can't be read, is another's or unsigned verifies nothing."""
    if document is None or document.size > LARGEST:
        return None
    with suppress(ManifestError, NotThereError):
        found = Verification.parse(b"".join(repository.read(document.path)), repository.keys)
        # The first version didn't say whose it is.
        is_its = found.manifest == digest or (found.manifest is None and manifest.format_version == 1)
        if is_its and found.signature in (Signature.GOOD, manifest.signature):
            return found
    return None
