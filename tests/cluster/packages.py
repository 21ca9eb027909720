"""What the machine needs from Debian."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from cluster.errors import ClusterError
from cluster.processes import capture

# Package by program: what is there already is never installed, whatever it came from.
CLUSTER = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "ip": "iproute2",
    "iptables": "iptables",
    "ipset": "ipset",
    "conntrack": "conntrack",
    "losetup": "mount",
    "mkfs.xfs": "xfsprogs",
    "xfs_growfs": "xfsprogs",
    "nsenter": "util-linux",
    "sysctl": "procps",
}
IMAGES = {"buildah": "buildah", "debootstrap": "debootstrap"}


def missing(programs: dict[str, str]) -> list[str]:
    """The packages that have to be installed for all of these programs to be there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return sorted({package for program, package in programs.items() if shutil.which(program, path=path) is None})


def install(packages: Iterable[str]) -> None:
    """Install Debian packages, without what they merely recommend.

    Raises:
        ClusterError: this is not a Debian machine, or apt refused.
    """
    names = list(packages)
    if not names:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(f"this machine has no apt-get; install what provides {', '.join(names)} and try again")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    capture(["apt-get", "-qq", "update"], env=environment)
    capture(["apt-get", "-qq", "install", "--yes", "--no-install-recommends", *names], env=environment)


def require_root() -> None:
    """Raise unless this process may make namespaces and mounts."""
    if os.geteuid() != 0:
        raise ClusterError("the local cluster makes namespaces and mounts: run it as root, or set KUBECONFIG")
