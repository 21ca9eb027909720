"""What the commands print for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from medianest_operator.health.indexes.report import Entry, Report
from medianest_operator.migrations.lint.lint import Finding, Severity
from medianest_operator.migrations.plan import Plan
from medianest_operator.migrations.source import Migration


def plan_as_json(plan: Plan, findings: Sequence[Finding] = ()) -> str:
    """The plan, and what was found in the pending migrations, as one JSON object."""
    document = {
        "version": plan.version,
        "target": plan.target,
        "applied": plan.applied,
        "pending": plan.pending_names,
        "heldBack": plan.held_back,
        "edited": plan.edited,
        "missing": plan.missing,
        "outOfOrder": plan.out_of_order,
        "failed": plan.failed,
        "warnings": plan.warnings,
        "blocker": plan.blocker and {"reason": plan.blocker.reason, "message": plan.blocker.message},
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(document, indent=2)


def plan_as_table(plan: Plan, migrations: Sequence[Migration], findings: Sequence[Finding] = ()) -> str:
    """A line for each migration with its state, then what is odd, what was found, and what would happen."""
    names = sorted({migration.name for migration in migrations} | set(plan.applied) | set(plan.failed))
    width = max(map(len, names), default=0)
    lines = [f"{name:<{width}}  {_state(plan, name)}" for name in names]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    lines += [f"{finding.severity}: {finding}" for finding in findings]
    if plan.blocker is not None:
        lines.append(f"{plan.blocker.reason}: {plan.blocker.message}")
    elif plan.pending:
        lines.append(f"{len(plan.pending)} to apply{_held_up(findings)}.")
    else:
        lines.append("Nothing to apply.")
    return "\n".join(lines)


def index_report(report: Report) -> str:
    """The verdicts on the indexes: one line each, with the statement that fixes it below."""
    expected = "unknown" if report.expected is None else f"{report.expected_present}/{report.expected}"
    lines = [
        f"total      {report.total} ({report.total_with_history} with _prisma_migrations)",
        f"critical   {report.critical_present}/{report.critical}",
        f"expected   {expected}",
    ]
    kinds: tuple[tuple[str, Sequence[Entry]], ...] = (
        ("missing", report.missing),
        ("invalid", report.invalid),
        ("collation", report.collations),
        ("duplicate", report.duplicate),
        ("redundant", report.redundant),
        ("unused", report.unused or ()),
        ("bloated", report.bloated),
        ("no index", report.foreign_keys),
        ("not valid", report.not_valid),
    )
    for kind, entries in kinds:
        for entry in entries:
            on = f" on {entry.table}" if entry.table else ""
            lines.append(f"{kind:<10} {entry.name}{on}: {entry.evidence}")
            if entry.fix:
                lines.append(f"{'':<10} fix: {entry.fix}")
    if report.not_judged:
        lines.append(f"not judged {report.not_judged} more: there are too many, so foreign keys aren't judged either")
    if report.unused is None:
        lines.append("unused     not judged here: the operator asks every instance; see the ConfigMap <name>-report")
    return "\n".join(lines)


def _held_up(findings: Sequence[Finding]) -> str:
    severities = [finding.severity for finding in findings]
    if Severity.REFUSED in severities:
        return ", but not as long as a statement is refused"
    if Severity.DESTRUCTIVE in severities:
        return ", but only with spec.migrations.allowDestructive"
    return ""


def _state(plan: Plan, name: str) -> str:
    if name in plan.failed:
        return "failed"
    if name in plan.edited:
        return "applied, edited since"
    if name in plan.missing:
        return "applied, not in the source"
    if name in plan.applied:
        return "applied"
    if name in plan.held_back:
        return "held back by the target"
    return "pending, out of order" if name in plan.out_of_order else "pending"
