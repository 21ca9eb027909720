"""What the machine needs from Debian."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from cluster.addresses import locked
from cluster.errors import ClusterError
from cluster.paths import cache_dir
from cluster.processes import capture
from cluster.progress import step

# How long another use of apt is waited for.
LOCK_SECONDS = 300

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


def ensure(programs: dict[str, str]) -> None:
    """Install the packages of those programs that are not there, without what they merely recommend.

    Raises:
        ClusterError: this is not a Debian machine, or apt refused.
    """
    if not missing(programs):
        return
    with locked(cache_dir() / "packages.lock"):
        # Somebody else may have installed them meanwhile.
        names = missing(programs)
        if not names:
            return
        if shutil.which("apt-get") is None:
            raise ClusterError(f"this machine has no apt-get; install what provides {', '.join(names)} and try again")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "-qq", "-o", f"DPkg::Lock::Timeout={LOCK_SECONDS}"]
        with step(f"installing {', '.join(names)}"):
            capture([*apt, "update"], env=environment)
            capture([*apt, "install", "--yes", "--no-install-recommends", *names], env=environment)


def unpacked(package: str) -> Path:
    """The files of a Debian package below a folder of the cache; nothing of it is installed, and nothing is started.

    Raises:
        ClusterError: this is not a Debian machine, or apt refused.
    """
    folder = cache_dir() / "packages" / package
    if folder.exists():
        return folder
    with locked(cache_dir() / "packages.lock"), tempfile.TemporaryDirectory(dir=cache_dir()) as name:
        if folder.exists():
            return folder
        if shutil.which("apt-get") is None:
            raise ClusterError(f"this machine has no apt-get, which {package} is fetched with")
        work = Path(name)
        with step(f"fetching {package}"):
            capture(["apt-get", "-qq", "update"], env={**os.environ})
            capture(["apt-get", "-qq", "download", package], cwd=work, env={**os.environ})
            capture(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(work / "files")], env={**os.environ})
        folder.parent.mkdir(parents=True, exist_ok=True)
        (work / "files").rename(folder)
    return folder


def require_root() -> None:
    """Raise unless this process may make namespaces and mounts."""
    if os.geteuid() != 0:
        raise ClusterError("the local cluster makes namespaces and mounts: run it as root, or set KUBECONFIG")
