"""The conditions of one run, from what its concerns found: what was observed, what was not, and Ready. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.errors import Permanent, ReconcileError
from medianest_operator.reconcile.concern import Concern, Outcome, Verdict

Conditions = Mapping[Condition, Verdict]

_STALE: Final = " Not observed since "


@dataclass(frozen=True)
class Report:
    """One line of the order of a run, and how it ended.

    Attributes:
        outcome: `None` where the concern was not asked, or raised.
        error: what it raised, or the problem that it met.
        unobserved: why its conditions could not be observed, in words; `None` where they were, or need not be.
    """

    concern: Concern
    outcome: Outcome | None = None
    error: ReconcileError | None = None
    unobserved: str | None = None


def condition_of(previous: Mapping[str, Any], kind: Condition) -> Mapping[str, Any] | None:
    """A condition as the status has it so far."""
    return next((item for item in previous.get("conditions", []) if item.get("type") == kind), None)


def known_verdict(previous: Mapping[str, Any], kind: Condition) -> Verdict | None:
    """A condition as the status has it so far; `None` too where a newer operator gave it a reason unknown here."""
    known = condition_of(previous, kind)
    if known is None:
        return None
    try:
        return Verdict(known["status"], Reason(known["reason"]), known["message"])
    except ValueError:
        return None


def conditions_of(
    reports: Sequence[Report], previous: Mapping[str, Any], generation: int, now: str, *, paused: bool
) -> Conditions:
    """Every condition that there is to report, in the order of the enum.

    Args:
        previous: the status so far.
        now: this moment, as Kubernetes writes it.
        paused: nothing was acted on, because the spec says so.
    """
    found: dict[Condition, Verdict] = {}
    for report in reports:
        for kind, verdict in _of_concern(report, previous, now).items():
            if verdict is None:
                found.pop(kind, None)
            else:
                found[kind] = verdict
    ready = _paused() if paused else _ready(reports, previous, generation)
    found[Condition.READY] = ready
    stalled = None if paused else _worst(_stalled(reports))
    unseen = _worst(_unobserved(reports))
    if stalled:
        found[Condition.STALLED] = Verdict("True", stalled.reason, stalled.message)
    elif unseen:
        found[Condition.RECONCILING] = Verdict("True", unseen.reason, unseen.message)
    elif ready.status != "True" and ready.reason not in {Reason.HIBERNATED, Reason.PAUSED}:
        found[Condition.RECONCILING] = Verdict("True", ready.reason, ready.message)
    return {kind: found[kind] for kind in Condition if kind in found}


def conditions_of_attempt(succeeded: bool | None, reason: Reason, message: str) -> dict[Condition, Verdict]:
    """Those of an object that is done once: Ready, while it isn't why, as kstatus reads them, and whether it is over.

    Args:
        succeeded: how it ended; `None`: it hasn't yet.
    """
    holds, fails = Verdict("True", reason, message), Verdict("False", reason, message)
    if succeeded is None:
        return {Condition.READY: fails, Condition.RECONCILING: holds}
    if succeeded:
        return {Condition.READY: holds, Condition.FINISHED: holds}
    return {Condition.READY: fails, Condition.STALLED: holds, Condition.FINISHED: holds}


def _of_concern(report: Report, previous: Mapping[str, Any], now: str) -> Mapping[Condition, Verdict | None]:
    """What a concern observed; where it didn't, what was known before, and since when that is old."""
    observed = dict(report.outcome.conditions) if report.outcome else {}
    for kind in {*report.concern.initial, *report.concern.conditions}:
        if kind in observed:
            continue
        known = known_verdict(previous, kind) or report.concern.initial.get(kind)
        if known is not None:
            observed[kind] = _aged(known, report.unobserved, now) if report.unobserved else known
    return observed


def _aged(known: Verdict, why: str, now: str) -> Verdict:
    """Its message says since when it is old. What it says once stays, so that the status isn't written for it again."""
    if known.reason is Reason.UNKNOWN or _STALE in known.message:
        return known
    return Verdict(known.status, known.reason, f"{known.message}{_STALE}{now}: {why}.")


def _paused() -> Verdict:
    message = "Reconciliation is paused (spec.paused); the operator makes no changes."
    return Verdict("Unknown", Reason.PAUSED, message)


def _ready(reports: Sequence[Report], previous: Mapping[str, Any], generation: int) -> Verdict:
    """The worst of what keeps the database from being Ready, or that it is."""
    serving = any(
        verdict is not None and kind is Condition.AVAILABLE and verdict.status == "True"
        for report in reports
        if report.outcome
        for kind, verdict in report.outcome.conditions.items()
    )
    obstacles = [report.outcome.obstacle for report in reports if report.outcome and report.outcome.obstacle]
    errors = [report.error for report in reports if report.error and not _is_unobserved(report.error)]
    found = [*obstacles, *(_of_error(error, serving) for error in errors)]
    causes = [verdict for verdict in found if verdict.reason.is_cause and not serving]
    worst = _worst(causes or found)
    if worst is not None:
        return worst
    unseen = _worst(_unobserved(reports))
    known = known_verdict(previous, Condition.READY)
    if unseen is not None:
        # What could not be observed is not bad: Ready keeps what it said of this generation.
        if known is not None and previous.get("observedGeneration") == generation:
            return known
        return Verdict("False", unseen.reason, unseen.message)
    summaries = [report.outcome.summary for report in reports if report.outcome and report.outcome.summary]
    if not summaries:
        return Verdict("False", Reason.CREATING, "The database has not been observed yet.")
    return Verdict("True", Reason.READY, f"{', '.join(summaries)}.")


def _of_error(error: ReconcileError, serving: bool) -> Verdict:
    tail = " The database serves as before." if serving else ""
    return Verdict("False", error.reason, f"{error.message.rstrip('.')}.{tail}")


def _stalled(reports: Sequence[Report]) -> Iterable[Verdict]:
    for report in reports:
        if isinstance(report.error, Permanent):
            yield _of_error(report.error, serving=False)
        if report.outcome and report.outcome.stalled:
            yield report.outcome.stalled


def _unobserved(reports: Sequence[Report]) -> Iterable[Verdict]:
    for report in reports:
        if report.error and _is_unobserved(report.error):
            yield _of_error(report.error, serving=False)


def _is_unobserved(error: ReconcileError) -> bool:
    """Whether an error says only that something could not be observed or asked for."""
    return error.reason in {Reason.API_ERROR, Reason.NOT_OBSERVED, Reason.PATRONI_UNREACHABLE}


def _worst(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The one of the highest severity; among equals the last in the order of the run, which is the most specific."""
    ranked = [(verdict.reason.severity, place, verdict) for place, verdict in enumerate(verdicts)]
    return max(ranked, key=lambda item: item[:2])[2] if ranked else None
