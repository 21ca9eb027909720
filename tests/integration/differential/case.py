"""One case: which database, which files, what goes wrong, who else is at work. Drawn from its seed alone."""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass

from integration.crashes import GATE
from integration.differential import furniture
from integration.differential.grammar import GROUPS, TABLES, Kind
from integration.differential.meddling import ACTS, Act

LIVE = "pg_has_role('postgres', 'pg_read_server_files', 'MEMBER')"
"""True in the database itself; on a copy `postgres` is a role like any other."""
STATEMENT_LIMIT, LOCK_LIMIT = 300, 300
"""Milliseconds, where a case is about such a limit."""
LONGEST = 3 * STATEMENT_LIMIT


class Fault(enum.Enum):
    """What goes wrong."""

    NOTHING = "nothing"
    STATEMENT = "a statement fails"
    LIVE_ONLY = "a statement fails on live only"
    COPY_ONLY = "a statement fails on the copy only"
    TIMEOUT = "a statement takes too long on live only"
    LOCK = "somebody holds a lock"
    KILL_AT_LINE = "killed after some line"
    KILL_AT_GATE = "killed in a file"
    KILL_AT_STEP = "killed as it writes a step"
    KILL_GOING_BACK = "killed on its rollback"
    TERM_AT_GATE = "stopped in a file"
    CUT_AT_GATE = "its session ended in a file"

    @property
    def at_gate(self) -> bool:
        return self in (Fault.KILL_AT_GATE, Fault.TERM_AT_GATE, Fault.CUT_AT_GATE)

    @property
    def needs_process(self) -> bool:
        return self.at_gate or self in (Fault.KILL_AT_LINE, Fault.KILL_AT_STEP, Fault.KILL_GOING_BACK)


_WEIGHTS = {
    Fault.NOTHING: 14,
    Fault.STATEMENT: 14,
    Fault.LIVE_ONLY: 14,
    Fault.COPY_ONLY: 2,
    Fault.TIMEOUT: 8,
    Fault.LOCK: 8,
    Fault.KILL_AT_LINE: 8,
    Fault.KILL_AT_GATE: 9,
    Fault.KILL_AT_STEP: 7,
    Fault.KILL_GOING_BACK: 6,
    Fault.TERM_AT_GATE: 5,
    Fault.CUT_AT_GATE: 5,
}
_MOMENTS = {"applying": 6, "applied": 3, "backed up": 1, "locking writers out": 2, "reverting": 2}
_STEPS = ("LockingOut", "Applying", "Verifying", "RollingBack", "Finished")

_FAILURES = (
    "SELECT 1/0",
    "SELECT 1/0",
    "ALTER TABLE nowhere ADD COLUMN x int",
    "INSERT INTO tags VALUES (1, 'twice', 'twice')",
    "CREATE UNIQUE INDEX CONCURRENTLY bad ON users (status)",
    "DO $$ BEGIN RAISE EXCEPTION 'no'; END $$",
    "CREATE TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED);\nINSERT INTO late VALUES (1), (1)",
    "ALTER TABLE users ADD CONSTRAINT bad CHECK (status = 'never')",
)


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        seed: what it is drawn from.
        furniture: the number of the set in the database.
        files: `name -> SQL`; `name/down` is the script that reverts it.
        kinds: the kinds of statements in them.
        rehearse: `Never`, `Auto`, `Always`, or `Definitions` (Auto above its limit).
        destroys: whether statements that lose data are allowed.
        fault: what goes wrong.
        line: how many lines a run prints before it is killed, where that is the fault.
        delay: how much later it is killed, seconds.
        step: the step of the journal, where that is the fault.
        table: which table somebody holds a lock on, where that is the fault.
        act: what a DBA does meanwhile; `None`: nothing.
        moment: what the run says when he does it.
        writes: whether the application is at work.
        same: whether the next run is of the same source, or of another one.
        again: how many lines the next run prints before it is killed as well, where this one is; 0: it isn't.
    """

    seed: int
    furniture: int
    files: Mapping[str, str]
    kinds: tuple[str, ...]
    rehearse: str
    destroys: bool
    fault: Fault
    line: int
    delay: float
    step: str
    table: str
    act: Act | None
    moment: str
    writes: bool
    same: bool
    again: int

    def __str__(self) -> str:
        files = "\n".join(f"--- {name}\n{text}" for name, text in sorted(self.files.items()))
        pieces = ", ".join(furniture.chosen(self.furniture)) or "nothing"
        details = {
            Fault.KILL_AT_LINE: f" (line {self.line} + {self.delay:.3f} s)",
            Fault.KILL_AT_STEP: f" ({self.step})",
            Fault.LOCK: f" (on {self.table})",
        }.get(self.fault, "")
        meddler = f"; a DBA: {self.act.name} at {self.moment!r}" if self.act else ""
        return (
            f"seed {self.seed}: {self.fault.value}{details}; rehearse {self.rehearse}; destroys {self.destroys};"
            f" furniture {self.furniture} ({pieces}); writer {self.writes}{meddler};"
            f" then {'the same' if self.same else 'another'} source"
            f"{f', killed after {self.again} lines as well' if self.again else ''}\n{files}"
        )


def case(seed: int) -> Case:
    """The case of a seed."""
    dice = random.Random(seed)
    fault = dice.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    drawing = _Drawing(dice)
    files = drawing.files(fault)
    never = 0.7 if fault is not Fault.COPY_ONLY else 0
    rehearse = "Never" if dice.random() < never else dice.choices(("Auto", "Always", "Definitions"), (3, 4, 2))[0]
    act = dice.choice(ACTS) if dice.random() < 0.25 else None
    return Case(
        seed=seed,
        furniture=dice.randrange(furniture.SETS),
        files=files,
        kinds=tuple(drawing.kinds),
        rehearse=rehearse,
        destroys=dice.random() < 0.85,
        fault=fault,
        line=dice.randrange(1, 16),
        delay=dice.choice((0.0, 0.0, 0.005, 0.02)),
        step=dice.choice(_STEPS),
        table=dice.choice(("users", "media_requests", "tags", "events", "rate_limits")),
        act=act,
        moment=dice.choices(list(_MOMENTS), list(_MOMENTS.values()))[0],
        writes=dice.random() < 0.75,
        same=dice.random() < 0.5,
        again=dice.randrange(1, 9) if dice.random() < 0.3 else 0,
    )


class _Drawing:
    """Draws the files of one case."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._number = 0
        self._reverted = dice.random() < 0.15
        """Whether beside each file lies one that takes it back."""
        self.kinds: list[str] = []

    def files(self, fault: Fault) -> dict[str, str]:
        drawn = [self._file() for _ in range(self._dice.choices((1, 2, 3, 4), (3, 4, 3, 2))[0])]
        downs = self._reverted and all(down for _, down, _ in drawn)
        texts = [statements for statements, _, _ in drawn]
        self._spoil(texts, [alone for _, _, alone in drawn], fault)
        files = {}
        for number, statements in enumerate(texts):
            name = f"202601{number + 1:02}000000_{'abcdef'[number]}"
            files[name] = "".join(f"{statement};\n" for statement in statements)
            if downs and number < len(drawn):
                files[f"{name}/down"] = self._down(drawn[number][1])
        return files

    def _file(self) -> tuple[list[str], list[str], bool]:
        """The statements of a file, those that take it back (none where one of its statements has none), and whether
        it is one that PostgreSQL wants alone."""
        kinds = [self._kind() for _ in range(self._dice.choices((1, 2, 3, 4), (3, 3, 2, 1))[0])]
        first = kinds[0]
        if first.alone:
            # Now and then in company, which the server refuses.
            kinds = kinds if self._dice.random() < 0.05 else [first]
        statements, downs = [], []
        for kind in kinds:
            sql, down = self._filled(kind)
            statements.append(sql)
            downs.append(down)
            self.kinds.append(kind.name)
        if not first.alone and self._dice.random() < 0.25:
            statements.insert(self._dice.randint(1, len(statements)), "COMMIT")
        elif not first.alone and self._dice.random() < 0.05:
            statements = ["BEGIN", *statements, "COMMIT"]
        return statements, list(reversed(downs)) if all(downs) else [], first.alone and len(kinds) == 1

    def _kind(self) -> Kind:
        groups = GROUPS[:-1] if self._reverted else GROUPS
        kinds = self._dice.choices([kinds for kinds, _ in groups], [often for _, often in groups])[0]
        return self._dice.choice([kind for kind in kinds if kind.down or not self._reverted])

    def _filled(self, kind: Kind) -> tuple[str, str]:
        self._number += 1
        table, text = self._dice.choice(TABLES)
        words = {"n": str(self._number), "year": str(2030 + self._number), "table": table, "text": text}
        words["equals"] = "=" * self._number
        sql, down = kind.sql, kind.down
        for word, value in words.items():
            sql, down = sql.replace(f"{{{word}}}", value), down.replace(f"{{{word}}}", value)
        return sql, down

    def _down(self, statements: list[str]) -> str:
        if len(statements) > 1 and self._dice.random() < 0.2:
            # Somebody has forgotten one.
            statements = statements[1:]
        return "".join(f"{statement};\n" for statement in statements)

    def _spoil(self, texts: list[list[str]], alone: list[bool], fault: Fault) -> None:
        """Put what goes wrong into one of the files, mostly the last."""
        wrong = self._wrong(fault)
        if not wrong:
            return
        number = len(texts) - 1 if self._dice.random() < 0.6 else self._dice.randrange(len(texts))
        if alone[number] or " CONCURRENTLY " in wrong:
            texts.append([wrong])
            return
        texts[number].insert(self._dice.randint(0, len(texts[number])), wrong)

    def _wrong(self, fault: Fault) -> str:
        """The statement that makes it go wrong; empty where none does."""
        if fault in (Fault.STATEMENT, Fault.KILL_GOING_BACK):
            return self._dice.choice(_FAILURES)
        if fault is Fault.KILL_AT_STEP and self._dice.random() < 0.5:
            return self._dice.choice(_FAILURES)
        if fault is Fault.LIVE_ONLY:
            return f"SELECT 1/(NOT {LIVE})::int"
        if fault is Fault.COPY_ONLY:
            return f"SELECT 1/{LIVE}::int"
        if fault is Fault.TIMEOUT:
            return f"SELECT pg_sleep(CASE WHEN {LIVE} THEN {LONGEST / 1000} ELSE 0 END)"
        if fault.at_gate:
            return f"SELECT pg_advisory_xact_lock({GATE}) FROM (SELECT {LIVE}) AS here (live) WHERE live"
        return ""
