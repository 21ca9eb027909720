"""When the application's writers are stopped before a volume is full, and when they are let in again. Pure.

A PostgreSQL that can't write its log any more stops all at once (PANIC). So from 95 % on the application only reads
where less than 2 GiB are left or ten minutes, and from 85 % on already where it is less than 128 MiB or fills within
seconds; until there is less than 85 % again, or some minutes of calm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from medianest_operator.api.quantity import MIB
from medianest_operator.health.storage import FULL, Usage

ENDS_BELOW: Final = 0.85
"""Below this it may write again, at once."""
_LAST_SECONDS: Final = 10.0
"""Whoever fills the rest within so many seconds is stopped at once, from 85 % on: on a small volume one more
observation comes too late."""
_LEAST_ROOM: Final = 128 * MIB
"""So much is left to PostgreSQL's own writing where that is less than 15 % of the volume: eight segments of the log."""
_ROOM: Final = 2 * 1024 * MIB
"""Who has more than this left, and more than ten minutes at the pace of the last one, isn't stopped at 95 %."""
_LAST_MINUTES: Final = 600.0
_CONFIRMED: Final = 2
"""So many observations in a row stop the writers."""
_CALM_BELOW: Final = 0.92
"""Where use rests below this, the application may write again after some minutes, too."""
_ROOM_TO_WRITE: Final = 1.5
"""So many times the room that stops the writers must be there by then."""
_WAIT: Final = 300.0
"""Seconds of calm before that; twice as many each time again within a day, up to an hour."""
_LONGEST_WAIT: Final = 3600.0
_REMEMBERED: Final = 24 * 3600.0
_POSSIBLE: Final = 16.0 * MIB
"""Bytes a second, a segment of the log, that a volume may begin to fill by between two observations."""


@dataclass(frozen=True)
class Filled:
    """A volume of the primary at this moment.

    Attributes:
        pace: bytes a second by the steepest step of the last minute.
        steady: the same of that minute as a whole.
    """

    usage: Usage
    pace: float = 0.0
    steady: float = 0.0


def cannot_wait(volumes: Iterable[Filled]) -> bool:
    """Whether the writers are to be stopped before another observation: by its pace a volume is full before that."""
    return any(item.usage.share >= ENDS_BELOW and item.usage.available < item.pace * _LAST_SECONDS for item in volumes)


def must_stop_writers(volumes: Iterable[Filled]) -> bool:
    """Whether the application must only read, by the primary's volumes.

    A share says nothing alone: 96 % of a large disk, which others may share, leaves years.
    """
    return any(_lacks_room(item, 1.0) for item in volumes)


def _lacks_room(volume: Filled, factor: float) -> bool:
    """Whether less is left than so many times what the writers are stopped at."""
    usage = volume.usage
    least = max(_LEAST_ROOM, volume.pace * _LAST_SECONDS)
    room = max(_ROOM, volume.steady * _LAST_MINUTES)
    return (usage.share >= ENDS_BELOW and usage.available < factor * least) or (
        usage.share >= (FULL if factor == 1.0 else _CALM_BELOW) and usage.available < factor * room
    )


def may_write_again(volumes: Sequence[Filled]) -> bool:
    """Whether there is room on all of the primary's volumes again; not where none is known."""
    return bool(volumes) and all(item.usage.share < ENDS_BELOW for item in volumes)


class Guard:
    """When the writers of one database are stopped, and when they are let in again, over time.

    Moments are seconds of any clock that never goes back.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._tried = False
        self._calm_since: float | None = None
        self._stops: list[float] = []

    def stops(self, volumes: Sequence[Filled], now: float) -> bool:
        """Whether the writers are to be stopped, by one more observation while they write. A second one in a row
        confirms it, unless the pace leaves no time for that."""
        self._calm_since = None
        self._seen = self._seen + 1 if must_stop_writers(volumes) else 0
        if not cannot_wait(volumes) and self._seen < _CONFIRMED:
            return False
        if not self._tried:
            self._stops = [moment for moment in self._stops if now - moment < _REMEMBERED] + [now]
        # What fails is tried again at the next observation, and counts once.
        self._tried = True
        return True

    def is_undecided(self) -> bool:
        """Whether the next observation may stop the writers."""
        return self._seen > 0

    def lets(self, volumes: Sequence[Filled], now: float) -> bool:
        """Whether the writers are to be let in, by one more observation while they are stopped: at once where there is
        room; where use rests a little below what stopped them, after some minutes, and twice that each time again."""
        self._seen, self._tried = 0, False
        if may_write_again(volumes):
            return True
        if not volumes or any(_lacks_room(item, _ROOM_TO_WRITE) for item in volumes):
            self._calm_since = None
            return False
        if self._calm_since is None:
            self._calm_since = now
        return now - self._calm_since >= min(_LONGEST_WAIT, _WAIT * 2.0 ** max(0, len(self._stops) - 1))


def next_observation(volumes: Iterable[Filled], regular: float, *, writes: bool = True) -> float:
    """Seconds until volumes are to be observed again: three more times before the first is full, at its pace or at one
    that it may take up any moment. That is sooner than regularly on volumes of a few GiB that are half full.

    Args:
        writes: false: the application can't, so that nothing but the volume's own pace counts.
    """
    paced = [(item.usage, max(item.pace, _POSSIBLE if writes else 0.0)) for item in volumes]
    left = [usage.available / pace for usage, pace in paced if usage.share >= 0.5 and pace > 0]
    return max(1.0, min([regular, *(seconds / 4 for seconds in left)]))
