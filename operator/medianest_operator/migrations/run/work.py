"""What one migration run works with, and what its result tells of it; what a step needs is in `stages`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

from medianest_operator.api.migrations import OnFailure, Rehearse
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations import history as prisma
from medianest_operator.migrations.journal import Entry, Journal
from medianest_operator.migrations.lint.lint import TableSize
from medianest_operator.migrations.plan import Plan
from medianest_operator.migrations.rollback.lockout import Lockout
from medianest_operator.migrations.run import session
from medianest_operator.migrations.run.apply import Application
from medianest_operator.migrations.run.checks import named_indexes
from medianest_operator.migrations.run.clock import Clock
from medianest_operator.migrations.run.options import Workbench
from medianest_operator.migrations.run.parts import columns_given
from medianest_operator.migrations.run.stages import Admitted
from medianest_operator.migrations.source import Migration, content_digest
from medianest_operator.postgres.throwaway import ThrowawayServer
from medianest_operator.results.migration import AppliedMigration, Rehearsal, Rollback, StoredBackup


@dataclass
class Work:
    """One run.

    Attributes:
        connection: holds the run's lock; in autocommit.
        source: the migrations.
        options: target, timeouts, and what is allowed.
        report: takes a line of text for people.
        workbench: where backups go and copies are made.
        plan: what is applied and what is to be.
        tables: how much each of the application's tables holds.
        lint_warnings: what lint found that stops nothing.
        ended: what became of earlier runs that this one has brought to their end, as sentences.
        earlier: the row of an earlier run, as long as that isn't ended.
        entry: the run's row in the journal; `None` until it is written.
        server: for the rehearsal, while it is being made; `None` where nothing is rehearsed, and afterwards.
        undrifted: before the run the schema was as recorded.
        rehearsal: what the copy came to; `None` without a rehearsal.
        stored_backup: the backup that this process took; one that an earlier pod took is only in the entry.
        application: sends the files; `None` until the first is sent.
        rollback: how the run was rolled back; `None` where it wasn't.
    """

    connection: Connection[Any]
    source: Sequence[Migration]
    options: RunOptions
    report: Callable[[str], None]
    workbench: Workbench
    plan: Plan = field(default_factory=Plan)
    tables: Mapping[str, TableSize] = field(default_factory=dict)
    lint_warnings: tuple[str, ...] = ()
    ended: list[str] = field(default_factory=list)
    earlier: Entry | None = None
    entry: Entry | None = None
    server: Future[ThrowawayServer] | None = None
    undrifted: bool = False
    rehearsal: Rehearsal | None = None
    stored_backup: StoredBackup | None = None
    application: Application | None = None
    rollback: Rollback | None = None
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.journal = Journal(self.connection)
        self.digest = content_digest(self.source, self.options.digested())

    @property
    def halts(self) -> bool:
        """Whether a failure leaves what was applied before it."""
        return self.options.on_failure is OnFailure.HALT

    @property
    def rehearses(self) -> bool:
        """Whether the run is tried on a copy first. Without a table there is nothing that could be harmed."""
        if self.halts or self.options.rehearse is Rehearse.NEVER:
            return False
        return bool(self.tables) or self.options.rehearse is Rehearse.ALWAYS

    @property
    def is_connected(self) -> bool:
        return not (self.connection.broken or self.connection.closed)

    @property
    def applied(self) -> tuple[AppliedMigration, ...]:
        """What of this run is in the database for good."""
        if self.application is None or self.rollback is not None:
            return ()
        return tuple(self.application.progress.applied)

    @property
    def version(self) -> str | None:
        """The last applied migration's name; `None` where there is none, or before the history was read."""
        return max([*self.plan.applied, *(item.name for item in self.applied)], default=None)

    def is_applied(self) -> bool:
        """Whether the run's end as applied is committed: what ended it after that changes nothing of it."""
        if self.entry is None or not self.is_connected:
            return False
        session.roll_back(self.connection)
        return self.journal.is_applied(self.entry)

    def noting_lockout(self, entry: Entry) -> Callable[[Lockout], None]:
        """What keeps in a run's row what is known of its lockout."""
        return lambda lockout: self.journal.note_lockout(entry, lockout.to_json())

    def begin(self, admitted: Admitted) -> Entry:
        """Write the run into the journal."""
        self.journal.ensure()
        downs = {m.name: m.down for m in self.plan.pending if m.down is not None}
        plan: dict[str, Any] = {"names": list(self.plan.pending_names), "downs": downs, "version": self.plan.version}
        plan["history"] = prisma.rows_as_json(self.connection)
        plan["checksums"] = {m.name: m.checksum for m in self.plan.pending}
        plan["indexes"] = sorted(named_indexes(admitted.parts))
        plan["given"] = sorted(columns_given(admitted.parts))
        if admitted.parts and not admitted.parts[-1].is_transaction and not self.options.allow_destructive:
            # For whoever takes the last look, if this run is cut off before it does.
            plan["holders"] = [[*key, label] for key, label in admitted.holders.items()]
        self.entry = Entry(source=self.digest, strategy=admitted.revert.strategy, plan=plan)
        self.journal.begin(self.entry)
        return self.entry
