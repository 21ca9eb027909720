"""What memory a process takes with all that it starts."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

_LOOK_EVERY = 0.05


class Watch:
    """Looks at a process and at all below it, until it is stopped.

    Counted is what each has for itself and its part of what it shares: `Pss` of /proc/PID/smaps_rollup.

    Attributes:
        own_peak: of the process itself, bytes.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self.own_peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def stop(self) -> int:
        """The peak, bytes."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_EVERY):
            own, *others = map(_proportional, _family(self._pid))
            self.own_peak = max(self.own_peak, own)
            self._peak = max(self._peak, own + sum(others))


def _family(pid: int) -> list[int]:
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
