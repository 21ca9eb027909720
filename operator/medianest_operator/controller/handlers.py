"""The only module that imports kopf: it watches and calls back; the loop is ours (see docs/architecture.md).

kopf's own state-keeping handlers would write annotations and finalizers into every object, so only `on.event` is used:
it keeps nothing, retries nothing, and each event does no more than enqueue a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from medianest_operator.controller.loop import Loop
from medianest_operator.kubernetes.client import KubernetesClient
from medianest_operator.kubernetes.kinds import OWN, Kind
from medianest_operator.settings import Settings

# kopf has helpers for the objects of these packages wherever they can be imported: 20 MiB that nothing here uses. With
# `None` in its place a module can't be (Python's language reference, 5.3.1).
_hidden = {"kubernetes", "pykube"} - set(sys.modules)
sys.modules |= dict.fromkeys(_hidden)  # type: ignore[arg-type]
import kopf  # noqa: E402

for _name in _hidden:
    del sys.modules[_name]

log = logging.getLogger(__name__)

_TOKEN_REREAD: Final = timedelta(minutes=10)
_PAUSE_FIRST: Final = 1.0
_PAUSE_LAST: Final = 60.0


def registry(loop: Loop, client: KubernetesClient) -> kopf.OperatorRegistry:
    """kopf's handlers for the kinds that people make: they run in its thread and call into the running event loop."""
    handlers = kopf.OperatorRegistry()
    ours = asyncio.get_running_loop()

    @kopf.on.login(registry=handlers)
    def login(**_: Any) -> kopf.ConnectionInfo:
        access = client.access
        scheme, _space, token = (access.authorization() or "").partition(" ")
        return kopf.ConnectionInfo(
            server=access.server,
            ca_path=access.ca_file,
            certificate_path=access.certificate_file,
            private_key_path=access.key_file,
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

    def watch(kind: Kind) -> None:
        @kopf.on.event(kind.group, kind.version, kind.plural, id=f"seen-{kind.plural}", registry=handlers)
        async def seen(event: kopf.RawEvent, **_: Any) -> None:
            ours.call_soon_threadsafe(loop.observe, kind, event["type"], dict(event["object"]))

    for kind in OWN:
        watch(kind)
    return handlers


async def run(settings: Settings, client: KubernetesClient, stop: asyncio.Event, loop: Loop) -> None:
    """Reconcile until `stop` is set. A namespace whose watch ends, since it vanished or may not be read, harms no
    other: its watch is begun again later."""
    await loop.start()
    places: Iterable[str | None] = settings.namespaces or (None,)
    watches = [asyncio.create_task(_watch(client, stop, loop, place)) for place in places]
    try:
        await asyncio.gather(*watches)
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await loop.stop()


async def _watch(client: KubernetesClient, stop: asyncio.Event, loop: Loop, namespace: str | None) -> None:
    """kopf for one namespace, or for all of them, begun again whenever it ends before it was told to."""
    failures = 0
    while not stop.is_set():
        started = asyncio.get_running_loop().time()
        try:
            await _in_its_thread(registry(loop, client), [stop, loop.defined], namespace)
        except asyncio.CancelledError:
            if stop.is_set():
                return
            raise
        except Exception as error:
            where = f"namespace {namespace}" if namespace else "all namespaces"
            log.warning("the watch of %s ended and begins again: %s", where, error or repr(error))
        if asyncio.get_running_loop().time() - started > _PAUSE_LAST:
            failures = 0
        pause = min(_PAUSE_LAST, _PAUSE_FIRST * 2.0 ** min(failures, 10)) * random.uniform(0.8, 1.2)
        failures += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)


async def _in_its_thread(
    handlers: kopf.OperatorRegistry, stops: Iterable[asyncio.Event], namespace: str | None
) -> None:
    """kopf in a thread with an event loop of its own, until one of `stops` is set or it fails.

    In the main thread kopf takes SIGTERM and SIGINT for itself, and whenever it ends it cancels every task of its event
    loop that is younger than itself.
    """
    told = threading.Event()

    async def operate() -> None:
        try:
            await kopf.operator(
                registry=handlers,
                stop_flag=told,
                standalone=True,
                clusterwide=namespace is None,
                namespaces=[namespace] if namespace else [],
            )
        finally:
            told.set()  # kopf waits for it in a thread that it doesn't end

    async def tell() -> None:
        waiting = [asyncio.create_task(stop.wait()) for stop in stops]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        told.set()

    telling = asyncio.create_task(tell())
    with ThreadPoolExecutor(1, thread_name_prefix="kopf") as pool:
        try:
            await asyncio.get_running_loop().run_in_executor(pool, lambda: asyncio.run(operate()))
        finally:
            told.set()
            telling.cancel()
