"""A real S3 server over TLS with an authority of its own, and a front that spoils what goes to it; on loopback."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from cluster import golang
from cluster.errors import ClusterError
from cluster.pki import Authority
from medianest_operator.backups.repository.client import Repository, open_repository
from medianest_operator.backups.repository.locations import Patience

IMPATIENT = Patience(connect=2, silence=1.5, request=5, retries=2, retry_for=4)
_START_LIMIT = 90.0


@dataclass(frozen=True)
class ObjectStore:
    """A running server.

    Attributes:
        endpoint: its URL.
        authority: the certificate of its authority, PEM.
        credentials: a folder as a mounted Secret.
        data: a folder in it is a bucket.
    """

    endpoint: str
    authority: Path
    credentials: Path
    data: Path

    def bucket(self, name: str | None = None) -> Bucket:
        """A new bucket."""
        name = name or f"b{uuid.uuid4().hex[:12]}"
        (self.data / name).mkdir()
        return Bucket(self, name)


@dataclass(frozen=True)
class Bucket:
    """A bucket of it."""

    server: ObjectStore
    name: str

    def text(self, prefix: str = "prod/backups", **changed: str) -> str:
        """The repository as a command line names it; options with the value "" are left out."""
        options = {
            "endpoint": self.server.endpoint,
            "region": "us-east-1",
            "path_style": "true",
            "credentials": str(self.server.credentials),
            "ca": str(self.server.authority),
        }
        chosen = {key: value for key, value in (options | changed).items() if value}
        return f"bucket=s3://{self.name}/{prefix}?{urlencode(chosen)}"

    def open(self, patience: Patience | None = None, **changed: str) -> Repository:
        """The repository."""
        return open_repository(self.text(**changed), patience)

    @property
    def files(self) -> list[str]:
        """The objects' paths, as they lie on the server's disk."""
        root = self.server.data / self.name
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and ".sgwtmp" not in p.parts)

    @property
    def unfinished(self) -> list[Path]:
        """What the server holds of uploads in parts that were neither completed nor given up."""
        held = self.server.data / self.name / ".sgwtmp" / "multipart"
        return [path for path in held.rglob("*") if path.is_file()] if held.exists() else []


@contextmanager
def running_object_store(folder: Path) -> Iterator[ObjectStore]:
    """Start the server; skips the test where it can't be built, which in CI is a failure."""
    try:
        binary = golang.build(golang.S3)
    except ClusterError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the S3 server can't be built: {error}")
    authority = Authority(folder / "pki")
    authority.create()
    authority.issue("server", "s3", names=["127.0.0.1"])
    keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30)}
    credentials, data = folder / "credentials", folder / "data"
    for made in (credentials, data):
        made.mkdir(parents=True)
    for name, value in keys.items():
        (credentials / name).write_text(value + "\n")
    port = free_port()
    command = [
        *(str(binary), f"--port=127.0.0.1:{port}", "--region=us-east-1", "--quiet"),
        *(f"--cert={folder / 'pki' / 'server.crt'}", f"--key={folder / 'pki' / 'server.key'}"),
        *("posix", str(data)),
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "ROOT_ACCESS_KEY": keys["AWS_ACCESS_KEY_ID"],
        "ROOT_SECRET_KEY": keys["AWS_SECRET_ACCESS_KEY"],
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_for(port, process, folder / "log")
        yield ObjectStore(f"https://127.0.0.1:{port}", authority.certificate, credentials, data)
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        # Nothing of the server's can be waited for.
        time.sleep(0.05)
    raise AssertionError(f"the S3 server did not start: {log.read_text()}")


Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""Answers in the server's place, or returns `None`: then the request goes on to the server."""


class Front:
    """Stands before the server, with its certificate, and passes requests on, unless its fault steps in."""

    def __init__(self, server: ObjectStore) -> None:
        self._server = server
        self._fault: Fault | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.endpoint = ""
        self.seen: list[str] = []
        """Requests in the order in which they came."""
        self.done: list[str] = []
        """Those that were passed on, in the order in which the server answered."""

    def spoil(self, fault: Fault | None) -> None:
        """From now on."""
        self._fault = fault

    def __enter__(self) -> Front:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        context = ssl.create_default_context(cafile=str(self._server.authority))
        self._session = ClientSession(
            connector=TCPConnector(ssl=context), auto_decompress=False, timeout=ClientTimeout(total=30)
        )
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        own.load_cert_chain(
            self._server.authority.with_name("server.crt"), self._server.authority.with_name("server.key")
        )
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=own)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint = f"https://{host}:{port}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(f"{request.method} {request.rel_url}")
        if self._fault is not None and (answer := await self._fault(request)) is not None:
            return answer
        return await self.pass_on(request)

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """The server's own answer."""
        body = await request.read()
        # The signature covers the Host header, so that it has to stay.
        async with self._session.request(
            request.method, f"{self._server.endpoint}{request.raw_path}", headers=request.headers, data=body
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in ("transfer-encoding", "connection")}
            content = await answer.read()
        self.done.append(f"{request.method} {request.rel_url}")
        return web.Response(status=answer.status, headers=kept, body=content)


def status(code: int, name: str = "InternalError", method: str = "", query: str = "") -> Fault:
    """Answer so, to requests of a method whose query has a word."""

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if method not in ("", request.method) or query not in request.query_string:
            return None
        await request.read()
        return web.Response(status=code, text=f"<Error><Code>{name}</Code></Error>", content_type="application/xml")

    return fault


def silence(method: str = "") -> Fault:
    """Take requests and never answer."""

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if method not in ("", request.method):
            return None
        await asyncio.sleep(3600)
        return None

    return fault


def cut(method: str, times: int = 10**6, after: int = 0) -> Fault:
    """Cut the connection in the middle of the bodies of some requests of a method.

    Args:
        times: so many requests.
        after: so many pass before that.
    """
    count = 0

    async def fault(request: web.Request) -> web.StreamResponse | None:
        nonlocal count
        if request.method != method:
            return None
        count += 1
        if not after < count <= after + times:
            return None
        await request.content.read(1000)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return fault
