"""Rows that break a rule are found, whatever let them in, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from psycopg import AsyncConnection

from integration.postgres_server import Database
from integration.serving import serving
from medianest_operator.health.integrity import Integrity, Relation, check
from medianest_operator.migrations.bundled import application_facts

KNOWN = [Relation(*relation) for relation in application_facts().relations]
ORPHANS = "SET session_replication_role = replica; INSERT INTO sessions (id, session_token, user_id, expires) VALUES "
ONE = "('s1', 't1', 'nobody', now())"


async def checked(database: Database, budget: float = 30, known: list[Relation] = KNOWN) -> Integrity:
    connection = await AsyncConnection.connect(
        host=str(database.server.folder), user="medianest_readonly", dbname=database.name, autocommit=True,
        options="-c search_path=pg_catalog,pg_temp -c row_security=off",
    )  # fmt: skip
    async with connection:
        return await check(connection, known, budget)


async def test_the_bundled_schema_holds_eight_relations(people: Database) -> None:
    assert await checked(people) == Integrity((), 8)


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ("", "was switched off while they came"),
        ("ALTER TABLE sessions DROP CONSTRAINT sessions_user_id_fkey;", "no foreign key holds the relation any more"),
        (
            "ALTER TABLE sessions DROP CONSTRAINT sessions_user_id_fkey, ADD CONSTRAINT sessions_user_id_fkey"
            " FOREIGN KEY (user_id) REFERENCES users NOT VALID;",
            "is NOT VALID",
        ),
    ],
)
async def test_rows_that_refer_to_nothing_are_found(people: Database, before: str, why: str) -> None:
    people.execute(f"{before} {ORPHANS} {ONE}")
    [found] = (await checked(people)).findings
    assert (found.reason, found.object) == ("OrphansFound", "table public.sessions (user_id)")
    assert found.message.startswith("1 row of sessions (user_id) refer")
    assert why in found.message


@pytest.mark.parametrize(("rows", "said"), [(2, "2 rows or more"), (700, "512 rows or more"), (1500, "More than 1000")])
async def test_they_are_counted_coarsely(people: Database, rows: int, said: str) -> None:
    people.execute(
        f"SET session_replication_role = replica; INSERT INTO sessions (id, session_token, user_id, expires)"
        f" SELECT n, n, 'nobody', now() FROM generate_series(1, {rows}) n"
    )
    [found] = (await checked(people)).findings
    assert found.message.startswith(said)


async def test_a_reference_with_a_null_refers_to_nothing(people: Database) -> None:
    people.execute("INSERT INTO service_config (service_name, service_url, updated_by) VALUES ('x', 'http://x', NULL)")
    people.execute(
        "SET ROLE medianest; CREATE TABLE a (x int, y int, PRIMARY KEY (x, y));"
        "CREATE TABLE b (x int, y int, FOREIGN KEY (x, y) REFERENCES a);"
        "INSERT INTO b VALUES (1, NULL), (NULL, NULL);"
        "RESET ROLE; SET session_replication_role = replica; INSERT INTO b VALUES (1, 2)"
    )
    assert [item.object for item in (await checked(people)).findings] == ["table public.b (x, y)"]


async def test_relations_of_a_table_that_a_migration_dropped_are_none(people: Database) -> None:
    people.execute("DROP TABLE sessions; ALTER TABLE accounts DROP COLUMN user_id CASCADE")
    assert await checked(people) == Integrity((), 6)


async def test_rows_that_break_a_check_which_is_not_valid_are_found(people: Database) -> None:
    people.execute(
        "ALTER TABLE users ADD CONSTRAINT tidy CHECK (email LIKE '%@%' AND role <> 'admin') NOT VALID;"
        "ALTER TABLE users ADD CONSTRAINT fine CHECK (length(id) > 1) NOT VALID"
    )
    [found] = (await checked(people)).findings
    assert (found.reason, found.object) == ("ConstraintViolated", "constraint tidy of public.users")
    assert found.message.startswith("1 row of users break constraint tidy")


async def test_a_table_whose_rows_a_policy_hides_is_left_out_and_named(people: Database) -> None:
    people.execute(f"{ORPHANS} {ONE}")
    people.execute("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY; ALTER TABLE sessions FORCE ROW LEVEL SECURITY")
    seen = await checked(people)
    assert (seen.findings, seen.unchecked) == ((), ("sessions (user_id)",))


async def test_partitions_are_looked_at_as_their_table(people: Database) -> None:
    people.execute(
        "SET ROLE medianest; CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);"
        "CREATE TABLE c (pid int REFERENCES p); INSERT INTO p VALUES (1), (11); INSERT INTO c VALUES (1), (11)"
    )
    assert await checked(people) == Integrity((), 9)
    people.execute("SET session_replication_role = replica; INSERT INTO c VALUES (5)")
    assert [item.object for item in (await checked(people)).findings] == ["table public.c (pid)"]


async def test_what_the_owner_defined_runs_with_no_more_rights_than_a_reader_has(people: Database) -> None:
    """A CHECK that was never validated, with a function of the owner's that tries what only others may."""
    people.execute(
        """
        CREATE TABLE loot (of text);
        CREATE FUNCTION evil(t text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
          IF has_table_privilege(current_user, 'pg_catalog.pg_authid', 'SELECT')
             OR pg_has_role(current_user, 'pg_read_all_data', 'USAGE')
             OR (SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = current_user)
          THEN PERFORM pg_advisory_lock(4711); RETURN false; END IF;
          RETURN true;
        END $$;
        ALTER TABLE users ADD CONSTRAINT trap CHECK (evil(email)) NOT VALID
        """
    )
    assert (await checked(people)).findings == ()


async def test_what_there_is_no_time_for_is_named(people: Database) -> None:
    seen = await checked(people, budget=0)
    assert (seen.findings, seen.checked, len(seen.unchecked)) == ((), 0, 8)


async def test_a_table_that_is_locked_is_no_finding(people: Database) -> None:
    with people.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("LOCK TABLE sessions")
        seen = await checked(people, budget=0.5, known=[])
    assert "sessions (user_id)" in seen.unchecked
    assert seen.findings == ()


async def test_a_database_that_serves_is_checked_once_a_day(later: Callable[[float], None]) -> None:
    async with serving() as made:
        made.database.execute(f"{ORPHANS} {ONE}")
        known: list[str] = []
        for _ in range(200):
            later(15)
            await made.arena.run(made.key)
            await asyncio.sleep(0.01)
            told = made.arena.status(made.key)["findings"]
            if known := [item["reason"] for item in told if item["level"] != "Hint"]:
                break
        assert known == ["OrphansFound"]
        assert made.arena.conditions(made.key)["Healthy"] == ("False", "OrphansFound")
        made.database.execute("DELETE FROM sessions")
        later(96_000)
        for _ in range(12):
            await made.arena.run(made.key)
            await asyncio.sleep(0.1)
            later(15)
            if made.arena.conditions(made.key)["Healthy"][0] == "True":
                break
        assert made.arena.conditions(made.key)["Healthy"] == ("True", "Healthy")
        names = made.postgres.maintenance.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'medianest_backup'"
        )
        assert "0" in str(names)
