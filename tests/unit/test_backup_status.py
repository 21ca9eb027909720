"""What the backup Jobs' results make of the status."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest

from medianest_operator.api import status as api
from medianest_operator.api.conditions import Reason
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.reconcile.backups.status import EndedJob, State, collect, never, next_run, overdue, verdict

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
TWO_PLACES: dict[str, Any] = {
    "backup": {"repositories": [{"name": "volume", "volume": {}}, {"name": "offsite", "s3": {"bucket": "backups"}}]}
}


def spec(raw: dict[str, Any] | None = None) -> DatabaseSpec:
    return DatabaseSpec.model_validate(raw or TWO_PLACES)


def taken(finished: str, *, tier: str = "daily", **result: Any) -> EndedJob:
    """A Job that took a backup in both places."""
    told = {
        "outcome": "Succeeded",
        "backup": f"{finished.replace('-', '').replace(':', '')}-{tier}",
        "startedAt": finished,
        "finishedAt": finished,
        "bytes": 1000,
        "seconds": 2.5,
        "source": "replica medianest-1",
        "repositories": {"volume": {"ok": True}, "offsite": {"ok": True}},
        "catalog": {"volume": {"count": 3}, "offsite": {"count": 4}},
    }
    return EndedJob(f"medianest-{tier}-1", tier, finished, True, told | result)


def failed(finished: str, message: str = "offsite: the bucket is gone", **result: Any) -> EndedJob:
    told = {"message": message, "repositories": {"volume": {"ok": True}, "offsite": {"ok": False, "message": message}}}
    return EndedJob("medianest-daily-2", "daily", finished, False, told | result)


def told(wanted: DatabaseSpec, backups: api.Backups, **state: Any) -> tuple[str, Reason, str]:
    return verdict(wanted, State(backups, **state))


def test_before_the_first_it_says_when_that_is() -> None:
    backups = collect(spec(), None, [], NOW)
    truth, reason, message = told(spec(), backups)
    assert (truth, reason) == ("Unknown", Reason.NO_BACKUP_YET)
    assert "2026-03-05T02:00:00Z" in message
    assert {tier.name: tier.next for tier in backups.tiers} == {
        "daily": "2026-03-05T02:00:00Z",
        "weekly": "2026-03-08T03:00:00Z",
        "monthly": "2026-04-01T04:00:00Z",
    }
    assert backups.next_verification == "2026-03-15T05:00:00Z"


def test_success_is_told_by_series_and_place() -> None:
    backups = collect(spec(), None, [taken("2026-03-04T02:00:09Z")], NOW)
    assert backups.last == api.LastBackup(
        id="20260304T020009Z-daily", tier="daily", at="2026-03-04T02:00:09Z", started_at="2026-03-04T02:00:09Z",
        bytes=1000, seconds=2.5, source="replica medianest-1",
    )  # fmt: skip
    assert [(item.name, item.count, item.last_success) for item in backups.repositories] == [
        ("volume", 3, "2026-03-04T02:00:09Z"),
        ("offsite", 4, "2026-03-04T02:00:09Z"),
    ]
    assert told(spec(), backups)[:2] == ("True", Reason.BACKUPS_HEALTHY)


def test_one_place_that_fails_is_named_and_the_last_good_one_stays() -> None:
    good = taken("2026-03-03T02:00:00Z")
    backups = collect(spec(), None, [failed("2026-03-04T02:00:00Z"), good], NOW)
    assert backups.last is not None
    assert backups.last.at == "2026-03-03T02:00:00Z"
    volume, offsite = backups.repositories
    assert (volume.message, volume.last_success) == (None, "2026-03-04T02:00:00Z")
    assert (offsite.message, offsite.last_success) == ("offsite: the bucket is gone", "2026-03-03T02:00:00Z")
    truth, reason, message = told(spec(), backups)
    assert (truth, reason) == ("False", Reason.BACKUP_FAILED)
    assert "offsite: the bucket is gone. See Job medianest-daily-2." in message
    assert "Last backup 20260303T020000Z-daily" in message


def test_jobs_that_are_gone_are_remembered() -> None:
    before = collect(spec(), None, [taken("2026-03-03T02:00:00Z"), failed("2026-03-04T02:00:00Z")], NOW)
    assert collect(spec(), before, [], NOW) == before


def test_older_jobs_change_nothing() -> None:
    before = collect(spec(), None, [taken("2026-03-04T02:00:00Z")], NOW)
    assert collect(spec(), before, [failed("2026-03-02T02:00:00Z")], NOW).repositories == before.repositories


def test_success_ends_a_failure() -> None:
    before = collect(spec(), None, [failed("2026-03-03T02:00:00Z")], NOW)
    assert before.failed is not None
    after = collect(spec(), before, [taken("2026-03-04T02:00:00Z")], NOW)
    assert after.failed is None
    assert [item.message for item in after.repositories] == [None, None]


def test_verification_that_failed_comes_before_all_else() -> None:
    bad = failed("2026-03-01T03:00:00Z", verification={"ok": False, "message": "table users holds 3 rows, expected 4"})
    backups = collect(spec(), None, [bad, taken("2026-03-04T02:00:00Z")], NOW)
    assert backups.failed is None
    truth, reason, message = told(spec(), backups)
    assert (truth, reason) == ("False", Reason.VERIFICATION_FAILED)
    assert "table users holds 3 rows, expected 4." in message


def test_verified_is_the_newest_of_all_places() -> None:
    summary = {
        "volume": {"lastVerified": {"backup": "a", "at": "2026-03-01T03:00:00Z", "seconds": 5.0}},
        "offsite": {"lastVerified": {"backup": "b", "at": "2026-03-02T03:00:00Z", "seconds": 7.0}},
    }
    backups = collect(spec(), None, [taken("2026-03-04T02:00:00Z", catalog=summary)], NOW)
    assert backups.verified == api.Verified(backup="b", repository="offsite", at="2026-03-02T03:00:00Z", seconds=7.0)
    assert told(spec(), backups)[2].endswith("the latest verified one is b.")


def held(*days: int, verified: bool | None = None) -> list[list[Any]]:
    """Backups of these days, as a result has them."""
    return [[f"202603{day:02}T020000Z-daily-aaaa", 1000 + day, verified, 5] for day in days]


def test_the_newest_that_there_are_are_told_with_their_places() -> None:
    first = taken("2026-03-04T02:00:00Z", catalog={"volume": {"newest": held(3)}, "offsite": {"newest": held(3, 4)}})
    backups = collect(spec(), None, [first], NOW)
    assert [(item.id[6:8], item.repositories) for item in backups.newest] == [
        ("04", ["offsite"]), ("03", ["offsite", "volume"])
    ]  # fmt: skip
    assert backups.newest[0] == api.KeptBackup(
        id="20260304T020000Z-daily-aaaa", tier="daily", taken_at="2026-03-04T02:00:05Z", bytes=1004,
        repositories=["offsite"],
    )  # fmt: skip
    # A Job that can't reach a place says nothing of it; one that can says what is gone there.
    second = taken("2026-03-05T02:00:00Z", catalog={"offsite": {"newest": held(5, 4, verified=True)}})
    after = collect(spec(), backups, [first, second], NOW)
    assert [(item.id[6:8], item.repositories, item.verified) for item in after.newest] == [
        ("05", ["offsite"], True), ("04", ["offsite"], True), ("03", ["volume"], None)
    ]  # fmt: skip
    assert collect(spec(), after, [first], NOW).newest == after.newest
    assert collect(spec(), after, [], NOW).newest == after.newest
    one = spec({"backup": {"repositories": [{"name": "volume", "volume": {}}]}})
    assert [item.id[6:8] for item in collect(one, after, [], NOW).newest] == ["03"]


def test_what_somebody_removed_is_neither_the_last_nor_the_verified_one() -> None:
    def job(day: int, *there: int, verified: int) -> EndedJob:
        told = {"backup": held(verified)[0][0], "at": f"2026-03-{verified:02}T03:00:00Z", "seconds": 1.0}
        catalog = {
            name: {"count": len(there), "newest": held(*there, verified=True), "lastVerified": told}
            for name in ("volume", "offsite")
        }
        return taken(f"2026-03-{day:02}T02:00:00Z", catalog=catalog, backup=held(day)[0][0])

    def check(day: int, *there: int, verified: int) -> EndedJob:
        made = job(day, *there, verified=verified)
        return dataclasses.replace(made, tier=None, result={"catalog": made.result["catalog"]})

    backups = collect(spec(), None, [job(4, 3, 4, verified=4)], NOW)
    assert backups.last is not None
    assert backups.verified is not None
    assert (backups.last.id, backups.verified.backup) == (held(4)[0][0], held(4)[0][0])
    after = collect(spec(), backups, [check(5, 3, verified=3)], NOW)
    assert after.last == api.LastBackup(id=held(3)[0][0], tier="daily", at="2026-03-03T02:00:05Z")
    assert after.verified is not None
    assert after.verified.backup == held(3)[0][0]
    # The Job that took it is still there, and tells what it saw then.
    assert collect(spec(), after, [job(4, 3, 4, verified=4)], NOW) == after


def test_a_repository_that_is_left_takes_its_backups_with_it() -> None:
    verified = {"backup": held(4)[0][0], "at": "2026-03-04T03:00:00Z"}
    catalog = {"volume": {"count": 1, "newest": held(4, verified=True), "lastVerified": verified}}
    job = taken("2026-03-04T02:00:00Z", catalog=catalog, repositories={"volume": {"ok": True}}, backup=held(4)[0][0])
    before = collect(spec(), None, [job], NOW)
    assert before.verified is not None
    other = spec({"backup": {"repositories": [{"name": "offsite", "s3": {"bucket": "backups"}}]}})
    for known in (before, collect(other, before, [job], NOW)):
        backups = collect(other, known, [job], NOW)
        assert (backups.last, backups.verified, backups.newest) == (None, None, [])
        assert told(other, backups)[:2] == ("Unknown", Reason.NO_BACKUP_YET)


def test_what_is_verified_no_more_is_not_the_verified_one() -> None:
    """A key came that didn't sign it; or another restore of it failed."""
    id_ = held(4)[0][0]
    told_before = {"backup": id_, "at": "2026-03-04T03:00:00Z"}
    both = ("volume", "offsite")
    first = taken(
        "2026-03-04T02:00:00Z", backup=id_,
        catalog={name: {"newest": held(4, verified=True), "lastVerified": told_before} for name in both},
    )  # fmt: skip
    before = collect(spec(), None, [first], NOW)
    assert before.verified is not None
    for verified in (None, False):
        later = taken("2026-03-05T02:00:00Z", catalog={name: {"newest": held(4, verified=verified)} for name in both})
        after = collect(spec(), before, [first, later], NOW)
        assert after.newest[0].verified is verified
        assert after.verified is None
    # One good copy is enough.
    later = taken("2026-03-05T02:00:00Z", catalog={"volume": {"newest": held(4, verified=None)}})
    assert collect(spec(), before, [first, later], NOW).verified is not None


def seen(finished: str, told: list[list[Any]], count: int, verified: str | None, *places: str) -> EndedJob:
    """A Job that took the newest of these backups, and has room to tell of these alone."""
    summary: dict[str, Any] = {"count": count, "newest": told}
    if verified is not None:
        summary["lastVerified"] = {"backup": verified, "at": "2026-03-01T03:00:00Z", "seconds": 1.0}
    return taken(finished, catalog=dict.fromkeys(places or ("volume", "offsite"), summary), backup=told[0][0])


def test_what_there_was_no_room_to_tell_may_be_there_and_verified() -> None:
    """Of three repositories and more a result tells fewer than twenty backups each."""
    first, *_ = held(1)[0]
    backups = None
    for day in range(3, 10):
        job = seen(f"2026-03-{day:02}T02:00:00Z", held(day, day - 1), day, first)
        backups = collect(spec(), backups, [job], NOW)
        assert backups.verified is not None
        assert backups.verified.backup == first
        assert backups.last is not None
        assert backups.last.id == held(day)[0][0]
    # A Job that is deleted takes nothing away.
    assert collect(spec(), backups, [], NOW) == backups


@pytest.mark.parametrize("later", [None, held(1)[0][0]], ids=["none", "an older one"])
def test_what_no_repository_calls_verified_any_more_is_not(later: str | None) -> None:
    """A key came that didn't sign it, or its folder was removed; however many newer ones there are."""
    verified = held(2)[0][0]
    newest = held(*range(30, 10, -1))
    backups = collect(spec(), None, [seen("2026-03-29T02:00:00Z", newest, 30, verified)], NOW)
    assert backups.verified is not None
    # Of the repository that nobody could look into nothing is known.
    half = collect(spec(), backups, [seen("2026-03-30T02:00:00Z", newest, 30, later, "volume")], NOW)
    assert half.verified == backups.verified
    both = [
        seen(f"2026-03-30T0{hour}:00:00Z", newest, 30, later, name) for hour, name in ((2, "volume"), (3, "offsite"))
    ]
    for jobs in (both, [seen("2026-03-30T02:00:00Z", newest, 30, later)]):
        after = collect(spec(), backups, jobs, NOW)
        assert (after.verified.backup if after.verified else None) == later
        # Nor does it come back with an older Job.
        old = seen("2026-03-28T02:00:00Z", newest, 30, verified)
        assert collect(spec(), after, [old, *jobs], NOW).verified == after.verified
        assert collect(spec(), after, [old], NOW).verified == after.verified


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_what_was_looked_at_last_counts_whichever_job_ended_first(order: tuple[int, ...]) -> None:
    """Several that end within a second, as those of replaced databases do."""
    jobs = []
    for number in range(3):
        newest = [[f"20260304T02000{other}Z-replaced-aaaa", 1, None, 5] for other in range(number, -1, -1)]
        summary = {"count": len(newest), "newest": newest, "asOf": f"2026-03-04T02:00:09.{number}25Z"}
        job = taken("2026-03-04T02:00:09Z", tier="replaced", catalog={"volume": summary})
        jobs.append(dataclasses.replace(job, started="2026-03-04T02:00:00Z"))
    backups = collect(spec(), None, [jobs[number] for number in order], NOW)
    assert len(backups.newest) == 3
    assert {item.name: item.count for item in backups.repositories}["volume"] == 3
    # An earlier one that is still there brings nothing back, nor does one after which nobody looked.
    assert collect(spec(), backups, [jobs[0]], NOW) == backups


@pytest.mark.parametrize("clock", ["2036-03-04T02:00:00.000Z", "2016-03-04T02:00:00.000Z"])
def test_a_job_has_looked_while_it_ran_whatever_its_clock_says(clock: str) -> None:
    def looked(minute: int, count: int, as_of: str | None = None) -> EndedJob:
        summary = {"count": count, "newest": held(*range(count, 0, -1))} | ({"asOf": as_of} if as_of else {})
        job = taken(f"2026-03-04T02:{minute}:30Z", catalog={"volume": summary})
        return dataclasses.replace(job, started=f"2026-03-04T02:{minute}:00Z")

    backups = collect(spec(), None, [looked(10, 1), looked(20, 2, clock)], NOW)
    assert len(backups.newest) == 2
    assert len(collect(spec(), backups, [looked(30, 3)], NOW).newest) == 3


@pytest.mark.parametrize("together", [True, False])
def test_a_job_that_did_not_reach_a_repository_takes_nothing_from_one_that_did(together: bool) -> None:
    """It ended later than the other one looked, and earlier than that one ended."""
    away = taken("2026-03-04T03:00:00Z", repositories={"volume": {"ok": False, "message": "away"}}, catalog={})
    summary = {"count": 1, "newest": held(4), "asOf": "2026-03-04T02:59:58.500Z"}
    good = taken("2026-03-04T03:00:05Z", repositories={"volume": {"ok": True}}, catalog={"volume": summary})
    good = dataclasses.replace(good, started="2026-03-04T02:59:00Z")
    backups = None if together else collect(spec(), None, [away], NOW)
    for _ in range(2):
        backups = collect(spec(), backups, [away, good], NOW)
        [volume] = [item for item in backups.repositories if item.name == "volume"]
        assert (volume.count, volume.message, volume.last_success) == (1, None, "2026-03-04T03:00:05Z")
        assert len(backups.newest) == 1


def test_a_copy_in_the_repository_that_is_left_is_as_good() -> None:
    id_ = held(4)[0][0]
    catalog: dict[str, Any] = {name: {"count": 1, "newest": held(4, verified=True)} for name in ("volume", "offsite")}
    catalog["volume"]["lastVerified"] = {"backup": id_, "at": "2026-03-04T03:00:00Z"}
    job = taken("2026-03-04T02:00:00Z", catalog=catalog, backup=id_)
    before = collect(spec(), None, [job], NOW)
    left = spec({"backup": {"repositories": [{"name": "offsite", "s3": {"bucket": "backups"}}]}})
    after = collect(left, before, [job], NOW)
    assert after.last is not None
    assert after.verified is not None
    assert (after.last.id, after.verified.backup, after.verified.repository) == (id_, id_, "offsite")


def test_a_backup_that_one_repository_has_is_the_last_one() -> None:
    first = taken("2026-03-03T02:00:00Z")
    backups = collect(spec(), None, [first, failed("2026-03-04T02:00:00Z", backup=held(4)[0][0])], NOW)
    assert backups.last is not None
    assert backups.last.id == held(4)[0][0]
    truth, reason, message = told(spec(), backups)
    assert (truth, reason) == ("False", Reason.BACKUP_FAILED)
    assert "the bucket is gone" in message
    assert f"Last backup {held(4)[0][0]}" in message


def test_none_counts_that_was_taken_before_there_was_a_key() -> None:
    keyed = spec(TWO_PLACES | {"backup": TWO_PLACES["backup"] | {"encryption": {"signingSecret": {"name": "keys"}}}})
    before = collect(spec(), None, [taken("2026-03-03T02:00:00Z", catalog={"volume": {"signed": 0}})], NOW)
    assert told(spec(), before)[0] == "True"
    truth, reason, message = told(keyed, collect(keyed, before, [], NOW))
    assert (truth, reason) == ("Unknown", Reason.NO_BACKUP_YET)
    assert "signingSecret" in message
    # The Job of a replaced database has the key, and stored none that would count.
    of_replaced = taken("2026-03-04T01:00:00Z", tier="replaced", catalog={"volume": {"signed": 0}})
    assert told(keyed, collect(keyed, before, [of_replaced], NOW))[0] == "Unknown"
    signed = taken("2026-03-04T02:00:00Z", catalog={"volume": {"signed": 1}})
    assert told(keyed, collect(keyed, before, [signed], NOW))[0] == "True"
    # An earlier version's Job didn't say.
    assert told(keyed, collect(keyed, None, [taken("2026-03-03T02:00:00Z")], NOW))[0] == "True"


def test_of_two_full_repositories_one_is_left() -> None:
    """More than twenty are never told: what isn't in the list may still be there, but not in what is no repository."""
    ids = [f"202603{day:02}T020000Z-daily-{letters}" for day in range(1, 21) for letters in ("aaaa", "bbbb")]
    newest = {name: [[id_, 1, True, 5] for id_ in ids if id_.endswith(name[0] * 4)] for name in ("aaa", "bbb")}
    verified = {"backup": "20260320T020000Z-daily-aaaa", "at": "2026-03-20T03:00:00Z"}
    both = spec({"backup": {"repositories": [{"name": name, "volume": {}} for name in ("aaa", "bbb")]}})
    catalog = {name: {"count": 20, "newest": newest[name]} for name in newest}
    catalog["aaa"]["lastVerified"] = verified
    there = {"aaa": {"ok": True}, "bbb": {"ok": False}}
    job = taken("2026-03-20T02:00:00Z", catalog=catalog, repositories=there, backup="20260320T020000Z-daily-aaaa")
    before = collect(both, None, [job], NOW)
    assert before.verified is not None
    left = spec({"backup": {"repositories": [{"name": "bbb", "volume": {}}]}})
    after = collect(left, before, [job], NOW)
    assert after.verified is None
    assert after.last is not None
    assert after.last.id == "20260320T020000Z-daily-bbbb"


def test_that_of_a_replaced_database_is_never_the_last() -> None:
    """Nor a success of its repository."""
    first = [["20260303T020000Z-daily-aaaa", 1, None, 5]]
    of_replaced = [["20260304T020000Z-replaced-rrrr", 1, None, 5], *first]
    catalog = {"volume": {"count": 2, "newest": of_replaced}, "offsite": {"count": 0, "newest": []}}
    job = taken(
        "2026-03-03T02:00:00Z", catalog={"offsite": {"newest": held(3)}}, repositories={"offsite": {"ok": True}}
    )
    replaced = taken("2026-03-04T02:00:00Z", tier="replaced", catalog=catalog, repositories={"volume": {"ok": True}})
    backups = collect(spec(), collect(spec(), None, [job], NOW), [replaced], NOW)
    assert backups.last is not None
    assert backups.last.tier == "daily"
    assert {item.name: item.last_success for item in backups.repositories}["volume"] is None


def test_what_was_removed_does_not_come_back_beside_a_repository_that_nobody_has_seen() -> None:
    held_there = {"volume": {"count": 2, "newest": held(3, 4)}}
    job = taken("2026-03-04T02:00:00Z", catalog=held_there, repositories={"volume": {"ok": True}}, backup=held(4)[0][0])
    check = dataclasses.replace(
        taken("2026-03-05T02:00:00Z"), tier=None, result={"catalog": {"volume": {"count": 1, "newest": held(3)}}}
    )
    backups = collect(spec(), None, [job], NOW)
    for _ in range(3):
        backups = collect(spec(), backups, [job, check], NOW)
        assert backups.last is not None
        assert backups.last.id == held(3)[0][0]


def test_a_missing_secret_hides_no_failure() -> None:
    missing = {"offsite": "there is no Secret keys in this namespace"}
    good = collect(spec(), None, [taken("2026-03-04T02:00:00Z")], NOW)
    truth, reason, message = told(spec(), good, missing=missing)
    assert (truth, reason) == ("False", Reason.BACKUP_MISCONFIGURED)
    assert "No backup gets into repository offsite: there is no Secret keys" in message
    bad = collect(spec(), None, [failed("2026-03-04T02:00:00Z", "permission denied for table x")], NOW)
    _, reason, message = told(spec(), bad, missing=missing)
    assert reason == Reason.BACKUP_FAILED
    assert message.startswith("permission denied for table x. See Job medianest-daily-2.")
    assert "there is no Secret keys" in message


def test_a_clock_that_was_ahead_once_does_not_spoil_the_moments() -> None:
    """An id is later than all before it, whatever the clock says; what it holds is told as it is."""
    ahead = int((datetime(2036, 3, 4, 2, 0, tzinfo=UTC) - NOW).total_seconds())
    newest = [["20360304T020000Z-daily-aaaa", 1000, None, 5 - ahead]]
    backups = collect(spec(), None, [taken("2026-03-04T12:00:00Z", catalog={"volume": {"newest": newest}})], NOW)
    assert [item.taken_at for item in backups.newest] == ["2026-03-04T12:00:05Z"]


def test_at_most_twenty_are_told() -> None:
    job = taken("2026-03-31T02:00:00Z", catalog={"volume": {"newest": held(*range(1, 21))}})
    more = taken("2026-03-31T03:00:00Z", catalog={"offsite": {"newest": held(*range(15, 31))}})
    backups = collect(spec(), None, [job, more], NOW)
    assert [int(item.id[6:8]) for item in backups.newest] == list(range(30, 10, -1))


def test_an_earlier_version_that_tells_none_takes_none_away() -> None:
    before = collect(spec(), None, [taken("2026-03-04T02:00:00Z", catalog={"volume": {"newest": held(4)}})], NOW)
    assert collect(spec(), before, [taken("2026-03-05T02:00:00Z")], NOW).newest == before.newest


def test_series_tell_what_the_repositories_hold() -> None:
    """A status that was lost is whole again after one Job."""
    found = {"volume": {"tiers": {"monthly": {"count": 1, "last": "2026-03-01T04:00:00Z"}}}}
    backups = collect(spec(), None, [taken("2026-03-04T02:00:00Z", catalog=found)], NOW)
    assert {tier.name: tier.last_success for tier in backups.tiers}["monthly"] == "2026-03-01T04:00:00Z"


def test_what_does_not_come_is_overdue() -> None:
    backups = collect(spec(), None, [taken("2026-03-04T02:00:00Z")], NOW)
    since = {"daily": NOW - timedelta(days=30)}
    assert overdue(spec(), backups, since, NOW) == ()
    later = NOW + timedelta(days=1)
    assert overdue(spec(), backups, since, later) == ("daily",)
    assert told(spec(), backups, overdue=("daily",))[:2] == ("False", Reason.BACKUP_OVERDUE)
    # Nothing is late for what was due before its CronJob was there, or while nothing runs by itself.
    assert overdue(spec(), backups, {"daily": later}, later) == ()
    for raw in ({"backup": {"suspend": True}}, {"hibernate": True}):
        assert overdue(spec(raw), backups, since, later) == ()


def test_suspended_series_have_no_next_run() -> None:
    wanted = spec({"backup": {"suspend": True}})
    backups = collect(wanted, None, [taken("2026-03-04T02:00:00Z")], NOW)
    assert [tier.next for tier in backups.tiers] == [None]
    assert backups.next_verification is None
    assert told(wanted, backups)[:2] == ("False", Reason.BACKUPS_SUSPENDED)


def test_problem_is_told_first() -> None:
    backups = collect(spec(), None, [taken("2026-03-04T02:00:00Z")], NOW)
    truth, reason, message = told(spec(), backups, problem="there is no Secret keys in this namespace")
    assert (truth, reason) == ("False", Reason.BACKUP_MISCONFIGURED)
    assert message == "No backup can be taken: there is no Secret keys in this namespace."


@pytest.mark.parametrize(
    ("schedule", "zone", "expected"),
    [
        ("0 2 * * *", "Etc/UTC", "2026-03-05T02:00:00+00:00"),
        ("0 2 * * *", "Europe/Berlin", "2026-03-05T01:00:00+00:00"),
        ("@weekly", "Etc/UTC", "2026-03-08T00:00:00+00:00"),
        ("*/20 * * * *", "Asia/Kolkata", "2026-03-04T12:10:00+00:00"),
    ],
)
def test_next_run_is_in_the_time_zone(schedule: str, zone: str, expected: str) -> None:
    assert next_run(schedule, zone, NOW).isoformat() == expected


@pytest.mark.parametrize(("schedule", "zone"), [("0 25 * * *", "Etc/UTC"), ("0 2 * * *", "Mars/Olympus")])
def test_what_is_no_schedule_is_said_so(schedule: str, zone: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        next_run(schedule, zone, NOW)


def test_a_schedule_that_never_comes_is_told() -> None:
    backup = {"logical": {"daily": {"schedule": "0 0 30/5 2 *"}}, "verification": {"schedule": "0 0 31 2,4 *"}}
    wanted = spec({"backup": backup})
    truth, reason, message = told(wanted, collect(wanted, None, [], NOW), never=never(wanted, NOW))
    assert (truth, reason) == ("False", Reason.BACKUP_MISCONFIGURED)
    assert "backup.logical.daily.schedule '0 0 30/5 2 *' never comes" in message
    assert "backup.verification.schedule '0 0 31 2,4 *' never comes" in message
    assert never(spec(), NOW) == ()
    off = {"logical": {"daily": {"schedule": "0 0 30 2 *", "enabled": False}}}
    assert never(spec({"backup": off}), NOW) == ()


@pytest.mark.parametrize("deadline", ["2540400h", "9999999h9999999h9999999h", "999999999m999999999m999999999m"])
def test_a_deadline_of_centuries_that_was_stored_formerly_stops_nothing(deadline: str) -> None:
    wanted = spec({"backup": {"deadline": deadline}})
    backups = collect(wanted, None, [taken("2026-03-01T02:00:00Z")], NOW)
    assert overdue(wanted, backups, {"daily": NOW - timedelta(days=9)}, NOW) == ()
