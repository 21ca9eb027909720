"""Which addresses, names and ports a cluster uses: derived from its name and one small number.

The number comes from a file that all clusters of the machine share, so clusters side by side never meet, and the
addresses of a cluster can be told apart in a log.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from cluster.errors import ClusterError
from cluster.paths import RUNTIME

MAX_CLUSTERS = 64
MAX_NODES = 16
# An interface name has at most 15 characters, but names of clusters appear only in names of namespaces and folders.
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?")
FIRST_PORT = 16443


@dataclass(frozen=True)
class Addresses:
    """Everything about a cluster's network that follows from its name and number.

    Each cluster has one /16. Its lowest /24 holds the control plane and the nodes, a /20 the Services, and the upper
    half the pods, with a /21 for each node.
    """

    name: str
    number: int

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ClusterError(f"{self.name!r} can't name a cluster: lower-case letters, digits and inner hyphens only")
        if not 0 <= self.number < MAX_CLUSTERS:
            raise ClusterError(f"a machine holds {MAX_CLUSTERS} clusters at most")

    @property
    def network(self) -> IPv4Network:
        """The /16 of the whole cluster."""
        return IPv4Network((int(IPv4Address("10.64.0.0")) + (self.number << 16), 16))

    @property
    def fabric(self) -> IPv4Network:
        """The network of the bridge between the control plane and the nodes."""
        return next(self.network.subnets(new_prefix=24))

    @property
    def control_plane(self) -> IPv4Address:
        """The address of the API server and of CoreDNS."""
        return self.fabric[1]

    @property
    def services(self) -> IPv4Network:
        """The range of ClusterIPs."""
        return list(self.network.subnets(new_prefix=20))[1]

    @property
    def kubernetes_service(self) -> IPv4Address:
        """The ClusterIP of the API server: always the first of the range."""
        return self.services[1]

    @property
    def dns_service(self) -> IPv4Address:
        """The ClusterIP of CoreDNS."""
        return self.services[10]

    @property
    def pods(self) -> IPv4Network:
        """The range of all nodes' pods."""
        return list(self.network.subnets(new_prefix=17))[1]

    @property
    def preferred_port(self) -> int:
        """The machine's loopback port of the API server, if it is free."""
        return FIRST_PORT + self.number

    @property
    def namespace(self) -> str:
        """The control plane's network namespace."""
        return f"mn.{self.name}"

    def node(self, index: int) -> NodeAddresses:
        """The addresses of the node with that index, counted from 1."""
        if not 1 <= index <= MAX_NODES:
            raise ClusterError(f"a cluster has 1 to {MAX_NODES} nodes; there is no node {index}")
        return NodeAddresses(self, index)


@dataclass(frozen=True)
class NodeAddresses:
    """What follows from a node's place in its cluster."""

    cluster: Addresses
    index: int

    @property
    def name(self) -> str:
        """The node's name in Kubernetes, and of its end of the cable in the control plane's namespace."""
        return f"node{self.index}"

    @property
    def address(self) -> IPv4Address:
        """The node's InternalIP."""
        return self.cluster.fabric[10 + self.index]

    @property
    def pods(self) -> IPv4Network:
        """The range of the node's pods."""
        return list(self.cluster.pods.subnets(new_prefix=21))[self.index - 1]

    @property
    def namespace(self) -> str:
        """The node's network namespace."""
        return f"{self.cluster.namespace}.{self.index}"

    @property
    def cgroup(self) -> str:
        """The node's folder in every cgroup hierarchy."""
        return f"{self.cluster.namespace}/{self.name}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file for as long as the block runs; a killed process gives it up by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who held it before may have removed the file: then somebody else can hold a lock on a new one.
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                yield
                return


def _read(path: Path) -> dict[str, int]:
    try:
        return {str(name): int(number) for name, number in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise ClusterError(f"{path} is damaged ({error}); remove it once no cluster runs") from error


def allocate(name: str, directory: Path = RUNTIME) -> Addresses:
    """The addresses of a cluster, taking the lowest free number if the cluster has none yet.

    Raises:
        ClusterError: the name is not one, or all numbers are taken.
    """
    path = directory / "allocation.json"
    with locked(directory / "allocation.lock"):
        numbers = _read(path)
        if name not in numbers:
            number = next((n for n in range(MAX_CLUSTERS) if n not in numbers.values()), MAX_CLUSTERS)
            addresses = Addresses(name, number)
            path.write_text(json.dumps({**numbers, name: number}, indent=1))
            return addresses
        return Addresses(name, numbers[name])


def allocated(directory: Path = RUNTIME) -> dict[str, int]:
    """The clusters that have a number."""
    return _read(directory / "allocation.json")


def release(name: str, directory: Path = RUNTIME) -> None:
    """Give a cluster's number back."""
    path = directory / "allocation.json"
    with locked(directory / "allocation.lock"):
        numbers = _read(path)
        if numbers.pop(name, None) is not None:
            path.write_text(json.dumps(numbers, indent=1))
