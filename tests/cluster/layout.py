"""The files of one cluster, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.addresses import Addresses, NodeAddresses


@dataclass(frozen=True)
class Layout:
    """Where a cluster keeps what.

    Attributes:
        addresses: the cluster's network.
        root: what is big or worth reading after the end: data, volumes, logs.
        runtime: sockets and process ids.
    """

    addresses: Addresses
    root: Path
    runtime: Path

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.root / "pki"

    @property
    def front_pki(self) -> Path:
        """The authority that the API server's aggregation layer trusts; apart, so that no user can pose as it."""
        return self.root / "pki-front"

    @property
    def logs(self) -> Path:
        """One file a component."""
        return self.root / "logs"

    @property
    def volumes(self) -> Path:
        """The images of all nodes' volumes."""
        return self.root / "volumes"

    @property
    def audit_log(self) -> Path:
        """Every write to the API server, one JSON object a line."""
        return self.logs / "audit.log"

    @property
    def admin_kubeconfig(self) -> Path:
        """For people and tests on the machine."""
        return self.root / "kubeconfig"

    @property
    def record(self) -> Path:
        """What the cluster was made with; there once its network is complete."""
        return self.root / "cluster.json"

    def kubeconfig(self, user: str) -> Path:
        """For a component inside the cluster's network."""
        return self.pki / f"{user}.kubeconfig"

    def config(self, name: str) -> Path:
        """A component's configuration file."""
        return self.root / "config" / name

    def node(self, addresses: NodeAddresses) -> NodeLayout:
        """The files of one node."""
        return NodeLayout(self, addresses)


@dataclass(frozen=True)
class NodeLayout:
    """Where a node keeps what, as seen from the machine and from inside the node's mount namespace."""

    cluster: Layout
    addresses: NodeAddresses

    @property
    def root(self) -> Path:
        """The node's disk."""
        return self.cluster.root / self.addresses.name

    @property
    def runtime(self) -> Path:
        """The node's /run/containerd."""
        return self.cluster.runtime / self.addresses.name

    @property
    def socket(self) -> Path:
        """Containerd's socket as seen from the machine."""
        return self.runtime / "containerd.sock"

    @property
    def mounts(self) -> dict[Path, Path]:
        """The folders whose names are built into containerd and the kubelet, and what each node has there instead."""
        return {
            Path("/var/lib/kubelet"): self.root / "kubelet",
            Path("/var/lib/cni"): self.root / "cni",
            Path("/var/log/pods"): self.root / "pod-logs",
            Path("/var/log/containers"): self.root / "container-logs",
            Path("/run/containerd"): self.runtime,
        }

    def config(self, name: str) -> Path:
        """A component's configuration file."""
        return self.root / "config" / name
