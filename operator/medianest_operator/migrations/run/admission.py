"""Whether a run may begin: what lint found, and whether its backup could be restored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import Connection

from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.errors import RunError
from medianest_operator.migrations.lint.lint import Finding, Severity
from medianest_operator.migrations.rollback.clearing import dependents
from medianest_operator.migrations.run.parts import Part, RevertPlan, Strategy
from medianest_operator.migrations.script import Kind
from medianest_operator.migrations.traces import Trace
from medianest_operator.results.migration import FailedMigration, Reason
from medianest_operator.results.text import first_three


def refusal(findings: Sequence[Finding], options: RunOptions) -> RunError | None:
    """What ends the run before it begins; `None` where nothing does.

    A statement that is refused counts before one that loses data: allowing the latter would not help.
    """
    refused = [finding for finding in findings if finding.severity is Severity.REFUSED]
    if not refused and not options.allow_destructive:
        refused = [finding for finding in findings if finding.severity is Severity.DESTRUCTIVE]
    if not refused:
        return None
    first = refused[0]
    destructive = first.severity is Severity.DESTRUCTIVE
    advice = " Set spec.migrations.allowDestructive to true if that is meant." if destructive else ""
    more = f" ({len(refused) - 1} more like it in the log.)" if len(refused) > 1 else ""
    return RunError(
        Reason.DESTRUCTIVE if destructive else Reason.STATEMENT_REFUSED,
        f"{first}{advice}{more} Nothing was changed.",
        FailedMigration(
            migration=first.migration,
            # 0 stands for the file as a whole.
            statement=first.statement or None,
            line=first.line or None,
            message=first.message,
        ),
    )


def check_restorable(connection: Connection[Any], parts: Sequence[Part], revert: RevertPlan) -> None:
    """Where no copy says whether the backup leads back, refuse what is known to be in its way.

    Raises:
        RunError: a restore would drop what others built on the tables.
    """
    if revert.strategy is not Strategy.RESTORE:
        return
    statements = [statement for part in parts for statement in part.statements]
    inert = (Kind.BEGINS, Kind.COMMITS)
    # Rows come back without the tables being dropped.
    on_rows = all(s.only_rows or s.kind in inert or s.trace is Trace.NOTHING for s in statements)
    built = dependents(connection, on_rows=on_rows)
    if built:
        raise RunError(
            Reason.ROLLBACK_IMPOSSIBLE,
            f"This run could not be rolled back: {revert.why}, and restoring the backup would drop what others built on"
            f" the tables: {first_three(built, ', ')}. Nothing was changed. Let the run be rehearsed"
            " (spec.migrations.rehearse), which finds out whether another rollback leads back, or set"
            " spec.migrations.onFailure to Halt.",
        )
