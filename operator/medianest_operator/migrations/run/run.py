"""A migration run, one method a step: lock, recover, plan, lint, back up, rehearse, lockout, apply, verify, record.

Whatever happens, the run ends in one of two ways: everything up to the target is applied, or the database is as it was
before and that has been verified. Where the process itself is cut off, the journal tells the next run how far it came,
and that one finishes the rollback before it does anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg
from psycopg import Connection

from medianest_operator.api.run_options import RunOptions
from medianest_operator.errors import Interrupted
from medianest_operator.migrations import history as prisma
from medianest_operator.migrations.errors import RunError, access
from medianest_operator.migrations.journal import Ending, Entry, Step
from medianest_operator.migrations.plan import make_plan
from medianest_operator.migrations.rollback.halt import halt
from medianest_operator.migrations.rollback.lockout import (
    Lockout,
    LockoutError,
    lift_lockout,
    lock_out,
    observe,
    unexplained,
)
from medianest_operator.migrations.rollback.recovery import Recovery, RunEnd
from medianest_operator.migrations.rollback.rollback import STOPPED, reverted_where_it_fails
from medianest_operator.migrations.run import session
from medianest_operator.migrations.run.admission import admit, check_restorable, lint_files, plan, possible, unrehearsed
from medianest_operator.migrations.run.apply import Application, Failure
from medianest_operator.migrations.run.checks import (
    check_destruction,
    check_emptied,
    check_indexes,
    check_rehearsed,
    named_indexes,
    read_holders,
)
from medianest_operator.migrations.run.evidence import Evidence, application_catalog
from medianest_operator.migrations.run.options import Workbench
from medianest_operator.migrations.run.parts import Part, RevertPlan, Strategy
from medianest_operator.migrations.run.preparation import Preparation
from medianest_operator.migrations.run.records import DatabaseRights, Records
from medianest_operator.migrations.run.rehearsal import Rehearsed
from medianest_operator.migrations.run.results import (
    ended_applied,
    result_of,
    server_failure,
    settle,
    success,
    up_to_date,
)
from medianest_operator.migrations.run.stages import Admitted, Opened, Prepared, Ready
from medianest_operator.migrations.run.watch import Watcher
from medianest_operator.migrations.run.work import Work
from medianest_operator.migrations.source import Migration
from medianest_operator.migrations.versions import adopt_baseline, record_version, schema_of
from medianest_operator.postgres import run_lock
from medianest_operator.postgres.catalog import difference
from medianest_operator.postgres.sandbox import making
from medianest_operator.results.migration import MigrationResult, Outcome, Reason, Rehearsal

# How often the run's lock is asked for while another run holds it, seconds.
LOCK_POLL = 0.25


class MigrationRun:
    """One run over one connection, which must be in autocommit and direct: a pooler would lose the session's lock.

    Args:
        connection: logged in as a role whose objects belong to the schema's owner.
        source: the migrations.
        options: target, timeouts, and what is allowed.
        report: called with a line of text for people at each step.
        workbench: where backups go and copies are made.
    """

    def __init__(
        self,
        connection: Connection[Any],
        source: Sequence[Migration],
        options: RunOptions | None = None,
        report: Callable[[str], None] = lambda line: None,
        workbench: Workbench | None = None,
    ) -> None:
        if not connection.autocommit:
            raise ValueError("a migration run needs a connection in autocommit")
        self._work = Work(connection, source, options or RunOptions(), report, workbench or Workbench())

    def run(self) -> MigrationResult:
        """Go through all steps; whatever happens ends in a result, never in an exception of the server's."""
        work = self._work
        try:
            return self._run()
        except RunEnd as end:
            return end.result
        except RunError as stop:
            result = result_of(work, stop.reason, stop.message, stop.failed)
        except Interrupted:
            if work.is_applied():
                return ended_applied(work)
            result = result_of(work, Reason.INTERRUPTED, f"{STOPPED} Trying again continues it.")
        except psycopg.Error as error:
            if work.is_applied():
                return ended_applied(work)
            result = server_failure(work, error)
        return settle(work, result)

    def _run(self) -> MigrationResult:
        work = self._work
        with work.clock.timed("lock"):
            self._prepare_session()
            self._take_lock()
        with work.clock.timed("recover"):
            self._recover()
        self._stop_if_failed_before()
        with work.clock.timed("plan"):
            self._make_plan()
        if not work.plan.pending:
            record_version(work)
            return up_to_date(work)
        lint_files(work)
        with ExitStack() as stack:
            if work.rehearses and (sandbox := work.workbench.copies) is not None:
                work.server = stack.enter_context(making(sandbox))
            opened = self._open(admit(work))
            self._look_for_drift()
            prepared = None if work.halts else self._prepare(opened)
        work.server = None
        if prepared is None:
            self._apply_without_rollback(opened)
        else:
            ready = self._lock_out(prepared)
            with reverted_where_it_fails(work, ready):
                self._apply(ready, partial(self._before_last_commit, ready))
                self._verify(ready)
        record_version(work)
        return success(work)

    # The steps.

    def _prepare_session(self) -> None:
        """Set what every file must find, and refuse a server that can't be written to."""
        work = self._work
        session.prepare(work.connection)
        row = work.connection.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone()
        if row and row[0]:
            raise RunError(Reason.NOT_PRIMARY, "The server is a replica; migrations run on the primary. Trying again.")

    def _take_lock(self) -> None:
        """Take Prisma's lock, so that neither another Job nor a `prisma migrate deploy` runs at the same time."""
        work = self._work
        deadline = time.monotonic() + work.options.run_lock_timeout
        told = False
        while not run_lock.try_lock(work.connection):
            holder = run_lock.lock_holder(work.connection)
            if time.monotonic() >= deadline:
                closed = f"{access(True)} " if work.journal.locks_out() else ""
                raise RunError(
                    Reason.LOCK_NOT_GRANTED,
                    f"{closed}Another migration run holds the lock for {work.options.run_lock_timeout:g} s already:"
                    f" {holder or 'no longer known'}. Nothing was changed; trying again.",
                )
            if not told and holder:
                work.report(f"waiting for another migration run to end: {holder}")
                told = True
            time.sleep(LOCK_POLL)

    def _recover(self) -> None:
        """Bring what an earlier run left to its end, before anything else happens."""
        work = self._work
        if not work.journal.exists():
            return
        # Each round ends one entry, or the run.
        while (entry := work.journal.open_entry()) is not None:
            work.earlier = entry
            if entry.unverified and work.options.once and entry.source == work.digest:
                self._stop_if_failed_before()
            Recovery(work, entry).run()
        work.earlier = None

    def _stop_if_failed_before(self) -> None:
        """What failed isn't tried again until its content, an option or the retry id changes."""
        work = self._work
        if not work.options.once or not work.journal.exists():
            return
        known = work.journal.result_of(work.digest)
        if known is not None and known[1].get("outcome") == Outcome.FAILED:
            work.report("this source has failed before and hasn't changed since; it is not tried again")
            raise RunEnd(MigrationResult.model_validate(known[1]))

    def _make_plan(self) -> None:
        """Read the history, compare, and stop if nothing may be applied."""
        work = self._work
        history = prisma.read_history(work.connection)
        plan = make_plan(work.source, history, work.options.target)
        if plan.blocker is not None and plan.blocker.reason is Reason.BASELINE_REQUIRED:
            history = adopt_baseline(work, plan.blocker.message)
            plan = make_plan(work.source, history, work.options.target)
        work.plan = plan
        for warning in plan.warnings:
            work.report(f"warning: {warning}")
        if plan.blocker is not None:
            message = [*work.ended, _capital(plan.blocker.message)]
            if (closed := unexplained(work.connection)) is not None:
                message = [access(True), *message, closed]
            raise RunError(plan.blocker.reason, " ".join(message))
        if not history.exists:
            prisma.ensure_table(work.connection)

    def _open(self, admitted: Admitted) -> Opened:
        """Write the run into the journal."""
        entry = self._work.begin(admitted)
        return Opened(admitted.parts, admitted.revert, admitted.holders, entry=entry)

    def _look_for_drift(self) -> None:
        """Say what no migration has made. It stops no run: the verification compares with what is, not with that."""
        work = self._work
        if work.plan.version is None:
            work.undrifted = not work.tables
            return
        known = work.journal.version(work.plan.version)
        if known is None:
            return
        unlike = difference(known[1], schema_of(application_catalog(work.connection)))
        work.undrifted = not unlike
        for line in unlike[:10]:
            work.report(f"warning: drift: {line}")

    def _prepare(self, opened: Opened) -> Prepared:
        """Take the pre-migration backup, and try the run on a copy of it."""
        work = self._work
        if work.rehearses:
            return self._rehearse(opened)
        if work.tables:
            opened = unrehearsed(work, opened, application_catalog(work.connection))
        else:
            work.rehearsal = Rehearsal(data=False, note="the database was empty")
        before = None
        if not opened.revert.locked_out:
            with ExitStack() as stack:
                before = Preparation(work, opened, stack).observe_and_back_up()
        return _prepared(opened, before)

    def _rehearse(self, opened: Opened) -> Prepared:
        work = self._work
        with ExitStack() as stack:
            preparation = Preparation(work, opened, stack)
            before = preparation.observe_and_back_up()
            rehearsed, work.rehearsal = preparation.rehearse(before)
        if rehearsed is None:
            return _prepared(unrehearsed(work, opened, before.catalog), before)
        if rehearsed.restore_problem is not None:
            raise RunError(
                Reason.ROLLBACK_IMPOSSIBLE,
                f"This run could not be rolled back: on a copy, {rehearsed.restore_problem}. Nothing was changed."
                " Take the statement that needs it out, or make what it says possible, and set a new"
                " spec.migrations.retry; or set spec.migrations.onFailure to Halt.",
            )
        if (problem := rehearsed.revert_problem) is not None:
            way = opened.revert.strategy.lower()
            work.report(f"the rollback by {way} fails on the copy: {problem}")
            why = f"the rollback by {way} doesn't lead back on a copy ({problem})"
            opened = replace(opened, revert=possible(work, RevertPlan(Strategy.RESTORE, True, why)))
        elif not work.rehearsal.data:
            safer = plan(work, opened.parts, before.catalog, with_rows=False)
            opened = replace(opened, revert=possible(work, safer))
        # What this role can't read is in no copy, and so in no rehearsal; a copy without data restores no backup.
        parts = opened.parts if rehearsed.cleared or not work.rehearsal.data else ()
        check_restorable(work.connection, parts, opened.revert, whole=rehearsed.cleared)
        return _prepared(opened, before, rehearsed if work.rehearsal.data else None)

    def _lock_out(self, prepared: Prepared) -> Ready:
        """Lock the writers out where the rollback needs that, and take the evidence that it goes back to."""
        work, entry, revert = self._work, prepared.entry, prepared.revert
        before = prepared.before
        if revert.locked_out:
            work.report(f"locking writers out: {revert.why}")
            lockout = observe(work.connection)
            # Written first: whoever finds the run interrupted has to lift it.
            work.journal.update(entry, step=Step.LOCKING_OUT, strategy=revert.strategy, lockout=lockout.to_json())
            with work.clock.timed("lockout"):
                try:
                    lock_out(work.connection, lockout, work.noting_lockout(entry), work.report)
                except LockoutError as error:
                    raise RunError(
                        Reason.LOCKOUT_FAILED,
                        f"{access(False)} Writers could not be locked out: {error}. Their rights are given back, and"
                        " nothing was changed; trying again.",
                    ) from error
        if revert.locked_out or before is None:
            with ExitStack() as stack:
                before = Preparation(work, prepared, stack).observe_and_back_up(contents=revert.locked_out)
        work.journal.update(entry, step=Step.APPLYING, strategy=revert.strategy, before=before.to_json())
        parts, holders = prepared.parts, prepared.holders
        return Ready(parts, revert, holders, entry=entry, before=before, rehearsed=prepared.rehearsed)

    def _apply(self, run: Opened, before_last_commit: Callable[[], None]) -> None:
        """Send the files."""
        work = self._work
        records = Records(work.connection, work.journal, run.entry)
        rights = DatabaseRights(work.connection)

        def look(part: Part) -> None:
            records.check(part)
            if part.is_transaction or part.may_do_anything:
                rights.check(part)

        def before_commit(part: Part) -> None:
            look(part)
            if part is run.parts[-1]:
                before_last_commit()

        watcher = Watcher(work.workbench.environment, work.report) if work.workbench.environment else None
        work.application = Application(
            work.connection,
            work.options,
            work.report,
            before_commit=before_commit,
            after_alone=look,
            watcher=watcher,
        )
        with work.clock.timed("apply"):
            work.application.run(run.parts)

    def _apply_without_rollback(self, opened: Opened) -> None:
        """As `onFailure: Halt` wants it: what was applied before a failure stays."""
        work = self._work
        self._journal_step(opened.entry, Step.APPLYING)
        try:
            self._apply(opened, lambda: None)
        except Failure as failure:
            raise halt(work.connection, failure, work.applied) from failure
        with work.clock.timed("verify"):
            self._finish_applied(opened.entry)

    def _before_last_commit(self, ready: Ready) -> None:
        """The last look before the last commit, which carries the run's end in the journal with it."""
        with self._work.clock.timed("verify"):
            self._check_reached(ready)
        self._finish_applied(ready.entry)

    def _verify(self, ready: Ready) -> None:
        """Where the run's last file stood alone, the last look comes after it."""
        work = self._work
        with work.clock.timed("verify"):
            if ready.parts[-1].is_transaction:
                return
            self._journal_step(ready.entry, Step.VERIFYING)
            self._check_reached(ready)
            with work.connection.transaction():
                self._finish_applied(ready.entry)

    # What the steps use.

    def _check_reached(self, ready: Ready) -> None:
        """Whether the database is where the rehearsal came to, and nothing was lost or left invalid."""
        work = self._work
        reached = application_catalog(work.connection)
        check_destruction(ready.holders, read_holders(work.connection), work.options)
        unseen = ready.rehearsed is None and any(part.may_do_anything for part in ready.parts)
        if unseen or ready.entry.lockout is not None:
            # On the copy it would have been seen; here the application may have emptied one.
            check_emptied(work.connection, ready.before.rows, work.options)
        check_indexes(ready.before.catalog, reached, named_indexes(ready.parts))
        if ready.rehearsed is not None:
            check_rehearsed(ready.rehearsed.catalog, reached)

    def _finish_applied(self, entry: Entry) -> None:
        work = self._work
        if entry.lockout is not None:
            lift_lockout(work.connection, Lockout.from_json(entry.lockout))
        result = {"outcome": Outcome.APPLIED, "reason": Reason.APPLIED, "version": work.plan.pending_names[-1]}
        work.journal.finish(entry, Ending.APPLIED, result)

    def _journal_step(self, entry: Entry, step: Step) -> None:
        """Note a step, unless a transaction is open for reading only: then the row follows with the next write."""
        work = self._work
        entry.step = step
        if work.connection.info.transaction_status.name == "IDLE":
            work.journal.step(entry, step)


def _prepared(opened: Opened, before: Evidence | None, rehearsed: Rehearsed | None = None) -> Prepared:
    parts, revert, holders = opened.parts, opened.revert, opened.holders
    return Prepared(parts, revert, holders, entry=opened.entry, before=before, rehearsed=rehearsed)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
