"""The running server that a database is imported from: reached by the application's own URL, and only ever read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from medianest_operator.backups.logical.server import Server, is_final, without_limits
from medianest_operator.backups.repository.facts import pg_dump_version
from medianest_operator.postgres.connect import NO_LIMITS, ConnectError, as_options, libpq_uri
from medianest_operator.results.backup import Reason, RunFailure

OLDEST = 12
"""PostgreSQL's major version; nothing older is tried out here."""
_ATTEMPTS = 3
_PAUSE = 2.0
# Older servers than 14 don't know idle_session_timeout, and let nobody in who sets what they don't know.
_LIMITS = {name: value for name, value in NO_LIMITS.items() if name != "idle_session_timeout"}
_OPTIONS = as_options({"default_transaction_read_only": "on", **_LIMITS})
_VARIABLES = {
    "host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE",
    "password": "PGPASSWORD", "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY", "options": "PGOPTIONS",
}  # fmt: skip
# What the URL doesn't say must not come out of this process's environment, which is the target's.
_DEFAULTS = {
    "host": "", "hostaddr": "", "port": "5432", "password": "", "sslmode": "prefer", "sslrootcert": "", "sslcert": "",
    "sslkey": "", "options": "",
}  # fmt: skip


def open_source(file: Path, report: Callable[[str], None]) -> Server:
    """Connect to the server that a URL in a file names; what is done there can write nothing.

    Raises:
        RunFailure: there is no such file, it is no URL, nobody answers, or the server's version can't be read.
    """
    parameters = read_parameters(file)
    connection = _connect(parameters, report)
    try:
        check_version(connection)
        without_limits(connection)
    except (RunFailure, psycopg.Error):
        connection.close()
        raise
    environment = {_VARIABLES[name]: value for name, value in parameters.items() if name in _VARIABLES}
    return Server("source", connection, [environment], "", "")


def read_parameters(file: Path) -> dict[str, str]:
    """libpq's parameters of a URL that may be written for Prisma.

    Raises:
        RunFailure: it is none; its text isn't repeated, for it may hold a password.
    """
    try:
        text = file.read_text(encoding="utf-8").strip().strip("\"'")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFailure(Reason.INVALID_OPTIONS, f"The source's URL can't be read: {error}") from error
    try:
        given: Mapping[str, Any] = conninfo_to_dict(libpq_uri(text.removeprefix("DATABASE_URL=").strip("\"'")))
    except (ValueError, psycopg.ProgrammingError) as error:
        problem = str(error) if isinstance(error, ValueError) else "libpq doesn't understand it"
        raise RunFailure(Reason.INVALID_OPTIONS, f"The source's URL is no good: {problem}.") from None
    parameters = {**_DEFAULTS, **{name: str(value) for name, value in given.items()}}
    for name in ("user", "host"):
        if not parameters.get(name):
            raise RunFailure(Reason.INVALID_OPTIONS, f"The source's URL names no {name}.")
    parameters.setdefault("dbname", parameters["user"])
    parameters["options"] = f"{parameters['options']} {_OPTIONS}".strip()
    return parameters


def check_version(connection: Connection[Any]) -> None:
    """Refuse a server that pg_dump can't read, or that nobody tried.

    Raises:
        RunFailure: that, and what to do.
    """
    found, own = connection.info.server_version // 10000, int(pg_dump_version().partition(".")[0])
    if found > own:
        raise RunFailure(
            Reason.UNSUPPORTED_VERSION,
            f"The source is PostgreSQL {found}, and pg_dump {own} can't read a newer server than itself. Import from"
            f" PostgreSQL {OLDEST} to {own}: load a dump of it into a server of that version first.",
        )
    if found < OLDEST:
        raise RunFailure(
            Reason.UNSUPPORTED_VERSION,
            f"The source is PostgreSQL {found}; imports are from version {OLDEST} to {own}. Upgrade it first.",
        )


def _connect(parameters: Mapping[str, str], report: Callable[[str], None]) -> Connection[Any]:
    where = f"{parameters['host']}:{parameters['port']}"
    options = "connect_timeout=10 keepalives_idle=10 keepalives_interval=5 keepalives_count=3"
    conninfo = make_conninfo(options, **parameters)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return psycopg.connect(conninfo, autocommit=True)
        except psycopg.OperationalError as error:
            text = " ".join(str(error).split())
            if "unsupported startup parameter" in text:
                raise RunFailure(
                    Reason.INVALID_OPTIONS,
                    f"{where} is a connection pooler, through which no snapshot can be read: give the server's own"
                    f" address ({text}).",
                ) from error
            final = is_final(ConnectError(text))
            if final or attempt == _ATTEMPTS:
                message = f"No connection to the source at {where}: {text}"
                raise RunFailure(Reason.CONNECT_FAILED, message, not final) from error
            report(f"waiting for the source: {text}")
            time.sleep(_PAUSE)
    raise AssertionError("no attempt")
