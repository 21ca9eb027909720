"""Removing every trace of a cluster, whatever state it is in: nothing here trusts a file that a cluster wrote."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from cluster import cgroups, network, processes
from cluster.errors import ClusterError
from cluster.layout import Layout
from cluster.processes import capture

LOOP_DEVICES = Path("/sys/block")
MOUNT_POINTS = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers", "/run/containerd")


def kill(layout: Layout) -> None:
    """End every process of a cluster, in containers and out of them."""
    group = layout.addresses.namespace
    # A shim that is about to start a container may have one more process than was just seen.
    for _ in range(5):
        pids = {process.pid for process in processes.find(layout.addresses.name)} | cgroups.pids(group)
        if not pids:
            return
        processes.stop(pids, gently=False)
    raise ClusterError(f"processes of cluster {layout.addresses.name} keep coming back")


def detach_volumes(volumes: Path) -> None:
    """Give back the loop devices of volumes; one that is still mounted goes away with its mount."""
    for device in LOOP_DEVICES.glob("loop*"):
        with suppress(OSError):
            backing = (device / "loop" / "backing_file").read_text()
            if backing.startswith(f"{volumes}/"):
                capture(["losetup", "--detach", f"/dev/{device.name}"])


def unmount(*roots: Path) -> None:
    """Unmount what is mounted below some folders on the machine itself."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if any(mount.startswith(f"{root}/") for root in roots):
            capture(["umount", "--lazy", mount])


def remove(layout: Layout) -> None:
    """Remove a cluster: processes, mounts, loop devices, namespaces, control groups, files.

    Raises:
        ClusterError: something of it can't be removed.
    """
    kill(layout)
    unmount(layout.root, layout.runtime)
    detach_volumes(layout.volumes)
    for namespace in network.namespaces(layout.addresses):
        network.delete(namespace)
    cgroups.remove(layout.addresses.namespace)
    for folder in (layout.root, layout.runtime):
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise ClusterError(f"{folder} can't be removed")


def remove_mount_points() -> None:
    """Remove the empty folders that nodes had mounted something over, once no cluster runs."""
    for path in MOUNT_POINTS:
        with suppress(OSError):
            Path(path).rmdir()
