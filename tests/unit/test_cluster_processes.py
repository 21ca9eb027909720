"""Programs are found by what they carry, and end when they are told to."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import network, processes
from cluster.errors import ClusterError
from cluster.progress import together

PATIENCE_MILLISECONDS = 30_000


@pytest.fixture
def cluster() -> Iterator[str]:
    """A name that no cluster has; what a failed test left running under it is ended."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    yield name
    processes.stop([process.pid for process in processes.find(name)], gently=False)


def _start(cluster: str, script: str, tmp_path: Path, component: str = "program") -> int:
    """Start a shell script and wait until it has come to its READY."""
    fifo = tmp_path / f"{component}.fifo"
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        pid = processes.start(
            ["sh", "-c", script.replace("READY", f"echo > {fifo}")],
            cluster=cluster,
            node="node1",
            component=component,
            log=tmp_path / f"{component}.log",
        )
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        assert poller.poll(PATIENCE_MILLISECONDS), "the script did not get ready"
    finally:
        os.close(descriptor)
    return pid


def test_a_program_and_its_children_are_found(cluster: str, tmp_path: Path) -> None:
    never = tmp_path / "never"
    os.mkfifo(never)
    # The child is a subshell that waits by itself: one that is just being replaced by a program has no environment yet.
    pid = _start(cluster, f"(READY; read line < {never}) & wait", tmp_path)
    found = processes.find(cluster)
    assert {(process.node, process.component) for process in found} == {("node1", "program")}
    assert [process.pid for process in found if process.leader] == [pid]
    assert len(found) == 2
    assert cluster in processes.clusters()
    processes.stop([process.pid for process in found])
    assert processes.find(cluster) == []
    assert not processes.alive(pid)


def test_a_program_that_does_not_listen_is_killed(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.2)
    pid = _start(cluster, "trap '' TERM; READY; while true; do sleep 600; done", tmp_path)
    processes.stop([pid])
    assert not processes.alive(pid)


def test_a_frozen_program_can_be_ended(cluster: str, tmp_path: Path) -> None:
    pid = _start(cluster, "READY; exec sleep 600", tmp_path)
    os.kill(pid, signal.SIGSTOP)
    processes.stop([pid], gently=False)
    assert not processes.alive(pid)


def test_ending_what_has_ended_is_no_error() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    processes.stop([ended.pid])
    assert not processes.alive(ended.pid)


def test_a_program_inherits_no_proxy_and_writes_its_log(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid")
    _start(cluster, "env; READY", tmp_path)
    text = (tmp_path / "program.log").read_text()
    assert f"{processes.MARK_CLUSTER}={cluster}" in text
    assert "proxy.invalid" not in text


def test_a_failing_command_tells_what_it_said() -> None:
    with pytest.raises(ClusterError, match=r"(?s)sh -c .* failed \(3\).*this is why"):
        processes.capture(["sh", "-c", "echo this is why >&2; exit 3"])
    with pytest.raises(ClusterError, match="can't run no-such-program"):
        processes.capture(["no-such-program"])


def test_a_port_that_is_taken_is_not_waited_for() -> None:
    with network.listen() as first:
        taken = first.getsockname()[1]
        with network.listen(taken) as second:
            assert second.getsockname()[1] != taken
            assert second.getsockname()[0] == "127.0.0.1"


def test_side_by_side_work_is_finished_before_its_failure_is_told() -> None:
    finished: list[str] = []

    def fail() -> None:
        raise ClusterError("no such package")

    with pytest.raises(ClusterError, match="no such package"):
        together({"fail": fail, "other": lambda: finished.append("other")})
    assert finished == ["other"]
    assert together({"a": lambda: 1, "b": lambda: 2}) == {"a": 1, "b": 2}
