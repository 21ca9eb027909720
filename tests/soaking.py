"""How often the tests with random moments play: few times in CI, many in `make soak`."""

from __future__ import annotations

import os


def rounds(few: int, many: int) -> int:
    """The number of rounds: `many` where MEDIANEST_SOAK is set."""
    return many if os.environ.get("MEDIANEST_SOAK") else few
