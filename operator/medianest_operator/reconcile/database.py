"""One run for one database: every concern in its order, each guarded by itself, and the status that follows."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import psycopg
import pydantic

from medianest_operator import naming
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.errors import Permanent, ReconcileError, Transient
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError
from medianest_operator.kubernetes.kinds import DATABASE, Manifest
from medianest_operator.naming import Key
from medianest_operator.observability import metrics
from medianest_operator.observability.notifications import Message
from medianest_operator.postgres.sessions import Credentials, Unreachable
from medianest_operator.postgres.wording import as_clause
from medianest_operator.reconcile import status
from medianest_operator.reconcile.backups import objects as backup_objects
from medianest_operator.reconcile.backups import operations
from medianest_operator.reconcile.backups.requests import Restores
from medianest_operator.reconcile.concern import Concern, Needs, Outcome
from medianest_operator.reconcile.conditions import Report, conditions_of
from medianest_operator.reconcile.contents.schema import Schema
from medianest_operator.reconcile.context import Run, Services
from medianest_operator.reconcile.health import probes
from medianest_operator.reconcile.instances.servers import Servers, ever_available
from medianest_operator.reconcile.order import ORDER
from medianest_operator.reconcile.transitions import transitions
from medianest_operator.timestamps import stamp

log = logging.getLogger(__name__)

_STABLE_FOR: Final = 600.0
"""Seconds after which also what is stable is asked for again."""
_CALM_FOR: Final = 60.0
"""Seconds after which what is calm is asked for again."""
_SOON: Final = 1.0
"""Seconds; no run asks for another sooner than that."""
_SPECS: Final = 1000
"""Specs that are kept for other databases that say the same; each takes 11 KiB."""
_LONGEST: Final = 300
"""Characters of an unexpected error's text in the status."""
_API_AWAY: Final = (
    "The API server can't be reached or refuses requests for the moment; what was observed before is kept, and the"
    " operator tries again"
)
_PASSING: Final = (
    psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable, psycopg.OperationalError, psycopg.InterfaceError,
)  # fmt: skip
"""A statement that took too long, a lock that somebody else holds, a connection that broke: none of them says that the
database is bad."""


class ApiServerAway:
    """The fact that the API server did not answer in this run."""


class DatabaseReconciler:
    """Brings databases to what their spec wants."""

    def __init__(self, services: Services, order: Sequence[Concern] = ORDER) -> None:
        self._services = services
        self._order = order

    async def reconcile(self, key: Key) -> float | None:
        """One run. Returns the seconds until the next, or None where there is nothing to come back for.

        Raises:
            Transient: something has to be tried again, after a backoff. The status says so already.
            ApiError: the status could not be written.
        """
        database = self._services.cache.get(DATABASE, *key)
        if database is None or "deletionTimestamp" in database["metadata"]:
            await self.forget(key)
            await backup_objects.reject(self._services, key)
            return await operations.reject(self._services, key)
        try:
            # Read once for each of its generations.
            token = (database["metadata"].get("uid"), database["metadata"]["generation"])
            spec = self._services.memory.once(key, "spec", token, lambda: _parse(database))
        except Permanent as error:
            unread = [Report(concern) for concern in self._order]
            await self._report(database, [Report(_SPEC, error=error), *unread], paused=False)
            return self._services.settings.sweep_interval
        run = Run(self._services, database, spec)
        reports = []
        for concern in self._order:
            report = await self._asked(run, concern)
            if report.error is not None and report.error.reason is Reason.DELETING:
                return self._services.settings.probe_interval
            reports.append(report)
        await self._report(database, reports, paused=spec.paused)
        if errors := [report.error for report in reports if isinstance(report.error, Transient)]:
            raise errors[0]
        return self._next_run(run, reports)

    async def _asked(self, run: Run, concern: Concern) -> Report:
        """Ask a concern, unless what it found last time still holds."""
        if not concern.stable and not concern.calm:
            return await _ask(run, concern)
        memory, topic = run.services.memory, f"report of {concern.name}"
        token = (run.services.cache.revision(run.key), run.generation, run.spec.paused, run.facts.known)
        longest = _CALM_FOR if concern.calm else _STABLE_FOR
        known: tuple[Report, float] | None = memory.recall(run.key, topic, token, longest)
        if known is not None and time.monotonic() < known[1]:
            for fact in known[0].outcome.facts if known[0].outcome else ():
                run.facts.add(fact)
            return known[0]
        report = await _ask(run, concern)
        outcome = report.outcome
        if outcome is None or report.error is not None:
            return report
        if not (concern.calm and (outcome.obstacle or outcome.next_look)):
            # Of the time before: what changed meanwhile, by its own writes too, it may not have seen.
            kept = replace(report, outcome=replace(outcome, events=()))
            memory.keep(run.key, topic, token, (kept, time.monotonic() + (outcome.next_look or longest)))
        return report

    async def _report(self, database: Manifest, reports: Sequence[Report], *, paused: bool) -> None:
        """Write the status where it differs, then record what changed."""
        metadata = database["metadata"]
        key = metadata["namespace"], metadata["name"]
        token = (metadata.get("resourceVersion"), paused)
        if self._services.memory.recall(key, "reported", token, math.inf) == reports:
            return
        generation, now = int(metadata["generation"]), datetime.now(UTC)
        previous: Mapping[str, Any] = database.get("status") or {}
        conditions = conditions_of(reports, previous, generation, stamp(now), paused=paused)
        current = status.build(reports, conditions, previous, generation, now)
        metrics.READY.labels(*key).set(int(conditions[Condition.READY].status == "True"))
        metrics.report_conditions(*key, {kind: verdict.status for kind, verdict in conditions.items()})
        announcements = [event for report in reports if report.outcome for event in report.outcome.events]
        if current != previous:
            try:
                written = await self._services.applier.apply_status(DATABASE, database, current)
            except Permanent as error:
                await self._report_refusal(database, error, generation)
                return
            if not written:
                return
            announcements += transitions(previous, current, conditions)
        elif not announcements and not any(report.error for report in reports):
            self._services.memory.keep(key, "reported", token, reports)
        for item in announcements:
            await self._services.recorder.record(database, item.kind, item.reason, item.message)
            if item.kind == "Warning":
                self._services.notifier.warn(database, Message(*key, naming.KIND, item.reason, item.message))
        for report in reports:
            if report.outcome and report.outcome.told:
                report.outcome.told()

    async def _report_refusal(self, database: Manifest, error: Permanent, generation: int) -> None:
        """An older definition refuses what this operator writes: the conditions and the parts that it knows go in.

        Raises:
            Permanent: it refuses even that.
        """
        log.error("%s", error, extra={"database": database["metadata"]["name"]})
        previous: Mapping[str, Any] = database.get("status") or {}
        now = datetime.now(UTC)
        message = (
            "The resource definition in the cluster is older than the operator and refuses its status. Apply the"
            " operator's crds/. The operator goes on; the rest of this status is old"
        )
        report = Report(_SPEC, error=Transient(Reason.OUTDATED_DEFINITION, message))
        unread = [Report(concern) for concern in self._order]
        conditions = conditions_of([report, *unread], previous, generation, stamp(now), paused=False)
        current = status.build([report, *unread], conditions, previous, generation, now)
        if current != previous:
            await self._services.applier.apply_status(DATABASE, database, current)

    def _next_run(self, run: Run, reports: Sequence[Report]) -> float:
        """The earliest that a concern asked for; else the next probe, or the sweep where there are no servers."""
        settings = self._services.settings
        probed = bool(run.pods) or not run.spec.hibernate
        regular = settings.probe_interval if probed else settings.sweep_interval * random.uniform(0.9, 1.1)
        asked = [report.outcome.next_look for report in reports if report.outcome and report.outcome.next_look]
        return max(_SOON, min([regular, *asked]))

    async def forget(self, key: Key) -> None:
        probes.forget(self._services, key)
        await self._services.sessions.forget(*key)
        for pod in self._services.memory.swap(key, "measured", frozenset(), frozenset[str]()):
            metrics.forget_pod(*key, pod)
        self._services.memory.forget(key)
        metrics.forget(*key)


async def _ask(run: Run, concern: Concern) -> Report:
    """Let one concern act, or observe while the database is paused. Whatever it raises becomes its report."""
    act = concern.observe if run.spec.paused else concern.act
    if act is None:
        return Report(concern)
    if concern.needs > _reached(run):
        return Report(concern, unobserved=_missing(run))
    if concern.stable and ApiServerAway in run.facts.types:
        # It would ask for more, and be refused again; who is overloaded is asked once a run.
        return Report(concern, error=Transient(Reason.API_ERROR, _API_AWAY), unobserved=_API_AWAY)
    try:
        outcome = await act(run)
    except Exception as error:
        problem = _problem(run, concern, error)
        if _is_away(error):
            run.facts.add(ApiServerAway())
        await _observe_instead(run, concern)
        return Report(concern, error=problem, unobserved=problem.message.rstrip("."))
    for fact in outcome.facts:
        run.facts.add(fact)
    if outcome.problem is None:
        return Report(concern, outcome)
    problem = _problem(run, concern, outcome.problem)
    if _is_away(outcome.problem):
        run.facts.add(ApiServerAway())
    return Report(concern, outcome, problem, unobserved=problem.message.rstrip("."))


async def _observe_instead(run: Run, concern: Concern) -> None:
    """What a concern that could not act can still find out, for the concerns after it."""
    if concern.observe is None or concern.observe is concern.act:
        return
    try:
        outcome = await concern.observe(run)
    except Exception as error:
        log.info("%s: %s", concern.name, error, extra={"database": "/".join(run.key)})
        return
    for fact in outcome.facts:
        run.facts.add(fact)


def _is_away(error: Exception) -> bool:
    """Whether the API server itself can't answer, rather than refuse one object."""
    return isinstance(error, TRANSIENT_ERRORS) or (isinstance(error, ApiError) and error.status in {429, 503})


def _reached(run: Run) -> Needs:
    """What there is so far, for the concerns that need it."""
    servers, restores = run.facts.get(Servers), run.facts.get(Restores)
    if run.facts.get(Credentials) is None:
        return Needs.NOTHING
    if servers is None or not servers.serving or run.spec.hibernate:
        return Needs.CREDENTIALS
    if restores is None or not restores.has_database:
        return Needs.PRIMARY
    return Needs.SCHEMA if run.facts.get(Schema) else Needs.DATABASE


def _missing(run: Run) -> str | None:
    """Why a concern can't observe what it would; `None` where that is as it should be."""
    servers = run.facts.get(Servers)
    if run.spec.hibernate or run.spec.paused or servers is None or not ever_available(run):
        return None
    return None if servers.serving else "no primary takes writes"


def _problem(run: Run, concern: Concern, error: Exception) -> ReconcileError:
    """What an exception means: what only kept a concern from observing is told apart from what is wrong."""
    extra = {"database": "/".join(run.key), "concern": concern.name}
    if isinstance(error, ReconcileError):
        return error
    if isinstance(error, (ApiError, *TRANSIENT_ERRORS)):
        # The same words for every call that failed, so that an API server in trouble isn't written to over and over.
        log.warning("%s: the API server: %s", concern.name, error, extra=extra)
        return Transient(Reason.API_ERROR, _API_AWAY)
    if isinstance(error, (Unreachable, *_PASSING)):
        log.warning("%s: %s", concern.name, error, extra=extra)
        return Transient(Reason.NOT_OBSERVED, f"the {concern.name} could not be observed: {as_clause(str(error))}")
    if isinstance(error, psycopg.Error):
        log.warning("%s: %s", concern.name, error, extra=extra)
        message = f"A statement of the operator failed ({concern.name}): {as_clause(str(error))}"
        return Transient(Reason.STATEMENT_FAILED, message)
    log.error("%s: unexpected error", concern.name, exc_info=error, extra=extra)
    message = (
        f"The operator met an unexpected error ({concern.name}): {type(error).__name__}:"
        f" {' '.join(str(error).split())[:_LONGEST]}. Its log has the details; please report it"
    )
    return Transient(Reason.INTERNAL_ERROR, message)


@lru_cache(maxsize=_SPECS)
def _spec_of(text: str) -> DatabaseSpec:
    return DatabaseSpec.model_validate(json.loads(text))


def _parse(database: Manifest) -> DatabaseSpec:
    """The spec, one object for all that say the same. Raises Permanent where it isn't one, which the API server lets
    through only for older objects."""
    try:
        return _spec_of(json.dumps(database.get("spec") or {}))
    except pydantic.ValidationError as error:
        problems = "; ".join(
            f"spec.{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
        )
        raise Permanent(Reason.INVALID_SPEC, problems) from error


async def _no_one(_: Run) -> Outcome:
    return Outcome()


_SPEC: Final = Concern("spec", Needs.NOTHING, _no_one)
