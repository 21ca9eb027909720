"""A database of a name that there was before: what Patroni knew of the earlier one must not be taken for its own."""

from __future__ import annotations

from typing import Any

import pytest

from integration.loops import IMAGE, NAMESPACE, Arena, arena
from medianest_operator.kubernetes.kinds import CLAIM, DATABASE, ENDPOINTS, POD, STATEFUL_SET, Kind

LABELS = {
    "app.kubernetes.io/managed-by": "medianest-operator",
    "app.kubernetes.io/component": "postgres",
    "medianest.io/database": "db",
    "medianest.io/patroni-scope": "db-rw",
}
SPEC = {"resources": {"requests": {"storage": "10Gi"}}, "containers": [{"name": "postgres", "image": "old"}]}
OF_PATRONI = ("db-rw", "db-rw-config", "db-rw-sync", "db-rw-failover")


def left(made: Arena, kind: Kind, name: str, **metadata: Any) -> None:
    described = {"namespace": NAMESPACE, "name": name, "labels": LABELS} | metadata
    made.server.put(kind, {"metadata": described, "spec": SPEC})


def names(made: Arena, kind: Kind) -> list[str]:
    return sorted(item["metadata"]["name"] for item in made.server.all(kind))


async def test_a_leader_of_an_earlier_database_is_forgotten() -> None:
    async with arena() as made:
        for name in OF_PATRONI:
            left(made, ENDPOINTS, name, annotations={"leader": "db-0"})
        left(made, ENDPOINTS, "other-rw", labels=LABELS | {"medianest.io/patroni-scope": "other-rw"})
        await made.run(made.make("db"))
        assert names(made, ENDPOINTS) == ["other-rw"]
        assert names(made, STATEFUL_SET) == ["db"]


async def test_an_earlier_objects_statefulset_is_waited_for() -> None:
    """Else its pods, and their word that all is well, would be taken for the new object's."""
    async with arena() as made:
        owner = {"kind": "MediaNestDatabase", "name": "db", "uid": "earlier", "controller": True}
        left(made, STATEFUL_SET, "db", ownerReferences=[owner])
        old = made.server.get(STATEFUL_SET, NAMESPACE, "db")["metadata"]["uid"]
        of_set = {"kind": "StatefulSet", "name": "db", "uid": old, "controller": True}
        left(made, POD, "db-0", ownerReferences=[of_set], labels=LABELS | {"medianest.io/role": "primary"})
        key = made.make("db")
        await made.run(key)
        assert made.conditions(key)["Ready"] == ("False", "Creating")
        assert made.conditions(key)["Available"] == ("False", "Creating")
        assert "StatefulSet db of an earlier database" in made.message(key, "Ready")
        assert made.status(key)["instances"].get("members") in (None, [])
        del made.server.objects[(STATEFUL_SET.plural, NAMESPACE, "db")]
        made.services.memory.forget(key)
        await made.run(key)
        assert names(made, STATEFUL_SET) == []
        assert "Pod db-0" in made.message(key, "Ready")
        del made.server.objects[(POD.plural, NAMESPACE, "db-0")]
        made.services.memory.forget(key)
        await made.run(key)
        assert made.server.get(STATEFUL_SET, NAMESPACE, "db")["metadata"]["uid"] != old


async def test_a_run_for_an_earlier_object_tells_the_new_one_nothing() -> None:
    """`kubectl delete` and `apply` in the midst of a run: what is gone says nothing of what is there now."""
    async with arena() as made:
        key = made.make("db")
        await made.observe()
        del made.server.objects[(DATABASE.plural, *key)]
        made.make("db")
        await made.reconciler.reconcile(key)
        assert made.status(key) == {}
        await made.run(key)
        assert made.conditions(key)["Ready"] == ("False", "Creating")


async def test_an_object_that_was_edited_in_the_midst_of_a_run_gets_its_status() -> None:
    async with arena() as made:
        key = made.make("db")
        await made.observe()
        made.make("db", annotations={"edited": "meanwhile"})
        await made.reconciler.reconcile(key)
        assert made.conditions(key)["Ready"] == ("False", "Creating")


async def test_what_patroni_knows_of_a_kept_volume_stays() -> None:
    """Its object says which instance has the newest data."""
    async with arena() as made:
        for name in OF_PATRONI:
            left(made, ENDPOINTS, name)
        left(made, CLAIM, "data-db-0")
        await made.run(made.make("db"))
        assert names(made, ENDPOINTS) == sorted(OF_PATRONI)
        assert names(made, STATEFUL_SET) == ["db"]


@pytest.mark.parametrize(("kind", "name"), [(POD, "db-2"), (CLAIM, "data-db-0")])
async def test_the_first_instance_waits_for_the_end_of_an_earlier_database(kind: Kind, name: str) -> None:
    async with arena() as made:
        left(made, ENDPOINTS, "db-rw", annotations={"leader": "db-0"})
        left(made, kind, name, deletionTimestamp="2026-01-01T00:00:00Z")
        key = made.make("db")
        await made.run(key)
        assert names(made, STATEFUL_SET) == []
        assert made.conditions(key)["Ready"] == ("False", "Creating")
        assert name in made.message(key, "Ready")
        # Whatever still runs there may write once more.
        left(made, ENDPOINTS, "db-rw-config")
        del made.server.objects[(kind.plural, NAMESPACE, name)]
        made.services.memory.forget(key)
        await made.run(key)
        assert names(made, ENDPOINTS) == []
        (stateful_set,) = made.server.all(STATEFUL_SET)
        assert stateful_set["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE


async def test_the_objects_of_a_running_database_are_left_alone() -> None:
    async with arena() as made:
        key = made.make("db")
        await made.run(key)
        left(made, ENDPOINTS, "db-rw", annotations={"leader": "db-0"})
        made.services.memory.forget(key)
        await made.run(key)
        assert names(made, ENDPOINTS) == ["db-rw"]
