"""Whether one server's data is an earlier state of another's."""

from __future__ import annotations

import pytest

from medianest_operator.health.probe import History

FIRST, SECOND = {"00000002.history": "1\t0/3000000\tpromoted\n"}, {"00000002.history": "1\t0/3000100\tpromoted\n"}

COPIED = {"00000003.history": "1\t0/3000000\tpromoted\n2\t0/4000000\tpromoted\n"}
"""Of a server that was copied from a primary on the third timeline: pg_basebackup brings the newest file alone."""


@pytest.mark.parametrize(
    ("primary", "replica", "continues"),
    [
        (History({}, 200), History({}, 100), True),
        (History({}, 200), History({}, 200), True),
        (History(FIRST, 200), History({}, 100), True),
        (History(FIRST, 200), History(FIRST, 100), True),
        (History(COPIED, 200), History({**FIRST, **COPIED}, 100), True),
        (History(COPIED, 200), History({**SECOND, **COPIED}, 100), False),
        (History(COPIED, 200), History({"00000004.history": "3\t0/5000000\tpromoted\n"}, 100), False),
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
