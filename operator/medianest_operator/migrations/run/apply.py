"""Send a run's parts to a server, one after the other; the same code for the rehearsal and for the database itself.

A part that is a transaction holds its files together with their rows in `_prisma_migrations`: after a crash at any
moment all of it is there, or nothing. A file that stands alone is sent as Prisma's engine sends it, with its row
started before and finished after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.pq import TransactionStatus

from medianest_operator.api.run_options import RunOptions
from medianest_operator.errors import Interrupted
from medianest_operator.migrations import history as prisma
from medianest_operator.migrations.errors import HISTORY_DROPPED, touches_records
from medianest_operator.migrations.explain import describe_failure, prisma_logs
from medianest_operator.migrations.run import session
from medianest_operator.migrations.run.parts import Part, Planned
from medianest_operator.migrations.run.watch import Watcher
from medianest_operator.postgres.execute import ScriptOutcome, ServerError, run_script
from medianest_operator.results.migration import AppliedMigration, FailedMigration, Reason, reason_for

# Pauses between attempts to get a lock, seconds.
FIRST_PAUSE = 1.0


@dataclass
class Failure(Exception):
    """A file failed.

    Attributes:
        migration: which.
        failed: where in it, for the result.
        text: the failure in words.
        reason: what it means for the run.
        logs: what the history keeps of it.
        started_at: when the file was begun.
        row_id: the file's row in the history, if it was committed: only a file that stands alone has one.
        completed: how many of its statements went through.
    """

    planned: Planned
    failed: FailedMigration | None
    text: str
    reason: Reason
    logs: str
    started_at: datetime
    row_id: str | None = None
    completed: int = 0

    def __str__(self) -> str:
        return self.text


@dataclass
class Progress:
    """What has been done so far.

    Attributes:
        applied: the files that are committed, in order.
        committed: how many parts are.
        rows: the history's rows of the committed files.
    """

    applied: list[AppliedMigration] = field(default_factory=list)
    committed: int = 0
    rows: list[str] = field(default_factory=list)


class Application:
    """Applies parts over one connection in autocommit.

    Args:
        before_commit: called inside each transaction before it is committed, with the part; what it raises rolls the
            transaction back.
        after_alone: called in the transaction that records a file that stands alone as finished.
        watcher: tells who the session waits for.
    """

    def __init__(
        self,
        connection: Connection[Any],
        options: RunOptions,
        report: Callable[[str], None],
        *,
        before_commit: Callable[[Part], None] = lambda part: None,
        after_alone: Callable[[Part], None] = lambda part: None,
        watcher: Watcher | None = None,
    ) -> None:
        self._connection = connection
        self._options = options
        self._report = report
        self._before_commit = before_commit
        self._after_alone = after_alone
        self._watcher = watcher
        self.progress = Progress()
        self.transaction: int | None = None
        """The server's id of the last transaction that was begun."""

    def run(self, parts: Sequence[Part]) -> None:
        """Apply all parts.

        Raises:
            Failure: a file failed; its own transaction is rolled back, the parts before it stay.
            Interrupted: asked to stop; likewise.
            psycopg.OperationalError: the connection is lost.
        """
        self._total = sum(len(part.planned) for part in parts)
        for part in parts:
            if part.is_transaction:
                self._apply_transaction(part)
            else:
                self._apply_alone(part)
            self.progress.committed += 1

    def _apply_transaction(self, part: Part) -> None:
        """The part, tried again while a lock isn't granted."""
        for attempt in range(1, self._options.lock_attempts + 1):
            try:
                self._try_transaction(part)
                return
            except Failure as failure:
                transient = failure.reason in (Reason.LOCK_TIMEOUT, Reason.CONFLICT)
                if not transient or attempt == self._options.lock_attempts:
                    raise
                pause = FIRST_PAUSE * attempt
                self._report(f"{failure.text} Rolled back; trying again in {pause:g} s.")
                time.sleep(pause)

    def _try_transaction(self, part: Part) -> None:
        applied: list[AppliedMigration] = []
        rows: list[str] = []
        self._connection.execute("BEGIN")
        try:
            row = self._connection.execute("SELECT pg_catalog.pg_current_xact_id()::text::bigint").fetchone()
            self.transaction = row[0] if row else None
            for item in part.planned:
                started = time.monotonic()
                self._announce(item, len(applied))
                rows.append(self._run_in_transaction(item, is_last=item is part.planned[-1]))
                milliseconds = round((time.monotonic() - started) * 1000)
                applied.append(AppliedMigration(name=item.name, milliseconds=milliseconds))
            self._before_commit(part)
            self._commit(part.planned[-1])
        finally:
            session.roll_back(self._connection)
            if not self._connection.broken and not self._connection.closed:
                session.reset(self._connection)
                session.discard(self._connection)
        self.progress.applied += applied
        self.progress.rows += rows
        for done in applied:
            self._report(f"applied {done.name} in {done.milliseconds} ms")

    def _run_in_transaction(self, item: Planned, is_last: bool) -> str:
        started_at = datetime.now(UTC)
        row_id = prisma.insert_started(self._connection, item.migration, started_at)
        session.limit(self._connection, self._options)
        with self._watching():
            outcome = run_script(self._connection, item.migration.sql)
        if outcome.interrupted:
            raise Interrupted
        if outcome.error is None and not item.script.parsed:
            outcome = ScriptOutcome(outcome.completed, ServerError(None, "the file is not PostgreSQL's SQL"))
        if outcome.error is None:
            session.reset(self._connection)
            try:
                # The last file's, too: what a deferred trigger does is looked at before the commit.
                session.settle_constraints(self._connection, is_last=is_last)
                if not is_last:
                    session.discard(self._connection)
            except psycopg.Error as error:
                if self._connection.broken:
                    raise
                outcome = ScriptOutcome(outcome.completed, ServerError.from_exception(error))
        if outcome.error is not None:
            raise self._failure(item, outcome, started_at, outcome.error)
        self._mark_finished(item, row_id)
        return row_id

    def _mark_finished(self, item: Planned, row_id: str) -> None:
        try:
            prisma.mark_finished(self._connection, row_id)
        except psycopg.errors.UndefinedTable as error:
            raise touches_records(item.name, HISTORY_DROPPED) from error

    def _commit(self, last: Planned) -> None:
        """Commit; a deferred constraint may still refuse."""
        try:
            self._connection.execute("COMMIT")
        except psycopg.Error as error:
            if self._connection.broken:
                raise
            found = ServerError.from_exception(error)
            outcome = ScriptOutcome(len(last.script.statements), found)
            raise self._failure(last, outcome, datetime.now(UTC), found) from error

    def _apply_alone(self, part: Part) -> None:
        """As Prisma's engine does: start the row, run the file as it is, finish the row."""
        [item] = part.planned
        started, started_at = time.monotonic(), datetime.now(UTC)
        self._announce(item, 0)
        row_id = prisma.insert_started(self._connection, item.migration, started_at)
        # lock_timeout keeps a waiting statement from holding up everybody behind it; some hold up nobody, and cutting
        # them short would leave an invalid index.
        session.limit(self._connection, self._options, waits=not item.script.waits_harmlessly)
        with self._watching():
            outcome = run_script(self._connection, item.migration.sql)
        left_open = self._connection.info.transaction_status is TransactionStatus.INTRANS
        session.roll_back(self._connection)
        session.reset(self._connection)
        session.discard(self._connection)
        if outcome.interrupted:
            raise Interrupted
        if outcome.error is not None or left_open:
            error = outcome.error or ServerError(None, "the file begins a transaction and never commits it")
            failure = self._failure(item, outcome, started_at, error)
            if left_open:
                failure.reason = Reason.TRANSACTION_LEFT_OPEN
            failure.row_id = row_id
            raise failure
        with self._connection.transaction():
            self._mark_finished(item, row_id)
            self._after_alone(part)
        milliseconds = round((time.monotonic() - started) * 1000)
        self.progress.applied.append(AppliedMigration(name=item.name, milliseconds=milliseconds))
        self.progress.rows.append(row_id)
        self._report(f"applied {item.name} in {milliseconds} ms")

    def _announce(self, item: Planned, in_part: int) -> None:
        number = len(self.progress.applied) + in_part + 1
        self._report(f"applying {item.name} ({number} of {self._total})")

    def _watching(self) -> AbstractContextManager[None]:
        if self._watcher is None:
            return nullcontext()
        return self._watcher.watching(self._connection.info.backend_pid)

    def _failure(self, item: Planned, outcome: ScriptOutcome, started_at: datetime, error: ServerError) -> Failure:
        failed, text = describe_failure(item.migration, item.script, outcome, error)
        reason = reason_for(error.sqlstate, error.message)
        if reason is Reason.NOT_PRIMARY:
            # The run began on a server that can be written to, and a failover cuts the connection.
            reason = Reason.MIGRATION_FAILED
            text += " The file itself has made the transaction read only."
        if reason is Reason.STATEMENT_TIMEOUT:
            text += f" spec.migrations.statementTimeout is {self._options.statement_timeout} ms."
        waited = (Reason.LOCK_TIMEOUT, Reason.STATEMENT_TIMEOUT)
        if reason in waited and self._watcher is not None and self._watcher.last:
            text += f" It waited for {self._watcher.last}."
        return Failure(
            *(item, failed, text, reason, prisma_logs(item.migration, error), started_at),
            completed=outcome.completed,
        )
