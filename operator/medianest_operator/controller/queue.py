"""A work queue of keys, with the meaning of client-go's: one run a key at a time, no duplicates, backoff by key."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from medianest_operator.naming import Key
from medianest_operator.observability import metrics

log = logging.getLogger(__name__)

_BACKOFF_FIRST: Final = 0.5
_BACKOFF_LAST: Final = 60.0
"""Seconds. Not longer, since what can be observed of a database is observed in the same run."""
_TICK: Final = 15.0
"""Seconds. What isn't urgent is due together with others: a run just after another one costs a third, since what it
needs is still in the processor's caches."""
_MANY: Final = 100
"""With more keys than these the ticks are shorter, so that nobody waits for all the others."""


class WorkQueue:
    """Keys to reconcile. Not safe for threads: it lives in the event loop."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    def add(self, key: Key) -> None:
        """Run `key` soon; while it runs, once more after it."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)
            metrics.QUEUE_DEPTH.set(len(self._waiting))

    def add_after(self, key: Key, delay: float) -> None:
        """Run `key` after `delay` seconds, or at the tick before where it is long; unless it is due already."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        tick = _TICK if len(self._timers) <= _MANY else _TICK / 3
        if delay >= _TICK:
            due -= due % tick
        timer = self._timers.get(key)
        if timer:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self.add, key)

    def retry(self, key: Key) -> float:
        """Run `key` after its backoff, which doubles with every failure in a row. Returns the delay in seconds."""
        failures = self._failures[key] = self._failures.get(key, -1) + 1
        delay = min(_BACKOFF_LAST, _BACKOFF_FIRST * 2.0 ** min(failures, 20)) * random.uniform(0.8, 1.2)
        self.add_after(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """The last run of `key` succeeded: the next failure starts the backoff at its beginning."""
        self._failures.pop(key, None)

    @property
    def busy(self) -> bool:
        """Whether a key waits to be run, or runs."""
        return bool(self._waiting or self._running)

    async def work(self, run: Callable[[Key], Awaitable[None]]) -> None:
        """Take keys and run them, until cancelled. `run` handles its own errors."""
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            metrics.QUEUE_DEPTH.set(len(self._waiting))
            self._running.add(key)
            try:
                await run(key)
            except Exception:
                log.exception("reconcile broke", extra={"database": "/".join(key)})
                self.retry(key)
            finally:
                self._running.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    def stop(self) -> None:
        """Cancel every timer."""
        for timer in self._timers.values():
            with suppress(RuntimeError):
                timer.cancel()
        self._timers.clear()
