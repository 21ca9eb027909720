"""An API server for tests of the loop: objects over HTTP, and faults on demand.

It keeps objects, merges what is applied, filters lists by label and streams watches. It knows no schemas, no
defaulting and no admission: what depends on these is tested on a real Kubernetes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from medianest_operator.kubernetes.access import Access
from medianest_operator.kubernetes.client import KubernetesClient
from medianest_operator.kubernetes.kinds import CHILDREN, ENDPOINTS, EVENT, LEASE, OWN, Kind, Manifest
from medianest_operator.timestamps import stamp_now

_KINDS = {kind.plural: kind for kind in (*OWN, *CHILDREN, ENDPOINTS, EVENT, LEASE)}


@dataclass(frozen=True)
class Call:
    """A request, as far as faults are chosen by it."""

    method: str
    kind: str
    namespace: str | None
    name: str | None
    subresource: str | None
    is_watch: bool = False

    def __str__(self) -> str:
        return " ".join(filter(None, (self.method, self.kind, self.name, self.subresource)))

    @property
    def is_write(self) -> bool:
        return self.method != "GET"


@dataclass(frozen=True)
class Fault:
    """How a request fails: with a status, by silence, or by a connection that is cut."""

    status: int = 0
    message: str = "the test wants it so"
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False
    cut: bool = False


class ApiServer:
    """Use as an asynchronous context manager."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Manifest] = {}
        self.calls: list[Call] = []
        self.fault: Callable[[Call], Fault | None] = lambda _: None
        self.url = ""
        self._applied: dict[tuple[str, str, str], Manifest] = {}
        self._version = 100
        self._watches: list[tuple[Kind, str | None, str, asyncio.Queue[dict[str, Any]]]] = []
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> ApiServer:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        for *_place, queue in self._watches:
            queue.put_nowait({})
        await self._runner.cleanup()

    @contextlib.asynccontextmanager
    async def client(self, patience: float = 5.0) -> AsyncIterator[KubernetesClient]:
        """The controller's own client, led here; a request may take so many seconds."""
        async with KubernetesClient(Access(self.url), patience) as client:
            yield client

    # For tests.

    def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """An object. Raises KeyError where there is none."""
        return self.objects[(kind.plural, namespace, name)]

    def all(self, kind: Kind) -> Iterator[Manifest]:
        """Every object of a kind."""
        return (item for (plural, _, _), item in sorted(self.objects.items()) if plural == kind.plural)

    def put(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Make an object what the test wants, as if somebody had written it."""
        metadata = manifest["metadata"]
        return self._store(kind, metadata["namespace"], metadata["name"], manifest)

    def publish_deletion(self, kind: Kind, gone: Manifest) -> None:
        """Tell the watches that an object is gone which the test took away."""
        self._version += 1
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._publish(kind, "DELETED", gone)

    # The protocol.

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        call = _parse(request)
        if call is None:
            return web.json_response({"message": "no such path"}, status=404)
        self.calls.append(call)
        fault = self.fault(call)
        if fault is not None:
            return await self._fail(request, fault)
        kind = _KINDS[call.kind]
        match call.method:
            case "GET" if call.is_watch:
                return await self._watch(request, kind, call)
            case "GET" if call.name is None:
                return web.json_response(self._list(request, kind, call))
            case "GET":
                found = self.objects.get((call.kind, str(call.namespace), str(call.name)))
                return web.json_response(found) if found else _status(404, "NotFound", "not found")
            case "DELETE":
                gone = self.objects.pop((call.kind, str(call.namespace), str(call.name)), None)
                if gone is None:
                    return _status(404, "NotFound", "not found")
                self.publish_deletion(kind, gone)
                return web.json_response(gone)
            case _:
                return self._write(kind, call, await request.json(), applied="apply-patch" in request.content_type)

    def _write(self, kind: Kind, call: Call, body: Manifest, *, applied: bool) -> web.Response:
        namespace, name = str(call.namespace), call.name or body["metadata"]["name"]
        known = self.objects.get((call.kind, namespace, name))
        if call.method == "POST" and known is not None:
            return _status(409, "AlreadyExists", f"{name} already exists")
        if call.method == "PUT":
            if known is None:
                return _status(404, "NotFound", f"{name} not found")
            if body["metadata"].get("resourceVersion") not in {None, known["metadata"]["resourceVersion"]}:
                return _status(409, "Conflict", f"{name} was changed since it was read")
        if call.subresource == "status":
            if known is None:
                return _status(404, "NotFound", f"{name} not found")
            # As the real one, which looks at the version, and here not at the UID.
            if body["metadata"].get("resourceVersion") not in {None, known["metadata"]["resourceVersion"]}:
                return _status(409, "Conflict", f"{name} was changed since it was read")
            body = known | {"status": body["status"]}
        elif call.method == "PATCH" and known is not None:
            before = self._applied.get((call.kind, namespace, name), {}) if applied else {}
            merged = _merged(_without(known, before, body), body)
            if applied:
                self._applied[(call.kind, namespace, name)] = body
            body = merged
        elif applied:
            self._applied[(call.kind, namespace, name)] = body
        return web.json_response(self._store(kind, namespace, name, body))

    def _store(self, kind: Kind, namespace: str, name: str, body: Manifest) -> Manifest:
        known = self.objects.get((kind.plural, namespace, name))
        self._version += 1
        generation = 1
        if known is not None:
            generation = known["metadata"]["generation"] + (known.get("spec") != body.get("spec"))
        metadata = {
            **body["metadata"],
            "namespace": namespace,
            "name": name,
            "uid": known["metadata"]["uid"] if known else body["metadata"].get("uid", f"uid-{self._version}"),
            "creationTimestamp": known["metadata"]["creationTimestamp"] if known else stamp_now(),
            "generation": generation,
            "resourceVersion": str(self._version),
        }
        stored = {"apiVersion": kind.api_version, "kind": kind.kind, **body, "metadata": metadata}
        self.objects[(kind.plural, namespace, name)] = stored
        self._publish(kind, "MODIFIED" if known else "ADDED", stored)
        return stored

    def _list(self, request: web.Request, kind: Kind, call: Call) -> dict[str, Any]:
        selector = request.query.get("labelSelector", "")
        items = [item for item in self.all(kind) if _matches(item, call.namespace, selector)]
        fields = dict(part.split("=", 1) for part in request.query.get("fieldSelector", "").split(",") if part)
        if uid := fields.get("involvedObject.uid"):
            items = [item for item in items if item.get("involvedObject", {}).get("uid") == uid]
        # An empty list of metadata alone is null there.
        return {"items": items or None, "metadata": {"resourceVersion": str(self._version)}}

    async def _watch(self, request: web.Request, kind: Kind, call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        entry = (kind, call.namespace, request.query.get("labelSelector", ""), queue)
        # What happened since the list.
        since = int(request.query.get("resourceVersion") or 0)
        for item in self.all(kind):
            if int(item["metadata"]["resourceVersion"]) > since and _matches(item, entry[1], entry[2]):
                queue.put_nowait({"type": "MODIFIED", "object": item})
        self._watches.append(entry)
        try:
            while not self._stopping.is_set():
                event = await queue.get()
                if not event:
                    break
                await response.write(json.dumps(event).encode() + b"\n")
        except ConnectionError:
            pass
        finally:
            self._watches.remove(entry)
        return response

    def end_watches(self) -> None:
        """Cut every watch, as a restarted API server does."""
        for *_place, queue in list(self._watches):
            queue.put_nowait({})

    def _publish(self, kind: Kind, event: str, item: Manifest) -> None:
        for watched, namespace, selector, queue in self._watches:
            if watched == kind and _matches(item, namespace, selector):
                queue.put_nowait({"type": event, "object": item})

    async def _fail(self, request: web.Request, fault: Fault) -> web.Response:
        if fault.cut:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        if fault.silent:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 60)
        status = fault.status or 500
        document = {"kind": "Status", "reason": fault.reason, "message": fault.message, "code": status}
        return web.json_response(document, status=status, headers=fault.headers)


def _parse(request: web.Request) -> Call | None:
    parts = request.path.strip("/").split("/")
    rest = parts[3:] if parts[0] == "apis" else parts[2:]
    namespace = None
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    if not rest or rest[0] not in _KINDS:
        return None
    name, subresource, *_ = *rest[1:], None, None
    return Call(request.method, rest[0], namespace, name, subresource, "watch" in request.query)


def _matches(item: Manifest, namespace: str | None, selector: str) -> bool:
    labels = item["metadata"].get("labels") or {}
    wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
    right_place = namespace in {None, item["metadata"]["namespace"]}
    return right_place and all(labels.get(key) == value for key, value in wanted.items())


def _merged(live: Any, patch: Any) -> Any:
    """As server-side apply by the only manager of what it names: maps are merged, all else is replaced."""
    if isinstance(live, dict) and isinstance(patch, dict):
        return {key: _merged(live.get(key), patch[key]) if key in patch else live[key] for key in {**live, **patch}}
    return patch


def _without(live: Any, before: Any, now: Any) -> Any:
    """What is left of an object once its manager no longer applies what it did before."""
    if not (isinstance(live, dict) and isinstance(before, dict) and isinstance(now, dict)):
        return live
    gone = {key for key in before if key not in now}
    return {key: _without(value, before.get(key), now.get(key)) for key, value in live.items() if key not in gone}


def _status(code: int, reason: str, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "reason": reason, "message": message, "code": code}, status=code)
