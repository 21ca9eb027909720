"""Record what a database, a backup or an operation looks like at each stage, from a real cluster, for test_gitops.py.

python tests/record_statuses.py [STAGE...]   against KUBECONFIG, where the operator is installed
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2e.kube import API_VERSION, BACKUP, KIND, OPERATION, Kube, condition_of
from environment import NAMESPACE, Environment

FOLDER = Path(__file__).resolve().parent / "unit" / "statuses"
NAME = "medianest"
BAD_MIGRATION = """\
CREATE TABLE "plays" ("id" TEXT PRIMARY KEY);
CREATE UNIQUE INDEX "plays_title" ON "plays" ("title");
"""

Until = Callable[[dict[str, Any] | None], bool]


def because(reason: str, kind: str = "Ready") -> Until:
    """Whether a condition has a reason, for the generation that the spec has."""

    def there(current: dict[str, Any] | None) -> bool:
        if current is None:
            return False
        condition = condition_of(current, kind)
        generation = current["metadata"]["generation"]
        return (condition.get("reason"), condition.get("observedGeneration")) == (reason, generation)

    return there


def ready(current: dict[str, Any] | None) -> bool:
    return because("Ready")(current) and condition_of(current, "Ready")["status"] == "True"


class Recorder:
    """Makes databases, and keeps what a watch shows of them."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube

    def keep(self, stage: str, until: Until, seconds: float = 120, kind: str = KIND) -> None:
        """Write down the object as it is once it is as wanted."""
        seen = self.kube.wait(kind, NAME, until, stage, seconds)
        self._write(stage, seen)

    @staticmethod
    def _write(stage: str, seen: dict[str, Any]) -> None:
        seen["metadata"].pop("managedFields", None)
        seen["metadata"].get("annotations", {}).pop("kubectl.kubernetes.io/last-applied-configuration", None)
        path = FOLDER / f"{stage}.json"
        path.write_text(json.dumps(seen, indent=2, sort_keys=True) + "\n")
        print(f"recorded {stage}: {condition_of(seen, 'Ready').get('message')}")

    def keep_while(self, stages: dict[str, Until], action: Callable[[], None]) -> None:
        """Write down stages that pass quickly: watching begins before what makes them."""
        watching = [threading.Thread(target=self.keep, args=stage) for stage in stages.items()]
        for thread in watching:
            thread.start()
        action()
        for thread in watching:
            thread.join()

    def operator(self, replicas: int) -> None:
        """Let the operator run with so many replicas, or not at all."""
        kubectl = self.kube.environment.kubectl
        kubectl("-n", NAMESPACE, "scale", "deployment/medianest-operator", f"--replicas={replicas}")
        pods = ("pod", "-l", "app.kubernetes.io/name=medianest-operator", "--timeout=90s")
        if replicas:
            kubectl("-n", NAMESPACE, "rollout", "status", "deployment/medianest-operator", "--timeout=90s")
        else:
            kubectl("-n", NAMESPACE, "wait", *pods, "--for=delete")

    def fresh(self, **spec: Any) -> None:
        """A database from the beginning."""
        self.kube.kubectl("delete", "mndb", NAME, "--ignore-not-found")
        self.kube.wait_gone("Pod", f"{NAME}-0")
        self.kube.database(NAME, **spec)


def creation(recorder: Recorder) -> None:
    stages = {"creating": because("Creating"), "migrating": because("Migrating"), "ready": ready}
    recorder.keep_while(stages, recorder.fresh)


def unseen(recorder: Recorder) -> None:
    """A changed spec while nobody looks."""
    recorder.fresh()
    recorder.keep("ready", ready)
    recorder.operator(0)
    recorder.kube.patch(NAME, {"postgresql": {"parameters": {"work_mem": "8MB"}}})
    recorder.keep("unseen-generation", lambda current: current is not None and current["metadata"]["generation"] > 1)
    recorder.kube.kubectl("delete", "mndb", NAME)
    recorder.fresh()
    recorder.keep("unseen", lambda current: current is not None)
    recorder.operator(2)


def failover(recorder: Recorder) -> None:
    recorder.fresh(instances=2)
    recorder.kube.wait_ready(NAME)
    primary = recorder.kube.primary(NAME)

    def kill() -> None:
        recorder.kube.kubectl("delete", "pod", primary, "--grace-period=0", "--force", "--wait=false")

    recorder.keep_while({"failing-over": because("FailingOver")}, kill)


def pause(recorder: Recorder) -> None:
    recorder.fresh()
    recorder.keep("ready", ready)
    recorder.kube.patch(NAME, {"paused": True})
    recorder.keep("paused", because("Paused"))
    recorder.kube.patch(NAME, {"paused": False})
    recorder.keep("ready", ready)


def hibernation(recorder: Recorder) -> None:
    recorder.fresh()
    recorder.keep("ready", ready)
    action = lambda: recorder.kube.patch(NAME, {"hibernate": True})  # noqa: E731
    recorder.keep_while({"hibernating": because("Hibernating"), "hibernated": because("Hibernated")}, action)


def bad_migration(recorder: Recorder) -> None:
    data = {"20260101120000_plays.sql": BAD_MIGRATION}
    recorder.kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "migrations"}, "data": data})
    recorder.fresh(migrations={"source": {"configMap": {"name": "migrations"}}})
    recorder.keep("bad-migration", because("MigrationFailed", "Stalled"))


def missing_source(recorder: Recorder) -> None:
    recorder.fresh(migrations={"source": {"configMap": {"name": "absent"}}})
    recorder.keep("missing-source", because("MigrationSourceInvalid", "Stalled"))


def bad_parameter(recorder: Recorder) -> None:
    recorder.fresh(postgresql={"parameters": {"work_memm": "8MB"}})
    recorder.keep("bad-parameter", because("InvalidParameter", "Stalled"))


def no_image(recorder: Recorder) -> None:
    recorder.fresh(image="localhost/no-such-image:1")
    recorder.keep("image-unavailable", because("ImageUnavailable"))


def unschedulable(recorder: Recorder) -> None:
    recorder.fresh(scheduling={"nodeSelector": {"disk": "none-has-this"}})
    recorder.keep("unschedulable", because("Unschedulable"))


def quota(recorder: Recorder) -> None:
    recorder.kube.kubectl("create", "quota", "none", "--hard=pods=0")
    try:
        recorder.fresh()
        recorder.keep("quota-exceeded", because("QuotaExceeded"))
    finally:
        recorder.kube.kubectl("delete", "quota", "none")


def restore(recorder: Recorder) -> None:
    """A `MediaNestOperation` of the same name, and the database beside it: before it is there, while it is restored,
    and after restores that went well and badly."""
    recorder.kube.kubectl("delete", "mndb,mnbk,mnop", NAME, "--ignore-not-found")
    recorder.kube.wait_gone("Pod", f"{NAME}-0")
    make = {"apiVersion": API_VERSION, "kind": OPERATION, "metadata": {"name": NAME}}
    recorder.kube.apply(make | {"spec": {"database": NAME, "restore": {}}})
    recorder.keep("operation-pending", because("OperationPending"), kind=OPERATION)
    recorder.kube.kubectl("delete", "mnop", NAME)
    recorder.fresh()
    recorder.keep("ready", ready)
    taken = {"apiVersion": API_VERSION, "kind": BACKUP, "metadata": {"name": NAME}}
    recorder.kube.apply(taken | {"spec": {"database": NAME, "verify": True}})
    recorder.kube.wait(BACKUP, NAME, because("BackupSucceeded"), "taken")
    recorder.kube.apply(make | {"spec": {"database": NAME, "restore": {}}})
    recorder.keep("operation-running", because("Restoring"), kind=OPERATION)
    recorder.keep("restoring", because("Restoring"))
    recorder.keep("operation-succeeded", because("Restored"), kind=OPERATION)
    recorder.kube.kubectl("delete", "mnop", NAME)
    wrong = {"database": NAME, "restore": {"backup": "20200101T000000Z-daily-aaaa"}}
    recorder.kube.apply(make | {"spec": wrong})
    recorder.keep("operation-failed", because("RestoreFailed", "Stalled"), kind=OPERATION)
    recorder.keep(
        "restore-failed", lambda current: ready(current) and "failed" in condition_of(current, "Ready")["message"]
    )
    recorder.kube.kubectl("delete", "mnop,mnbk", NAME)


def bootstrap(recorder: Recorder) -> None:
    """One that should begin with a backup that isn't there."""
    recorder.fresh()
    recorder.keep("ready", ready)
    old = {"name": "old", "volume": {"claimName": f"{NAME}-backup-volume"}}
    recorder.fresh(bootstrap={"restore": {"repository": old, "backup": "20200101T000000Z-daily-aaaa"}})
    recorder.keep("bootstrap-failed", because("RestoreFailed", "Stalled"))


def backup(recorder: Recorder) -> None:
    """A `MediaNestBackup` of the same name, before its database is there and after; and one that can't be."""
    recorder.kube.kubectl("delete", "mndb,mnbk", NAME, "--ignore-not-found")
    recorder.kube.wait_gone("Pod", f"{NAME}-0")
    make = {"apiVersion": API_VERSION, "kind": BACKUP, "metadata": {"name": NAME}}
    recorder.kube.apply(make | {"spec": {"database": NAME, "verify": True}})
    recorder.keep("backup-pending", because("BackupPending"), kind=BACKUP)
    recorder.kube.database(NAME)
    recorder.keep("backup-running", because("BackupRunning"), kind=BACKUP)
    recorder.keep("backup-succeeded", because("BackupSucceeded"), kind=BACKUP)
    recorder.kube.kubectl("delete", "mnbk", NAME)
    recorder.kube.apply(make | {"spec": {"database": NAME, "repositories": ["attic"]}})
    recorder.keep("backup-failed", because("InvalidSpec", "Stalled"), kind=BACKUP)


STAGES = (
    creation, failover, pause, hibernation, bad_migration, missing_source, bad_parameter, no_image, unschedulable,
    quota, unseen, restore, bootstrap, backup,
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Record the stages named, all without a name. Returns the exit code."""
    environment = Environment(Path(os.environ["KUBECONFIG"]))
    namespace = "record"
    environment.kubectl("create", "namespace", namespace, check=False)
    FOLDER.mkdir(exist_ok=True)
    try:
        for stage in STAGES:
            if not arguments or stage.__name__ in arguments:
                stage(Recorder(Kube(environment, namespace)))
    finally:
        environment.kubectl("delete", "namespace", namespace, "--wait=false")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
