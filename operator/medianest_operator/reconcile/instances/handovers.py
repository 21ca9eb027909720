"""Planned handovers of the primary role: they go on beside the runs, so that the status can tell of them meanwhile.

Nothing here is needed for correctness: a restarted operator finds the roles as they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from medianest_operator.errors import Transient
from medianest_operator.naming import Key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Handover:
    """From one pod to another, by their names."""

    source: str
    target: str


class Handovers:
    """At most one handover a database."""

    def __init__(self, wake: Callable[[Key], None]) -> None:
        """
        Args:
            wake: called with a database's key when its handover has ended.
        """
        self._wake = wake
        self._tasks: dict[str, tuple[Handover, asyncio.Task[None]]] = {}
        self._failures: dict[str, Transient] = {}

    def start(self, key: Key, uid: str, handover: Handover, act: Callable[[], Awaitable[None]]) -> None:
        """Begin one; while another is under way, nothing happens.

        Args:
            uid: of the object, which an object that is made again under the name does not share.
        """
        if uid in self._tasks:
            return

        async def work() -> None:
            try:
                await act()
            except Transient as error:
                self._failures[uid] = error
            except Exception:
                log.exception("the handover broke", extra={"database": "/".join(key)})
            finally:
                self._tasks.pop(uid, None)
                self._wake(key)

        self._tasks[uid] = handover, asyncio.create_task(work())

    def under_way(self, uid: str) -> Handover | None:
        """The handover that is under way in a database, by its object's UID."""
        found = self._tasks.get(uid)
        return found[0] if found else None

    def failure(self, uid: str) -> Transient | None:
        """Why the last one failed; asked once, it is forgotten."""
        return self._failures.pop(uid, None)

    async def close(self) -> None:
        """Let go of what is under way; Patroni ends what it began."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
