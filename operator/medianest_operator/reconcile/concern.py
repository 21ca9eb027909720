"""The shape of a concern: one module of `reconcile/` that looks after one thing of a database.

A concern says what it needs, observes, acts, and returns an `Outcome`. It hands typed facts to the concerns after it;
what it raises becomes its problem, and never another's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.model import ApiModel

if TYPE_CHECKING:
    from medianest_operator.reconcile.context import Run

F = TypeVar("F")

Truth = Literal["True", "False", "Unknown"]


class Needs(IntEnum):
    """What has to be there before a concern can do anything. Each needs all that come before it."""

    NOTHING = 0
    CREDENTIALS = 1
    """The controller can log in to the servers (a fact of the certificates)."""
    PRIMARY = 2
    """A primary answers SQL and takes writes."""
    DATABASE = 3
    """The application's database is there, and isn't about to be replaced."""
    SCHEMA = 4
    """Its migration history was read."""


StatusPart = ApiModel | Sequence[ApiModel] | str | int | None
"""What a concern says of one field of the status."""


@dataclass(frozen=True)
class Verdict:
    """A condition before it has a time."""

    status: Truth
    reason: Reason
    message: str


@dataclass(frozen=True)
class Announcement:
    """An Event to be written after the status."""

    reason: str
    message: str
    kind: Literal["Normal", "Warning"] = "Normal"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a concern found and did in one run.

    Attributes:
        facts: values for the concerns after it, found again by their type.
        conditions: its conditions; `None` takes one away. One that is missing here keeps its last value.
        obstacle: what keeps the database from being Ready; its `status` is Ready's.
        stalled: a person has to change something; becomes the condition Stalled.
        status: the parts of the status that it speaks for, by their attribute in `DatabaseStatus`; `None` takes a part
            away. One that is missing here keeps its last value.
        events: what people should hear of beside the conditions' own changes.
        problem: an error that it met after it had found out all the above.
        next_look: seconds until it has something to do that no event announces.
        summary: a clause for the message of Ready while all is well, for instance `3 instances ready`.
        told: called once the status was written and the Events are on their way.
    """

    facts: tuple[object, ...] = ()
    conditions: Mapping[Condition, Verdict | None] = field(default_factory=dict)
    obstacle: Verdict | None = None
    stalled: Verdict | None = None
    status: Mapping[str, StatusPart] = field(default_factory=dict)
    events: tuple[Announcement, ...] = ()
    problem: Exception | None = None
    next_look: float | None = None
    summary: str | None = None
    told: Callable[[], None] | None = field(default=None, compare=False)


NOTHING_TO_SAY = Outcome()


@dataclass(frozen=True)
class Concern:
    """One line of the order of a run.

    Attributes:
        name: for logs and messages, for instance `certificates`.
        needs: without it the concern isn't asked.
        act: observe and act.
        observe: the same without changing anything, while the database is paused; `None`: it isn't asked then.
        initial: conditions of its own that are there before they were ever observed.
        conditions: its other conditions, which are absent until then.
        stable: what it finds follows from the spec and from watched objects alone, until its `next_look`: while neither
            changes, it isn't asked again.
        calm: what it finds follows from those and from the facts before it: while all is well, none of them changes
            and it asks for no `next_look`, it is asked once a minute.
    """

    name: str
    needs: Needs
    act: Callable[[Run], Awaitable[Outcome]]
    observe: Callable[[Run], Awaitable[Outcome]] | None = None
    initial: Mapping[Condition, Verdict] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    stable: bool = False
    calm: bool = False


class Facts:
    """What the concerns of one run have found out so far, by type."""

    def __init__(self) -> None:
        self._known: dict[type[Any], object] = {}

    def add(self, fact: object) -> None:
        """Keep a fact; a newer one of its type replaces it."""
        self._known[type(fact)] = fact

    @property
    def types(self) -> frozenset[type[Any]]:
        """The types of all facts so far."""
        return frozenset(self._known)

    @property
    def known(self) -> tuple[object, ...]:
        """All facts so far."""
        return tuple(self._known.values())

    def get(self, kind: type[F]) -> F | None:
        """The fact of this type; `None` where no concern of this run has found it out."""
        found = self._known.get(kind)
        return found if isinstance(found, kind) else None

    def require(self, kind: type[F]) -> F:
        """As `get`, for a fact that what the concern `needs` guarantees.

        Raises:
            LookupError: no concern before this one has found it out; a mistake in the order.
        """
        found = self.get(kind)
        if found is None:
            raise LookupError(f"no concern before this one found out about {kind.__name__}")
        return found
