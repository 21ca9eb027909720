"""The note on a claim of when it grew last: anybody may write one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from medianest_operator.naming import ANNOTATION_GROWN_AT
from medianest_operator.reconcile.instances import volumes
from medianest_operator.timestamps import stamp


def noted(text: Any) -> datetime | None:
    return volumes.grown_at({"metadata": {"annotations": {ANNOTATION_GROWN_AT: text}}})


@pytest.mark.parametrize(
    "text", ["x", "", None, "2026-01-01", "2026-01-01T00:00:00", "2999-01-01T00:00:00Z", "9999-12-31T23:59:59-23:00"]
)
def test_what_the_operator_did_not_write_is_no_moment(text: Any) -> None:
    assert noted(text) is None


def test_a_claim_without_notes_never_grew() -> None:
    assert volumes.grown_at({"metadata": {}}) is None


def test_its_own_notes_are_read_also_where_another_clock_is_a_little_ahead() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    for moment in (now - timedelta(days=9), now, now + timedelta(minutes=2)):
        assert noted(stamp(moment)) == moment
