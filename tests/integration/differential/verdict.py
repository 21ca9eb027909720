"""Whether what a run says of itself is true, by what others see of the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from integration.crashes import open_runs
from integration.differential import furniture
from integration.differential.case import Case, Fault
from integration.differential.field import Field
from integration.differential.grammar import REFUSED_KINDS
from integration.differential.meddling import Act
from integration.differential.runs import Ran
from integration.differential.state import State, look
from integration.postgres_server import Database

LOCKED_OUT = "The application is locked out of its database."
OUTCOMES = {"Applied": 0, "Failed": 1, "Transient": 2}
_HISTORY = "SELECT migration_name, finished_at IS NOT NULL FROM _prisma_migrations WHERE rolled_back_at IS NULL"


class Contradiction(AssertionError):
    """The oracle says otherwise."""


@dataclass(frozen=True)
class Seen:
    """What others see once a run has ended.

    Attributes:
        done: the case's files that the history calls applied.
        undecided: those that it calls neither applied nor rolled back.
        is_open: the journal has a run without an end, or with an unverified one.
        is_shut: the application gets no connection.
        newest: the newest migration that the history calls applied.
    """

    done: tuple[str, ...]
    undecided: tuple[str, ...]
    is_open: bool
    is_shut: bool
    newest: str | None


def see(database: Database, names: set[str]) -> Seen:
    rows = database.execute(_HISTORY)
    finished = sorted({name for name, is_finished in rows if is_finished})
    try:
        database.connect("medianest_app").close()
        is_shut = False
    except psycopg.OperationalError as error:
        is_shut = "permission denied for database" in str(error)
    return Seen(
        done=tuple(name for name in finished if name in names),
        undecided=tuple(sorted(name for name, is_finished in rows if not is_finished)),
        is_open=bool(open_runs(database)),
        is_shut=is_shut,
        newest=max(finished, default=None),
    )


@dataclass(frozen=True)
class Scene:
    """What a verdict is about.

    Attributes:
        files: all that may be applied, of the case and of what came after it.
        act: what a DBA has done and nobody took back; `None`: nothing.
        restored: a backup was restored, by what the runs have printed. pg_dump keeps no rows of materialized views, so
            that one which was out of date holds more than before.
    """

    field: Field
    case: Case
    database: Database
    files: Mapping[str, str]
    act: Act | None
    restored: bool = False

    @property
    def names(self) -> set[str]:
        return {name for name in self.files if "/" not in name}

    def settled(self, seen: Seen) -> State:
        """The database is wholly at the version of the history: PostgreSQL's own client leads to the same.

        Raises:
            Contradiction: it isn't.
        """
        own = {name for name in self.case.files if "/" not in name}
        part = own & set(seen.done)
        if part and part != own:
            raise Contradiction(f"the history calls a part of the run applied: {', '.join(sorted(part))}")
        if seen.undecided:
            raise Contradiction(f"the history leaves {', '.join(seen.undecided)} undecided")
        now = look(self.database)
        differences = []
        for act in self._acts():
            for refreshed in [False, True] if self.restored else [False]:
                expected = self.field.expected(self.case.furniture, self.files, seen.done, act, refreshed=refreshed)
                unlike = expected.unlike(now)
                if not unlike:
                    return now
                differences.append(f"{f'with the {act.name}: ' if act else ''}{unlike}")
        after = ", ".join(seen.done) or "nothing"
        raise Contradiction(f"the history says {after}, and the database is otherwise: {'; or '.join(differences)}")

    def _acts(self) -> list[Act | None]:
        if self.act is None or not self.act.seen:
            return [None]
        # A rollback may take back what somebody did to the application's own objects, never what is somebody's own.
        return [self.act] if self.act.his else [self.act, None]


def judge(scene: Scene, source: Mapping[str, str], ran: Ran) -> Seen:
    """Compare all that a run claims with what others see.

    Raises:
        Contradiction: something isn't as it says.
    """
    seen = see(scene.database, scene.names)
    assert ran.result is not None
    for complaint in _complaints(scene, {name for name in source if "/" not in name}, ran, ran.result, seen):
        raise Contradiction(complaint)
    if not seen.is_open:
        now = scene.settled(seen)
        _check_identities(scene, ran.result, now)
    return seen


def _complaints(scene: Scene, names: set[str], ran: Ran, result: Mapping[str, Any], seen: Seen) -> Iterator[str]:
    outcome, reason, message = result["outcome"], result["reason"], result["message"]
    rollback = result.get("rollback") or {}
    claimed = {item["name"] for item in result.get("applied", ())}
    if ran.code is not None and ran.code != OUTCOMES[outcome]:
        yield f"it ended with {ran.code} and calls that {outcome}"
    if message.startswith(LOCKED_OUT) != seen.is_shut:
        yield f"the application {'gets no' if seen.is_shut else 'gets a'} connection, and it says: {message}"
    if seen.is_shut and not seen.is_open:
        yield "the application is locked out, and nothing is open"
    if not claimed <= set(seen.done) | (claimed - scene.names):
        yield f"it calls {sorted(claimed)} applied, the history {seen.done}"
    if (version := result.get("version")) is not None and version != seen.newest:
        yield f"it says the schema is at {version}, the history {seen.newest}"
    if outcome == "Applied":
        if not names <= set(seen.done):
            yield f"applied, says it; the history holds {seen.done}"
        if rollback or seen.is_open:
            yield f"applied, with a rollback {rollback} or an open run"
    if rollback.get("verified") and (seen.is_open or names & set(seen.done) - _earlier(scene, names)):
        yield f"rolled back and verified, with {seen.done} applied or an open run"
    if reason == "RollbackUnverified":
        if scene.act is None or not scene.act.seen:
            yield f"unverified, and nobody has done anything: {message}"
        if seen.done or not seen.undecided or not seen.is_open:
            yield f"unverified, and the history holds {seen.done}, undecided {seen.undecided}, open {seen.is_open}"
    elif outcome == "Failed" and seen.is_open:
        yield f"it is final, and the journal has an open run: {message}"
    if rollback and rollback["verified"] == (reason == "RollbackUnverified"):
        yield f"{reason} with a rollback that is {rollback}"
    if reason in ("InternalError", "PermissionDenied"):
        yield f"{reason}: {message}"
    if reason in ("MigrationFailed", "RehearsalDiffers", "InvalidIndex") and _is_sound(scene, names):
        yield f"psql applies these files, and it says: {message}"
    if reason in _refusals(scene.case) and _is_sound(scene, names):
        yield f"psql applies these files, nothing is in the way of a rollback, and they are refused: {message}"


def _refusals(case: Case) -> set[str]:
    """The reasons with which a run of files that have no fault may not be refused."""
    refusals = {"BackupFailed", "LockoutFailed", "OutOfResources"}
    if not furniture.IN_THE_WAY & {*furniture.chosen(case.furniture)}:
        refusals |= {"RollbackImpossible", "RehearsalImpossible"}
    if not {kind.name for kind in REFUSED_KINDS} & {*case.kinds}:
        refusals.add("StatementRefused")
    return refusals | ({"DestructiveStatement"} if case.destroys else set())


def _is_sound(scene: Scene, names: set[str]) -> bool:
    """Whether nothing but the files can be at fault, and PostgreSQL's own client finds none with them."""
    innocent = scene.case.fault in (Fault.NOTHING, Fault.KILL_AT_LINE, Fault.KILL_AT_GATE, Fault.CUT_AT_GATE)
    if not innocent or scene.act is not None or not names & set(scene.case.files):
        return False
    return scene.field.leads_on(scene.case.furniture, scene.files, sorted(names))


def _earlier(scene: Scene, names: set[str]) -> set[str]:
    """What another run had applied before."""
    return set() if names & set(scene.case.files) else {name for name in scene.case.files if "/" not in name}


def _check_identities(scene: Scene, result: Mapping[str, Any], now: State) -> None:
    """What was rolled back by its transaction or by an inverse has its tables still, and not others like them."""
    rollback = result.get("rollback") or {}
    if not rollback.get("verified") or rollback["strategy"] not in ("Transaction", "Inverse") or scene.restored:
        return
    for name, (oid, file) in scene.field.furnished(scene.case.furniture).state.tables.items():
        found = now.tables.get(name)
        same = found is not None and found[0] == oid and (found[1] == file or rollback["strategy"] == "Inverse")
        if not same:
            raise Contradiction(f"rolled back by {rollback['strategy']}, and table {name} is another one: {found}")
