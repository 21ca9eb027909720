"""What a run ends with, in words, and the end that it leaves in the journal."""

from __future__ import annotations

import psycopg

from medianest_operator.migrations.errors import access
from medianest_operator.migrations.journal import CHANGING, Ending, result_as_json
from medianest_operator.migrations.rollback.lockout import Lockout, lift_lockout, unexplained
from medianest_operator.migrations.run import session
from medianest_operator.migrations.run.stages import Admitted
from medianest_operator.migrations.run.work import Work
from medianest_operator.postgres.execute import ServerError
from medianest_operator.results.migration import FailedMigration, MigrationResult, Outcome, Reason, reason_for

# Nothing was done that anybody would have to know of, or nothing can be written. What has an entry ends it anyway:
# writers may be locked out.
_UNRECORDED = frozenset({Reason.NOT_PRIMARY, Reason.LOCK_NOT_GRANTED, Reason.PERMISSION_DENIED})


def result_of(work: Work, reason: Reason, message: str, failed: FailedMigration | None = None) -> MigrationResult:
    """A result with all that the run knows by now."""
    done = {item.name for item in work.applied}
    return MigrationResult.of(
        reason,
        message,
        version=work.version,
        applied=work.applied,
        pending=tuple(name for name in work.plan.pending_names if name not in done),
        warnings=(*work.plan.warnings, *work.lint_warnings),
        failed=failed,
        rollback=work.rollback,
        rehearsal=work.rehearsal,
        backup=work.entry.backup if work.entry else None,
        stored_backup=work.stored_backup,
        steps=work.clock.steps,
    )


def up_to_date(work: Work) -> MigrationResult:
    """Nothing was pending."""
    held = f"; {len(work.plan.held_back)} held back by the target" if work.plan.held_back else ""
    return result_of(work, Reason.UP_TO_DATE, _with_closed(work, f"Up to date at {work.plan.version}{held}."))


def success(work: Work) -> MigrationResult:
    """Everything up to the target is applied."""
    total = sum(item.milliseconds for item in work.applied)
    plural = "s" if len(work.applied) > 1 else ""
    return result_of(
        work,
        Reason.APPLIED,
        _with_closed(
            work, f"Applied {len(work.applied)} migration{plural} in {total} ms; the schema is at {work.version}."
        ),
    )


def _with_closed(work: Work, message: str) -> str:
    """A good end in words, and first of all that nobody may connect, where an earlier run's lockout was left."""
    closed = unexplained(work.connection)
    return message if closed is None else f"{access(True)} {message} {closed}"


def server_failure(work: Work, error: psycopg.Error) -> MigrationResult:
    """An error outside of a file: the connection, the lock or the history."""
    found = ServerError.from_exception(error)
    if not work.is_connected:
        return result_of(
            work,
            Reason.CONNECTION_LOST,
            f"{_access(work)}The connection was lost: {' '.join(found.message.split())}. The next try finds out what"
            " was committed, and reverts it where it isn't whole.",
        )
    reason = reason_for(found.sqlstate, found.message)
    if found.sqlstate == "42501":
        reason = Reason.PERMISSION_DENIED
    elif reason is Reason.MIGRATION_FAILED:
        reason = Reason.INTERNAL_ERROR
    role = work.connection.info.user
    owner = " Everything in the database has to belong to its owner." if reason is Reason.PERMISSION_DENIED else ""
    # Otherwise its entry stays open, and the next run ends it.
    unchanged = work.entry is None or work.entry.step not in CHANGING
    nothing = " Nothing was changed." if unchanged else ""
    text = f"{_access(work)}The run could not go on as role {role}: {found.message}.{owner}{nothing}"
    return result_of(work, reason, text)


def _access(work: Work) -> str:
    """Said first where a run ends with writers locked out, or with that in doubt."""
    if work.entry is None or not work.entry.is_locked_out or (work.is_connected and work.entry.step not in CHANGING):
        return ""
    return f"{access(True)} "


def ended_applied(work: Work) -> MigrationResult:
    """For a run that was ended after its last commit, or while that went through."""
    version = work.plan.pending_names[-1]
    message = f"Applied; the schema is at {version}. What came after the last commit was cut short."
    return result_of(work, Reason.APPLIED, message).model_copy(update={"version": version, "pending": ()})


def settle(work: Work, result: MigrationResult) -> MigrationResult:
    """Give a run that failed before it changed anything its end in the journal, so that it is remembered.

    One that had begun to change something has its end there already, or its entry stays open for the next to finish.
    """
    # What an earlier run left stays the newest in the journal until it is ended.
    if not work.is_connected or work.earlier is not None or work.rollback is not None:
        return result
    if work.entry is None and result.reason in _UNRECORDED:
        return result
    if work.entry is not None and work.entry.step in CHANGING and not work.halts:
        return result
    if work.entry is None and result.outcome is not Outcome.FAILED:
        return result
    try:
        session.roll_back(work.connection)
        entry = work.entry or work.begin(Admitted())
        with work.connection.transaction():
            if entry.lockout is not None:
                lift_lockout(work.connection, Lockout.from_json(entry.lockout))
            work.journal.finish(entry, Ending.REFUSED, result_as_json(result.to_json()))
    except psycopg.Error as error:
        work.report(f"the run's end could not be written down: {' '.join(str(error).split())}")
    return result
