"""The cache follows the API server: a list, then a watch from the list's own resource version, for each kind.

List and watch share one version, so nothing is missed between them and nothing has to be swept up later (client-go's
Reflector works the same way). A namespace that has vanished, or that may not be read, harms no other.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final

from medianest_operator.kubernetes.cache import Cache
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError, KubernetesClient
from medianest_operator.kubernetes.kinds import Kind
from medianest_operator.naming import Key
from medianest_operator.observability import metrics

log = logging.getLogger(__name__)

_PAUSE_FIRST: Final = 0.5
_PAUSE_LAST: Final = 30.0
_EXPIRED: Final = 410
_LASTING: Final = 20.0
"""Seconds after which a watch that ends is no sign of trouble."""


class Reflector:
    """One kind in one namespace, or in all of them."""

    def __init__(
        self,
        client: KubernetesClient,
        cache: Cache,
        kind: Kind,
        notify: Callable[[Key], None],
        namespace: str | None = None,
        labels: str = "",
    ) -> None:
        """
        Args:
            notify: called with the key of each database for which something changed.
            namespace: the one to follow; `None`: all.
        """
        self._client = client
        self._cache = cache
        self._notify = notify
        self._labels = labels
        self.kind = kind
        self.namespace = namespace
        self.synced = asyncio.Event()
        """Set once a whole list is in the cache."""

    async def run(self) -> None:
        """Follow for as long as the process leads. Nothing that the API server answers, or holds, ends this."""
        version, failures = "", 0
        while True:
            started = time.monotonic()
            try:
                if not version:
                    version = await self._list()
                version = await self._watch(version)
            except ApiError as error:
                # Another version, since what happened meanwhile may be gone from the server's memory.
                version = ""
                if error.status != _EXPIRED:
                    self._report(error, failures + 1)
            except TRANSIENT_ERRORS as error:
                self._report(error, failures + 1)
            except Exception:
                version = ""
                log.exception("the watch of %s broke; it begins again", self.kind.plural)
            # Only a watch that lasted shows that all is well, whatever came before it, and however it ended.
            failures = 0 if time.monotonic() - started > _LASTING else failures + 1
            if failures:
                await asyncio.sleep(self._pause(failures))

    async def _list(self) -> str:
        listed, version = await self._client.snapshot(self.kind, self.namespace, labels=self._labels)
        for key in self._cache.replace(self.kind, listed, version, self.namespace):
            self._notify(key)
        self.synced.set()
        return version

    async def _watch(self, version: str) -> str:
        """Take over what happens until the server ends the watch. Returns the version to go on from."""
        seconds = random.randint(240, 360)
        async for event, manifest in self._client.watch(
            self.kind, version, self.namespace, labels=self._labels, seconds=seconds
        ):
            version = manifest["metadata"].get("resourceVersion", version)
            match event:
                case "ADDED" | "MODIFIED":
                    touched = self._cache.put(self.kind, manifest)
                case "DELETED":
                    touched = self._cache.remove(self.kind, manifest)
                case _:
                    continue
            for key in touched:
                self._notify(key)
        return version

    def _report(self, error: Exception, failures: int) -> None:
        where = f" in namespace {self.namespace}" if self.namespace else ""
        level = logging.WARNING if failures <= 2 or failures % 20 == 0 else logging.INFO
        log.log(level, "can't follow %s%s: %s", self.kind.plural, where, error or repr(error))
        metrics.WATCH_FAILURES.labels(self.kind.plural).inc()

    @staticmethod
    def _pause(failures: int) -> float:
        longest = min(_PAUSE_LAST, _PAUSE_FIRST * 2.0 ** min(failures - 1, 10))
        return longest * random.uniform(0.8, 1.2)
