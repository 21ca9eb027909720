"""The state of the application's indexes: what is missing, invalid, superfluous, unused, and what to do about each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import psycopg

from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.errors import ReconcileError
from medianest_operator.hardening.naming import is_own
from medianest_operator.health import probe
from medianest_operator.health.indexes import catalog, usage
from medianest_operator.health.indexes.catalog import Statistics
from medianest_operator.health.indexes.findings import findings
from medianest_operator.health.indexes.report import Entry, Report, bounded_json, judge
from medianest_operator.health.indexes.usage import Seen
from medianest_operator.kubernetes.kinds import CONFIG_MAP
from medianest_operator.migrations.history import History
from medianest_operator.migrations.indexes import critical_indexes, is_bundled, made_indexes
from medianest_operator.migrations.journal import read_version
from medianest_operator.observability import metrics
from medianest_operator.postgres.sessions import Connection, Unreachable
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


@dataclass(frozen=True)
class _Found:
    report: Report
    seen: Seen


async def act(run: Run) -> Outcome:
    """Judge the indexes, and write the whole report where it differs."""
    found = await _found(run)
    if found is None:
        return Outcome()
    data = {_REPORT: bounded_json(found.report), _SEEN: found.seen.model_dump_json()}
    problem = None
    try:
        await run.services.applier.apply(CONFIG_MAP, report_manifest(run.names, run.owner, data))
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
    async with application_database(run, primary) as connection:
        found = await _read(run, connection, schema.history, instances)
    run.services.memory.keep(run.key, "indexes", token, found)
    tracking.observed(run, _SOURCE, findings(found.report), settled=True)
    metrics.CRITICAL_INDEXES_MISSING.labels(*run.key).set(len(found.report.missing_critical))
    return found


async def _read(run: Run, connection: Connection, history: History, instances: Sequence[str]) -> _Found:
    metrics.DATABASE_BYTES.labels(*run.key).set(await probe.database_size(connection))
    recorded = None
    if history.version is not None and not is_bundled(history):
        recorded = await read_version(connection, history.version)
    live = await catalog.read_async(connection)
    today = datetime.now(UTC).date()
    seen = _seen(run).after(live, instances, today)
    counted = await _statistics(run, instances)
    asked = usage.counts_for_all(counted.values())
    unused = usage.unused(live, counted, seen, today) if asked else None
    report = judge(live, critical_indexes(), made_indexes(history, recorded), unused, kept=is_own)
    return _Found(report, seen)


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
            return await catalog.read_statistics(connection)
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
