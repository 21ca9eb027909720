"""`medianest-dbctl` as a process of its own, without the half second of a processor that its imports take.

A server without threads has imported everything and forks itself for each run, as Python's `multiprocessing` does with
"forkserver": what runs has its own command line, environment, streams and end, and the entry point is the real one.
What is measured is started as people do it instead (`alone`), and so is what `commands.dbctl` runs.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OPERATOR = Path(__file__).resolve().parents[2] / "operator"
_ROOMS = ("agent", "api", "backups", "hardening", "health", "migrations", "postgres", "results")
_FDS = 4
_LONGEST = 1 << 20


class Dbctl(subprocess.Popen[str]):
    """`subprocess.Popen` of `medianest-dbctl` with these arguments; standard input is empty."""

    def __init__(self, *arguments: str, env: Mapping[str, str], **streams: Any) -> None:
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ended = ours
        self._status: int | None = None
        super().__init__(["medianest-dbctl", *arguments], env=env, stdin=subprocess.DEVNULL, text=True, **streams)

    def _execute_child(self, args: list[str], *rest: Any) -> None:
        # Of what `subprocess` hands over (3.11): the environment, and the pipes' two ends each.
        environment, pipes = rest[5], rest[9:15]
        streams = (pipes[0], pipes[3] if pipes[3] != -1 else 1, pipes[5] if pipes[5] != -1 else 2)
        with self._theirs:
            socket.send_fds(_server(), [b"run"], [*streams, self._theirs.fileno()])
        request = {"arguments": args, "environment": dict(environment), "folder": str(Path.cwd())}
        self._ended.sendall(json.dumps(request).encode())
        what, _, number = self._ended.recv(64).decode().partition(" ")
        assert what == "begun", "the server that forks is gone, or the run before it began"
        self.pid = int(number)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _ending(self, timeout: float | None) -> int | None:
        if self._status is None and select.select([self._ended], [], [], timeout)[0]:
            _, _, number = self._ended.recv(64).decode().partition(" ")
            self._status = int(number or signal.SIGKILL)
            self._ended.close()
        return self._status

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        status = self._ending(0 if wait_flags & os.WNOHANG else None)
        return (0, 0) if status is None else (self.pid, status)

    def _internal_poll(self, *_: object, **__: object) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                status = self._ending(0)
                if status is not None:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def alone(*arguments: str, env: Mapping[str, str], **streams: Any) -> subprocess.Popen[str]:
    """As `Dbctl`, begun as people begin it, so that its memory is all its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "medianest_operator.agent", *arguments],
        env={**env, "PYTHONPATH": str(OPERATOR)},
        stdin=subprocess.DEVNULL,
        text=True,
        **streams,
    )


_starting = threading.Lock()
_running: list[socket.socket] = []


def _server() -> socket.socket:
    """Where runs are asked for; it ends with this process, whose end of the socket it sees closed."""
    with _starting:
        if not _running:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
                subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno())],
                    env={**inherited, "PYTHONPATH": str(OPERATOR)},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            _running.append(ours)
        return _running[0]


def _import_everything() -> None:
    for room in _ROOMS:
        package = importlib.import_module(f"medianest_operator.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def _serve(control: socket.socket) -> list[int] | None:
    """In each run's own process: its streams, and where it is asked. None at the end of the server."""
    waiting: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd != control.fileno():
                    pid, ended = waiting.pop(key.fd)
                    status = os.waitpid(pid, 0)[1]
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    with ended, contextlib.suppress(OSError):
                        ended.sendall(f"ended {status}".encode())
                    continue
                message, fds, _, _ = socket.recv_fds(control, 16, _FDS)
                if not message:
                    return None
                pid = os.fork()
                if not pid:
                    return fds
                for fd in fds[:-1]:
                    os.close(fd)
                pidfd = os.pidfd_open(pid)
                waiting[pidfd] = (pid, socket.socket(fileno=fds[-1]))
                selector.register(pidfd, selectors.EVENT_READ)


def _become(fds: list[int]) -> list[str]:
    *streams, asked = fds
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    with socket.socket(fileno=asked) as connection:
        request = json.loads(connection.recv(_LONGEST))
        connection.sendall(f"begun {os.getpid()}".encode())
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    through = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdout = io.TextIOWrapper(open(1, "wb", buffering=0 if through else -1), write_through=through)  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(open(2, "wb", buffering=0), write_through=True)  # noqa: SIM115
    gc.enable()
    arguments: list[str] = request["arguments"]
    return arguments


if __name__ == "__main__":
    _import_everything()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads can't be forked"
    # What is there now is there for good: looking at it would only copy its pages.
    gc.disable()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        fds = _serve(control)
    if fds is not None:
        sys.argv = _become(fds)
        from medianest_operator.agent.__main__ import main

        main()
