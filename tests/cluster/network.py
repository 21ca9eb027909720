"""The cluster's network: namespaces of the control plane and of each node, joined by a bridge, without an uplink."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.addresses import Addresses, NodeAddresses
from cluster.processes import capture, entering

BRIDGE = "fabric"
UPLINK = "eth0"
NAMESPACES = Path("/run/netns")
FORWARDING = "net.ipv4.ip_forward=1"
BRIDGE_FILTER = Path("/proc/sys/net/bridge")


def exists(namespace: str) -> bool:
    """Whether a network namespace of that name is there."""
    return (NAMESPACES / namespace).exists()


def namespaces(addresses: Addresses) -> list[str]:
    """The cluster's network namespaces that are there."""
    prefix = f"{addresses.namespace}."
    if not NAMESPACES.is_dir():
        return []
    return sorted(
        entry.name
        for entry in NAMESPACES.iterdir()
        if entry.name == addresses.namespace or entry.name.startswith(prefix)
    )


def _ip(namespace: str, commands: Sequence[str]) -> None:
    """Run several commands of ip(8) in a namespace at once."""
    subprocess.run(
        ["ip", "-n", namespace, "-batch", "-"], input="\n".join(commands), text=True, check=True, capture_output=True
    )


def _sysctl(namespace: str, *settings: str) -> None:
    capture([*entering(namespace), "sysctl", "--quiet", "--write", *settings])


def create_control_plane(addresses: Addresses) -> None:
    """Make the control plane's namespace with the bridge in it."""
    namespace = addresses.namespace
    capture(["ip", "netns", "add", namespace])
    _ip(
        namespace,
        [
            "link set lo up",
            f"link add {BRIDGE} type bridge",
            f"addr add {addresses.control_plane}/{addresses.fabric.prefixlen} dev {BRIDGE}",
            f"link set {BRIDGE} up",
            # Service addresses are rewritten on their way out, but only what has a route is on its way.
            f"route add {addresses.services} dev {BRIDGE}",
        ],
    )
    _sysctl(namespace, FORWARDING)


def create_node(node: NodeAddresses, others: Sequence[NodeAddresses]) -> None:
    """Make a node's namespace, plug it into the bridge, and tell every other namespace where its pods are."""
    center = node.cluster.namespace
    capture(["ip", "netns", "add", node.namespace])
    _ip(
        center,
        [
            f"link add {node.name} type veth peer name {UPLINK} netns {node.namespace}",
            f"link set {node.name} master {BRIDGE} up",
            f"route add {node.pods} via {node.address}",
        ],
    )
    _ip(
        node.namespace,
        [
            "link set lo up",
            f"addr add {node.address}/{node.cluster.fabric.prefixlen} dev {UPLINK}",
            f"link set {UPLINK} up",
            f"route add {node.cluster.services} dev {UPLINK}",
            *(f"route add {other.pods} via {other.address}" for other in others),
        ],
    )
    # A bridged frame must pass iptables, or a pod could not reach a Service whose endpoint is on its own bridge.
    if not BRIDGE_FILTER.exists():
        capture(["modprobe", "br_netfilter"])
    _sysctl(node.namespace, FORWARDING, "net.bridge.bridge-nf-call-iptables=1")
    for other in others:
        _ip(other.namespace, [f"route add {node.pods} via {node.address}"])


def plug(node: NodeAddresses, *, connected: bool) -> None:
    """Pull a node's cable out, or put it in again. Both are immediate, and neither end is told anything else."""
    _ip(node.cluster.namespace, [f"link set {node.name} {'up' if connected else 'down'}"])


def delete(namespace: str) -> None:
    """Remove a network namespace with all that is in it."""
    capture(["ip", "netns", "delete", namespace])


def listen(port: int = 0) -> socket.socket:
    """A listening socket on the machine's loopback address.

    Args:
        port: the one to take if it is free; any other free one is taken if it isn't, or if it is 0.
    """
    for candidate in (port, 0):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
        except OSError:
            listener.close()
            if candidate == 0:
                raise
            continue
        listener.listen(128)
        return listener
    raise AssertionError("the loop ends by returning or raising")
