"""How a reconcile, or a run, ends when it can't finish: each kind says what happens next."""

from medianest_operator.api.conditions import Reason


class ReconcileError(Exception):
    """A reason of the API, and a sentence that says what is wrong and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    @property
    def is_unexpected(self) -> bool:
        """Whether it stands for an error that nobody thought of."""
        return self.reason is Reason.INTERNAL_ERROR


class Transient(ReconcileError):
    """Worth another try, with backoff: it passes without a person."""


class Permanent(ReconcileError):
    """Only a change of the spec (or of what it names) helps: the object is Stalled until then."""


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop. psycopg cancels a running query on KeyboardInterrupt, hence the base."""
