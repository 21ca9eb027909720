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
_HEADS: Final = 5
"""Sessions that are told of because others wait for them."""

# Whom a session waits for is also who waits before it: of these only those who wait for nobody hold anybody up.
_VITALS: LiteralString = """
WITH waiting AS MATERIALIZED (
  SELECT l.pid, min(l.waitstart) AS since FROM pg_locks l
   WHERE NOT l.granted AND l.waitstart < clock_timestamp() - make_interval(secs => %(blocked)s) GROUP BY l.pid),
held AS MATERIALIZED (
  SELECT w.pid AS waiter, a.usename AS role, unnest(pg_blocking_pids(w.pid)) AS pid
    FROM (SELECT * FROM waiting ORDER BY since LIMIT %(listed)s) w JOIN pg_stat_activity a USING (pid))
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
           SELECT pid, usename AS role, left(application_name, 40) AS application, state, backend_start::text AS since,
                  extract(epoch FROM clock_timestamp() - xact_start)::bigint AS open,
                  extract(epoch FROM clock_timestamp() - state_change)::bigint AS unchanged
             FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
            ORDER BY xact_start LIMIT %(listed)s) t) AS transactions,
       (SELECT count(*)::int FROM waiting) AS waiting,
       (SELECT coalesce(json_agg(b), '[]') FROM (
           SELECT h.pid, a.usename AS role, left(a.application_name, 40) AS application, a.backend_start::text AS since,
                  count(DISTINCT h.waiter)::int AS waiters, array_agg(DISTINCT h.role) AS roles
             FROM held h LEFT JOIN pg_stat_activity a ON a.pid = h.pid
            WHERE h.pid NOT IN (SELECT l.pid FROM pg_locks l WHERE NOT l.granted)
            GROUP BY h.pid, a.usename, a.application_name, a.backend_start
            ORDER BY count(DISTINCT h.waiter) DESC, h.pid LIMIT %(heads)s) b) AS blocking,
       (SELECT coalesce(sum(deadlocks), 0)::bigint FROM pg_stat_database) AS deadlocks,
       (SELECT coalesce(json_agg(d ORDER BY d.name), '[]') FROM (
           SELECT coalesce(datname, 'the shared catalogs') AS name, checksum_failures AS failures FROM pg_stat_database
            WHERE checksum_failures > 0 LIMIT %(listed)s) d) AS checksum_failures,
       (SELECT coalesce(json_agg(p), '[]') FROM (
           SELECT gid, database, owner, extract(epoch FROM clock_timestamp() - prepared)::bigint AS age
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
       current_setting('autovacuum')::bool AND current_setting('track_counts')::bool AS autovacuum,
       (SELECT coalesce(bool_and(sourcefile LIKE '%%/postgresql.auto.conf'), false) FROM pg_settings
         WHERE name IN ('autovacuum', 'track_counts') AND setting = 'off') AS off_by_alter_system
"""


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """One answer of a server; ages in seconds, sizes in bytes.

    Attributes:
        admitted_connections: how many clients that are no superusers it lets in at once.
        by_role: client connections by role.
        transactions: the sessions with the oldest transactions.
        waiting: how many sessions have waited long for a lock.
        blocking: those that hold them and wait for nobody; process 0 stands for prepared transactions.
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
    waiting: int
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
    off_by_alter_system: bool = False

    @property
    def transaction_age(self) -> int:
        """Of the older of both kinds of numbers."""
        return max(int(self.oldest["age"]), int(self.oldest_multixact["age"]))

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
        await cursor.execute(_VITALS, {"listed": _LISTED, "heads": _HEADS, "blocked": _BLOCKED})
        row = await cursor.fetchone()
    if row is None:
        raise RuntimeError("a SELECT without FROM returned no row")
    return Vitals(**row)


@dataclass(frozen=True)
class Own:
    """What belongs to the operator itself.

    Attributes:
        logins: roles whose transactions may take long: dumps and migrations, which their own Jobs watch.
        slots: of the replicas.
    """

    logins: frozenset[str] = frozenset()
    slots: frozenset[str] = frozenset()


def findings(pod: str, vitals: Vitals, own: Own) -> Iterable[Finding]:
    """What is wrong with a server, by what it said of itself."""
    yield from _sessions(pod, vitals, own)
    yield from _replication(pod, vitals, own)
    for database in vitals.checksum_failures:
        message = (
            f"{pod}: pages of {database['name']} don't match their checksums: its storage returns other bytes than were"
            " written."
        )
        yield Finding(Reason.CHECKSUM_FAILED, f"{pod} {database['name']}", message, at_once=True)
    if vitals.in_recovery:
        return
    if not vitals.autovacuum:
        message = (
            "The server doesn't vacuum automatically, since autovacuum or track_counts is off: tables grow, and"
            " transaction numbers run out. Take it out of spec.postgresql.parameters."
        )
        fix = None
        if vitals.off_by_alter_system:
            message = message.replace("Take it out of spec.postgresql.parameters", "Somebody set it by ALTER SYSTEM")
            fix = (
                f"ALTER SYSTEM RESET autovacuum; ALTER SYSTEM RESET track_counts; SELECT pg_reload_conf(); -- on {pod}"
            )
        yield Finding(Reason.AUTOVACUUM_OFF, "server", message, fix)
    for what, oldest in (("transaction", vitals.oldest), ("multixact", vitals.oldest_multixact)):
        if oldest["age"] >= _FREEZE_WARNING:
            share = int(oldest["age"] / 2_147_483_648 * 10) * 10
            message = (
                f"Database {oldest['name']}: {share} % of the {what} numbers are in use before its oldest rows are"
                " frozen; at 100 % the server takes no more writes."
            )
            yield Finding(Reason.WRAPAROUND_NEAR, f"database {oldest['name']} ({what})", message, "VACUUM (FREEZE);")


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


def _sessions(pod: str, vitals: Vitals, own: Own) -> Iterable[Finding]:
    if vitals.connections >= vitals.admitted_connections * _NEAR_LIMIT:
        most = ", ".join(list(vitals.by_role)[:3])
        message = (
            f"{pod}: at least {_NEAR_LIMIT:.0%} of the {vitals.admitted_connections} connections are taken; most are of"
            f" {most}."
        )
        yield Finding(Reason.CONNECTIONS_NEAR_LIMIT, pod, message)
    for item in vitals.blocking:
        roles = ", ".join(sorted(str(role) for role in item["roles"]))
        if item["pid"] == 0:
            message = f"{pod}: a prepared transaction holds a lock that others ({roles}) have waited for longer than"
            yield Finding(Reason.SESSIONS_BLOCKED, f"{pod} prepared transaction", f"{message} {_BLOCKED} s.")
            continue
        message = (
            f"{pod}: {_session(item)} holds a lock that others ({roles}) have waited for longer than {_BLOCKED} s."
        )
        yield Finding(Reason.SESSIONS_BLOCKED, f"{pod} session {item['pid']}", message, _end_of(pod, item, own))
    for item in vitals.transactions:
        if item["role"] in own.logins:
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
        yield Finding(Reason.TRANSACTION_LEFT_OPEN, name, message, _end_of(pod, item, own))
    for item in vitals.prepared if not vitals.in_recovery else ():
        if item["age"] >= _PREPARED:
            name = str(item["gid"])[:40]
            message = (
                f"Prepared transaction {name!r} of {item['owner']} in {item['database']} has waited for its end for"
                f" more than {coarse(item['age'] / 3600)} h: its locks stay, and no row that died since is removed."
            )
            fix = f"ROLLBACK PREPARED {_literal(str(item['gid']))};"
            yield Finding(Reason.PREPARED_TRANSACTION_LEFT, f"prepared transaction {item['gid']!r}", message, fix)


def _end_of(pod: str, session: Mapping[str, Any], own: Own) -> str | None:
    """The statement that ends a session, and none that has got its number meanwhile; `None` for the operator's own."""
    if session["role"] is None or session["role"] in own.logins:
        return None
    return (
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {session['pid']}"
        f" AND backend_start = {_literal(str(session['since']))}; -- on {pod}"
    )


def _replication(pod: str, vitals: Vitals, own: Own) -> Iterable[Finding]:
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
        yield Finding(Reason.REPLAY_PAUSED, pod, message, f"SELECT pg_wal_replay_resume(); -- on {pod}")
    for slot in vitals.slots:
        drop = f"SELECT pg_drop_replication_slot({_literal(str(slot['name']))}); -- on {pod}"
        if slot["wal_status"] == "lost":
            message = f"{pod}: slot {slot['name']} has lost WAL that it needs; what reads from it has to begin again."
            yield Finding(Reason.SLOT_LOST, f"{pod} slot {slot['name']}", message, drop)
        elif not slot["active"] and (slot["retained"] or 0) >= _SLOT_BYTES:
            member = slot["name"] in own.slots
            whose = " It is a replica's, which needs it when it is back." if member else ""
            message = (
                f"{pod}: nothing reads from slot {slot['name']}, which keeps more than {_mib(slot['retained'])} of WAL"
                f" on the volume.{whose}"
            )
            size = coarse(slot["retained"])
            fix = None if member else drop
            yield Finding(Reason.SLOT_INACTIVE, f"{pod} slot {slot['name']}", message, fix, size)


def _session(item: Mapping[str, Any]) -> str:
    application = f" ({item['application']})" if item["application"] else ""
    return f"session {item['pid']} of {item['role'] or 'the server itself'}{application}"


def _mib(size: float) -> str:
    return f"{coarse(size / _MIB)} MiB"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
