"""The application's schema as it is: its migration history, its indexes, and what no migration has made."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Final

import psycopg

from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Transient
from medianest_operator.migrations.history import History, read_history_async
from medianest_operator.migrations.journal import LastRun, read_last_run
from medianest_operator.postgres.catalog import Traces, read_traces_async
from medianest_operator.postgres.sessions import QUERY_TIMEOUT, Connection, Unreachable
from medianest_operator.reconcile import attempts
from medianest_operator.reconcile.concern import Concern, Needs, Outcome
from medianest_operator.reconcile.contents import drift
from medianest_operator.reconcile.contents.reading import application_database
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.instances.servers import Servers

_SLOW_TRIES: Final = 3
_READ_EVERY: Final = 300.0
"""Seconds after which history and journal are read again although nothing seems to have changed."""
_READ_BUSY_EVERY: Final = 60.0
"""The same while a session is in a transaction: it reports what it changed before only at the end."""
_UNWRITTEN_FOR: Final = 60.0
"""Seconds for which nothing is asked of the database itself while nobody has written a row on the server. What a
session writes is counted some seconds later, where it writes a lot (PostgreSQL manual, 28.2.2)."""


@dataclass(frozen=True)
class Schema:
    """The application's database as it is.

    Attributes:
        definitions: another text after each change of a definition.
        drift: what no migration has made; `None` where nobody recorded what the version should look like.
        last_run: the newest run in the journal.
    """

    history: History
    definitions: str | None = None
    drift: tuple[str, ...] | None = None
    last_run: LastRun | None = None


async def observe(run: Run) -> Outcome:
    """Read it again when a definition, the history or the journal changed, and from time to time.

    Raises:
        Transient: it takes longer than the controller's sessions may take, time and again: a person is told then.
    """
    memory = run.services.memory
    try:
        outcome = await _observe(run)
    except Unreachable as error:
        if not isinstance(error.__cause__, TimeoutError | psycopg.errors.QueryCanceled):
            raise
        tries: int = (memory.recall(run.key, "slow-schema", None, math.inf) or 0) + 1
        memory.keep(run.key, "slow-schema", None, tries)
        if tries < _SLOW_TRIES:
            raise
        message = (
            f"Reading the schema takes longer than {QUERY_TIMEOUT:.0f} s, time and again: it has too many"
            " objects, or the server is overloaded. No migration begins meanwhile"
        )
        raise Transient(Reason.STATEMENT_FAILED, message) from error
    memory.drop(run.key, "slow-schema")
    return outcome


async def _observe(run: Run) -> Outcome:
    primary = run.facts.require(Servers).primary
    if primary is None:
        return Outcome()
    memory = run.services.memory
    token = (primary.uid, _job_token(run))
    running = any(attempts.ended(job) is None for job in run.jobs)
    server = run.facts.require(Servers).of_primary
    unwritten = (*token, server.written if server else None)
    if not running and isinstance(known := memory.recall(run.key, "unwritten", unwritten, _UNWRITTEN_FOR), Schema):
        return _outcome(known)
    async with application_database(run, primary) as connection:
        traces = await read_traces_async(connection)
        longest = 0.0 if running else _READ_BUSY_EVERY if traces.in_transaction else _READ_EVERY
        known = memory.recall(run.key, "schema", (*token, traces), longest)
        if isinstance(known, Schema):
            found = known
        else:
            found = await _read(run, connection, traces)
            memory.keep(run.key, "schema", (*token, traces), found)
    if not traces.in_transaction:
        memory.keep(run.key, "unwritten", unwritten, found)
    return _outcome(found)


def _outcome(found: Schema) -> Outcome:
    return Outcome(facts=(found,), summary=f"schema {found.history.version}" if found.history.version else None)


def _job_token(run: Run) -> str:
    """Changes whenever a Job that changes the schema does, so that it is read again."""
    changing = [*run.jobs, *run.hardening_jobs]
    return json.dumps([[job["metadata"]["uid"], attempts.ended(job) is not None] for job in changing])


async def _read(run: Run, connection: Connection, traces: Traces) -> Schema:
    history = await read_history_async(connection)
    return Schema(
        history,
        traces.definitions,
        await drift.observe(run, connection, history, traces.definitions),
        await read_last_run(connection),
    )


CONCERN = Concern("schema", Needs.DATABASE, observe, observe)
