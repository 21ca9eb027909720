"""Whether one server's data is an earlier state of another's."""

from __future__ import annotations

import pytest

from medianest_operator.health.probe import History

FIRST, SECOND = {"00000002.history": "1\t0/3000000\tpromoted\n"}, {"00000002.history": "1\t0/3000100\tpromoted\n"}


@pytest.mark.parametrize(
    ("primary", "replica", "continues"),
    [
        (History({}, 200), History({}, 100), True),
        (History({}, 200), History({}, 200), True),
        (History(FIRST, 200), History({}, 100), True),
        (History(FIRST, 200), History(FIRST, 100), True),
        # Both were promoted to the same timeline, each from where it was.
        (History(FIRST, 200), History(SECOND, 100), False),
        # The replica was promoted, and its primary knows nothing of that.
        (History({}, 200), History(FIRST, 100), False),
        # It has more than its primary.
        (History(FIRST, 200), History(FIRST, 201), False),
    ],
)
def test_a_replica_may_have_no_history_of_its_own(primary: History, replica: History, continues: bool) -> None:
    assert primary.continues(replica) is continues
