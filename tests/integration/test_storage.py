"""Volumes that fill, from the reconciler on an API server and a real PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apiserver import Call, Fault
from integration.filled_disks import LABELS, claim, disk, findings, requested, runs, spec
from integration.loops import IMAGE, NAMESPACE, Arena, arena
from integration.serving import NAME, serving
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.health import disk as disk_queries
from medianest_operator.kubernetes.kinds import CLAIM, DATABASE, EVENT, POD, STATEFUL_SET
from medianest_operator.naming import Names
from medianest_operator.reconcile.health import storage as concern
from medianest_operator.resources.statefulset import PodInputs
from medianest_operator.timestamps import stamp, stamp_now


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
        # The maximum may not be less than the size.
        fix = '{"spec":{"storage":{"size":"21Gi","autoGrow":{"maximum":"21Gi"}}}}'
        assert fix in findings(made)["VolumeFilling"]["fix"]
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


async def test_a_server_without_the_program_for_its_room_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    asked = disk_queries.put_ballast_back

    async def counted(connection: Any) -> bool:
        answers.append(await asked(connection))
        return answers[-1]

    monkeypatch.setattr(disk_queries, "put_ballast_back", counted)
    monkeypatch.setattr(concern, "_BALLAST_EVERY", -1.0)
    async with serving() as made:
        disk(made, 50)
        made.arena.services.memory.forget(made.key)
        answers.clear()
        await runs(made, 4)
        assert answers == [False]


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


@pytest.mark.parametrize(
    ("message", "reason"),
    [("it can't", "VolumeCannotGrow"), ("exceeded quota: small, requested: requests.storage=2Gi", "QuotaExceeded")],
)
async def test_a_repository_whose_growth_is_refused_is_told_of_and_not_asked_for_again(
    message: str, reason: str
) -> None:
    def sized(call: Call) -> bool:
        return call.kind == CLAIM.plural and call.method == "PATCH" and call.name == f"{NAME}-backup-volume"

    volume = {"size": "1Gi", "autoGrow": {"maximum": "2Gi"}}
    async with arena() as made:
        key = made.make(spec={"backup": {"repositories": [{"name": "volume", "volume": volume}]}})
        await made.run(key)
        await made.run(key)
        status = made.status(key)
        status["backup"]["repositories"] = [{"name": "volume", "usedPercent": 91, "seen": "2026-01-01T00:00:00.000Z"}]
        made.server.put(DATABASE, made.server.get(DATABASE, *key) | {"status": status})
        made.server.fault = lambda call: Fault(403, message, "Forbidden") if sized(call) else None
        before = len(made.server.calls)
        for _ in range(5):
            await made.run(key)
        assert len([call for call in made.server.calls[before:] if sized(call)]) == 1
        reasons = {item["reason"]: item for item in made.status(key)["findings"]}
        assert reasons.keys() == {reason, "VolumeNearlyFull"}
        # Nobody wants it to grow any more.
        volume = {"size": "1Gi", "autoGrow": {"maximum": "1Gi"}}
        wanted = {"spec": {"backup": {"repositories": [{"name": "volume", "volume": volume}]}}}
        made.server.put(DATABASE, made.server.get(DATABASE, *key) | wanted)
        for _ in range(5):
            await made.run(key)
        (found,) = made.status(key)["findings"]
        assert found["reason"] == "VolumeNearlyFull"
        assert found["message"].endswith("It has reached autoGrow.maximum.")
