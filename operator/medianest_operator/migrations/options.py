"""How a migration run is to behave."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The controller reads the options too, and never a repository.
    from medianest_operator.backups.repository import Repository


class OnFailure(enum.StrEnum):
    """What becomes of what a failed run has done."""

    ROLLBACK = "Rollback"
    """The database goes back to where the run began, and that is proved."""
    HALT = "Halt"
    """What was applied before the failure stays, as Prisma's deploy does."""


class Rehearse(enum.StrEnum):
    """Whether the run is tried on a copy first."""

    AUTO = "Auto"
    """With the data up to a size, above it with the definitions alone."""
    ALWAYS = "Always"
    """With the data, whatever their size; where no copy can be made, nothing is applied."""
    NEVER = "Never"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run.

    Attributes:
        target: the last migration to apply; `None` applies all.
        on_failure: what becomes of what a failed run has done.
        rehearse: whether to try the run on a copy first.
        rehearsal_limit: up to which size of the database `Auto` copies the data, bytes.
        allow_destructive: let statements run that lose data.
        lock_timeout: how long a statement waits for a table's lock, milliseconds; 0 waits for ever.
        lock_attempts: how often a transaction that got no lock is tried in one run.
        statement_timeout: how long a statement may take, milliseconds; 0 sets no limit.
        run_lock_timeout: how long to wait for another run to end, seconds. Prisma waits 10.
        retry: an id; another one lets a source be tried again that failed.
        once: don't try again what failed with the same source and options.
    """

    target: str | None = None
    on_failure: OnFailure = OnFailure.ROLLBACK
    rehearse: Rehearse = Rehearse.AUTO
    rehearsal_limit: int = 2 << 30
    allow_destructive: bool = False
    lock_timeout: int = 10_000
    lock_attempts: int = 3
    statement_timeout: int = 0
    run_lock_timeout: float = 10.0
    retry: str | None = None
    once: bool = False

    def digested(self) -> Mapping[str, object]:
        """What of them decides over a run's outcome, for `content_digest`."""
        return {
            "target": self.target,
            "onFailure": self.on_failure.value,
            "rehearse": self.rehearse.value,
            "allowDestructive": self.allow_destructive,
            "lockTimeout": self.lock_timeout,
            "statementTimeout": self.statement_timeout,
            "retry": self.retry,
        }


@dataclass(frozen=True)
class Workbench:
    """What a run needs beside its connection.

    Attributes:
        environment: libpq's variables that lead to the same server and database, for PostgreSQL's own programs and for
            the session that watches.
        repositories: where the pre-migration backup goes; without one there is no backup.
        recipients: age's public keys that the backup is encrypted for; none: it isn't.
        identities: age's private keys; without one an encrypted backup can't be read back here.
        database: namespace and name of the MediaNestDatabase that the backup is of; without them it is a local one.
        scratch: a folder for a throwaway server; without one there is no rehearsal.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    repositories: tuple[Repository, ...] = ()
    scratch: Path | None = None
    database: tuple[str, str] | None = None
    recipients: tuple[str, ...] = ()
    identities: tuple[str, ...] = field(default=(), repr=False)

    @property
    def no_way_back(self) -> str | None:
        """Why no backup of this run could be restored, in words; `None` if one could."""
        if not self.repositories:
            return "no place for a backup was given"
        if self.recipients and not self.identities:
            return (
                "the backup would be encrypted, and the private key isn't here (spec.backup.encryption.identitySecret)"
            )
        return None
