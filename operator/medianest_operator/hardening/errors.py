"""Why the server refused a statement of a hardening run."""

from __future__ import annotations

from medianest_operator.postgres.execute import ServerError
from medianest_operator.results.hardening import Reason
from medianest_operator.results.migration import reason_for

# SQLSTATE: PostgreSQL manual, appendix A.
_BY_CODE = {
    "2BP01": Reason.DEPENDENT_OBJECTS,
    "42501": Reason.PERMISSION_DENIED,
    "23514": Reason.ROWS_BREAK_CONSTRAINTS,
}


def reason_of(error: ServerError) -> Reason:
    """The reason for a server error: transient where trying again unchanged can help."""
    if error.sqlstate in _BY_CODE:
        return _BY_CODE[error.sqlstate]
    word = reason_for(error.sqlstate, error.message).value
    return Reason(word) if word in {reason.value for reason in Reason} else Reason.STATEMENT_FAILED
