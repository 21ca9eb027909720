"""Where the demo and the e2e tests run: a given cluster, kind, or the local cluster; images built, operator installed.

The first that fits: `KUBECONFIG` names a cluster whose nodes can pull (or already have) the images; a Docker engine and
`kind` are there; the local cluster of `tests/cluster`, which needs root on a Linux machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator"), str(ROOT / "tools")]

import yaml  # noqa: E402
from render import NAMESPACE as NAMESPACE  # noqa: E402
from render import install_manifests  # noqa: E402

from cluster import Cluster, build_image  # noqa: E402
from cluster.cluster import existing  # noqa: E402
from cluster.images import docker_runs  # noqa: E402
from medianest_operator.naming import BACKUP_PLURAL, GROUP, OPERATION_PLURAL, PLURAL  # noqa: E402

E2E_CLUSTER = os.environ.get("MEDIANEST_CLUSTER_NAME", "e2e")
OPERATOR_IMAGE = os.environ.get("OPERATOR_IMAGE", "localhost/medianest-operator:dev")
POSTGRES_IMAGE = os.environ.get("POSTGRES_IMAGE", "localhost/medianest-postgres:dev")


@dataclass
class Environment:
    """A running Kubernetes."""

    kubeconfig: Path
    local: Cluster | None = None
    """The local cluster, where it is one: tests that pull a node's plug need it."""
    kind: str | None = None
    """The name of the kind cluster, where it is one."""

    def kubectl(self, *arguments: str, check: bool = True, text: str | None = None) -> str:
        """Run kubectl and return what it printed. Raises RuntimeError where it fails, unless `check` is off."""
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.kubeconfig), *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if check and done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def load(self, *images: str) -> None:
        """Bring built images into the nodes; a given cluster has to get them itself."""
        if self.local:
            self.local.load(*images)
        elif self.kind:
            subprocess.run(["kind", "load", "docker-image", "--name", self.kind, *images], check=True)


def _program(name: str) -> Path:
    found = shutil.which(name)
    assert found
    return Path(found)


def prepare(name: str, nodes: int, *, s3: bool = False) -> Environment:
    """A Kubernetes that runs. Raises cluster.errors.ClusterError where this machine can't have one.

    Args:
        s3: with an S3 server beside it, where it is the local cluster.
    """
    given = os.environ.get("KUBECONFIG")
    if given:
        return Environment(Path(given))
    if docker_runs() and shutil.which("kind"):
        from pytest_kind import KindCluster

        kind = KindCluster(name, kind_path=_program("kind"), kubectl_path=_program("kubectl"))
        kind.create()
        return Environment(Path(kind.kubeconfig_path), kind=name)
    local = Cluster(name, nodes, s3=s3)
    local.up()
    return Environment(local.kubeconfig, local=local)


def remove_left(name: str) -> None:
    """Remove the local cluster that a killed run left behind; it is none to test on.

    Raises cluster.errors.ClusterError where something of it can't be removed.
    """
    if name in existing():
        Cluster(name).down()


def build_images() -> dict[str, str]:
    """Build both images, unless nothing in them changed. Returns their digests by name."""
    return {
        image: build_image(image, target, ROOT / "Dockerfile", ROOT).identity
        for image, target in ((POSTGRES_IMAGE, "postgres"), (OPERATOR_IMAGE, "operator"))
    }


def install(environment: Environment, values: Mapping[str, Any] | None = None) -> None:
    """Build and load the images, apply the chart's manifests and wait until the controller runs."""
    digests = {} if "OPERATOR_IMAGE" in os.environ else build_images()
    if digests:
        environment.load(*digests)
    apply_operator(environment, digests.get(OPERATOR_IMAGE, OPERATOR_IMAGE), values)


def apply_operator(environment: Environment, digest: str, values: Mapping[str, Any] | None = None) -> None:
    """Apply the manifests with these images and wait for the rollout; another digest makes the pods anew."""
    repository, _, tag = OPERATOR_IMAGE.rpartition(":")
    merged: dict[str, Any] = {
        "image": {"repository": repository, "tag": tag},
        "postgres": {"image": POSTGRES_IMAGE},
        "podAnnotations": {"medianest.io/image-digest": digest},
        # The tests' webhooks are pods.
        "webhookAllow": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"],
        **(values or {}),
    }
    text = "---\n".join(yaml.safe_dump(manifest, sort_keys=False) for manifest in install_manifests(merged))
    environment.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=text)
    kinds = [f"crd/{plural}.{GROUP}" for plural in (PLURAL, BACKUP_PLURAL, OPERATION_PLURAL)]
    environment.kubectl("wait", "--for=condition=Established", *kinds, "--timeout=60s")
    environment.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/medianest-operator", "--timeout=180s")


def secret(environment: Environment, namespace: str, name: str) -> dict[str, str]:
    """A Secret's values as text."""
    import base64

    data = json.loads(environment.kubectl("-n", namespace, "get", "secret", name, "-o", "json"))["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}
