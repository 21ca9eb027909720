"""Bring a database to what `spec.hardening` wants, one method a step: lock, look, then each option by itself.

Every transaction leaves the database in a state from which the next run goes on, so that a run that was killed anywhere
is finished by another; one option that fails keeps no other from being applied.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql

from medianest_operator.api.hardening import Hardening, Option
from medianest_operator.errors import Interrupted
from medianest_operator.hardening.errors import reason_of
from medianest_operator.hardening.objects import allowed_values, check_name, qualified
from medianest_operator.hardening.plan import (
    ConstraintChange,
    OptionPlan,
    Step,
    add_candidates,
    candidate,
    drop_candidates,
    make_plans,
    swap_candidates,
    validate_candidate,
)
from medianest_operator.hardening.state import read_state
from medianest_operator.postgres import run_lock
from medianest_operator.postgres.execute import ServerError
from medianest_operator.results.hardening import HardeningResult, OptionResult, OptionState, Reason
from medianest_operator.results.migration import Outcome

LOCK_POLL = 0.25
"""How often the run's lock is asked for while a migration holds it, seconds."""
_ATTEMPTS = 3
"""How often a step waits for its locks."""
_WORTH_WAITING = frozenset({Reason.LOCK_TIMEOUT, Reason.CONFLICT})
_MOST_VALUES = 5
"""Offending values that a message names, of each column."""

# Who holds a lock on one of these tables, for people.
_HOLDERS: LiteralString = """
SELECT DISTINCT a.pid, a.usename, a.application_name
  FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.granted AND l.pid <> pg_catalog.pg_backend_pid() AND l.relation = ANY (
       SELECT c.oid FROM pg_catalog.pg_class c
        WHERE c.relname = ANY (%s) AND c.relnamespace = pg_catalog.to_regnamespace('public'))
 ORDER BY a.pid LIMIT 3
"""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run.

    Attributes:
        lock_timeout: how long a step waits for a table's lock, and with it whoever queues behind; milliseconds.
        index_lock_timeout: how long building an index waits for an older transaction to end, milliseconds. It holds up
            no reader or writer meanwhile, but keeps migrations waiting.
        run_lock_timeout: how long to wait for a migration to end, seconds.
    """

    lock_timeout: int = 5_000
    index_lock_timeout: int = 60_000
    run_lock_timeout: float = 10.0


class StepFailed(Exception):
    """An option ends here; carries what its result says."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class HardeningRun:
    """One run over one connection, in autocommit and direct: a pooler would lose the session's lock.

    Args:
        connection: logged in as a role whose objects belong to the schema's owner.
        options: `spec.hardening`.
        app_role: the role that the application logs in as.
        run_options: timeouts.
        report: called with a line of text for people at each step.
    """

    def __init__(
        self,
        connection: Connection[Any],
        options: Hardening,
        app_role: str,
        run_options: RunOptions | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not connection.autocommit:
            raise ValueError("a hardening run needs a connection in autocommit")
        self._connection = connection
        self._options = options
        self._app_role = app_role
        self._run_options = run_options or RunOptions()
        self._report = report
        self._results: dict[Option, OptionResult] = {}
        self._changed = False

    def run(self) -> HardeningResult:
        """Go through all options; whatever happens ends in a result, never in an exception of the server's."""
        try:
            self._prepare_session()
            self._take_lock()
            for option in Option:
                self._bring_about(option)
        except StepFailed as stop:
            return self._result(stop.reason, stop.message)
        except Interrupted:
            return self._result(Reason.INTERRUPTED, "The run was asked to stop. Trying again continues it.")
        except psycopg.Error as error:
            return self._server_failure(error)
        return self._summary()

    # The steps.

    def _prepare_session(self) -> None:
        settings = {
            "search_path": "public",
            "client_encoding": "UTF8",
            "lock_timeout": f"{self._run_options.lock_timeout}ms",
            "statement_timeout": "0",
            # A server whose client died stops working for it and gives up its locks.
            "client_connection_check_interval": "2s",
        }
        for name, value in settings.items():
            self._connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))
        row = self._connection.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone()
        if row and row[0]:
            raise StepFailed(
                Reason.NOT_PRIMARY, "The server is a replica; only the primary takes changes. Trying again."
            )

    def _take_lock(self) -> None:
        """Take the lock of the migrations: neither runs while the other does."""
        deadline = time.monotonic() + self._run_options.run_lock_timeout
        while not run_lock.try_lock(self._connection):
            if time.monotonic() >= deadline:
                holder = run_lock.lock_holder(self._connection) or "no longer known"
                raise StepFailed(
                    Reason.LOCK_NOT_GRANTED,
                    f"A migration run holds the lock for {self._run_options.run_lock_timeout:g} s already: {holder}."
                    " Nothing was changed; trying again.",
                )
            time.sleep(LOCK_POLL)

    def _bring_about(self, option: Option) -> None:
        """One option: what it needs, and whether it is there afterwards."""
        before = self._plan(option)
        try:
            for step in before.steps:
                self._take(step)
            if before.constraints is not None:
                self._change_constraints(before.constraints)
            after = self._plan(option) if before.has_work else before
            if after.has_work:
                raise StepFailed(
                    Reason.NOT_REACHED, f"{option} was applied, and is not there: does somebody else change it?"
                )
        except StepFailed as stop:
            if option is Option.RECOMMENDED_INDEXES:
                self._drop_invalid_indexes()
            self._note(before, _unfinished(before, stop))
            return
        self._note(before, finished(after, removed=before.present and not after.present))

    def _change_constraints(self, change: ConstraintChange) -> None:
        """All of them or none: nothing is named as wanted before every one is verified."""
        if change.candidates:
            self._take(drop_candidates(change.candidates))
        self._look_at_rows(change)
        try:
            self._take(add_candidates(change.add))
            for item in change.add:
                self._take(validate_candidate(item))
            self._take(swap_candidates(change.add))
        except BaseException as error:
            self._withdraw(change)
            if isinstance(error, StepFailed) and error.reason is Reason.ROWS_BREAK_CONSTRAINTS:
                # Written while the others were looked at; they can be counted now.
                self._look_at_rows(change)
            raise

    def _look_at_rows(self, change: ConstraintChange) -> None:
        """Stop before anything is added where rows hold other words than the allowed ones."""
        names = {item.key for item in change.add}
        found = []
        for (table, column), allowed in allowed_values(self._options).items():
            name = check_name(table, column)
            if ("constraint", table, name) not in names:
                continue
            query = sql.SQL(
                "SELECT {column}::text, count(*), sum(count(*)) OVER (), count(*) OVER () FROM {table}"
                " WHERE {column} <> ALL (%s) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %s"
            ).format(column=sql.Identifier(column), table=qualified(table))
            if rows := self._connection.execute(query, (list(allowed), _MOST_VALUES)).fetchall():
                found.append(_offenders(name, table, column, rows))
        if found:
            raise StepFailed(
                Reason.ROWS_BREAK_CONSTRAINTS,
                f"{' '.join(found)} No constraint was added or changed. Change the rows, or allow the values in"
                " spec.hardening.checkConstraints.",
            )

    def _withdraw(self, change: ConstraintChange) -> None:
        """Take the candidates away again; where that can't be done now, the next run begins with it."""
        with contextlib.suppress(psycopg.Error, StepFailed):
            self._take(drop_candidates(candidate(item) for item in change.add))

    def _drop_invalid_indexes(self) -> None:
        """What a failed build leaves costs every write; where it can't be dropped now, the next run begins with it."""
        with contextlib.suppress(psycopg.Error, StepFailed):
            for step in self._plan(Option.RECOMMENDED_INDEXES).steps:
                if step.drops_invalid:
                    self._take(step)

    # What the steps use.

    def _plan(self, option: Option) -> OptionPlan:
        plans = make_plans(self._options, self._app_role, read_state(self._connection))
        return next(plan for plan in plans if plan.option == option)

    def _take(self, step: Step) -> None:
        """Run a step; one that isn't given its locks is tried again, since others queue behind it meanwhile."""
        started = time.monotonic()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._locks_waited_for(step):
                    for statement in step.statements:
                        self._connection.execute(statement)
            except psycopg.Error as error:
                if self._connection.broken or self._connection.closed:
                    raise
                found = ServerError.from_exception(error)
                reason = reason_of(found)
                if reason in _WORTH_WAITING and attempt < _ATTEMPTS and not step.alone:
                    self._report(f"{step.words}: waiting for a lock{self._blockers(step)}")
                    continue
                raise StepFailed(reason, self._explain(step, reason, found)) from error
            break
        self._changed = True
        self._report(f"{step.words}: done in {round((time.monotonic() - started) * 1000)} ms")

    @contextlib.contextmanager
    def _locks_waited_for(self, step: Step) -> Iterator[None]:
        if not step.alone:
            with self._connection.transaction():
                yield
            return
        set_timeout = "SELECT pg_catalog.set_config('lock_timeout', %s, false)"
        self._connection.execute(set_timeout, (f"{self._run_options.index_lock_timeout}ms",))
        try:
            yield
        finally:
            if not (self._connection.broken or self._connection.closed):
                self._connection.execute(set_timeout, (f"{self._run_options.lock_timeout}ms",))

    def _explain(self, step: Step, reason: Reason, error: ServerError) -> str:
        text = f"To {step.words}: {error.message}"
        if error.detail:
            text += f": {' '.join(error.detail.split())}"
        text = text.rstrip(".") + "."
        if reason is Reason.LOCK_TIMEOUT:
            return f"{text}{self._blockers(step).capitalize()} Trying again."
        return text if reason.outcome is Outcome.FAILED else f"{text} Trying again."

    def _blockers(self, step: Step) -> str:
        rows = self._connection.execute(_HOLDERS, (list(step.tables),)).fetchall()
        words = [f"pid {pid} (role {role or 'hidden'}, {name or 'unnamed'})" for pid, role, name in rows]
        return f" held by {', '.join(words)}." if words else ""

    # Results.

    def _note(self, plan: OptionPlan, result: OptionResult) -> None:
        self._results[plan.option] = result
        if result.removed:
            self._report(f"{plan.option} is off: its objects were removed")
        elif result.message:
            self._report(f"{plan.option}: {result.state}: {result.message}")

    def _summary(self) -> HardeningResult:
        open_ends = [item for item in self._results.values() if item.reason is not None]
        reasons = [item.reason for item in open_ends if item.reason is not None]
        transient = [reason for reason in reasons if reason.outcome is Outcome.TRANSIENT]
        words = " ".join(item.message for item in self._results.values() if item.message)
        if reasons:
            return self._result((transient or reasons)[0], words)
        return self._result(
            Reason.APPLIED if self._changed else Reason.UP_TO_DATE, words or "The database is as spec.hardening wants."
        )

    def _server_failure(self, error: psycopg.Error) -> HardeningResult:
        found = ServerError.from_exception(error)
        if self._connection.broken or self._connection.closed:
            message = f"The connection was lost: {' '.join(found.message.split())}. Trying again continues the run."
            return self._result(Reason.CONNECTION_LOST, message)
        return self._result(reason_of(found), f"{found.message.rstrip('.')}.")

    def _result(self, reason: Reason, message: str) -> HardeningResult:
        return HardeningResult.of(reason, message, options=self._results)


def finished(plan: OptionPlan, *, removed: bool = False) -> OptionResult:
    """How an option stands of which nothing is left to do."""
    if plan.conflict:
        return OptionResult(state=OptionState.FAILED, reason=Reason.CONFLICTING_OBJECTS, message=plan.conflict)
    if plan.waiting:
        columns = ", ".join(plan.waiting)
        message = f"{plan.option} waits for what the schema doesn't have yet: {columns}."
        return OptionResult(state=OptionState.WAITING, message=message)
    return OptionResult(state=OptionState.APPLIED if plan.wanted else OptionState.OFF, removed=removed)


def _unfinished(plan: OptionPlan, stop: StepFailed) -> OptionResult:
    state = OptionState.FAILED
    if stop.reason.outcome is Outcome.TRANSIENT:
        state = OptionState.APPLYING if plan.wanted else OptionState.REMOVING
    return OptionResult(state=state, reason=stop.reason, message=stop.message)


def _offenders(name: str, table: str, column: str, rows: list[Any]) -> str:
    values = ", ".join(f"'{value[:50]}' ({count})" for value, count, _, _ in rows)
    total, kinds = int(rows[0][2]), int(rows[0][3])
    more = f" and {kinds - len(rows)} more values" if kinds > len(rows) else ""
    noun = "row breaks" if total == 1 else "rows break"
    return f"{total} {noun} {name}: {table}.{column} holds {values}{more}."
