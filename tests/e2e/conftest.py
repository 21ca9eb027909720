"""One cluster and one operator for all e2e tests; a namespace for each test."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator

import pytest
from filelock import FileLock

import environment as environments
from cluster.errors import ClusterError
from e2e.kube import Kube
from environment import Environment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """A Kubernetes with the operator of this tree. `MEDIANEST_KEEP=1` leaves it running for a look.

    Of several processes (pytest -n) the first makes it ready, and none removes it: none knows which is the last.
    """
    beside = "PYTEST_XDIST_WORKER" in os.environ
    shared = tmp_path_factory.getbasetemp().parent if beside else tmp_path_factory.getbasetemp()
    installed = shared / "operator-installed"
    with FileLock(shared / "environment.lock"):
        try:
            running = environments.prepare(environments.E2E_CLUSTER, nodes=3, s3=True)
        except ClusterError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no Kubernetes can run here: {error}")
        if not installed.exists():
            environments.install(running)
            installed.touch()
    yield running
    if running.local and not beside and not os.environ.get("MEDIANEST_KEEP"):
        running.local.down()


@pytest.fixture
def kube(environment: Environment, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A namespace of this test's own, under the `restricted` Pod Security level."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    # Long names that begin alike are others: two workers would take each other's.
    mark = hashlib.sha256(words.encode()).hexdigest()[:6]
    namespace = f"t-{words[:43].rstrip('-')}-{mark}"
    # A run that was killed leaves the namespaces of its last tests behind.
    environment.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=240s")
    environment.kubectl("create", "namespace", namespace)
    environment.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    yield Kube(environment, namespace)
    environment.kubectl("delete", "namespace", namespace, "--wait=false")
