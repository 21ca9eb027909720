"""What this process remembers between runs, so that costly looks are not taken every fifteen seconds.

Nothing here is needed for correctness: a restarted operator starts empty and looks at everything once.
"""

import math
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from medianest_operator.naming import Key

T = TypeVar("T")


class Memory:
    """Facts by database and topic, each with what it depended on and when it was learnt."""

    def __init__(self) -> None:
        self._entries: dict[Key, dict[str, tuple[Hashable, float, Any]]] = {}

    def recall(self, key: Key, topic: str, token: Hashable, seconds: float) -> Any | None:
        """The fact, unless what it depends on changed or it is older than `seconds`."""
        entry = self._entries.get(key, {}).get(topic)
        if entry is None or entry[0] != token or time.monotonic() - entry[1] > seconds:
            return None
        return entry[2]

    def keep(self, key: Key, topic: str, token: Hashable, fact: Any) -> None:
        self._entries.setdefault(key, {})[topic] = (token, time.monotonic(), fact)

    def once(self, key: Key, topic: str, token: Hashable, work_out: Callable[[], T]) -> T:
        """The fact, worked out anew only where what it depends on has changed."""
        known: T | None = self.recall(key, topic, token, math.inf)
        if known is None:
            known = work_out()
            self.keep(key, topic, token, known)
        return known

    def swap(self, key: Key, topic: str, fact: T, default: T) -> T:
        """Keep a fact and return the one that it replaces."""
        entry = self._entries.get(key, {}).get(topic)
        self.keep(key, topic, None, fact)
        known: T = entry[2] if entry else default
        return known

    def drop(self, key: Key, topic: str) -> None:
        """Learn a fact anew at the next look."""
        self._entries.get(key, {}).pop(topic, None)

    def forget(self, key: Key) -> None:
        self._entries.pop(key, None)
