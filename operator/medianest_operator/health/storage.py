"""Volumes that fill: what is wrong, and why. Pure.

The ladder of a volume, in percent of what its file system gives the server: from `monitoring.storageWarning` (80) on a
warning, from `autoGrow.trigger` (85) on it grows (`growing`), from 90 on it is nearly full, and before it is full the
application can only read (`writing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from medianest_operator.api.conditions import Reason
from medianest_operator.api.quantity import MIB
from medianest_operator.health.findings import Finding

NEARLY_FULL: Final = 0.90
FULL: Final = 0.95
"""From here on the application can only read where little is left, too (`writing`)."""
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
