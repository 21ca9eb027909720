"""Which backups may go. Pure: what there is and what time it is goes in, what to remove and why comes out.

Never removed, however old: the newest complete backup of a tier; the newest one that a restore has shown to be good,
and newer ones of which that may have been noted, illegibly; one that can't be read, which may be whole all the same (a
file that isn't wholly there yet, an operator that was rolled back); one that is being read; one from the future;
anything that isn't a backup of ours. And never more than two of a tier at once, so that a clock that jumps ahead costs
little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from medianest_operator.backups.repository.catalog import Backup, State
from medianest_operator.backups.repository.layout import Tier

AT_ONCE = 2
"""So many of a tier go in one run, the oldest first."""


@dataclass(frozen=True)
class Removal:
    """A backup that may go.

    Attributes:
        backup: which.
        why: for the log and the result.
    """

    backup: Backup
    why: str


def plan(
    backups: Sequence[Backup],
    now: datetime,
    keep: Mapping[Tier, timedelta],
    newest: Mapping[Tier, int] | None = None,
    but: Collection[str] = (),
) -> list[Removal]:
    """What may go of one repository's backups.

    Args:
        backups: as the catalog has them; each database's are judged by themselves. Attempts without a manifest are no
            backups, `store.cleanup` is for them.
        now: aware.
        keep: how long a tier's backups stay. Those of a tier without a time stay indefinitely, unless `newest` has it
            or they have a `keep_until` of their own, which goes before the tier's time.
        newest: so many of a tier's good ones stay whatever their age; the others of a tier that has no time go.
        but: ids that stay.
    """
    removals = []
    for of_origin in _grouped(backups, lambda backup: backup.place.origin):
        verified = _ids(of_origin, lambda backup: backup.is_verified and backup.tier is not Tier.REPLACED)
        # Whoever can write there can make unsigned ones; the last signed one stays whatever they are.
        signed = _ids(
            of_origin,
            lambda backup: backup.is_verified and backup.is_authentic and backup.tier is not Tier.REPLACED,
        )
        # What was noted of these can't be read: one of them may be the last verified one.
        unclear = _ids(of_origin, lambda backup: backup.is_unclear and backup.tier is not Tier.REPLACED)
        ordered = [backup.id for backup in of_origin]
        newer = [id_ for id_ in unclear if not verified or ordered.index(id_) > ordered.index(verified[-1])]
        spared = {*but, *verified[-1:], *signed[-1:], *newer}
        for of_tier in _grouped(of_origin, lambda backup: backup.tier):
            tier = of_tier[0].tier
            count = (newest or {}).get(tier, 0)
            good = _ids(of_tier, lambda backup: backup.is_good and backup.is_authentic)
            # Where restores have failed of all there are, the newest is still better than none.
            last = good or [backup.id for backup in of_tier]
            # That of a replaced database stands for no other: its time is all that it has.
            staying = spared | set(() if tier is Tier.REPLACED else last[-max(count, 1) :])
            due = [
                Removal(backup, why)
                for backup in of_tier
                if backup.id not in staying and not backup.read and (why := _due(backup, now, keep.get(tier), count))
            ]
            removals += due[:AT_ONCE]
    return removals


def _due(backup: Backup, now: datetime, kept: timedelta | None, count: int) -> str:
    """Why a backup may go; empty if it may not."""
    if backup.taken_at > now:
        return ""
    until = backup.manifest.keep_until if backup.manifest is not None else None
    if until is not None:
        return f"it was to be kept until {until:%Y-%m-%d %H:%M} UTC" if until < now else ""
    if kept is not None:
        age = now - backup.taken_at
        return f"it is {_days(age)} old, and {backup.tier} ones are kept for {_days(kept)}" if age > kept else ""
    return f"of the {backup.tier} ones the newest {count} are kept" if count else ""


def _days(span: timedelta) -> str:
    hours = span.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours"


def _ids(backups: Sequence[Backup], fits: Callable[[Backup], bool]) -> list[str]:
    return [backup.id for backup in backups if fits(backup)]


def _grouped(backups: Sequence[Backup], key: Callable[[Backup], Any]) -> list[list[Backup]]:
    """The backups by what they have in common, each group the oldest first; what isn't known to be one isn't in any."""
    groups: dict[Any, list[Backup]] = defaultdict(list)
    for backup in sorted(backups, key=lambda backup: backup.rank):
        if backup.state is State.COMPLETE:
            groups[key(backup)].append(backup)
    return [groups[name] for name in sorted(groups)]
