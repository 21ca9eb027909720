"""An application that can only read while a volume is full, from the reconciler on a real PostgreSQL."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from apiserver import Fault
from integration.filled_disks import GIB, claim, disk, requested, runs, settings, spec, writes
from integration.serving import serving
from medianest_operator.backups.repository import facts
from medianest_operator.kubernetes.kinds import CLAIM
from medianest_operator.postgres.catalog_queries import SETTINGS


async def test_the_application_can_only_read_while_a_volume_is_full() -> None:
    async with serving() as made:
        await runs(made)
        before = made.database.connect(user="medianest_app")
        before.execute("SELECT 1")
        disk(made, 96)
        await runs(made, 3)
        with pytest.raises(psycopg.OperationalError):
            before.execute("SELECT 1")
        assert made.arena.conditions(made.key)["Available"] == ("False", "ReadOnly")
        assert made.arena.conditions(made.key)["StorageHealthy"] == ("False", "VolumeFull")
        assert "ReadOnly" in {item["reason"] for item in made.arena.events("Warning")}
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            writes(made.database)
        with made.database.connect(user="medianest_app") as reading:
            assert reading.execute("SELECT count(*) FROM users").fetchone() == (0,)
            # Not yet: it ends below 85 %.
            disk(made, 88)
            await runs(made, 2)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                writes(made.database)
            made.arena.services.memory.forget(made.key)
            disk(made, 60)
            await runs(made, 4)
            with pytest.raises(psycopg.OperationalError):
                reading.execute("SELECT 1")
        writes(made.database)
        assert made.arena.conditions(made.key)["Available"] == ("True", "PrimaryServing")
        assert made.arena.conditions(made.key)["StorageHealthy"] == ("True", "StorageHealthy")
        assert made.arena.conditions(made.key)["Ready"] == ("True", "Ready")


async def test_a_database_that_only_reads_by_its_owners_wish_stays_so() -> None:
    async with serving() as made:
        await runs(made)
        made.postgres.maintenance.execute("ALTER DATABASE medianest SET default_transaction_read_only = on")
        disk(made, 50)
        await runs(made)
        assert made.arena.conditions(made.key)["Available"] == ("True", "PrimaryServing")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            writes(made.database)


async def test_what_the_owner_set_before_is_there_again_afterwards() -> None:
    async with serving() as made:
        await runs(made)
        made.postgres.maintenance.execute("ALTER DATABASE medianest SET default_transaction_read_only = on")
        disk(made, 96)
        await runs(made, 3)
        assert settings(made)["medianest.read_only_since"].endswith(" on")
        # Meanwhile it is the owner's definition, in descriptions of the schema and in backups.
        assert ["default_transaction_read_only=on"] in [row[-1] for row in made.database.execute(SETTINGS)]
        (backed_up,) = made.database.execute(facts._PROPERTIES)
        assert ["default_transaction_read_only=on"] in [item.get("") for item in backed_up if isinstance(item, dict)]
        disk(made, 50)
        await runs(made, 3)
        assert settings(made) == {"default_transaction_read_only": "on"}
        assert made.arena.conditions(made.key)["Available"] == ("True", "PrimaryServing")


async def test_a_mark_goes_also_where_the_owner_has_taken_the_setting_back() -> None:
    async with serving() as made:
        await runs(made)
        disk(made, 96)
        await runs(made, 3)
        made.postgres.maintenance.execute("ALTER DATABASE medianest RESET default_transaction_read_only")
        disk(made, 50)
        await runs(made, 3)
        assert settings(made) == {}


async def test_sessions_that_began_while_the_setting_waited_are_ended_too() -> None:
    async with serving() as made:
        await runs(made)
        disk(made, 96)
        made.arena.services.memory.forget(made.key)
        await runs(made, 1)
        with made.postgres.maintenance.connect() as holder:
            holder.execute("BEGIN")
            holder.execute("LOCK TABLE pg_db_role_setting IN SHARE MODE")
            running = asyncio.create_task(runs(made, 4))
            await asyncio.sleep(2.6)
            with made.database.connect(user="medianest_app") as between:
                between.execute("SELECT 1")
                holder.execute("COMMIT")
                await running
                assert made.arena.conditions(made.key)["Available"] == ("False", "ReadOnly")
                with pytest.raises(psycopg.OperationalError):
                    between.execute("SELECT 1")


async def test_one_observation_alone_stops_nobody() -> None:
    async with serving() as made:
        await runs(made)
        disk(made, 96)
        # To the operator it is another disk, not one that fills within a second.
        made.arena.services.memory.forget(made.key)
        await runs(made, 1)
        assert settings(made) == {}
        disk(made, 50)
        await runs(made, 1)
        disk(made, 96, size=4000 * GIB)
        made.arena.services.memory.forget(made.key)
        await runs(made)
        assert settings(made) == {}
        assert made.arena.conditions(made.key)["StorageHealthy"] == ("False", "VolumeFull")


async def test_nobody_is_stopped_where_the_spec_says_so_and_who_was_is_let_in() -> None:
    async with serving() as made:
        await runs(made)
        disk(made, 96)
        await runs(made)
        assert made.arena.conditions(made.key)["Available"] == ("False", "ReadOnly")
        spec(made, storage={"size": "10Gi", "readOnlyWhenFull": False})
        await runs(made)
        assert settings(made) == {}
        assert made.arena.conditions(made.key)["Available"] == ("True", "PrimaryServing")
        writes(made.database)


async def test_that_writers_were_stopped_is_told_also_where_growth_fails() -> None:
    async with serving() as made:
        await runs(made)
        claim(made.arena)
        spec(made, storage={"size": "10Gi", "autoGrow": {"maximum": "20Gi"}})
        await runs(made)
        made.arena.server.fault = lambda call: (
            Fault(500, "broken") if call.kind == CLAIM.plural and call.method == "PATCH" else None
        )
        disk(made, 96)
        await runs(made, 3)
        assert made.arena.conditions(made.key)["Available"] == ("False", "ReadOnly")
        assert made.arena.conditions(made.key)["StorageHealthy"] == ("False", "VolumeFull")
        assert "ReadOnly" in {item["reason"] for item in made.arena.events("Warning")}


async def test_a_paused_database_is_told_of_and_left_as_it_is() -> None:
    async with serving() as made:
        await runs(made)
        claim(made.arena)
        spec(made, paused=True, storage={"size": "10Gi", "autoGrow": {"maximum": "20Gi"}})
        disk(made, 97)
        await runs(made)
        assert made.arena.conditions(made.key)["StorageHealthy"] == ("False", "VolumeFull")
        assert requested(made.arena) == "10Gi"
        writes(made.database)
