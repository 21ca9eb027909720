"""What a person reads where a volume can't be as the spec wants it, from the reconciler on an API server."""

from __future__ import annotations

from apiserver import Call, Fault
from integration.loops import NAMESPACE, arena
from medianest_operator import naming
from medianest_operator.kubernetes.kinds import CLAIM, DATABASE
from medianest_operator.naming import Names

_FORBIDDEN = "only dynamically provisioned pvc can be resized and the storageclass must support resize"


def _resize(call: Call) -> Fault | None:
    """The refusal of a storage class that doesn't expand its volumes."""
    resizes = call.kind == CLAIM.plural and call.method == "PATCH" and call.name == "data-db-0"
    return Fault(403, _FORBIDDEN, "Forbidden") if resizes else None


async def test_a_volume_of_a_class_that_cant_grow_is_told_with_the_field() -> None:
    async with arena() as made:
        key = made.make(spec={"storage": {"size": "10Gi"}})
        await made.run(key)
        labels = Names(NAMESPACE, "db").labels(naming.COMPONENT_POSTGRES)
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": NAMESPACE, "name": "data-db-0", "labels": labels},
            "spec": {"resources": {"requests": {"storage": "10Gi"}}},
        }
        made.server.put(CLAIM, claim)
        database = made.server.get(DATABASE, *key)
        made.server.put(DATABASE, database | {"spec": {"storage": {"size": "20Gi"}}})
        made.server.fault = _resize
        await made.run(key)
        assert made.conditions(key)["Ready"] == ("False", "VolumeCannotGrow")
        said = made.message(key, "Ready")
        assert "storage.size: volume data-db-0 can't grow to 20Gi" in said
        assert "allowVolumeExpansion" in said


async def test_a_volume_that_nobody_uses_holds_up_nothing() -> None:
    """One of an instance that was scaled away, and one of backups, grow when they are mounted next."""
    async with arena() as made:
        key = made.make(spec={"storage": {"size": "20Gi"}})
        await made.run(key)
        labels = Names(NAMESPACE, "db").labels()
        for name, requested in (("data-db-0", "20Gi"), ("data-db-1", "10Gi"), ("db-backup-volume", "20Gi")):
            claim = {
                "metadata": {"namespace": NAMESPACE, "name": name, "labels": labels},
                "spec": {"resources": {"requests": {"storage": requested}}},
                "status": {"capacity": {"storage": "20Gi" if name == "data-db-0" else "10Gi"}},
            }
            made.server.put(CLAIM, claim)
        await made.run(key)
        assert made.conditions(key)["Ready"] == ("False", "Creating")
        assert made.server.get(CLAIM, NAMESPACE, "data-db-1")["spec"]["resources"]["requests"]["storage"] == "10Gi"
