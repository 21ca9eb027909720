"""What is said of bloat stays the same while an estimate moves a little."""

from __future__ import annotations

from medianest_operator.health.indexes.bloat import estimate, step
from medianest_operator.health.indexes.report import judge
from unit.index_values import catalog, index


def test_in_at_thirty_and_out_at_twenty_five() -> None:
    said: list[int | None] = []
    before = None
    for points in (29.9, 30, 29, 31, 25, 24.9, 29.9, 38, 41, 44.9, 45, 39, 36, 34.9, 90, 26, 24):
        before = step(points, before)
        said.append(before)
    assert said == [None, 30, 30, 30, 30, None, None, 30, 30, 30, 40, 40, 40, 30, 90, 30, None]


def test_the_report_says_the_same_while_the_estimate_moves() -> None:
    rows = 4096 * 8152 / 16
    reports, before = [], None
    for full in (0.58, 0.61, 0.64, 0.57, 0.66, 0.64):
        airy = index(1, "a", pages=4097, rows=rows * full * 16 / 20)
        # An entry of one integer takes 20 bytes.
        assert estimate(airy) is not None
        report = judge(catalog(airy), (), bloated_before=before)
        before = report.points
        reports.append(report.bloated)
    assert reports[0] == reports[1] == reports[2] == reports[3]
    assert reports[0][0].points == 30
    assert reports[4:] == [(), ()], "one that went has to reach 30 again"
