"""Volumes that fill: what is wrong, why, and what the operator does about it. Pure.

The ladder of a volume, in percent of what its file system gives the server: from `monitoring.storageWarning` (80) on a
warning, from `autoGrow.trigger` (85) on it grows, from 90 on it is nearly full. From 95 on the application only reads
where less than 2 GiB are left or ten minutes, from 85 on already where it is less than 128 MiB or fills within seconds,
until there is less than 85 again or some minutes of calm: a PostgreSQL that can't write its log any more stops all at
once (PANIC).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from medianest_operator.api.auto_grow import AutoGrow
from medianest_operator.api.conditions import Reason
from medianest_operator.api.quantity import MIB, to_bytes
from medianest_operator.health.findings import Finding

NEARLY_FULL: Final = 0.90
FULL: Final = 0.95
"""From here on the application can only read where little is left, too."""
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
_EDGES: Final = (0, 50, 60, 70, 75, 80, 85, 90, 95, 100)
_MARGIN: Final = 1.0
"""Percent by which a range is left before it is another one."""
_WORDS: Final = ((3600.0, "an hour"), (6 * 3600.0, "6 hours"), (24 * 3600.0, "a day"), (7 * 24 * 3600.0, "a week"))
_SOON: Final = frozenset(word for _, word in _WORDS[:3])
"""A volume that is full by then is told of."""
_FILLS_FROM: Final = 0.5
"""A new database grows fast until its log has reached its size, which says nothing of the days after that."""
_STICKS: Final = 1.25
"""A forecast keeps its words until it exceeds them by this factor."""
_SHARED: Final = 1.2
_MUCH: Final = 0.1
"""Of the file system: what holds so much back is the cause."""
_LONG: Final = 3600


@dataclass(frozen=True)
class Usage:
    """A file system, in bytes, as the server in a pod sees it.

    Attributes:
        used: what is taken, by whomever.
        available: what an ordinary user may still take: what is reserved for root (ext4: 5 %) isn't in it.
        file_system: its number; two folders with the same number share it.
    """

    used: int
    available: int
    file_system: str = ""

    @property
    def total(self) -> int:
        return self.used + self.available

    @property
    def share(self) -> float:
        """Of what can be had, from 0 to 1, as `df` counts it."""
        return self.used / self.total if self.total else 0.0


@dataclass(frozen=True)
class Slot:
    """A replication slot that nobody uses.

    Attributes:
        literal: its name, quoted for SQL.
        retained: bytes of log that it holds back.
    """

    name: str
    literal: str
    retained: int


@dataclass(frozen=True)
class Evidence:
    """What may fill a volume, by PostgreSQL's own word.

    Attributes:
        slots: those that nobody uses.
        archive_waits: bytes of log that wait for the archive; none where nothing is archived.
        transaction: seconds since the oldest transaction began, its process and its role.
        replaced: databases that restores replaced, with their bytes.
    """

    slots: tuple[Slot, ...] = ()
    archive_waits: int = 0
    transaction: tuple[float, int, str] | None = None
    replaced: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Cause:
    """Why a volume fills.

    Attributes:
        message: a sentence.
        fix: the statement that ends it.
        holds_log: it lets go at once of what it holds: a larger volume only buys time.
        percent: how much of the volume it takes, as it is told.
    """

    message: str
    fix: str | None = None
    holds_log: bool = False
    percent: int = 0


def cause(
    evidence: Evidence,
    total: int,
    volume: str,
    *,
    has_log: bool,
    has_data: bool,
    members: Mapping[str, str] | None = None,
    told: Cause | None = None,
) -> Cause | None:
    """What fills a volume besides the data themselves; `None` where nothing else is found.

    Args:
        total: bytes of the file system.
        volume: for the words.
        has_log: the write-ahead log lies there.
        has_data: the data lie there.
        members: the pods that there are to be, by the names of their slots.
        told: what was told before: its share stays as it is while it moves a little.
    """
    known = told.percent if told is not None else None
    much = total * _MUCH
    worst = max(evidence.slots, key=lambda slot: slot.retained, default=None)
    if has_log and worst is not None and worst.retained >= much:
        percent = _tenths(worst.retained, total, known)
        if pod := (members or {}).get(worst.name):
            # Without its slot, a replica that is only down would have to be copied anew.
            message = (
                f"Write-ahead log is held back for {pod}, which doesn't follow, more than {percent} % of the volume."
                " Bring that instance back, or scale down (spec.instances)."
            )
            return Cause(message, holds_log=True, percent=percent)
        message = (
            f"Replication slot {worst.name}, which nobody uses, holds write-ahead log back, more than"
            f" {percent} % of the volume. Let its consumer connect, or drop the slot."
        )
        return Cause(message, f"SELECT pg_drop_replication_slot({worst.literal});", holds_log=True, percent=percent)
    if has_log and evidence.archive_waits >= much:
        percent = _tenths(evidence.archive_waits, total, known)
        message = (
            f"Write-ahead log waits for an archive that doesn't take it, more than {percent} % of the {volume} volume."
        )
        return Cause(message, holds_log=True, percent=percent)
    kept = sum(size for _, size in evidence.replaced)
    if has_data and kept >= much:
        names = ", ".join(name for name, _ in evidence.replaced)
        percent = _tenths(kept, total, known)
        message = (
            f"Databases that restores have replaced ({names}) take more than {percent} % of the volume."
            " They go once backup.keepReplaced is over."
        )
        return Cause(message, percent=percent)
    if has_data and evidence.transaction is not None and evidence.transaction[0] >= _LONG:
        _, pid, role = evidence.transaction
        message = f"A transaction of {role} has been open for hours, and keeps VACUUM from freeing what was deleted."
        return Cause(message, f"SELECT pg_terminate_backend({pid});")
    return None


def _tenths(part: int, total: int, known: int | None) -> int:
    """A share as messages say it, in percent, which a small change leaves as it is."""
    percent = part * 100 / total
    if known and known - _MARGIN <= percent < known + 10 + _MARGIN:
        return known
    return min(90, int(percent / 10) * 10)


@dataclass(frozen=True)
class Volume:
    """One volume of one instance.

    Attributes:
        name: `data` or `wal`.
        pod: whose.
        usage: at this moment.
        full_in: when it is full at its present rate, in words (`full_in`).
        cause: why it fills.
        then: what happens next, as a sentence.
        enlarge: the command with which the admin makes it larger.
    """

    name: str
    pod: str
    usage: Usage
    full_in: str | None = None
    cause: Cause | None = None
    then: str = ""
    enlarge: str | None = None

    @property
    def object(self) -> str:
        """As findings name it."""
        return f"volume {self.name} of {self.pod}"


def finding(volume: Volume, warning: int) -> Finding | None:
    """What is wrong with a volume; `None` where nothing is.

    Args:
        warning: percent from which on it is told.
    """
    share, soon = volume.usage.share, volume.full_in in _SOON
    at_once = share >= NEARLY_FULL
    if share >= FULL:
        reason, said = Reason.VOLUME_FULL, "is more than 95 % full"
    elif share >= NEARLY_FULL:
        reason, said = Reason.VOLUME_NEARLY_FULL, "is more than 90 % full"
    elif share * 100 >= warning:
        reason, said = Reason.VOLUME_FILLING, f"is more than {warning} % full"
    elif soon:
        reason, said = Reason.VOLUME_FILLING, "fills fast"
    else:
        return None
    rate = f", and full within {volume.full_in} at its present rate" if soon else ""
    why = volume.cause.message if volume.cause else ""
    message = " ".join(filter(None, (f"The {volume.name} volume of {volume.pod} {said}{rate}.", why, volume.then)))
    fix = volume.cause.fix if volume.cause and volume.cause.fix else volume.enlarge
    return Finding(reason, volume.object, message, fix, at_once=at_once)


def shared(name: str, pod: str, usage: Usage, capacity: int) -> Finding | None:
    """A hint where the file system is much larger than the volume: what is free there, others may take."""
    if usage.total <= capacity * _SHARED + 1024 * MIB:
        return None
    message = (
        f"The storage class of the {name} volume sets no limit: it lies on a file system that is much larger, and that"
        " others fill, too. The operator judges that file system, and doesn't grow the volume automatically."
    )
    return Finding(Reason.VOLUME_SHARED, f"volume {name}", message, at_once=True)


def repository_finding(name: str, percent: int, warning: int, then: str) -> Finding | None:
    """What is wrong with the volume of a backup repository; `None` where nothing is. No server stops where it is full,
    but no backup is taken.

    Args:
        percent: in use, as the last Job found it.
        warning: percent from which on it is told.
        then: what happens next, as a sentence.
    """
    if percent < warning:
        return None
    nearly = percent >= NEARLY_FULL * 100
    reason = Reason.VOLUME_NEARLY_FULL if nearly else Reason.VOLUME_FILLING
    message = (
        f"The volume of the backup repository {name} is more than {90 if nearly else warning} % full, as the last Job"
        f" found it; where nothing fits any more, no backup is taken. {then}"
    )
    return Finding(reason, f"volume backup/{name}", message, at_once=True)


def fills(usage: Usage) -> bool:
    """Whether it is foretold when a volume is full."""
    return usage.share >= _FILLS_FROM


def full_in(seconds: float | None, known: str | None = None) -> str | None:
    """A forecast in words that a small change leaves as they are; `None` where it is more than a week away.

    Args:
        known: what was said before.
    """
    if seconds is None:
        return None
    for limit, word in _WORDS:
        if seconds < limit or (word == known and seconds < limit * _STICKS):
            return word
    return None


def in_use(share: float, known: str | None = None) -> str:
    """A share as a range, which a small change leaves as it is.

    Args:
        known: the range that was told before.
    """
    percent = share * 100
    for low, high in pairwise(_EDGES):
        if f"{low}-{high} %" == known and low - _MARGIN <= percent < high + _MARGIN:
            return known
    low, high = next(((a, b) for a, b in pairwise(_EDGES) if percent < b), (_EDGES[-2], _EDGES[-1]))
    return f"{low}-{high} %"


def at_least(told: str | None) -> float:
    """The lower end of a range of `in_use`; 0 of anything else."""
    try:
        return int(str(told).partition("-")[0]) / 100
    except ValueError:
        return 0.0


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


@dataclass(frozen=True)
class Growth:
    """A volume that may grow.

    Attributes:
        size: bytes that its claims ask for now.
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


def quantity(size: int) -> str:
    """Bytes as a quantity, in the largest unit that is exact."""
    for unit, name in ((1024 * MIB, "Gi"), (MIB, "Mi"), (1024, "Ki")):
        if size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)
