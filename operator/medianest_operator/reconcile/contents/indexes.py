"""The state of the application's indexes: what is missing, invalid, superfluous, unused, and what to do about each."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

import psycopg

from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.errors import Permanent, ReconcileError
from medianest_operator.hardening.naming import is_own
from medianest_operator.health import probe
from medianest_operator.health.indexes import reading, usage
from medianest_operator.health.indexes.catalog import Catalog, Statistics
from medianest_operator.health.indexes.findings import findings
from medianest_operator.health.indexes.report import Entry, Report, bounded_json, judge, read_first
from medianest_operator.health.indexes.usage import Seen
from medianest_operator.kubernetes.kinds import CONFIG_MAP
from medianest_operator.migrations.history import History
from medianest_operator.migrations.indexes import critical_indexes, is_bundled, made_indexes
from medianest_operator.migrations.journal import read_version
from medianest_operator.observability import metrics
from medianest_operator.postgres.index_definition import IndexDefinition
from medianest_operator.postgres.sessions import Busy, Connection, Unreachable
from medianest_operator.postgres.trusted import UntrustedContent
from medianest_operator.reconcile.concern import Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.contents.reading import application_database
from medianest_operator.reconcile.contents.schema import Schema
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.health import tracking
from medianest_operator.reconcile.instances.servers import Servers
from medianest_operator.resources.report import report as report_manifest

_EVERY: Final = 300.0
"""Seconds after which the catalogs and counters are read again although no definition has changed."""
_SHOWN: Final = 10
"""Names in one list of the status."""
_REPORT: Final = "indexes.json"
_SEEN: Final = "indexes-seen.json"
_SOURCE: Final = "indexes"
_BLOATED: Final = "bloated indexes"
_FAILED: Final = "failed look at indexes"


@dataclass(frozen=True)
class _Found:
    """What was found, and the same as the ConfigMap has it."""

    report: Report
    seen: Seen
    data: Mapping[str, str]


@dataclass(frozen=True)
class _Failed:
    """That it could not be read: a login may have made so much that no try ends in time, and each costs as much."""

    again: Callable[[], Exception]


async def act(run: Run) -> Outcome:
    """Judge the indexes, and write the whole report where it differs."""
    found = await _found(run)
    if found is None:
        return Outcome()
    problem = None
    try:
        await run.services.applier.apply(CONFIG_MAP, report_manifest(run.names, run.owner, dict(found.data)))
    except ReconcileError as error:
        problem = error
    return _outcome(found.report, problem)


async def observe(run: Run) -> Outcome:
    """Judge the indexes; nothing is said of a database that has no schema yet."""
    found = await _found(run)
    return Outcome() if found is None else _outcome(found.report)


async def _found(run: Run) -> _Found | None:
    schema, primary = run.facts.require(Schema), run.facts.require(Servers).primary
    if schema.history.version is None or primary is None:
        return None
    instances = _instances(run)
    token = (schema.definitions, schema.history.version, primary.uid, instances)
    known: _Found | None = run.services.memory.recall(run.key, "indexes", token, _EVERY)
    if known is not None:
        return known
    failed: _Failed | None = run.services.memory.recall(run.key, _FAILED, primary.uid, _EVERY)
    if failed is not None:
        raise failed.again()
    try:
        found = await _look(run, primary, schema.history, instances)
    except (Busy, Permanent) as error:
        run.services.memory.keep(run.key, _FAILED, primary.uid, _Failed(functools.partial(_copied, error)))
        raise
    run.services.memory.keep(run.key, "indexes", token, found)
    tracking.observed(run, _SOURCE, findings(found.report), settled=True)
    metrics.CRITICAL_INDEXES_MISSING.labels(*run.key).set(len(found.report.missing_critical))
    return found


def _copied(error: Busy | Permanent) -> Exception:
    """The same error anew: one that is raised again and again would hold every place at which it was."""
    return Permanent(error.reason, error.message) if isinstance(error, Permanent) else Busy(str(error))


async def _look(run: Run, primary: Pod, history: History, instances: Sequence[str]) -> _Found:
    async with application_database(run, primary) as connection:
        live, wanted = await _read(run, connection, history)
    counted = await _statistics(run, instances)
    # Some thousands of indexes take a second, which belongs to the other databases and to the Lease.
    today = datetime.now(UTC).date()
    before: Mapping[str, int] = run.services.memory.recall(run.key, _BLOATED, None, math.inf) or {}
    found = await asyncio.to_thread(_judged, live, wanted, counted, _seen(run), instances, today, before)
    run.services.memory.keep(run.key, _BLOATED, None, found.report.points)
    return found


async def _read(run: Run, connection: Connection, history: History) -> tuple[Catalog, Sequence[IndexDefinition] | None]:
    metrics.DATABASE_BYTES.labels(*run.key).set(await probe.database_size(connection))
    recorded = None
    if history.version is not None and not is_bundled(history):
        recorded = await read_version(connection, history.version)
    wanted = made_indexes(history, recorded)
    return await reading.read_async(connection, read_first(critical_indexes(), wanted)), wanted


def _judged(
    live: Catalog,
    wanted: Sequence[IndexDefinition] | None,
    counted: Mapping[str, Statistics | None],
    known: Seen,
    instances: Sequence[str],
    today: date,
    before: Mapping[str, int],
) -> _Found:
    seen = known.after(live, instances, today)
    asked = usage.counts_for_all(counted.values())
    unused = usage.unused(live, counted, seen, today) if asked else None
    report = judge(live, critical_indexes(), wanted, unused, kept=is_own, bloated_before=before)
    return _Found(report, seen, {_REPORT: bounded_json(report), _SEEN: seen.model_dump_json()})


def _instances(run: Run) -> tuple[str, ...]:
    """All that serve or should, by their pods' names."""
    ordinals = {*range(run.spec.instances), *run.asked_for}
    return tuple(sorted({run.names.pod(ordinal) for ordinal in ordinals} | {pod.name for pod in run.pods}))


def _seen(run: Run) -> Seen:
    kept = run.services.cache.get(CONFIG_MAP, run.names.namespace, run.names.report)
    text = ((kept or {}).get("data") or {}).get(_SEEN)
    return Seen.parse(text if isinstance(text, str) else None)


async def _statistics(run: Run, instances: Sequence[str]) -> dict[str, Statistics | None]:
    """What each instance has counted; `None` of one that can't be asked."""
    pods = {pod.name: pod for pod in run.pods if pod.running and pod.address}
    answers = await asyncio.gather(*(_counted(run, pods.get(name)) for name in instances))
    return dict(zip(instances, answers, strict=True))


async def _counted(run: Run, pod: Pod | None) -> Statistics | None:
    if pod is None:
        return None
    try:
        instance = run.instance(pod, run.spec.database.name)
        async with run.services.sessions.use(instance, run.credentials) as connection:
            return await reading.read_statistics(connection)
    except (Unreachable, UntrustedContent, psycopg.Error):
        return None


def _outcome(report: Report, problem: ReconcileError | None = None) -> Outcome:
    part = api.Indexes(
        total=report.total,
        critical=f"{report.critical_present}/{report.critical}",
        expected=None if report.expected is None else f"{report.expected_present}/{report.expected}",
        missing=_names(report.missing),
        invalid=_names(report.invalid),
        duplicate=_names(report.duplicate),
        redundant=_names(report.redundant),
        unused=_names(report.unused or ()),
        bloated=_names(report.bloated),
        foreign_keys_without_index=_names(report.foreign_keys),
        collations=_names(report.collations),
        not_valid=_names(report.not_valid),
        not_judged=report.not_judged,
    )
    return Outcome(conditions={Condition.INDEXES_HEALTHY: verdict(report)}, status={"indexes": part}, problem=problem)


def _names(entries: Sequence[Entry]) -> list[str]:
    names = [entry.name for entry in entries[:_SHOWN]]
    left = len(entries) - len(names)
    return [*names, f"and {left} more"] if left else names


def verdict(report: Report) -> Verdict:
    """Whether the indexes are healthy, and what to do where they aren't."""
    bad = (
        (
            report.missing_critical,
            Reason.INDEXES_MISSING,
            "Critical indexes are missing or invalid: {}. The application's queries scan whole tables; create them"
            " again as the migrations do, with CREATE INDEX CONCURRENTLY.",
        ),
        (
            report.invalid,
            Reason.INDEXES_INVALID,
            "Invalid indexes: {}. They cost writes and serve no query; status.findings says what each needs.",
        ),
        (
            report.collations,
            Reason.COLLATION_CHANGED,
            "The version of collations has changed since indexes were built: {}. Queries may miss rows, and unique"
            " indexes may let duplicates in; rebuild the indexes, then refresh the version (status.findings).",
        ),
    )
    for entries, reason, words in bad:
        if entries:
            return Verdict("False", reason, words.format(", ".join(_names(entries))))
    message = f"All {report.critical} critical indexes of {report.total} exist and are valid."
    if report.not_judged:
        message += f" {report.not_judged} of them were not judged, and neither were foreign keys: there are too many."
    hints = (
        (report.missing, Reason.INDEXES_INCOMPLETE, "Made by a migration, and missing"),
        (report.duplicate, Reason.INDEXES_DUPLICATE, "Duplicates that could be dropped"),
        (report.redundant, Reason.INDEXES_REDUNDANT, "Redundant, so that they could be dropped"),
        (report.unused or (), Reason.INDEXES_UNUSED, "Unused on every instance"),
        (report.bloated, Reason.INDEXES_BLOATED, "Bloated"),
        (report.not_valid, Reason.CONSTRAINT_NOT_VALID, "Constraints that were never validated"),
        (report.foreign_keys, Reason.INDEXES_HEALTHY, "Foreign keys without an index"),
    )
    told = [(reason, f"{words}: {', '.join(_names(entries))}.") for entries, reason, words in hints if entries]
    if not told:
        return Verdict("True", Reason.INDEXES_HEALTHY, message)
    return Verdict("True", told[0][0], " ".join([message, *(words for _, words in told)]))


CONCERN = Concern("indexes", Needs.SCHEMA, act, observe, conditions=(Condition.INDEXES_HEALTHY,), calm=True)
