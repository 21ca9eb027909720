"""What is to come into the application's database, and how far that is: handed from the concern that brings it in to
those that tell of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from medianest_operator.api import status as api
from medianest_operator.api.bootstrap import Import, RestoreSource
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.operation import OperationPhase
from medianest_operator.kubernetes.kinds import digest
from medianest_operator.postgres.databases import LiveDatabase
from medianest_operator.reconcile.backups.asked import Asked
from medianest_operator.reconcile.concern import Announcement, Outcome, StatusPart, Verdict
from medianest_operator.reconcile.instances.servers import SOON

BOOTSTRAP: Final = "bootstrap"
RESTORING, DONE, FAILED = "Restoring", "Done", "Failed"
NOTHING_CHANGED: Final = "Nothing was changed."


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        id: `bootstrap`, or the operation's uid.
        source: a backup, or a running server.
        asked: the operation; `None` where the spec asks for it.
    """

    id: str
    source: RestoreSource | Import
    asked: Asked | None = None

    @property
    def digest(self) -> str:
        """Another source in spec.bootstrap is another request; an operation's spec stays as it is."""
        return self.asked.digest if self.asked else digest([self.id, self.source.model_dump(mode="json")])

    @property
    def reasons(self) -> tuple[Reason, Reason]:
        """Under way, and failed."""
        if isinstance(self.source, Import):
            return Reason.IMPORTING, Reason.IMPORT_FAILED
        return Reason.RESTORING, Reason.RESTORE_FAILED

    @property
    def keep_replaced(self) -> str | None:
        """How long what it replaces stays, where it says so itself."""
        return self.asked.restore.keep_replaced if self.asked and self.asked.restore else None

    @property
    def doing(self) -> str:
        """What its Job does, as the end of a sentence."""
        if isinstance(self.source, Import):
            return f"imports the database that Secret {self.source.connection_secret.name} names"
        if self.asked is None:
            return f"restores backup {self.source.backup} of repository {self.source.repository.name}"
        named = self.asked.restore.repository if self.asked.restore else None
        return f"restores {self.asked.which}{f' of repository {named}' if named else ''}"


@dataclass(frozen=True)
class Progress:
    """How far an operation is, for its status.

    Attributes:
        details: fields of its status that are known by now.
    """

    uid: str
    phase: OperationPhase
    reason: Reason
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Restores:
    """The fact where the application's database and a request for its content stand.

    Attributes:
        has_database: the application's database is there.
        active: a request is under way, so that nothing else changes the database meanwhile.
        reason: why the object isn't Ready; `None` where no request keeps it from being.
        failed: only another request helps.
        report: what spec.bootstrap brought in.
        progress: of the operation whose turn it is.
        waits: why no operation begins, in words that follow the database's name.
        replaced: the databases that operations have replaced, the newest first.
    """

    has_database: bool
    active: bool = False
    reason: Reason | None = None
    message: str = ""
    failed: bool = False
    report: api.Bootstrapped | None = None
    progress: Progress | None = None
    waits: str | None = None
    replaced: tuple[api.ReplacedDatabase, ...] = ()
    events: tuple[Announcement, ...] = ()
    closed: str | None = None
    """Why the database lets nobody in, as a sentence; `None` where it does."""


def why_closed(name: str, live: LiveDatabase | None) -> str | None:
    """Why nobody gets in, as a sentence; `None` where people do."""
    if live is None:
        return f"There is no database {name}; the operator makes it as soon as it may change something."
    if not live.connects:
        return f"Database {name} takes no connections; the operator lets people in as soon as it may change something."
    if live.limit == 0:
        return (
            f"Database {name} lets nobody in: its owner set CONNECTION LIMIT 0. ALTER DATABASE {name}"
            " CONNECTION LIMIT -1 lifts that."
        )
    return None


def outcome_of(state: Restores) -> Outcome:
    """What it says of the database."""
    verdict = Verdict("False", state.reason, state.message) if state.reason else None
    status: dict[str, StatusPart] = {"bootstrap": state.report, "replaced": state.replaced}
    if state.closed:
        closed = Verdict("False", Reason.CONNECTIONS_REFUSED, state.closed)
        return Outcome(
            facts=(state,),
            conditions={Condition.AVAILABLE: closed},
            obstacle=closed,
            status=status,
        )
    # Until the application's database is there, nobody can use the one that leads.
    conditions = {} if state.has_database or verdict is None else {Condition.AVAILABLE: verdict}
    return Outcome(
        facts=(state,),
        conditions=conditions,
        obstacle=verdict,
        stalled=verdict if state.failed else None,
        status=status,
        events=state.events,
        next_look=SOON if state.active else None,
    )
