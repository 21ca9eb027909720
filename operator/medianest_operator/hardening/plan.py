"""The difference between what the options want and what there is, as statements: pure.

A step is what runs in one transaction (or a single statement that can't); each can be run again from the beginning, so
that a run that was cut short anywhere is finished by the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from psycopg import sql

from medianest_operator.api.hardening import Hardening, Option
from medianest_operator.hardening.naming import CANDIDATE, CURRENT_USER_ID
from medianest_operator.hardening.objects import (
    BODIES,
    TOUCH,
    USER_TABLES,
    OwnObject,
    drop,
    enabled_options,
    own_objects,
    qualified,
)
from medianest_operator.hardening.state import LiveObject, State


@dataclass(frozen=True, slots=True)
class Step:
    """What runs at once.

    Attributes:
        words: for the log: `add policy hardening_own_rows on users`.
        statements: run in one transaction, unless `alone`.
        tables: those that are locked, so that a blocker can be named.
        alone: the one statement can't run in a transaction. It waits without holding anybody up.
        drops_invalid: takes away what an interrupted build of an index left.
    """

    words: str
    statements: tuple[sql.Composed, ...]
    tables: tuple[str, ...] = ()
    alone: bool = False
    drops_invalid: bool = False


@dataclass(frozen=True)
class ConstraintChange:
    """CHECK constraints to be added or replaced, all of them or none.

    Attributes:
        add: those that aren't there as wanted.
        candidates: what an earlier run left unverified, to be dropped first.
    """

    add: tuple[OwnObject, ...]
    candidates: tuple[LiveObject, ...]


@dataclass(frozen=True)
class OptionPlan:
    """What one option needs.

    Attributes:
        wanted: the option is on.
        steps: what is to be run, in order. Empty with everything else empty: nothing to do.
        constraints: for the option with constraints, what is to be added after the steps.
        waiting: tables and columns that aren't there yet, as `table.column`.
        conflict: why the option can't be had, in words.
        present: whether objects of the option's are in the database.
    """

    option: Option
    wanted: bool
    steps: tuple[Step, ...] = ()
    constraints: ConstraintChange | None = None
    waiting: tuple[str, ...] = ()
    conflict: str | None = None
    present: bool = False

    @property
    def has_work(self) -> bool:
        return bool(self.steps) or self.constraints is not None


@dataclass
class _Draft:
    steps: list[Step] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)


_BY_KIND = {"index": Option.RECOMMENDED_INDEXES, "constraint": Option.CHECK_CONSTRAINTS}


def option_of(item: LiveObject) -> Option:
    """The option that an object of ours belongs to."""
    if item.kind in _BY_KIND:
        return _BY_KIND[item.kind]
    if item.kind in {"column", "trigger"} or item.name == TOUCH:
        return Option.AUDIT_COLUMNS
    return Option.ROW_LEVEL_SECURITY


def make_plans(options: Hardening, app_role: str, state: State) -> tuple[OptionPlan, ...]:
    """What each option needs, in the order in which to do it."""
    wanted = own_objects(options, app_role)
    on = enabled_options(options)
    plans = []
    for option in Option:
        objects = [item for item in wanted if item.option == option]
        live = [item for _, item in sorted(state.objects.items()) if option_of(item) == option]
        missing = sorted({f"{table}.{column}" for item in objects for table, column in item.needs - state.columns})
        draft = _Draft()
        change = None
        match option:
            case Option.CHECK_CONSTRAINTS:
                change = _constraints(draft, objects, live, waiting=bool(missing))
            case Option.ROW_LEVEL_SECURITY:
                _row_level_security(draft, objects, live, state)
            case Option.RECOMMENDED_INDEXES:
                _indexes(draft, objects, live, state)
            case Option.AUDIT_COLUMNS:
                _audit_columns(draft, objects, live, state)
        plans.append(
            OptionPlan(
                option,
                option in on,
                tuple(draft.steps),
                change,
                tuple(missing),
                " ".join(draft.conflicts) or None,
                bool(live),
            )
        )
    return tuple(plans)


def is_as_wanted(item: OwnObject, live: LiveObject | None) -> bool:
    """Whether an object is there, complete, and made as we make it."""
    if live is None or not live.complete or live.comment != item.comment:
        return False
    return item.kind != "function" or live.detail == BODIES[item.name]


def drop_candidates(candidates: Iterable[LiveObject]) -> Step:
    """Take away constraints that were not verified."""
    items = tuple(candidates)
    return Step(
        f"drop unverified constraints {', '.join(item.name for item in items)}",
        tuple(drop(item.kind, item.table, item.name) for item in items),
        _tables(items),
    )


def candidate(item: OwnObject) -> LiveObject:
    """The name under which a constraint is verified before it takes its own."""
    return LiveObject("constraint", item.table, f"{item.name}{CANDIDATE}")


def add_candidates(items: Collection[OwnObject]) -> Step:
    """Add constraints that hold for new rows and don't look at the old ones yet: a short lock."""
    statements = tuple(
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} NOT VALID").format(
            qualified(item.table), sql.Identifier(candidate(item).name), item.create[0]
        )
        for item in items
    )
    return Step(f"add {', '.join(item.name for item in items)}, not validated yet", statements, _tables(items))


def validate_candidate(item: OwnObject) -> Step:
    """Verify a constraint for the old rows; readers and writers go on."""
    name = sql.Identifier(candidate(item).name)
    statement = sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(qualified(item.table), name)
    return Step(f"validate {item.name}", (statement,), (item.table,))


def swap_candidates(items: Collection[OwnObject]) -> Step:
    """Give the verified constraints their names, in place of those that had them."""
    statements: list[sql.Composed] = []
    for item in items:
        rename = sql.SQL("ALTER TABLE {} RENAME CONSTRAINT {} TO {}").format(
            qualified(item.table), sql.Identifier(candidate(item).name), sql.Identifier(item.name)
        )
        statements += [drop(item.kind, item.table, item.name), rename, item.comment_statement]
    return Step(f"put {', '.join(item.name for item in items)} in force", tuple(statements), _tables(items))


def _constraints(
    draft: _Draft, wanted: list[OwnObject], live: list[LiveObject], *, waiting: bool
) -> ConstraintChange | None:
    """All or none of them: where one has to wait, no other is touched."""
    names = {item.key for item in wanted}
    candidates = tuple(item for item in live if item.name.endswith(CANDIDATE))
    obsolete = [item for item in live if item not in candidates and item.key not in names]
    if obsolete:
        draft.steps.append(_drop_all(obsolete))
    by_key = {item.key: item for item in live}
    add = () if waiting else tuple(item for item in wanted if not is_as_wanted(item, by_key.get(item.key)))
    if not add and candidates:
        draft.steps.append(drop_candidates(candidates))
        return None
    return ConstraintChange(add, candidates) if add else None


def _indexes(draft: _Draft, wanted: list[OwnObject], live: list[LiveObject], state: State) -> None:
    by_name = {item.name: item for item in wanted}
    good = set()
    for item in live:
        want = by_name.get(item.name)
        if want is not None and item.complete and want.needs == {(item.table, item.detail)}:
            good.add(item.name)
            if item.comment != want.comment:
                # Valid, and the run that built it ended before it could say so.
                draft.steps.append(Step(f"comment on index {item.name}", (want.comment_statement,)))
            continue
        words = f"drop index {item.name}" if item.complete else f"drop invalid index {item.name}"
        statement = drop(item.kind, item.table, item.name)
        draft.steps.append(Step(words, (statement,), (item.table,), alone=True, drops_invalid=not item.complete))
    for want in wanted:
        if want.name not in good and want.needs <= state.columns:
            words = f"create index {want.name}"
            draft.steps.append(Step(words, want.create, (want.table,), alone=True))
            draft.steps.append(Step(f"comment on index {want.name}", (want.comment_statement,)))


def _audit_columns(draft: _Draft, wanted: list[OwnObject], live: list[LiveObject], state: State) -> None:
    _drop_obsolete(draft, wanted, live)
    by_key = {item.key: item for item in live}
    missing = [item for item in wanted if item.needs <= state.columns and not is_as_wanted(item, by_key.get(item.key))]
    # One step a table: its column and its trigger at once, so that no session meets one without the other. The
    # trigger's function, which belongs to no table, goes with the trigger.
    of_users = [item for item in missing if item.table == "users" or item.kind == "function"]
    of_service_config = [item for item in missing if item.table == "service_config"]
    draft.steps += [_make(items) for items in (of_users, of_service_config) if items]


def _row_level_security(draft: _Draft, wanted: list[OwnObject], live: list[LiveObject], state: State) -> None:
    by_key = {item.key: item for item in live}
    if wanted and state.foreign_function:
        draft.conflicts.append(
            f"There is a function {CURRENT_USER_ID}() that is not the operator's; rename or drop it."
        )
        wanted = []
    functions = [item for item in wanted if item.kind == "function" and item.needs <= state.columns]
    if changed := [item for item in functions if not is_as_wanted(item, by_key.get(item.key))]:
        draft.steps.append(_make(changed))
    tables = [table for table, _ in USER_TABLES]
    tables += sorted({item.table for item in live if item.kind == "policy"} - set(tables))
    for table in tables:
        ours = [item for item in live if item.kind == "policy" and item.table == table]
        theirs = state.policies_of_others(table)
        policies = [item for item in wanted if item.table == table and item.needs <= state.columns]
        if policies and (theirs or (table in state.row_security and not ours)):
            names = f" ({', '.join(theirs)})" if theirs else ""
            draft.conflicts.append(
                f"Table {table} has row-level security of its own{names}, which the operator's policies would loosen."
            )
            policies = []
        _secure(draft, table, policies, ours, state)
    # Last: policies use the functions.
    kept = {item.key for item in wanted if item.kind == "function"}
    if gone := [item for item in live if item.kind == "function" and item.key not in kept]:
        gone.sort(key=lambda item: item.name == CURRENT_USER_ID)
        draft.steps.append(_drop_all(gone))


def _secure(draft: _Draft, table: str, wanted: list[OwnObject], ours: list[LiveObject], state: State) -> None:
    """One table's policies and its switch, together: one without the other would lock roles out, or nothing in."""
    by_key = {item.key: item for item in ours}
    names = {item.key for item in wanted}
    make = [item for item in wanted if not is_as_wanted(item, by_key.get(item.key))]
    gone = [item for item in ours if item.key not in names]
    statements = [drop(item.kind, item.table, item.name) for item in gone]
    for item in make:
        statements += [*item.create, item.comment_statement]
    if wanted and table not in state.row_security:
        statements.append(sql.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(qualified(table)))
    elif not wanted and ours and not state.policies_of_others(table):
        statements.append(sql.SQL("ALTER TABLE {} DISABLE ROW LEVEL SECURITY").format(qualified(table)))
    if not statements:
        return
    words = f"turn on row-level security of {table}" if wanted else f"turn off row-level security of {table}"
    draft.steps.append(Step(words, tuple(statements), (table,)))


def _make(items: Collection[OwnObject]) -> Step:
    statements: list[sql.Composed] = []
    for item in items:
        statements += [*item.create, item.comment_statement]
    return Step(f"make {', '.join(_name(item) for item in items)}", tuple(statements), _tables(items))


def _drop_obsolete(draft: _Draft, wanted: Collection[OwnObject], live: Collection[LiveObject]) -> None:
    names = {item.key for item in wanted}
    # Triggers before their function, and before the column that they look at.
    order = ("trigger", "function", "column")
    gone = [item for kind in order for item in live if item.kind == kind and item.key not in names]
    if gone:
        draft.steps.append(_drop_all(gone))


def _drop_all(items: Collection[LiveObject]) -> Step:
    return Step(
        f"drop {', '.join(_name(item) for item in items)}",
        tuple(drop(item.kind, item.table, item.name) for item in items),
        _tables(items),
    )


def _name(item: OwnObject | LiveObject) -> str:
    return f"{item.kind} {item.table}.{item.name}" if item.kind == "column" else f"{item.kind} {item.name}"


def _tables(items: Iterable[OwnObject | LiveObject]) -> tuple[str, ...]:
    return tuple(sorted({item.table for item in items if item.table}))
