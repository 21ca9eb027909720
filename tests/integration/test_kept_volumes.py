"""In which order instances begin and stop, so that the newest data leads. What Patroni would do is played by hand."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from integration.loops import NAMESPACE, Arena, arena
from integration.serving import serving
from integration.volumes import LED, LEFT, instances, notes, pod, runs, stop, volume
from medianest_operator.kubernetes.kinds import CLAIM, DATABASE, POD, STATEFUL_SET
from medianest_operator.reconcile.instances.handovers import Handover


async def test_a_new_database_begins_with_all_its_instances() -> None:
    async with arena() as made:
        await runs(made, {"instances": 3})
        assert instances(made) == range(3)


@pytest.mark.parametrize("leader", [0, 1, 2])
async def test_hibernation_stops_the_primary_last_and_waking_begins_with_it(leader: int) -> None:
    async with arena() as made:
        await runs(made, {"instances": 3})
        for ordinal in range(3):
            volume(made, ordinal)
            pod(made, ordinal, "primary" if ordinal == leader else "replica")
        await runs(made, {"instances": 3})
        await runs(made, {"instances": 3, "hibernate": True})
        assert instances(made) == range(leader, leader + 1)
        others = [ordinal for ordinal in range(3) if ordinal != leader]
        stop(made, others[0])
        await runs(made, {"instances": 3, "hibernate": True})
        assert instances(made) == range(leader, leader + 1)
        stop(made, others[1])
        await runs(made, {"instances": 3, "hibernate": True})
        assert len(instances(made)) == 0
        stop(made, leader)
        await runs(made, {"instances": 3, "hibernate": True})
        await runs(made, {"instances": 3})
        assert instances(made) == range(leader, leader + 1)
        pod(made, leader, None)
        await runs(made, {"instances": 3})
        assert instances(made) == range(leader, leader + 1)
        # Until they follow, the others are known to be old.
        assert notes(made, LEFT) == [f"data-db-{ordinal}" for ordinal in others]


async def test_a_database_woken_with_fewer_instances_begins_with_its_last_primary() -> None:
    async with arena() as made:
        for ordinal, led in enumerate((None, None, "2026-01-01T00:00:00Z")):
            volume(made, ordinal, **({"led_since": led} if led else {}))
        await runs(made, {"instances": 1, "hibernate": True})
        await runs(made, {"instances": 1})
        assert instances(made) == range(2, 3)
        assert notes(made, LEFT) == ["data-db-0", "data-db-1"]


async def test_the_role_comes_to_an_instance_that_stays() -> None:
    """A database of one instance that is led by its third is given the others, down to which the role moves."""
    async with arena() as made:
        await runs(made, {"instances": 3})
        pod(made, 2, "primary")
        await runs(made, {"instances": 1})
        assert instances(made) == range(3)


async def test_kept_volumes_begin_with_the_one_that_led_last() -> None:
    async with arena() as made:
        volume(made, 0, left_behind="2026-01-02T00:00:00Z")
        volume(made, 1, led_since="2026-01-02T00:00:00Z")
        volume(made, 2, led_since="2026-01-01T00:00:00Z")
        await runs(made, {"instances": 3})
        assert instances(made) == range(1, 2)


async def test_volumes_of_an_earlier_version_begin_where_one_is_known_to_have_led() -> None:
    async with arena() as made:
        for ordinal in range(3):
            volume(made, ordinal)
        made.make("db", {"instances": 3}, status={"instances": {"lastPrimary": "db-1"}})
        await runs(made, {"instances": 3})
        assert instances(made) == range(1, 2)


async def test_instances_without_data_wait_for_those_with_data() -> None:
    """Beside them they could make an empty database first, and the application would write into that one."""
    async with arena() as made:
        volume(made, 0)
        await runs(made, {"instances": 3})
        assert instances(made) == range(1)
        await runs(made, {"instances": 3})
        assert instances(made) == range(1)
        pod(made, 0, "primary")
        await runs(made, {"instances": 3})
        assert instances(made) == range(3)


async def test_a_database_made_asleep_beside_a_kept_volume_wakes_with_it_alone() -> None:
    async with arena() as made:
        volume(made, 0)
        await runs(made, {"instances": 2, "hibernate": True})
        assert len(instances(made)) == 0
        await runs(made, {"instances": 2})
        assert instances(made) == range(1)


@pytest.mark.parametrize(
    ("kept", "status", "missing"),
    [
        ({1: {}}, {}, "data-db-0 is not there"),
        ({0: {}, 2: {}}, {"instances": {"lastPrimary": "db-1"}}, "data-db-1 is not there"),
        ({0: {"left_behind": "2026-01-01T00:00:00Z"}}, {}, "the volume of the instance that led last is not there"),
    ],
    ids=["first", "last primary", "left behind alone"],
)
async def test_nothing_begins_where_the_newest_data_is_missing(
    kept: dict[int, dict[str, str]], status: dict[str, Any], missing: str
) -> None:
    async with arena() as made:
        for ordinal, notes in kept.items():
            volume(made, ordinal, **notes)
        made.make("db", {"instances": 2}, status=status)
        key = await runs(made, {"instances": 2})
        assert list(made.server.all(STATEFUL_SET)) == []
        assert made.conditions(key)["Ready"] == ("False", "VolumeUnavailable")
        assert missing in made.message(key, "Ready")
        chosen = min(kept)
        assert f"annotate pvc data-db-{chosen} medianest.io/begin-with=true" in made.message(key, "Ready")
        # What it says helps.
        volume(made, chosen, **kept[chosen], begin_with="true")
        await runs(made, {"instances": 2})
        assert instances(made) == range(chosen, chosen + 1)


async def test_hibernation_waits_for_an_election() -> None:
    """Stopped between two primaries, nobody would know which has the newest data."""
    async with arena() as made:
        await runs(made, {"instances": 2})
        for ordinal in range(2):
            volume(made, ordinal)
            pod(made, ordinal, "replica")
        conditions = [{"type": "Available", "status": "False", "reason": "NoPrimary", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]  # fmt: skip  # noqa: E501
        made.make("db", {"instances": 2}, status={"conditions": conditions})
        key = made.make("db", {"instances": 2, "hibernate": True}, status={"conditions": conditions})
        await made.run(key)
        assert instances(made) == range(2)
        pod(made, 1, "primary")
        await made.run(key)
        assert instances(made) == range(1, 2)


async def test_hibernation_does_not_trust_the_label_of_a_lost_node() -> None:
    """Nobody takes the old primary's label away there; the new one has the newest data."""
    async with arena() as made:
        await runs(made, {"instances": 2})
        for ordinal in range(2):
            volume(made, ordinal)
            pod(made, ordinal, "primary")
        await made.run(made.make("db", {"instances": 2, "hibernate": True}, status={"schema": {"version": "1"}}))
        assert instances(made) == range(2)
        stop(made, 0)
        await made.run((NAMESPACE, "db"))
        assert instances(made) == range(1, 2)


async def test_what_runs_is_kept_while_nobody_leads() -> None:
    async with arena() as made:
        key = await runs(made, {"instances": 3})
        pod(made, 2, "primary")
        await runs(made, {"instances": 3})
        pod(made, 2, "replica")
        made.server.get(DATABASE, *key)["status"]["schema"] = {"version": "1"}
        await runs(made, {"instances": 1})
        assert instances(made) == range(3)


async def test_the_notes_follow_the_servers() -> None:
    """The primary's claim says since when it leads; that of an instance that was scaled away, that it is old."""
    async with serving() as served:
        made, key = served.arena, served.key
        volume(made, 0)
        volume(made, 1, led_since="2026-01-01T00:00:00Z")
        await made.run(key)
        assert notes(made, LED) == ["data-db-0"]
        assert notes(made, LEFT) == ["data-db-1"]
        before = len([call for call in made.server.calls if call.is_write and call.kind == CLAIM.plural])
        made.services.memory.forget(key)
        await made.run(key)
        assert len([call for call in made.server.calls if call.is_write and call.kind == CLAIM.plural]) == before


async def test_an_instance_that_was_left_behind_joins_once_nobody_old_can_be_elected() -> None:
    async with serving() as served:
        made, key = served.arena, served.key
        volume(made, 0)
        volume(made, 1)
        await made.run(key)
        wanted = made.make("db", {"instances": 2}, status=made.status(key))
        await made.run(wanted)
        assert instances(made) == range(1)
        assert served.configuration["maximum_lag_on_failover"] == 0
        # Nothing else happens: no object changes once Patroni has its setting.
        await made.run(wanted)
        await made.reconciler.reconcile(wanted)
        await asyncio.sleep(2)
        await made.reconciler.reconcile(wanted)
        assert instances(made) == range(2)


@pytest.mark.parametrize("change", [{"instances": 1}, {"instances": 2, "hibernate": True}], ids=["fewer", "asleep"])
async def test_nobody_is_taken_away_while_the_role_is_handed_over(change: dict[str, Any]) -> None:
    """The one that is about to lead would be stopped with what it has acknowledged by then."""
    async with arena() as made:
        key = await runs(made, {"instances": 2})
        for ordinal in range(2):
            volume(made, ordinal)
            pod(made, ordinal, "primary" if ordinal == 0 else "replica")
        handed = asyncio.Event()

        async def hand_over() -> None:
            await handed.wait()

        uid = made.server.get(DATABASE, *key)["metadata"]["uid"]
        made.services.handovers.start(key, uid, Handover("db-0", "db-1"), hand_over)
        await runs(made, change)
        assert instances(made) == range(2)
        handed.set()


async def test_what_begins_is_kept_until_it_is_known_who_was_initialized() -> None:
    """Another than the first may have won Patroni's race, and the others wait for it."""
    async with arena() as made:
        await runs(made, {"instances": 3})
        for ordinal in range(3):
            volume(made, ordinal)
            pod(made, ordinal, None)
        await runs(made, {"instances": 1})
        assert instances(made) == range(3)


@pytest.mark.parametrize("first", [{"left_behind": "2026-01-01T00:00:00Z"}, {}], ids=["older", "made again, empty"])
async def test_the_message_proposes_the_newest_of_the_old(first: dict[str, str]) -> None:
    async with arena() as made:
        volume(made, 0, **first)
        volume(made, 1, left_behind="2026-03-01T00:00:00Z")
        key = await runs(made, {"instances": 2})
        assert "annotate pvc data-db-1 " in made.message(key, "Ready")


@pytest.mark.parametrize("wanted", ["Preferred", "Off"])
async def test_what_commits_wait_for_can_be_taken_back(wanted: str) -> None:
    """It is what the runbook CommitsWait advises."""
    async with serving() as served:
        made = served.arena
        served.configuration |= {"synchronous_mode": True, "synchronous_mode_strict": True}
        served.postgres.maintenance.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        served.postgres.maintenance.execute("SELECT pg_reload_conf()")
        key = made.make("db", {"postgresql": {"synchronous": wanted}}, status=made.status(served.key))
        await made.run(key)
        assert made.conditions(key)["Available"] == ("False", "CommitsWait")
        assert served.configuration["synchronous_mode_strict"] is False


async def test_the_policy_reaches_every_volume_at_once() -> None:
    """Asleep, scaled away, or under a StatefulSet that somebody deletes: what is to stay has no owner to go with."""
    async with arena() as made:
        key = await runs(made, {"instances": 1, "hibernate": True, "storage": {"onDelete": "Delete"}})
        volume(made, 0)
        volume(made, 1)
        uid = made.server.get(DATABASE, *key)["metadata"]["uid"]
        await runs(made, {"instances": 1, "hibernate": True, "storage": {"onDelete": "Delete"}})
        assert owners(made) == {"data-db-0": [uid], "data-db-1": [uid]}
        await runs(made, {"instances": 1, "hibernate": True, "storage": {"onDelete": "Retain"}})
        assert owners(made) == {"data-db-0": [], "data-db-1": []}
        (live,) = made.server.all(STATEFUL_SET)
        assert live["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


async def test_a_paused_database_keeps_its_volumes_too() -> None:
    """Who pauses a database to keep it, and deletes the object, must not lose it."""
    async with arena() as made:
        await runs(made, {"storage": {"onDelete": "Delete"}})
        volume(made, 0)
        await runs(made, {"storage": {"onDelete": "Delete"}})
        assert owners(made)["data-db-0"] != []
        await runs(made, {"storage": {"onDelete": "Retain"}, "paused": True})
        assert owners(made)["data-db-0"] == []


async def test_volumes_that_go_with_an_earlier_object_are_not_taken_for_kept() -> None:
    async with arena() as made:
        volume(made, 0)
        claim = made.server.get(CLAIM, NAMESPACE, "data-db-0")
        claim["metadata"]["ownerReferences"] = [{"kind": "MediaNestDatabase", "name": "db", "uid": "earlier"}]
        key = await runs(made, {})
        assert list(made.server.all(STATEFUL_SET)) == []
        assert "data-db-0 of an earlier database of this name is still being deleted" in made.message(key, "Ready")


def owners(made: Arena) -> dict[str, list[str]]:
    claims = [item["metadata"] for item in made.server.all(CLAIM) if item["metadata"]["name"].startswith("data-")]
    return {claim["name"]: [item["uid"] for item in claim.get("ownerReferences") or []] for claim in claims}


async def test_what_cannot_be_compared_is_not_copied_over() -> None:
    """A server that starts for ever waits for a log of a history of its own: it may hold what the primary lacks."""
    async with serving() as served:
        made, key = served.arena, served.key
        volume(made, 0)
        volume(made, 1, left_behind="2026-01-01T00:00:00Z")
        pod(made, 1, "replica")
        live = made.server.get(POD, NAMESPACE, "db-1")
        live["metadata"]["annotations"]["status"] = json.dumps({"role": "replica", "state": "starting"})
        live["status"]["podIP"] = "127.0.0.254"
        made.server.put(POD, live)
        await made.run(key)
        assert made.conditions(key)["Ready"][1] != "Diverged"
        # Eleven minutes later.
        since = time.monotonic() - 660
        made.services.memory.keep(key, "behind db-1", (live["metadata"]["uid"], None), since)
        await made.run(key)
        assert made.conditions(key)["Ready"] == ("False", "Diverged")
        assert "patronictl reinit --force db-rw db-1" in made.message(key, "Ready")
        assert "CopyingAgain" not in [event["reason"] for event in made.events()]


async def test_what_the_api_server_adds_to_the_claim_templates_writes_nothing() -> None:
    """It gives them a kind, a mode and a status (apps/v1 StatefulSet)."""
    async with arena() as made:
        await runs(made, {"hibernate": True})
        (live,) = made.server.all(STATEFUL_SET)
        for template in live["spec"]["volumeClaimTemplates"]:
            template["spec"]["volumeMode"] = "Filesystem"
            template["status"] = {"phase": "Pending"}
        made.server.put(STATEFUL_SET, live)
        made.server.calls.clear()
        await runs(made, {"hibernate": True})
        assert not [call for call in made.server.calls if call.is_write and call.kind == STATEFUL_SET.plural]
