"""Which backups there are, may be, or are there no more, as the status tells it."""

from __future__ import annotations

from collections.abc import Sequence

from medianest_operator.api import status as api
from medianest_operator.backups.repository import layout

_AFTER_ALL = "~"
"""Sorts after all ids."""


class There:
    """What the repositories of the spec hold, as far as it is told: at most the newest twenty, and of each repository
    as many as a result had room for.

    Args:
        newest: as they are now.
        before: as they were told until now.
        repositories: each with the number that it holds.
    """

    def __init__(
        self,
        newest: Sequence[api.KeptBackup],
        before: Sequence[api.KeptBackup],
        repositories: Sequence[api.RepositoryStatus],
    ) -> None:
        self._by_id = {item.id: item for item in newest}
        self._before = {item.id: item.repositories for item in before}
        # Of repositories that hold more than is told: the oldest that is. What isn't newer may be there.
        self._oldest: dict[str, str] = {}
        for place in repositories:
            told = [item.id for item in newest if place.name in item.repositories]
            if place.count is None or len(told) < place.count:
                self._oldest[place.name] = min(told, default=_AFTER_ALL)
        # The newest of a replaced database's is none of the present one's.
        self.newest = next((item for item in newest if item.tier != layout.Tier.REPLACED), None)

    def get(self, id_: str) -> api.KeptBackup | None:
        """One that is told of."""
        return self._by_id.get(id_)

    def has_lost(self, id_: str) -> bool:
        """Whether it was told, and isn't there any more."""
        places = self._before.get(id_)
        if places is None or id_ in self._by_id:
            return False
        return all(id_ > self._oldest.get(place, "") for place in places)

    def may_be_verified(self, id_: str) -> bool:
        """Whether nothing is known against it: it isn't there, or isn't verified any more (a later test restore, or a
        signature that is asked for by now)."""
        if (item := self._by_id.get(id_)) is not None:
            return item.verified is True
        return not self.has_lost(id_) and bool(self._oldest)
