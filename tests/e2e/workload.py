"""A writer beside the database, and the account of its rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.kube import Kube
from environment import POSTGRES_IMAGE

_SCRIPT = Path(__file__).with_name("writer.py")


# Upstream's defaults, which the local cluster shortens: what only looks on isn't evicted while an API server was away.
TOLERATIONS = [
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    for taint in ("not-ready", "unreachable")
]


def pod_beside(name: str, command: list[str], volumes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A pod of the database image that runs something else, under the `restricted` Pod Security level.

    Args:
        volumes: what is mounted, by its path.
    """
    mounted = {f"volume-{number}": item for number, item in enumerate((volumes or {}).items())}
    container = {
        "name": "main",
        "image": POSTGRES_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, (path, _) in mounted.items()],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "tolerations": TOLERATIONS,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 999, "fsGroup": 999, "seccompProfile": {"type": "RuntimeDefault"}
        },
        "containers": [container],
        "volumes": [{"name": volume} | source for volume, (_, source) in mounted.items()],
    }  # fmt: skip
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def serve_beside(kube: Kube, pod: dict[str, Any], port: int) -> None:
    """Run such a pod behind a Service of its name, until it answers there."""
    name = pod["metadata"]["name"]
    pod["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 1}
    kube.apply(pod)
    spec = {"selector": {"app": name}, "ports": [{"port": port}]}
    kube.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    kube.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=180s")


@dataclass(frozen=True)
class Account:
    """What a writer was told, against what the database holds."""

    acknowledged: int
    lost: int
    gap: float
    """Longest time between two acknowledged writes, in seconds."""


class Writer:
    """Writes to a database for some seconds."""

    def __init__(
        self, kube: Kube, database: str, seconds: float, name: str = "writer", node: str | None = None
    ) -> None:
        self._kube, self._database, self._name = kube, database, name
        labels = f"medianest.io/database={database},medianest.io/role=primary"
        primary = kube.kubectl("get", "pods", "-l", labels, "-o", "jsonpath={.items[0].metadata.name}")
        # The owner's, as all tables are: a migration's backup can read no other.
        kube.sql(primary, "SET ROLE medianest; CREATE TABLE IF NOT EXISTS writes (n int PRIMARY KEY); TRUNCATE writes")
        script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        kube.apply(script | {"data": {"writer.py": _SCRIPT.read_text()}})
        kube.apply(self._pod(seconds, node))
        kube.wait("Pod", name, self._runs, "running")
        kube.kubectl("exec", name, "--", "sh", "-c", "until grep -q writing /tmp/out; do sleep 0.1; done")

    @staticmethod
    def _runs(pod: dict[str, Any] | None) -> bool:
        return pod is not None and pod["status"].get("phase") == "Running"

    @staticmethod
    def _done(pod: dict[str, Any] | None) -> bool:
        return pod is not None and pod["status"].get("phase") == "Succeeded"

    def _pod(self, seconds: float, node: str | None) -> dict[str, Any]:
        uri = {"secretKeyRef": {"name": f"{self._database}-app", "key": "uri"}}
        command = ["sh", "-c", f"/opt/medianest/bin/python /script/writer.py {seconds} | tee /tmp/out"]
        pod = pod_beside(self._name, command, {"/script": {"configMap": {"name": self._name}}})
        pod["spec"] |= {"nodeSelector": {"kubernetes.io/hostname": node} if node else {}}
        pod["spec"]["containers"][0]["env"] = [{"name": "URI", "valueFrom": uri}]
        return pod

    def stop(self) -> None:
        """Let it end before its time."""
        self._kube.kubectl("exec", self._name, "--", "touch", "/tmp/stop")

    def settle(self, seconds: float = 120) -> Account:
        """Wait for the writer's end and for the status, and count what it was promised in the database."""
        self._kube.wait("Pod", self._name, self._done, "done", seconds)
        self._kube.wait_condition(self._database, "Available", "True", "PrimaryServing")
        return self._count(lambda: self._kube.primary(self._database))

    def settle_alone(self, seconds: float = 120) -> Account:
        """The same where no operator runs: the pod that Patroni labelled is asked."""
        self._kube.wait("Pod", self._name, self._done, "done", seconds)
        labels = f"medianest.io/database={self._database},medianest.io/role=primary"
        name = "jsonpath={.items[0].metadata.name}"
        return self._count(lambda: self._kube.kubectl("get", "pods", "-l", labels, "-o", name))

    def _count(self, primary: Callable[[], str]) -> Account:
        result = json.loads(self._kube.kubectl("logs", self._name).strip().splitlines()[-1])
        have = {int(row) for row in self._rows(primary).split()}
        acknowledged = set(result["acknowledged"])
        return Account(len(acknowledged), len(acknowledged - have), result["gap"])

    def _rows(self, primary: Callable[[], str]) -> str:
        """Ask whoever leads, again while that one restarts in its place: the status may not say so yet."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self._kube.sql(primary(), "SELECT n FROM writes")
            except (KeyError, RuntimeError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
