"""How the runs around backups end: every end is a result, never an exception of the server's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from medianest_operator.backups.logical.server import lost
from medianest_operator.errors import Interrupted
from medianest_operator.results.backup import Reason, Result, RunFailure


def timed_result(run: Callable[[], Result], stopped: str, more: Mapping[str, Any]) -> Result:
    """As `result_of`, with the seconds that it took."""
    began = time.monotonic()
    result = result_of(run, stopped, more)
    result.more["seconds"] = round(time.monotonic() - began, 1)
    return result


def result_of(run: Callable[[], Result], stopped: str, more: Mapping[str, Any]) -> Result:
    """What a run comes to; nothing is raised but what a bug raises.

    Args:
        stopped: what to say where it was asked to stop.
        more: what it has found out by then, for a result that is a failure; it may grow while it runs.
    """
    try:
        return run()
    except RunFailure as error:
        failure = error
    except psycopg.Error as error:
        failure = lost(error, Reason.RESTORE_FAILED)
    except Interrupted:
        failure = RunFailure(Reason.INTERRUPTED, stopped, transient=True)
    return Result.failure(failure, **more)
