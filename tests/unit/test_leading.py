"""Which pod leads where several carry the primary's label: nobody takes it away from one whose node is lost."""

from __future__ import annotations

import pytest

from medianest_operator.health.probe import InstanceFacts
from medianest_operator.reconcile.instances.servers import leading
from unit.reports import pod


def facts(*, in_recovery: bool) -> InstanceFacts:
    return InstanceFacts(
        in_recovery=in_recovery,
        connections=1,
        max_connections=60,
        reserved_connections=3,
        certificate_newer=False,
        configuration=None,
        pending_restart=False,
        refused_parameters=[],
        synchronous_standbys="",
        databases="",
        roles="",
    )


LEADS, FOLLOWS = facts(in_recovery=False), facts(in_recovery=True)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"db-1": LEADS}, "db-1"),
        ({"db-0": LEADS}, "db-0"),
        ({"db-0": FOLLOWS, "db-1": LEADS}, "db-1"),
        ({"db-0": LEADS, "db-1": LEADS}, "db-1"),
        ({}, "db-1"),
    ],
    ids=["other is gone", "first", "first was demoted", "both say so", "nobody answers"],
)
def test_the_server_decides_before_the_kubelet(seen: dict[str, InstanceFacts], expected: str) -> None:
    labelled = [pod(0, primary=True, ready=False), pod(1, primary=True)]
    found = leading(labelled, labelled[1], seen)
    assert found is not None
    assert found.name == expected


def test_nobody_leads_without_a_label() -> None:
    assert leading([], None, {"db-0": LEADS}) is None
