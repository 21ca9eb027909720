"""Who keeps a migration waiting: a second session that looks while the first one can't."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.conninfo import make_conninfo
from psycopg.rows import tuple_row

from medianest_operator.postgres.connect import NO_LIMITS, as_options

APPLICATION_NAME = "medianest-dbctl watch"
LOOK_EVERY = 1.0
"""Seconds between two looks."""

_MAY_SEE: LiteralString = "SELECT pg_catalog.pg_has_role(session_user, 'pg_read_all_stats', 'MEMBER')"

_BLOCKERS: LiteralString = """
SELECT b.pid, b.usename::text, b.application_name, b.state,
       pg_catalog.floor(extract(epoch FROM pg_catalog.clock_timestamp() - b.xact_start))::bigint,
       pg_catalog.left(pg_catalog.regexp_replace(b.query, '\\s+', ' ', 'g'), 80)
  FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(%s)) p JOIN pg_catalog.pg_stat_activity b ON b.pid = p
"""


def describe_blockers(connection: Connection[Any], pid: int) -> str | None:
    """Who holds a session up, in words; `None` if nobody does.

    Without pg_read_all_stats the server hides what sessions of other roles do.
    """
    rows = connection.cursor(row_factory=tuple_row).execute(_BLOCKERS, (pid,)).fetchall()
    told = []
    for blocker, user, application, state, age, query in rows:
        since = f", in a transaction for {age} s" if age is not None else ""
        doing = f", {state}: {query}" if state and query and "insufficient privilege" not in query else ""
        told.append(f"pid {blocker} ({user or 'a background process'}, {application or 'unnamed'}{since}{doing})")
    return "; ".join(told) or None


def conninfo(environment: Mapping[str, str]) -> str:
    """A connection string from libpq's variables, those of this process where the mapping doesn't say."""
    known = {
        "PGHOST": "host", "PGHOSTADDR": "hostaddr", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password",
        "PGDATABASE": "dbname", "PGSSLMODE": "sslmode", "PGSSLROOTCERT": "sslrootcert",
    }  # fmt: skip
    return make_conninfo("", **{known[name]: value for name, value in environment.items() if name in known})


class Watcher:
    """Tells who a session waits for, whenever it does."""

    def __init__(self, environment: Mapping[str, str], report: Callable[[str], None]) -> None:
        self._conninfo = conninfo(environment)
        self._report = report
        self.last: str | None = None
        """The last blockers that were seen, in words."""

    @contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Look at a session until the block ends. A server that lets nobody look is no failure."""
        self.last = None
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(pid, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, pid: int, ended: threading.Event) -> None:
        if ended.wait(LOOK_EVERY):
            return
        try:
            with psycopg.connect(
                self._conninfo,
                autocommit=True,
                application_name=APPLICATION_NAME,
                connect_timeout=5,
                options=as_options(NO_LIMITS),
            ) as connection:
                if connection.execute(_MAY_SEE).fetchone() == (True,):
                    # Also for a member that doesn't inherit, or that acts as another role from its login on.
                    connection.execute("SET ROLE pg_read_all_stats")
                while True:
                    found = describe_blockers(connection, pid)
                    if found and found != self.last:
                        self._report(f"waiting for {found}")
                    self.last = found or self.last
                    if ended.wait(LOOK_EVERY):
                        return
        except psycopg.Error:
            return
