"""Faults of a serving database, each with how it is brought about, what is found, and how it ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg

from integration.postgres_server import Database, wait_until

Injection = Callable[[Database], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        inject: brings it about for as long as the block runs.
        reason: of the finding.
        object: the beginning of what the finding is about.
        words: all of these are in its message, or in its fix.
        healthy: whether the condition stays True, because it is a hint.
        within: probes after which it is told at the latest.
        hasty: what counts after minutes or hours has to count at once.
    """

    name: str
    inject: Injection
    reason: str
    object: str
    words: tuple[str, ...] = ()
    healthy: bool = False
    hasty: bool = False
    within: int = 4


def statements(begin: str, end: str) -> Injection:
    """A fault that statements bring about and end, in the application's database as the superuser."""

    @contextlib.contextmanager
    def inject(database: Database) -> Iterator[None]:
        database.execute(begin)
        try:
            yield
        finally:
            with database.connect() as connection:
                for statement in end.split(";"):
                    connection.execute(statement.encode())

    return inject


def setting(name: str, value: str) -> Injection:
    """A setting of the whole server."""

    @contextlib.contextmanager
    def inject(database: Database) -> Iterator[None]:
        maintenance = database.server.maintenance
        maintenance.execute(f"ALTER SYSTEM SET {name} = {value}")
        maintenance.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            maintenance.execute(f"ALTER SYSTEM RESET {name}")
            maintenance.execute("SELECT pg_reload_conf()")

    return inject


@contextlib.contextmanager
def idle_in_transaction(database: Database) -> Iterator[None]:
    with database.connect(user="medianest_app") as connection, connection.transaction(force_rollback=True):
        connection.execute("SELECT set_config('application_name', 'the web app', false), count(*) FROM users")
        yield


@contextlib.contextmanager
def long_query(database: Database) -> Iterator[None]:
    with database.connect(user="medianest_app") as connection:
        running = threading.Thread(target=_until_cancelled, args=(connection,))
        running.start()
        try:
            yield
        finally:
            connection.cancel_safe()
            running.join()


def _until_cancelled(connection: psycopg.Connection[object]) -> None:
    with contextlib.suppress(psycopg.errors.QueryCanceled):
        connection.execute("SELECT pg_sleep(600)")


@contextlib.contextmanager
def blocked(database: Database) -> Iterator[None]:
    """One session holds a row that another wants."""
    database.execute("INSERT INTO service_status (service_name, status) VALUES ('plex', 'up') ON CONFLICT DO NOTHING")
    update = "UPDATE service_status SET status = 'down' WHERE service_name = 'plex'"
    with database.connect(user="medianest_app") as holder, database.connect(user="medianest_app") as waiter:
        with holder.transaction(force_rollback=True):
            holder.execute(update)
            waiting = threading.Thread(target=_when_free, args=(waiter, update))
            waiting.start()
            with database.connect() as watcher:
                wait_until(watcher, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted) OR %s", False)
            yield
        waiting.join()


def _when_free(connection: psycopg.Connection[object], statement: str) -> None:
    connection.execute(statement.encode())


@contextlib.contextmanager
def locked_table(database: Database) -> Iterator[None]:
    with database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("LOCK TABLE users")
        yield


@contextlib.contextmanager
def many_connections(database: Database) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(47):
            stack.enter_context(database.connect(user="medianest_app"))
        yield


@contextlib.contextmanager
def deadlock(database: Database) -> Iterator[None]:
    database.execute("CREATE TABLE IF NOT EXISTS pair (n int PRIMARY KEY, v int)")
    database.execute("INSERT INTO pair VALUES (1, 0), (2, 0) ON CONFLICT DO NOTHING")
    try:
        with database.connect() as one, database.connect() as two:
            one.execute("BEGIN; UPDATE pair SET v = 1 WHERE n = 1")
            two.execute("BEGIN; UPDATE pair SET v = 1 WHERE n = 2")
            crossing = threading.Thread(target=_crossed, args=(one, "UPDATE pair SET v = 2 WHERE n = 2"))
            crossing.start()
            _crossed(two, "UPDATE pair SET v = 2 WHERE n = 1")
            crossing.join()
        yield
    finally:
        database.execute("DROP TABLE pair")


def _crossed(connection: psycopg.Connection[object], statement: str) -> None:
    with contextlib.suppress(psycopg.errors.DeadlockDetected):
        connection.execute(statement.encode())
    connection.execute("ROLLBACK")


@contextlib.contextmanager
def prepared(database: Database) -> Iterator[None]:
    with database.connect() as connection:
        connection.execute("BEGIN; DELETE FROM error_logs; PREPARE TRANSACTION 'it''s mine'")
        yield
        connection.execute("ROLLBACK PREPARED 'it''s mine'")


@contextlib.contextmanager
def inactive_slot(database: Database) -> Iterator[None]:
    with database.server.maintenance.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('left_behind', true)")
        try:
            _write_wal(connection)
            yield
        finally:
            connection.execute("SELECT pg_drop_replication_slot('left_behind')")


@contextlib.contextmanager
def lost_slot(database: Database) -> Iterator[None]:
    with database.server.maintenance.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('too_late', true)")
        with setting("max_slot_wal_keep_size", "'1MB'")(database):
            try:
                _write_wal(connection)
                connection.execute("CHECKPOINT")
                yield
            finally:
                connection.execute("SELECT pg_drop_replication_slot('too_late')")


def _write_wal(connection: psycopg.Connection[object]) -> None:
    for _ in range(3):
        connection.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 8 << 20)), pg_switch_wal()")


_MANY_TOKENS = """
INSERT INTO users (id, email) VALUES ('many', 'many@example.org');
INSERT INTO session_tokens (id, user_id, token_hash, expires_at)
  SELECT 'many' || n, 'many', repeat('h', 200) || n, now() FROM generate_series(1, 600000) n;
DROP INDEX session_tokens_token_hash_key
"""
_FEW_TOKENS = """
DELETE FROM session_tokens; DELETE FROM users WHERE id = 'many'; VACUUM session_tokens;
CREATE UNIQUE INDEX session_tokens_token_hash_key ON session_tokens (token_hash)
"""
_DEAD_ROWS = """
CREATE TABLE churned WITH (autovacuum_enabled = true) AS SELECT n, 0 AS v FROM generate_series(1, 30000) n;
ANALYZE churned;
UPDATE churned SET v = 1; UPDATE churned SET v = 2; UPDATE churned SET v = 3;
UPDATE churned SET v = 4; UPDATE churned SET v = 5; UPDATE churned SET v = 6
"""

FAULTS: list[Fault] = [
    Fault(
        "idle in transaction", idle_in_transaction, "TransactionLeftOpen", "db-0 session",
        ("medianest_app (the web app)", "idle in a transaction", "pg_terminate_backend("), hasty=True,
    ),
    Fault(
        "a long transaction", long_query, "TransactionLeftOpen", "db-0 session", ("has had a transaction open",),
        hasty=True,
    ),
    Fault(
        "a row that is held", blocked, "SessionsBlocked", "db-0 session", ("of medianest_app", "holds a lock"),
        hasty=True,
    ),
    Fault("a table that is locked", locked_table, "ProbeFailed", "query users by id", ("did not end within 2 s",)),
    Fault(
        "a query without its index", statements(_MANY_TOKENS, _FEW_TOKENS), "QuerySlow",
        "query session_tokens by token_hash", ("takes longer than 40 ms", "spec.monitoring.slowQuery"),
    ),
    Fault(
        "slow connections", setting("post_auth_delay", "1"), "ConnectSlow", "connections", ("new connection",),
        within=6,
    ),
    Fault(
        "many connections", many_connections, "ConnectionsNearLimit", "db-0",
        ("at least 80%", "most are of medianest_app"),
    ),
    Fault("a deadlock", deadlock, "Deadlocks", "db-0", ("PostgreSQL cancelled one",)),
    Fault(
        "a prepared transaction", prepared, "PreparedTransactionLeft", "prepared transaction", ("it's mine",),
        hasty=True,
    ),
    Fault(
        "a slot that nothing reads", inactive_slot, "SlotInactive", "db-0 slot left_behind",
        ("pg_drop_replication_slot('left_behind')",),
    ),
    Fault("a slot that lost its place", lost_slot, "SlotLost", "db-0 slot too_late", ("begin again",)),
    Fault(
        "autovacuum off", setting("autovacuum", "off"), "AutovacuumOff", "server", ("ALTER SYSTEM RESET autovacuum",),
    ),
    Fault(
        "autovacuum off for a table",
        statements("ALTER TABLE users SET (autovacuum_enabled = off)", "ALTER TABLE users RESET (autovacuum_enabled)"),
        "AutovacuumOff", "table public.users", ('ALTER TABLE "public"."users" RESET (autovacuum_enabled)',),
    ),
    Fault(
        "dead rows", statements(_DEAD_ROWS, "DROP TABLE churned"), "AutovacuumBehind", "table public.churned",
        ("dead rows", 'VACUUM "public"."churned"'),
    ),
    Fault(
        "a table that was never analyzed",
        statements("CREATE TABLE fresh AS SELECT n FROM generate_series(1, 20000) n", "DROP TABLE fresh"),
        "StatisticsStale", "table public.fresh", ("never been analyzed", 'ANALYZE "public"."fresh"'), healthy=True,
    ),
    Fault(
        "a sequence behind its table",
        statements(
            "INSERT INTO users (id, email) VALUES ('x', 'x@example.org');"
            "INSERT INTO rate_limits (id, user_id, endpoint, window_start) VALUES (1000, 'x', '/', now())",
            "DELETE FROM rate_limits; DELETE FROM users",
        ),
        "SequenceBehind", "sequence public.rate_limits_id_seq", ("taken already", "setval("),
    ),
    Fault(
        "a sequence near its end",
        statements("SELECT setval('rate_limits_id_seq', 2000000000)", "SELECT setval('rate_limits_id_seq', 1)"),
        "SequenceRunningOut", "sequence public.rate_limits_id_seq", ("90 % of the numbers",),
    ),
]  # fmt: skip
