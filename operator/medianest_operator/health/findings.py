"""Findings: what is wrong with a serving database, as values that everything which tells of it reads.

A finding counts once it was there in two of three observations, and no longer once three in a row didn't show it, so
that what comes and goes writes no status. What is a fact rather than a measurement counts at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from medianest_operator.api.conditions import Reason, Severity

_WINDOW: Final = 3
_ENOUGH: Final = 2
"""So many of the last observations make a finding; `_WINDOW` in a row without it end it."""


_LONGEST_OBJECT: Final = 300
_LONGEST_MESSAGE: Final = 600
_LONGEST_FIX: Final = 1000
"""Characters."""


class Level(StrEnum):
    """How much a finding matters, for people and for alerts."""

    CRITICAL = "Critical"
    """The application's statements fail or wait, or will before long."""
    WARNING = "Warning"
    """A person should know."""
    HINT = "Hint"
    """It costs something and breaks nothing; no condition follows from it."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        reason: its kind; how bad it is follows from that (`api.conditions.REASONS`).
        object: what it is about, for instance `index public.users_email_idx`, or a pod. A finding is known again by
            reason and object.
        message: what is wrong with the evidence for it, as a sentence. No number in it changes with every observation.
        fix: the exact statement or command that ends it.
        size: bytes that it is about, coarsely.
        at_once: it counts with its first observation.
    """

    reason: Reason
    object: str
    message: str
    fix: str | None = None
    size: int | None = None
    at_once: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        # Names, and the texts of errors, are whoever's who may write to the database.
        object.__setattr__(self, "object", _tidy(self.object, _LONGEST_OBJECT))
        object.__setattr__(self, "message", _tidy(self.message, _LONGEST_MESSAGE))
        if self.fix is not None and len(self.fix) > _LONGEST_FIX:
            # A statement that was cut would be another one.
            object.__setattr__(self, "fix", None)

    @property
    def level(self) -> Level:
        if self.reason.severity is Severity.GOOD:
            return Level.HINT
        return Level.CRITICAL if self.reason.severity is Severity.OUTAGE else Level.WARNING


@dataclass(frozen=True)
class Known:
    """A finding that counts.

    Attributes:
        source: what observes it.
        since: when it began to count, in UTC.
    """

    finding: Finding
    source: str
    since: datetime


_Name = tuple[Reason, str]


@dataclass
class _Track:
    """What the last observations said of one finding.

    Attributes:
        seen: the last observations, the newest last.
        worded: the newest wording and how many observations in a row had it; wording that stays replaces the known one.
    """

    latest: Finding
    seen: deque[bool] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    worded: int = 0


class Tracker:
    """The findings of one database, over time."""

    def __init__(self, known: Iterable[Known] = (), *, more: bool = False) -> None:
        """
        Args:
            known: what counted when an earlier process last wrote the status.
            more: there may have been more of it than the status has room for: what counts from the beginning on is no
                news then.
        """
        self._more = more
        self._observations: Counter[str] = Counter()
        self._known: dict[_Name, Known] = {(item.finding.reason, item.finding.object): item for item in known}
        self._tracks: dict[str, dict[_Name, _Track]] = {}
        self._begun: list[Known] = []
        self._ended: list[Known] = []

    def observe(
        self,
        source: str,
        found: Sequence[Finding],
        now: datetime,
        *,
        settled: bool = False,
        unseen: Collection[str] = (),
    ) -> None:
        """Take in one observation.

        Args:
            source: what was observed; each speaks for its own findings, of which it names all.
            found: what is wrong there at this moment.
            settled: facts rather than measurements: what is found counts at once, and what isn't ends at once.
            unseen: objects that could not be looked at this time.
        """
        self._observations[source] += 1
        tracks = self._tracks.setdefault(source, {})
        named = {(item.reason, item.object): item for item in found}
        for name in {*named, *tracks, *(name for name, item in self._known.items() if item.source == source)}:
            here = named.get(name)
            if here is None and name[1] in unseen:
                continue
            track = tracks.get(name) or _Track(here or self._known[name].finding)
            tracks[name] = track
            track.seen.append(here is not None)
            if here is not None:
                track.worded = track.worded + 1 if here == track.latest else 1
                track.latest = here
            self._judge(source, name, track, now, settled or (here is not None and here.at_once), settled)
            if name not in self._known and not any(track.seen):
                del tracks[name]

    def _judge(self, source: str, name: _Name, track: _Track, now: datetime, in_now: bool, out_now: bool) -> None:
        known, there = self._known.get(name), track.seen[-1]
        if known is None:
            if there and (in_now or sum(track.seen) >= _ENOUGH):
                self._known[name] = Known(track.latest, source, now)
                if not self._more or self._observations[source] > _WINDOW:
                    self._begun.append(self._known[name])
        elif not there and (out_now or (len(track.seen) == _WINDOW and not any(track.seen))):
            self._ended.append(self._known.pop(name))
        elif there and known.finding != track.latest and (out_now or track.worded >= _WINDOW):
            self._known[name] = replace(known, finding=track.latest, source=source)

    def is_undecided(self, source: str) -> bool:
        """Whether another observation soon would tell something: a finding has come or gone, and doesn't count yet."""
        tracks = self._tracks.get(source, {})
        return any(track.seen[-1] is not (name in self._known) for name, track in tracks.items())

    def of(self, *sources: str) -> tuple[Known, ...]:
        """What counts, of these sources, or of all; the worst and oldest first."""
        items = [item for item in self._known.values() if not sources or item.source in sources]
        return tuple(sorted(items, key=_worst_first))

    def forget(self) -> None:
        """Nothing is known any more, for instance of a database that was hibernated."""
        self._known.clear()
        self._tracks.clear()

    def changes(self) -> tuple[Sequence[Known], Sequence[Known]]:
        """What began to count and what ended, and was not told yet."""
        return tuple(self._begun), tuple(self._ended)

    def told(self, begun: Sequence[Known], ended: Sequence[Known]) -> None:
        """These changes have been told."""
        self._begun = [item for item in self._begun if item not in begun]
        self._ended = [item for item in self._ended if item not in ended]


_RANK: Final[Mapping[Level, int]] = {Level.CRITICAL: 0, Level.WARNING: 1, Level.HINT: 2}


def _worst_first(item: Known) -> tuple[int, datetime, str, str]:
    return _RANK[item.finding.level], item.since, item.finding.reason, item.finding.object


def spread(known: Sequence[Known], count: int) -> Sequence[Known]:
    """So many of them, the worst first; of each kind one before a second of any: many of one kind hide no other.

    Args:
        known: the worst first.
    """
    first: dict[Reason, Known] = {}
    for item in known:
        first.setdefault(item.finding.reason, item)
    chosen = sorted(first.values(), key=_worst_first)[:count]
    rest = [item for item in known if item not in chosen]
    return sorted([*chosen, *rest[: count - len(chosen)]], key=_worst_first)


def _tidy(text: str, longest: int) -> str:
    """One line of printable characters, of so many at the most."""
    printable = "".join(character if character.isprintable() else " " for character in text[: longest + 1])
    return printable if len(printable) <= longest else f"{printable[: longest - 1]}…"


def coarse(number: float) -> int:
    """A number as findings say it: the highest power of two that it reaches, so that small changes change nothing."""
    return 1 << (int(number).bit_length() - 1) if number >= 1 else 0
