"""The only module that imports kopf: it watches and calls back; the loop is ours (see docs/architecture.md).

kopf's own state-keeping handlers would write annotations and finalizers into every object, so only `on.event` is used:
it keeps nothing, retries nothing, and each event does no more than enqueue a key.
"""

import asyncio
import contextlib
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from medianest_operator import naming
from medianest_operator.controller.queue import WorkQueue
from medianest_operator.errors import Transient
from medianest_operator.kubernetes.apply import Applier
from medianest_operator.kubernetes.cache import Cache, database_key
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError, KubernetesClient
from medianest_operator.kubernetes.events import Recorder
from medianest_operator.kubernetes.kinds import CHILDREN, OWN, Kind
from medianest_operator.naming import Key
from medianest_operator.observability import metrics
from medianest_operator.postgres.sessions import Sessions, Unreachable
from medianest_operator.reconcile.context import Services
from medianest_operator.reconcile.database import DatabaseReconciler
from medianest_operator.reconcile.handovers import Handovers
from medianest_operator.reconcile.memory import Memory
from medianest_operator.reconcile.notifications import Notifier
from medianest_operator.settings import Settings

log = logging.getLogger(__name__)

_TOKEN_REREAD = timedelta(minutes=10)
_RUN_DEADLINE = 180.0
"""Seconds after which a run counts as hung. A switchover alone may take a minute."""


class Loop:
    """Cache, queue and workers of the replica that leads."""

    def __init__(self, settings: Settings, client: KubernetesClient) -> None:
        self._settings = settings
        self._client = client
        self._cache = Cache()
        self._queue = WorkQueue()
        self._sessions = Sessions()
        recorder = Recorder(client, settings.identity)
        self._notifier = Notifier(client, recorder)
        self._handovers = Handovers(self._queue.add)
        services = Services(
            settings=settings,
            client=client,
            cache=self._cache,
            applier=Applier(client, self._cache),
            recorder=recorder,
            sessions=self._sessions,
            memory=Memory(),
            notifier=self._notifier,
            handovers=self._handovers,
        )
        self._reconciler = DatabaseReconciler(services)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """List everything once, then let the workers begin."""
        await self._sweep()
        for key in self._cache.databases():
            self._queue.add(key)
        self._tasks = [asyncio.create_task(self._queue.work(self._run)) for _ in range(self._settings.workers)]
        self._tasks.append(asyncio.create_task(self._sweep_for_ever()))

    async def stop(self) -> None:
        """Let go of everything; what was under way is found again by whoever leads next."""
        self._queue.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._handovers.close()
        await self._notifier.close()
        await self._sessions.close()

    def seen(self, kind: Kind, event: str | None, manifest: dict[str, Any]) -> None:
        """A watch told of an object."""
        key = database_key(kind, manifest)
        if event == "DELETED":
            self._cache.remove(kind, manifest)
        elif not self._cache.put(kind, manifest):
            return
        if key:
            self._queue.add(key)

    async def _run(self, key: Key) -> None:
        extra = {"database": "/".join(key)}
        try:
            with metrics.RECONCILE_SECONDS.time():
                async with asyncio.timeout(_RUN_DEADLINE):
                    delay = await self._reconciler.reconcile(key)
        except (Transient, Unreachable, ApiError, *TRANSIENT_ERRORS) as error:
            metrics.RECONCILES.labels("retry").inc()
            wait = self._queue.retry(key)
            log.warning("will try again in %.1f s: %s", wait, error or repr(error), extra=extra)
        except Exception:
            metrics.RECONCILES.labels("broken").inc()
            wait = self._queue.retry(key)
            log.exception("reconcile broke; will try again in %.1f s", wait, extra=extra)
        else:
            metrics.RECONCILES.labels("done").inc()
            self._queue.forget(key)
            if delay is not None:
                self._queue.add_after(key, delay)

    async def _sweep(self) -> None:
        """Compare the cache with full lists: a watch that begins anew after a gap tells no deletions."""
        for kind in (*OWN, *CHILDREN):
            labels = "" if kind in OWN else naming.MANAGED_SELECTOR
            listed = []
            for namespace in self._settings.namespaces or (None,):
                listed += [item async for item in self._client.list(kind, namespace, labels=labels)]
            for item in listed:
                item.setdefault("apiVersion", kind.api_version)
                item.setdefault("kind", kind.kind)
            for key in self._cache.replace(kind, listed):
                self._queue.add(key)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval)
            try:
                await self._sweep()
            except (ApiError, *TRANSIENT_ERRORS) as error:
                log.warning("sweep: %s", error)


def registry(loop: Loop, client: KubernetesClient) -> kopf.OperatorRegistry:
    """kopf's handlers for one process."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**_: Any) -> kopf.ConnectionInfo:
        configuration = client.configuration
        scheme, _space, token = (client.authorization() or "").partition(" ")
        return kopf.ConnectionInfo(
            server=client.server,
            ca_path=configuration.ssl_ca_cert,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            scheme=scheme or None,
            token=token or None,
            # The kubelet rotates the token: kopf asks again in time.
            expiration=datetime.now(UTC) + _TOKEN_REREAD,
        )

    @kopf.on.startup(registry=handlers)
    async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.peering.standalone = True
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.process.ultimate_exiting_timeout = 25
        settings.networking.request_timeout = 30
        settings.networking.connect_timeout = 5
        settings.networking.error_backoffs = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55]
        settings.queueing.idle_timeout = 1
        settings.watching.chunk_size = 500
        for kind in CHILDREN:
            settings.watching.label_selectors[(kind.group, kind.version, kind.plural)] = naming.MANAGED_SELECTOR
        await loop.start()

    @kopf.on.cleanup(registry=handlers)
    async def cleanup(**_: Any) -> None:
        await loop.stop()

    def watch(kind: Kind) -> None:
        @kopf.on.event(kind.group, kind.version, kind.plural, id=f"seen-{kind.plural}", registry=handlers)
        async def seen(event: kopf.RawEvent, **_: Any) -> None:
            loop.seen(kind, event["type"], dict(event["object"]))

    for kind in (*OWN, *CHILDREN):
        watch(kind)
    return handlers


async def run(settings: Settings, client: KubernetesClient, stop: asyncio.Event) -> None:
    """Reconcile until `stop` is set."""
    loop = Loop(settings, client)
    with contextlib.suppress(asyncio.CancelledError):
        await kopf.operator(
            registry=registry(loop, client),
            stop_flag=stop,
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
        )
