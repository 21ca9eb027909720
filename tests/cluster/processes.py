"""Starting, finding and stopping the cluster's programs.

Every program carries the cluster's name, the node's and its own in its environment, which its children inherit. So what
a killed run left behind is found in /proc, without any file that could be stale.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError

MARK_CLUSTER = "MEDIANEST_CLUSTER"
MARK_NODE = "MEDIANEST_CLUSTER_NODE"
MARK_COMPONENT = "MEDIANEST_CLUSTER_COMPONENT"
CONTROL_PLANE = "control-plane"
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Process:
    """A running program of a cluster.

    Attributes:
        pid: its process id on the machine.
        node: the node's name, or ``control-plane``.
        component: the program's name; a child such as a container's shim has its parent's.
        leader: whether it is the program itself and not a child of it.
    """

    pid: int
    node: str
    component: str
    leader: bool


def capture(argv: Sequence[str | Path], **options: object) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        ClusterError: it could not be run, or failed; the message holds what it printed.
    """
    command = [str(word) for word in argv]
    try:
        result = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    except OSError as error:
        raise ClusterError(f"can't run {command[0]}: {error}") from error
    if result.returncode != 0:
        output = (result.stderr or "") + (result.stdout or "")
        raise ClusterError(f"{' '.join(command)} failed ({result.returncode}):\n{output.strip()}")
    return str(result.stdout)


def entering(network: str, mount_of: int | None = None) -> list[str]:
    """The words before a command that make it run in a network namespace, and in a process's mount namespace."""
    words = ["nsenter", f"--net=/run/netns/{network}"]
    if mount_of is not None:
        words.append(f"--mount=/proc/{mount_of}/ns/mnt")
    return [*words, "--"]


def start(
    argv: Sequence[str | Path],
    *,
    cluster: str,
    node: str,
    component: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    pass_fds: Collection[int] = (),
) -> int:
    """Start a program that outlives this process, and return its process id."""
    log.parent.mkdir(parents=True, exist_ok=True)
    marks = {MARK_CLUSTER: cluster, MARK_NODE: node, MARK_COMPONENT: component}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            env={**_clean_environment(), **(environment or {}), **marks},
            cwd="/",
        )
    # Popen would otherwise warn of a child that is still running when it is collected, which is what is meant here.
    process.returncode = 0
    return process.pid


def _clean_environment() -> dict[str, str]:
    """The environment without proxies: what the programs of a cluster talk to is never beyond one."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def _marks(pid: int) -> dict[str, str]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    words = (word.partition(b"=") for word in content.split(b"\0"))
    wanted = (MARK_CLUSTER, MARK_NODE, MARK_COMPONENT)
    return {name.decode(): value.decode() for name, _, value in words if name.decode(errors="replace") in wanted}


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended but was not yet waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def all_pids() -> Iterable[int]:
    """Every process of the machine."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def find(cluster: str | None = None) -> list[Process]:
    """The running programs of a cluster, or of all, with their children that were not started in containers."""
    found = []
    for pid in all_pids():
        marks = _marks(pid)
        if marks and (cluster is None or marks.get(MARK_CLUSTER) == cluster) and alive(pid):
            leader = _session(pid) == pid
            found.append(Process(pid, marks.get(MARK_NODE, ""), marks.get(MARK_COMPONENT, ""), leader))
    return found


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def clusters() -> set[str]:
    """The names of the clusters that have any process running."""
    return {marks[MARK_CLUSTER] for pid in all_pids() if (marks := _marks(pid)).get(MARK_CLUSTER)}


def _await_end(pids: Iterable[int], seconds: float) -> list[int]:
    """Wait until processes have ended, and return those that have not in time."""
    deadline = time.monotonic() + seconds
    left = []
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                left.append(pid)
        finally:
            os.close(descriptor)
        _reap(pid)
    return left


def _reap(pid: int) -> None:
    """Take note of a child's end, so that it does not stay as a zombie; other processes' children are not ours."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def stop(pids: Iterable[int], *, gently: bool = True) -> None:
    """End processes and wait until they have ended: asked first, then killed.

    Raises:
        ClusterError: one is still there after it was killed.
    """
    left = list(pids)
    if gently:
        _signal(left, signal.SIGTERM)
        left = _await_end(left, STOP_SECONDS)
    # A stopped (SIGSTOP) process dies of SIGKILL all the same.
    _signal(left, signal.SIGKILL)
    left = _await_end(left, STOP_SECONDS)
    if left:
        raise ClusterError(f"processes {left} don't end, not even when killed")
