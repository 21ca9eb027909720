"""Apply what is pending, one method a step: lock, plan, apply each file, record.

A file that can be undone by a rollback runs in one transaction together with its row in `_prisma_migrations`: after a
crash at any moment the row is finished and the changes are there, or neither is. The few files that can't run so
(they commit by themselves, or hold a statement that must stand alone) are sent as Prisma's engine sends them, with
their row started before and finished after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.pq import TransactionStatus

from medianest_operator.migrations import history as prisma
from medianest_operator.migrations.execute import Interrupted, ScriptOutcome, ServerError, run_script
from medianest_operator.migrations.explain import describe_failure, prisma_logs, reason_for
from medianest_operator.migrations.history import History
from medianest_operator.migrations.plan import Plan, make_plan
from medianest_operator.migrations.reasons import AppliedMigration, FailedMigration, MigrationResult, Outcome, Reason
from medianest_operator.migrations.script import Script, parse
from medianest_operator.migrations.source import Migration
from medianest_operator.postgres.catalog import Catalog, difference, read_catalog

# How often the run's lock is asked for while another run holds it, seconds.
LOCK_POLL = 0.25


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run.

    Attributes:
        target: the last migration to apply; `None` applies all.
        lock_timeout: how long a statement waits for a table's lock, milliseconds; 0 waits for ever.
        statement_timeout: how long a statement may take, milliseconds; 0 sets no limit.
        run_lock_timeout: how long to wait for another run to end, seconds. Prisma waits 10.
    """

    target: str | None = None
    lock_timeout: int = 10_000
    statement_timeout: int = 0
    run_lock_timeout: float = 10.0


class RunError(Exception):
    """The run ends here; carries everything that the result says about it."""

    def __init__(self, reason: Reason, message: str, failed: FailedMigration | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.failed = failed


class MigrationRun:
    """One run over one connection, which must be in autocommit and direct: a pooler would lose the session's lock.

    Args:
        connection: logged in as a role whose objects belong to the schema's owner.
        source: the migrations.
        options: target and timeouts.
        report: called with a line of text for people at each step.
    """

    def __init__(
        self,
        connection: Connection[Any],
        source: Sequence[Migration],
        options: RunOptions | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not connection.autocommit:
            raise ValueError("a migration run needs a connection in autocommit")
        self._connection = connection
        self._source = source
        self._options = options or RunOptions()
        self._report = report
        self._applied: list[AppliedMigration] = []
        self._plan = Plan()

    def run(self) -> MigrationResult:
        """Go through all steps; whatever happens ends in a result, never in an exception of the server's."""
        try:
            self._prepare_session()
            self._take_lock()
            self._make_plan()
            self._apply_pending()
        except RunError as stop:
            return self._result(stop.reason, stop.message, failed=stop.failed)
        except Interrupted:
            return self._result(
                Reason.INTERRUPTED, "The run was asked to stop before its end. Trying again continues it."
            )
        except psycopg.Error as error:
            return self._server_failure(error)
        return self._success()

    # The steps.

    def _prepare_session(self) -> None:
        """Set what every file must find, and refuse a server that can't be written to."""
        options = self._options
        settings = {
            # As Prisma sets it; a schema named like the role would otherwise come first.
            "search_path": "public",
            "client_encoding": "UTF8",
            "lock_timeout": f"{options.lock_timeout}ms",
            "statement_timeout": f"{options.statement_timeout}ms",
            # A server whose client died stops working for it and gives up its locks.
            "client_connection_check_interval": "2s",
        }
        for name, value in settings.items():
            self._connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))
        row = self._connection.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone()
        if row and row[0]:
            raise RunError(Reason.NOT_PRIMARY, "The server is a replica; migrations run on the primary. Trying again.")

    def _take_lock(self) -> None:
        """Take Prisma's lock, so that neither another Job nor a `prisma migrate deploy` runs at the same time."""
        deadline = time.monotonic() + self._options.run_lock_timeout
        told = False
        while not prisma.try_lock(self._connection):
            holder = prisma.lock_holder(self._connection)
            if time.monotonic() >= deadline:
                raise RunError(
                    Reason.LOCK_NOT_GRANTED,
                    f"Another migration run holds the lock for {self._options.run_lock_timeout:g} s already:"
                    f" {holder or 'no longer known'}. Nothing was changed; trying again.",
                )
            if not told and holder:
                self._report(f"waiting for another migration run to end: {holder}")
                told = True
            time.sleep(LOCK_POLL)

    def _make_plan(self) -> None:
        """Read the history, compare, and stop if nothing may be applied."""
        history = self._read_history()
        self._plan = make_plan(self._source, history, self._options.target)
        for warning in self._plan.warnings:
            self._report(f"warning: {warning}")
        if self._plan.blocker is not None:
            message = self._plan.blocker.message
            raise RunError(self._plan.blocker.reason, message[0].upper() + message[1:])
        if not history.exists:
            prisma.ensure_table(self._connection)

    def _apply_pending(self) -> None:
        total = len(self._plan.pending)
        for number, migration in enumerate(self._plan.pending, start=1):
            self._report(f"applying {migration.name} ({number} of {total})")
            started = time.monotonic()
            script = parse(migration.sql)
            if script.is_atomic:
                self._apply_in_transaction(migration, script)
            else:
                self._apply_standing_alone(migration, script)
            milliseconds = round((time.monotonic() - started) * 1000)
            self._applied.append(AppliedMigration(name=migration.name, milliseconds=milliseconds))
            self._report(f"applied {migration.name} in {milliseconds} ms")

    def _apply_in_transaction(self, migration: Migration, script: Script) -> None:
        """The file, its row and the row's end in one transaction."""
        started_at = datetime.now(UTC)
        self._connection.execute("BEGIN")
        try:
            row_id = prisma.insert_started(self._connection, migration, started_at)
            outcome = run_script(self._connection, migration.sql)
            if outcome.error is None and not outcome.interrupted:
                self._reset_session()
                prisma.mark_finished(self._connection, row_id)
                outcome = self._commit(outcome)
        finally:
            self._roll_back()
        self._prepare_session_again()
        if outcome.interrupted:
            raise Interrupted
        if outcome.error is not None:
            reason = reason_for(outcome.error)
            failed, text = describe_failure(migration, script, outcome)
            if reason.outcome is Outcome.FAILED:
                self._record_undone(migration, started_at, outcome.error)
            raise RunError(reason, f"{text} {self._undone(reason)}", failed)

    def _apply_standing_alone(self, migration: Migration, script: Script) -> None:
        """As Prisma's engine does: start the row, run the file as it is, finish the row."""
        before = read_catalog(self._connection)
        row_id = prisma.insert_started(self._connection, migration, datetime.now(UTC))
        if script.waits_harmlessly:
            # lock_timeout keeps a waiting statement from holding up everybody behind it; this one holds up nobody,
            # and cutting it short would leave an invalid index.
            self._connection.execute("SET lock_timeout = 0")
        outcome = run_script(self._connection, migration.sql)
        left_open = self._connection.info.transaction_status is TransactionStatus.INTRANS
        self._roll_back()
        self._prepare_session_again()
        if outcome.error is None and not left_open:
            prisma.mark_finished(self._connection, row_id)
            if outcome.interrupted:
                raise Interrupted
            return
        error = outcome.error or ServerError(None, "the file begins a transaction and never commits it")
        failed, text = describe_failure(migration, script, outcome, error)
        prisma.mark_failed(self._connection, row_id, prisma_logs(migration, error))
        left = self._what_was_left(script, outcome, before)
        if left is not None:
            raise RunError(
                Reason.PARTIALLY_APPLIED,
                f"{text} {left} Remove or complete that, then record it with `prisma migrate resolve --rolled-back"
                f" {migration.name}` or `--applied {migration.name}`.",
                failed,
            )
        prisma.mark_rolled_back(self._connection, row_id)
        if outcome.interrupted:
            raise Interrupted
        reason = Reason.TRANSACTION_LEFT_OPEN if left_open else reason_for(error)
        raise RunError(reason, f"{text} {self._undone(reason)}", failed)

    # What the steps use.

    def _commit(self, outcome: ScriptOutcome) -> ScriptOutcome:
        """Commit; a deferred constraint may still refuse."""
        try:
            self._connection.execute("COMMIT")
        except psycopg.Error as error:
            if self._connection.broken:
                raise
            return ScriptOutcome(outcome.completed, ServerError.from_exception(error))
        return outcome

    def _roll_back(self) -> None:
        """Leave whatever transaction is open; on a lost connection the server does it."""
        if self._connection.broken or self._connection.closed:
            return
        if self._connection.info.transaction_status is not TransactionStatus.IDLE:
            self._connection.execute("ROLLBACK")

    def _reset_session(self) -> None:
        """Undo what a file's SET left for the session: the next file, and the history, mustn't depend on it.

        RESET ROLE goes back to what ALTER ROLE ... SET role gave the login. DISCARD ALL would drop the run's lock.
        """
        self._connection.execute("RESET ROLE")
        self._connection.execute("RESET ALL")

    def _prepare_session_again(self) -> None:
        self._reset_session()
        self._prepare_session()

    def _read_history(self) -> History:
        return prisma.read_history(self._connection)

    def _record_undone(self, migration: Migration, started_at: datetime, error: ServerError) -> None:
        """Write the row that a failed and then resolved migration leaves; the changes themselves are gone already."""
        with self._connection.transaction():
            row_id = prisma.insert_started(self._connection, migration, started_at)
            prisma.mark_failed(self._connection, row_id, prisma_logs(migration, error))
            prisma.mark_rolled_back(self._connection, row_id)

    def _what_was_left(self, script: Script, outcome: ScriptOutcome, before: Catalog) -> str | None:
        """What a failed file that wasn't one transaction left behind, in words; `None` if provably nothing."""
        if script.may_have_committed(outcome.completed):
            return (
                "The file commits by itself, so what it did before the failure may have stayed in the database"
                f" ({outcome.completed} of {len(script.statements)} statements went through)."
            )
        changes = difference(before, read_catalog(self._connection))
        if not changes:
            return None
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        return f"It could not run in a transaction and left: {'; '.join(changes[:3])}{more}."

    def _undone(self, reason: Reason) -> str:
        earlier = ""
        if self._applied:
            names = ", ".join(item.name for item in self._applied)
            earlier = f" Applied before it and kept: {names}."
        if reason.outcome is Outcome.FAILED:
            advice = "Fix the migration or the data, then change the source."
        else:
            advice = "Trying again."
        return f"It was undone: nothing of it is left in the database.{earlier} {advice}"

    # Results.

    def _success(self) -> MigrationResult:
        if not self._applied:
            held = f"; {len(self._plan.held_back)} held back by the target" if self._plan.held_back else ""
            return self._result(Reason.UP_TO_DATE, f"Up to date at {self._plan.version}{held}.")
        total = sum(item.milliseconds for item in self._applied)
        count = len(self._applied)
        plural = "s" if count > 1 else ""
        return self._result(
            Reason.APPLIED, f"Applied {count} migration{plural} in {total} ms; the schema is at {self._version()}."
        )

    def _server_failure(self, error: psycopg.Error) -> MigrationResult:
        """An error outside of a file: the connection, the lock or the history."""
        found = ServerError.from_exception(error)
        if self._connection.broken or self._connection.closed:
            return self._result(
                Reason.CONNECTION_LOST,
                f"The connection was lost: {' '.join(found.message.split())}. The server undoes what was not committed."
                " Trying again.",
            )
        reason = reason_for(found)
        if found.sqlstate == "42501":
            reason = Reason.PERMISSION_DENIED
        elif reason is Reason.MIGRATION_FAILED:
            reason = Reason.INTERNAL_ERROR
        role = self._connection.info.user
        return self._result(reason, f"The migration history could not be used as role {role}: {found.message}.")

    def _version(self) -> str | None:
        return max([*self._plan.applied, *(item.name for item in self._applied)], default=None)

    def _result(self, reason: Reason, message: str, failed: FailedMigration | None = None) -> MigrationResult:
        done = {item.name for item in self._applied}
        return MigrationResult.of(
            reason,
            message,
            version=self._version(),
            applied=tuple(self._applied),
            pending=tuple(name for name in self._plan.pending_names if name not in done),
            warnings=self._plan.warnings,
            failed=failed,
        )
