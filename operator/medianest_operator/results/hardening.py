"""What a hardening run can end in, and the result that the Job hands to the operator."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from medianest_operator.api.hardening import Option
from medianest_operator.results.migration import Outcome
from medianest_operator.results.migration import Reason as MigrationReason
from medianest_operator.results.text import RESULT_LIMIT, shorten


class Reason(enum.StrEnum):
    """Why a run, or one option of it, ended as it did. Each belongs to one outcome."""

    APPLIED = "HardeningApplied"
    UP_TO_DATE = "UpToDate"

    INVALID_OPTIONS = "InvalidOptions"
    ROWS_BREAK_CONSTRAINTS = "RowsBreakConstraints"
    CONFLICTING_OBJECTS = "ConflictingObjects"
    DEPENDENT_OBJECTS = "DependentObjects"
    PERMISSION_DENIED = "PermissionDenied"
    STATEMENT_FAILED = "StatementFailed"
    NOT_REACHED = "NotReached"

    CONNECT_FAILED = "ConnectFailed"
    NOT_PRIMARY = "NotPrimary"
    LOCK_NOT_GRANTED = "LockNotGranted"
    LOCK_TIMEOUT = "LockTimeout"
    CONNECTION_LOST = "ConnectionLost"
    CONFLICT = "Conflict"
    OUT_OF_RESOURCES = "OutOfResources"
    INTERRUPTED = "Interrupted"

    @property
    def outcome(self) -> Outcome:
        """That of the migrations' reason of the same word; a word that they don't know is a failure."""
        if self is Reason.APPLIED:
            return Outcome.APPLIED
        return MigrationReason(self.value).outcome if self in _SAME_WORD else Outcome.FAILED


_SAME_WORD = frozenset(Reason) & frozenset(reason.value for reason in MigrationReason)


class OptionState(enum.StrEnum):
    """How one option stands, as the status tells it."""

    OFF = "Off"
    APPLYING = "Applying"
    REMOVING = "Removing"
    APPLIED = "Applied"
    WAITING = "Waiting"
    FAILED = "Failed"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class OptionResult(_Frozen):
    """How one option ended.

    Attributes:
        state: `Applied`, `Off`, `Waiting` or `Failed`; `Applying` or `Removing` where it is worth another try.
        reason: why it isn't as wanted.
        message: one or two sentences for people.
        removed: its objects were there before this run, and are gone.
    """

    state: OptionState
    reason: Reason | None = None
    message: str | None = None
    removed: bool = False


class HardeningResult(_Frozen):
    """How a run ended; its JSON is the Job's termination message.

    Attributes:
        outcome: applied, failed (nothing changes until the options or the data do), or transient.
        reason: one of `Reason`.
        message: what happened and what to do.
        options: each option's own end, by its name in the spec.
        truncated: texts were shortened to fit a termination message.
    """

    outcome: Outcome
    reason: Reason
    message: str
    options: Mapping[Option, OptionResult] = {}
    truncated: bool = False

    @classmethod
    def of(cls, reason: Reason, message: str, **values: Any) -> HardeningResult:
        """A result whose outcome follows from its reason."""
        return cls(outcome=reason.outcome, reason=reason, message=message, **values)

    def to_json(self, limit: int = RESULT_LIMIT) -> str:
        """The result as JSON of at most `limit` bytes in UTF-8 (at least 2048 are needed), shortened if it must be."""
        text = self.model_dump_json(exclude_none=True)
        for longest in (1000, 500, 250, 100, 50):
            if len(text.encode("utf-8")) <= limit:
                break
            text = self._shortened(longest).model_dump_json(exclude_none=True)
        return text

    def _shortened(self, longest: int) -> HardeningResult:
        options = {
            option: result.model_copy(update={"message": result.message and shorten(result.message, longest)})
            for option, result in self.options.items()
        }
        return self.model_copy(
            update={"message": shorten(self.message, longest), "options": options, "truncated": True}
        )
