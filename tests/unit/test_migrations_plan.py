"""The plan: what is pending, what is odd and what is in the way, for any source and any history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.history import History, HistoryRow
from medianest_operator.migrations.plan import make_plan
from medianest_operator.migrations.source import Migration
from medianest_operator.results.migration import Reason

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = [f"2026010{day}000000_{letter}" for day, letter in enumerate("abcdef", start=1)]
APPLIED, ROLLED_BACK, FAILED, RESOLVED = "applied", "rolled back", "failed", "applied then rolled back"

names = st.lists(st.sampled_from(NAMES), unique=True)
entries = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from([APPLIED, ROLLED_BACK, FAILED, RESOLVED])))


def migration(name: str, text: str = "SELECT 1") -> Migration:
    return Migration.from_bytes(name, text.encode())


def row(name: str, state: str, number: int = 0, checksum: str | None = None) -> HistoryRow:
    at = START + timedelta(minutes=number)
    return HistoryRow(
        id=str(number),
        checksum=checksum or migration(name).checksum,
        finished_at=at if state in (APPLIED, RESOLVED) else None,
        migration_name=name,
        logs="ERROR: no" if state in (FAILED, ROLLED_BACK) else None,
        rolled_back_at=at if state in (ROLLED_BACK, RESOLVED) else None,
        started_at=at,
        applied_steps_count=1,
    )


def history(*found: tuple[str, str]) -> History:
    return History(True, tuple(row(name, state, number) for number, (name, state) in enumerate(found)), len(found))


@given(names, entries, st.sampled_from([None, *NAMES]))
def test_every_migration_is_in_exactly_one_place(
    source: list[str], found: list[tuple[str, str]], target: str | None
) -> None:
    plan = make_plan([migration(name) for name in source], history(*found), target)
    applied = {name for name, state in found if state == APPLIED}
    assert set(plan.applied) == applied
    assert list(plan.pending_names) == sorted(plan.pending_names)
    assert set(plan.pending_names) | set(plan.held_back) == set(source) - applied
    assert not set(plan.pending_names) & set(plan.held_back)
    assert set(plan.missing) == applied - set(source)
    assert set(plan.out_of_order) == {name for name in plan.pending_names if plan.version and name < plan.version}
    if target is not None:
        assert all(name <= target for name in plan.pending_names)
        assert all(name > target for name in plan.held_back)


@given(names, entries)
def test_a_failed_row_or_an_unknown_target_always_blocks(source: list[str], found: list[tuple[str, str]]) -> None:
    migrations = [migration(name) for name in source]
    plan = make_plan(migrations, history(*found))
    failed = {name for name, state in found if state == FAILED}
    assert set(plan.failed) == failed
    if failed:
        assert plan.blocker is not None
        assert plan.blocker.reason is Reason.UNRESOLVED_FAILURE
        assert not plan.is_up_to_date
    beyond = make_plan(migrations, history(*found), "20990101000000_z")
    assert beyond.blocker is not None
    assert beyond.blocker.reason is Reason.UNKNOWN_TARGET


@given(names)
def test_running_a_plan_leaves_nothing_to_plan(source: list[str]) -> None:
    migrations = [migration(name) for name in source]
    first = make_plan(migrations, History())
    assert first.blocker is None
    second = make_plan(migrations, history(*((name, APPLIED) for name in first.pending_names)))
    assert second.is_up_to_date
    assert second.warnings == ()
    assert second.version == (max(source) if source else None)


def test_applied_rolled_back_and_applied_again_is_applied() -> None:
    plan = make_plan([migration(NAMES[0])], history((NAMES[0], ROLLED_BACK), (NAMES[0], RESOLVED), (NAMES[0], APPLIED)))
    assert plan.is_up_to_date


def test_rolled_back_alone_is_pending() -> None:
    plan = make_plan([migration(NAMES[0])], History(True, (row(NAMES[0], ROLLED_BACK),)))
    assert plan.pending_names == (NAMES[0],)
    assert plan.blocker is None


def test_copy_of_a_bundled_file_is_the_applications() -> None:
    bundled = bundled_migrations()[0]
    copy = migration(bundled.name, bundled.sql)
    assert copy.checksum != bundled.checksum
    for recorded in (bundled.checksum, copy.checksum):
        applied = History(True, (row(bundled.name, APPLIED, checksum=recorded),))
        assert make_plan([copy], applied).warnings == ()
        assert make_plan([bundled], applied).warnings == ()
        assert make_plan([migration(bundled.name, f"{bundled.sql} ")], applied).edited == (bundled.name,)


def test_line_ends_are_no_edit() -> None:
    recorded = row(NAMES[0], APPLIED, checksum=migration(NAMES[0], "A;\r\nB;\r\n").checksum)
    plan = make_plan([migration(NAMES[0], "A;\nB;\n")], History(True, (recorded,)))
    assert plan.edited == ()
    assert make_plan([migration(NAMES[0], "A;\nC;\n")], History(True, (recorded,))).edited == (NAMES[0],)


def test_tables_without_an_applied_migration_need_a_baseline() -> None:
    for found in (History(False, (), 3), History(True, (row(NAMES[0], ROLLED_BACK),), 3)):
        blocker = make_plan([migration(NAMES[0])], found).blocker
        assert blocker is not None
        assert blocker.reason is Reason.BASELINE_REQUIRED
        assert "already holds 3 tables or views" in blocker.message
    assert make_plan([migration(NAMES[0])], History(True, (row(NAMES[0], APPLIED),), 3)).blocker is None
