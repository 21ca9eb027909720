"""A run's own rollback: rolled back, verified and recorded, and what the run then ends with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg

from medianest_operator.errors import Interrupted
from medianest_operator.migrations.errors import UNVERIFIED_ADVICE, RunError, access, advice
from medianest_operator.migrations.journal import result_as_json
from medianest_operator.migrations.rollback.recovery import way_back
from medianest_operator.migrations.run.apply import Failure
from medianest_operator.migrations.run.parts import Strategy
from medianest_operator.migrations.run.results import result_of, server_failure
from medianest_operator.migrations.run.stages import Ready
from medianest_operator.migrations.run.work import Work
from medianest_operator.results.migration import Reason, Rollback

STOPPED = "The run was asked to stop before its end."


@contextmanager
def reverted_where_it_fails(work: Work, ready: Ready) -> Iterator[None]:
    """From the first change on every failure takes the rollback, unless the connection is gone: then the next run finds
    the entry open and takes it.

    Raises:
        RunError: what the run ends with.
        Interrupted, psycopg.Error: nothing was rolled back; the last commit may have gone through (`Work.is_applied`).
    """
    try:
        yield
    except Failure as failure:
        raise roll_back(work, ready, failure) from failure
    except (Interrupted, RunError, psycopg.Error) as error:
        if not work.is_connected or work.is_applied():
            raise
        raise roll_back(work, ready, _told(work, error)) from error


def _told(work: Work, error: BaseException) -> RunError:
    if isinstance(error, RunError):
        return error
    if isinstance(error, psycopg.Error):
        found = server_failure(work, error)
        return RunError(found.reason, found.message)
    return RunError(Reason.INTERRUPTED, STOPPED)


def roll_back(work: Work, ready: Ready, cause: Failure | RunError) -> RunError:
    """Go back, verify that, and write both down; returns what the run ends with.

    Raises:
        RunError: it can't be gone to its end now; the next run begins it again.
        psycopg.OperationalError: the connection is lost; likewise.
    """
    text = cause.text if isinstance(cause, Failure) else cause.message
    work.report(text)
    locked_out = ready.entry.lockout is not None

    def remembered(rollback: Rollback) -> Mapping[str, Any]:
        """What the journal keeps is what this run ends with: who doesn't try again tells the same."""
        work.rollback = rollback
        end = _end(cause, text, rollback, locked_out)
        return result_as_json(result_of(work, end.reason, end.message, end.failed).to_json())

    transaction = work.application.transaction if work.application else None
    go = partial(
        way_back,
        work,
        ready.entry,
        before=ready.before,
        failure=cause if isinstance(cause, Failure) else None,
        why=text,
        transaction=transaction if ready.revert.strategy is Strategy.TRANSACTION else None,
        finish=remembered,
    )
    try:
        rollback = go()
    except Interrupted:
        # It is on its rollback already; a further signal is ignored.
        rollback = go()
    return _end(cause, text, rollback, locked_out)


def _end(cause: Failure | RunError, text: str, rollback: Rollback, locked_out: bool) -> RunError:
    if not rollback.verified:
        return RunError(
            Reason.ROLLBACK_UNVERIFIED,
            f"{access(locked_out)} {text} Its rollback could not be verified: {rollback.verification}."
            f" {UNVERIFIED_ADVICE}{rollback.executed}",
            cause.failed,
        )
    return RunError(
        cause.reason,
        f"{text} It was rolled back{rollback.by}: {rollback.verification}. {advice(cause.reason)}{rollback.executed}",
        cause.failed,
    )
