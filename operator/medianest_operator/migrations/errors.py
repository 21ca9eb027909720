"""What ends a run early."""

from __future__ import annotations

from medianest_operator.results.migration import FailedMigration, Outcome, Reason


class RunError(Exception):
    """The run ends here; carries everything that the result says about it."""

    def __init__(self, reason: Reason, message: str, failed: FailedMigration | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.failed = failed


def touches_records(names: str, what: str) -> RunError:
    """What a run ends with whose SQL has reached what the run lives by."""
    return RunError(Reason.STATEMENT_REFUSED, f"{names}: SQL that it puts together at run time {what}. Take that out.")


HISTORY_DROPPED = "dropped _prisma_migrations, which says what is applied"
ADVICE = "Fix the migration or the data, then change the source or set a new spec.migrations.retry."
"""What to do about a failure that trying again can't help."""
TIMEOUT_ADVICE = (
    "Give it more time (spec.migrations.statementTimeout), or end what it waited for and set a new"
    " spec.migrations.retry."
)
"""What to do where a statement took too long."""

UNVERIFIED_ADVICE = (
    "No migration is applied until that is over: every later run goes back once more and compares again. Compare with"
    " the pre-migration backup; once the database is as it should be, run `medianest-dbctl resolve`."
)
"""What to do where a rollback could not be verified."""


def advice(reason: Reason) -> str:
    """What to do about a failure."""
    if reason.outcome is not Outcome.FAILED:
        return "Trying again."
    return TIMEOUT_ADVICE if reason is Reason.STATEMENT_TIMEOUT else ADVICE


def access(locked_out: bool) -> str:
    """Whether the application can reach its database: what whoever is woken by a message has to know first."""
    return "The application is locked out of its database." if locked_out else "The application is not locked out."
