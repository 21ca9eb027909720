"""Volumes that are older than others: whatever stops and begins in which order, the newest data leads."""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from e2e.kube import KIND, Kube, condition_of, stopped_operator
from e2e.workload import Writer
from environment import Environment
from soaking import rounds

KEPT = {"size": "1Gi", "onDelete": "Retain"}


class Ledger:
    """Rows that were acknowledged, against the rows that are there."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._written = 0
        kube.sql(kube.primary("db"), "SET ROLE medianest; CREATE TABLE ledger (n int PRIMARY KEY)")

    def write(self, primary: str | None = None) -> None:
        """A single row: as little as an old volume can lack, which Patroni's own limit (1 MiB) lets pass.

        Args:
            primary: the pod that leads, where no operator says so.
        """
        self._kube.sql(primary or self._kube.primary("db"), f"INSERT INTO ledger VALUES ({self._written + 1})")
        self._written += 1

    def wait_copied(self, replica: str) -> None:
        """Until a replica has the newest row, too."""
        deadline = time.monotonic() + 120
        newest = f"SELECT EXISTS (SELECT FROM ledger WHERE n = {self._written})"
        while True:
            # One that follows another primary for the first time may be down for a moment.
            with contextlib.suppress(RuntimeError):
                if self._kube.sql(replica, newest) == "t":
                    return
            assert time.monotonic() < deadline, f"{replica} doesn't follow"
            time.sleep(1)

    def missing(self) -> set[int]:
        """Those of the acknowledged rows that the primary doesn't have, once there is one that answers."""
        deadline = time.monotonic() + 120
        while True:
            try:
                # A replica, which the status may still call the primary, has no transaction to write in.
                rows = self._kube.sql(self._kube.primary("db"), "BEGIN READ WRITE; SELECT n FROM ledger")
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
    _wait_led(kube, ordinal)
    kube.wait_ready("db")


def _wait_led(kube: Kube, ordinal: int) -> None:
    kube.wait(KIND, "db", lambda found: found is not None and _leads(found, ordinal), f"led by db-{ordinal}", 300)


def _leads(found: dict[str, Any], ordinal: int) -> bool:
    # An object that was made a moment ago has no status yet.
    return bool((found.get("status") or {}).get("instances", {}).get("primary") == f"db-{ordinal}")


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
    kube.kubectl("delete", "mndb", "db", "--timeout=180s")
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


def test_all_pods_deleted_at_once_lose_nothing(kube: Kube) -> None:
    """A replica stops a moment before the primary, and is the first to come back."""
    kube.database("db", instances=3, storage=KEPT)
    kube.wait_ready("db")
    for number in range(rounds(3, 20)):
        writer = Writer(kube, "db", seconds=15, name=f"writer-{number}")
        kube.kubectl("delete", "pod", *(f"db-{ordinal}" for ordinal in range(3)), "--wait=false")
        account = writer.settle()
        print(f"all pods deleted: gap {account.gap} s, {account.acknowledged} rows acknowledged, {account.lost} lost")
        assert account.lost == 0
        kube.wait_ready("db", seconds=240)


def _set_deleted(kube: Kube) -> None:
    kube.kubectl("delete", "statefulset", "db", "--timeout=180s")


def _made_again(kube: Kube) -> None:
    kube.kubectl("delete", "mndb", "db", "--timeout=180s")
    kube.kubectl("wait", "--for=delete", "statefulset/db", "--timeout=180s")
    kube.database("db", instances=3, storage=KEPT)


def _everything_deleted(kube: Kube) -> None:
    """Patroni's own record goes, too, with the Services."""
    kube.kubectl("delete", "all", "--all", "--timeout=180s")


def _everything_killed(kube: Kube) -> None:
    """Pods that are still running while nothing of theirs is left make parts of that record again."""
    kube.kubectl("delete", "all", "--all", "--grace-period=0", "--force", "--timeout=180s")


@pytest.mark.alone
def test_a_primary_that_no_operator_saw_leads_again(kube: Kube, environment: Environment) -> None:
    """The claims' notes are of the one before; Patroni's own record is not."""
    kube.database("db", instances=3, storage=KEPT)
    kube.wait_ready("db")
    ledger = Ledger(kube)
    for stop in [_set_deleted, _everything_deleted, _everything_killed, _made_again] * rounds(1, 5):
        leader = kube.primary("db")
        chosen = f"db-{(int(leader[-1]) + 1) % 3}"
        with stopped_operator(environment):
            command = ["patronictl", "switchover", "--leader", leader, "--candidate", chosen, "--force"]
            kube.kubectl("exec", leader, "-c", "postgres", "--", *command)
            kube.wait("Pod", chosen, _is_primary, "the primary")
            ledger.write(chosen)
            if stop is _everything_killed:
                # One that outlives the others for a moment may be promoted in it, if it has what they have: then its
                # data is the newest.
                for pod in {f"db-{ordinal}" for ordinal in range(3)} - {chosen}:
                    ledger.wait_copied(pod)
            before = kube.get("Pod", chosen) or {}
            stop(kube)
            if stop is not _everything_killed:
                kube.wait_gone("Pod", chosen)
        if stop is _everything_killed:
            kube.wait("Pod", chosen, functools.partial(_is_another, before=before), "back", 300)
        else:
            _wait_led(kube, int(chosen[-1]))
        kube.wait_ready("db", seconds=240)
        assert ledger.missing() == set(), stop.__name__


def _is_primary(pod: dict[str, Any] | None) -> bool:
    return pod is not None and pod["metadata"]["labels"].get("medianest.io/role") == "primary"


def test_an_older_volume_can_be_chosen_and_all_be_given_up(kube: Kube) -> None:
    """Each way out that the message of VolumeUnavailable names."""
    kube.database("db", instances=2, storage=KEPT)
    kube.wait_ready("db")
    _lead(kube, 0)
    ledger = Ledger(kube)
    ledger.write()
    kube.patch("db", {"instances": 1})
    kube.wait_ready("db")
    # More than a replica of Patroni's may lack.
    kube.sql("db-0", "SET ROLE medianest; CREATE TABLE many AS SELECT repeat('x', 200) FROM generate_series(1, 20000)")
    _hibernate(kube)
    kube.kubectl("delete", "pvc", "data-db-0")
    kube.patch("db", {"hibernate": False, "instances": 2})
    kube.wait_condition("db", "Ready", "False", "VolumeUnavailable")
    said = condition_of(kube.get(KIND, "db"), "Ready")["message"]
    assert "annotate pvc data-db-1 medianest.io/begin-with=true" in said
    kube.kubectl("annotate", "pvc", "data-db-1", "medianest.io/begin-with=true")
    kube.wait_ready("db", seconds=240)
    assert ledger.missing() == set()
    assert kube.sql(kube.primary("db"), "SELECT to_regclass('many') IS NULL") == "t"
    _hibernate(kube)
    kube.kubectl("delete", "pvc", "data-db-0", "data-db-1")
    kube.patch("db", {"hibernate": False})
    kube.wait_ready("db", seconds=240)
    assert kube.sql(kube.primary("db"), "SELECT to_regclass('ledger') IS NULL") == "t"


@pytest.mark.parametrize("chosen", [True, False], ids=["a person chose", "nobody chose"])
def test_a_volume_of_another_history_is_never_followed(kube: Kube, chosen: bool) -> None:
    """A person begins with one volume, then with the other: both are on the second timeline, each on its own.

    PostgreSQL lets the one connect to the other, and writes the one's log over the other's. What nobody gave up stays.
    """
    kube.database("db", instances=2, storage=KEPT)
    kube.wait_ready("db")
    _lead(kube, 0)
    kube.patch("db", {"instances": 1})
    kube.wait_ready("db")
    for ordinal in (1, 0):
        _hibernate(kube)
        kube.kubectl("annotate", "pvc", f"data-db-{ordinal}", "medianest.io/begin-with=true")
        kube.patch("db", {"hibernate": False})
        _wait_led(kube, ordinal)
        kube.sql(f"db-{ordinal}", f"SET ROLE medianest; CREATE TABLE of_{ordinal} AS SELECT repeat('x', 9000)")
        # One alone: what the other has stays as it is, until more are wanted.
        kube.wait_ready("db")
        assert kube.kubectl("get", "pod", f"db-{1 - ordinal}", "--ignore-not-found") == ""
    if not chosen:
        kube.kubectl("annotate", "pvc", "data-db-1", "medianest.io/copy-again-")
    kube.patch("db", {"instances": 2})
    if not chosen:
        kube.wait_condition("db", "Ready", "False", "Diverged")
        assert kube.sql("db-1", "SELECT to_regclass('of_1') IS NOT NULL") == "t"
        kube.kubectl("exec", "db-1", "-c", "postgres", "--", "patronictl", "reinit", "--force", "db-rw", "db-1")
    kube.wait_ready("db", seconds=240)
    assert ("CopyingAgain" in kube.reasons("db")) is chosen
    assert kube.sql("db-1", "SELECT to_regclass('of_0') IS NOT NULL AND to_regclass('of_1') IS NULL") == "t"


@pytest.mark.parametrize("lost", ["data", "wal"])
def test_a_replica_that_lost_one_of_its_volumes_is_copied_again(kube: Kube, lost: str) -> None:
    """As somebody repairs one, or by mistake: the other volume still holds what belonged to it."""
    kube.database("db", instances=2, storage=KEPT, walStorage={"size": "512Mi"})
    kube.wait_ready("db")
    _lead(kube, 0)
    kube.sql("db-0", "SET ROLE medianest; CREATE TABLE there AS SELECT 1 AS n")
    _hibernate(kube)
    kube.kubectl("delete", "pvc", f"{lost}-db-1")
    kube.patch("db", {"hibernate": False})
    kube.wait_ready("db", seconds=240)
    assert kube.sql("db-1", "SELECT n FROM there WHERE pg_is_in_recovery()") == "1"


@pytest.mark.parametrize("on_delete", ["Retain", "Delete"])
def test_ready_is_the_new_objects_own(kube: Kube, on_delete: str) -> None:
    """`kubectl wait` as a script has it: begun at once, it must not be answered by what the earlier object left."""
    storage = {"size": "1Gi", "onDelete": on_delete}
    kube.database("db", storage=storage)
    kube.wait_ready("db")
    for _ in range(rounds(3, 30)):
        kube.kubectl("delete", "mndb", "db", "--timeout=180s")
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
