"""How `medianest-dbctl` finds its server: libpq's environment, or a URL written for Prisma."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo
from psycopg.rows import TupleRow

APPLICATION_NAME = "medianest-dbctl"
# Seconds: one attempt, and the pauses between attempts.
ATTEMPT_TIMEOUT = 5
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 2.0

NO_LIMITS: Final = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
"""What a session begins with; `as_options` takes it to the server. That goes before the settings of its role and its
database (PostgreSQL manual, 20.1.3): their time limits are for the application, and would end the very statement that
takes them away."""


class ConnectError(Exception):
    """The server could not be reached, or let nobody in, for the whole time allowed."""


def libpq_uri(url: str) -> str:
    """Turn the application's `DATABASE_URL` into one that libpq accepts.

    Prisma's own parameters (`connection_limit`, `pool_timeout`, `pgbouncer`, `schema`, ...) are dropped, because libpq
    refuses a URI with a parameter that it doesn't know. Where Prisma has another name for libpq's thing, it is
    translated: `sslaccept=strict` to `sslmode=verify-full`, and `sslcert`, which is the server's CA to Prisma, to
    `sslrootcert` unless a client's `sslkey` stands beside it.

    Raises:
        ValueError: not a PostgreSQL URL, or one for a schema other than `public`, which is where migrations go.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("the URL does not begin with postgresql://")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    schema = given.get("schema", "public")
    if schema != "public":
        raise ValueError(f"the URL asks for schema {schema}; MediaNest's tables are in public")
    if given.get("sslaccept") == "strict":
        given["sslmode"] = "verify-full"
    if "sslcert" in given and "sslkey" not in given:
        given["sslrootcert"] = given.pop("sslcert")
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    kept = {name: value for name, value in given.items() if name in known}
    return urlunsplit(parts._replace(query=urlencode(kept, quote_via=quote)))


def conninfo_from(environment: Mapping[str, str] = os.environ) -> str:
    """`DATABASE_URL` made fit for libpq if it is set; otherwise empty, so that libpq reads PGHOST and its kin.

    Raises:
        ValueError: as `libpq_uri`.
    """
    url = environment.get("DATABASE_URL")
    return libpq_uri(url) if url else ""


def libpq_environment(connection: Connection[Any]) -> dict[str, str]:
    """libpq's variables that lead PostgreSQL's own programs to where a connection is, with the options that it began
    with.

    What the connection took from this process's environment they find there by themselves.
    """
    names = {
        "host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE",
        "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY",
        "options": "PGOPTIONS",
    }  # fmt: skip
    given = connection.info.get_parameters()
    found = {variable: given[name] for name, variable in names.items() if name in given}
    if connection.info.password:
        found["PGPASSWORD"] = connection.info.password
    return found


def as_options(settings: Mapping[str, str]) -> str:
    """Parameters of a session for libpq's `options`."""
    return " ".join(f"-c {name}={value.replace(' ', '')}" for name, value in settings.items())


def connect(conninfo: str, timeout: float, report: Callable[[str], None], purpose: str) -> Connection[TupleRow]:
    """Connect in autocommit and without time limits, trying again until the server lets us in.

    A server that is starting, a role that is about to be created and a Service without endpoints all look like a
    failure for a while, so every refusal is retried until the time is over.

    Args:
        conninfo: for libpq; empty takes everything from its environment.
        timeout: seconds for all attempts together.
        report: called with a line of text when the reason for waiting changes.
        purpose: shown in `pg_stat_activity` after the program's name.

    Raises:
        ConnectError: the time is over; the text is the last refusal.
    """
    deadline = time.monotonic() + timeout
    pause, told = FIRST_PAUSE, ""
    # libpq's connect_timeout is in whole seconds, at least 2.
    own = conninfo_to_dict(conninfo).get("options") or os.environ.get("PGOPTIONS", "")
    options: dict[str, Any] = {
        "options": f"{own} {as_options(NO_LIMITS)}".strip(),
        "application_name": f"{APPLICATION_NAME} {purpose}",
        "connect_timeout": max(2, min(ATTEMPT_TIMEOUT, int(timeout))),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    while True:
        try:
            return psycopg.connect(conninfo, autocommit=True, **options)
        except psycopg.OperationalError as error:
            refusal = " ".join(str(error).split())
            if time.monotonic() + pause >= deadline:
                raise ConnectError(refusal) from error
            if refusal != told:
                report(f"waiting for the server: {refusal}")
                told = refusal
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
