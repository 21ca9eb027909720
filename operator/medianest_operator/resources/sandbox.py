"""The container of a Job's pod in which copies are made: whatever code a dump carries runs there, beside nothing that
is worth taking. Pure.

It is a sidecar (an init container that goes on; Kubernetes 1.29), has no variable, no Secret, no token and no
repository, and shares with the Job's own container one folder of the scratch volume: the server's socket and its data.
The Job's container may only read there, which is enough to connect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.quantity import to_bytes, to_number
from medianest_operator.kubernetes.kinds import Manifest
from medianest_operator.resources.meta import restricted_container

SKIPPED_BY: Final = ("eks.amazonaws.com/skip-containers", "azure.workload.identity/skip-containers")
"""Annotations of a pod by which the webhooks that inject a cloud's token leave containers alone: Amazon's pod identity
webhook, and Azure Workload Identity."""
ARGUMENTS: Final = ("--sandbox", naming.SANDBOX_MOUNT)
"""Of the Job's command."""
_VOLUME = "work"
_WORK, _SHARED = "work", "sandbox"


@dataclass(frozen=True)
class Halves:
    """The resources of a Job, shared out: together they are what the Job has without a sandbox."""

    own: dict[str, Any]
    sandbox: dict[str, Any]

    @classmethod
    def of(cls, resources: Mapping[str, Mapping[str, str]]) -> Halves:
        """Half of each amount for each container."""
        own: dict[str, Any] = {}
        sandbox: dict[str, Any] = {}
        for kind, amounts in resources.items():
            shared = {name: _halved(name, amount) for name, amount in amounts.items()}
            own[kind] = {name: pair[0] for name, pair in shared.items()}
            sandbox[kind] = {name: pair[1] for name, pair in shared.items()}
        return cls(own, sandbox)


def mounts() -> list[Manifest]:
    """The Job's container's own part of the scratch volume, and the one that it shares."""
    return [
        {"name": _VOLUME, "mountPath": naming.WORK_MOUNT, "subPath": _WORK},
        {"name": _VOLUME, "mountPath": naming.SANDBOX_MOUNT, "subPath": _SHARED, "readOnly": True},
    ]


def container(spec: DatabaseSpec, image: str, resources: Mapping[str, Any]) -> Manifest:
    """The sidecar. The pod has a volume `work`."""
    return {
        "name": naming.CONTAINER_SANDBOX,
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        "restartPolicy": "Always",
        "command": [naming.DBCTL_BIN, "sandbox", "--folder", naming.SANDBOX_MOUNT],
        "resources": dict(resources),
        "securityContext": restricted_container(),
        "volumeMounts": [{"name": _VOLUME, "mountPath": naming.SANDBOX_MOUNT, "subPath": _SHARED}],
    }


def _halved(name: str, amount: str) -> tuple[str, str]:
    if name == "cpu":
        whole = int(to_number(amount) * 1000)
        return f"{whole - whole // 2}m", f"{whole // 2}m"
    whole = to_bytes(amount)
    return str(whole - whole // 2), str(whole // 2)
