"""What the commands print for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from medianest_operator.health.indexes import IndexHealth
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


def index_health(health: IndexHealth) -> str:
    """The indexes' health, a line a fact."""
    lines = [
        f"total      {health.total} ({health.total_with_history} with _prisma_migrations)",
        f"critical   {health.critical_present}/{health.critical_expected}",
    ]
    lines += [f"missing    {name}" for name in health.missing]
    lines += [f"invalid    {name}" for name in health.invalid]
    lines += [f"duplicate  {item.name} on {item.table}, same as {item.duplicate_of}" for item in health.duplicates]
    lines += [
        f"no index   {item.table} ({', '.join(item.columns)}), foreign key {item.name}"
        for item in health.unindexed_foreign_keys
    ]
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
