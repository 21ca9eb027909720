"""Volumes: how full each is, what becomes of it, and what is done before PostgreSQL can't write any more."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import psycopg

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.quantity import to_bytes
from medianest_operator.errors import ReconcileError, Transient
from medianest_operator.health import disk, storage
from medianest_operator.health.filling import Filling
from medianest_operator.health.findings import Finding
from medianest_operator.health.storage import Evidence, Usage
from medianest_operator.observability import metrics
from medianest_operator.postgres.sessions import Unreachable
from medianest_operator.postgres.wording import as_clause
from medianest_operator.reconcile.backups import repository_volumes
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.health import tracking
from medianest_operator.reconcile.instances import growth, volumes, writers
from medianest_operator.reconcile.instances.servers import Servers
from medianest_operator.timestamps import stamp

SOURCE: Final = "storage"
_EVIDENCE_EVERY: Final = 60.0
"""Seconds after which it is asked again what fills a volume: that reads a directory and sizes of databases."""
_BALLAST_EVERY: Final = 600.0
"""Seconds after which a server is asked again to keep room for its next start."""
_UNDECIDED: Final = 5.0
"""Seconds until the next observation while one more would tell whether something counts."""


@dataclass
class _Observed:
    """What is remembered of a database's volumes between runs.

    Attributes:
        filling: over time, by pod and volume.
        usage: the last observation, by pod and volume.
        left: seconds until it is full at its present rate, by pod and volume; absent where it doesn't fill.
        used: the range that was told, by volume.
        full_in: the forecast that was told, by volume.
    """

    filling: dict[tuple[str, str], Filling] = field(default_factory=dict)
    usage: dict[tuple[str, str], Usage] = field(default_factory=dict)
    left: dict[tuple[str, str], float | None] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    full_in: dict[str, str | None] = field(default_factory=dict)

    def paced(self, pods: Sequence[str]) -> list[tuple[Usage, float]]:
        """The volumes of these pods, each with the bytes a second that it fills by."""
        return [(usage, self.filling[key].pace()) for key, usage in self.usage.items() if key[0] in pods]


async def reconcile(run: Run) -> Outcome:
    """Measure, judge, grow, and stop the writers where there is no other way."""
    return await _observe(run, acts=True)


async def observe(run: Run) -> Outcome:
    """Measure and judge."""
    return await _observe(run, acts=False)


async def _observe(run: Run, *, acts: bool) -> Outcome:
    seen = run.facts.get(Servers) or Servers()
    if run.spec.hibernate:
        return Outcome()
    known = _known(run)
    measured = await _measure(run, seen, known, acts=acts)
    primary = seen.primary if seen.leads else None
    evidence = await _evidence(run, seen, known)
    if acts:
        await _put_ballast_back(run, known, measured)
    grown: tuple[Announcement, ...] = ()
    stopped: tuple[Announcement, ...] = ()
    problem: ReconcileError | None = None
    problems: list[Finding] = []
    if acts:
        # Stopping the writers comes first: it takes effect at once, a larger volume takes seconds.
        if primary is not None and primary.name in measured and seen.of_primary is not None:
            try:
                paced = known.paced([primary.name])
                stopped = await writers.stop_or_let(run, primary, seen.of_primary.read_only, paced)
            except (Unreachable, psycopg.Error) as error:
                # A larger volume is all the more needed.
                message = f"The application's writers could not be stopped or let in: {as_clause(str(error))}"
                problem = Transient(Reason.STATEMENT_FAILED, message)
        grown, problems = await growth.grow(run, _fullest(run, known), _holds_log(run, known, evidence))
    elif stuck := await growth.problem(run):
        problems = [stuck]
    found = _judge(run, known, measured, evidence) + repository_volumes.findings(run) + problems
    tracking.observed(run, SOURCE, found + _unseen(run, measured))
    tracker = tracking.tracker(run)
    undecided = tracker.is_undecided(SOURCE)
    told = [item for item in known.usage if item[0] in measured]
    healthy = Verdict("True", Reason.STORAGE_HEALTHY, f"Every volume is less than {_warning(run)} % full.")
    conditions = {Condition.STORAGE_HEALTHY: tracking.verdict(tracker.of(SOURCE), healthy)}
    regular = _UNDECIDED if undecided else run.services.settings.probe_interval
    soon = storage.next_observation(known.paced([pod.name for pod in run.pods]), regular)
    return Outcome(
        conditions=conditions if told or found else {},
        status={"storage": [*_status(run, known), *repository_volumes.status(run, known.used)]},
        events=(*stopped, *grown),
        problem=problem,
        next_look=1.0 if stopped else soon if soon < run.services.settings.probe_interval else None,
    )


def _known(run: Run) -> _Observed:
    known: _Observed | None = run.services.memory.recall(run.key, "volumes", run.uid, math.inf)
    if known is None:
        known = _Observed()
        for item in (run.database.get("status") or {}).get("storage") or []:
            # What an earlier process told keeps its words.
            known.used[str(item.get("name"))] = str(item.get("used"))
            known.full_in[str(item.get("name"))] = item.get("fullIn")
        run.services.memory.keep(run.key, "volumes", run.uid, known)
    return known


# Measuring.


async def _measure(run: Run, seen: Servers, known: _Observed, *, acts: bool) -> frozenset[str]:
    """Ask every server that answered; returns the pods whose volumes are known now."""

    async def one(pod: Pod) -> str | None:
        leads = seen.leads and seen.primary is not None and pod.name == seen.primary.name
        found = None
        # What a server can't tell now it is asked again at the next probe.
        with contextlib.suppress(Unreachable, psycopg.Error):
            found = await _file_systems(run, pod, may_make=leads and acts)
        if found is None:
            return None
        for volume, usage in found.items():
            filling = known.filling.setdefault((pod.name, volume), Filling())
            filling.add(time.monotonic(), usage.used)
            known.usage[pod.name, volume] = usage
            known.left[pod.name, volume] = filling.seconds_left(usage.available)
        return pod.name

    names = {pod.name for pod in run.pods}
    for key in [key for key in known.usage if key[0] not in names]:
        del known.usage[key], known.filling[key], known.left[key]
    answered = [pod for pod in run.pods if pod.name in seen.instances]
    names = {name for name in await asyncio.gather(*(one(pod) for pod in answered)) if name}
    for volume in {volume for _, volume in known.usage}:
        usages = {pod: usage for (pod, found), usage in known.usage.items() if found == volume}
        left = [seconds for pod in usages if (seconds := known.left[pod, volume]) is not None]
        used = {pod: usage.used for pod, usage in usages.items()}
        size = min(usage.total for usage in usages.values())
        metrics.report_volume(*run.key, volume, used, size, min(left, default=None))
    return frozenset(names)


async def _file_systems(run: Run, pod: Pod, *, may_make: bool) -> Mapping[str, Usage] | None:
    instance = run.instance(pod, naming.MAINTENANCE_DATABASE)
    topic = f"measured {pod.name}"
    async with run.services.sessions.use(instance, run.credentials) as connection:
        if run.services.memory.recall(run.key, topic, pod.uid, math.inf) is None:
            if not await disk.is_measured(connection):
                if not may_make:
                    return None
                await disk.make_measurable(connection)
            run.services.memory.keep(run.key, topic, pod.uid, True)
        try:
            return await disk.file_systems(connection)
        except psycopg.errors.UndefinedTable:
            run.services.memory.drop(run.key, topic)
            raise


async def _evidence(run: Run, seen: Servers, known: _Observed) -> dict[str, Evidence]:
    """What fills the volumes of the pods where there is something to explain."""
    full = {pod for (pod, _), usage in known.usage.items() if usage.share * 100 >= _warning(run)}
    replaced = [str(item["database"]) for item in (run.database.get("status") or {}).get("replaced") or []]
    found: dict[str, Evidence] = {}
    for pod in run.pods:
        if pod.name not in full or pod.name not in seen.instances:
            continue
        topic = f"evidence of {pod.name}"
        asked: Evidence | None = run.services.memory.recall(run.key, topic, pod.uid, _EVIDENCE_EVERY)
        if asked is None:
            with contextlib.suppress(Unreachable, psycopg.Error):
                instance = run.instance(pod, naming.MAINTENANCE_DATABASE)
                async with run.services.sessions.use(instance, run.credentials) as connection:
                    asked = await disk.evidence(connection, replaced)
                run.services.memory.keep(run.key, topic, pod.uid, asked)
        if asked is not None:
            found[pod.name] = asked
    return found


async def _put_ballast_back(run: Run, known: _Observed, measured: frozenset[str]) -> None:
    for pod in run.pods:
        usages = [usage for (name, _), usage in known.usage.items() if name == pod.name]
        topic = f"ballast of {pod.name}"
        full = any(usage.share * 100 >= _warning(run) for usage in usages)
        if pod.name not in measured or full or run.services.memory.recall(run.key, topic, pod.uid, _BALLAST_EVERY):
            continue
        run.services.memory.keep(run.key, topic, pod.uid, True)
        # A server of an older image has no such program.
        with contextlib.suppress(Unreachable, psycopg.Error):
            instance = run.instance(pod, naming.MAINTENANCE_DATABASE)
            async with run.services.sessions.use(instance, run.credentials) as connection:
                await disk.put_ballast_back(connection)


# Judging.


def _warning(run: Run) -> int:
    return run.spec.monitoring.storage_warning


def _cause(run: Run, known: _Observed, evidence: Mapping[str, Evidence], pod: str, volume: str) -> storage.Cause | None:
    usage, asked = known.usage[pod, volume], evidence.get(pod)
    if asked is None:
        return None
    has_log = volume == naming.VOLUME_WAL or (pod, naming.VOLUME_WAL) not in known.usage
    return storage.cause(asked, usage.total, volume, has_log=has_log, has_data=volume == naming.VOLUME_DATA)


def _holds_log(run: Run, known: _Observed, evidence: Mapping[str, Evidence]) -> frozenset[str]:
    """The volumes that something fills which lets go of it at once."""
    causes = ((volume, _cause(run, known, evidence, pod, volume)) for pod, volume in known.usage)
    return frozenset(volume for volume, cause in causes if cause is not None and cause.holds_log)


def _fullest(run: Run, known: _Observed) -> dict[str, float]:
    """How much of each volume is in use, of the fullest; of those that were never observed by this process what the
    status says."""
    shares = {volume: storage.at_least(known.used.get(volume)) for volume in volumes.asked_sizes(run)}
    for volume in shares:
        if measured := [usage.share for (_, name), usage in known.usage.items() if name == volume]:
            shares[volume] = max(measured)
    return {volume: 0.0 if _is_shared(run, known, volume) else share for volume, share in shares.items()}


def _is_shared(run: Run, known: _Observed, volume: str) -> Finding | None:
    """A hint where a volume's file system is not its own."""
    if volume == naming.VOLUME_WAL and not any(name == volume for _, name in known.usage):
        # It lies on the file system of the data.
        return None
    capacities = [
        to_bytes(size)
        for claim, name in volumes.of_instances(run)
        if name == volume and (size := claim.get("status", {}).get("capacity", {}).get("storage"))
    ]
    for (pod, name), usage in known.usage.items():
        if name == volume and capacities and (hint := storage.shared(volume, pod, usage, max(capacities))):
            return hint
    return None


def _judge(run: Run, known: _Observed, measured: frozenset[str], evidence: Mapping[str, Evidence]) -> list[Finding]:
    found = []
    for (pod, volume), usage in known.usage.items():
        if pod not in measured:
            continue
        judged = storage.Volume(
            name=volume,
            pod=pod,
            usage=usage,
            seconds_left=known.left[pod, volume],
            cause=_cause(run, known, evidence, pod, volume),
            then=growth.what_next(run, volume),
            enlarge=growth.command(run, volume),
        )
        if finding := storage.finding(judged, _warning(run)):
            found.append(finding)
    hints = [_is_shared(run, known, volume) for volume in volumes.asked_sizes(run)]
    return found + [hint for hint in hints if hint is not None]


def _unseen(run: Run, measured: frozenset[str]) -> list[Finding]:
    """What is known of the pods that don't answer now: a server that stopped on a full volume doesn't tell of it."""
    unseen = tuple(f" of {pod.name}" for pod in run.pods if pod.name not in measured)
    known = (item.finding for item in tracking.tracker(run).of(SOURCE))
    return [finding for finding in known if unseen and finding.object.endswith(unseen)]


def _status(run: Run, known: _Observed) -> list[api.Volume]:
    told = []
    for volume, size in volumes.wanted_sizes(run).items():
        usages = {pod: usage for (pod, name), usage in known.usage.items() if name == volume}
        if usages:
            fullest = max(usage.share for usage in usages.values())
            known.used[volume] = storage.in_use(fullest, known.used.get(volume))
            left = [seconds for pod in usages if (seconds := known.left[pod, volume]) is not None]
            known.full_in[volume] = storage.full_in(min(left, default=None), known.full_in.get(volume))
        told.append(
            api.Volume(
                name=volume,
                size=size,
                used=known.used.get(volume),
                full_in=known.full_in.get(volume),
                grown_at=stamp(noted) if (noted := growth.last(run, volume)) else None,
            )
        )
    return told


CONCERN = Concern("storage", Needs.NOTHING, reconcile, observe, conditions=(Condition.STORAGE_HEALTHY,))
