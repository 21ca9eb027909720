"""Whether lint's findings let a run begin."""

from __future__ import annotations

from collections.abc import Sequence

from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.errors import RunError
from medianest_operator.migrations.lint.lint import Finding, Severity
from medianest_operator.results.migration import FailedMigration, Reason


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
