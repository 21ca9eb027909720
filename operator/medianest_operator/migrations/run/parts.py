"""How a run is cut into parts that commit on their own, and how what was committed would be rolled back. Pure.

Everything that can run in a transaction runs in one, over as many files as possible: then a failure anywhere takes all
of it back. Only what PostgreSQL refuses inside a transaction stands alone; what was committed before and by such a
file needs another rollback.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from medianest_operator.migrations.script import Kind, Script, Statement, name_in_ascii, parse
from medianest_operator.migrations.source import Migration
from medianest_operator.migrations.traces import Trace
from medianest_operator.postgres.catalog import Catalog

_NAME: Final = re.compile(r'(?:(?:"(?:[^"]|"")+"|[^".(]+)\.)?(?:"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^".(]+))')

# PostgreSQL's own functions that change something, or run a query that they are given.
_WRITING: Final = ("nextval", "setval", "lo_", "pg_", "dblink")
_RUNNING: Final = ("_to_xml", "_to_xmlschema", "_to_xml_and_xmlschema")


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

    @property
    def may_do_anything(self) -> bool:
        """Whether it holds a statement that may do more than can be read beforehand, as a block or a function may."""
        return any(s.trace is Trace.DATA or s.computes or s.kind is Kind.MAY_COMMIT for s in self.statements)


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


def plan_revert(
    parts: Sequence[Part],
    catalog: Catalog,
    *,
    rehearsed: bool = True,
    with_rows: bool = True,
    built_in: Set[str] = frozenset(),
) -> RevertPlan:
    """Choose how the run would be rolled back.

    Args:
        rehearsed: the rollback is gone through on a copy first, so that what may not lead back is found out.
        with_rows: the copy holds rows, so that a definition which changes them is found out, too.
        catalog: the database's own before the run: whether a dropped index can be built again without a conflict
            depends on whether it is unique.
        built_in: the functions of the run's names that PostgreSQL itself or an extension has.
    """
    known = _Known.of(catalog, parts, built_in)
    moving = next((s for part in parts for s in part.statements if known.moves_sequence(s)), None)
    if len(parts) <= 1 and all(part.is_transaction for part in parts):
        if moving:
            return RevertPlan(
                Strategy.TRANSACTION, True, f"`{moving.excerpt}` moves a sequence, which no rollback reverts"
            )
        return RevertPlan(Strategy.TRANSACTION)
    # The last part, if it is a transaction, is either committed and with it the run, or it is gone.
    committed = parts[:-1] if parts[-1].is_transaction else parts
    lasting = next(
        (
            (item, s)
            for part in committed
            for item in part.planned
            for s in item.script.statements
            if known.lasts(s)
            or (not rehearsed and known.is_unsure(s))
            or (not (rehearsed and with_rows) and known.may_write(s))
        ),
        None,
    )
    unread = next((item for part in committed for item in part.planned if not item.script.parsed), None)
    have_down = all(item.migration.down is not None for part in committed for item in part.planned)
    if lasting is None and have_down:
        lasting = next(
            (
                (item, s)
                for part in committed
                for item in part.planned
                for down in (parse_down(item),)
                for s in down
                # A look at what is dropped holds until a commit of the script's own, no longer.
                if known.takes_rows(s) or (s.removes and _commits_by_itself(down))
            ),
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


@dataclass(frozen=True)
class _Known:
    """What is there before the run, as names: a statement's weight depends on it.

    Attributes:
        lasting: the indexes whose drop their inverse may not revert: unique ones, since duplicates may come in, and
            those of partitioned tables, which can't be built concurrently.
        partitioned: the partitioned tables.
        holders: tables, and columns and constraints as (table, name).
        callable: functions and procedures that aren't PostgreSQL's own.
        built_in: PostgreSQL's own and those of extensions, where the run makes one of that name.
        views: the views.
        moving: functions and procedures that set a sequence.
        made: the functions and domains that the run itself makes.
        domains: domains, which have checks and a default of their own.
        types: these and composite types.
    """

    lasting: Set[str]
    partitioned: Set[str]
    holders: Set[tuple[str, str | None]]
    callable: Set[str]
    built_in: Set[str]
    views: Set[str]
    moving: Set[str]
    made: Set[str]
    domains: Set[str]
    types: Set[str]

    @classmethod
    def of(cls, catalog: Catalog, parts: Sequence[Part], built_in: Set[str]) -> _Known:
        """What a catalog holds, and what the parts of a run make."""
        tables, indexes = catalog.of_kind("table"), catalog.of_kind("index")
        functions = [*catalog.of_kind("function"), *catalog.of_kind("procedure")]
        partitioned = {bare(item.name) for item in tables if item.attributes.get("partitioned")}
        parts_of_tables = [*catalog.of_kind("column"), *catalog.of_kind("constraint")]
        types = [*catalog.of_kind("domain"), *catalog.of_kind("composite type")]
        return cls(
            lasting={
                bare(item.name) for item in indexes if item.attributes.get("unique") or bare(item.table) in partitioned
            },
            partitioned=partitioned,
            holders={(bare(item.name), None) for item in tables}
            | {(bare(item.table), bare(item.name)) for item in parts_of_tables},
            callable={bare(item.name) for item in functions},
            built_in=built_in,
            views={bare(item.name) for item in catalog.of_kind("view")},
            moving=_with_callers(
                {bare(item.name): str(item.attributes.get("definition")).lower() for item in functions}, "setval"
            ),
            made={name for part in parts for s in part.statements if (name := s.makes) is not None},
            domains={bare(item.name) for item in catalog.of_kind("domain")},
            types={bare(item.name) for item in types},
        )

    def moves_sequence(self, statement: Statement) -> bool:
        """Whether a statement sets a sequence, which no rollback reverts."""
        return statement.moves_sequence or bool(statement.calls & self.moving)

    def lasts(self, statement: Statement) -> bool:
        """Whether what a statement leaves is more than its inverse would take back, or leads the application's writes
        elsewhere: a function of the same name may be called instead, a foreign key deletes with others."""
        if any(name in self.lasting for name in statement.drops_indexes):
            return True
        return (
            statement.trace is Trace.DATA
            or statement.makes in self.callable | self.built_in
            or statement.replaces in self.views
            or (statement.deletes_along, None) in self.holders
        )

    def is_unsure(self, statement: Statement) -> bool:
        """Whether only a rehearsal tells that the catalogs say enough for a statement's inverse."""
        return statement.trace is Trace.UNSURE or statement.indexes_table in self.partitioned

    def may_write(self, statement: Statement) -> bool:
        """Whether only a rehearsal with rows tells that a statement leaves nothing but definitions: where the database
        has functions of its own, an operator, a cast or a domain may be made of them."""
        if any(name.startswith(_WRITING) or name.endswith(_RUNNING) for name in statement.calls):
            return True
        if statement.types & (self.domains | self.made):
            return True
        has_functions = bool(self.callable or self.made)
        return has_functions and (statement.computes or bool(statement.types & self.types))

    def takes_rows(self, statement: Statement) -> bool:
        """Whether a statement of a down script writes rows, or may take some that the run didn't bring."""
        if statement.writes_rows or statement.kind in (Kind.MAY_COMMIT, Kind.STANDALONE):
            return True
        if self.may_write(statement) or any(name in self.lasting for name in statement.drops_indexes):
            return True
        return statement.removes is None or bool(statement.removes & self.holders)


def _with_callers(definitions: Mapping[str, str], called: str) -> Set[str]:
    """The functions whose definition names another one, directly or by way of others."""
    found: set[str] = set()
    named = {called}
    while named:
        words = re.compile("|".join(rf"\b{re.escape(name.lower())}\b" for name in sorted(named)))
        named = {name for name, text in definitions.items() if name not in found and words.search(text)}
        found |= named
    return found


def columns_given(parts: Iterable[Part]) -> frozenset[tuple[str, str]]:
    """The columns, as (table, name), that a run adds with a default: the rows that are there get it."""
    return frozenset(column for part in parts for statement in part.statements for column in statement.gives)


def bare(name: str) -> str:
    """A catalog's name as a tree has it: without schema, arguments and quotes."""
    match = _NAME.match(name)
    if match is None:
        return name
    return name_in_ascii(match["plain"] or match["quoted"].replace('""', '"'))


def _commits_by_itself(statements: Iterable[Statement]) -> bool:
    return any(statement.kind in (Kind.BEGINS, Kind.COMMITS) for statement in statements)


def parse_down(item: Planned) -> tuple[Statement, ...]:
    """The statements of the script that reverts a migration; none where there is no script."""
    down = item.migration.down
    return parse(down).statements if down is not None else ()
