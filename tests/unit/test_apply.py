"""When a live object holds a manifest already."""

from __future__ import annotations

import pytest

from medianest_operator.kubernetes.apply import covers, stamped
from medianest_operator.kubernetes.kinds import SECRET, SERVICE


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"a": 1, "extra": 2}, {"a": 1}),
        ({"cpu": "1"}, {"cpu": "1000m"}),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}),
        ({"items": [{"name": "x", "default": True}]}, {"items": [{"name": "x"}]}),
        ({"env": [{"name": "PROXY"}, {"name": "x", "value": "1"}]}, {"env": [{"name": "x", "value": "1"}]}),
        ({"ownerReferences": [{"uid": "1"}, {"uid": "2"}]}, {"ownerReferences": [{"uid": "1"}]}),
        ({"tolerations": [{"key": "a"}, {"key": "b"}]}, {"tolerations": [{"key": "b"}]}),
    ],
)
def test_covered(live: object, wanted: object) -> None:
    assert covers(live, wanted)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({}, {"a": 1}),
        ({"items": ["x", "y"]}, {"items": ["x"]}),
        ({"cpu": "2"}, {"cpu": "1000m"}),
        ({"image": "postgres:15"}, {"image": "postgres:16"}),
        (None, {"a": {}}),
        ({"env": [{"name": "x", "value": "2"}, {"name": "y"}]}, {"env": [{"name": "x", "value": "1"}]}),
        ({"rules": [{"verbs": ["get"]}, {"verbs": ["*"]}]}, {"rules": [{"verbs": ["get"]}]}),
        ({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "b"}]}),
    ],
)
def test_not_covered(live: object, wanted: object) -> None:
    assert not covers(live, wanted)


def test_a_field_that_left_the_manifest_is_noticed() -> None:
    metadata = {"namespace": "ns", "name": "x"}
    before = stamped(SERVICE, {"metadata": metadata, "spec": {"a": 1, "b": 2}})
    after = stamped(SERVICE, {"metadata": metadata, "spec": {"a": 1}})
    assert not covers(before, after)


def test_no_secret_value_reaches_an_annotation() -> None:
    metadata = {"namespace": "ns", "name": "x"}
    one = stamped(SECRET, {"metadata": metadata, "data": {"password": "b25l"}})
    two = stamped(SECRET, {"metadata": metadata, "data": {"password": "dHdv"}})
    assert one["metadata"]["annotations"] == two["metadata"]["annotations"]
    assert not covers(one, two)
