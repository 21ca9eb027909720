"""The only module that talks to the API server: raw dicts over one bounded aiohttp session.

Typed client models drop fields that they don't know and cost several times as much, so `kubernetes` only reads a
kubeconfig.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, MutableSequence, Sequence
from typing import Any

import aiohttp
import pydantic_core

from medianest_operator import __version__, naming
from medianest_operator.kubernetes.access import Access
from medianest_operator.kubernetes.kinds import Kind, Manifest
from medianest_operator.observability import metrics

_CONNECTIONS = 32
_TIMEOUT = 30.0
_PAGE = 500
_LONGEST_PAUSE = 60.0
"""Seconds. An API server that asks for more gets another request nevertheless."""
_BACK_OFF_FIRST = 0.05
_BACK_OFF_LAST = 5.0
"""Seconds that all callers wait after a failure of the API server's own."""
_MOST_TROUBLE = 8
_SILENCE = 80.0
"""Seconds after which a watch that says nothing is taken for a connection that is dead: the API server sends a bookmark
every minute (its watch cache does, upstream)."""
_LONGEST_LINE = 16 << 20
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


TRANSIENT_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, ConnectionError)
"""What a call raises where the API server can't be reached."""


class ApiError(Exception):
    """The API server refused: its status code, the machine-readable reason, and its message for people."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Seconds that the API server asks to wait before any further request."""

    @property
    def refused(self) -> bool:
        """Whether trying the same again is pointless until something else changes."""
        return self.status in {400, 403, 422}


class NotLeading(ConnectionError):
    """Another replica may act by now."""


class Conflict(ApiError):
    """The object changed since it was read, or exists already."""


class KubernetesClient:
    """Calls to the API server. Use as an asynchronous context manager."""

    def __init__(self, access: Access, timeout: float = _TIMEOUT) -> None:
        """
        Args:
            timeout: of a whole request, in seconds.
        """
        self.access = access
        self.may_write: Callable[[], bool] = lambda: True
        """Asked before each request that changes something, but for urgent ones: who leads no more writes nothing."""
        self._tls = access.tls()
        self._session: aiohttp.ClientSession | None = None
        self._resume_at = 0.0
        self._calm_at = 0.0
        self._trouble = 0
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=5)
        self.last_answer = time.monotonic()
        """When the API server last answered anything but an error of its own, by the monotonic clock."""

    async def __aenter__(self) -> "KubernetesClient":
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=self._tls or True)
        headers = {"User-Agent": f"{naming.OPERATOR}/{__version__}", "Accept": "application/json"}
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
        accept: str = "application/json",
        urgent: bool = False,
    ) -> Manifest:
        if not urgent:
            await self._wait_for_turn(important=path.endswith("/status"))
            if method != "GET" and not self.may_write():
                raise NotLeading("this process may not write any more: it doesn't hold the Lease")
        data = None if body is None else pydantic_core.to_json(body)
        try:
            async with self._open.request(
                method, self.access.server + path, params=params, data=data, headers=self._headers(content_type, accept)
            ) as response:
                metrics.API_REQUESTS.labels(method, str(response.status)).inc()
                content = await response.read()
        except TRANSIENT_ERRORS:
            self._back_off()
            raise
        try:
            answer: Manifest = pydantic_core.from_json(content) if content else {}
        except ValueError:
            answer = {"message": _beginning(content)}
        if response.status >= 400:
            kind = Conflict if response.status == 409 else ApiError
            pause = self._hold_back(response)
            raise kind(response.status, answer.get("reason", ""), answer.get("message", _beginning(content)), pause)
        self.last_answer = time.monotonic()
        self._trouble = max(0, self._trouble - 1)
        return answer

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is used outside its context")
        return self._session

    def _headers(self, content_type: str, accept: str = "application/json") -> dict[str, str]:
        authorization = self.access.authorization()
        return {"Content-Type": content_type, "Accept": accept} | (
            {"Authorization": authorization} if authorization else {}
        )

    def _hold_back(self, response: aiohttp.ClientResponse) -> float | None:
        """Where the API server asks for a pause, make all callers keep it: one that is overloaded has to be left alone
        by everybody. Returns the seconds."""
        text = response.headers.get("Retry-After", "")
        if response.status not in {429, 503}:
            # A 500 is mostly a webhook's, and so of one kind or namespace: it must not hold up the others.
            return None
        if not text.isascii() or not text.isdigit():
            self._back_off()
            return None
        pause = min(float(text), _LONGEST_PAUSE)
        # Not all at once at its end.
        self._resume_at = max(self._resume_at, time.monotonic() + pause * random.uniform(1.0, 1.3))
        return pause

    @property
    def is_held_back(self) -> bool:
        """Whether requests wait because the API server is in trouble."""
        return max(self._resume_at, self._calm_at) > time.monotonic()

    def _back_off(self) -> None:
        """Without the API server's word on how long: longer with every failure, shorter again with every success."""
        self._trouble = min(self._trouble + 1, _MOST_TROUBLE)
        pause = min(_BACK_OFF_LAST, _BACK_OFF_FIRST * 2.0**self._trouble) * random.uniform(0.7, 1.3)
        self._calm_at = max(self._calm_at, time.monotonic() + pause)

    async def _wait_for_turn(self, *, important: bool = False) -> None:
        """Let the API server have its pause.

        Args:
            important: wait only where it asked for one, not where it merely fails: what the status says of that is
                what people look for meanwhile.
        """
        until = self._resume_at if important else max(self._resume_at, self._calm_at)
        if (pause := until - time.monotonic()) > 0:
            # Once: some have to try again, or nobody would learn that it is over.
            await asyncio.sleep(pause + random.uniform(0, 0.2))

    async def get(self, kind: Kind, namespace: str, name: str, *, urgent: bool = False) -> Manifest | None:
        """The object, or None where there is none.

        Args:
            urgent: ask also while the API server wants a pause.
        """
        try:
            return await self._call("GET", kind.path(namespace, name), urgent=urgent)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> AsyncIterator[Manifest]:
        """Every object of a kind, in pages."""
        async for items, _ in self._pages(kind, namespace, labels, fields):
            for item in items:
                yield item

    async def snapshot(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", metadata_only: bool = False
    ) -> tuple[Sequence[Manifest], str]:
        """Every object of a kind at one moment, and the resource version of that moment, from which a watch goes on."""
        found: MutableSequence[Manifest] = []
        version = ""
        async for items, of_page in self._pages(kind, namespace, labels, "", metadata_only=metadata_only):
            found += items
            # The first page's: a watch from there misses nothing, whatever the server does between two pages.
            version = version or of_page
        for item in found:
            # Lists leave both out of their items.
            item.setdefault("apiVersion", kind.api_version)
            item.setdefault("kind", kind.kind)
        return found, version

    async def _pages(
        self, kind: Kind, namespace: str | None, labels: str, fields: str, *, metadata_only: bool = False
    ) -> AsyncIterator[tuple[Sequence[Manifest], str]]:
        params = {"limit": str(_PAGE)}
        if labels:
            params["labelSelector"] = labels
        if fields:
            params["fieldSelector"] = fields
        accept = _METADATA_LIST if metadata_only else "application/json"
        while True:
            page = await self._call("GET", kind.path(namespace), params=params, accept=accept)
            yield page.get("items") or [], page["metadata"].get("resourceVersion", "")
            if not (token := page["metadata"].get("continue")):
                return
            params["continue"] = token

    async def watch(
        self,
        kind: Kind,
        version: str,
        namespace: str | None = None,
        *,
        labels: str = "",
        seconds: int = 300,
        silence: float = _SILENCE,
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """What happens to the objects of a kind after a resource version: ADDED, MODIFIED, DELETED and BOOKMARK.

        It ends after some minutes, and is begun again where it was.

        Args:
            silence: seconds without a word after which it ends, too.

        Raises:
            ApiError: of status 410 where the version is too old to go on from.
        """
        params = {
            "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds),
        }  # fmt: skip
        if labels:
            params["labelSelector"] = labels
        await self._wait_for_turn()
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=silence)
        async with self._open.get(
            self.access.server + kind.path(namespace),
            params=params,
            headers=self._headers("application/json"),
            timeout=timeout,
        ) as response:
            metrics.API_REQUESTS.labels("WATCH", str(response.status)).inc()
            if response.status >= 400:
                message = _beginning(await response.read())
                raise ApiError(response.status, "", message, self._hold_back(response))
            async for line in _until_silent(_lines(response.content)):
                event = pydantic_core.from_json(line)
                self.last_answer = time.monotonic()
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(int(status.get("code", 500)), status.get("reason", ""), status.get("message", ""))
                yield event["type"], event["object"]

    async def apply(self, kind: Kind, manifest: Manifest, subresource: str | None = None) -> Manifest:
        """Server-side apply under the operator's name. Returns the live object."""
        metadata = manifest["metadata"]
        manager = naming.STATUS_FIELD_MANAGER if subresource == "status" else naming.FIELD_MANAGER
        return await self._call(
            "PATCH",
            kind.path(metadata["namespace"], metadata["name"], subresource),
            manifest,
            content_type="application/apply-patch+yaml",
            params={"fieldManager": manager, "force": "true"},
        )

    async def merge(self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any]) -> Manifest:
        """A JSON merge patch (RFC 7396)."""
        return await self._call(
            "PATCH",
            kind.path(namespace, name),
            patch,
            content_type="application/merge-patch+json",
            params={"fieldManager": naming.FIELD_MANAGER},
        )

    async def create(self, kind: Kind, manifest: Manifest, *, urgent: bool = False) -> Manifest:
        """Create an object. Raises Conflict where one of its name exists."""
        return await self._call(
            "POST",
            kind.path(manifest["metadata"]["namespace"]),
            manifest,
            params={"fieldManager": naming.FIELD_MANAGER},
            urgent=urgent,
        )

    async def replace(self, kind: Kind, manifest: Manifest, *, urgent: bool = False) -> Manifest:
        """Replace an object as it was read. Raises Conflict where it changed since."""
        metadata = manifest["metadata"]
        return await self._call("PUT", kind.path(metadata["namespace"], metadata["name"]), manifest, urgent=urgent)

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str,
        propagation: str = "Background",
        grace_seconds: int | None = None,
    ) -> None:
        """Delete exactly the object of that uid; one that is gone already is fine."""
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {"uid": uid},
        }
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            await self._call("DELETE", kind.path(namespace, name), body)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise


def _beginning(content: bytes) -> str:
    """Of an answer that isn't what was expected, for a message."""
    return content[:500].decode(errors="replace")


async def _until_silent(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines, until none comes for so long that the connection is given up."""
    try:
        async for line in lines:
            yield line
    except aiohttp.SocketTimeoutError:
        return


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream. Its own `readline` refuses those of more than 64 KiB, which a Secret's event may have."""
    rest = bytearray()
    async for chunk in content.iter_any():
        rest += chunk
        while (end := rest.find(b"\n")) >= 0:
            yield bytes(rest[:end])
            del rest[: end + 1]
        if len(rest) > _LONGEST_LINE:
            raise ApiError(500, "", "a watch event has more than 16 MiB")
