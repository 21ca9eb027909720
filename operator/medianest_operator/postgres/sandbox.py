"""Where a throwaway server runs: as a child of this process, or in another container that has nothing worth taking.

`medianest-dbctl sandbox` serves in that container (`serve`), and a Job's own container asks it (`SidecarSandbox`). What
they share is a folder. Over the control socket in it goes one request, as a line of JSON, and one answer; the server
runs as long as that connection is open, so it ends with whichever side ends first. Passwords never go that way: the
request holds a SCRAM verifier. The asking side reads no file of the folder, and takes from the answer only whether the
server runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medianest_operator.postgres.throwaway import (
    START_LIMIT,
    SUPERUSER,
    Login,
    ThrowawayError,
    ThrowawayServer,
    local_server,
    running,
)

CONTROL = "control"
"""The control socket's name in the shared folder."""
APPEAR_LIMIT = 60.0
"""Seconds that the other container gets to listen."""
_LONGEST = 16 * 1024
"""Bytes of a request or an answer."""
_REQUEST_LIMIT = 10.0
_LOOK_EVERY = 0.5


class Sandbox(Protocol):
    """Makes throwaway servers."""

    def server(self, settings: Mapping[str, str] | None = None) -> AbstractContextManager[ThrowawayServer]:
        """A server as long as the block lasts.

        Args:
            settings: PostgreSQL's parameters, over those of every throwaway server.

        Raises:
            ThrowawayError: there is none.
        """
        ...


@contextlib.contextmanager
def making(sandbox: Sandbox) -> Iterator[Future[ThrowawayServer]]:
    """Have a server made while something else is done; it runs as long as the block lasts.

    The future has it, or the `ThrowawayError` that says why there is none.
    """
    # The pool is left first: until then the server's process has the parent that it must not outlive.
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1, thread_name_prefix="sandbox") as pool:
        yield pool.submit(stack.enter_context, sandbox.server())


@dataclass(frozen=True)
class LocalSandbox:
    """Servers that are children of this process, for a laptop and for tests."""

    parent: Path
    """Their folders are made in it."""

    def server(self, settings: Mapping[str, str] | None = None) -> AbstractContextManager[ThrowawayServer]:
        """See `Sandbox`."""
        return local_server(self.parent, settings)


class Request(BaseModel):
    """What the sandbox is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    folder: str = Field(pattern=r"^[0-9a-f]{8}$")
    verifier: str = Field(pattern=r"^SCRAM-SHA-256\$[A-Za-z0-9+/=:$]{1,200}$")
    settings: dict[str, str]


class Answer(BaseModel):
    """Whether the server runs, and if not, why."""

    model_config = ConfigDict(extra="forbid", strict=True)

    problem: str | None


@dataclass(frozen=True)
class SidecarSandbox:
    """Servers in another container of the pod."""

    folder: Path
    """What both containers share."""

    @contextlib.contextmanager
    def server(self, settings: Mapping[str, str] | None = None) -> Iterator[ThrowawayServer]:
        """See `Sandbox`."""
        admin = Login.new(SUPERUSER)
        request = Request(folder=secrets.token_hex(4), verifier=admin.verifier(), settings=dict(settings or {}))
        with self._connected() as control:
            try:
                control.settimeout(START_LIMIT + _REQUEST_LIMIT)
                control.sendall(request.model_dump_json().encode() + b"\n")
                answer = Answer.model_validate_json(_line(control))
            except (OSError, ValidationError) as error:
                raise _away("did not answer") from error
            if answer.problem is not None:
                raise ThrowawayError(f"the sandbox: {_printable(answer.problem)}")
            yield ThrowawayServer(self.folder / request.folder, admin)

    def _connected(self) -> socket.socket:
        deadline = time.monotonic() + APPEAR_LIMIT
        path = self.folder / CONTROL
        while True:
            control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                # Whatever else lies there in its place is not followed.
                if not stat.S_ISSOCK(path.lstat().st_mode):
                    raise _away("has no control socket")
                control.connect(str(path))
            except OSError as error:
                control.close()
                if time.monotonic() > deadline:
                    raise _away("is not there") from error
                time.sleep(0.1)
            except ThrowawayError:
                control.close()
                raise
            else:
                return control


def serve(folder: Path, report: Callable[[str], None]) -> None:
    """Answer requests in the shared folder, one after the other, until the process is ended.

    What an earlier run of the container left in the folder is removed first.

    Raises:
        OSError: the folder can't be written to.
    """
    for item in folder.iterdir():
        shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(folder / CONTROL))
        # Both containers run as the same user; nobody else has a way to the folder.
        os.chmod(folder / CONTROL, 0o600)
        listening.listen(4)
        report(f"waiting for requests in {folder}")
        while True:
            control, _ = listening.accept()
            with control:
                try:
                    _attend(folder, control, report)
                except (OSError, ThrowawayError) as error:
                    report(f"given up: {error}")


def _attend(folder: Path, control: socket.socket, report: Callable[[str], None]) -> None:
    """One request, until the side that asked is gone or the server is."""
    control.settimeout(_REQUEST_LIMIT)
    try:
        request = Request.model_validate_json(_line(control))
    except ValidationError as error:
        _send(control, f"no request: {error.error_count()} fields are wrong")
        return
    own = folder / request.folder
    own.mkdir(mode=0o755)
    try:
        with contextlib.ExitStack() as stack:
            try:
                process = stack.enter_context(running(own, request.verifier, request.settings))
            except ThrowawayError as error:
                _send(control, str(error))
                return
            _send(control, None)
            report(f"server {request.folder} runs")
            while process.poll() is None:
                readable, _, _ = select.select([control], [], [], _LOOK_EVERY)
                if readable and not control.recv(1):
                    break
            report(f"server {request.folder} ends")
    finally:
        shutil.rmtree(own, ignore_errors=True)


def end_on_sigterm() -> None:
    """Let the container end at once when it is asked to: nothing in it is worth keeping."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(0)

    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, end)


def _send(control: socket.socket, problem: str | None) -> None:
    text = None if problem is None else problem[:1000]
    control.sendall(json.dumps({"problem": text}).encode() + b"\n")


def _line(control: socket.socket) -> bytes:
    """What comes up to the end of a line.

    Raises:
        OSError: the other side is gone, too slow, or says too much.
    """
    said = b""
    deadline = time.monotonic() + (control.gettimeout() or _REQUEST_LIMIT)
    while not said.endswith(b"\n"):
        chunk = control.recv(4096)
        said += chunk
        if not chunk or len(said) > _LONGEST or time.monotonic() > deadline:
            raise ConnectionError("no whole line came")
    return said


def _printable(text: str) -> str:
    return re.sub(r"[^ -~]+", " ", text)[:500]


def _away(what: str) -> ThrowawayError:
    return ThrowawayError(f"the sandbox {what}", transient=True)
