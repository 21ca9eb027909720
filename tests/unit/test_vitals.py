"""What a server's own figures mean, at the thresholds that a test server can't reach."""

from __future__ import annotations

from typing import Any

import pytest

from medianest_operator.health.vitals import Own, Vitals, deadlocked, findings

QUIET: dict[str, Any] = {
    "in_recovery": False, "now": 10_000, "admitted_connections": 97, "connections": 3, "by_role": {"medianest_app": 3},
    "transactions": [], "waiting": 0, "blocking": [], "deadlocks": 0, "checksum_failures": [], "prepared": [],
    "slots": [], "replicas": [], "replay": None, "oldest": {"name": "medianest", "age": 100},
    "oldest_multixact": {"name": "medianest", "age": 1}, "autovacuum": True,
}  # fmt: skip
MIB = 1 << 20
OWN = Own(frozenset({"medianest_backup", "medianest_migrator"}), frozenset({"db_1"}))
SINCE = "2026-01-01 00:00:00+00"


def told(**figures: Any) -> list[tuple[str, str, str]]:
    """Reason, object and message of what is found."""
    return [(item.reason, item.object, item.message) for item in findings("db-0", Vitals(**QUIET | figures), OWN)]


def test_nothing_is_wrong_with_a_quiet_server() -> None:
    assert told() == []


@pytest.mark.parametrize(
    ("age", "share"), [(999_999_999, None), (1_000_000_000, "40 %"), (1_600_000_000, "70 %"), (2_147_000_000, "90 %")]
)
def test_transaction_numbers_run_out(age: int, share: str | None) -> None:
    found = told(oldest={"name": "medianest", "age": age})
    assert [(reason, name) for reason, name, _ in found] == (
        [("WraparoundNear", "database medianest (transaction)")] if share else []
    )
    assert all(f"{share} of the transaction numbers" in message for *_, message in found)


def test_multixacts_run_out_on_their_own() -> None:
    [(reason, name, _)] = told(oldest_multixact={"name": "other", "age": 1_200_000_000})
    assert (reason, name) == ("WraparoundNear", "database other (multixact)")


@pytest.mark.parametrize(
    ("lacks", "seconds", "words"),
    [
        (64 * MIB - 1, None, None),
        (64 * MIB, None, "lacks more than 64 MiB"),
        (5000 * MIB, 3.0, "lacks more than 4096 MiB"),
        (1000, 59.0, None),
        (1000, 75.0, "more than 64 s behind"),
        # Nothing was written for a while: what the replica last reported is old, not late.
        (0, 3600.0, None),
    ],
)
def test_a_replica_lags(lacks: int, seconds: float | None, words: str | None) -> None:
    found = told(replicas=[{"name": "db-1", "bytes": lacks, "seconds": seconds}])
    assert [reason for reason, *_ in found] == (["ReplicaLagging"] if words else [])
    assert all(name == "db-1" and words is not None and words in message for _, name, message in found)


def test_broken_pages_are_grave_and_count_at_once() -> None:
    [found] = findings("db-0", Vitals(**QUIET | {"checksum_failures": [{"name": "medianest", "failures": 2}]}), OWN)
    assert (found.reason, found.level, found.at_once) == ("ChecksumFailed", "Critical", True)


def test_a_dump_or_a_migration_may_take_hours() -> None:
    session = {"pid": 7, "application": "pg_dump", "state": "active", "open": 90_000, "unchanged": 90_000}
    session |= {"since": SINCE}
    for role in ("medianest_backup", "medianest_migrator"):
        assert told(transactions=[session | {"role": role}]) == []
    for role in ("medianest_app", "their_backup"):
        [(reason, *_)] = told(transactions=[session | {"role": role}])
        assert reason == "TransactionLeftOpen"


def test_who_holds_others_up_is_named_and_only_others_are_to_be_ended() -> None:
    head = {
        "pid": 7,
        "role": "medianest_app",
        "application": "",
        "since": SINCE,
        "waiters": 3,
        "roles": ["medianest_app"],
    }
    migrator = head | {"pid": 8, "role": "medianest_migrator"}
    prepared = head | {"pid": 0, "role": None}
    found = list(findings("db-0", Vitals(**QUIET | {"blocking": [head, migrator, prepared]}), OWN))
    assert [item.object for item in found] == ["db-0 session 7", "db-0 session 8", "db-0 prepared transaction"]
    assert [item.fix is not None for item in found] == [True, False, False]
    assert found[0].fix is not None
    assert f"backend_start = '{SINCE}'" in found[0].fix


def test_a_slot_that_a_replica_comes_back_to_is_not_to_be_dropped() -> None:
    slots = [
        {"name": name, "active": False, "wal_status": "reserved", "retained": 1 << 30} for name in ("db_1", "mine")
    ]
    found = list(findings("db-0", Vitals(**QUIET | {"slots": slots}), OWN))
    assert [item.fix is None for item in found] == [True, False]


def test_a_replicas_paused_replay() -> None:
    assert told(in_recovery=True, replay="not paused") == []
    [(reason, name, _)] = told(in_recovery=True, replay="paused")
    assert (reason, name) == ("ReplayPaused", "db-0")


@pytest.mark.parametrize(
    ("seen", "counted", "told_of"),
    [
        ([], 5, False),
        ([(9_900, 5)], 5, False),
        ([(9_900, 5)], 6, True),
        ([(9_000, 5), (9_900, 6)], 6, False),
        ([(9_900, 5)], 0, False),
    ],
)
def test_a_deadlock_is_told_of_for_ten_minutes(seen: list[tuple[int, int]], counted: int, told_of: bool) -> None:
    assert (deadlocked("db-0", seen, Vitals(**QUIET | {"deadlocks": counted})) is not None) is told_of
