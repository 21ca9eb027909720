"""Which instance begins where several volumes are kept. Patroni's own objects are written by hand."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from integration.loops import NAMESPACE, Arena, arena
from integration.serving import serving
from integration.volumes import LABELS, LEFT, history, instances, notes, pod, record, records, runs, volume
from medianest_operator.kubernetes.kinds import CLAIM, CRON_JOB, DATABASE, JOB, POD, SERVICE, STATEFUL_SET
from medianest_operator.reconcile.instances.handovers import Handover


def end(made: Arena, ordinal: int, reason: str | None = None, at: str = "2999-01-01T00:00:00Z") -> None:
    """Let a pod be on its way out."""
    found = made.server.get(POD, NAMESPACE, f"db-{ordinal}")
    found["metadata"]["deletionTimestamp"] = at
    if reason:
        found["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": reason}]
    made.server.put(POD, found)


@pytest.mark.parametrize(
    ("lock", "promoted", "leader"),
    [("db-2", ["db-1"], 2), ("", ["db-1", "db-2"], 2), ("", ["db-2", "db-1"], 1), ("", [], 0)],
    ids=["lock", "promoted last", "promoted back", "noted"],
)
async def test_patronis_word_is_newer_than_the_notes(lock: str, promoted: list[str], leader: int) -> None:
    """It is written, too, while no operator runs."""
    async with arena() as made:
        volume(made, 0, led_since="2026-01-01T00:00:00Z")
        volume(made, 1)
        volume(made, 2)
        record(made, "", **({"leader": lock} if lock else {}), optime="5000")
        record(made, "-config", history=history(*promoted), initialize="7")
        await runs(made, {"instances": 3})
        assert instances(made) == range(leader, leader + 1)
        assert notes(made, LEFT) == [f"data-db-{ordinal}" for ordinal in range(3) if ordinal != leader]


@pytest.mark.parametrize("text", ["", "[]", "{}", "no list", "[[1]]", '[[1, 2, "", "", "stranger"]]'])
async def test_what_patroni_never_writes_is_not_believed(text: str) -> None:
    async with arena() as made:
        volume(made, 0)
        volume(made, 1, led_since="2026-01-01T00:00:00Z")
        record(made, "-config", history=text, initialize="7")
        await runs(made, {"instances": 2})
        assert instances(made) == range(1, 2)


async def test_the_missing_volume_of_who_was_promoted_last_is_noticed() -> None:
    async with arena() as made:
        volume(made, 0)
        volume(made, 1)
        record(made, "-config", history=history("db-2"))
        key = await runs(made, {"instances": 3})
        assert list(made.server.all(STATEFUL_SET)) == []
        assert "data-db-2 is not there" in made.message(key, "Ready")
        # It is known to have led.
        assert "never was" not in made.message(key, "Ready")


async def test_a_volume_without_labels_is_one_of_the_instances() -> None:
    """A person makes it from a snapshot; the StatefulSet takes it by its name."""
    async with arena() as made:
        made.server.put(CLAIM, {
            "metadata": {"namespace": NAMESPACE, "name": "data-db-0"},
            "spec": {"resources": {"requests": {"storage": "10Gi"}}},
        })  # fmt: skip
        await runs(made, {"instances": 3})
        assert instances(made) == range(1)
        labels = made.server.get(CLAIM, NAMESPACE, "data-db-0")["metadata"]["labels"]
        assert labels["medianest.io/database"] == "db"


async def test_anothers_volumes_are_left_alone() -> None:
    """An application whose StatefulSet has the name of this database: its claims would go with the object."""
    async with arena() as made:
        labels = {"app": "other"}
        made.server.put(
            STATEFUL_SET, {"metadata": {"namespace": NAMESPACE, "name": "db", "labels": labels}, "spec": {}}
        )
        made.server.put(CLAIM, {
            "metadata": {"namespace": NAMESPACE, "name": "data-db-0", "labels": labels},
            "spec": {"resources": {"requests": {"storage": "10Gi"}}},
        })  # fmt: skip
        for _ in range(2):
            key = await runs(made, {"storage": {"onDelete": "Delete"}})
        assert made.conditions(key)["Ready"] == ("False", "NameTaken")
        claim = made.server.get(CLAIM, NAMESPACE, "data-db-0")["metadata"]
        assert (claim["labels"], claim.get("ownerReferences")) == (labels, None)


async def test_the_last_primarys_volume_is_found_without_its_labels() -> None:
    """Also where fewer instances are wanted now."""
    async with arena() as made:
        volume(made, 0)
        metadata = {"namespace": NAMESPACE, "name": "data-db-2"}
        made.server.put(CLAIM, {"metadata": metadata, "spec": {"resources": {"requests": {"storage": "10Gi"}}}})
        record(made, "-config", history=history("db-2"))
        await runs(made, {"instances": 1})
        assert instances(made) == range(2, 3)


async def test_a_log_without_its_data_is_named() -> None:
    async with arena() as made:
        metadata = {"namespace": NAMESPACE, "name": "wal-db-0", "labels": LABELS}
        made.server.put(CLAIM, {"metadata": metadata, "spec": {"resources": {"requests": {"storage": "10Gi"}}}})
        record(made, "-config", initialize="7")
        key = await runs(made, {"walStorage": {"size": "10Gi"}})
        assert list(made.server.all(STATEFUL_SET)) == []
        assert "delete wal-db-0, to begin empty" in made.message(key, "Ready")
        del made.server.objects[(CLAIM.plural, NAMESPACE, "wal-db-0")]
        await runs(made, {"walStorage": {"size": "10Gi"}})
        assert instances(made) == range(1)
        assert records(made) == []


@pytest.mark.parametrize(("others", "way_out"), [((), "delete data-db-0"), ((1,), "annotate pvc data-db-1")])
async def test_data_without_its_log_is_named(others: tuple[int, ...], way_out: str) -> None:
    async with arena() as made:
        volume(made, 0, led_since="2026-01-01T00:00:00Z")
        for ordinal in others:
            volume(made, ordinal)
        key = await runs(made, {"instances": 2, "walStorage": {"size": "10Gi"}})
        assert list(made.server.all(STATEFUL_SET)) == []
        assert "wal-db-0 is not there" in made.message(key, "Ready")
        assert way_out in made.message(key, "Ready")
        metadata = {"namespace": NAMESPACE, "name": "wal-db-0", "labels": LABELS}
        made.server.put(CLAIM, {"metadata": metadata, "spec": {"resources": {"requests": {"storage": "10Gi"}}}})
        await runs(made, {"instances": 2, "walStorage": {"size": "10Gi"}})
        assert instances(made) == range(1)


async def test_a_sleeping_database_whose_volumes_were_deleted_begins_empty() -> None:
    """Its servers would wait for the one that Patroni remembers."""
    async with arena() as made:
        volume(made, 0)
        await runs(made, {"instances": 2, "hibernate": True})
        record(made, "-config", initialize="7")
        del made.server.objects[(CLAIM.plural, NAMESPACE, "data-db-0")]
        await runs(made, {"instances": 2, "hibernate": True})
        assert records(made) == ["db-rw", "db-rw-config"]
        await runs(made, {"instances": 2})
        assert instances(made) == range(2)
        assert records(made) == []


def say(made: Arena, ordinal: int, position: int, state: str = "running") -> None:
    """Let Patroni of a replica tell how far its log goes."""
    found = made.server.get(POD, NAMESPACE, f"db-{ordinal}")
    member = {"role": "replica", "state": state, "xlog_location": position}
    found["metadata"]["annotations"]["status"] = json.dumps(member)
    found["metadata"]["labels"]["medianest.io/role"] = "replica"
    made.server.put(POD, found)


def without_leader_for_long(made: Arena) -> None:
    key = (NAMESPACE, "db")
    made.services.memory.forget(key)
    made.services.memory.keep(key, "without a leader", None, time.monotonic() - 100)


@pytest.mark.parametrize(("position", "wanted"), [(4000, range(2)), (5000, range(1))], ids=["lacks some", "has all"])
async def test_others_begin_too_where_the_first_is_not_elected(position: int, wanted: range) -> None:
    """Another has newer data than the notes say. Who has less than Patroni knows of isn't elected."""
    async with arena() as made:
        volume(made, 0, led_since="2026-01-01T00:00:00Z")
        volume(made, 1)
        await runs(made, {"instances": 1})
        pod(made, 0, "replica")
        say(made, 0, position)
        record(made, "", optime="5000")
        await made.run((NAMESPACE, "db"))
        assert instances(made) == range(1)
        without_leader_for_long(made)
        await made.run((NAMESPACE, "db"))
        assert instances(made) == wanted


async def test_an_outage_starts_no_old_volumes() -> None:
    """The only instance is down: what was scaled away long ago has nothing to give."""
    async with arena() as made:
        volume(made, 0, led_since="2026-01-01T00:00:00Z")
        volume(made, 1, left_behind="2026-01-01T00:00:00Z")
        await runs(made, {"instances": 1})
        record(made, "", leader="db-0", optime="5000")
        without_leader_for_long(made)
        await made.run((NAMESPACE, "db"))
        assert instances(made) == range(1)


async def test_a_little_lag_is_tolerated_where_the_last_primary_stays_away() -> None:
    """Asynchronous replication allows for it; before, who has everything leads, within seconds."""
    async with serving() as served:
        made = served.arena
        before = dict(served.configuration)
        wanted = made.make("db", {"instances": 2}, status=made.status(served.key))
        await made.run(wanted)
        say(made, 0, 4000)
        record(made, "", leader="db-1", optime="5000")
        await made.run(wanted)
        assert served.configuration["maximum_lag_on_failover"] == 0
        without_leader_for_long(made)
        await made.run(wanted)
        assert served.configuration["maximum_lag_on_failover"] == 1 << 20
        assert "LagTolerated" in {item["reason"] for item in made.events("Warning")}
        found = made.server.get(POD, NAMESPACE, "db-0")
        found["metadata"]["labels"]["medianest.io/role"] = "primary"
        found["metadata"]["annotations"]["status"] = json.dumps({"role": "primary", "state": "running"})
        made.server.put(POD, found)
        await made.run(wanted)
        assert served.configuration == before


async def test_a_pause_of_patronis_is_ended_where_nobody_leads() -> None:
    """`patronictl pause`, and then the database is hibernated and woken: Patroni starts no server."""
    async with serving() as served:
        made = served.arena
        served.configuration["pause"] = True
        record(made, "-config", config=json.dumps({"pause": True}))
        say(made, 0, 5000, state="stopped")
        without_leader_for_long(made)
        paused = made.make("db", {"paused": True}, status=made.status(served.key))
        await made.run(paused)
        assert served.configuration["pause"] is True
        await made.run(made.make("db", {}, status=made.status(served.key)))
        assert not served.configuration["pause"]
        (told,) = [item["message"] for item in made.events() if "patronictl" in item["message"]]
        assert "spec.paused" in told


@pytest.mark.parametrize(
    ("spec", "notes", "lock"),
    [
        ({"instances": 2, "postgresql": {"synchronous": "Required"}}, {}, "db-1"),
        ({"instances": 2}, {"left_behind": "2026-01-01T00:00:00Z"}, "db-1"),
        ({"instances": 2}, {}, "db-0"),
    ],
    ids=["synchronous", "old volume", "last primary is there"],
)
async def test_no_lag_is_tolerated_otherwise(spec: dict[str, Any], notes: dict[str, str], lock: str) -> None:
    async with serving() as served:
        made = served.arena
        wanted = made.make("db", spec, status=made.status(served.key))
        await made.run(wanted)
        say(made, 0, 4000)
        volume(made, 0, **notes)
        record(made, "", leader=lock, optime="5000")
        without_leader_for_long(made)
        await made.run(wanted)
        assert served.configuration["maximum_lag_on_failover"] == 0


async def test_an_election_that_nobody_can_win_is_explained() -> None:
    """For instance: a volume that somebody put back as it was yesterday."""
    async with serving() as served:
        made, key = served.arena, served.key
        volume(made, 0)
        say(made, 0, 4000)
        record(made, "", leader="db-0", optime="5000")
        without_leader_for_long(made)
        await made.run(key)
        assert made.conditions(key)["Stalled"] == ("True", "VolumeUnavailable")
        assert "db-0 lacks 1000 bytes" in made.message(key, "Stalled")
        assert "annotate pvc data-db-0 medianest.io/begin-with=true" in made.message(key, "Stalled")
        assert made.message(key, "Ready") == made.message(key, "Stalled")


async def test_hibernation_does_not_wait_for_the_pod_of_a_lost_node() -> None:
    async with arena() as made:
        await runs(made, {"instances": 2})
        for ordinal in range(2):
            volume(made, ordinal)
            pod(made, ordinal, "replica" if ordinal else "primary")
        end(made, 1)
        await runs(made, {"instances": 2, "hibernate": True})
        await runs(made, {"instances": 2, "hibernate": True})
        assert instances(made) == range(1)
        end(made, 1, at="2026-01-01T00:00:00Z")
        await runs(made, {"instances": 2, "hibernate": True})
        assert len(instances(made)) == 0


@pytest.mark.parametrize("change", [{"instances": 1}, {"instances": 2, "hibernate": True}], ids=["fewer", "asleep"])
async def test_a_switchover_that_a_person_asked_for_is_waited_for(change: dict[str, Any]) -> None:
    async with arena() as made:
        await runs(made, {"instances": 2})
        for ordinal in range(2):
            volume(made, ordinal)
            pod(made, ordinal, "replica" if ordinal else "primary")
        record(made, "-failover", leader="db-0", member="db-1")
        await runs(made, change)
        assert instances(made) == range(2)
        record(made, "-failover", leader="db-0", member="db-1", scheduled_at="2999-01-01T00:00:00+00:00")
        await runs(made, change)
        assert instances(made) == range(1)


async def test_a_switchover_that_nobody_can_make_keeps_nothing_awake() -> None:
    """Without a leader nobody takes the request away."""
    async with arena() as made:
        await runs(made, {"instances": 2})
        for ordinal in range(2):
            volume(made, ordinal)
            pod(made, ordinal, "replica")
        record(made, "-failover", leader="db-0", member="db-1")
        await runs(made, {"instances": 2, "hibernate": True})
        assert len(instances(made)) == 0


async def test_a_statefulset_that_lost_its_labels_is_still_this_ones() -> None:
    async with arena() as made:
        await runs(made, {"instances": 1})
        volume(made, 0)
        pod(made, 0, "primary")
        live = made.server.get(STATEFUL_SET, NAMESPACE, "db")
        uid = live["metadata"]["uid"]
        live["metadata"]["labels"] = {}
        made.server.put(STATEFUL_SET, live)
        made.services.cache.remove(STATEFUL_SET, live)
        key = await runs(made, {"instances": 1})
        found = made.server.get(STATEFUL_SET, NAMESPACE, "db")["metadata"]
        assert (found["uid"], found["labels"]["medianest.io/database"]) == (uid, "db")
        assert "earlier" not in made.message(key, "Ready")


async def test_a_handover_of_an_earlier_object_is_not_told_of() -> None:
    async with arena() as made:
        key = await runs(made, {"instances": 2})
        earlier = made.server.get(DATABASE, *key)["metadata"]["uid"]
        ended = asyncio.Event()

        async def hand_over() -> None:
            await ended.wait()

        made.services.handovers.start(key, earlier, Handover("db-0", "db-1"), hand_over)
        await runs(made, {"instances": 2})
        assert made.conditions(key)["Available"] == ("False", "SwitchingOver")
        del made.server.objects[(DATABASE.plural, *key)]
        await runs(made, {"instances": 2})
        assert made.server.get(DATABASE, *key)["metadata"]["uid"] != earlier
        assert made.conditions(key)["Available"] == ("False", "Creating")
        ended.set()


async def test_what_patroni_knows_is_kept_with_the_volumes() -> None:
    """Its Endpoints go with their Service; they say whose data the volumes hold, and who led last."""
    async with arena() as made:
        key = await runs(made, {"storage": {"onDelete": "Delete"}})
        uid = made.server.get(DATABASE, *key)["metadata"]["uid"]
        assert owners(made) == {"db-rw": [uid], "db-rw-config": [uid]}
        # Only synchronous replicas have to be named.
        await runs(made, {"postgresql": {"synchronous": "Preferred"}, "storage": {"onDelete": "Delete"}})
        assert owners(made) == {"db-rw": [uid], "db-rw-config": [uid], "db-rw-sync": [uid]}
        await runs(made, {"storage": {"onDelete": "Retain"}})
        assert owners(made) == {"db-rw": [], "db-rw-config": [], "db-rw-sync": [uid]}


def owners(made: Arena) -> dict[str, list[str]]:
    """Who owns the Services that hold Patroni's objects."""
    found = [item["metadata"] for item in made.server.all(SERVICE) if "-rw" in item["metadata"]["name"]]
    return {item["name"]: [owner["uid"] for owner in item.get("ownerReferences") or []] for item in found}


async def test_a_backup_of_an_earlier_object_is_not_told_of() -> None:
    async with arena() as made:
        key = made.make("db")
        labels = LABELS | {"app.kubernetes.io/component": "backup", "medianest.io/tier": "daily"}
        owner = {"kind": "CronJob", "name": "db-backup-daily", "uid": "earlier", "controller": True}
        status = {
            "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:00Z", "failed": 1,
            "conditions": [{"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"}],
        }  # fmt: skip
        metadata = {"namespace": NAMESPACE, "name": "db-backup-daily-1", "labels": labels, "ownerReferences": [owner]}
        made.server.put(JOB, {"metadata": metadata, "spec": {}, "status": status})
        await made.run(key)
        assert "BackupFailed" not in {reason for _, reason in made.conditions(key).values()}
        # This object's own is told of.
        (own, *_) = (item["metadata"] for item in made.server.all(CRON_JOB) if "daily" in item["metadata"]["name"])
        metadata["ownerReferences"] = [owner | {"name": own["name"], "uid": own["uid"]}]
        made.server.put(JOB, {"metadata": metadata, "spec": {}, "status": status})
        made.services.memory.forget(key)
        await made.run(key)
        assert "BackupFailed" in {reason for _, reason in made.conditions(key).values()}
