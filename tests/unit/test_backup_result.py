"""What the runs around backups leave for the operator fits into a termination message."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from medianest_operator.agent.backup import span
from medianest_operator.backups.repository.layout import Tier
from medianest_operator.results.backup import BackupReport, Outcome, Reason, Result, RunFailure
from medianest_operator.results.text import RESULT_LIMIT

_WORDS = st.text(max_size=3000)


@given(
    message=_WORDS,
    differences=st.lists(_WORDS, max_size=60),
    repositories=st.dictionaries(st.text(min_size=1, max_size=60), _WORDS, max_size=8),
    removed=st.lists(st.text(max_size=40), max_size=80),
)
def test_it_always_fits(message: str, differences: list[str], repositories: dict[str, str], removed: list[str]) -> None:
    told: dict[str, Any] = {name: {"ok": False, "message": text} for name, text in repositories.items()}
    failure = RunFailure(Reason.REPOSITORY_FAILED, message, transient=True)
    result = Result.failure(failure, differences=differences, repositories=told, removed=removed)
    text = result.to_json()
    assert len(text.encode()) <= RESULT_LIMIT
    document = json.loads(text)
    assert (document["outcome"], document["reason"]) == ("Transient", "RepositoryFailed")
    assert set(document["repositories"]) == set(repositories)


def summary(held: int, label: str = "extension x") -> dict[str, Any]:
    """Of a repository with so many backups, as `Catalog.summary` tells it."""
    ids = [f"20261122T{number:06}Z-pre-migration-abcd" for number in range(held, 0, -1)]
    last = "2026-11-22T03:00:00Z"
    verified = {"backup": ids[-1], "at": last, "seconds": 1234.567, "lost": [label] * 10} if ids else None
    return {
        "count": held,
        "bytes": held << 40,
        "tiers": {tier.value: {"count": held, "last": last, "backup": ids[0]} for tier in Tier} if ids else {},
        "newest": [[id_, 1 << 40, True, 100000] for id_ in ids[:20]],
        "signed": held,
        "incomplete": 2,
    } | ({"lastVerified": verified} if verified else {})


@given(
    message=_WORDS,
    names=st.lists(st.from_regex(r"[a-z0-9]{1,40}", fullmatch=True), min_size=1, max_size=8, unique=True),
    held=st.integers(0, 40),
    label=st.text(max_size=400),
    removed=st.lists(st.text(max_size=40), max_size=80),
    failed=_WORDS,
)
def test_whatever_so_many_repositories_hold_it_fits(
    message: str, names: list[str], held: int, label: str, removed: list[str], failed: str
) -> None:
    result = Result.success(
        message, tier="pre-migration", startedAt="2026-11-22T03:00:00Z", source="primary", backup=f"{'i' * 35}",
        bytes=1 << 40, seconds=1.0, finishedAt="2026-11-22T03:00:00Z", removed=removed,
        repositories={name: {"ok": False, "message": failed} for name in names},
        catalog={name: summary(held, label) for name in names},
        verification={"ok": True, "message": failed},
    )  # fmt: skip
    text = result.to_json()
    assert len(text.encode()) <= RESULT_LIMIT
    document = json.loads(text)
    assert (document["outcome"], document["reason"]) == ("Succeeded", "Succeeded")
    assert bool(document["message"]) is bool(message.split())
    for told in document.get("catalog", {}).values():
        assert len(told["newest"]) <= held
        assert ("lastVerified" in told) is bool(held)


@pytest.mark.parametrize(("repositories", "least"), [(1, 20), (2, 20), (3, 11), (4, 7), (6, 3), (8, 1)])
def test_of_the_newest_each_repository_tells_as_many(repositories: int, least: int) -> None:
    names = [f"repository-{number}" for number in range(repositories)]
    taken = "20261122T030000Z-daily-abcd: 12 tables with 4003 rows of primary, 56 KiB in 0.3 s, in "
    result = Result.success(
        taken + ", ".join(names), tier="daily", startedAt="2026-11-22T03:00:00Z", source="primary",
        repositories={name: {"ok": True} for name in names},
        catalog={name: summary(30) for name in names},
    )  # fmt: skip
    report = BackupReport.read(json.loads(result.to_json()))
    [told] = {len(item.newest or ()) for item in report.catalog.values()}
    assert told >= least
    assert {item.count for item in report.catalog.values()} == {30}
    assert max(item.tiers["daily"].last or "" for item in report.catalog.values() if item.tiers) == (
        "2026-11-22T03:00:00Z"
    )


def test_what_has_no_room_at_all_leaves_the_end_and_the_message() -> None:
    result = Result.success("\x01" * 500, **{f"field{number}": "\udcff" * 300 for number in range(200)})
    document = json.loads(result.to_json())
    assert (document["outcome"], len(document["message"]) >= 200) == ("Succeeded", True)


def test_what_is_short_is_told_as_it_is() -> None:
    result = Result.success("Restored.", differences=["table a is missing"], backup=None)
    assert json.loads(result.to_json()) == {
        "outcome": "Succeeded",
        "reason": "Succeeded",
        "message": "Restored.",
        "differences": ["table a is missing"],
    }


def test_each_outcome_has_its_exit_code() -> None:
    assert [outcome.exit_code for outcome in (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TRANSIENT)] == [0, 1, 2]


@pytest.mark.parametrize(("text", "hours"), [("7d", 168), ("12h", 12), ("1d12h", 36), ("2w", 336), ("90m", 1.5)])
def test_spans(text: str, hours: float) -> None:
    assert span(text).total_seconds() == hours * 3600


@pytest.mark.parametrize("text", ["", "7", "d", "7d x", "-1d", "1y"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        span(text)


def test_a_report_is_read_without_the_parts_that_cannot_be() -> None:
    """A Job's message is input: of another version, or of whoever may write in the namespace."""
    document = {"message": "done", "bytes": -1, "seconds": {"restore": 1.5}, "catalog": {"a": {"count": "many"}}}
    report = BackupReport.read(document)
    assert (report.message, report.bytes, report.catalog, report.total_seconds) == ("done", None, {}, None)
    assert BackupReport.read({"seconds": 3}).total_seconds == 3
    for seconds in (float("nan"), float("inf"), -1, "soon", 10**400):
        assert BackupReport.read({"message": "done", "seconds": seconds}) == BackupReport(message="done")
