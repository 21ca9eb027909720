"""What a probe notices at once, although most of what was found out before is only asked for again now and then."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from apiserver import Fault
from integration.loops import NAMESPACE, arena
from integration.postgres_server import wait_until
from integration.serving import SPEC, serving
from medianest_operator.kubernetes.kinds import DATABASE, SECRET

RENAME = "UPDATE _prisma_migrations SET migration_name = '20990101000000_by_hand' WHERE migration_name LIKE '2025090%'"


@pytest.mark.parametrize(
    ("statement", "condition", "reason"),
    [
        ("ALTER TABLE users ADD COLUMN by_hand text", "SchemaUpToDate", "Drifted"),
        ("DROP INDEX users_email_key", "IndexesHealthy", "IndexesMissing"),
        ("ALTER SEQUENCE rate_limits_id_seq OWNED BY NONE", "SchemaUpToDate", "Drifted"),
        (RENAME, "SchemaUpToDate", "Migrating"),
        ("ALTER DATABASE medianest CONNECTION LIMIT 0", "Available", "ConnectionsRefused"),
    ],
)
async def test_a_change_by_hand_is_in_the_status_after_the_next_probe(
    statement: str, condition: str, reason: str
) -> None:
    async with serving() as made:
        await made.arena.run(made.key)
        with made.database.connect() as connection:
            pid = connection.info.backend_pid
            connection.execute(statement.encode())
        with made.postgres.maintenance.connect() as watcher:
            # What a session has written counts at its end, which comes after its client's.
            wait_until(watcher, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)
        await made.arena.run(made.key)
        assert made.arena.conditions(made.key)[condition][1] == reason, made.arena.status(made.key)["conditions"]


async def test_a_quiet_database_costs_no_request() -> None:
    async with serving() as made:
        await made.arena.run(made.key)
        calls = len(made.arena.server.calls)
        for _ in range(5):
            await made.arena.run(made.key)
        assert made.arena.server.calls[calls:] == []


@pytest.mark.parametrize("statement", ["ALLOW_CONNECTIONS false", "CONNECTION LIMIT 0", "RENAME TO gone"])
async def test_a_paused_database_that_lets_nobody_in_is_not_called_available(statement: str) -> None:
    async with serving() as made:
        await made.arena.run(made.key)
        database = made.arena.server.get(DATABASE, *made.key)
        made.arena.server.put(DATABASE, database | {"spec": {**SPEC, "paused": True}})
        await made.arena.sessions.leave(*made.key, "medianest")
        made.postgres.maintenance.execute(f"ALTER DATABASE medianest {statement}")
        await made.arena.run(made.key)
        assert made.arena.conditions(made.key)["Available"] == ("False", "ConnectionsRefused")


async def test_a_password_that_was_set_by_hand_is_put_back_with_the_next_probe() -> None:
    def stored() -> str:
        return str(
            made.postgres.maintenance.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'medianest_app'")
        )

    async with serving() as made:
        await made.arena.run(made.key)
        made.postgres.maintenance.execute("ALTER ROLE medianest_app PASSWORD 'mine'")
        by_hand = stored()
        await made.arena.run(made.key)
        settled = stored()
        assert settled != by_hand
        await made.arena.run(made.key)
        assert stored() == settled


async def test_a_history_changed_by_a_session_that_goes_on_is_seen_within_a_minute(
    later: Callable[[float], None],
) -> None:
    """PostgreSQL counts a session's rows at the end of its transaction, and at most once a second."""
    async with serving() as made:
        await made.arena.run(made.key)
        with made.database.connect() as connection:
            connection.execute("SELECT count(*) FROM users")
            connection.execute(RENAME)
            with connection.transaction():
                connection.execute("SELECT 1")
                later(61)
                await made.arena.run(made.key)
                assert made.arena.conditions(made.key)["SchemaUpToDate"][1] == "Migrating"


async def test_a_secret_of_the_admin_that_goes_away_is_told_within_a_minute(later: Callable[[float], None]) -> None:
    bucket = {"bucket": "backups", "endpoint": "https://s3.example", "credentialsSecret": {"name": "keys"}}
    spec = SPEC | {"backup": {"repositories": [{"name": "away", "s3": bucket}]}}
    async with arena() as made:
        made.server.put(SECRET, {"metadata": {"namespace": NAMESPACE, "name": "keys"}, "data": {}})
        key = made.make("db", spec)
        await made.run(key)
        assert made.conditions(key)["BackupsHealthy"][1] == "NoBackupYet"
        del made.server.objects[(SECRET.plural, NAMESPACE, "keys")]
        later(61)
        await made.run(key)
        assert made.conditions(key)["BackupsHealthy"][1] == "BackupMisconfigured"
        assert "keys" in made.message(key, "BackupsHealthy")


async def test_what_bears_a_tables_name_and_is_none_is_not_asked(later: Callable[[float], None]) -> None:
    """A view of the owner's could run anything, and say as much as it wants."""
    async with serving() as made:
        made.database.execute(
            """
            ALTER TABLE users RENAME TO people;
            CREATE FUNCTION loud() RETURNS text LANGUAGE plpgsql AS
              $$ BEGIN RAISE EXCEPTION USING ERRCODE = '22000', MESSAGE = repeat('x', 4000000); END $$;
            CREATE VIEW users AS SELECT loud() AS id, loud() AS email;
            ALTER VIEW users OWNER TO medianest; GRANT SELECT ON users TO medianest_readonly
            """
        )
        for _ in range(4):
            later(300)
            await made.arena.run(made.key)
        assert len(json.dumps(made.arena.status(made.key))) < 20_000
        assert "x" * 100 not in json.dumps(made.arena.events())


async def test_a_sequence_of_a_strange_range_stops_nothing(later: Callable[[float], None]) -> None:
    async with serving() as made:
        made.database.execute(
            """
            SET ROLE medianest; CREATE TABLE below (id int PRIMARY KEY);
            CREATE SEQUENCE below_seq AS int MINVALUE -100 MAXVALUE 0 START -100 OWNED BY below.id;
            ALTER TABLE below ALTER id SET DEFAULT nextval('below_seq'); RESET ROLE;
            SELECT setval('below_seq', -10)
            """
        )
        for _ in range(3):
            later(300)
            await made.arena.run(made.key)
        told = {item["reason"]: item["message"] for item in made.arena.status(made.key)["findings"]}
        assert "90 % of the numbers" in told["SequenceRunningOut"]
        assert made.arena.conditions(made.key)["Ready"][0] == "True"


async def test_what_begins_while_the_status_can_not_be_written_is_told_later(later: Callable[[float], None]) -> None:
    async with serving() as made:
        await made.arena.run(made.key)
        made.postgres.maintenance.execute("ALTER SYSTEM SET autovacuum = off")
        made.postgres.maintenance.execute("SELECT pg_reload_conf()")
        made.arena.server.fault = lambda call: (
            Fault(500, "etcdserver: request timed out") if call.kind == "medianestdatabases" else None
        )
        for _ in range(3):
            later(15)
            await made.arena.run(made.key)
        assert "AutovacuumOff" not in {item["reason"] for item in made.arena.events()}
        made.arena.server.fault = lambda _: None
        later(15)
        await made.arena.run(made.key)
        assert [item["reason"] for item in made.arena.events()].count("AutovacuumOff") == 1


async def test_queries_that_nobody_could_time_are_not_called_well() -> None:
    async with serving() as made:
        await made.arena.run(made.key)
        assert "the application's queries are as they should be" in made.arena.message(made.key, "Healthy")
        # While it is paused, the login is left as it is, and isn't used.
        database = made.arena.server.get(DATABASE, *made.key)
        made.arena.server.put(DATABASE, database | {"spec": {**SPEC, "paused": True}})
        made.arena.services.memory.forget(made.key)
        await made.arena.run(made.key)
        assert made.arena.message(made.key, "Healthy") == "Servers and replication are as they should be."
