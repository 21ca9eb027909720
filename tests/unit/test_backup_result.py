"""What the runs around backups leave for the operator fits into a termination message."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from medianest_operator.agent.backup import span
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
