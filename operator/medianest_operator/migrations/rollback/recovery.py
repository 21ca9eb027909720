"""Finish what a run began whose process is gone: found whole, or taken back and verified."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import Connection

from medianest_operator.api.run_options import RunOptions
from medianest_operator.backups.repository import layout
from medianest_operator.backups.repository.facts import read_facts
from medianest_operator.backups.repository.layout import Tier
from medianest_operator.migrations import history as prisma
from medianest_operator.migrations.errors import UNVERIFIED_ADVICE, RunError, access
from medianest_operator.migrations.journal import CHANGING, Ending, Entry, Journal, Step
from medianest_operator.migrations.rollback.holding import made_since
from medianest_operator.migrations.rollback.lockout import (
    Lockout,
    LockoutError,
    lift_lockout,
    lock_out_again,
    was_lifted,
)
from medianest_operator.migrations.rollback.revert import Backup, Revert, RevertUnfinished
from medianest_operator.migrations.run import session
from medianest_operator.migrations.run.apply import Failure
from medianest_operator.migrations.run.checks import check_destruction, check_emptied, check_indexes, read_holders
from medianest_operator.migrations.run.evidence import Evidence, Verification, application_catalog, read_evidence
from medianest_operator.migrations.run.parts import Strategy
from medianest_operator.migrations.run.preparation import origin_of
from medianest_operator.migrations.run.work import Work
from medianest_operator.postgres import run_lock
from medianest_operator.postgres.catalog import Key
from medianest_operator.results.migration import MOST_STATEMENTS, MigrationResult, Outcome, Reason, Rollback
from medianest_operator.results.text import cut, first_three

_LONGEST_STATEMENT = 120
_ROWS_OF_RUN = """
SELECT migration_name, bool_or(finished_at IS NOT NULL)
  FROM public._prisma_migrations
 WHERE migration_name = ANY(%s) AND rolled_back_at IS NULL
 GROUP BY migration_name
"""

_MARK_ROLLED_BACK = """
UPDATE public._prisma_migrations SET rolled_back_at = now(), logs = coalesce(logs, %s)
 WHERE migration_name = ANY(%s) AND rolled_back_at IS NULL
"""

_INSERT_FAILED = """
INSERT INTO public._prisma_migrations (id, checksum, started_at, migration_name, logs)
VALUES (%s, %s, now(), %s, %s)
"""


class RunEnd(Exception):
    """The run has its result already."""

    def __init__(self, result: MigrationResult) -> None:
        super().__init__(result.message)
        self.result = result


def way_back(
    work: Work,
    entry: Entry,
    *,
    before: Evidence,
    why: str,
    finish: Callable[[Rollback], Mapping[str, Any]],
    failure: Failure | None = None,
    transaction: int | None = None,
) -> Rollback:
    """Revert a run, verify it, and write both down; safe to begin again from any point.

    Args:
        work: the run that rolls back.
        entry: the run that is rolled back: the same, or an earlier one that was cut off.
        transaction: the server's id of the transaction that held the whole run, where one did.
        finish: makes what the journal keeps.

    Raises:
        RunError: it can't be gone to its end now; the next run begins it again.
        psycopg.OperationalError: the connection is lost; likewise.
    """
    started = time.monotonic()
    connection, workbench = work.connection, work.workbench
    session.roll_back(connection)
    work.journal.keep(entry)
    if entry.lockout is not None and was_lifted(connection, Lockout.from_json(entry.lockout)):
        _lock_out_again(work, entry)
    # What the run found in the history: SQL that is put together at run time may have changed that as well. After an
    # unverified rollback a person may have.
    prisma.put_rows_back(connection, () if entry.unverified else entry.plan.get("history", ()))
    work.journal.step(entry, Step.ROLLING_BACK)
    names = list(entry.plan["names"])
    locked_out = entry.is_locked_out
    backup = None
    if workbench.no_restore is None and entry.backup is not None:
        # The journal is the migrator's to write; the Job can read other databases' backups, too.
        if not layout.is_of(entry.backup, origin_of(workbench, read_facts(connection)), Tier.PRE_MIGRATION):
            raise RunError(
                Reason.ROLLBACK_IMPOSSIBLE,
                f"{access(locked_out)} {why} The journal names {entry.backup!r} as the backup of the run, which is not"
                " one of this database."
                " Nothing was restored; somebody has changed medianest_operator.migration_runs.",
                failure.failed if failure else None,
            )
        backup = Backup(workbench.repositories, entry.backup, workbench.environment, workbench.identities)
    downs = entry.plan.get("downs", {})
    # What an earlier attempt found: after an unverified one the history calls none of it applied any more.
    found = {name for name, finished in _rows_of_run(connection, names).items() if finished}
    committed = sorted(found.union(entry.plan.get("committed", ())))
    work.journal.note(entry, committed=committed)
    hands_off = _why_hands_off(connection, entry, before)
    revert = Revert(
        connection,
        work.report,
        before=before,
        downs={name: downs[name] for name in committed if name in downs},
        locked_out=locked_out,
        environment=workbench.environment,
        backup=backup,
        # The rows of the history commit with the run's only transaction.
        changed=entry.strategy != Strategy.TRANSACTION or bool(committed),
        hands_off=hands_off,
        known=_known(entry),
        given={(table, column) for table, column in entry.plan.get("given", ())},
    )
    try:
        reverted = revert.run()
    except (RevertUnfinished, psycopg.Error) as error:
        if not work.is_connected:
            raise
        raise RunError(
            Reason.ROLLBACK_UNFINISHED,
            f"{access(locked_out)} {why} Reverting it is not finished: {_said(error)}. Trying again; the runbook"
            " RollbackUnfinished says what may hold it up.",
            failure.failed if failure else None,
        ) from error
    uncommitted = entry.strategy == Strategy.TRANSACTION and not committed
    verification = _by_transactions(
        connection, reverted.verification, transaction, uncommitted=uncommitted, locked_out=locked_out
    )
    rollback = Rollback(
        strategy=reverted.strategy,
        verified=verification.is_equal,
        verification=verification.describe(),
        milliseconds=round((time.monotonic() - started) * 1000),
        statements=_shown(reverted.statements) if reverted.strategy is Strategy.INVERSE else (),
    )
    work.report(f"rolled back by {reverted.strategy.lower()}: {rollback.verification}")
    with connection.transaction():
        if verification.is_equal:
            _resolve_history(connection, names, why, failure)
        else:
            _leave_unresolved(connection, entry, why, failure)
        if verification.is_equal and entry.lockout is not None:
            lift_lockout(connection, Lockout.from_json(entry.lockout))
        if not verification.is_equal:
            _note_what_is_left(work, entry, before, hands_off=hands_off is not None)
        ending = Ending.ROLLED_BACK if verification.is_equal else Ending.UNVERIFIED
        kept = dict(finish(rollback))
        if not verification.is_equal:
            kept |= {"outcome": Outcome.FAILED, "reason": Reason.ROLLBACK_UNVERIFIED}
        work.journal.finish(entry, ending, kept)
    return rollback


def _lock_out_again(work: Work, entry: Entry) -> None:
    """The rights were taken before; whoever came in by another way, or because they were given back, must go."""
    try:
        lock_out_again(work.connection, Lockout.from_json(entry.lockout), work.noting_lockout(entry), work.report)
    except LockoutError as error:
        raise RunError(
            Reason.LOCKOUT_FAILED,
            f"{access(True)} A run of {', '.join(entry.plan['names'])} is being rolled back, and somebody is still"
            f" connected: {error}. Trying again.",
        ) from error


def _note_what_is_left(work: Work, entry: Entry, before: Evidence, *, hands_off: bool) -> None:
    """What differs by now is the run's, or was done beside it; whatever comes later somebody has done since, and that
    stays so for every attempt after the next."""
    now = application_catalog(work.connection).as_of(before.catalog.version)
    added = now.objects.keys() - before.catalog.objects.keys()
    if (known := _known(entry)) is not None:
        added &= set(known)
    work.journal.note(entry, added=sorted(added))
    if entry.lockout is not None and not hands_off:
        work.journal.note(entry, left=read_evidence(work.connection, contents=True).rows_to_json())


def _known(entry: Entry) -> list[Key] | None:
    """What an attempt that could not be verified had found beside what was there before the run."""
    added = entry.plan.get("added") if entry.unverified else None
    return None if added is None else [(kind, table, name) for kind, table, name in added]


def _why_hands_off(connection: Connection[Any], entry: Entry, before: Evidence) -> str | None:
    """What others may have written since that a rollback would take with it, in words; `None` where nobody has."""
    if entry.lockout is None:
        return None
    if Lockout.from_json(entry.lockout).let_in:
        return (
            "rights on the database were changed while writers were locked out, by the run's own SQL or by somebody, so"
            " that others may have written; nothing was rolled back over that"
        )
    now = application_catalog(connection).as_of(before.catalog.version)
    if made := [now.objects[key].label for key in made_since(before.catalog, now, _known(entry))]:
        return f"somebody has made {first_three(made, ', ')} since its rollback, which is left as it is"
    left = entry.plan.get("left") if entry.unverified else None
    written = read_evidence(connection, contents=True).rows_written_since(left) if left is not None else []
    if written:
        return f"somebody has changed {first_three(written, ', ')} since its rollback, which is left as it is"
    return None


def _said(error: Exception) -> str:
    """The server's sentence, without what psycopg adds to show the place in the text."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((primary or str(error)).split())


def _by_transactions(
    connection: Connection[Any],
    verification: Verification,
    transaction: int | None,
    *,
    uncommitted: bool,
    locked_out: bool,
) -> Verification:
    """Whose what differs is.

    Args:
        transaction: with others at work it is theirs only if the server says that the run's transaction ended without
            a commit (PostgreSQL manual, pg_xact_status).
        uncommitted: the run was one transaction, is over, as its lock says, and its history, which commits with it,
            isn't there.
    """
    if not (verification.writers or verification.differences):
        return verification
    if transaction is not None:
        row = connection.execute("SELECT pg_catalog.pg_xact_status(%s::text::xid8)", (str(transaction),)).fetchone()
        told = row[0] if row else "nothing"
        if told != "aborted":
            line = f"the server says {told} of transaction {transaction}, expected aborted"
            return replace(verification, differences=(*verification.differences, line), writers=False)
        verification = replace(verification, aborted=True)
    if uncommitted and not locked_out:
        verification = replace(verification, differences=(), others=verification.differences)
    return replace(verification, uncommitted=uncommitted)


def _rows_of_run(connection: Connection[Any], names: list[str]) -> dict[str, bool]:
    """The run's names that the history holds, and whether each is finished."""
    return {row[0]: row[1] for row in connection.execute(_ROWS_OF_RUN, (names,)).fetchall()}


def _resolve_history(connection: Connection[Any], names: list[str], why: str, failure: Failure | None) -> None:
    """Leave the rows that `prisma migrate resolve --rolled-back` leaves, the failed one with its logs."""
    if failure is not None and failure.reason.outcome is Outcome.FAILED:
        name = failure.planned.name
        if failure.row_id is None or name not in _rows_of_run(connection, [name]):
            row_id = prisma.insert_started(connection, failure.planned.migration, failure.started_at)
        else:
            row_id = failure.row_id
        prisma.mark_failed(connection, row_id, failure.logs)
    connection.execute(_MARK_ROLLED_BACK, (why, names))


def _leave_unresolved(connection: Connection[Any], entry: Entry, why: str, failure: Failure | None) -> None:
    """Nothing of the run counts as applied, and one row stays a failure that nobody resolved: Prisma's own deploy
    refuses to go on as well (P3009)."""
    names = list(entry.plan["names"])
    connection.execute(_MARK_ROLLED_BACK, (why, names))
    name = failure.planned.name if failure is not None else names[-1]
    checksum = entry.plan.get("checksums", {}).get(name, "")
    logs = failure.logs if failure is not None else why
    connection.execute(_INSERT_FAILED, (str(uuid.uuid4()), checksum, name, logs))


def _shown(statements: Sequence[str]) -> tuple[str, ...]:
    """A few of them, each cut: a result has little room."""
    few = [cut(" ".join(statement.split()), _LONGEST_STATEMENT) for statement in statements[:MOST_STATEMENTS]]
    more = len(statements) - len(few)
    return (*few, f"and {more} more") if more else tuple(few)


def _cut_off(rollback: Rollback, locked_out: bool) -> str:
    message = f"The run was cut off and rolled back{rollback.by}: {rollback.verification}."
    told = message if rollback.verified else f"{access(locked_out)} {message} {UNVERIFIED_ADVICE}"
    return f"{told}{rollback.executed}"


class Recovery:
    """Brings an open journal entry to its end.

    Args:
        work: the run that found it.
        entry: of a run that never ended, or whose rollback wasn't verified.
    """

    def __init__(self, work: Work, entry: Entry) -> None:
        self._work = work
        self._entry = entry

    def run(self) -> None:
        """Decide what became of the run.

        Raises:
            RunError: its rollback could not be verified, or not be finished now.
        """
        entry = self._entry
        names = list(entry.plan["names"])
        if entry.unverified:
            self._work.report(f"the rollback of an earlier run ({', '.join(names)}) is unverified; going back again")
        else:
            self._work.report(f"an earlier run ({', '.join(names)}) was cut off at {entry.step}; finishing it first")
        if entry.unverified and entry.before is None:
            raise RunEnd(
                MigrationResult.of(
                    Reason.ROLLBACK_UNVERIFIED,
                    f"{access(entry.is_locked_out)} The rollback of {', '.join(names)} is unverified, and the"
                    f" journal no longer holds what was before it. {UNVERIFIED_ADVICE}",
                )
            )
        if entry.strategy == Strategy.NONE:
            self._finish(Ending.REFUSED, Reason.INTERRUPTED, "cut off; what it had applied stays (onFailure: Halt)")
            return
        if entry.before is None or not (entry.unverified or entry.step in CHANGING):
            self._finish(Ending.ROLLED_BACK, Reason.INTERRUPTED, "cut off before it changed anything")
            return
        if entry.lockout is not None:
            _lock_out_again(self._work, entry)
        before = Evidence.from_json(entry.before)
        rows = _rows_of_run(self._work.connection, names)
        going_back = entry.unverified or entry.step is Step.ROLLING_BACK
        if not going_back and all(rows.get(name) for name in names) and self._is_whole(before):
            self._finish(Ending.APPLIED, Reason.APPLIED, "found applied as a whole after it was cut off")
            return
        rollback = way_back(
            self._work,
            entry,
            before=before,
            why="An earlier try could not verify the rollback." if entry.unverified else "The run was cut off.",
            finish=lambda rollback: {
                "outcome": Outcome.TRANSIENT,
                "reason": Reason.INTERRUPTED,
                "message": _cut_off(rollback, entry.is_locked_out),
                "rollback": rollback.model_dump(mode="json"),
            },
        )
        if not rollback.verified:
            raise RunEnd(
                MigrationResult.of(
                    Reason.ROLLBACK_UNVERIFIED,
                    f"{access(entry.is_locked_out)} An earlier run of {', '.join(names)} was cut off or failed,"
                    f" and its rollback could not be verified: {rollback.verification}. {UNVERIFIED_ADVICE}",
                    rollback=rollback,
                    backup=entry.backup,
                )
            )

    def _is_whole(self, before: Evidence) -> bool:
        """Every file is recorded as finished; that counts if the run's own last look would have let it pass."""
        plan, lockout = self._entry.plan, self._entry.lockout
        if lockout is not None and Lockout.from_json(lockout).let_in:
            return False
        holders = {(oid, number): label for oid, number, label in plan.get("holders", ())}
        try:
            check_destruction(holders, read_holders(self._work.connection), RunOptions())
            if holders and lockout is not None:
                check_emptied(self._work.connection, before.rows, RunOptions())
            check_indexes(before.catalog, application_catalog(self._work.connection), plan.get("indexes", ()))
        except RunError:
            return False
        return True

    def _finish(self, ending: Ending, reason: Reason, message: str) -> None:
        with self._work.connection.transaction():
            if self._entry.lockout is not None:
                lift_lockout(self._work.connection, Lockout.from_json(self._entry.lockout))
            outcome = Outcome.APPLIED if ending is Ending.APPLIED else Outcome.TRANSIENT
            self._work.journal.finish(self._entry, ending, {"outcome": outcome, "reason": reason, "message": message})
        self._work.report(f"the earlier run: {message}")
        self._work.ended.append(f"An earlier run of {', '.join(self._entry.plan['names'])} was {message}.")


def resolve(connection: Connection[Any], journal: Journal) -> str | None:
    """Accept the database as it is after a run whose rollback could not be verified: lift the lockout, close the entry.

    Returns what was resolved, in words; `None` if nothing was open.

    Raises:
        RunError: a run is at work.
        psycopg.Error: as the server says.
    """
    if not run_lock.try_lock(connection):
        holder = run_lock.lock_holder(connection)
        raise RunError(Reason.LOCK_NOT_GRANTED, f"a migration run is at work: {holder or 'no longer known'}")
    entry = journal.open_entry() if journal.exists() else None
    if entry is None:
        return None
    with connection.transaction():
        if entry.lockout is not None:
            lift_lockout(connection, Lockout.from_json(entry.lockout))
        if entry.unverified or entry.step is Step.ROLLING_BACK:
            # The rollback was gone: what the history still calls applied or begun isn't there any more, and a next
            # try must not pass it over.
            connection.execute(_MARK_ROLLED_BACK, ("resolved by hand after its rollback", list(entry.plan["names"])))
        message = "accepted as it is by hand"
        journal.finish(
            entry, Ending.REFUSED, {"outcome": Outcome.FAILED, "reason": Reason.INTERRUPTED, "message": message}
        )
    return f"run {entry.id} of {', '.join(entry.plan['names'])}"
