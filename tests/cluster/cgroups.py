"""A node's part of the cgroup hierarchies, of version 1 and 2 alike."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from cluster.errors import ClusterError

ROOT = Path("/sys/fs/cgroup")
REMOVAL_SECONDS = 10.0


def hierarchies() -> list[Path]:
    """The roots of all hierarchies: one with version 2, one a controller with version 1."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    # Links such as cpu -> cpu,cpuacct name a hierarchy a second time.
    return [path for path in sorted(ROOT.iterdir()) if path.is_dir() and not path.is_symlink()]


def _prepare(folder: Path) -> None:
    """Give a new group what it doesn't inherit: version 1's cpuset starts empty, version 2's controllers are off."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = folder / name
        if file.exists() and not (folder / "cgroup.controllers").exists() and not file.read_text().strip():
            file.write_text((folder.parent / name).read_text())
    controllers = folder.parent / "cgroup.controllers"
    if controllers.exists():
        for controller in controllers.read_text().split():
            # Some can't be handed on everywhere; the kubelet says which of them it misses.
            with suppress(OSError):
                (folder.parent / "cgroup.subtree_control").write_text(f"+{controller}")


def create(group: str) -> None:
    """Make a group, such as ``mn.dev/node1``, in every hierarchy."""
    for hierarchy in hierarchies():
        folder = hierarchy
        for part in Path(group).parts:
            folder = folder / part
            folder.mkdir(exist_ok=True)
            _prepare(folder)


def _folders(group: str) -> list[Path]:
    """All folders of a group and below, the deepest first."""
    return [Path(folder) for hierarchy in hierarchies() for folder, _, _ in os.walk(hierarchy / group, topdown=False)]


def pids(group: str) -> set[int]:
    """The processes of a group and of all groups below it."""
    found: set[int] = set()
    for folder in _folders(group):
        with suppress(OSError):
            found.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
    return found


def remove(group: str) -> None:
    """Remove a group whose processes have ended from every hierarchy.

    Raises:
        ClusterError: it is still in use.
    """
    deadline = time.monotonic() + REMOVAL_SECONDS
    while folders := _folders(group):
        for folder in folders:
            with suppress(FileNotFoundError, OSError):
                folder.rmdir()
        if _folders(group) and time.monotonic() > deadline:
            raise ClusterError(f"the control groups below {group} are still in use by {sorted(pids(group))}")
        # The kernel lets go of a group some moments after its last process ended, and tells nobody.
        time.sleep(0.02)


def of_process(pid: int) -> Path | None:
    """The folder whose ``cgroup.procs`` holds a process and its relatives in the same container."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder = ROOT / path.lstrip("/")
        elif "memory" in controllers.split(","):
            folder = ROOT / "memory" / path.lstrip("/")
        else:
            continue
        if path != "/" and folder.is_dir():
            return folder
    return None
