"""Volumes: how full each is, what becomes of it, and what is done before PostgreSQL can't write any more."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import psycopg

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.quantity import to_bytes
from medianest_operator.errors import Transient
from medianest_operator.health import disk, storage
from medianest_operator.health.filling import Filling
from medianest_operator.health.findings import Finding
from medianest_operator.health.storage import Evidence, Usage
from medianest_operator.health.writing import Filled, Guard, next_observation
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
        at: when that was, by pod and volume.
        begun: when this process began to look.
        left: seconds until it is full at its present rate, by pod and volume; absent where it doesn't fill.
        used: the range that was told, by volume.
        full_in: the forecast that was told, by volume.
        words: the forecast that was told of one, by pod and volume.
        causes: what was told to fill it, by pod and volume.
        guard: when the writers are stopped and let in.
    """

    filling: dict[tuple[str, str], Filling] = field(default_factory=dict)
    usage: dict[tuple[str, str], Usage] = field(default_factory=dict)
    at: dict[tuple[str, str], datetime] = field(default_factory=dict)
    begun: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    left: dict[tuple[str, str], float | None] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    full_in: dict[str, str | None] = field(default_factory=dict)
    words: dict[tuple[str, str], str | None] = field(default_factory=dict)
    causes: dict[tuple[str, str], storage.Cause | None] = field(default_factory=dict)
    guard: Guard = field(default_factory=Guard)

    def filled(self, pods: Sequence[str]) -> list[Filled]:
        """The volumes of these pods, each with the bytes a second that it fills by."""
        items = [(usage, self.filling[key]) for key, usage in self.usage.items() if key[0] in pods]
        return [Filled(usage, filling.pace(), filling.steady()) for usage, filling in items]


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
    _forget(run, known)
    primary = seen.primary if seen.leads else None
    # The primary alone comes first: stopping its writers takes effect at once, and nothing slow may keep it waiting.
    measured = await _measure(run, known, [primary] if primary else [], may_make=acts)
    stopped: tuple[Announcement, ...] = ()
    problem: Exception | None = None
    if acts and primary is not None and primary.name in measured and seen.of_primary is not None:
        try:
            filled = known.filled([primary.name])
            stopped = await writers.stop_or_let(run, primary, seen.of_primary.read_only, known.guard, filled)
        except (Unreachable, psycopg.Error) as error:
            # A larger volume is all the more needed.
            message = f"The application's writers could not be stopped or let in: {as_clause(str(error))}"
            problem = Transient(Reason.STATEMENT_FAILED, message)
    others = [pod for pod in run.pods if pod.name in seen.instances and pod != primary]
    measured |= await _measure(run, known, others, may_make=False)
    _report(run, known)
    evidence = await _evidence(run, seen, known)
    grown: list[Announcement] = []
    problems: list[Finding] = []
    try:
        if acts:
            await growth.grow(run, _fullest(run, known), _holds_log(run, known, evidence), grown, problems)
        elif stuck := await growth.problem(run):
            problems.append(stuck)
    except Exception as error:
        # What was seen and done so far is told all the same.
        problem = problem or error
    if acts:
        await _put_ballast_back(run, known, measured)
    found = _judge(run, known, measured, evidence) + repository_volumes.findings(run) + problems
    tracking.observed(run, SOURCE, found + _unseen(run, measured))
    tracker = tracking.tracker(run)
    told = [item for item in known.usage if item[0] in measured]
    healthy = Verdict("True", Reason.STORAGE_HEALTHY, f"Every volume is less than {_warning(run)} % full.")
    conditions = {Condition.STORAGE_HEALTHY: tracking.verdict(tracker.of(SOURCE), healthy)}
    return Outcome(
        conditions=conditions if told or found else {},
        status={"storage": [*_status(run, known, measured), *repository_volumes.status(run, known.used)]},
        events=(*stopped, *grown),
        problem=problem,
        next_look=1.0 if stopped else _next_look(run, seen, known, acts=acts),
    )


def _next_look(run: Run, seen: Servers, known: _Observed, *, acts: bool) -> float | None:
    """Seconds until the next observation where that is sooner than the next probe."""
    regular = run.services.settings.probe_interval
    undecided = tracking.tracker(run).is_undecided(SOURCE) or known.guard.is_undecided()
    # Where the application only reads, or nothing would stop it, another look a second later changes nothing.
    writes = acts and run.spec.storage.read_only_when_full and not seen.reads_only
    primary = [seen.primary.name] if seen.leads and seen.primary else []
    soon = next_observation(known.filled(primary), _UNDECIDED if undecided else regular, writes=writes)
    return soon if soon < regular else None


def _known(run: Run) -> _Observed:
    known: _Observed | None = run.services.memory.recall(run.key, "volumes", run.uid, math.inf)
    if known is None:
        known = _Observed()
        for item in (run.database.get("status") or {}).get("storage") or []:
            # What an earlier process told keeps its words.
            if item.get("used"):
                known.used[str(item.get("name"))] = str(item["used"])
            known.full_in[str(item.get("name"))] = item.get("fullIn")
        run.services.memory.keep(run.key, "volumes", run.uid, known)
    return known


# Measuring.


def _forget(run: Run, known: _Observed) -> None:
    """Forget the volumes of pods that are gone."""
    names = {pod.name for pod in run.pods}
    for key in [key for key in known.usage if key[0] not in names]:
        del known.usage[key], known.filling[key], known.left[key], known.at[key]
        known.words.pop(key, None)
        known.causes.pop(key, None)


async def _measure(run: Run, known: _Observed, pods: Sequence[Pod], *, may_make: bool) -> frozenset[str]:
    """Ask servers, all at once; returns the pods whose volumes are known now.

    Args:
        may_make: what is to be there for it is made where it isn't, which only a primary can.
    """

    async def one(pod: Pod) -> str | None:
        found = None
        # What a server can't tell now it is asked again at the next probe.
        with contextlib.suppress(Unreachable, psycopg.Error):
            found = await _file_systems(run, pod, may_make=may_make)
        if found is None:
            return None
        for volume, usage in found.items():
            filling = known.filling.setdefault((pod.name, volume), Filling())
            filling.add(time.monotonic(), usage.used)
            known.usage[pod.name, volume] = usage
            known.at[pod.name, volume] = datetime.now(UTC)
            known.left[pod.name, volume] = filling.seconds_left(usage.available) if storage.fills(usage) else None
        return pod.name

    return frozenset({name for name in await asyncio.gather(*(one(pod) for pod in pods)) if name})


def _report(run: Run, known: _Observed) -> None:
    """Let the metrics say what is known."""
    for volume in {volume for _, volume in known.usage}:
        usages = {pod: usage for (pod, found), usage in known.usage.items() if found == volume}
        left = [seconds for pod in usages if (seconds := known.left[pod, volume]) is not None]
        used = {pod: usage.used for pod, usage in usages.items()}
        size = min(usage.total for usage in usages.values())
        metrics.report_volume(*run.key, volume, used, size, min(left, default=None))


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
        topic, lacking = f"ballast of {pod.name}", f"no ballast for {pod.name}"
        full = any(usage.share * 100 >= _warning(run) for usage in usages)
        if pod.name not in measured or full or run.services.memory.recall(run.key, topic, pod.uid, _BALLAST_EVERY):
            continue
        if run.services.memory.recall(run.key, lacking, pod.uid, math.inf):
            continue
        run.services.memory.keep(run.key, topic, pod.uid, True)
        with contextlib.suppress(Unreachable, psycopg.Error):
            instance = run.instance(pod, naming.MAINTENANCE_DATABASE)
            async with run.services.sessions.use(instance, run.credentials) as connection:
                if not await disk.put_ballast_back(connection):
                    # Of an older image: each time would be an error in the server's log.
                    run.services.memory.keep(run.key, lacking, pod.uid, True)


# Judging.


def _warning(run: Run) -> int:
    return run.spec.monitoring.storage_warning


def _cause(run: Run, known: _Observed, evidence: Mapping[str, Evidence], pod: str, volume: str) -> storage.Cause | None:
    usage, asked = known.usage[pod, volume], evidence.get(pod)
    if asked is None:
        return None
    has_log = volume == naming.VOLUME_WAL or (pod, naming.VOLUME_WAL) not in known.usage
    members = {run.names.slot(ordinal): run.names.pod(ordinal) for ordinal in range(run.spec.instances)}
    has_data, told = volume == naming.VOLUME_DATA, known.causes.get((pod, volume))
    return storage.cause(asked, usage.total, volume, has_log=has_log, has_data=has_data, members=members, told=told)


def _holds_log(run: Run, known: _Observed, evidence: Mapping[str, Evidence]) -> frozenset[str]:
    """The volumes that something fills which lets go of it at once."""
    causes = ((volume, _cause(run, known, evidence, pod, volume)) for pod, volume in known.usage)
    return frozenset(volume for volume, cause in causes if cause is not None and cause.holds_log)


def _current(run: Run, known: _Observed, volume: str) -> dict[str, Usage]:
    """What is known of a volume by pod, but for what was seen before it grew: a server that doesn't answer would
    have it grow again and again."""
    noted = growth.last(run, volume)
    return {
        pod: usage
        for (pod, name), usage in known.usage.items()
        # The note is of whole seconds.
        if name == volume and (noted is None or known.at[pod, name].replace(microsecond=0) > noted)
    }


def _fullest(run: Run, known: _Observed) -> dict[str, float]:
    """How much of each volume is in use, of the fullest; of those that were never observed by this process what the
    status says, which is from before it was started."""
    shares = {}
    for volume in volumes.asked_sizes(run):
        noted = growth.last(run, volume)
        seen = any(name == volume for _, name in known.usage)
        said = storage.at_least(known.used.get(volume)) if not seen and (not noted or noted < known.begun) else 0.0
        share = max((usage.share for usage in _current(run, known, volume).values()), default=said)
        shares[volume] = 0.0 if _is_shared(run, known, volume) else share
    return shares


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
        words = storage.full_in(known.left[pod, volume], known.words.get((pod, volume)))
        known.words[pod, volume] = words
        known.causes[pod, volume] = _cause(run, known, evidence, pod, volume)
        judged = storage.Volume(
            name=volume,
            pod=pod,
            usage=usage,
            full_in=words,
            cause=known.causes[pod, volume],
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


def _status(run: Run, known: _Observed, measured: frozenset[str]) -> list[api.Volume]:
    told = []
    for volume, size in volumes.wanted_sizes(run).items():
        noted, usages = growth.last(run, volume), _current(run, known, volume)
        if usages:
            fullest = max(usage.share for usage in usages.values())
            known.used[volume] = storage.in_use(fullest, known.used.get(volume))
            left = [seconds for pod in usages if (seconds := known.left[pod, volume]) is not None]
            known.full_in[volume] = storage.full_in(min(left, default=None), known.full_in.get(volume))
        elif not measured and noted is not None and noted >= known.begun:
            # Of the smaller one; a process that is started later must not take it for the larger one's.
            known.used.pop(volume, None)
            known.full_in.pop(volume, None)
        told.append(
            api.Volume(
                name=volume,
                size=size,
                used=known.used.get(volume),
                full_in=known.full_in.get(volume),
                grown_at=stamp(noted) if noted is not None else None,
            )
        )
    return told


CONCERN = Concern("storage", Needs.NOTHING, reconcile, observe, conditions=(Condition.STORAGE_HEALTHY,))
