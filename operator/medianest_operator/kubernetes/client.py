"""The only module that talks to the API server: raw dicts over one bounded aiohttp session.

Typed client models drop fields that they don't know and cost several times as much, so `kubernetes` only loads the
configuration.
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import kubernetes.client
import kubernetes.config

from medianest_operator import __version__, naming
from medianest_operator.kubernetes.kinds import Kind, Manifest
from medianest_operator.observability import metrics

_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_CONNECTIONS = 32
_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
_PAGE = 500


class ApiError(Exception):
    """The API server refused: its status code, the machine-readable reason, and its message for people."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def refused(self) -> bool:
        """Whether trying the same again is pointless until something else changes."""
        return self.status in {400, 403, 422}


class Conflict(ApiError):
    """The object changed since it was read, or exists already."""


class KubernetesClient:
    """Calls to the API server. Use as an asynchronous context manager."""

    def __init__(self, configuration: kubernetes.client.Configuration) -> None:
        self.configuration = configuration
        self._server = str(configuration.host).rstrip("/")
        self._context: ssl.SSLContext | None = None
        if self._server.startswith("https://"):
            self._context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
            if configuration.cert_file:
                self._context.load_cert_chain(configuration.cert_file, configuration.key_file)
        self._token: str | None = (configuration.api_key or {}).get("authorization")
        self._in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ and _TOKEN.exists()
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def load(cls) -> "KubernetesClient":
        """In a pod its service account, elsewhere $KUBECONFIG. Raises kubernetes.config.ConfigException."""
        configuration = kubernetes.client.Configuration()
        try:
            kubernetes.config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except kubernetes.config.ConfigException:
            kubernetes.config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        return cls(configuration)

    @property
    def server(self) -> str:
        return self._server

    def authorization(self) -> str | None:
        """The Authorization header; read anew, since the kubelet rotates the token."""
        if self._in_cluster:
            return f"Bearer {_TOKEN.read_text().strip()}"
        if self._token and " " not in self._token:
            return f"Bearer {self._token}"
        return self._token

    async def __aenter__(self) -> "KubernetesClient":
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=self._context or True)
        headers = {"User-Agent": f"{naming.OPERATOR}/{__version__}", "Accept": "application/json"}
        self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, headers=headers)
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
    ) -> Manifest:
        if self._session is None:
            raise RuntimeError("the client is used outside its context")
        headers = {"Content-Type": content_type}
        if authorization := self.authorization():
            headers["Authorization"] = authorization
        data = None if body is None else json.dumps(body, separators=(",", ":"))
        async with self._session.request(
            method, self._server + path, params=params, data=data, headers=headers
        ) as response:
            metrics.API_REQUESTS.labels(method, str(response.status)).inc()
            text = await response.text()
        try:
            answer: Manifest = json.loads(text) if text else {}
        except ValueError:
            answer = {"message": text[:500]}
        if response.status >= 400:
            kind = Conflict if response.status == 409 else ApiError
            raise kind(response.status, answer.get("reason", ""), answer.get("message", text[:500]))
        return answer

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """The object, or None where there is none."""
        try:
            return await self._call("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> AsyncIterator[Manifest]:
        """Every object of a kind, in pages."""
        params = {"limit": str(_PAGE)}
        if labels:
            params["labelSelector"] = labels
        if fields:
            params["fieldSelector"] = fields
        while True:
            page = await self._call("GET", kind.path(namespace), params=params)
            for item in page["items"]:
                yield item
            if not (token := page["metadata"].get("continue")):
                return
            params["continue"] = token

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

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Create an object. Raises Conflict where one of its name exists."""
        return await self._call(
            "POST",
            kind.path(manifest["metadata"]["namespace"]),
            manifest,
            params={"fieldManager": naming.FIELD_MANAGER},
        )

    async def replace(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Replace an object as it was read. Raises Conflict where it changed since."""
        metadata = manifest["metadata"]
        return await self._call("PUT", kind.path(metadata["namespace"], metadata["name"]), manifest)

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


TRANSIENT_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, ConnectionError)
"""What a call raises where the API server can't be reached."""
