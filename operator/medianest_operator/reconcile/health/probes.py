"""Probes of a database that serves: its servers and the application's queries every fifteen seconds, tables rarely."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import psycopg

from medianest_operator import naming
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.quantity import to_timedelta
from medianest_operator.health import integrity, queries, tables, vitals
from medianest_operator.health.findings import Finding
from medianest_operator.health.integrity import Integrity, Relation
from medianest_operator.migrations.bundled import application_facts
from medianest_operator.naming import Key
from medianest_operator.observability import metrics
from medianest_operator.postgres import logins
from medianest_operator.postgres.sessions import Connection, NotAdmitted, Unreachable
from medianest_operator.postgres.wording import as_clause
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.concern import Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.contents.logins import Passwords
from medianest_operator.reconcile.context import Pod, Run, Services
from medianest_operator.reconcile.health import tracking
from medianest_operator.reconcile.instances.servers import Servers

log = logging.getLogger(__name__)

T = TypeVar("T")

SERVERS: Final = "servers"
QUERIES: Final = "queries"
CONNECTS: Final = "connections"
CATALOG: Final = "catalog"
INTEGRITY: Final = "integrity"
SOURCES: Final = (SERVERS, QUERIES, CONNECTS, CATALOG, INTEGRITY)

_SHORTEST: Final = 10.0
"""Seconds between two observations, however often something else has the database looked at: three of them in a moment
would be one."""
_TABLES_EVERY: Final = 300.0
_FRESH_EVERY: Final = 4
"""Probes of the queries, of which one makes its connection anew."""
_CHECK_BUDGET: Final = 120.0
"""Seconds for all rows."""
_LONGEST_RULE: Final = 30.0
_LONGEST_RULE_ON_PRIMARY: Final = 5.0
"""Seconds: whoever wants to change a table waits for who reads it."""
_CHECK_EVERY: Final = 86_400.0
_FIRST_CHECK: Final = 600.0
_CHECK_AGAIN: Final = 3600.0
"""Seconds; after one that could not be done, or that found something."""
_PATIENCE: Final = 10.0
"""Seconds for all hot queries; each has its own deadline."""


@dataclass
class _Past:
    """What earlier probes of one database left.

    Attributes:
        probed: when the servers were probed last, on the monotonic clock; `tables_read` likewise.
        checks_at: when the next check of the rows begins.
        check: the one that is under way.
        deadlocks: of each pod, the server's time and its count of deadlocks.
    """

    probed: float = -math.inf
    tables_read: float = -math.inf
    checks_at: float | None = None
    check: asyncio.Task[Integrity] | None = None
    probes: int = 0
    timed: bool = False
    timings: queries.Timings = field(default_factory=queries.Timings)
    deadlocks: dict[str, deque[tuple[int, int]]] = field(default_factory=dict)


async def observe(run: Run) -> Outcome:
    """Probe what is due, and judge what counts by now."""
    token = run.database["metadata"].get("uid")
    past = run.services.memory.once(run.key, "probes", token, _Past)
    tracker = tracking.tracker(run)
    now = time.monotonic()
    if now - past.probed >= _SHORTEST:
        past.probed = now
        # One after the other: the servers' sessions are looked at while none of these works.
        await _servers(run, past)
        await _queries(run, past)
        if now - past.tables_read >= _TABLES_EVERY or tracker.is_undecided(CATALOG):
            past.tables_read = now
            await _tables(run)
    _integrity(run, past, now)
    what = "Servers, replication and the application's queries" if past.timed else "Servers and replication"
    healthy = Verdict("True", Reason.HEALTHY, f"{what} are as they should be.")
    return Outcome(conditions={Condition.HEALTHY: tracking.verdict(tracker.of(*SOURCES), healthy)})


async def _servers(run: Run, past: _Past) -> None:
    """Ask each server that answered a moment ago."""
    servers = run.facts.require(Servers)
    found: list[Finding] = []
    for name, why in servers.unreachable.items():
        # Not at once: Available says that of the primary in the same run, and a replica that restarts is no news.
        found.append(Finding(Reason.PROBE_FAILED, name, f"{name} does not answer: {why}."))

    own = vitals.Own(
        frozenset({logins.role_name(run.spec, role) for role in (logins.BACKUP, logins.MIGRATOR)}),
        frozenset(run.names.slot(ordinal) for ordinal in range(naming.MAX_INSTANCES)),
    )

    async def one(pod: Pod) -> None:
        try:
            instance = run.instance(pod, naming.MAINTENANCE_DATABASE)
            async with run.services.sessions.use(instance, run.credentials) as connection:
                seen = await vitals.read_vitals(connection)
        except (Unreachable, psycopg.Error) as error:
            why = as_clause(str(error).removeprefix(f"{pod.name}: "))
            found.append(Finding(Reason.PROBE_FAILED, pod.name, f"The probe of {pod.name} failed: {why}."))
            return
        before = past.deadlocks.setdefault(pod.name, deque(maxlen=120))
        if deadlocked := vitals.deadlocked(pod.name, before, seen):
            found.append(deadlocked)
        before.append((seen.now, seen.deadlocks))
        found.extend(vitals.findings(pod.name, seen, own))
        _measure(run, pod, seen)

    pods = [pod for pod in run.pods if pod.name in servers.instances]
    await asyncio.gather(*(one(pod) for pod in pods))
    tracking.observed(run, SERVERS, found)


def _measure(run: Run, pod: Pod, seen: vitals.Vitals) -> None:
    metrics.OLDEST_TRANSACTION.labels(*run.key, pod.name).set(seen.oldest_transaction)
    if seen.in_recovery:
        return
    metrics.BLOCKED_SESSIONS.labels(*run.key).set(seen.waiting)
    metrics.DEADLOCKS.labels(*run.key).set(seen.deadlocks)
    metrics.TRANSACTION_AGE.labels(*run.key).set(seen.transaction_age)
    metrics.SLOT_BYTES.labels(*run.key).set(max((slot["retained"] or 0 for slot in seen.slots), default=0))
    metrics.report_roles(*run.key, seen.by_role)


async def _as_reader(
    run: Run, source: str, what: str, ask: Callable[[Connection, float], Awaitable[T]], *, fresh: bool = False
) -> T | None:
    """Ask the primary as the login that only reads the application's tables; `None` where it couldn't be asked.

    Args:
        source: which says so then.
        what: for the words.
        ask: gets the connection, and how long it took to have it.
        fresh: as in `Sessions.use`.
    """
    primary, passwords = run.facts.require(Servers).primary, run.facts.get(Passwords)
    if primary is None or passwords is None:
        return None
    instance = run.login(primary, run.spec.database.name, logins.READ_ONLY, passwords.by_suffix)
    started = time.perf_counter()
    try:
        async with run.services.sessions.use(instance, run.credentials, _PATIENCE, fresh=fresh) as connection:
            return await ask(connection, time.perf_counter() - started)
    except NotAdmitted as error:
        # It is locked out, or its password is about to be set: that says nothing of the database.
        log.info("%s not probed: %s", what, error, extra={"database": "/".join(run.key)})
    except (Unreachable, psycopg.Error) as error:
        why = as_clause(str(error).removeprefix(f"{primary.name}: "))
        message = f"The application's {what} could not be probed on {primary.name}: {why}."
        tracking.observed(run, source, [Finding(Reason.PROBE_FAILED, what, message)])
    return None


async def _queries(run: Run, past: _Past) -> None:
    """Time the application's queries."""
    fresh = past.probes % _FRESH_EVERY == 0 or tracking.tracker(run).is_undecided(CONNECTS)
    past.probes += 1
    limit = to_timedelta(run.spec.monitoring.slow_query).total_seconds()

    async def ask(connection: Connection, taken: float) -> queries.Timing:
        return await queries.time_queries(connection, limit, taken if fresh else None)

    timing = await _as_reader(run, QUERIES, "queries", ask, fresh=fresh)
    if timing is None:
        return
    past.timed = bool(timing.seconds)
    past.timings.add(timing)
    for gauge, values in (
        (metrics.QUERY_SECONDS, past.timings.queries),
        (metrics.CONNECT_SECONDS, past.timings.connects),
    ):
        for share in metrics.QUANTILES:
            metrics.report_quantile(gauge, *run.key, share, queries.quantile(values, float(share)))
    tracking.observed(run, QUERIES, queries.findings(timing, limit), unseen=queries.unseen(timing))
    if timing.connect is not None:
        tracking.observed(run, CONNECTS, queries.connect_findings(timing.connect, limit))


async def _tables(run: Run) -> None:
    """Look at the application's tables."""

    async def ask(connection: Connection, _: float) -> list[Finding]:
        return await tables.read_findings(connection)

    found = await _as_reader(run, CATALOG, "tables", ask)
    if found is not None:
        tracking.observed(run, CATALOG, found)


def _integrity(run: Run, past: _Past, now: float) -> None:
    """Check the rows once a day, beside the runs: it takes as long as the tables are large, up to its budget."""
    jobs = [*run.jobs, *run.hardening_jobs, *run.restore_jobs]
    if any(Attempt(run, job).is_running for job in jobs):
        # It would hold up who needs a lock on a table, and may look at a database that is on its way out.
        if past.check is not None:
            past.check.cancel()
        past.checks_at = max(past.checks_at or now, now + _CHECK_AGAIN)
        return
    if past.check is not None and past.check.done():
        _take_in(run, past, past.check, now)
    if past.checks_at is None:
        past.checks_at = now + _FIRST_CHECK * random.uniform(0.5, 1.5)
    passwords = run.facts.get(Passwords)
    if past.check is None and now >= past.checks_at and passwords is not None:
        past.check = asyncio.create_task(_checked(run, _least_busy(run), passwords))
        # Nobody asks how it ended where the object is deleted meanwhile.
        past.check.add_done_callback(lambda task: task.cancelled() or task.exception())


def _take_in(run: Run, past: _Past, task: asyncio.Task[Integrity], now: float) -> None:
    """What a check found; one that broke is done again in an hour, and so is one that found something."""
    past.check, past.checks_at = None, now + _CHECK_AGAIN
    if task.cancelled():
        return
    try:
        seen = task.result()
    except (Unreachable, psycopg.Error) as error:
        log.info("rows not checked: %s", error, extra={"database": "/".join(run.key)})
        return
    if seen.unchecked:
        log.info("not checked: %s", ", ".join(seen.unchecked)[:1000], extra={"database": "/".join(run.key)})
    tracking.observed(run, INTEGRITY, seen.findings, settled=True)
    if not seen.findings:
        past.checks_at = now + _CHECK_EVERY * random.uniform(0.9, 1.1)


def forget(services: Services, key: Key) -> None:
    """End what goes on beside the runs of a database that is gone."""
    past: _Past | None = services.memory.swap(key, "probes", None, None)
    if past is not None and past.check is not None:
        past.check.cancel()


def _least_busy(run: Run) -> Pod:
    """A replica that follows, where there is one; else the primary."""
    servers = run.facts.require(Servers)
    replicas = [pod for pod in run.pods if pod.name in servers.instances and pod.streaming]
    pod = replicas[0] if replicas else servers.primary
    if pod is None:
        raise LookupError("a database that serves has a primary")
    return pod


async def _checked(run: Run, pod: Pod, passwords: Passwords) -> Integrity:
    # Not the login of backups, which sees more: what the owner defined runs with the rights of who reads.
    instance = run.login(pod, run.spec.database.name, logins.READ_ONLY, passwords.by_suffix)
    known = [Relation(*relation) for relation in application_facts().relations]
    longest = _LONGEST_RULE_ON_PRIMARY if pod.is_primary else _LONGEST_RULE
    async with run.services.sessions.apart(instance, run.credentials, 2 * _CHECK_BUDGET) as connection:
        return await integrity.check(connection, known, _CHECK_BUDGET, longest)


CONCERN = Concern("probes", Needs.DATABASE, observe, observe, conditions=(Condition.HEALTHY,))
