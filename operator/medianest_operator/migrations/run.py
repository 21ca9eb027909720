"""A migration run, one method a step: lock, recover, plan, lint, back up, rehearse, fence, apply, prove, record.

Whatever happens, the run ends in one of two ways: everything up to the target is applied, or the database is as it was
before and that has been proved. Where the process itself is cut off, the journal tells the next run how far it came,
and that one finishes the way back before it does anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import psycopg
from psycopg import Connection

from medianest_operator.migrations import history as prisma
from medianest_operator.migrations import rehearsal, session
from medianest_operator.migrations.apply import Application, Failure
from medianest_operator.migrations.checks import (
    Holders,
    check_destruction,
    check_indexes,
    check_rehearsed,
    named_indexes,
    read_holders,
)
from medianest_operator.migrations.clock import Clock
from medianest_operator.migrations.errors import ADVICE, UNPROVED_ADVICE, RunError
from medianest_operator.migrations.evidence import Evidence, application_catalog
from medianest_operator.migrations.execute import Interrupted, ServerError
from medianest_operator.migrations.explain import reason_for
from medianest_operator.migrations.fence import Fence, FenceError, lift_fence, observe, obstacle, raise_fence
from medianest_operator.migrations.halt import halt
from medianest_operator.migrations.journal import CHANGING, Ending, Entry, Journal, Step, result_as_json
from medianest_operator.migrations.lint import Severity, TableSize, lint, read_table_sizes
from medianest_operator.migrations.options import OnFailure, Rehearse, RunOptions, Workbench
from medianest_operator.migrations.parts import Part, Strategy, UndoPlan, make_parts, parse_all, plan_undo
from medianest_operator.migrations.plan import Plan, make_plan
from medianest_operator.migrations.preparation import Preparation
from medianest_operator.migrations.reasons import (
    FailedMigration,
    MigrationResult,
    Outcome,
    Reason,
    Rehearsal,
    Rollback,
)
from medianest_operator.migrations.recovery import Recovery, RunEnd, way_back
from medianest_operator.migrations.source import Migration, content_digest
from medianest_operator.migrations.versions import adopt_baseline, record_version, schema_of
from medianest_operator.migrations.watch import Watcher
from medianest_operator.postgres.catalog import difference

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
        self._connection = connection
        self._source = source
        self._options = options or RunOptions()
        self._report = report
        self._workbench = workbench or Workbench()
        self._journal = Journal(connection)
        self._digest = content_digest(source, self._options.digested())
        self._entry: Entry | None = None
        self._plan = Plan()
        self._parts: tuple[Part, ...] = ()
        self._undo = UndoPlan(Strategy.TRANSACTION)
        self._tables: Mapping[str, TableSize] = {}
        self._lint_warnings: tuple[str, ...] = ()
        self._before: Evidence | None = None
        self._undrifted = False
        self._holders: Holders = {}
        self._rehearsed: rehearsal.Rehearsed | None = None
        self._rehearsal: Rehearsal | None = None
        self._rollback: Rollback | None = None
        self._application: Application | None = None
        self._finished = False
        self._clock = Clock()

    def run(self) -> MigrationResult:
        """Go through all steps; whatever happens ends in a result, never in an exception of the server's."""
        try:
            return self._run()
        except RunEnd as end:
            return end.result
        except RunError as stop:
            result = self._result(stop.reason, stop.message, failed=stop.failed)
        except Interrupted:
            result = self._taken_back(
                self._result(Reason.INTERRUPTED, "The run was asked to stop before its end. Trying again continues it.")
            )
        except psycopg.Error as error:
            result = self._taken_back(self._server_failure(error))
        return self._settle(result)

    def _run(self) -> MigrationResult:
        with self._clock.timed("lock"):
            self._prepare_session()
            self._take_lock()
        with self._clock.timed("recover"):
            self._recover()
        self._stop_if_failed_before()
        with self._clock.timed("plan"):
            self._make_plan()
        if not self._plan.pending:
            self._record_version()
            return self._up_to_date()
        self._lint()
        self._choose_parts()
        self._begin()
        self._look_for_drift()
        if self._options.on_failure is OnFailure.ROLLBACK:
            self._prepare()
            self._fence()
        with self._clock.timed("apply"):
            self._apply()
        with self._clock.timed("prove"):
            self._prove()
        self._record_version()
        return self._success()

    # The steps.

    def _prepare_session(self) -> None:
        """Set what every file must find, and refuse a server that can't be written to."""
        session.prepare(self._connection, self._options)
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

    def _recover(self) -> None:
        """Bring what an earlier run left to its end, before anything else happens."""
        if not self._journal.exists():
            return
        entry = self._journal.open_entry()
        if entry is None:
            return
        if entry.unproved and self._options.once and entry.source == self._digest:
            self._stop_if_failed_before()
        Recovery(self._connection, self._journal, entry, self._options, self._workbench, self._report).run()

    def _stop_if_failed_before(self) -> None:
        """What failed isn't tried again until its content, an option or the retry id changes."""
        if not self._options.once or not self._journal.exists():
            return
        known = self._journal.result_of(self._digest)
        if known is not None and known[1].get("outcome") == Outcome.FAILED:
            self._report("this source has failed before and hasn't changed since; it is not tried again")
            raise RunEnd(MigrationResult.model_validate(known[1]))

    def _make_plan(self) -> None:
        """Read the history, compare, and stop if nothing may be applied."""
        history = prisma.read_history(self._connection)
        plan = make_plan(self._source, history, self._options.target)
        if plan.blocker is not None and plan.blocker.reason is Reason.BASELINE_REQUIRED:
            adopted = adopt_baseline(
                self._connection, self._source, self._workbench.scratch, plan.blocker.message, self._report
            )
            plan = make_plan(self._source, adopted, self._options.target)
            history = adopted
        self._plan = plan
        for warning in plan.warnings:
            self._report(f"warning: {warning}")
        if plan.blocker is not None:
            raise RunError(plan.blocker.reason, _capital(plan.blocker.message))
        if not history.exists:
            prisma.ensure_table(self._connection)

    def _lint(self) -> None:
        """Look at what the files say, before any of it runs."""
        with self._clock.timed("lint"):
            sizes = read_table_sizes(self._connection)
            self._tables = {name: size for name, size in sizes.items() if name != prisma.TABLE}
            findings = lint(self._plan.pending, self._tables)
        for finding in findings:
            place = f"{finding.migration}, statement {finding.statement} (line {finding.line})"
            self._report(f"{finding.severity}: {place}: {finding.message}")
        self._lint_warnings = tuple(f.message for f in findings if f.severity is Severity.WARNING)
        refused = [finding for finding in findings if finding.severity is Severity.REFUSED]
        if not self._options.allow_destructive and not refused:
            refused = [finding for finding in findings if finding.severity is Severity.DESTRUCTIVE]
        if not refused:
            return
        first = refused[0]
        more = f" ({len(refused) - 1} more like it in the log.)" if len(refused) > 1 else ""
        destructive = first.severity is Severity.DESTRUCTIVE
        advice = " Set spec.migrations.allowDestructive to true if that is meant." if destructive else ""
        raise RunError(
            Reason.DESTRUCTIVE if destructive else Reason.STATEMENT_REFUSED,
            f"Statement {first.statement} (line {first.line}) of {first.migration}: {first.message}{advice}{more}"
            " Nothing was changed.",
            FailedMigration(
                migration=first.migration, statement=first.statement, line=first.line, message=first.message
            ),
        )

    def _choose_parts(self) -> None:
        """Cut the run into parts, and choose how each would be undone."""
        planned = parse_all(self._plan.pending)
        together = self._options.on_failure is OnFailure.ROLLBACK
        self._parts = make_parts(planned, together)
        if not together:
            self._undo = UndoPlan(Strategy.NONE)
            return
        self._holders = read_holders(self._connection)
        self._set_undo(plan_undo(self._parts, application_catalog(self._connection)))

    def _set_undo(self, undo: UndoPlan) -> None:
        """Take an undo plan, if this run can go through with it."""
        if undo.fenced and self._tables:
            problem = obstacle(self._connection)
            if problem is None and undo.strategy is Strategy.RESTORE and self._workbench.repository is None:
                problem = "no place for a backup was given"
            if problem:
                raise RunError(
                    Reason.ROLLBACK_IMPOSSIBLE,
                    f"This run could not be undone without holding writers off, since {undo.why}; and they can't be"
                    f" held off, or nothing could be restored: {problem}. Nothing was changed. Put such statements"
                    " into a migration of their own, or set spec.migrations.onFailure to Halt.",
                )
        self._undo = undo

    def _begin(self) -> None:
        """Write the run into the journal."""
        self._journal.ensure()
        downs = {m.name: m.down for m in self._plan.pending if m.down is not None}
        plan: dict[str, Any] = {"names": list(self._plan.pending_names), "downs": downs, "version": self._plan.version}
        plan["indexes"] = sorted(named_indexes(self._parts))
        if self._parts and not self._parts[-1].is_transaction and not self._options.allow_destructive:
            # For whoever takes the last look, if this run is cut off before it does.
            plan["holders"] = [[*key, label] for key, label in self._holders.items()]
        self._entry = Entry(source=self._digest, strategy=self._undo.strategy, plan=plan)
        self._journal.begin(self._entry)

    def _look_for_drift(self) -> None:
        """Say what no migration has made. It doesn't stop the run: the proof compares with what is, not with that."""
        if self._plan.version is None:
            self._undrifted = not self._tables
            return
        known = self._journal.version(self._plan.version)
        if known is None:
            return
        unlike = difference(known[1], schema_of(application_catalog(self._connection)))
        self._undrifted = not unlike
        for line in unlike[:10]:
            self._report(f"warning: drift: {line}")

    def _prepare(self) -> None:
        """Take the pre-migration backup, and try the run on a copy of it."""
        assert self._entry is not None
        skip = not self._tables and self._options.rehearse is not Rehearse.ALWAYS
        rehearses = self._options.rehearse is not Rehearse.NEVER and not skip
        if skip:
            self._rehearsal = Rehearsal(data=False, note="the database was empty")
        if self._undo.fenced and not rehearses:
            # What the run goes back to is looked at once nobody writes any more.
            return
        with ExitStack() as stack:
            preparation = self._preparation(stack)
            self._before = preparation.observe_and_back_up()
            if not rehearses:
                return
            self._rehearsed, self._rehearsal = preparation.rehearse(self._parts, self._undo)
        if self._rehearsed is not None and self._rehearsed.undo_problem is not None:
            problem = self._rehearsed.undo_problem
            self._report(f"the way back by {self._undo.strategy.lower()} fails on the copy: {problem}")
            why = f"the way back by {self._undo.strategy.lower()} doesn't lead back on a copy ({problem})"
            self._set_undo(UndoPlan(Strategy.RESTORE, True, why))
            self._rehearsed = None

    def _preparation(self, stack: ExitStack) -> Preparation:
        assert self._entry is not None
        return Preparation(
            self._connection,
            self._journal,
            self._entry,
            self._options,
            self._workbench,
            self._clock,
            self._report,
            stack,
            is_empty=not self._tables,
        )

    def _fence(self) -> None:
        """Hold the writers off where the way back needs that, and take the evidence that it goes back to."""
        assert self._entry is not None
        if self._undo.fenced:
            self._report(f"holding writers off: {self._undo.why}")
            fence = observe(self._connection)
            # Written first: whoever finds the run interrupted has to lift it.
            self._journal.update(self._entry, step=Step.FENCING, strategy=self._undo.strategy, fence=fence.to_json())
            with self._clock.timed("fence"):
                try:
                    raise_fence(self._connection, fence, self._report)
                except FenceError as error:
                    raise RunError(
                        Reason.FENCE_FAILED, f"The writers could not be held off: {error}. Trying again."
                    ) from error
            with ExitStack() as stack:
                self._before = self._preparation(stack).observe_and_back_up(contents=True)
        assert self._before is not None
        self._journal.update(
            self._entry, step=Step.APPLYING, strategy=self._undo.strategy, before=self._before.to_json()
        )

    def _apply(self) -> None:
        """Send the files; a failure takes the way back."""
        assert self._entry is not None
        if self._options.on_failure is OnFailure.HALT:
            self._journal_step(Step.APPLYING)
        watcher = Watcher(self._workbench.environment, self._report) if self._workbench.environment else None
        self._application = Application(
            self._connection, self._options, self._report, before_commit=self._before_commit, watcher=watcher
        )
        try:
            self._application.run(self._parts)
        except Failure as failure:
            if self._options.on_failure is OnFailure.HALT:
                raise halt(self._connection, failure, self._application.progress.applied) from failure
            raise self._roll_back(failure) from failure
        except RunError as stop:
            raise self._roll_back(stop) from stop

    def _before_commit(self, part: Part) -> None:
        """The last look before the last commit, which carries the run's end in the journal with it."""
        if part is not self._parts[-1] or self._options.on_failure is OnFailure.HALT:
            return
        self._check_reached()
        self._finish_applied()

    def _check_reached(self) -> None:
        """Whether the database is where the rehearsal came to, and nothing was lost or left invalid."""
        assert self._before is not None
        reached = application_catalog(self._connection)
        check_destruction(self._holders, read_holders(self._connection), self._options)
        check_indexes(self._before.catalog, reached, named_indexes(self._parts))
        if self._rehearsed is not None and self._rehearsal is not None and self._rehearsal.data:
            check_rehearsed(self._rehearsed.catalog, reached)

    def _finish_applied(self) -> None:
        assert self._entry is not None
        assert self._application is not None
        if self._entry.fence is not None:
            lift_fence(self._connection, Fence.from_json(self._entry.fence))
        result = {"outcome": Outcome.APPLIED, "reason": Reason.APPLIED, "version": self._plan.pending_names[-1]}
        self._journal.finish(self._entry, Ending.APPLIED, result)

    def _prove(self) -> None:
        """Where the run's last file stood alone, the last look comes after it."""
        assert self._entry is not None
        if self._options.on_failure is OnFailure.HALT:
            self._finish_applied()
            return
        if self._parts[-1].is_transaction:
            return
        self._journal_step(Step.PROVING)
        try:
            self._check_reached()
        except RunError as stop:
            raise self._roll_back(stop) from stop
        with self._connection.transaction():
            self._finish_applied()

    # The way back.

    def _roll_back(self, cause: Failure | RunError) -> RunError:
        """Go back, prove it, record it; returns what the run ends with."""
        text = cause.text if isinstance(cause, Failure) else cause.message
        self._report(text)
        rollback = self._go_back(text, cause if isinstance(cause, Failure) else None, cause.reason)
        if not rollback.proved:
            return RunError(
                Reason.ROLLBACK_UNPROVED,
                f"{text} It could not be proved undone: {rollback.proof}. {UNPROVED_ADVICE}",
                cause.failed,
            )
        final = cause.reason.outcome is Outcome.FAILED
        by = "" if rollback.strategy == Strategy.TRANSACTION else f" by {rollback.strategy.lower()}"
        return RunError(
            cause.reason,
            f"{text} It was undone{by}: {rollback.proof}. {ADVICE if final else 'Trying again.'}",
            cause.failed,
        )

    def _taken_back(self, result: MigrationResult) -> MigrationResult:
        """The result of a run that something else than a file has ended, wherever that was.

        A commit that was under way may have gone through, and a way back may have been cut short: what the journal
        says was applied stays applied, and what was begun is undone.
        """
        if self._entry is None or self._connection.broken or self._connection.closed:
            return result
        try:
            session.roll_back(self._connection)
            if self._journal.is_applied(self._entry):
                self._finished = True
                return self._ended_applied()
            if self._before is None or self._entry.step not in CHANGING:
                return result
            rollback = self._rollback or self._go_back(result.message)
        except RunError as stop:
            return self._result(stop.reason, stop.message, failed=stop.failed)
        except psycopg.Error as error:
            return self._server_failure(error)
        if rollback.proved:
            return result.model_copy(update={"rollback": rollback})
        return self._result(
            Reason.ROLLBACK_UNPROVED,
            f"{result.message} It could not be proved undone: {rollback.proof}. {UNPROVED_ADVICE}",
        )

    def _go_back(self, why: str, failure: Failure | None = None, reason: Reason = Reason.INTERRUPTED) -> Rollback:
        assert self._entry is not None
        assert self._before is not None
        transaction = self._application.transaction if self._application else None
        self._rollback = way_back(
            *(self._connection, self._journal, self._entry, self._options, self._workbench, self._report),
            before=self._before,
            failure=failure,
            why=why,
            transaction=transaction if self._undo.strategy is Strategy.TRANSACTION else None,
            finish=lambda rollback: self._finish_rolled_back(rollback, why, reason),
        )
        return self._rollback

    def _finish_rolled_back(self, rollback: Rollback, why: str, reason: Reason) -> Mapping[str, Any]:
        """What the journal keeps; a failure that trying again can't help is remembered as such."""
        return {
            "outcome": reason.outcome,
            "reason": reason,
            "message": why,
            "rollback": rollback.model_dump(mode="json"),
        }

    # What the steps use.

    def _journal_step(self, step: Step) -> None:
        """Note a step, unless a transaction is open for reading only: then the row follows with the next write."""
        assert self._entry is not None
        self._entry.step = step
        if self._connection.info.transaction_status.name == "IDLE":
            self._journal.step(self._entry, step)

    def _record_version(self) -> None:
        """Keep what this version looks like, which drift is measured against."""
        version = self._version()
        if version is not None:
            record_version(
                *(self._connection, self._journal, self._source, version, self._workbench.scratch, self._report),
                undrifted=self._undrifted,
            )

    # Results.

    def _up_to_date(self) -> MigrationResult:
        held = f"; {len(self._plan.held_back)} held back by the target" if self._plan.held_back else ""
        return self._result(Reason.UP_TO_DATE, f"Up to date at {self._plan.version}{held}.")

    def _success(self) -> MigrationResult:
        applied = self._application.progress.applied if self._application else []
        total = sum(item.milliseconds for item in applied)
        plural = "s" if len(applied) > 1 else ""
        return self._result(
            Reason.APPLIED,
            f"Applied {len(applied)} migration{plural} in {total} ms; the schema is at {self._version()}.",
        )

    def _ended_applied(self) -> MigrationResult:
        """The result of a run that was ended after its last commit, or while that went through."""
        version = self._plan.pending_names[-1]
        message = f"Applied; the schema is at {version}. What came after the last commit was cut short."
        return self._result(Reason.APPLIED, message).model_copy(update={"version": version, "pending": ()})

    def _settle(self, result: MigrationResult) -> MigrationResult:
        """Give a run that failed before it changed anything its end in the journal, so that it is remembered."""
        open_entry = self._entry
        if self._connection.broken or self._connection.closed or self._rollback is not None or self._finished:
            return result
        if result.reason in (Reason.NOT_PRIMARY, Reason.LOCK_NOT_GRANTED, Reason.PERMISSION_DENIED):
            return result
        if open_entry is not None and open_entry.step in CHANGING and self._undo.strategy is not Strategy.NONE:
            # The way back isn't finished: the next run has to find the entry open, and the writers held off.
            return result
        try:
            session.roll_back(self._connection)
            if open_entry is None:
                if result.outcome is not Outcome.FAILED:
                    return result
                self._begin()
                open_entry = self._entry
            assert open_entry is not None
            with self._connection.transaction():
                if open_entry.fence is not None:
                    lift_fence(self._connection, Fence.from_json(open_entry.fence))
                self._journal.finish(open_entry, Ending.REFUSED, result_as_json(result.to_json()))
        except psycopg.Error as error:
            self._report(f"the run's end could not be written down: {' '.join(str(error).split())}")
        return result

    def _server_failure(self, error: psycopg.Error) -> MigrationResult:
        """An error outside of a file: the connection, the lock or the history."""
        found = ServerError.from_exception(error)
        if self._connection.broken or self._connection.closed:
            return self._result(
                Reason.CONNECTION_LOST,
                f"The connection was lost: {' '.join(found.message.split())}. The next try finds out what was"
                " committed, and undoes it where it isn't whole.",
            )
        reason = reason_for(found)
        if found.sqlstate == "42501":
            reason = Reason.PERMISSION_DENIED
        elif reason is Reason.MIGRATION_FAILED:
            reason = Reason.INTERNAL_ERROR
        role = self._connection.info.user
        owner = " Everything in the database has to belong to its owner." if found.sqlstate == "42501" else ""
        return self._result(reason, f"The run could not go on as role {role}: {found.message}.{owner}")

    def _version(self) -> str | None:
        done = self._applied_names()
        return max([*self._plan.applied, *done], default=None)

    def _applied_names(self) -> list[str]:
        """What of this run is in the database for good."""
        if self._application is None or self._rollback is not None:
            return []
        return [item.name for item in self._application.progress.applied]

    def _result(self, reason: Reason, message: str, failed: FailedMigration | None = None) -> MigrationResult:
        done = set(self._applied_names())
        applied = self._application.progress.applied if self._application and done else []
        return MigrationResult.of(
            reason,
            message,
            version=self._version(),
            applied=tuple(applied),
            pending=tuple(name for name in self._plan.pending_names if name not in done),
            warnings=(*self._plan.warnings, *self._lint_warnings),
            failed=failed,
            rollback=self._rollback,
            rehearsal=self._rehearsal,
            backup=self._entry.backup if self._entry else None,
            steps=tuple(self._clock.steps),
        )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
