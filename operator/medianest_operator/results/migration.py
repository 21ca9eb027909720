"""What a migration run can end in: outcomes, reasons, and the result that the Job hands to the operator."""

from __future__ import annotations

import enum
from typing import Any

from pydantic import BaseModel, ConfigDict

from medianest_operator.results.text import RESULT_LIMIT, shorten


class Outcome(enum.StrEnum):
    """How a run ended, and with it the exit code: 0, 1 and 2."""

    APPLIED = "Applied"
    FAILED = "Failed"
    TRANSIENT = "Transient"

    @property
    def exit_code(self) -> int:
        return {Outcome.APPLIED: 0, Outcome.FAILED: 1, Outcome.TRANSIENT: 2}[self]


class Reason(enum.StrEnum):
    """Why a run ended as it did. Each belongs to one outcome."""

    APPLIED = "MigrationsApplied"
    UP_TO_DATE = "UpToDate"

    INVALID_SOURCE = "InvalidSource"
    UNKNOWN_TARGET = "UnknownTarget"
    BASELINE_REQUIRED = "BaselineRequired"
    UNRESOLVED_FAILURE = "UnresolvedFailure"
    PERMISSION_DENIED = "PermissionDenied"
    MIGRATION_FAILED = "MigrationFailed"
    PARTIALLY_APPLIED = "PartiallyApplied"
    STATEMENT_TIMEOUT = "StatementTimeout"
    TRANSACTION_LEFT_OPEN = "TransactionLeftOpen"
    STATEMENT_REFUSED = "StatementRefused"
    DESTRUCTIVE = "DestructiveStatement"
    INVALID_INDEX = "InvalidIndex"
    REHEARSAL_DIFFERS = "RehearsalDiffers"
    REHEARSAL_IMPOSSIBLE = "RehearsalImpossible"
    ROLLBACK_IMPOSSIBLE = "RollbackImpossible"
    ROLLBACK_UNVERIFIED = "RollbackUnverified"
    INTERNAL_ERROR = "InternalError"

    CONNECT_FAILED = "ConnectFailed"
    NOT_PRIMARY = "NotPrimary"
    LOCK_NOT_GRANTED = "LockNotGranted"
    LOCK_TIMEOUT = "LockTimeout"
    CONNECTION_LOST = "ConnectionLost"
    CONFLICT = "Conflict"
    OUT_OF_RESOURCES = "OutOfResources"
    INTERRUPTED = "Interrupted"
    BACKUP_FAILED = "BackupFailed"
    LOCKOUT_FAILED = "LockoutFailed"
    ROLLBACK_UNFINISHED = "RollbackUnfinished"

    @property
    def outcome(self) -> Outcome:
        if self in _APPLIED:
            return Outcome.APPLIED
        return Outcome.TRANSIENT if self in _TRANSIENT else Outcome.FAILED


_APPLIED = frozenset({Reason.APPLIED, Reason.UP_TO_DATE})
_TRANSIENT = frozenset(
    {
        Reason.CONNECT_FAILED,
        Reason.NOT_PRIMARY,
        Reason.LOCK_NOT_GRANTED,
        Reason.LOCK_TIMEOUT,
        Reason.CONNECTION_LOST,
        Reason.CONFLICT,
        Reason.OUT_OF_RESOURCES,
        Reason.INTERRUPTED,
        Reason.BACKUP_FAILED,
        Reason.LOCKOUT_FAILED,
        Reason.ROLLBACK_UNFINISHED,
    }
)


# SQLSTATE classes and codes: PostgreSQL manual, appendix A.
_QUERY_CANCELED = "57014"
_BY_CODE = {
    "55P03": Reason.LOCK_TIMEOUT,
    "25006": Reason.NOT_PRIMARY,
    "40001": Reason.CONFLICT,
    "40P01": Reason.CONFLICT,
    "57P01": Reason.CONNECTION_LOST,
    "57P02": Reason.CONNECTION_LOST,
    "57P03": Reason.CONNECTION_LOST,
}
_BY_CLASS = {"08": Reason.CONNECTION_LOST, "53": Reason.OUT_OF_RESOURCES}


def reason_for(sqlstate: str | None, message: str) -> Reason:
    """The run's reason for a server error: transient where trying again unchanged can help."""
    code = sqlstate or ""
    if code == _QUERY_CANCELED and "statement timeout" in message:
        return Reason.STATEMENT_TIMEOUT
    return _BY_CODE.get(code) or _BY_CLASS.get(code[:2]) or Reason.MIGRATION_FAILED


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AppliedMigration(_Frozen):
    """One migration that this run applied."""

    name: str
    milliseconds: int


class FailedMigration(_Frozen):
    """The migration that ended the run, and where.

    Attributes:
        migration: its name.
        statement: which of the file's statements failed, counted from 1; `None` if it was none of them (a deferred
            constraint at the commit, a lost connection between two statements).
        line: the line on which that statement begins, or the error's own where the server gave its position.
        sqlstate: PostgreSQL's five-character code, `None` if the failure isn't the server's.
        message: the server's message, in its own words.
        detail: the server's detail, if it gave one.
        hint: the server's hint, if it gave one.
    """

    migration: str
    statement: int | None = None
    line: int | None = None
    sqlstate: str | None = None
    message: str = ""
    detail: str | None = None
    hint: str | None = None


class StepTime(_Frozen):
    """How long a step of the run took."""

    name: str
    milliseconds: int


class Rehearsal(_Frozen):
    """What was seen on the copy.

    Attributes:
        data: whether the copy held the data, or the definitions alone.
        fingerprint: of the catalog that the copy reached.
        locks: the strongest locks that were taken there, each with its table and for how long at the most.
        note: why it was not more than that, or why there was none.
    """

    data: bool
    fingerprint: str | None = None
    locks: tuple[str, ...] = ()
    note: str | None = None


MOST_STATEMENTS = 5
"""So many statements of a rollback are told; the Job's log has all."""


class Rollback(_Frozen):
    """How a failed run was rolled back.

    Attributes:
        strategy: `Transaction`, `Down`, `Inverse` or `Restore`.
        verified: catalog and rows were compared with those from before, and are equal.
        verification: the comparison in words.
        milliseconds: from the failure to the verification.
        statements: what `Inverse` executed, the first `MOST_STATEMENTS` and a word on how many more.
    """

    strategy: str
    verified: bool
    verification: str
    milliseconds: int
    statements: tuple[str, ...] = ()

    @property
    def by(self) -> str:
        """How, in words that follow `rolled back`; empty where nothing but the transaction had to be."""
        return "" if self.strategy == "Transaction" else f" by {self.strategy.lower()}"

    @property
    def executed(self) -> str:
        """What the inverse executed, as a sentence that follows another one; empty where there is nothing to say."""
        return f" Executed to go back: {'; '.join(self.statements)}." if self.statements else ""


class StoredBackup(_Frozen):
    """The backup that a run took.

    Attributes:
        repositories: those that have it.
        bytes: the size of its dump as it is stored.
        restored: the rehearsal restored it with its data, and found it equal.
    """

    repositories: tuple[str, ...]
    bytes: int
    restored: bool = False


class MigrationResult(_Frozen):
    """How a run ended; its JSON is the Job's termination message.

    Attributes:
        outcome: applied, failed (nothing changes until the source does), or transient (worth another try).
        reason: one of `Reason`.
        message: one or two sentences for people: what happened and what to do.
        version: the last applied migration's name after the run; `None` if there is none, or if it isn't known.
        applied: what this run applied, in order.
        pending: what is still to be applied, up to the target.
        warnings: what doesn't stop a run and still wants a look: edited, missing or out-of-order migrations.
        failed: where a migration failed.
        rollback: how what had been done was rolled back; absent where nothing had to be.
        rehearsal: what the run on a copy showed.
        backup: the pre-migration backup's path in its repositories.
        stored_backup: more of it; absent where an earlier pod of the run took it.
        steps: how long each step took.
        truncated: texts or lists were shortened to fit a termination message.
    """

    outcome: Outcome
    reason: Reason
    message: str
    version: str | None = None
    applied: tuple[AppliedMigration, ...] = ()
    pending: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    failed: FailedMigration | None = None
    rollback: Rollback | None = None
    rehearsal: Rehearsal | None = None
    backup: str | None = None
    stored_backup: StoredBackup | None = None
    steps: tuple[StepTime, ...] = ()
    truncated: bool = False

    @classmethod
    def of(cls, reason: Reason, message: str, **values: Any) -> MigrationResult:
        """A result whose outcome follows from its reason."""
        return cls(outcome=reason.outcome, reason=reason, message=message, **values)

    def to_json(self, limit: int = RESULT_LIMIT) -> str:
        """The result as JSON of at most `limit` bytes in UTF-8 (at least 1024 are needed), shortened if it must be.

        Long texts go first, then the ends of long lists; outcome, reason, version, statement and line always stay.
        """
        text = self.model_dump_json(exclude_none=True)
        for longest in (1200, 600, 300, 150, 60):
            if len(text.encode("utf-8")) <= limit:
                return text
            text = self._shortened(longest).model_dump_json(exclude_none=True)
        if len(text.encode("utf-8")) <= limit:
            return text
        left_out = {
            "applied": (), "pending": (), "warnings": (), "rehearsal": None, "stored_backup": None, "steps": ()
        }  # fmt: skip
        bare = self._shortened(60).model_copy(update=left_out)
        return bare.model_dump_json(exclude_none=True)

    def _shortened(self, longest: int) -> MigrationResult:
        items = max(1, longest // 50)
        failed = self.failed and self.failed.model_copy(
            update={
                "message": shorten(self.failed.message, longest),
                "detail": self.failed.detail and shorten(self.failed.detail, longest // 2),
                "hint": self.failed.hint and shorten(self.failed.hint, longest // 2),
            }
        )
        rollback = self.rollback and self.rollback.model_copy(
            update={
                "verification": shorten(self.rollback.verification, longest),
                "statements": tuple(shorten(statement, longest // 4) for statement in self.rollback.statements[:items]),
            }
        )
        rehearsal = self.rehearsal and self.rehearsal.model_copy(update={"locks": self.rehearsal.locks[:items]})
        return self.model_copy(
            update={
                "message": shorten(self.message, longest),
                "failed": failed,
                "rollback": rollback,
                "rehearsal": rehearsal,
                # The last applied and the next pending are what people look for.
                "applied": self.applied[-items:],
                "pending": self.pending[:items],
                "warnings": tuple(shorten(warning, longest // 2) for warning in self.warnings[:items]),
                "truncated": True,
            }
        )
