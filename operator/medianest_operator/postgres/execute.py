"""Send one file to the server as Prisma's native engine does: a single simple query, and learn which statement failed.

The server answers a simple query with one result for each statement, so the number of results before the error is the
number of statements that went through. psycopg's cursors hand out only the error, so this goes one level down, to the
libpq wrapper that psycopg documents (`psycopg.pq`).
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from medianest_operator.errors import Interrupted

# SQLSTATE of a cancelled query, PostgreSQL manual, appendix A.
QUERY_CANCELED = "57014"
# How long an interrupted run waits for the server to confirm the cancellation.
CANCEL_TIMEOUT = 10.0
# TLS may hold bytes that the socket no longer shows as readable; look for them this often, seconds.
LOOK_AGAIN = 2.0


@dataclass(frozen=True, slots=True)
class ServerError:
    """An error in the server's own words.

    Attributes:
        sqlstate: five characters, `None` if the connection ended without one.
        position: the character (from 0) in the text sent, where the server named one.
        context: the call stack of a function or DO block.
    """

    sqlstate: str | None
    message: str
    detail: str | None = None
    hint: str | None = None
    context: str | None = None
    position: int | None = None

    @classmethod
    def from_exception(cls, error: psycopg.Error) -> ServerError:
        diag = error.diag
        position = diag.statement_position
        return cls(
            sqlstate=error.sqlstate,
            message=diag.message_primary or str(error).strip() or type(error).__name__,
            detail=diag.message_detail,
            hint=diag.message_hint,
            context=diag.context,
            position=int(position) - 1 if position else None,
        )

    @classmethod
    def from_result(cls, result: PGresult) -> ServerError:
        def text(field: DiagnosticField) -> str | None:
            raw = result.error_field(field)
            return raw.decode("utf-8", "replace") if raw else None

        position = text(DiagnosticField.STATEMENT_POSITION)
        return cls(
            sqlstate=text(DiagnosticField.SQLSTATE),
            message=text(DiagnosticField.MESSAGE_PRIMARY) or result.get_error_message("utf-8"),
            detail=text(DiagnosticField.MESSAGE_DETAIL),
            hint=text(DiagnosticField.MESSAGE_HINT),
            context=text(DiagnosticField.CONTEXT),
            position=int(position) - 1 if position else None,
        )

    def as_text(self) -> str:
        """In the form in which psql prints it."""
        lines = [f"ERROR: {self.message}"]
        for label, value in (("DETAIL", self.detail), ("HINT", self.hint), ("CONTEXT", self.context)):
            if value:
                lines.append(f"{label}: {value}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ScriptOutcome:
    """What became of a file: how many statements went through, the error that ended it, and whether we had to stop."""

    completed: int
    error: ServerError | None = None
    interrupted: bool = False


def run_script(connection: Connection[Any], sql: str) -> ScriptOutcome:
    """Run a file as one simple query.

    An `Interrupted` raised meanwhile, by a signal handler, cancels the query and is told in the outcome instead.

    Raises:
        psycopg.OperationalError: the connection broke; what the server did with the file isn't known.
    """
    return _exchange(connection, sql.encode("utf-8"))


def drain(connection: Connection[Any]) -> None:
    """Cancel a query that was sent and whose answer nobody waits for any more, so that the connection can be used.

    psycopg does so where a signal's exception meets it waiting, and can't where it comes a moment before or after.

    Raises:
        psycopg.OperationalError: the connection broke.
    """
    if connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
        connection.cancel_safe(timeout=CANCEL_TIMEOUT)
        _exchange(connection, b"")


def _exchange(connection: Connection[Any], pending: bytes) -> ScriptOutcome:
    pgconn = connection.pgconn
    completed = 0
    error: ServerError | None = None
    interrupted = False
    while True:
        try:
            if pending:
                pgconn.send_query(pending)
                pending = b""
            result = _next_result(pgconn)
            if result is None:
                break
            match result.status:
                case ExecStatus.COMMAND_OK | ExecStatus.TUPLES_OK:
                    completed += 1
                case ExecStatus.COPY_IN:
                    # There is no data to follow: the server turns this text into the statement's error.
                    pgconn.put_copy_end(b"a migration file can't carry data for COPY FROM STDIN")
                case ExecStatus.COPY_OUT:
                    _skip_copy_data(pgconn)
                case ExecStatus.FATAL_ERROR:
                    error = ServerError.from_result(result)
                case _:
                    pass
        except psycopg.OperationalError:
            # A server that ends a session says why first, and then closes: the reason is worth more than the end.
            if error is None:
                raise
            break
        except Interrupted:
            if pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            # The server answers the cancellation with an error or, just too late, with the last result.
            interrupted = True
            pending = b""
            connection.cancel_safe(timeout=CANCEL_TIMEOUT)
    if pgconn.status != ConnStatus.OK:
        raise psycopg.OperationalError(error.message if error else "the connection was closed")
    return ScriptOutcome(completed, error, interrupted)


def _next_result(pgconn: PGconn) -> PGresult | None:
    while pgconn.flush():
        _wait(pgconn, for_writing=True)
    while pgconn.is_busy():
        _wait(pgconn)
    return pgconn.get_result()


def _skip_copy_data(pgconn: PGconn) -> None:
    while (size := pgconn.get_copy_data(1)[0]) >= 0:
        if size == 0:
            _wait(pgconn)


def _wait(pgconn: PGconn, for_writing: bool = False) -> None:
    writers = [pgconn.socket] if for_writing else []
    readable, writable, _ = select.select([pgconn.socket], writers, [], LOOK_AGAIN)
    if readable or not writable:
        try:
            pgconn.consume_input()
        except psycopg.OperationalError as error:
            # A last message of the server, such as "terminating connection", may be waiting in libpq.
            result = pgconn.get_result()
            message = ServerError.from_result(result).message if result else str(error).strip()
            raise psycopg.OperationalError(message) from error
