"""A migration's failure in words: which statement, on which line, why, and what it means for the run."""

from __future__ import annotations

from medianest_operator.migrations.execute import QUERY_CANCELED, ScriptOutcome, ServerError
from medianest_operator.migrations.reasons import FailedMigration, Reason
from medianest_operator.migrations.script import Script, line_of, ordinal_at
from medianest_operator.migrations.source import Migration

# SQLSTATE classes and codes: PostgreSQL manual, appendix A.
ACTIVE_TRANSACTION = "25001"
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


def reason_for(error: ServerError) -> Reason:
    """The run's reason for a server error: transient where trying again unchanged can help."""
    code = error.sqlstate or ""
    if code == QUERY_CANCELED and "statement timeout" in error.message:
        return Reason.STATEMENT_TIMEOUT
    return _BY_CODE.get(code) or _BY_CLASS.get(code[:2]) or Reason.MIGRATION_FAILED


def describe_failure(
    migration: Migration, script: Script, outcome: ScriptOutcome, error: ServerError | None = None
) -> tuple[FailedMigration, str]:
    """The failure for the result's `failed`, and in one or two sentences."""
    error = error or outcome.error
    assert error is not None
    ordinal, line = _locate(migration.sql, script, outcome, error)
    failed = FailedMigration(
        migration=migration.name,
        statement=ordinal,
        line=line,
        sqlstate=error.sqlstate,
        message=error.message,
        detail=error.detail,
        hint=error.hint,
    )
    place = migration.name
    if ordinal is not None:
        place = f"Statement {ordinal} (line {line}) of {migration.name}" if line else f"Statement {ordinal} of {place}"
    elif outcome.completed == len(script.statements) and outcome.error is not None:
        place = f"Commit of {migration.name}"
    text = f"{place}: {error.message}"
    if error.detail:
        text += f": {error.detail}"
    text = text if text.endswith((".", "!", "?")) else text + "."
    if error.hint:
        text += f" Hint: {error.hint}"
        text = text if text.endswith((".", "!", "?")) else text + "."
    alone = script.standalone
    if error.sqlstate == ACTIVE_TRANSACTION and alone is not None and len(script.statements) > 1:
        text += (
            " The server runs a file of several statements as one transaction, so this statement needs a migration"
            " of its own with nothing else in it."
        )
    return failed, text


def prisma_logs(migration: Migration, error: ServerError) -> str:
    """What the history's `logs` says of a failure, with the labels that Prisma uses."""
    return (
        "A migration failed to apply. New migrations cannot be applied before the error is recovered from.\n\n"
        f"Migration name: {migration.name}\n\n"
        f"Database error code: {error.sqlstate or 'none'}\n\n"
        f"Database error:\n{error.as_text()}\n"
    )


def _locate(sql: str, script: Script, outcome: ScriptOutcome, error: ServerError) -> tuple[int | None, int | None]:
    """The failing statement's number, and the line of the error or else of the statement."""
    if outcome.error is None:
        return None, None
    line = line_of(sql, error.position) if error.position is not None else None
    if not script.parsed:
        if error.position is None:
            return outcome.completed + 1, None
        return (ordinal_at(sql, error.position) if outcome.completed == 0 else outcome.completed + 1), line
    if outcome.completed >= len(script.statements):
        return None, None
    statement = script.statements[outcome.completed]
    return statement.ordinal, line or statement.line
