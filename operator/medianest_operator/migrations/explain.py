"""A migration's failure in words: which statement, on which line, why, and what it means for the run."""

from __future__ import annotations

from medianest_operator.migrations.script import Script, line_of, ordinal_at
from medianest_operator.migrations.source import Migration
from medianest_operator.postgres.execute import ScriptOutcome, ServerError
from medianest_operator.results.migration import FailedMigration

# SQLSTATE classes and codes: PostgreSQL manual, appendix A.
ACTIVE_TRANSACTION = "25001"


def describe_failure(
    migration: Migration, script: Script, outcome: ScriptOutcome, error: ServerError
) -> tuple[FailedMigration, str]:
    """The failure for the result's `failed`, and in one or two sentences.

    Args:
        error: the server's, or what came of the file as a whole.
    """
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
