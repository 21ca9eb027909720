"""Play one case: the run to which something happens, then those that come after it, each of them judged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from integration.differential import meddling
from integration.differential.case import Case, Fault
from integration.differential.field import Field
from integration.differential.runs import Ran, run_as_process, run_here
from integration.differential.verdict import Contradiction, Scene, Seen, judge, see
from integration.differential.writers import lost, writing
from integration.postgres_server import Database

OTHER: Mapping[str, str] = {"20270101000000_later": "CREATE TABLE later (id int);\nINSERT INTO later VALUES (1);\n"}
"""What is applied after a run, where another source follows."""
_FOLLOWING = 4
"""Runs after the first at the most: somebody has to take back what he did before it can end."""


@dataclass(frozen=True)
class Played:
    """How a case ended.

    Attributes:
        ending: in words, for counting.
        strategy: how the first run was rolled back; empty where it wasn't, or was killed.
        seconds: how long it took.
    """

    ending: str
    strategy: str
    seconds: float


def play(field: Field, case: Case) -> Played:
    """Play a case.

    Raises:
        Contradiction: what a run claims isn't so, or the database is between two versions, or a write is lost.
    """
    begun = time.monotonic()
    with field.copy(case.furniture) as database, field.room() as room:
        playing = _Playing(field, case, database, room)
        try:
            ending, strategy = playing.play()
        except AssertionError as error:
            told = "\n".join(f"    {line}" for line in playing.lines[-60:])
            error.add_note(f"{case}\n{told}")
            raise
        finally:
            if case.act is not None and case.act.name == "role":
                meddling.undo(database, case.act)
    return Played(ending, strategy, time.monotonic() - begun)


class _Playing:
    def __init__(self, field: Field, case: Case, database: Database, room: Path) -> None:
        self.case, self.database, self.room = case, database, room
        self.scene = Scene(field, case, database, {**case.files, **OTHER}, None)
        self.lines: list[str] = []

    def play(self) -> tuple[str, str]:
        """The ending in words, and the first run's kind of rollback."""
        with writing(self.database, self.case.writes) as writers:
            first = self._first()
            if first.result is None:
                ending, strategy, seen = "killed", "", see(self.database, self.scene.names)
                if self.case.again:
                    self._kill_again()
                self._follow()
            else:
                ending, strategy = _ending(first), _strategy(first)
                seen = judge(self.scene, self.case.files, first)
                if seen.is_open or self.case.seed % 4 == 0:
                    self._follow()
            if first.result is None:
                after = see(self.database, self.scene.names)
                whole = "applied" if set(self.case.files) & set(after.done) else "as before"
                ending = f"killed, {'open' if seen.is_open else 'nothing open'}, then {whole}"
        gone = lost(self.database, writers)
        if gone:
            total = sum(len(writer.acknowledged) for writer in writers)
            raise Contradiction(f"{len(gone)} of {total} acknowledged writes are lost: {sorted(gone)[:9]}")
        return ending, strategy

    def _first(self) -> Ran:
        if self.case.fault.needs_process:
            ran = run_as_process(self.database, self.case, self.room)
            if ran.code is not None and ran.code not in (0, 1, 2, -9):
                raise Contradiction(f"it ended with {ran.code}")
        else:
            ran = self._here(self.case.files, spoilt=True)
        self._note("first run", ran)
        if ran.meddled:
            self.scene = replace(self.scene, act=self.case.act)
        return ran

    def _kill_again(self) -> None:
        """The run after the one that was killed is killed as well, at another moment."""
        killing = replace(self.case, fault=Fault.KILL_AT_LINE, line=self.case.again, act=None)
        ran = run_as_process(self.database, killing, self.room)
        self._note("killed again", ran)
        if ran.result is not None:
            judge(self.scene, self.case.files, ran)

    def _here(self, files: Mapping[str, str], *, spoilt: bool) -> Ran:
        try:
            return run_here(self.database, self.case, files, self.room, spoilt=spoilt)
        except Exception as error:
            raise Contradiction(f"it ended in a traceback: {error!r}") from error

    def _follow(self) -> None:
        """Runs that nothing happens to, until one has come to its end: the next one does, unless it is not to."""
        source = self.case.files if self.case.same else OTHER
        for attempt in range(1, _FOLLOWING + 1):
            ran = self._here(source, spoilt=False)
            self._note(f"run {attempt} after it", ran)
            assert ran.result is not None
            seen: Seen = judge(self.scene, source, ran)
            if not seen.is_open:
                if ran.result["outcome"] == "Transient" and self.case.fault is not Fault.LOCK:
                    raise Contradiction(f"nothing is in the way, and it says: {ran.result['message']}")
                return
            if self.scene.act is None:
                raise Contradiction(f"the next run doesn't end it: {ran.result['message']}")
            self._take_back()
        raise Contradiction("it never comes to an end")

    def _take_back(self) -> None:
        """The DBA takes back what he did; what was his has to be there for that."""
        act = self.scene.act
        assert act is not None
        if not meddling.undo(self.database, act) and act.his:
            raise Contradiction(f"the DBA's {act.name} is gone")
        self.scene = replace(self.scene, act=None)

    def _note(self, what: str, ran: Ran) -> None:
        restored = any(line.startswith("restoring ") for line in ran.lines)
        self.scene = replace(self.scene, restored=self.scene.restored or restored)
        self.lines += [f"*** {what}", *ran.lines, f"=> {ran.code} {ran.result}"]


def _ending(ran: Ran) -> str:
    assert ran.result is not None
    rollback = ran.result.get("rollback")
    if ran.result["outcome"] == "Applied":
        return "applied"
    if rollback:
        return "rolled back and verified" if rollback["verified"] else "unverified, as it says"
    return f"nothing done ({ran.result['reason']})"


def _strategy(ran: Ran) -> str:
    rollback = (ran.result or {}).get("rollback")
    return rollback["strategy"] if rollback else ""
