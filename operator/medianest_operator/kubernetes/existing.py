"""Which names are taken in a namespace, also by objects that aren't ours and that no watch tells of.

Asked before something is made for the first time. A list of names alone, shared by all databases of the namespace for
some seconds, costs the API server far less than a request for each object.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from medianest_operator.kubernetes.client import KubernetesClient
from medianest_operator.kubernetes.kinds import Kind

_FRESH: Final = 5.0
"""Seconds for which a list of names is believed."""
_COST: Final = 50.0
"""A list is also believed for so many times as long as it took to read."""


class ExistingNames:
    """Names by kind and namespace."""

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client
        self._known: dict[tuple[Kind, str], tuple[float, frozenset[str]]] = {}
        self._locks: dict[tuple[Kind, str], asyncio.Lock] = {}

    async def holds(self, kind: Kind, namespace: str, name: str) -> bool:
        """Whether there is an object of that name.

        Raises:
            ApiError: the names could not be read.
        """
        place = kind, namespace
        async with self._locks.setdefault(place, asyncio.Lock()):
            until, names = self._known.get(place, (0.0, frozenset()))
            if time.monotonic() >= until:
                started = time.monotonic()
                listed, _ = await self._client.snapshot(kind, namespace, metadata_only=True)
                names = frozenset(item["metadata"]["name"] for item in listed)
                took = time.monotonic() - started
                self._known[place] = time.monotonic() + max(_FRESH, _COST * took), names
        return name in names

    def forget(self) -> None:
        """Believe nothing any more."""
        self._known.clear()
