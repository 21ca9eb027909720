"""How long the application's hot queries take, and a connection: asked for as a role that only reads.

The queries are those that the application's own repositories send most, each for a row that is there. Only their count
of rows comes back, so that no content does, however large it is.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, LiteralString

import psycopg

from medianest_operator.api.conditions import Reason
from medianest_operator.health.findings import Finding
from medianest_operator.postgres.sessions import Connection

_TIMES: Final = 3
"""How often a query is sent that was slow the first time: its median isn't moved by a single pause of the machine."""
_DEADLINE: Final = 2000
"""Milliseconds for each; what isn't done by then counts as that slow. `monitoring.slowQuery` is at most a second."""
BUDGET: Final = 6.0
"""Seconds for all of them, after which the rest is left for the next probe."""
_WINDOW: Final = 40
"""Probes over which quantiles are taken: ten minutes."""
_LONGEST_CONNECT: Final = 2.0
_CONNECT_FACTOR: Final = 10
"""A connection takes a TLS handshake, SCRAM and a process of its own; it may take so many times a slow query."""

HOT_QUERIES: Final[Mapping[str, tuple[str, LiteralString]]] = {
    "users by id": (
        "users",
        "SELECT * FROM public.users WHERE id = (SELECT id FROM public.users LIMIT 1)",
    ),
    "users by email": (
        "users",
        "SELECT * FROM public.users WHERE email = (SELECT email FROM public.users LIMIT 1)",
    ),
    "session_tokens by token_hash": (
        "session_tokens",
        """
        SELECT * FROM public.session_tokens
         WHERE token_hash = (SELECT token_hash FROM public.session_tokens LIMIT 1)""",
    ),
    "sessions by session_token": (
        "sessions",
        """
        SELECT * FROM public.sessions WHERE session_token = (SELECT session_token FROM public.sessions LIMIT 1)""",
    ),
    "media_requests of a user": (
        "media_requests",
        """
        SELECT * FROM public.media_requests WHERE user_id = (SELECT user_id FROM public.media_requests LIMIT 1)
         ORDER BY created_at DESC LIMIT 20""",
    ),
    "youtube_downloads of a user": (
        "youtube_downloads",
        """
        SELECT * FROM public.youtube_downloads WHERE user_id = (SELECT user_id FROM public.youtube_downloads LIMIT 1)
         ORDER BY created_at DESC LIMIT 20""",
    ),
    "service_status by service_name": (
        "service_status",
        """
        SELECT * FROM public.service_status
         WHERE service_name = (SELECT service_name FROM public.service_status LIMIT 1)""",
    ),
    "rate_limits of a user": (
        "rate_limits",
        """
        SELECT * FROM public.rate_limits
         WHERE (user_id, endpoint) = (SELECT user_id, endpoint FROM public.rate_limits LIMIT 1)
         ORDER BY window_start DESC LIMIT 1""",
    ),
}
"""By what is asked for: the table, and the query."""


@dataclass(frozen=True)
class Timing:
    """What one probe measured.

    Attributes:
        seconds: the median of each hot query, by its name; without those whose table isn't there.
        connect: how long a new connection took, where one was made.
        unfinished: the queries that didn't end in time.
        unseen: those that were not sent.
    """

    seconds: Mapping[str, float]
    connect: float | None = None
    unfinished: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


@dataclass
class Timings:
    """The probes of the last ten minutes."""

    queries: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW * len(HOT_QUERIES)))
    connects: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def add(self, timing: Timing) -> None:
        self.queries.extend(timing.seconds.values())
        if timing.connect is not None:
            self.connects.append(timing.connect)


def quantile(values: Iterable[float], share: float) -> float | None:
    """The nearest-rank quantile; `None` of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


# What else bears the name, a view for instance, would be somebody's own queries.
_TABLES: LiteralString = """
SELECT c.relname FROM pg_class c JOIN pg_database d ON d.datname = current_database()
 WHERE c.relnamespace = to_regnamespace('public') AND c.relkind IN ('r', 'p') AND c.relowner = d.datdba
   AND c.relname = ANY (%s)
"""


async def time_queries(connection: Connection, limit: float, connect: float | None) -> Timing:
    """Send each hot query, and those that were slow some times more.

    Args:
        limit: seconds that one may take.
        connection: to the application's database, as a role that may read its tables and do nothing else.
        connect: how long the connection took where it was made for this.

    Raises:
        psycopg.OperationalError: the connection broke.
    """
    end = time.perf_counter() + BUDGET
    await connection.execute("SELECT set_config('statement_timeout', %s, false)", [str(_DEADLINE)])
    names = [table for table, _ in HOT_QUERIES.values()]
    tables = {name for (name,) in await (await connection.execute(_TABLES, [names])).fetchall()}
    seconds: dict[str, float] = {}
    unfinished: list[str] = []
    unseen: list[str] = []
    for name, (table, query) in HOT_QUERIES.items():
        measured: list[float] = []
        try:
            while not measured or (measured[0] > limit and len(measured) < _TIMES and time.perf_counter() < end):
                if table not in tables or time.perf_counter() > end:
                    break
                started = time.perf_counter()
                await connection.execute(f"SELECT count(*) FROM ({query} OFFSET 0) q")
                measured.append(time.perf_counter() - started)
        except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
            unfinished.append(name)
            measured = [_DEADLINE / 1000]
        except psycopg.OperationalError:
            raise
        except psycopg.DatabaseError:
            # It has other columns, or shows nobody its rows: the schema's own findings say so.
            continue
        if measured:
            seconds[name] = sorted(measured)[len(measured) // 2]
        elif table in tables:
            unseen.append(name)
    return Timing(seconds, connect, tuple(unfinished), tuple(unseen))


def findings(timing: Timing, limit: float) -> Sequence[Finding]:
    """What is too slow.

    Args:
        limit: seconds that a hot query may take (spec.monitoring.slowQuery).
    """
    found = [
        Finding(
            Reason.QUERY_SLOW,
            _object(name),
            f"The application's query for {name} takes longer than {_milliseconds(seconds, limit)} on the server that"
            f" takes writes; spec.monitoring.slowQuery is {limit * 1000:g} ms.",
        )
        for name, seconds in timing.seconds.items()
        if seconds > limit and name not in timing.unfinished
    ]
    for name in timing.unfinished:
        message = (
            f"The application's query for {name} did not end within {_DEADLINE / 1000:.0f} s: it is slow, or waits for"
            " a lock."
        )
        found.append(Finding(Reason.PROBE_FAILED, _object(name), message))
    return found


def unseen(timing: Timing) -> frozenset[str]:
    """The objects of findings that this probe says nothing of."""
    return frozenset(_object(name) for name in timing.unseen)


def _object(name: str) -> str:
    return f"query {name}"


def connect_findings(seconds: float, limit: float) -> Sequence[Finding]:
    """Whether a new connection took too long; arguments as for `findings`."""
    allowed = min(limit * _CONNECT_FACTOR, _LONGEST_CONNECT)
    if seconds <= allowed:
        return ()
    message = f"A new connection takes longer than {_milliseconds(seconds, allowed)}; {allowed * 1000:g} ms is allowed."
    return (Finding(Reason.CONNECT_SLOW, "connections", message),)


def _milliseconds(seconds: float, limit: float) -> str:
    """Coarsely: the highest of the limit, ten times it, a hundred times and so on that it reaches."""
    while seconds > limit * 10:
        limit *= 10
    return f"{limit * 1000:g} ms"
