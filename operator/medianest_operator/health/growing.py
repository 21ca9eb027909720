"""When a volume grows, and to which size. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from medianest_operator.api.auto_grow import AutoGrow
from medianest_operator.api.quantity import MIB, to_bytes
from medianest_operator.health.storage import NEARLY_FULL


@dataclass(frozen=True)
class Growth:
    """A volume that may grow.

    Attributes:
        size: bytes that its claims request at present.
        share: in use of the fullest.
        since_last: seconds since it grew last; `None`: never.
        only_buys_time: something holds log back that a person can let go.
    """

    size: int
    share: float
    since_last: float | None = None
    only_buys_time: bool = False
    wanted: AutoGrow | None = field(default=None)


def grown(growth: Growth, minimum_interval: float) -> int | None:
    """The size in bytes that a volume is to have; `None` where it stays as it is.

    Args:
        minimum_interval: seconds.
    """
    wanted = growth.wanted
    if wanted is None or wanted.maximum is None:
        return None
    most = to_bytes(wanted.maximum)
    begins = NEARLY_FULL if growth.only_buys_time else wanted.trigger / 100
    waits = growth.since_last is not None and growth.since_last < minimum_interval
    if growth.share < begins or waits or growth.size >= most:
        return None
    return min(most, larger(growth.size, wanted.increase))


def larger(size: int, increase: str) -> int:
    """A size with an increase, which is percent or a quantity, in whole MiB."""
    more = size * int(increase[:-1]) // 100 if increase.endswith("%") else to_bytes(increase)
    return size + max(1, -(-more // MIB)) * MIB
