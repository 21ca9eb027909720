"""Volumes, pods and the StatefulSet of a database at the test's API server, as the kubelet and Patroni leave them."""

from __future__ import annotations

import json
from typing import Any

from integration.loops import IMAGE, NAMESPACE, Arena
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.kubernetes.kinds import CLAIM, DATABASE, ENDPOINTS, POD, STATEFUL_SET
from medianest_operator.naming import Key, Names
from medianest_operator.resources.statefulset import PodInputs

LABELS = {
    "app.kubernetes.io/managed-by": "medianest-operator",
    "app.kubernetes.io/component": "postgres",
    "medianest.io/database": "db",
    "medianest.io/patroni-scope": "db-rw",
}
LED, LEFT = "medianest.io/led-since", "medianest.io/left-behind"


def volume(made: Arena, ordinal: int, **annotations: str) -> None:
    """The volume of an instance, of a database that Patroni knows."""
    known = {item["metadata"]["name"] for item in made.server.all(ENDPOINTS)}
    for suffix in ("", "-config"):
        if f"db-rw{suffix}" not in known:
            record(made, suffix)
    named = {key.replace("_", "-"): value for key, value in annotations.items()}
    metadata = {
        "namespace": NAMESPACE, "name": f"data-db-{ordinal}", "labels": LABELS,
        "annotations": {f"medianest.io/{key}": value for key, value in named.items()},
    }  # fmt: skip
    spec = {"resources": {"requests": {"storage": "10Gi"}}}
    made.server.put(CLAIM, {"metadata": metadata, "spec": spec})


def record(made: Arena, suffix: str, **annotations: str) -> None:
    """One of Patroni's objects, with what is always in it."""
    kept = {"": {"optime": "0"}, "-config": {"initialize": "7", "config": "{}"}}.get(suffix, {})
    metadata = {"namespace": NAMESPACE, "name": f"db-rw{suffix}", "labels": LABELS, "annotations": kept | annotations}
    made.server.put(ENDPOINTS, {"metadata": metadata})


def records(made: Arena) -> list[str]:
    return sorted(item["metadata"]["name"] for item in made.server.all(ENDPOINTS))


def history(*promoted: str) -> str:
    """Patroni's list of promotions (patroni.ha, `update_cluster_history`)."""
    lines = [[n + 1, 1000 * n, "no recovery target specified", "", name] for n, name in enumerate(promoted)]
    return json.dumps(lines)


def pod(made: Arena, ordinal: int, role: str | None) -> None:
    """A running pod of the StatefulSet, as Patroni labels it."""
    (owner,) = made.server.all(STATEFUL_SET)
    reference = {"kind": "StatefulSet", "name": "db", "uid": owner["metadata"]["uid"], "controller": True}
    member = json.dumps({"role": role, "state": "running"}) if role else "{}"
    inputs = PodInputs.of(Names(NAMESPACE, "db"), DatabaseSpec(), IMAGE)
    metadata = {
        "namespace": NAMESPACE, "name": f"db-{ordinal}", "ownerReferences": [reference],
        "labels": LABELS | ({"medianest.io/role": role} if role else {}),
        "annotations": {"status": member, "medianest.io/pod-inputs": inputs.digest},
    }  # fmt: skip
    status = {
        "podIP": "127.0.0.1", "phase": "Running",
        "containerStatuses": [{"name": "postgres", "state": {"running": {}}}],
    }  # fmt: skip
    containers = [{"name": "postgres", "image": "image"}]
    made.server.put(POD, {"metadata": metadata, "spec": {"containers": containers}, "status": status})


def stop(made: Arena, ordinal: int) -> None:
    del made.server.objects[(POD.plural, NAMESPACE, f"db-{ordinal}")]


def instances(made: Arena) -> range:
    """The ordinals that the StatefulSet at the server asks for."""
    (live,) = made.server.all(STATEFUL_SET)
    start = live["spec"].get("ordinals", {}).get("start", 0)
    return range(start, start + live["spec"]["replicas"])


async def runs(made: Arena, spec: dict[str, Any]) -> Key:
    """One run for a database with such a spec; the other objects and the status stay as they are."""
    known = made.server.objects.get((DATABASE.plural, NAMESPACE, "db"), {})
    key = made.make("db", spec, **({"status": known["status"]} if "status" in known else {}))
    made.services.memory.forget(key)
    await made.run(key)
    return key


def notes(made: Arena, name: str) -> list[str]:
    """The data volumes that carry a note."""
    found = [item["metadata"] for item in made.server.all(CLAIM)]
    return sorted(claim["name"] for claim in found if (claim.get("annotations") or {}).get(name))
