"""Volumes of a hard size that really fill, judged by `df` in the pod, the server's log, and the rows themselves."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from e2e.kube import KIND, SMALL, Kube, Manifest, condition_of, stopped_operator
from e2e.workload import pod_beside
from environment import Environment

_SCRIPT = Path(__file__).with_name("filler.py")
_LINES = "until [ $(grep -c -x {word} /tmp/out) -ge {times} ]; do sleep 0.2; done"


class Filler:
    """Writes and reads beside the database until it is stopped."""

    def __init__(self, kube: Kube, database: str) -> None:
        self._kube, self._database = kube, database
        statements = (
            "SET ROLE medianest; CREATE TABLE filling (n int PRIMARY KEY, data bytea);"
            " ALTER TABLE filling ALTER data SET STORAGE EXTERNAL"
        )
        kube.sql(kube.primary(database), statements)
        script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "filler"}}
        kube.apply(script | {"data": {"filler.py": _SCRIPT.read_text()}})
        command = ["sh", "-c", "/opt/medianest/bin/python /script/filler.py | tee /tmp/out"]
        pod = pod_beside("filler", command, {"/script": {"configMap": {"name": "filler"}}})
        uri = {"secretKeyRef": {"name": f"{database}-app", "key": "uri"}}
        pod["spec"]["containers"][0]["env"] = [{"name": "URI", "valueFrom": uri}]
        kube.apply(pod)
        kube.kubectl("wait", "--for=condition=Ready", "pod/filler", "--timeout=120s")

    def said(self, word: str) -> int:
        """How often it has said so."""
        return self._kube.kubectl("exec", "filler", "--", "cat", "/tmp/out").split("\n").count(word)

    def wait(self, word: str, times: int = 1) -> None:
        """Until it has said so for the so-manieth time."""
        line = _LINES.format(word=word, times=times)
        self._kube.kubectl("exec", "filler", "--", "timeout", "240", "sh", "-c", line)

    @staticmethod
    def _done(pod: Manifest | None) -> bool:
        return pod is not None and pod["status"].get("phase") == "Succeeded"

    def stop(self) -> dict[str, Any]:
        """Its account."""
        self._kube.kubectl("exec", "filler", "--", "touch", "/tmp/stop")
        self._kube.wait("Pod", "filler", self._done, "done")
        account: dict[str, Any] = json.loads(self._kube.kubectl("logs", "filler").strip().splitlines()[-1])
        return account


def _used(kube: Kube, pod: str, path: str = "/pgdata") -> int:
    """Percent, by the pod's own `df`."""
    line = kube.kubectl("exec", pod, "-c", "postgres", "--", "df", "--output=pcent", path).split()[-1]
    return int(line.rstrip("%"))


def _log(kube: Kube, pod: str) -> str:
    return kube.kubectl("logs", pod, "-c", "postgres")


def _size(kube: Kube, claim: str) -> str:
    found = kube.get("PersistentVolumeClaim", claim)
    assert found is not None
    return str(found["spec"]["resources"]["requests"]["storage"])


def test_a_volume_that_fills_grows_to_its_maximum_and_ends_read_only(kube: Kube) -> None:
    storage = SMALL["storage"] | {"autoGrow": {"maximum": "1280Mi", "minimumInterval": "1m"}}
    kube.database("db", storage=storage)
    kube.wait_ready("db")
    filler = Filler(kube, "db")
    filler.wait("writing")

    def has_grown(claim: Manifest | None) -> bool:
        return claim is not None and claim["status"]["capacity"]["storage"] == "1280Mi"

    kube.wait("PersistentVolumeClaim", "data-db-0", has_grown, "grown")

    def at_its_end(item: Manifest | None) -> bool:
        full = "reached spec.storage.autoGrow.maximum" in condition_of(item, "StorageHealthy").get("message", "")
        return full and condition_of(item, "Available").get("reason") == "ReadOnly"

    kube.wait(KIND, "db", at_its_end, "read-only at its maximum")
    filler.wait("refused")
    assert _used(kube, "db-0") < 100
    kube.wait_event("db", "VolumeGrown")
    # Of a small volume 128 MiB are left, which is less than 90 %.
    kube.wait_event("db", "VolumeFilling", "VolumeNearlyFull", "VolumeFull")
    before = filler.said("writing")
    kube.patch("db", {"storage": {"autoGrow": {"maximum": "2Gi", "increase": "100%"}}})
    kube.wait_condition("db", "Available", "True", "PrimaryServing")
    filler.wait("writing", times=before + 1)
    account = filler.stop()
    assert account["reads_while_refused"]
    assert account["failed_reads"] == []
    rows = {int(row) for row in kube.sql("db-0", "SELECT n FROM filling").split()}
    assert set(account["acknowledged"]) <= rows
    assert "PANIC" not in _log(kube, "db-0")
    kube.sql("db-0", "TRUNCATE filling")
    kube.patch("db", {"instances": 2})
    kube.wait_ready("db")
    # The spec still says 1Gi.
    assert _size(kube, "data-db-1") == _size(kube, "data-db-0") == "2Gi"


def test_a_log_that_an_unused_slot_holds_back_stops_the_writers_and_names_it(kube: Kube) -> None:
    parameters = {"max_slot_wal_keep_size": "-1"}
    storage = SMALL["storage"] | {"size": "3Gi"}
    kube.database("db", storage=storage, walStorage={"size": "1Gi"}, postgresql={"parameters": parameters})
    kube.wait_ready("db")
    kube.sql("db-0", "SELECT pg_create_physical_replication_slot('forgotten', true)")
    filler = Filler(kube, "db")
    kube.wait_condition("db", "Available", "False", "ReadOnly")
    filler.wait("refused")
    assert _used(kube, "db-0", "/pgwal") < 100

    full = {"VolumeFilling", "VolumeNearlyFull", "VolumeFull"}

    def names_the_slot(item: Manifest | None) -> bool:
        condition = condition_of(item, "StorageHealthy")
        return condition.get("reason") in full and "slot forgotten" in condition["message"]

    found = kube.wait(KIND, "db", names_the_slot, "told of the slot")
    (fix,) = {item["fix"] for item in found["status"]["findings"] if item["reason"] in full}
    before = filler.said("writing")
    kube.sql("db-0", fix)
    kube.sql("db-0", "CHECKPOINT")
    kube.wait_condition("db", "Available", "True", "PrimaryServing")
    filler.wait("writing", times=before + 1)
    account = filler.stop()
    assert account["failed_reads"] == []
    rows = {int(row) for row in kube.sql("db-0", "SELECT n FROM filling").split()}
    assert set(account["acknowledged"]) <= rows
    assert "PANIC" not in _log(kube, "db-0")


def _write_again(kube: Kube, statement: str) -> None:
    """Until a server that doesn't run, or takes no writes, has taken one."""
    deadline = time.monotonic() + 120
    while True:
        try:
            kube.sql("db-0", statement)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return


def test_a_server_that_stopped_on_a_full_volume_writes_again_once_the_size_is_raised(
    kube: Kube, environment: Environment
) -> None:
    kube.database("db")
    kube.wait_ready("db")
    kube.sql("db-0", "CREATE TABLE kept AS SELECT 1 AS n")
    in_pod = ("exec", "db-0", "-c", "postgres", "--", "sh", "-c")
    with stopped_operator(environment):
        assert kube.kubectl(*in_pod, "stat -c %s /pgdata/ballast").strip() == str(64 * 1024**2)
        kube.kubectl(*in_pod, "fallocate -l $(($(stat -f -c '%a * %S' /pgdata) - 4194304)) /pgdata/somebody")
        written = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 200)"
        kube.kubectl("exec", "db-0", "-c", "postgres", "--", "psql", "-Xqc", written, "postgres", check=False)
        kube.kubectl(*in_pod, "timeout 120 sh -c 'until psql -XAtqc \"SELECT 1\" postgres; do sleep 1; done'")
        assert "PANIC" in _log(kube, "db-0")
        assert "ballast" not in kube.kubectl(*in_pod, "ls /pgdata")
    kube.patch("db", {"storage": {"size": "2Gi"}})
    # Until the operator has looked, Available is of the time before; then it may stop the writers until there is room.
    _write_again(kube, "INSERT INTO kept VALUES (2)")
    assert kube.sql("db-0", "SELECT count(*) FROM kept") == "2"
    kube.wait_condition("db", "Available", "True", "PrimaryServing", seconds=60)
