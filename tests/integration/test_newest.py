"""Which instance begins where several volumes are kept and Patroni's record is gone: what Jobs read on them decides."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from integration.loops import NAMESPACE, Arena, arena
from integration.volumes import LABELS, LEFT, instances, notes, record, runs, volume
from medianest_operator.kubernetes.kinds import ENDPOINTS, EVENT, JOB, POD, STATEFUL_SET

MINUTE = "2026-01-01T00:00:00Z"


def forgotten(made: Arena) -> None:
    """Patroni's record goes with its Services."""
    for item in list(made.server.all(ENDPOINTS)):
        del made.server.objects[(ENDPOINTS.plural, NAMESPACE, item["metadata"]["name"])]


def two_volumes(made: Arena) -> None:
    """The first is noted as the one that led last; there is no record."""
    volume(made, 0, led_since=MINUTE)
    volume(made, 1)
    forgotten(made)


def state(timeline: int, end: int, *promotions: int, **more: Any) -> dict[str, Any]:
    """As `medianest-dbctl read-volume` tells it."""
    ends = {number + 1: position for number, position in enumerate(promotions)}
    found = {"system_identifier": "7", "timeline": timeline, "ends_at": end, "promotions": ends, "written": MINUTE}
    return found | {"message": f"timeline {timeline}, log up to {end}"} | more


def jobs(made: Arena) -> dict[str, dict[str, Any]]:
    """The Jobs that read, by the claim that each mounts."""
    found = {}
    for job in made.server.all(JOB):
        volumes = job["spec"]["template"]["spec"]["volumes"]
        (claim,) = [item["persistentVolumeClaim"]["claimName"] for item in volumes if "persistentVolumeClaim" in item]
        found[claim] = job
    return found


def end(made: Arena, claim: str, message: str, kind: str = "Complete") -> None:
    """Let a Job's pod leave a termination message."""
    job = jobs(made)[claim]
    condition = {"type": kind, "status": "True", "lastTransitionTime": MINUTE, "message": "Job has failed"}
    made.server.put(JOB, job | {"status": {"conditions": [condition]}})
    metadata = {
        "namespace": NAMESPACE, "name": f"read-{claim}", "labels": LABELS | {"app.kubernetes.io/component": "volume"},
        "ownerReferences": [{"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}],
    }  # fmt: skip
    terminated = {"exitCode": 0, "finishedAt": MINUTE, "message": message}
    status = {"phase": "Succeeded", "containerStatuses": [{"name": "read-volume", "state": {"terminated": terminated}}]}
    made.server.put(POD, {"metadata": metadata, "spec": {"containers": [{"image": "image"}]}, "status": status})


async def read(made: Arena, states: dict[int, dict[str, Any]], spec: dict[str, Any] | None = None) -> str:
    """Let all volumes be read. Returns what Ready says then."""
    wanted = spec or {"instances": len(states)}
    await runs(made, wanted)
    assert set(jobs(made)) == {f"data-db-{ordinal}" for ordinal in states}
    assert list(made.server.all(STATEFUL_SET)) == []
    for ordinal, found in states.items():
        end(made, f"data-db-{ordinal}", json.dumps(found))
    return made.message(await runs(made, wanted), "Ready")


@pytest.mark.parametrize(
    ("states", "leader"),
    [
        ([state(1, 100), state(1, 90)], 0),
        ([state(1, 90), state(1, 100)], 1),
        ([state(1, 100), state(2, 120, 100)], 1),
        ([state(2, 120, 100), state(2, 150, 100), state(3, 160, 100, 150)], 2),
        ([state(2, 120, 100), state(1, 80), state(1, 100)], 0),
        ([{"is_empty": True}, state(1, 80)], 1),
        # As much as each other: who is noted.
        ([state(1, 100), state(1, 100)], 0),
        ([{"is_empty": True}, {"is_empty": True}], 0),
    ],
)
async def test_the_volume_that_continues_all_others_leads(states: list[dict[str, Any]], leader: int) -> None:
    """The note is of a promotion before."""
    async with arena() as made:
        for ordinal in range(len(states)):
            volume(made, ordinal, **({"led_since": MINUTE} if ordinal == 0 else {}))
        forgotten(made)
        await read(made, dict(enumerate(states)))
        assert instances(made) == range(leader, leader + 1)
        assert notes(made, LEFT) == [f"data-db-{ordinal}" for ordinal in range(len(states)) if ordinal != leader]
        # What was read is true until it begins.
        assert jobs(made) == {}


@pytest.mark.parametrize(
    "states",
    [
        [state(1, 110), state(2, 120, 100)],
        [state(2, 120, 100), state(2, 150, 90)],
        [state(1, 100), state(1, 90, system_identifier="8")],
        [state(3, 300, 100, 200), state(2, 250, 100)],
    ],
    ids=["written beside a promotion", "promoted twice", "another cluster", "written beside a second promotion"],
)
async def test_volumes_that_went_apart_wait_for_a_person(states: list[dict[str, Any]]) -> None:
    async with arena() as made:
        two_volumes(made)
        message = await read(made, dict(enumerate(states)))
        assert list(made.server.all(STATEFUL_SET)) == []
        assert made.conditions((NAMESPACE, "db"))["Ready"] == ("False", "Diverged")
        assert f"data-db-0: {states[0]['message']}; data-db-1: {states[1]['message']}" in message
        assert "annotate pvc data-db-" in message
        volume(made, 1, begin_with="true")
        await runs(made, {"instances": 2})
        assert instances(made) == range(1, 2)
        assert jobs(made) == {}


@pytest.mark.parametrize(("kept", "missing"), [((1, 2), 0), ((0, 2), 1), ((0, 1), 2)])
async def test_where_one_of_several_is_missing_the_others_are_not_enough(kept: tuple[int, ...], missing: int) -> None:
    """It may have led last: the notes on the others are of before."""
    async with arena() as made:
        for ordinal in kept:
            volume(made, ordinal, **({"led_since": MINUTE} if ordinal == kept[0] else {}))
        forgotten(made)
        key = await runs(made, {"instances": 3})
        assert (jobs(made), list(made.server.all(STATEFUL_SET))) == ({}, [])
        assert made.conditions(key)["Ready"] == ("False", "VolumeUnavailable")
        assert f"data-db-{missing} is not there" in made.message(key, "Ready")
        # What it says helps.
        volume(made, kept[1], begin_with="true")
        await runs(made, {"instances": 3})
        assert instances(made) == range(kept[1], kept[1] + 1)


async def test_the_volume_that_is_offered_is_the_one_that_led_last() -> None:
    """More instances were asked for than there ever were: none of the words leads to an older volume."""
    async with arena() as made:
        volume(made, 0, left_behind="2026-01-01T00:00:05Z")
        volume(made, 1, led_since="2026-01-01T00:00:09Z")
        forgotten(made)
        key = await runs(made, {"instances": 3})
        said = made.message(key, "Ready")
        assert "annotate pvc data-db-1 medianest.io/begin-with=true" in said
        assert "data-db-0" not in said
        assert "where it never was, set spec.instances to 2" in said
        await runs(made, {"instances": 2})
        assert jobs(made).keys() == {"data-db-0", "data-db-1"}


async def test_a_database_that_has_served_says_that_its_volumes_went_apart() -> None:
    """Not that its only instance has to come back."""
    async with arena() as made:
        two_volumes(made)
        key = await runs(made, {"instances": 2, "hibernate": True})
        del made.server.objects[(STATEFUL_SET.plural, NAMESPACE, "db")]
        await read(made, {0: state(1, 110), 1: state(2, 120, 100)})
        assert made.conditions(key)["Ready"] == ("False", "Diverged")
        assert made.conditions(key)["Available"] == ("False", "NoPrimary")
        assert "only instance" not in made.message(key, "Available")


async def test_what_a_person_gave_up_is_not_read() -> None:
    """It may be further than the one that was chosen."""
    async with arena() as made:
        volume(made, 0, led_since=MINUTE)
        volume(made, 1, left_behind=MINUTE, copy_again=MINUTE)
        volume(made, 2)
        forgotten(made)
        await read(made, {0: state(1, 100), 2: state(1, 100)}, {"instances": 3})
        assert instances(made) == range(1)


@pytest.mark.parametrize(
    ("message", "kind", "why"),
    [
        (json.dumps({"message": "/pgdata/pgdata can't be read: pg_waldump: oh"}), "Failed", "pg_waldump: oh"),
        ("Error: No such command 'read-volume'.", "Failed", "No such command"),
        ("", "Failed", "Job has failed"),
        ("[1]", "Complete", "Job has failed"),
        (json.dumps({"timeline": -1}), "Complete", "Job has failed"),
    ],
)
async def test_a_volume_that_cannot_be_read_is_named(message: str, kind: str, why: str) -> None:
    async with arena() as made:
        two_volumes(made)
        await runs(made, {"instances": 2})
        end(made, "data-db-0", json.dumps(state(1, 100)))
        end(made, "data-db-1", message, kind)
        key = await runs(made, {"instances": 2})
        assert list(made.server.all(STATEFUL_SET)) == []
        assert made.conditions(key)["Ready"] == ("False", "VolumeUnavailable")
        said = made.message(key, "Ready")
        assert "data-db-1 may have what was written last" in said
        assert why in said
        assert "annotate pvc data-db-0 medianest.io/begin-with=true" in said
        # As the message says: read again.
        failed = jobs(made)["data-db-1"]["metadata"]["name"]
        assert f"delete Job {failed}" in said
        del made.server.objects[(JOB.plural, NAMESPACE, failed)]
        await runs(made, {"instances": 2})
        end(made, "data-db-1", json.dumps(state(2, 120, 100)))
        await runs(made, {"instances": 2})
        assert instances(made) == range(1, 2)


async def test_it_says_that_it_reads() -> None:
    """Also where a container is done, and neither its pod nor its Job knows yet."""
    async with arena() as made:
        two_volumes(made)
        key = await runs(made, {"instances": 2})
        end(made, "data-db-0", json.dumps(state(1, 100)))
        end(made, "data-db-1", json.dumps(state(1, 100)))
        made.server.put(JOB, jobs(made)["data-db-1"] | {"status": {"active": 1}})
        pod = made.server.get(POD, NAMESPACE, "read-data-db-1")
        made.server.put(POD, pod | {"status": pod["status"] | {"phase": "Running"}})
        await runs(made, {"instances": 2})
        assert "Reading volume data-db-1: nothing says which" in made.message(key, "Ready")
        assert made.conditions(key)["Ready"][0] == "False"
        assert made.conditions(key)["Reconciling"][0] == "True"
        assert "Stalled" not in made.conditions(key)


@pytest.mark.parametrize("kept", [1, 2])
async def test_nothing_is_read_where_it_is_known_or_there_is_one(kept: int) -> None:
    async with arena() as made:
        for ordinal in range(kept):
            volume(made, ordinal, **({"led_since": MINUTE} if ordinal == 0 else {}))
        if kept == 1:
            forgotten(made)
        await runs(made, {"instances": 2})
        assert instances(made) == range(1)
        assert jobs(made) == {}


@pytest.mark.parametrize("part", ["", "-config"])
async def test_a_record_that_a_pod_made_again_says_nothing(part: str) -> None:
    """One that is still ending writes whose data it has, or takes the lock; it doesn't know the history any more."""
    async with arena() as made:
        two_volumes(made)
        metadata = {
            "namespace": NAMESPACE,
            "name": f"db-rw{part}",
            "labels": LABELS,
            "annotations": {"initialize": "7"},
        }
        made.server.put(ENDPOINTS, {"metadata": metadata})
        await read(made, {0: state(1, 100), 1: state(2, 120, 100)})
        assert instances(made) == range(1, 2)


@pytest.mark.parametrize("before", ["led before", "new"])
async def test_nobody_is_elected_without_a_record(before: str) -> None:
    """The pods and Patroni's objects are deleted by hand; the StatefulSet makes the pods again. Nobody is kept from
    making a new database."""
    async with arena() as made:
        volume(made, 0)
        volume(made, 1)
        await runs(made, {"instances": 2})
        (live,) = made.server.all(STATEFUL_SET)
        live["spec"] = live["spec"] | {"replicas": 2}
        made.server.put(STATEFUL_SET, live)
        if before == "led before":
            volume(made, 1, led_since=MINUTE)
        forgotten(made)
        await runs(made, {"instances": 2})
        assert len(instances(made)) == (0 if before == "led before" else 2)


async def test_a_missing_volume_that_led_last_is_not_forgotten() -> None:
    """The others can be read, but what they lack nobody knows."""
    async with arena() as made:
        volume(made, 0)
        volume(made, 1)
        made.make("db", {"instances": 3}, status={"instances": {"lastPrimary": "db-2"}})
        forgotten(made)
        key = await runs(made, {"instances": 3})
        assert "data-db-2 is not there" in made.message(key, "Ready")
        assert jobs(made) == {}


async def test_the_log_is_read_from_its_own_volume() -> None:
    async with arena() as made:
        two_volumes(made)
        await runs(made, {"instances": 2, "walStorage": {"size": "1Gi"}})
        mounted = []
        for job in made.server.all(JOB):
            pod = job["spec"]["template"]["spec"]
            mounted.append([item["persistentVolumeClaim"]["claimName"] for item in pod["volumes"][1:]])
            mounts = {item["mountPath"]: item.get("readOnly") for item in pod["containers"][0]["volumeMounts"]}
            assert mounts == {"/tmp": None, "/pgdata": True, "/pgwal": True}
            assert pod["automountServiceAccountToken"] is False
        assert sorted(mounted) == [["data-db-0", "wal-db-0"], ["data-db-1", "wal-db-1"]]


async def test_a_lock_that_an_ending_pod_made_again_is_believed_where_all_have_as_much() -> None:
    async with arena() as made:
        two_volumes(made)
        record(made, "", leader="db-1")
        await read(made, {0: state(1, 100), 1: state(1, 100)})
        assert instances(made) == range(1, 2)


async def test_a_quota_that_lets_no_job_run_is_told() -> None:
    async with arena() as made:
        two_volumes(made)
        key = await runs(made, {"instances": 2})
        job = jobs(made)["data-db-1"]
        # Not one that was made a moment ago.
        made.server.get(JOB, NAMESPACE, job["metadata"]["name"])["metadata"]["creationTimestamp"] = MINUTE
        made.server.put(JOB, job)
        event = {
            "metadata": {"namespace": NAMESPACE, "name": "refused", "creationTimestamp": MINUTE},
            "involvedObject": {"uid": job["metadata"]["uid"]}, "type": "Warning", "reason": "FailedCreate",
            "message": "Error creating: pods is forbidden: exceeded quota: tiny, requested: pods=1",
        }  # fmt: skip
        made.server.put(EVENT, event)
        await runs(made, {"instances": 2})
        said = made.message(key, "Ready")
        assert f"Job {job['metadata']['name']} can't create its pods" in said
        assert "exceeded quota: tiny" in said


@pytest.mark.parametrize(("seconds", "said"), [(20, "Reading volume"), (120, "can't be read")])
async def test_an_error_that_passes_offers_no_other_volume(seconds: int, said: str) -> None:
    """The kubelet may ask before the API server knows that the pod is on its node; it asks again."""
    async with arena() as made:
        two_volumes(made)
        await runs(made, {"instances": 2})
        end(made, "data-db-0", json.dumps(state(1, 100)))
        scheduled = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
        job = jobs(made)["data-db-1"]["metadata"]
        metadata = {
            "namespace": NAMESPACE, "name": "read", "uid": "u-read",
            "labels": LABELS | {"app.kubernetes.io/component": "volume"},
            "ownerReferences": [{"kind": "Job", "name": job["name"], "uid": job["uid"]}],
        }  # fmt: skip
        status = {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": scheduled}],
            "containerStatuses": [{"name": "read-volume", "state": {"waiting": {"reason": "ContainerCreating"}}}],
        }
        made.server.put(POD, {"metadata": metadata, "spec": {"containers": [{"image": "image"}]}, "status": status})
        event = {
            "metadata": {"namespace": NAMESPACE, "name": "e", "creationTimestamp": MINUTE},
            "involvedObject": {"uid": "u-read"}, "type": "Warning", "reason": "FailedMount",
            "message": 'persistentvolumeclaims "data-db-1" is forbidden: User "system:node:node1" cannot get resource'
            ": no relationship found between node 'node1' and this object",
        }  # fmt: skip
        made.server.put(EVENT, event)
        key = await runs(made, {"instances": 2})
        assert said in made.message(key, "Ready")
        assert ("begin-with" in made.message(key, "Ready")) is (seconds > 60)
