"""The list of findings for people and machines: the status, Events, metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition
from medianest_operator.health.findings import Known, Level, spread
from medianest_operator.observability import metrics
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.health import probes, tracking
from medianest_operator.timestamps import stamp

ANNOUNCED: Final = frozenset({*probes.SOURCES, "storage"})
"""Sources whose findings have Events of their own; those of the others are their conditions' Events."""


async def report(run: Run) -> Outcome:
    """Tell what the concerns before it have found out."""
    tracker = tracking.tracker(run)
    conditions: dict[Condition, Verdict | None] = {}
    if run.spec.hibernate and not run.pods:
        # Nothing runs that could be well or not.
        tracker.forget()
        metrics.forget_primary(*run.key)
        conditions = {Condition.HEALTHY: None, Condition.STORAGE_HEALTHY: None}
    known = tracker.of()
    measured = spread(known, metrics.FINDINGS)
    metrics.report_findings(*run.key, [(item.finding.reason, item.finding.object, _level(item)) for item in measured])
    begun, ended = tracker.changes()
    bad = [item for item in known if item.finding.level is not Level.HINT]
    return Outcome(
        conditions=conditions,
        status={"findings": [_shown(item) for item in spread(known, tracking.SHOWN)]},
        events=tuple(_events(begun, ended)),
        told=lambda: tracker.told(begun, ended),
        summary=f"{len(bad)} warning{'' if len(bad) == 1 else 's'} (status.findings)" if bad else None,
    )


def _level(item: Known) -> str:
    return item.finding.level.lower()


def _shown(item: Known) -> api.Finding:
    finding = item.finding
    return api.Finding(
        reason=finding.reason,
        level=finding.level,
        object=finding.object,
        message=finding.message,
        fix=finding.fix,
        bytes=finding.size,
        since=stamp(item.since),
        source=item.source,
    )


def _events(begun: Sequence[Known], ended: Sequence[Known]) -> Iterable[Announcement]:
    for item in begun:
        if item.source in ANNOUNCED and item.finding.level is not Level.HINT:
            fix = f" Fix: {item.finding.fix}" if item.finding.fix else ""
            yield Announcement(item.finding.reason, f"{item.finding.message}{fix}", "Warning")
    for item in ended:
        if item.source in ANNOUNCED and item.finding.level is not Level.HINT:
            yield Announcement("FindingEnded", f"{item.finding.reason} of {item.finding.object} has ended.")


CONCERN = Concern("findings", Needs.NOTHING, report, report)
