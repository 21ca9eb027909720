"""What one instance's server tells every fifteen seconds: sessions, locks, replication, slots, the age of its rows.

It is asked as the superuser in the maintenance database, where nothing is the application's: names and figures of the
server's own views (PostgreSQL 15 manual, chapter 28.2 and 54).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg.rows import dict_row

from medianest_operator.api.conditions import Reason
from medianest_operator.health.findings import Finding, coarse
from medianest_operator.postgres.sessions import Connection

_MIB: Final = 1 << 20
_LAG_BYTES: Final = 64 * _MIB
"""A replica that lacks as much would lose it in a failover, and answers reads with what was true long ago."""
_LAG_SECONDS: Final = 60
_SLOT_BYTES: Final = 256 * _MIB
"""WAL that an inactive slot keeps from being recycled: a quarter of the smallest volume's room for it."""
_NEAR_LIMIT: Final = 0.8
"""Share of the connections that aren't reserved for superusers."""
_IDLE_IN_TRANSACTION: Final = 300
_OPEN: Final = 3600
"""Seconds. A transaction keeps VACUUM from removing any row that died since it began (PostgreSQL manual, 25.1.5)."""
_BLOCKED: Final = 30
_PREPARED: Final = 3600
_DEADLOCK_WINDOW: Final = 600
"""Seconds for which a deadlock is told of: it is over when it is seen."""
_FREEZE_WARNING: Final = 1_000_000_000
"""Transactions: half of what stops the server (PostgreSQL manual, 25.1.5), five times what autovacuum lets grow."""
_LISTED: Final = 20
"""Sessions, slots and roles that are read at the most, the worst first."""

# Dumps and migrations are long by nature; their own Jobs watch them.
_OWN_LOGINS: Final = ("_backup", "_migrator")

_VITALS: LiteralString = """
SELECT pg_is_in_recovery() AS in_recovery,
       extract(epoch FROM now())::bigint AS now,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
         AS admitted_connections,
       (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       (SELECT coalesce(json_object_agg(usename, count), '{}') FROM (
           SELECT coalesce(usename, '?') AS usename, count(*) FROM pg_stat_activity
            WHERE backend_type = 'client backend'
            GROUP BY usename ORDER BY count(*) DESC LIMIT %(listed)s) c) AS by_role,
       (SELECT coalesce(json_agg(t), '[]') FROM (
           SELECT pid, usename AS role, left(application_name, 40) AS application, state,
                  extract(epoch FROM clock_timestamp() - xact_start)::bigint AS open,
                  extract(epoch FROM clock_timestamp() - state_change)::bigint AS unchanged
             FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
            ORDER BY xact_start LIMIT %(listed)s) t) AS transactions,
       (SELECT coalesce(json_agg(w), '[]') FROM (
           SELECT a.pid, a.usename AS role, pg_blocking_pids(a.pid) AS by,
                  extract(epoch FROM clock_timestamp() - l.waitstart)::bigint AS seconds
             FROM pg_locks l JOIN pg_stat_activity a USING (pid)
            WHERE NOT l.granted AND l.waitstart < clock_timestamp() - make_interval(secs => %(blocked)s)
            ORDER BY l.waitstart LIMIT %(listed)s) w) AS waiting,
       (SELECT coalesce(json_agg(b), '[]') FROM (
           SELECT pid, usename AS role, left(application_name, 40) AS application, state
             FROM pg_stat_activity
            WHERE pid IN (SELECT unnest(pg_blocking_pids(l.pid)) FROM pg_locks l
                           WHERE NOT l.granted AND l.waitstart < clock_timestamp() - make_interval(secs => %(blocked)s))
            LIMIT %(listed)s) b) AS blocking,
       (SELECT coalesce(sum(deadlocks), 0)::bigint FROM pg_stat_database) AS deadlocks,
       (SELECT coalesce(json_agg(d ORDER BY d.name), '[]') FROM (
           SELECT coalesce(datname, 'the shared catalogs') AS name, checksum_failures AS failures FROM pg_stat_database
            WHERE checksum_failures > 0 LIMIT %(listed)s) d) AS checksum_failures,
       (SELECT coalesce(json_agg(p), '[]') FROM (
           SELECT left(gid, 40) AS gid, database, owner, extract(epoch FROM clock_timestamp() - prepared)::bigint AS age
             FROM pg_prepared_xacts ORDER BY prepared LIMIT %(listed)s) p) AS prepared,
       (SELECT coalesce(json_agg(s), '[]') FROM (
           SELECT slot_name AS name, active, wal_status,
                  pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
                                       ELSE pg_current_wal_lsn() END, restart_lsn)::bigint AS retained
             FROM pg_replication_slots WHERE NOT temporary
            ORDER BY restart_lsn LIMIT %(listed)s) s) AS slots,
       (SELECT coalesce(json_agg(r), '[]') FROM (
           SELECT application_name AS name,
                  coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), 0)::bigint AS bytes,
                  extract(epoch FROM replay_lag)::float AS seconds
             FROM pg_stat_replication WHERE NOT pg_is_in_recovery()
              AND state IN ('streaming', 'catchup') LIMIT %(listed)s) r) AS replicas,
       CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END AS replay,
       (SELECT json_build_object('name', datname, 'age', age(datfrozenxid)) FROM pg_database
         ORDER BY age(datfrozenxid) DESC LIMIT 1) AS oldest,
       (SELECT json_build_object('name', datname, 'age', mxid_age(datminmxid)) FROM pg_database
         ORDER BY mxid_age(datminmxid) DESC LIMIT 1) AS oldest_multixact,
       current_setting('autovacuum')::bool AND current_setting('track_counts')::bool AS autovacuum
"""


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """One answer of a server; ages in seconds, sizes in bytes.

    Attributes:
        admitted_connections: how many clients that are no superusers it lets in at once.
        by_role: client connections by role.
        transactions: the sessions with the oldest transactions.
        waiting: sessions that have waited long for a lock, each with those that hold it (`by`).
        blocking: those that hold it.
        deadlocks: since the server's statistics began.
        slots: permanent replication slots; `retained` is the WAL that one keeps.
        replicas: those that stream from it, where it is the primary.
        replay: of a replica: `not paused`, `pause requested` or `paused`.
        oldest: the database with the oldest row that isn't frozen, and its age in transactions.
    """

    in_recovery: bool
    now: int
    admitted_connections: int
    connections: int
    by_role: Mapping[str, int]
    transactions: Sequence[Mapping[str, Any]]
    waiting: Sequence[Mapping[str, Any]]
    blocking: Sequence[Mapping[str, Any]]
    deadlocks: int
    checksum_failures: Sequence[Mapping[str, Any]]
    prepared: Sequence[Mapping[str, Any]]
    slots: Sequence[Mapping[str, Any]]
    replicas: Sequence[Mapping[str, Any]]
    replay: str | None
    oldest: Mapping[str, Any]
    oldest_multixact: Mapping[str, Any]
    autovacuum: bool

    @property
    def oldest_transaction(self) -> int:
        """Seconds for which the oldest transaction of a client has been open; 0 where none is."""
        return max((int(item["open"]) for item in self.transactions), default=0)


async def read_vitals(connection: Connection) -> Vitals:
    """Ask one server, in one round trip.

    Args:
        connection: as the superuser, to the maintenance database.

    Raises:
        psycopg.Error: as the server says.
    """
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_VITALS, {"listed": _LISTED, "blocked": _BLOCKED})
        row = await cursor.fetchone()
    if row is None:
        raise RuntimeError("a SELECT without FROM returned no row")
    return Vitals(**row)


def findings(pod: str, vitals: Vitals) -> Iterable[Finding]:
    """What is wrong with a server, by what it said of itself."""
    yield from _sessions(pod, vitals)
    yield from _replication(pod, vitals)
    for database in vitals.checksum_failures:
        message = (
            f"{pod}: pages of {database['name']} don't match their checksums: its storage returns other bytes than were"
            " written."
        )
        yield Finding(Reason.CHECKSUM_FAILED, f"{pod} {database['name']}", message, at_once=True)
    if vitals.in_recovery:
        return
    if not vitals.autovacuum:
        message = "Autovacuum is off for the whole server: tables grow, and transaction numbers run out."
        yield Finding(Reason.AUTOVACUUM_OFF, "server", message, "ALTER SYSTEM RESET autovacuum")
    for what, oldest in (("transaction", vitals.oldest), ("multixact", vitals.oldest_multixact)):
        if oldest["age"] >= _FREEZE_WARNING:
            share = int(oldest["age"] / 2_147_483_648 * 10) * 10
            message = (
                f"Database {oldest['name']}: {share} % of the {what} numbers are in use before its oldest rows are"
                " frozen; at 100 % the server takes no more writes."
            )
            yield Finding(Reason.WRAPAROUND_NEAR, f"database {oldest['name']} ({what})", message, "VACUUM (FREEZE)")


def deadlocked(pod: str, seen: Sequence[tuple[int, int]], vitals: Vitals) -> Finding | None:
    """Whether sessions have deadlocked within the last ten minutes.

    Args:
        seen: earlier answers, as pairs of the server's time and the deadlocks that it had counted.
    """
    before = [count for at, count in seen if at >= vitals.now - _DEADLOCK_WINDOW]
    # A count that fell is of statistics that began again.
    if not before or vitals.deadlocks <= min(before):
        return None
    message = (
        f"{pod}: transactions of clients deadlocked within the last ten minutes; PostgreSQL cancelled one of each. Its"
        " log names their statements."
    )
    return Finding(Reason.DEADLOCKS, pod, message, at_once=True)


def _sessions(pod: str, vitals: Vitals) -> Iterable[Finding]:
    if vitals.connections >= vitals.admitted_connections * _NEAR_LIMIT:
        most = ", ".join(list(vitals.by_role)[:3])
        message = (
            f"{pod}: at least {_NEAR_LIMIT:.0%} of the {vitals.admitted_connections} connections are taken; most are of"
            f" {most}."
        )
        yield Finding(Reason.CONNECTIONS_NEAR_LIMIT, pod, message)
    blocked_by: dict[int, list[Mapping[str, Any]]] = {}
    for waiter in vitals.waiting:
        for pid in waiter["by"]:
            blocked_by.setdefault(pid, []).append(waiter)
    waiters = {waiter["pid"] for waiter in vitals.waiting}
    for blocker in vitals.blocking:
        if blocker["pid"] in waiters:
            # The head of the queue is told of, not those who wait in it themselves.
            continue
        others = blocked_by.get(blocker["pid"], [])
        roles = ", ".join(sorted({str(waiter["role"]) for waiter in others}))
        message = (
            f"{pod}: {_session(blocker)} holds a lock that others ({roles}) have waited for longer than {_BLOCKED} s."
        )
        name = f"{pod} session {blocker['pid']}"
        yield Finding(Reason.SESSIONS_BLOCKED, name, message, f"SELECT pg_terminate_backend({blocker['pid']})")
    for item in vitals.transactions:
        if str(item["role"]).endswith(_OWN_LOGINS):
            continue
        idle = str(item["state"]).startswith("idle in transaction") and item["unchanged"] >= _IDLE_IN_TRANSACTION
        if not idle and item["open"] < _OPEN:
            continue
        minutes = coarse(item["unchanged" if idle else "open"] / 60)
        doing = "has been idle in a transaction" if idle else "has had a transaction open"
        message = (
            f"{pod}: {_session(item)} {doing} for more than {minutes} min: no row that died since is removed, and its"
            " locks stay."
        )
        name = f"{pod} session {item['pid']}"
        yield Finding(Reason.TRANSACTION_LEFT_OPEN, name, message, f"SELECT pg_terminate_backend({item['pid']})")
    for item in vitals.prepared if not vitals.in_recovery else ():
        if item["age"] >= _PREPARED:
            message = (
                f"Prepared transaction {item['gid']!r} of {item['owner']} in {item['database']} has waited for its end"
                f" for more than {coarse(item['age'] / 3600)} h: its locks stay, and no row that died since is removed."
            )
            fix = "ROLLBACK PREPARED " + _literal(str(item["gid"]))
            yield Finding(Reason.PREPARED_TRANSACTION_LEFT, f"prepared transaction {item['gid']!r}", message, fix)


def _replication(pod: str, vitals: Vitals) -> Iterable[Finding]:
    for replica in vitals.replicas:
        if replica["bytes"] >= _LAG_BYTES:
            message = f"{replica['name']} lacks more than {_mib(replica['bytes'])} of what {pod} has written."
        elif (replica["seconds"] or 0) >= _LAG_SECONDS and replica["bytes"] > 0:
            message = f"{replica['name']} is more than {coarse(replica['seconds'])} s behind {pod}."
        else:
            continue
        yield Finding(Reason.REPLICA_LAGGING, str(replica["name"]), f"{message} A failover to it would lose that.")
    if vitals.replay not in (None, "not paused"):
        message = f"{pod}: somebody paused the replay; it falls behind until that ends."
        yield Finding(Reason.REPLAY_PAUSED, pod, message, f"{pod}: SELECT pg_wal_replay_resume()")
    for slot in vitals.slots:
        drop = f"SELECT pg_drop_replication_slot({_literal(str(slot['name']))})"
        if slot["wal_status"] == "lost":
            message = f"{pod}: slot {slot['name']} has lost WAL that it needs; what reads from it has to begin again."
            yield Finding(Reason.SLOT_LOST, f"{pod} slot {slot['name']}", message, drop)
        elif not slot["active"] and (slot["retained"] or 0) >= _SLOT_BYTES:
            message = (
                f"{pod}: nothing reads from slot {slot['name']}, which keeps more than {_mib(slot['retained'])} of WAL"
                " on the volume."
            )
            size = coarse(slot["retained"])
            yield Finding(Reason.SLOT_INACTIVE, f"{pod} slot {slot['name']}", message, drop, size)


def _session(item: Mapping[str, Any]) -> str:
    application = f" ({item['application']})" if item["application"] else ""
    return f"session {item['pid']} of {item['role']}{application}"


def _mib(size: float) -> str:
    return f"{coarse(size / _MIB)} MiB"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
