"""Volumes that are older than others: whatever stops and begins in which order, the newest data leads."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from e2e.kube import KIND, Kube, condition_of
from soaking import rounds

KEPT = {"size": "1Gi", "onDelete": "Retain"}


class Ledger:
    """Rows that were acknowledged, against the rows that are there."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._written = 0
        kube.sql(kube.primary("db"), "SET ROLE medianest; CREATE TABLE ledger (n int PRIMARY KEY)")

    def write(self) -> None:
        """A single row: as little as an old volume can lack, which Patroni's own limit (1 MiB) lets pass."""
        self._kube.sql(self._kube.primary("db"), f"INSERT INTO ledger VALUES ({self._written + 1})")
        self._written += 1

    def missing(self) -> set[int]:
        """Those of the acknowledged rows that the primary doesn't have, once there is one that answers."""
        deadline = time.monotonic() + 120
        while True:
            try:
                rows = self._kube.sql(self._kube.primary("db"), "SELECT n FROM ledger")
            except (KeyError, RuntimeError):
                # A primary that was killed a moment ago still stands in the status.
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
                continue
            return set(range(1, self._written + 1)) - {int(row) for row in rows.split()}


def _lead(kube: Kube, ordinal: int) -> None:
    """Hand the primary's role to an instance."""
    leader = kube.primary("db")
    if leader == f"db-{ordinal}":
        return
    command = ["patronictl", "switchover", "--leader", leader, "--candidate", f"db-{ordinal}", "--force"]
    kube.kubectl("exec", leader, "-c", "postgres", "--", *command)
    kube.wait(KIND, "db", lambda found: found is not None and _leads(found, ordinal), f"led by db-{ordinal}")
    kube.wait_ready("db")


def _leads(found: dict[str, Any], ordinal: int) -> bool:
    return bool(found["status"]["instances"].get("primary") == f"db-{ordinal}")


def _is_another(pod: dict[str, Any] | None, before: dict[str, Any]) -> bool:
    """Whether there is a pod of this name again, and the kubelet calls it ready."""
    made_again = pod is not None and pod["metadata"]["uid"] != before["metadata"]["uid"]
    return made_again and condition_of(pod, "Ready").get("status") == "True"


def _hibernate(kube: Kube) -> None:
    kube.patch("db", {"hibernate": True})
    kube.wait_condition("db", "Ready", "False", "Hibernated")


def _old_by_scaling(kube: Kube, ledger: Ledger) -> None:
    """Two instances sleep through a write, and the primary is killed as soon as they are back."""
    kube.patch("db", {"instances": 1})
    kube.wait_ready("db")
    ledger.write()
    kube.patch("db", {"instances": 3})
    kube.wait(KIND, "db", lambda found: found is not None and found["status"]["replicas"] > 1, "growing")
    primary = kube.primary("db")
    killed = kube.get("Pod", primary) or {}
    kube.kubectl("delete", "pod", primary, "--grace-period=0", "--force")
    kube.wait("Pod", primary, lambda pod: _is_another(pod, killed), "back")


def _old_by_hibernation(kube: Kube, ledger: Ledger) -> None:
    """The last instance leads when all stop, and only the first is wanted afterwards."""
    _lead(kube, 2)
    ledger.write()
    _hibernate(kube)
    kube.patch("db", {"hibernate": False, "instances": 1})


def _old_twice(kube: Kube, ledger: Ledger) -> None:
    """An instance that was scaled away wakes together with the one that went on."""
    kube.patch("db", {"instances": 1})
    kube.wait_ready("db")
    ledger.write()
    _hibernate(kube)
    kube.patch("db", {"hibernate": False, "instances": 3})


def _old_by_deletion(kube: Kube, ledger: Ledger) -> None:
    """What Patroni knew goes with the object; the volumes stay."""
    _lead(kube, 1)
    ledger.write()
    kube.kubectl("delete", "mndb", "db", "--timeout=60s")
    kube.database("db", instances=3, storage=KEPT)


WAYS: list[Callable[[Kube, Ledger], None]] = [_old_by_scaling, _old_by_hibernation, _old_twice, _old_by_deletion]


def test_the_newest_data_leads_again(kube: Kube) -> None:
    kube.database("db", instances=3, storage=KEPT)
    kube.wait_ready("db")
    ledger = Ledger(kube)
    chosen = WAYS * rounds(1, 10)
    random.Random(15).shuffle(chosen)
    for way in chosen:
        way(kube, ledger)
        kube.wait_ready("db", seconds=240)
        assert ledger.missing() == set(), way.__doc__
        kube.patch("db", {"instances": 3})
        kube.wait_ready("db")
        assert ledger.missing() == set(), way.__doc__


@pytest.mark.parametrize("on_delete", ["Retain", "Delete"])
def test_ready_is_the_new_objects_own(kube: Kube, on_delete: str) -> None:
    """`kubectl wait` as a script has it: begun at once, it must not be answered by what the earlier object left."""
    storage = {"size": "1Gi", "onDelete": on_delete}
    kube.database("db", storage=storage)
    kube.wait_ready("db")
    for _ in range(rounds(3, 30)):
        kube.kubectl("delete", "mndb", "db", "--timeout=60s")
        kube.database("db", storage=storage)
        kube.kubectl("wait", "mndb/db", "--for=condition=Ready", "--timeout=180s")
        found = kube.get(KIND, "db") or {}
        owner = kube.get("StatefulSet", "db")
        assert owner is not None
        assert owner["metadata"]["ownerReferences"][0]["uid"] == found["metadata"]["uid"]
        pod = kube.get("Pod", "db-0")
        assert pod is not None
        assert pod["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
        assert "deletionTimestamp" not in pod["metadata"]
        assert condition_of(found, "Available")["status"] == "True"
        assert kube.sql("db-0", "SELECT count(*) > 10 FROM information_schema.tables") == "t"
        told = kube.all("Event", field_selector=f"involvedObject.uid={found['metadata']['uid']}")
        assert "NoPrimary" not in {event["reason"] for event in told}
