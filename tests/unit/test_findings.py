"""When a finding counts, when it ends, and what is said of it meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from medianest_operator.api.conditions import Reason
from medianest_operator.health.findings import Finding, Known, Tracker, coarse

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SLOW = Finding(Reason.QUERY_SLOW, "query a", "Slow.")


def observed(tracker: Tracker, pattern: str) -> list[bool]:
    """Whether it counts after each observation; `x`: it was there."""
    counts = []
    for mark in pattern:
        tracker.observe("queries", [SLOW] if mark == "x" else [], NOW)
        counts.append(bool(tracker.of()))
    return counts


@pytest.mark.parametrize(
    ("pattern", "counts"),
    [
        ("x", "-"),
        ("xx", "-+"),
        ("x.x", "--+"),
        ("x..x", "----"),
        ("xx..", "-+++"),
        ("xx...", "-+++-"),
        ("xx..x...", "-++++++-"),
        ("x.x.x.x", "--+++++"),
    ],
)
def test_two_of_three_begin_it_and_three_without_end_it(pattern: str, counts: str) -> None:
    assert observed(Tracker(), pattern) == [mark == "+" for mark in counts]


def test_what_counts_at_once_ends_like_the_others() -> None:
    tracker = Tracker()
    gone = Finding(Reason.PROBE_FAILED, "db-0", "Away.", at_once=True)
    tracker.observe("servers", [gone], NOW)
    assert [item.finding for item in tracker.of()] == [gone]
    tracker.observe("servers", [], NOW)
    assert tracker.of()


def test_what_counts_at_once_gets_other_words_only_once_they_stay() -> None:
    tracker = Tracker()
    said = []
    for message in ("Full.", "Fuller.", "Full.", "Fuller.", "Fuller.", "Fuller."):
        tracker.observe("servers", [Finding(Reason.PROBE_FAILED, "db-0", message, at_once=True)], NOW)
        said.append(tracker.of()[0].finding.message)
    assert said == ["Full."] * 5 + ["Fuller."]


def test_facts_come_and_go_at_once() -> None:
    tracker = Tracker()
    tracker.observe("indexes", [SLOW], NOW, settled=True)
    assert tracker.of()
    tracker.observe("indexes", [], NOW, settled=True)
    assert not tracker.of()


def test_an_earlier_process_findings_go_on_and_are_not_announced_again() -> None:
    tracker = Tracker([Known(SLOW, "queries", NOW)])
    tracker.observe("queries", [SLOW], datetime(2027, 1, 1, tzinfo=UTC))
    assert [item.since for item in tracker.of()] == [NOW]
    assert tracker.changes() == ((), ())


def test_one_of_an_earlier_process_that_is_gone_ends() -> None:
    tracker = Tracker([Known(SLOW, "queries", NOW)])
    for _ in range(3):
        tracker.observe("queries", [], NOW)
    assert tracker.of() == ()
    assert [item.finding for item in tracker.changes()[1]] == [SLOW]


def test_a_source_says_nothing_of_anothers_findings() -> None:
    tracker = Tracker()
    assert observed(tracker, "xx") == [False, True]
    for _ in range(5):
        tracker.observe("servers", [], NOW)
    assert tracker.of("queries")
    assert not tracker.of("servers")


def test_other_words_are_taken_over_once_they_stay() -> None:
    tracker = Tracker()
    observed(tracker, "xx")
    slower = Finding(Reason.QUERY_SLOW, "query a", "Slower.")
    said = []
    for finding in (slower, SLOW, slower, slower, slower):
        tracker.observe("queries", [finding], NOW)
        said.append(tracker.of()[0].finding.message)
    assert said == ["Slow.", "Slow.", "Slow.", "Slow.", "Slower."]


def test_another_look_is_due_while_a_finding_is_neither_in_nor_out() -> None:
    tracker = Tracker()
    undecided = []
    for mark in "x.xx...":
        tracker.observe("catalog", [SLOW] if mark == "x" else [], NOW)
        undecided.append(tracker.is_undecided("catalog"))
    assert undecided == [True, False, False, False, True, True, False]


def test_the_worst_comes_first() -> None:
    tracker = Tracker()
    hint = Finding(Reason.STATISTICS_STALE, "table a", "Old.")
    grave = Finding(Reason.SEQUENCE_BEHIND, "sequence a", "Behind.")
    tracker.observe("catalog", [hint, SLOW, grave], NOW, settled=True)
    assert [item.finding for item in tracker.of()] == [grave, SLOW, hint]


@pytest.mark.parametrize(
    ("number", "said"), [(0, 0), (0.5, 0), (1, 1), (3, 2), (63.9, 32), (64, 64), (1 << 40, 1 << 40)]
)
def test_numbers_are_said_coarsely(number: float, said: int) -> None:
    assert coarse(number) == said
