"""The loop of the replica that leads: objects come into the cache, their databases' keys into the queue, and workers
take them from there."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

from medianest_operator import naming
from medianest_operator.controller.queue import WorkQueue
from medianest_operator.controller.territory import LOOK_EVERY, Territory
from medianest_operator.errors import ReconcileError
from medianest_operator.kubernetes.apply import Applier
from medianest_operator.kubernetes.cache import Cache
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError, KubernetesClient
from medianest_operator.kubernetes.events import Recorder
from medianest_operator.kubernetes.kinds import CHILDREN, DATABASE, OWN, Kind
from medianest_operator.kubernetes.reflector import Reflector
from medianest_operator.naming import Key
from medianest_operator.observability import metrics
from medianest_operator.postgres.sessions import Sessions
from medianest_operator.reconcile.context import Services
from medianest_operator.reconcile.database import DatabaseReconciler
from medianest_operator.reconcile.instances.handovers import Handovers
from medianest_operator.reconcile.memory import Memory
from medianest_operator.reconcile.notifications import Notifier
from medianest_operator.settings import Settings

log = logging.getLogger(__name__)

_RUN_DEADLINE: Final = 180.0
"""Seconds after which a run counts as hung."""
_UNSYNCED_PAUSE: Final = 1.0
"""Seconds until a database is asked for again whose namespace isn't wholly in the cache yet, or that nobody may act for
until the Lease is renewed."""
_UNLISTED_PAUSE: Final = 5.0
"""Seconds until the kinds that people make are listed again where that failed, or where nobody has defined them."""
_NOT_FOUND: Final = 404
_HUNG: Final = 3 * _RUN_DEADLINE
"""Seconds without a finished run, although databases are waiting, after which the process is no longer alive."""


class Loop:
    """Cache, queue and workers."""

    def __init__(self, settings: Settings, client: KubernetesClient) -> None:
        self._settings = settings
        self._client = client
        self.cache = Cache()
        self.queue = WorkQueue()
        self._sessions = Sessions(self.queue.add)
        recorder = Recorder(client, settings.identity)
        self._notifier = Notifier(client, recorder, settings.webhook_networks)
        self._handovers = Handovers(self.queue.add)
        self._territory = Territory(settings, client)
        services = Services(
            settings=settings,
            client=client,
            cache=self.cache,
            applier=Applier(client, self.cache),
            recorder=recorder,
            sessions=self._sessions,
            memory=Memory(),
            notifier=self._notifier,
            handovers=self._handovers,
        )
        self._reconciler = DatabaseReconciler(services)
        places = settings.namespaces or (None,)
        # kopf watches what people make; what belongs to a database comes by lists and watches of one version each.
        self._reflectors = [
            Reflector(client, self.cache, kind, self.queue.add, place, naming.MANAGED_SELECTOR)
            for kind in CHILDREN
            for place in places
        ]
        self._places = places
        self._listed: set[tuple[Kind, str | None]] = set()
        """Of the kinds that people make: where they have been listed once."""
        self._undefined: set[Kind] = set()
        """Of those the ones that the cluster has no definition of: Helm doesn't bring one with an upgrade."""
        self.defined = asyncio.Event()
        """Set, and replaced by another, once one of them is there after all: it has to be watched from then on."""
        self._tasks: list[asyncio.Task[None]] = []
        self._last_run = time.monotonic()

    async def start(self) -> None:
        """Begin to follow the API server and to work. Databases wait until all of their namespace is known."""
        work = [self.queue.work(self._run) for _ in range(self._settings.workers)]
        follow = [reflector.run() for reflector in self._reflectors]
        self._tasks = [asyncio.create_task(item) for item in (*follow, *work, self._resync())]

    async def stop(self) -> None:
        """Let go of everything; what was under way is found again by whoever leads next."""
        self.queue.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._handovers.close()
        await self._notifier.close()
        await self._sessions.close()

    def observe(self, kind: Kind, event: str | None, manifest: dict[str, Any]) -> None:
        """A watch told of an object."""
        touched = self.cache.remove(kind, manifest) if event == "DELETED" else self.cache.put(kind, manifest)
        for key in touched:
            self.queue.add(key)

    def is_alive(self) -> bool:
        """Whether the process does what it is there for, as far as it depends on the process alone.

        An API server that is away, or a namespace that may not be read, doesn't make it dead: a restart would help
        neither. A task that ended, or workers that hang while databases wait, do.
        """
        if any(task.done() for task in self._tasks):
            return False
        return not self.queue.busy or time.monotonic() - self._last_run < _HUNG

    async def _run(self, key: Key) -> None:
        extra = {"database": "/".join(key)}
        if not self._client.may_write() or not self._is_synced(key[0]):
            self.queue.add_after(key, _UNSYNCED_PAUSE)
            return
        try:
            with metrics.RECONCILE_SECONDS.time():
                async with asyncio.timeout(_RUN_DEADLINE):
                    delay = await self._reconcile(key)
        except (ReconcileError, ApiError, *TRANSIENT_ERRORS) as error:
            unexpected = isinstance(error, ReconcileError) and error.is_unexpected
            metrics.RECONCILES.labels("broken" if unexpected else "retry").inc()
            wait = self.queue.retry(key)
            log.warning("will try again in %.1f s: %s", wait, error or repr(error), extra=extra)
        except Exception:
            metrics.RECONCILES.labels("broken").inc()
            wait = self.queue.retry(key)
            log.exception("reconcile broke; will try again in %.1f s", wait, extra=extra)
        else:
            metrics.RECONCILES.labels("done").inc()
            self.queue.forget(key)
            if delay is not None:
                self.queue.add_after(key, delay)
        finally:
            self._last_run = time.monotonic()

    async def _reconcile(self, key: Key) -> float | None:
        """One run, unless the database is another release's. Returns the seconds until the next."""
        if await self._territory.is_anothers(key[0]):
            await self._reconciler.forget(key)
            return LOOK_EVERY
        return await self._reconciler.reconcile(key)

    def _is_synced(self, namespace: str) -> bool:
        """Whether all that belongs to the databases of a namespace is in the cache: what is missing there would
        otherwise be taken for absent, and made again."""
        of_databases = all(item.synced.is_set() for item in self._reflectors if item.namespace in {None, namespace})
        place = namespace if self._settings.namespaces else None
        return of_databases and all((kind, place) in self._listed or kind in self._undefined for kind in OWN)

    async def _resync(self) -> None:
        """List the kinds that kopf watches, at the beginning and from time to time: a watch that begins again after a
        gap reports no deletions."""
        while True:
            for kind in OWN:
                for place in self._places:
                    await self._resync_one(kind, place)
            missing = [kind for kind in OWN if kind not in self._undefined and not self._is_listed(kind)]
            due = time.monotonic() + (_UNLISTED_PAUSE if missing else self._settings.sweep_interval)
            while (left := due - time.monotonic()) > 0:
                await asyncio.sleep(min(left, _UNLISTED_PAUSE) if self._undefined else left)
                for kind in list(self._undefined):
                    for place in self._places:
                        await self._resync_one(kind, place)

    def _is_listed(self, kind: Kind) -> bool:
        return all((kind, place) in self._listed for place in self._places)

    async def _resync_one(self, kind: Kind, place: str | None) -> None:
        try:
            listed, version = await self._client.snapshot(kind, place)
            touched = self.cache.replace(kind, listed, version, place)
            if kind in self._undefined:
                log.info("the cluster has a definition of %s now", kind.plural)
                self._undefined.discard(kind)
                self.defined.set()
                self.defined = asyncio.Event()
            if (kind, place) not in self._listed:
                self._listed.add((kind, place))
                touched |= self._databases_of(place)
            for key in touched:
                self.queue.add(key)
        except (ApiError, *TRANSIENT_ERRORS) as error:
            if isinstance(error, ApiError) and error.status == _NOT_FOUND and kind != DATABASE:
                self._do_without(kind, place)
            else:
                log.warning("can't list %s: %s", kind.plural, error or repr(error))
        except Exception:
            log.exception("listing %s broke", kind.plural)

    def _do_without(self, kind: Kind, place: str | None) -> None:
        """Nobody has defined a kind: there are none of it, and databases are looked after all the same."""
        if kind in self._undefined:
            return
        log.warning("the cluster has no definition of %s: apply the operator's crds/", kind.plural)
        self._undefined.add(kind)
        for key in self._databases_of(place):
            self.queue.add(key)

    def _databases_of(self, place: str | None) -> set[Key]:
        return {key for key in self.cache.databases() if place in {None, key[0]}}
