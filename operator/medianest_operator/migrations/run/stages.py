"""The stages of a run: each is made of the one before and holds what the next step can't be taken without.

`Admitted` (may be applied) -> `Opened` (stands in the journal) -> `Prepared` (backed up, rehearsed) -> `Ready` (what it
goes back to is known, writers are locked out where that is needed). A run that halts where it fails goes back to
nothing, and is applied from `Opened`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from medianest_operator.migrations.journal import Entry
from medianest_operator.migrations.run.checks import Holders
from medianest_operator.migrations.run.evidence import Evidence
from medianest_operator.migrations.run.parts import Part, RevertPlan, Strategy
from medianest_operator.migrations.run.rehearsal import Rehearsed


@dataclass(frozen=True)
class Admitted:
    """Lint let the files through.

    Attributes:
        parts: what commits together; none where a run ends before that was looked at.
        revert: how the run would be rolled back.
        holders: what held data before the run.
    """

    parts: tuple[Part, ...] = ()
    revert: RevertPlan = field(default_factory=lambda: RevertPlan(Strategy.TRANSACTION))
    holders: Holders = field(default_factory=dict)


@dataclass(frozen=True)
class Opened(Admitted):
    """The journal has an entry for the run: who finds it cut off knows what it was about to do."""

    entry: Entry = field(kw_only=True)


@dataclass(frozen=True)
class Prepared(Opened):
    """There is a backup where one is kept, and the run went through on a copy where it is rehearsed.

    Attributes:
        before: what the run goes back to; `None` where it is looked at only once nobody writes any more.
        rehearsed: what a copy with all the data came to.
    """

    before: Evidence | None = field(kw_only=True)
    rehearsed: Rehearsed | None = field(kw_only=True)


@dataclass(frozen=True)
class Ready(Opened):
    """Whatever happens from here on, the run can go back.

    Attributes:
        before: what it goes back to.
        rehearsed: as in `Prepared`.
    """

    before: Evidence = field(kw_only=True)
    rehearsed: Rehearsed | None = field(kw_only=True)
