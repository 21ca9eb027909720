"""How a migration run is to behave: spec.migrations as the Job is told it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medianest_operator.api.migrations import OnFailure, Rehearse


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run.

    Attributes:
        target: the last migration to apply; `None` applies all.
        on_failure: what becomes of what a failed run has done.
        rehearse: whether to try the run on a copy first.
        rehearsal_limit: up to which size of the database `Auto` copies the data, bytes.
        allow_destructive: let statements run that lose data.
        lock_timeout: how long a statement waits for a table's lock, milliseconds; 0 waits indefinitely.
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
