"""Volumes that fill, from the reconciler on an API server and a real PostgreSQL.

How full a disk is, the tests say in place of `stat`: the table that the operator reads is replaced by one that has what
`stat -f` would print.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from apiserver import Call, Fault
from integration.loops import IMAGE, NAMESPACE, Arena, arena
from integration.postgres_server import Database
from integration.serving import NAME, SPEC, Serving, serving
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.kubernetes.kinds import CLAIM, DATABASE, EVENT, POD, STATEFUL_SET
from medianest_operator.naming import Names
from medianest_operator.resources.statefulset import PodInputs
from medianest_operator.timestamps import stamp, stamp_now

GIB = 1024**3
LABELS = {
    "app.kubernetes.io/managed-by": "medianest-operator",
    "app.kubernetes.io/component": "postgres",
    "medianest.io/database": NAME,
}


def disk(made: Serving, percent: int, size: int = 10 * GIB) -> None:
    """Let the server's volume be so full."""
    maintenance = made.postgres.maintenance
    kind = maintenance.execute("SELECT relkind FROM pg_class WHERE relname = 'file_systems'")
    if kind == [("f",)]:
        maintenance.execute("DROP FOREIGN TABLE medianest_operator.file_systems")
        maintenance.execute(
            "CREATE TABLE medianest_operator.file_systems"
            " (id text, block bigint, blocks bigint, free bigint, available bigint)"
        )
    blocks = size // 4096
    free = blocks * (100 - percent) // 100
    maintenance.execute("TRUNCATE medianest_operator.file_systems")
    for _ in ("data", "log"):
        maintenance.execute(f"INSERT INTO medianest_operator.file_systems VALUES ('1', 4096, {blocks}, {free}, {free})")


def claim(made: Arena, size: str = "10Gi", capacity: str | None = None, ordinal: int = 0) -> None:
    """The data volume of an instance."""
    made.server.put(
        CLAIM,
        {
            "metadata": {"namespace": NAMESPACE, "name": f"data-{NAME}-{ordinal}", "labels": LABELS},
            "spec": {"resources": {"requests": {"storage": size}}},
            "status": {"capacity": {"storage": capacity or size}},
        },
    )


def requested(made: Arena, ordinal: int = 0) -> str:
    found = made.server.get(CLAIM, NAMESPACE, f"data-{NAME}-{ordinal}")
    return str(found["spec"]["resources"]["requests"]["storage"])


def spec(made: Serving, **more: Any) -> None:
    database = made.arena.server.get(DATABASE, *made.key)
    made.arena.server.put(DATABASE, database | {"spec": {**SPEC, **more}})


def findings(made: Serving) -> dict[str, dict[str, Any]]:
    """By their reason."""
    return {item["reason"]: item for item in made.arena.status(made.key).get("findings", [])}


async def runs(made: Serving, count: int = 3) -> None:
    for _ in range(count):
        await made.arena.run(made.key)


def writes(database: Database) -> None:
    with database.connect(user="medianest_app") as connection:
        connection.execute("CREATE TEMP TABLE nothing ()")
        connection.execute("UPDATE users SET name = name")


async def test_what_the_server_says_of_its_disk_is_in_the_status() -> None:
    async with serving() as made:
        await runs(made)
        volume, repository = made.arena.status(made.key)["storage"]
        assert repository == {"name": "backup/volume", "size": "10Gi"}
        assert volume["name"] == "data"
        assert volume["size"] == "10Gi"
        assert volume["used"].endswith(" %")
        assert made.arena.conditions(made.key)["StorageHealthy"][0] == "True"


async def test_a_filling_volume_is_told_with_what_to_do_and_ends() -> None:
    async with serving() as made:
        await runs(made)
        disk(made, 82)
        await runs(made)
        assert made.arena.conditions(made.key)["StorageHealthy"] == ("False", "VolumeFilling")
        found = findings(made)["VolumeFilling"]
        assert "The data volume of db-0 is more than 80 % full" in found["message"]
        assert "spec.storage.autoGrow.maximum is not set" in found["message"]
        assert found["fix"] == (
            """kubectl -n media patch mndb db --type merge -p '{"spec":{"storage":{"size":"15Gi"}}}'"""
        )
        assert made.arena.status(made.key)["storage"][0]["used"] == "80-85 %"
        assert made.arena.conditions(made.key)["Ready"] == ("True", "Ready")
        calls = len(made.arena.server.calls)
        disk(made, 83)
        await runs(made)
        assert made.arena.server.calls[calls:] == []
        disk(made, 40)
        await runs(made, 4)
        assert made.arena.conditions(made.key)["StorageHealthy"] == ("True", "StorageHealthy")
        assert "VolumeFilling" in {item["reason"] for item in made.arena.events("Warning")}


async def test_an_inactive_slot_is_named_as_the_cause() -> None:
    async with serving() as made:
        await runs(made)
        maintenance = made.postgres.maintenance
        maintenance.execute("SELECT pg_create_physical_replication_slot('its_gone', true)")
        for _ in range(3):
            maintenance.execute("CREATE TABLE passing AS SELECT 1")
            maintenance.execute("DROP TABLE passing")
            maintenance.execute("SELECT pg_switch_wal()")
        disk(made, 82, size=200 * 1024**2)
        await runs(made)
        found = findings(made)["VolumeFilling"]
        assert "Replication slot its_gone, which nobody uses, holds write-ahead log back" in found["message"]
        assert found["fix"] == "SELECT pg_drop_replication_slot('its_gone');"
        maintenance.execute(found["fix"])
        assert maintenance.execute("SELECT count(*) FROM pg_replication_slots") == [(0,)]


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


def settings(made: Serving) -> dict[str, str]:
    """The database's own, for every role."""
    asked = (
        "SELECT unnest(setconfig) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase"
        " WHERE datname = 'medianest' AND setrole = 0"
    )
    return dict(str(row[0]).split("=", 1) for row in made.postgres.maintenance.execute(asked))


async def test_what_the_owner_set_before_is_there_again_afterwards() -> None:
    async with serving() as made:
        await runs(made)
        made.postgres.maintenance.execute("ALTER DATABASE medianest SET default_transaction_read_only = on")
        disk(made, 96)
        await runs(made, 3)
        assert settings(made)["medianest.read_only_since"].endswith(" on")
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
        await runs(made, 1)
        with made.postgres.maintenance.connect() as holder:
            holder.execute("BEGIN")
            holder.execute("LOCK TABLE pg_db_role_setting IN SHARE MODE")
            running = asyncio.create_task(runs(made, 3))
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
        await runs(made, 1)
        assert settings(made) == {}
        disk(made, 50)
        await runs(made, 1)
        disk(made, 96, size=4000 * GIB)
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


async def test_a_note_of_anybody_keeps_no_volume_from_growing() -> None:
    async with serving() as made:
        await runs(made)
        for note in ("x", "2999-01-01T00:00:00Z", "2026-01-01T00:00:00"):
            claim(made.arena)
            live = made.arena.server.get(CLAIM, NAMESPACE, "data-db-0")
            live["metadata"]["annotations"] = {"medianest.io/grown-at": note}
            made.arena.server.put(CLAIM, live)
            spec(made, storage={"size": "10Gi", "autoGrow": {"maximum": "20Gi"}})
            disk(made, 86)
            await runs(made)
            assert requested(made.arena) == "12800Mi", note


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_server_that_does_not_answer_any_more_has_its_volume_grow_once(*, restarted: bool) -> None:
    async with serving() as made:
        await runs(made)
        claim(made.arena)
        spec(made, storage={"size": "10Gi", "autoGrow": {"maximum": "100Gi", "minimumInterval": "1m"}})
        disk(made, 84)
        await runs(made)
        made.arena.server.get(POD, NAMESPACE, "db-0")["status"]["podIP"] = "127.0.0.1"
        made.arena.server.put(POD, made.arena.server.get(POD, NAMESPACE, "db-0"))
        if restarted:
            made.arena.services.memory.forget(made.key)
        spec(made, storage={"size": "10Gi", "autoGrow": {"maximum": "100Gi", "minimumInterval": "1m", "trigger": 81}})
        if restarted:
            status = made.arena.status(made.key)
            status["storage"][0]["used"] = "90-95 %"
            made.arena.server.put(DATABASE, made.arena.server.get(DATABASE, *made.key) | {"status": status})
        await runs(made)
        assert requested(made.arena) == "12800Mi"
        # The interval is over; whether a later process looks at it or this one.
        for _ in range(2):
            live = made.arena.server.get(CLAIM, NAMESPACE, "data-db-0")
            grown = datetime.now(UTC) - timedelta(seconds=90)
            live["status"] = {"capacity": {"storage": "12800Mi"}}
            live["metadata"]["annotations"]["medianest.io/grown-at"] = stamp(grown)
            made.arena.server.put(CLAIM, live)
            made.arena.services.memory.forget(made.key)
            await runs(made)
            assert requested(made.arena) == "12800Mi"
            assert "used" not in made.arena.status(made.key)["storage"][0]


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


async def test_a_volume_grows_and_the_specs_size_stays() -> None:
    async with serving() as made:
        await runs(made)
        claim(made.arena)
        wanted = {"size": "10Gi", "autoGrow": {"maximum": "14Gi", "minimumInterval": "1m"}}
        spec(made, storage=wanted)
        disk(made, 84)
        await runs(made)
        assert requested(made.arena) == "10Gi"
        disk(made, 86)
        await runs(made)
        assert requested(made.arena) == "12800Mi"
        assert made.arena.server.get(DATABASE, *made.key)["spec"]["storage"] == wanted
        assert "VolumeGrown" in {item["reason"] for item in made.arena.events("Normal")}
        # Not again within its interval, and never above its maximum.
        claim(made.arena, "12800Mi")
        made.arena.server.get(CLAIM, NAMESPACE, "data-db-0")["metadata"]["annotations"] = {
            "medianest.io/grown-at": stamp_now()
        }
        await runs(made)
        assert requested(made.arena) == "12800Mi"
        claim(made.arena, "12800Mi")
        await runs(made)
        assert requested(made.arena) == "14Gi"
        claim(made.arena, "14Gi")
        await runs(made)
        assert requested(made.arena) == "14Gi"
        assert "It has reached spec.storage.autoGrow.maximum" in findings(made)["VolumeFilling"]["message"]
        (live,) = made.arena.server.all(STATEFUL_SET)
        (template,) = live["spec"]["volumeClaimTemplates"]
        assert template["spec"]["resources"]["requests"]["storage"] == "14Gi"


def _refuses(message: str) -> Any:
    def fault(call: Call) -> Fault | None:
        resizes = call.kind == CLAIM.plural and call.method == "PATCH"
        return Fault(403, message, "Forbidden") if resizes else None

    return fault


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("only dynamically provisioned pvc can be resized", "VolumeCannotGrow"),
        ("exceeded quota: small, requested: requests.storage=2Gi", "QuotaExceeded"),
    ],
)
async def test_a_refused_growth_is_told_and_not_repeated(message: str, reason: str) -> None:
    async with serving() as made:
        await runs(made)
        claim(made.arena)
        spec(made, storage={"size": "10Gi", "autoGrow": {"maximum": "20Gi"}})
        # With the notes on the claims that other concerns write.
        await runs(made)
        made.arena.server.fault = _refuses(message)
        disk(made, 86)
        before = len(made.arena.server.calls)
        await runs(made, 6)
        assert message in findings(made)[reason]["message"]
        tries = [
            call for call in made.arena.server.calls[before:] if call.method == "PATCH" and call.name == "data-db-0"
        ]
        assert len(tries) == 1


async def test_an_expansion_that_fails_is_told_in_the_drivers_words() -> None:
    async with arena() as made:
        key = made.make(spec={"storage": {"size": "20Gi"}})
        claim(made, "20Gi", "10Gi")
        uid = made.server.get(CLAIM, NAMESPACE, "data-db-0")["metadata"]["uid"]
        made.server.put(
            EVENT,
            {
                "metadata": {"namespace": NAMESPACE, "name": "e", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "involvedObject": {"uid": uid},
                "type": "Warning",
                "reason": "VolumeResizeFailed",
                "message": "the pool is out of space",
            },
        )
        await made.run(key)
        assert made.conditions(key)["Ready"] == ("False", "VolumeCannotGrow")
        assert "the pool is out of space" in made.message(key, "Ready")


def _crashed(made: Arena, ordinal: int, finished: str) -> None:
    """A pod whose container the kubelet doesn't start again yet."""
    metadata = {
        "namespace": NAMESPACE,
        "name": f"{NAME}-{ordinal}",
        "labels": LABELS | {"medianest.io/patroni-scope": f"{NAME}-rw"},
        "annotations": {"medianest.io/pod-inputs": PodInputs.of(Names(NAMESPACE, NAME), DatabaseSpec(), IMAGE).digest},
    }
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}}
    last = {"terminated": {"exitCode": 1, "finishedAt": finished}}
    status = {"phase": "Running", "containerStatuses": [{"name": "postgres", "state": waiting, "lastState": last}]}
    pod = {"metadata": metadata, "spec": {"containers": [{"image": "image"}]}, "status": status}
    made.server.put(POD, pod)
    made.server.get(POD, NAMESPACE, f"{NAME}-{ordinal}")["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    # Watches tell of it as it is now.
    made.server.put(POD, pod)


async def test_a_pod_in_back_off_is_replaced_once_its_volume_has_grown() -> None:
    async with arena() as made:
        key = made.make(spec={"storage": {"size": "10Gi"}})
        await made.run(key)
        claim(made)
        _crashed(made, 0, "2026-01-01T00:00:00Z")
        await made.run(key)
        made.server.put(DATABASE, made.server.get(DATABASE, *key) | {"spec": {"storage": {"size": "20Gi"}}})
        # Nothing serves, and the claim grows all the same.
        await made.run(key)
        assert requested(made) == "20Gi"
        assert list(made.server.all(POD))
        live = made.server.get(CLAIM, NAMESPACE, f"data-{NAME}-0")
        made.server.put(CLAIM, live | {"status": {"capacity": {"storage": "20Gi"}}})
        await made.run(key)
        assert not list(made.server.all(POD))


async def test_the_volume_of_a_repository_grows_by_what_the_last_job_found_there() -> None:
    def size() -> str:
        found = made.server.get(CLAIM, NAMESPACE, f"{NAME}-backup-volume")
        return str(found["spec"]["resources"]["requests"]["storage"])

    volume = {"size": "1Gi", "autoGrow": {"maximum": "2Gi"}}
    async with arena() as made:
        key = made.make(spec={"backup": {"repositories": [{"name": "volume", "volume": volume}]}})
        await made.run(key)
        await made.run(key)
        assert size() == "1Gi"
        status = made.status(key)
        status["backup"]["repositories"] = [{"name": "volume", "usedPercent": 91, "seen": "2026-01-01T00:00:00.000Z"}]
        made.server.put(DATABASE, made.server.get(DATABASE, *key) | {"status": status})
        await made.run(key)
        assert size() == "1280Mi"
        # The Job looked at the smaller one.
        await made.run(key)
        assert size() == "1280Mi"
        assert made.status(key)["storage"][-1]["used"] == "90-95 %"
        (found,) = made.status(key)["findings"]
        assert (found["reason"], found["object"]) == ("VolumeNearlyFull", "volume backup/volume")
