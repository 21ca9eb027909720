"""The operator itself fails, moves, and is upgraded; the databases don't notice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import pytest

import environment as environments
from e2e.kube import KIND, Kube, stopped_operator
from environment import NAMESPACE, POSTGRES_IMAGE, ROOT, Environment
from soaking import rounds

pytestmark = pytest.mark.alone

_ROUNDS = rounds(5, 40)
_OPERATOR = [
    sys.executable,
    "-m",
    "medianest_operator",
    "run",
    "--no-leader-election",
    "--postgres-image",
    POSTGRES_IMAGE,
]
_PORTS = ["--metrics-port", "18080", "--health-port", "18081"]


def _children(kube: Kube, name: str) -> set[tuple[str, str]]:
    """Kinds and names of all that belongs to a database, its own name taken out."""
    found = set()
    for kind in ("Secret", "Service", "ConfigMap", "ServiceAccount", "StatefulSet", "Pod", "PersistentVolumeClaim"):
        for item in kube.all(kind, label_selector=f"medianest.io/database={name}"):
            child = item["metadata"]["name"].replace(name, "NAME", 1)
            if "migrate" not in child:
                found.add((kind, child))
    return found


def test_operator_killed_at_random_moments_converges(kube: Kube, environment: Environment) -> None:
    if environment.local is None:
        pytest.skip("runs the operator as a process on the cluster's network, which only the local cluster opens")
    seed = int(os.environ.get("MEDIANEST_SEED", random.randrange(10**6)))
    print(f"MEDIANEST_SEED={seed}")
    moments = random.Random(seed)
    names = [f"db{number}" for number in range(_ROUNDS)]
    tiny = {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}}
    running = {"env": os.environ | {"PYTHONPATH": str(ROOT / "operator")}, "capture_output": True}
    with stopped_operator(environment):
        for name in names:
            kube.database(name, **tiny)
            with pytest.raises(subprocess.TimeoutExpired):
                environment.local.run(_OPERATOR, timeout=moments.uniform(2.0, 6.0), **running)
    for name in names:
        kube.wait_ready(name, seconds=300)
    made = {name: _children(kube, name) for name in names}
    assert all(children == made[names[0]] for children in made.values())
    assert len(made[names[0]]) > 15
    assert {kube.get(KIND, name)["status"]["schema"]["version"] for name in names} == {  # type: ignore[index]
        "20250905150611_add_password_hash_to_users"
    }


def _holder(kube: Kube) -> str:
    holder = "jsonpath={.spec.holderIdentity}"
    return kube.environment.kubectl("-n", NAMESPACE, "get", "lease", "medianest-operator", "-o", holder)


def test_leader_that_is_told_to_stop_hands_the_lease_over(kube: Kube, environment: Environment) -> None:
    kube.database("db")
    leader = _holder(kube)
    kube.wait("StatefulSet", "db", lambda it: it is not None, "made, so the leader is at work")
    environment.kubectl("-n", NAMESPACE, "delete", "pod", leader, "--wait=true")
    # One that doesn't heed SIGTERM is killed, and the Lease names it until it expires.
    assert _holder(kube) != leader
    kube.wait_ready("db")


def test_other_replica_takes_over_from_a_killed_leader(kube: Kube, environment: Environment) -> None:
    leader = _holder(kube)
    environment.kubectl("-n", NAMESPACE, "delete", "pod", leader, "--grace-period=0", "--force")
    kube.database("db")
    kube.wait_ready("db")
    assert _holder(kube) not in {"", leader}
    environment.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/medianest-operator", "--timeout=120s")


def test_new_operator_version_restarts_no_database(kube: Kube, environment: Environment) -> None:
    kube.database("db", instances=2)
    kube.wait_ready("db")

    def pods() -> list[Any]:
        return [
            (pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"], pod["spec"]["containers"])
            for pod in kube.all("Pod", label_selector="app.kubernetes.io/component=postgres")
        ]

    before, template = pods(), kube.get("StatefulSet", "db")
    digest = "an image of another day"
    values = {"postgres": {"image": "localhost/medianest-postgres:of-another-day"}, "probeInterval": 2}
    try:
        environments.apply_operator(environment, digest, values)
        # Answered by the new version: a change that no pod depends on.
        kube.patch("db", {"connections": {"poolTimeout": 61}})
        kube.wait_ready("db")
        assert pods() == before
        assert kube.get("StatefulSet", "db")["spec"]["template"] == template["spec"]["template"]  # type: ignore[index]
        assert kube.get(KIND, "db")["status"]["image"] == POSTGRES_IMAGE  # type: ignore[index]
    finally:
        environments.apply_operator(environment, "back")


_ANOTHER_VERSION = """
import sys
from medianest_operator import __main__
from medianest_operator.resources import statefulset

made = statefulset.pod_template

def another(inputs):
    template = made(inputs)
    template["spec"]["containers"][0]["env"].append({"name": "OF_ANOTHER_VERSION", "value": "1"})
    return template

statefulset.pod_template = another
__main__.main()
"""


def test_another_pod_template_restarts_no_database(kube: Kube, environment: Environment) -> None:
    if environment.local is None:
        pytest.skip("runs the operator as a process on the cluster's network, which only the local cluster opens")
    kube.database("db", instances=2)
    kube.wait_ready("db")

    def pods() -> set[str]:
        labels = "app.kubernetes.io/component=postgres"
        return {pod["metadata"]["uid"] for pod in kube.all("Pod", label_selector=labels)}

    def is_new(stateful_set: dict[str, Any] | None) -> bool:
        return "OF_ANOTHER_VERSION" in str((stateful_set or {})["spec"]["template"])

    before = pods()
    running = {"env": os.environ | {"PYTHONPATH": str(ROOT / "operator")}, "capture_output": True}
    with stopped_operator(environment):
        with pytest.raises(subprocess.TimeoutExpired):
            environment.local.run(
                [sys.executable, "-c", _ANOTHER_VERSION, *_OPERATOR[3:], *_PORTS], timeout=25, **running
            )
        assert is_new(kube.get("StatefulSet", "db"))
        assert pods() == before
        # A pod that goes away for another reason comes back with the new template, and so with what it needs.
        kube.kubectl("delete", "pod", "db-1", "--wait=true")
        pod = kube.wait("Pod", "db-1", lambda it: it is not None and it["metadata"]["uid"] not in before, "made again")
        assert "OF_ANOTHER_VERSION" in str(pod["spec"])
    kube.wait_ready("db", seconds=180)


def test_watching_some_namespaces_needs_no_cluster_role(kube: Kube, environment: Environment) -> None:
    second, elsewhere = f"{kube.namespace}-second", f"{kube.namespace}-elsewhere"
    for name in (second, elsewhere):
        environment.kubectl("create", "namespace", name)
    also, other = Kube(environment, second), Kube(environment, elsewhere)
    role = ("clusterrole/medianest-operator", "clusterrolebinding/medianest-operator")
    environment.kubectl("delete", *role)
    try:
        environments.apply_operator(environment, "some namespaces", {"namespaces": [kube.namespace, second]})
        for each in (other, kube, also):
            each.database("db")
        kube.wait_ready("db")
        also.wait_ready("db")
        # What people change is seen in each.
        also.patch("db", {"paused": True})
        also.wait_condition("db", "Ready", "Unknown", "Paused")
        assert other.get(KIND, "db")["status"] == {"observedGeneration": -1, "phase": "Pending"}  # type: ignore[index]
        assert environment.kubectl("get", "clusterrole", "medianest-operator", "--ignore-not-found") == ""
    finally:
        environments.apply_operator(environment, "back")
    other.wait_ready("db")
    environment.kubectl("delete", "namespace", second, elsewhere, "--wait=false")


def test_metrics_tell_of_the_database(kube: Kube, environment: Environment) -> None:
    kube.database("db")
    kube.wait_ready("db")
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{_holder(kube)}:8080/proxy/metrics"
    metrics = environment.kubectl("get", "--raw", path)
    labels = f'{{name="db",namespace="{kube.namespace}"}}'
    assert f"medianest_database_ready{labels} 1.0" in metrics
    assert f"medianest_database_critical_indexes_missing{labels} 0.0" in metrics
    assert "medianest_operator_leader 1.0" in metrics
