"""The verdicts of a report as findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from medianest_operator.api.conditions import Reason
from medianest_operator.health.findings import Finding
from medianest_operator.health.indexes.report import Entry, Report
from medianest_operator.health.indexes.words import capitalized

_MOST: Final = 100
"""Of a kind: whoever may make indexes decides how many there are."""


def findings(report: Report) -> tuple[Finding, ...]:
    """One for each verdict, what is worst first."""
    critical = {entry.name for entry in report.missing_critical}
    kinds: tuple[tuple[Reason, str, Sequence[Entry]], ...] = (
        (Reason.INDEXES_MISSING, "index", report.missing_critical),
        (Reason.INDEXES_INVALID, "index", report.invalid),
        (Reason.COLLATION_CHANGED, "collation", report.collations),
        (Reason.INDEXES_INCOMPLETE, "index", [entry for entry in report.missing if entry.name not in critical]),
        (Reason.INDEXES_DUPLICATE, "index", report.duplicate),
        (Reason.INDEXES_REDUNDANT, "index", report.redundant),
        (Reason.INDEXES_UNUSED, "index", report.unused or ()),
        (Reason.INDEXES_BLOATED, "index", report.bloated),
        (Reason.FOREIGN_KEY_WITHOUT_INDEX, "foreign key", report.foreign_keys),
        (Reason.CONSTRAINT_NOT_VALID, "constraint", report.not_valid),
    )
    return tuple(_finding(reason, kind, entry) for reason, kind, entries in kinds for entry in entries[:_MOST])


_WORDS: Final = {
    Reason.INDEXES_MISSING: "is critical to the application's queries, and is missing",
    Reason.INDEXES_INCOMPLETE: "is missing, although a migration made it",
    Reason.INDEXES_INVALID: "is invalid: it serves no query",
    Reason.INDEXES_DUPLICATE: "repeats another one",
    Reason.INDEXES_REDUNDANT: "is redundant",
    Reason.INDEXES_UNUSED: "is unused",
    Reason.INDEXES_BLOATED: "is bloated",
    Reason.FOREIGN_KEY_WITHOUT_INDEX: "has no index that supports it",
    Reason.COLLATION_CHANGED: "has another version",
    Reason.CONSTRAINT_NOT_VALID: "is not validated",
}


def _finding(reason: Reason, kind: str, entry: Entry) -> Finding:
    on = f" on {entry.table}" if entry.table else ""
    name = f"{kind} {entry.name}{on}"
    return Finding(reason, name, f"{capitalized(name)} {_WORDS[reason]}. {entry.evidence}", entry.fix, entry.bytes)
