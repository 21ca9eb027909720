"""Rot: what was verified once is read back again in turn, in every repository."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from medianest_operator.backups.repository.catalog import Backup, Catalog, write_verification
from medianest_operator.backups.repository.client import Repository, RepositoryError
from medianest_operator.backups.repository.manifest import Verification
from medianest_operator.backups.repository.store import DamagedError, fetch
from medianest_operator.results.text import cut


def read_again(
    catalogs: Sequence[Catalog], every: timedelta, now: datetime, report: Callable[[str], None], but: str = ""
) -> list[str]:
    """Read the verified backups that nobody has read for long; one that has rotted is noted as no longer good.

    Args:
        every: how long one may stay unread; from half of it on it is read, so that a run a month is often enough.
        but: the id of one that was restored just now.

    Returns what is no longer good, in words, with the next older one that is.
    """
    problems = []
    for catalog in catalogs:
        verified = [backup for backup in catalog.backups if backup.is_verified]
        due = [backup for backup in verified if backup.id != but and _last_read(backup) < now - every / 2]
        for backup in sorted(due, key=_last_read):
            repository = catalog.repository
            try:
                problem = _read(repository, backup, now)
            except RepositoryError as error:
                report(f"{backup.id} of {repository.name} could not be read back: {error}")
                continue
            if problem is None:
                report(f"read {backup.id} of {repository.name} back: {backup.bytes} bytes")
                continue
            older = [item.id for item in verified if item.id < backup.id]
            instead = f"the next older one that was verified is {older[-1]}" if older else "no older one was verified"
            what = f"{backup.id} of {repository.name} was verified and is no longer good"
            problems.append(f"{what}: {problem}; {instead}")
    return problems


def _last_read(backup: Backup) -> datetime:
    assert backup.verification is not None
    return backup.verification.read_at or backup.verification.at


def _read(repository: Repository, backup: Backup, now: datetime) -> str | None:
    """Why it is no longer what it was; `None`: it is."""
    assert backup.manifest is not None
    assert backup.verification is not None
    try:
        for file in backup.manifest.files:
            for _ in fetch(repository, backup.place, file):
                pass
    except DamagedError as error:
        write_verification(repository, backup, Verification.of(False, now, 0, cut(str(error))))
        return str(error)
    write_verification(repository, backup, backup.verification.model_copy(update={"read_at": now}))
    return None
