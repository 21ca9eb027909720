"""What retention may and may not remove, each rule as a property of any set of backups."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_documents import sample_manifest
from medianest_operator.backups.repository.catalog import Backup, Catalog, State
from medianest_operator.backups.repository.client import open_folder
from medianest_operator.backups.repository.layout import Format, Origin, Place, Tier
from medianest_operator.backups.repository.manifest import File, Verification
from medianest_operator.backups.repository.retention import AT_ONCE, plan

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
KEEP = {Tier.DAILY: timedelta(days=7), Tier.WEEKLY: timedelta(days=30), Tier.MONTHLY: timedelta(days=90)}
ORIGIN = Origin("media", "medianest", "7300000000000000001")
OTHER = Origin("media", "medianest", "7300000000000000002")


def backup(
    days: float,
    tier: Tier = Tier.DAILY,
    state: State = State.COMPLETE,
    verified: bool | None = None,
    read: bool = False,
    keep_until: datetime | None = None,
    origin: Origin = ORIGIN,
    number: int = 0,
) -> Backup:
    """One that was taken so many days ago."""
    taken = NOW - timedelta(days=days)
    place = Place(origin, tier, f"{taken:%Y%m%dT%H%M%SZ}-{tier}-{number:04}")
    file = File(name="data.dump", format=Format.CUSTOM, bytes=1, sha256="0" * 64, encrypted=False)
    manifest = sample_manifest(place, taken, (file,), keep_until=keep_until)
    verification = None if verified is None else Verification.of(verified, taken, 1)
    known = manifest if state is State.COMPLETE else None
    return Backup("main", place, state, manifest=known, verification=verification, read=read)


SERIES = [tier for tier in Tier if tier is not Tier.REPLACED]
"""A replaced database's backup stands for no other."""


@st.composite
def repositories(draw: st.DrawFn) -> list[Backup]:
    # Few tiers, so that there are many of each; most of them whole.
    tiers = draw(st.lists(st.sampled_from(Tier), min_size=1, max_size=2, unique=True))
    states = [State.COMPLETE] * 4 + [State.DAMAGED, State.INCOMPLETE, State.NEWER]
    made = []
    for number in range(draw(st.integers(0, 14))):
        tier = draw(st.sampled_from(tiers))
        until = draw(st.none() | st.integers(-200, 30).map(lambda days: NOW + timedelta(days=days)))
        made.append(
            backup(
                draw(st.integers(-40, 400)) / 2,
                tier,
                draw(st.sampled_from(states)),
                draw(st.none() | st.booleans()),
                draw(st.sampled_from([False, False, False, True])),
                until,
                draw(st.sampled_from([ORIGIN, ORIGIN, OTHER])),
                number,
            )
        )
    return made


def gone(backups: list[Backup], now: datetime = NOW, newest: dict[Tier, int] | None = None) -> list[Backup]:
    return [removal.backup for removal in plan(backups, now, KEEP, newest)]


@given(repositories())
def test_the_last_verified_backup_of_a_database_stays(backups: list[Backup]) -> None:
    for origin in (ORIGIN, OTHER):
        verified = [i for i in backups if i.place.origin == origin and i.is_verified and i.tier in SERIES]
        if verified:
            assert max(verified, key=lambda item: item.id) not in gone(backups)


@given(repositories())
def test_the_newest_good_backup_of_a_tier_stays(backups: list[Backup]) -> None:
    for origin in (ORIGIN, OTHER):
        for tier in SERIES:
            good = [i for i in backups if i.place.origin == origin and i.tier is tier and i.is_good]
            if good:
                assert max(good, key=lambda item: item.id) not in gone(backups)


@given(repositories())
def test_where_every_restore_failed_the_newest_complete_backup_stays(backups: list[Backup]) -> None:
    for tier in SERIES:
        complete = [i for i in backups if i.place.origin == ORIGIN and i.tier is tier and i.state is State.COMPLETE]
        if complete and not any(item.is_good for item in complete):
            assert max(complete, key=lambda item: item.id) not in gone(backups)


@given(repositories())
def test_what_is_read_or_unreadable_or_of_the_future_stays(backups: list[Backup]) -> None:
    for item in gone(backups):
        assert not item.read
        assert item.state is State.COMPLETE
        assert item.taken_at <= NOW


@given(repositories(), st.data())
def test_what_can_not_be_read_for_a_while_is_as_safe_as_before(backups: list[Backup], data: st.DataObject) -> None:
    """A stale size, half a copy, an operator that was rolled back: whole the day after. What went meanwhile would have
    gone anyway, once nothing better was known of the others."""
    blind = [
        replace(item, state=data.draw(st.sampled_from([State.DAMAGED, State.NEWER])))
        if data.draw(st.booleans())
        else item
        for item in backups
    ]
    removed = {item.place for item in gone(blind)}
    for origin in (ORIGIN, OTHER):
        verified = [i for i in backups if i.place.origin == origin and i.is_verified and i.tier in SERIES]
        assert not verified or {item.place for item in verified} - removed


@pytest.mark.parametrize("state", [State.DAMAGED, State.NEWER])
def test_what_can_not_be_read_stays_however_old(state: State) -> None:
    assert gone([backup(400, Tier.WEEKLY, state), *(backup(days, Tier.WEEKLY) for days in range(3))]) == []


@given(repositories())
def test_nothing_goes_before_its_time(backups: list[Backup]) -> None:
    for item in gone(backups):
        until = item.manifest.keep_until if item.manifest else None
        if until is not None:
            assert until < NOW
        else:
            assert NOW - item.taken_at > KEEP[item.tier]


@given(repositories(), st.integers(0, 5))
def test_at_most_two_of_a_tier_go_at_once_and_the_oldest_first(backups: list[Backup], count: int) -> None:
    removed = gone(backups, newest={Tier.PRE_MIGRATION: count})
    for origin in (ORIGIN, OTHER):
        for tier in Tier:
            of_tier = [i for i in removed if i.place.origin == origin and i.tier is tier]
            assert len(of_tier) <= AT_ONCE
            assert of_tier == sorted(of_tier, key=lambda item: item.id)


@given(repositories(), st.integers(1, 10_000))
def test_a_clock_that_jumps_ahead_costs_two_of_a_tier_and_never_the_last(backups: list[Backup], days: int) -> None:
    later = NOW + timedelta(days=days)
    removed = gone(backups, later)
    kept = [item for item in backups if item not in removed]
    for origin in (ORIGIN, OTHER):
        for tier in SERIES:

            def of(items: list[Backup], origin: Origin = origin, tier: Tier = tier) -> list[Backup]:
                return [i for i in items if i.place.origin == origin and i.tier is tier and i.is_good]

            assert len(of(backups)) - len(of(kept)) <= AT_ONCE
            assert bool(of(backups)) == bool(of(kept))


@given(repositories(), st.integers(1, 10_000))
def test_a_clock_set_back_removes_nothing_that_would_have_stayed(backups: list[Backup], days: int) -> None:
    everything = backups
    while removed := gone(everything):
        everything = [item for item in everything if item not in removed]
    assert gone(everything, NOW - timedelta(days=days)) == []


@given(repositories(), st.integers(1, 5))
def test_the_newest_few_stay_where_a_number_is_given(backups: list[Backup], count: int) -> None:
    good = sorted(
        (i for i in backups if i.place.origin == ORIGIN and i.tier is Tier.PRE_MIGRATION and i.is_good),
        key=lambda item: item.id,
    )
    removed = gone(backups, newest={Tier.PRE_MIGRATION: count})
    assert not [item for item in good[-count:] if item in removed]


@given(repositories())
def test_one_databases_backups_say_nothing_about_anothers(backups: list[Backup]) -> None:
    alone = [item for item in backups if item.place.origin == ORIGIN]
    assert [i for i in gone(backups) if i.place.origin == ORIGIN] == gone(alone)


def test_the_oldest_of_a_full_week_goes_and_says_why() -> None:
    removals = plan([backup(days) for days in range(10)], NOW, KEEP)

    assert [removal.backup.taken_at.day for removal in removals] == [13, 14]
    assert removals[0].why == "it is 9 days old, and daily ones are kept for 7 days"


def test_the_last_one_stays_while_newer_attempts_fail() -> None:
    old = backup(60)
    attempts = [backup(days, state=State.INCOMPLETE) for days in range(5)]

    assert gone([old, *attempts]) == []


def test_a_backup_that_could_not_be_restored_is_not_what_lets_an_older_one_go() -> None:
    assert gone([backup(60), backup(1, verified=False)]) == []
    assert gone([backup(60), backup(1, verified=True)]) == [backup(60)]


def test_on_demand_backups_stay_for_ever_or_until_their_own_time() -> None:
    past, future = NOW - timedelta(days=1), NOW + timedelta(days=1)
    newest = backup(1, Tier.ON_DEMAND)
    old, due, later = (backup(900, Tier.ON_DEMAND, keep_until=until) for until in (None, past, future))

    assert gone([newest, old]) == []
    assert gone([newest, due]) == [due]
    assert gone([newest, later]) == []


def test_replaced_database_goes_with_its_time_and_stands_for_no_other() -> None:
    past, future = NOW - timedelta(days=1), NOW + timedelta(days=1)
    old = backup(90, Tier.WEEKLY, verified=True)
    due, later = (backup(40, Tier.REPLACED, verified=True, keep_until=until) for until in (past, future))

    assert gone([old, due]) == [due]
    assert gone([old, later]) == []


def test_of_the_pre_migration_ones_three_stay() -> None:
    backups = [backup(days, Tier.PRE_MIGRATION) for days in range(5)]

    assert gone(backups, newest={Tier.PRE_MIGRATION: 3}) == [backups[4], backups[3]]


@given(st.permutations("abcdefgh"), st.integers(0, 3))
def test_of_ids_of_the_same_moment_the_contents_say_which_is_newer(letters: list[str], unclear: int) -> None:
    """As after one of the last year that an id can have: no later moment is left."""
    made = [
        dated(f"21990101T000000Z-daily-{letter}", NOW - timedelta(days=30 - day), day == unclear)
        for day, letter in enumerate(letters)
    ]
    assert list(Catalog(open_folder(Path("/nowhere"), "main"), made[::-1]).backups) == made
    left = made
    while removed := gone(left):
        left = [item for item in left if item not in removed]
    assert left == [item for item in made if item is made[-1] or item.is_unclear]


def dated(id_: str, taken: datetime, is_unclear: bool) -> Backup:
    like = backup(30)
    assert like.manifest is not None
    place = replace(like.place, id=id_)
    manifest = like.manifest.model_copy(update={"id": id_, "taken_at": taken})
    return replace(like, place=place, manifest=manifest, is_unclear=is_unclear)
