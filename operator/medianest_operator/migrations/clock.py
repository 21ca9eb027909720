"""How long each step of a run takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from medianest_operator.migrations.reasons import StepTime


class Clock:
    """Collects the times of steps."""

    def __init__(self) -> None:
        self.steps: list[StepTime] = []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a step, however it ends."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.steps.append(StepTime(name=name, milliseconds=round((time.monotonic() - started) * 1000)))
