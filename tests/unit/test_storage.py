"""How full volumes are, and what follows from it."""

from __future__ import annotations

import random

import pytest

from medianest_operator.api.auto_grow import AutoGrow
from medianest_operator.api.quantity import from_bytes
from medianest_operator.health import growing, storage, writing
from medianest_operator.health.filling import Filling
from medianest_operator.health.growing import Growth
from medianest_operator.health.storage import Cause, Evidence, Slot, Usage, Volume
from medianest_operator.health.writing import Filled, Guard
from medianest_operator.naming import Names

MIB, GIB = 1024**2, 1024**3


def usage(percent: float, size: int = 100 * GIB) -> Usage:
    used = int(size * percent / 100)
    return Usage(used, size - used)


@pytest.mark.parametrize("rate", [20_000.0, 5 * 1024.0**2])
@pytest.mark.parametrize("minutes", [62, 90, 600])
def test_a_linear_fill_is_foretold_within_a_fifth(rate: float, minutes: int) -> None:
    """With what a checkpoint gives back and takes now and then."""
    dice, filling, used = random.Random(1), Filling(), 0
    for second in range(0, minutes * 60, 15):
        used = int(rate * second + dice.uniform(-1, 1) * rate * 30)
        filling.add(float(second), max(0, used))
    available = int(rate * 7200)
    left = filling.seconds_left(available)
    assert left is not None
    assert abs(left - 7200) <= 7200 * 0.2


def test_the_earlier_end_counts() -> None:
    filling = Filling()
    for second in range(0, 5 * 3600, 60):
        filling.add(float(second), 1000 * max(0, second - 4 * 3600))
    left = filling.seconds_left(3_600_000)
    assert left is not None
    assert left < 3600 * 1.5


def test_nothing_is_foretold_of_what_does_not_fill_or_was_just_begun() -> None:
    filling = Filling()
    assert filling.seconds_left(10) is None
    for second in range(0, 240, 15):
        filling.add(float(second), second)
    assert filling.seconds_left(10) is None
    emptied = Filling()
    for second in range(0, 3600, 15):
        emptied.add(float(second), 10_000 - second)
    assert emptied.seconds_left(10) is None


def test_a_pace_is_of_the_last_minute() -> None:
    filling = Filling()
    for second, used in ((0, 0), (15, 1500), (16, 2500), (100, 2500), (101, 2500)):
        filling.add(float(second), used)
    assert filling.pace() == 0.0
    filling.add(102.0, 4500)
    assert filling.pace() == 2000.0


@pytest.mark.parametrize(
    ("percent", "reason"),
    [(79.9, None), (80, "VolumeFilling"), (90, "VolumeNearlyFull"), (95, "VolumeFull"), (100, "VolumeFull")],
)
def test_the_ladder(percent: float, reason: str | None) -> None:
    found = storage.finding(Volume("data", "db-0", usage(percent)), 80)
    assert (found.reason if found else None) == reason


def test_a_volume_that_is_full_within_a_day_is_told_before_it_is_full() -> None:
    found = storage.finding(Volume("data", "db-0", usage(60), full_in="6 hours"), 80)
    assert found is not None
    assert "full within 6 hours" in found.message
    assert storage.finding(Volume("data", "db-0", usage(60), full_in="a week"), 80) is None


def test_a_message_stays_while_numbers_move_a_little() -> None:
    def said(percent: float, left: float) -> str:
        words = storage.full_in(left, "6 hours")
        found = storage.finding(Volume("wal", "db-0", usage(percent), full_in=words), 80)
        assert found is not None
        return found.message

    assert len({said(80 + step / 10, 5.9 * 3600 + 20 * step) for step in range(90)}) == 1


def test_what_holds_log_back_is_the_cause_and_its_fix() -> None:
    evidence = Evidence((Slot("old", "'old'", 3 * GIB), Slot("young", "'young'", GIB)), 0, (9000.0, 7, "app"))
    found = storage.cause(evidence, 10 * GIB, "wal", has_log=True, has_data=False)
    assert found is not None
    assert (found.fix, found.holds_log) == ("SELECT pg_drop_replication_slot('old');", True)
    assert "old" in found.message
    # Where the log has a volume of its own, the data's is filled by something else.
    other = storage.cause(evidence, 10 * GIB, "data", has_log=False, has_data=True)
    assert other is not None
    assert other.fix == "SELECT pg_terminate_backend(7);"
    assert storage.cause(Evidence(), 10 * GIB, "data", has_log=True, has_data=True) is None


def test_replaced_databases_are_a_cause_and_an_archive_that_takes_nothing_is() -> None:
    kept = storage.cause(Evidence(replaced=(("old_1", 2 * GIB),)), 10 * GIB, "data", has_log=True, has_data=True)
    assert kept is not None
    assert "old_1" in kept.message
    waits = storage.cause(Evidence(archive_waits=2 * GIB), 10 * GIB, "wal", has_log=True, has_data=False)
    assert waits is not None
    assert waits.holds_log


def test_a_cause_keeps_its_share_while_it_moves_a_little() -> None:
    told, said = None, set()
    for percent in (30.1, 29.9, 30.5, 39.9, 40.2, 29.2):
        evidence = Evidence(archive_waits=int(percent * GIB / 100))
        told = storage.cause(evidence, GIB, "wal", has_log=True, has_data=False, told=told)
        assert told is not None
        said.add(told.message)
    assert len(said) == 1
    moved = storage.cause(Evidence(archive_waits=GIB // 4), GIB, "wal", has_log=True, has_data=False, told=told)
    assert moved is not None
    assert "more than 20 %" in moved.message


def test_the_slot_of_a_replica_that_is_down_is_not_to_be_dropped() -> None:
    members = {Names("media", "my-db").slot(1): "my-db-1"}
    evidence = Evidence((Slot("my_db_1", "'my_db_1'", 3 * GIB),))
    found = storage.cause(evidence, 10 * GIB, "data", has_log=True, has_data=True, members=members)
    assert found is not None
    assert (found.fix, found.holds_log) == (None, True)
    assert "held back for my-db-1" in found.message
    assert "Bring that instance back, or scale down" in found.message
    # One that was scaled away is nobody's.
    gone = storage.cause(evidence, 10 * GIB, "data", has_log=True, has_data=True, members={"my_db_0": "my-db-0"})
    assert gone is not None
    assert gone.fix == "SELECT pg_drop_replication_slot('my_db_1');"


def test_a_new_database_says_nothing_of_the_days_to_come() -> None:
    """It is loaded, and its log grows up to its size."""
    filling = Filling()
    for second in range(0, 3540, 15):
        filling.add(float(second), second * MIB)
        assert filling.seconds_left(GIB) is None
    filling.add(3600.0, 3600 * MIB)
    assert filling.seconds_left(GIB) is not None
    assert not storage.fills(usage(49))
    assert storage.fills(usage(50))


def test_the_cause_comes_with_the_finding() -> None:
    cause = Cause("Slot x holds it.", "SELECT 1;", holds_log=True)
    found = storage.finding(Volume("wal", "db-0", usage(85), cause=cause, then="It grows.", enlarge="kubectl"), 80)
    assert found is not None
    assert found.message == "The wal volume of db-0 is more than 80 % full. Slot x holds it. It grows."
    assert found.fix == "SELECT 1;"


def test_a_file_system_that_others_fill_is_a_hint() -> None:
    assert storage.shared("data", "db-0", usage(10, 10 * GIB), 10 * GIB) is None
    hint = storage.shared("data", "db-0", usage(10, 400 * GIB), 10 * GIB)
    assert hint is not None
    assert hint.level == "Hint"


def test_ranges_and_forecasts_stay_at_their_edges() -> None:
    assert storage.in_use(0.799) == "75-80 %"
    assert storage.in_use(0.801, "75-80 %") == "75-80 %"
    assert storage.in_use(0.82, "75-80 %") == "80-85 %"
    assert storage.in_use(0.795, "80-85 %") == "80-85 %"
    assert storage.in_use(1.0) == "95-100 %"
    assert storage.at_least("80-85 %") == 0.8
    assert storage.at_least(None) == 0.0
    assert storage.full_in(3500) == "an hour"
    assert storage.full_in(3700) == "6 hours"
    assert storage.full_in(3700, "an hour") == "an hour"
    assert storage.full_in(8 * 24 * 3600) is None


def filled(percent: float, size: int = 10 * GIB, pace: float = 0.0, steady: float = 0.0) -> Filled:
    return Filled(usage(percent, size), pace, steady)


def test_writers_are_stopped_where_a_share_and_little_room_or_the_pace_say_so() -> None:
    assert writing.must_stop_writers([filled(95)])
    assert not writing.must_stop_writers([filled(94)])
    # A large disk, or one that others share: what is left is enough for long, unless it fills fast.
    assert not writing.must_stop_writers([filled(96, 4000 * GIB)])
    assert not writing.must_stop_writers([filled(96, 4000 * GIB, pace=2 * GIB, steady=200.0 * MIB)])
    assert writing.must_stop_writers([filled(96, 4000 * GIB, steady=300.0 * MIB)])
    assert writing.must_stop_writers([filled(99, 100 * GIB)])
    assert writing.must_stop_writers([filled(86, GIB, pace=20.0 * MIB)])
    assert not writing.must_stop_writers([filled(91, 100 * GIB, pace=20.0 * MIB)])
    # Of a small volume, eight segments of the log are left.
    assert writing.must_stop_writers([filled(88, GIB)])
    assert not writing.must_stop_writers([filled(87, GIB)])
    # As long as it may write again, lest it goes to and fro.
    assert not writing.must_stop_writers([filled(84, GIB, pace=200.0 * MIB)])
    assert writing.may_write_again([filled(84), filled(10)])
    assert not writing.may_write_again([filled(84), filled(85)])
    assert not writing.may_write_again([])


def test_a_second_observation_confirms_it_unless_the_pace_leaves_no_time() -> None:
    guard = Guard()
    assert not guard.stops([filled(97)], 0)
    assert guard.is_undecided()
    assert not guard.stops([filled(80)], 5)
    assert not guard.stops([filled(97)], 10)
    assert guard.stops([filled(97)], 15)
    assert Guard().stops([filled(86, GIB, pace=20.0 * MIB)], 0)


def _let_in_after(guard: Guard, percent: float, begin: float, size: int = 10 * GIB) -> float | None:
    """Seconds until the writers are let in where use rests there."""
    seconds = range(0, 2 * 3600, 15)
    let_in = [float(passed) for passed in seconds if guard.lets([filled(percent, size)], begin + passed)]
    return let_in[0] if let_in else None


def test_use_that_rests_below_what_stopped_it_lets_the_writers_in_after_some_minutes() -> None:
    assert _let_in_after(Guard(), 84, 0) == 0
    assert _let_in_after(Guard(), 91, 0) == 300
    # At the edge, where it would soon be stopped again.
    assert _let_in_after(Guard(), 94, 0) is None
    assert _let_in_after(Guard(), 86, 0, GIB) is None
    # A large disk needs room, not a share.
    assert _let_in_after(Guard(), 98, 0, 100 * GIB) is None
    assert _let_in_after(Guard(), 96, 0, 100 * GIB) == 300


def test_a_rise_begins_the_wait_again() -> None:
    guard = Guard()
    assert not guard.lets([filled(90)], 0)
    assert not guard.lets([filled(95)], 200)
    assert not guard.lets([filled(90)], 310)
    assert not guard.lets([filled(90)], 600)
    assert guard.lets([filled(90)], 610)


def test_each_time_again_the_wait_is_longer_up_to_an_hour() -> None:
    guard, now, waits = Guard(), 0.0, []
    for _ in range(6):
        guard.stops([filled(97)], now)
        guard.stops([filled(97)], now + 5)
        wait = _let_in_after(guard, 90, now + 10)
        assert wait is not None
        waits.append(wait)
        now += wait + 10
    assert waits == [300, 600, 1200, 2400, 3600, 3600]
    now += 48 * 3600
    guard.stops([filled(97)], now)
    guard.stops([filled(97)], now + 5)
    assert _let_in_after(guard, 90, now + 10) == 300


def test_a_volume_that_fills_fast_is_observed_often() -> None:
    assert writing.next_observation([filled(60, 100 * GIB)], 15.0) == 15.0
    assert writing.next_observation([filled(90, GIB, pace=20.0 * MIB)], 15.0) == pytest.approx(1.28)
    assert writing.next_observation([filled(99, GIB, pace=20.0 * MIB)], 15.0) == 1.0
    # Before it does: a small one is full soon.
    assert writing.next_observation([filled(50, GIB)], 15.0) == pytest.approx(8.0)
    assert writing.next_observation([filled(49, GIB)], 15.0) == 15.0


def test_a_full_volume_that_nobody_writes_to_is_observed_regularly() -> None:
    assert writing.next_observation([filled(100, GIB)], 15.0, writes=False) == 15.0
    assert writing.next_observation([filled(96, GIB, pace=5.0 * MIB)], 15.0, writes=False) == pytest.approx(2.048)


def test_a_burst_raises_the_pace_of_the_minute_little() -> None:
    filling = Filling()
    assert filling.steady() == 0.0
    for second in range(0, 46, 15):
        filling.add(float(second), 0)
    filling.add(46.0, 46 * MIB)
    assert filling.steady() == MIB
    assert filling.pace() == 46 * MIB
    filling.add(60.0, 0)
    assert filling.steady() == 0.0
    begun = Filling()
    begun.add(0.0, 0)
    begun.add(1.0, 30 * MIB)
    assert begun.steady() == MIB


def _growth(share: float, size: int = 10 * GIB, since: float | None = None, *, waits: bool = False) -> Growth:
    return Growth(size, share, since, waits, AutoGrow(maximum="16Gi"))


def test_a_volume_grows_at_its_trigger_by_its_increase_up_to_its_maximum() -> None:
    assert growing.grown(_growth(0.84), 3600) is None
    assert growing.grown(_growth(0.85), 3600) == 12800 * MIB
    assert growing.grown(_growth(0.85, 15 * GIB), 3600) == 16 * GIB
    assert growing.grown(_growth(0.99, 16 * GIB), 3600) is None
    assert growing.grown(_growth(0.99, 20 * GIB), 3600) is None


def test_a_volume_that_has_just_grown_waits() -> None:
    assert growing.grown(_growth(0.99, since=3599), 3600) is None
    assert growing.grown(_growth(0.99, since=3600), 3600) is not None


def test_log_that_can_be_let_go_is_not_grown_for_before_it_must() -> None:
    assert growing.grown(_growth(0.89, waits=True), 3600) is None
    assert growing.grown(_growth(0.90, waits=True), 3600) is not None


def test_nothing_grows_that_nobody_wants_to_grow() -> None:
    assert growing.grown(Growth(GIB, 0.99), 60) is None
    assert growing.grown(Growth(GIB, 0.99, wanted=AutoGrow()), 60) is None


@pytest.mark.parametrize(
    ("increase", "size"), [("25%", 1280 * MIB), ("100%", 2 * GIB), ("10Gi", 11 * GIB), ("1k", 1025 * MIB)]
)
def test_increases(increase: str, size: int) -> None:
    assert growing.larger(GIB, increase) == size


def test_sizes_are_written_as_people_do() -> None:
    assert [from_bytes(size) for size in (2 * GIB, 1280 * MIB, 3072, 7)] == ["2Gi", "1280Mi", "3Ki", "7"]
