"""What ends a run early."""

from __future__ import annotations

from medianest_operator.results.migration import FailedMigration, Reason


class RunError(Exception):
    """The run ends here; carries everything that the result says about it."""

    def __init__(self, reason: Reason, message: str, failed: FailedMigration | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.failed = failed


ADVICE = "Fix the migration or the data, then change the source or set a new spec.migrations.retry."
"""What to do about a failure that trying again can't help."""

UNVERIFIED_ADVICE = (
    "Writers stay locked out where they were. Compare with the pre-migration backup; once the database is as it should"
    " be, run `medianest-dbctl resolve`."
)
"""What to do where a rollback could not be verified."""
