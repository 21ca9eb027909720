"""How fast a volume fills: its use over the last hours, and when it is full if it goes on like that. Pure."""

from __future__ import annotations

from array import array
from collections import deque
from itertools import pairwise
from typing import Final

WINDOWS: Final = (3600.0, 6 * 3600.0)
"""Seconds over which a rate is taken. The one counts that says the earlier end: an import began an hour ago, growth by
the day shows over six."""
_SPACING: Final = 60.0
"""Seconds between two samples that are kept: 361 of them, 6 KiB a volume."""
_LEAST: Final = 300.0
"""Seconds that samples must span before a rate is taken from them."""
_STEP: Final = 1.0
"""Seconds between two observations that a pace is taken from: the log grows by whole segments."""
_NOW: Final = 60.0
"""Seconds that the pace of this moment is taken from."""
_STEADY: Final = 30.0
"""Seconds over which a burst is spread at the least."""


class Filling:
    """The use of one file system over time.

    Moments are seconds of any clock that never goes back; uses are bytes.
    """

    def __init__(self) -> None:
        self._moments, self._used = array("d"), array("d")
        self._last: deque[tuple[float, float]] = deque(maxlen=8)

    def add(self, moment: float, used: int) -> None:
        """One more observation."""
        if not self._last or moment - self._last[-1][0] >= _STEP:
            self._last.append((moment, float(used)))
        if self._moments and moment - self._moments[-1] < _SPACING:
            return
        self._moments.append(moment)
        self._used.append(used)
        while moment - self._moments[0] > WINDOWS[-1]:
            self._moments.pop(0)
            self._used.pop(0)

    def rate(self, window: float) -> float | None:
        """Bytes a second over a window of seconds, by least squares; `None` before there is enough of it."""
        now = self._last[-1][0] if self._last else 0.0
        first = next(
            (place for place, moment in enumerate(self._moments) if now - moment <= window), len(self._moments)
        )
        moments, used = [*self._moments[first:]], [*self._used[first:]]
        if self._last and (not moments or self._last[-1][0] > moments[-1]):
            moments.append(self._last[-1][0])
            used.append(self._last[-1][1])
        if len(moments) < 3 or moments[-1] - moments[0] < _LEAST:
            return None
        middle, mean = sum(moments) / len(moments), sum(used) / len(used)
        spread = sum((moment - middle) ** 2 for moment in moments)
        return sum((moment - middle) * (value - mean) for moment, value in zip(moments, used, strict=True)) / spread

    def seconds_left(self, available: int) -> float | None:
        """When so many bytes are gone at the present rate: the earliest that any window says; `None` where it doesn't
        fill, or was observed for less than an hour: what is loaded within minutes goes on like that seldom."""
        if not self._last or self._last[-1][0] - self._moments[0] < WINDOWS[0]:
            return None
        rates = [rate for window in WINDOWS if (rate := self.rate(window)) is not None and rate > 0]
        return available / max(rates) if rates else None

    def steady(self) -> float:
        """Bytes a second of the last minute as a whole, which a burst raises little; 0 where it doesn't fill."""
        now = self._last[-1][0] if self._last else 0.0
        steps = [step for step in self._last if now - step[0] <= _NOW]
        if len(steps) < 2:
            return 0.0
        return max(0.0, (steps[-1][1] - steps[0][1]) / max(_STEADY, steps[-1][0] - steps[0][0]))

    def pace(self) -> float:
        """Bytes a second by the steepest step between two observations of the last minute; 0 where there are none."""
        steps = list(self._last)
        now = steps[-1][0] if steps else 0.0
        found = [
            (later[1] - earlier[1]) / (later[0] - earlier[0])
            for earlier, later in pairwise(steps)
            if now - earlier[0] <= _NOW and later[0] > earlier[0]
        ]
        return max([0.0, *found])
