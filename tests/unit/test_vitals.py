"""What a server's own figures mean, at the thresholds that a test server can't reach."""

from __future__ import annotations

from typing import Any

import pytest

from medianest_operator.health.vitals import Vitals, deadlocked, findings

QUIET: dict[str, Any] = {
    "in_recovery": False, "now": 10_000, "admitted_connections": 97, "connections": 3, "by_role": {"medianest_app": 3},
    "transactions": [], "waiting": [], "blocking": [], "deadlocks": 0, "checksum_failures": [], "prepared": [],
    "slots": [], "replicas": [], "replay": None, "oldest": {"name": "medianest", "age": 100},
    "oldest_multixact": {"name": "medianest", "age": 1}, "autovacuum": True,
}  # fmt: skip
MIB = 1 << 20


def told(**figures: Any) -> list[tuple[str, str, str]]:
    """Reason, object and message of what is found."""
    return [(item.reason, item.object, item.message) for item in findings("db-0", Vitals(**QUIET | figures))]


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
    [found] = findings("db-0", Vitals(**QUIET | {"checksum_failures": [{"name": "medianest", "failures": 2}]}))
    assert (found.reason, found.level, found.at_once) == ("ChecksumFailed", "Critical", True)


def test_a_dump_or_a_migration_may_take_hours() -> None:
    session = {"pid": 7, "application": "pg_dump", "state": "active", "open": 90_000, "unchanged": 90_000}
    for role in ("medianest_backup", "medianest_migrator"):
        assert told(transactions=[session | {"role": role}]) == []
    [(reason, *_)] = told(transactions=[session | {"role": "medianest_app"}])
    assert reason == "TransactionLeftOpen"


def test_the_head_of_the_queue_is_blamed() -> None:
    """7 holds the lock, 8 waits for it in a way that 9 waits for 8."""
    sessions = [{"pid": pid, "role": "medianest_app", "application": "", "state": "active"} for pid in (7, 8)]
    waiting = [
        {"pid": 8, "role": "medianest_app", "by": [7], "seconds": 40},
        {"pid": 9, "role": "medianest_app", "by": [8, 7], "seconds": 35},
    ]
    assert [name for _, name, _ in told(waiting=waiting, blocking=sessions)] == ["db-0 session 7"]


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
