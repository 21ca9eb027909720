"""How long each step of a run takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from medianest_operator.results.migration import StepTime


class Clock:
    """Collects the times of steps: each once, in the order in which they began, without the steps within it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._within: list[float] = []

    @property
    def steps(self) -> tuple[StepTime, ...]:
        """What each step has taken so far."""
        return tuple(StepTime(name=name, milliseconds=round(seconds * 1000)) for name, seconds in self._seconds.items())

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a step, however it ends. It may be taken again, and may hold others."""
        self._seconds.setdefault(name, 0.0)
        self._within.append(0.0)
        started = time.monotonic()
        try:
            yield
        finally:
            taken = time.monotonic() - started
            self._seconds[name] += taken - self._within.pop()
            if self._within:
                self._within[-1] += taken
