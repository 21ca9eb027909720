"""How a run is cut into parts that commit on their own, and how what was committed would be rolled back. Pure.

Everything that can run in a transaction runs in one, over as many files as possible: then a failure anywhere takes all
of it back. Only what PostgreSQL refuses inside a transaction stands alone; what was committed before and by such a
file needs another rollback.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medianest_operator.migrations.script import Kind, Script, Statement, parse
from medianest_operator.migrations.source import Migration
from medianest_operator.migrations.traces import Trace
from medianest_operator.postgres.catalog import Catalog


class Strategy(enum.StrEnum):
    """How a run is rolled back, the first that fits."""

    TRANSACTION = "Transaction"
    """Nothing is committed before the end."""
    DOWN = "Down"
    """The scripts that lie beside the migrations, in reverse order."""
    INVERSE = "Inverse"
    """What the catalogs before and after differ in, turned round."""
    RESTORE = "Restore"
    """The pre-migration backup, with the writers locked out since before it was taken."""
    NONE = "None"
    """Not at all: `onFailure: Halt`."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A migration to be applied, parsed."""

    migration: Migration
    script: Script

    @property
    def name(self) -> str:
        return self.migration.name


@dataclass(frozen=True, slots=True)
class Part:
    """What commits together: the files of one transaction, or one file that can't run in any."""

    planned: tuple[Planned, ...]
    is_transaction: bool

    @property
    def statements(self) -> Iterable[Statement]:
        return (statement for item in self.planned for statement in item.script.statements)


def parse_all(pending: Sequence[Migration]) -> tuple[Planned, ...]:
    """Parse each file once."""
    return tuple(Planned(migration, parse(migration.sql)) for migration in pending)


def make_parts(planned: Sequence[Planned], together: bool = True) -> tuple[Part, ...]:
    """Cut a run into parts.

    Args:
        together: put neighbouring files into one transaction; otherwise each is its own part, as Prisma's deploy does.
    """
    parts: list[Part] = []
    group: list[Planned] = []

    def close() -> None:
        if group:
            parts.append(Part(tuple(group), is_transaction=True))
            group.clear()

    for item in planned:
        if not _runs_in_transaction(item.script):
            close()
            parts.append(Part((item,), is_transaction=False))
            continue
        group.append(item)
        if not together or any(statement.adds_enum_value for statement in item.script.statements):
            # A later file may use the new value, which it can only once this one is committed.
            close()
    close()
    return tuple(parts)


def _runs_in_transaction(script: Script) -> bool:
    # What the grammar refuses the server refuses as well, as a whole and before it runs any of it.
    return script.is_atomic or not script.parsed


@dataclass(frozen=True, slots=True)
class RevertPlan:
    """How a run would be rolled back.

    Attributes:
        strategy: the way that is tried first.
        locked out: writers have to be locked out from before the first change until the end.
        why: what makes the lockout necessary, in words.
    """

    strategy: Strategy
    locked_out: bool = False
    why: str = ""

    @property
    def commits_early(self) -> bool:
        """Whether something of the run may be committed before its end."""
        return self.strategy not in (Strategy.TRANSACTION, Strategy.NONE)


def plan_revert(parts: Sequence[Part], catalog: Catalog, *, rehearsed: bool = True) -> RevertPlan:
    """Choose how the run would be rolled back.

    Args:
        rehearsed: the rollback is gone through on a copy first, so that what may not lead back is found out.
        catalog: the database's own before the run: whether a dropped index can be built again without a conflict
            depends on whether it is unique.
    """
    moving = next((s for part in parts for s in part.statements if s.moves_sequence), None)
    if len(parts) <= 1 and all(part.is_transaction for part in parts):
        if moving:
            return RevertPlan(
                Strategy.TRANSACTION, True, f"`{moving.excerpt}` moves a sequence, which no rollback reverts"
            )
        return RevertPlan(Strategy.TRANSACTION)
    # The last part, if it is a transaction, is either committed and with it the run, or it is gone.
    committed = parts[:-1] if parts[-1].is_transaction else parts
    unique = {item.name for item in catalog.of_kind("index") if item.attributes.get("unique")}
    partitioned = {item.name.strip('"') for item in catalog.of_kind("table") if item.attributes.get("partitioned")}
    lasting = next(
        (
            (item, s)
            for part in committed
            for item in part.planned
            for s in item.script.statements
            if _lasts(s, unique) or (not rehearsed and _is_unsure(s, partitioned))
        ),
        None,
    )
    unread = next((item for part in committed for item in part.planned if not item.script.parsed), None)
    have_down = all(item.migration.down is not None for part in committed for item in part.planned)
    if lasting is None and have_down:
        lasting = next(
            ((item, s) for part in committed for item in part.planned for s in parse_down(item) if _brings_rows(s)),
            None,
        )
    if lasting is None and unread is None and moving is None:
        return RevertPlan(Strategy.DOWN if have_down else Strategy.INVERSE)
    if lasting:
        item, statement = lasting
        why = (
            f"statement {statement.ordinal} of {item.name} (`{statement.excerpt}`) may be committed before the run ends"
        )
    else:
        why = f"`{moving.excerpt}` moves a sequence" if moving else "a file can't be parsed"
    return RevertPlan(Strategy.DOWN if have_down else Strategy.RESTORE, True, why)


def parse_down(item: Planned) -> tuple[Statement, ...]:
    """The statements of the script that reverts a migration; none where there is no script."""
    down = item.migration.down
    return parse(down).statements if down is not None else ()


def _brings_rows(statement: Statement) -> bool:
    """Whether a statement of a down script writes rows, or may: dropping what the migration made doesn't."""
    return statement.writes_rows or statement.kind is Kind.MAY_COMMIT


def _is_unsure(statement: Statement, partitioned: set[str]) -> bool:
    return statement.trace is Trace.UNSURE or statement.indexes_table in partitioned


def _lasts(statement: Statement, unique_indexes: set[str]) -> bool:
    if any(name in unique_indexes for name in statement.drops_indexes):
        return True
    return statement.trace is Trace.DATA
