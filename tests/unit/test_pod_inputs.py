"""A pod is replaced exactly when something changes that it depends on."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from render import ROOT

from medianest_operator.api.database import DatabaseSpec
from medianest_operator.naming import Names
from medianest_operator.resources.statefulset import PodInputs, changed_inputs, pod_template

NAMES = Names("ns", "db")
FULL: dict[str, Any] = yaml.safe_load((ROOT / "examples/production.yaml").read_text())["spec"] | {
    "image": "images.example/a:1",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "images"}],
    "tls": {"serverSecret": "given", "duration": "100h", "renewBefore": "50h"},
    "walStorage": {"size": "1Gi", "storageClassName": "fast"},
    "scheduling": {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "db", "operator": "Exists", "effect": "NoSchedule"}],
        "antiAffinity": "Required",
        "topologyKey": "zone",
        "priorityClassName": "high",
    },
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}},
    "notifications": [{"name": "x", "urlSecret": {"name": "hook"}}],
    "hibernate": False,
    "paused": False,
}
_WORDS = {"Always": "Never", "Required": "Preferred", "Exists": "Equal", "NoSchedule": "NoExecute"}


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if value in _WORDS:
        return _WORDS[value]
    # A quantity keeps its unit, a name gets another end.
    return f"1{value}" if value[:1].isdigit() else f"{value}x"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number))
    else:
        yield path


def changed(path: tuple[Any, ...]) -> dict[str, Any]:
    spec = copy.deepcopy(FULL)
    place: Any = spec
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = other(place[path[-1]])
    return spec


def inputs(spec: dict[str, Any]) -> PodInputs:
    parsed = DatabaseSpec.model_validate(spec)
    return PodInputs.of(NAMES, parsed, parsed.image or "default")


def template(spec: dict[str, Any]) -> str:
    """Without what says from what it was made."""
    made = pod_template(inputs(spec))
    del made["metadata"]["annotations"]
    return json.dumps(made, sort_keys=True)


@pytest.mark.parametrize("path", list(leaves(FULL)), ids=lambda path: ".".join(map(str, path)))
def test_the_digest_changes_with_the_template_and_names_the_field(path: tuple[Any, ...]) -> None:
    try:
        spec = changed(path)
        now = inputs(spec)
    except ValueError:
        pytest.skip("the other value isn't one")
    before = inputs(FULL)
    if template(spec) != template(FULL):
        assert now.digest != before.digest
    named = changed_inputs(json.dumps(before.as_document()), now)
    assert bool(named) == (now.digest != before.digest)


@pytest.mark.parametrize(
    "changes",
    [{"instances": 5}, {"storage": {"size": "900Gi"}}, {"backup": {"suspend": True}}, {"connections": {"limit": 7}}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_no_pod_depends_on_replaces_none(changes: dict[str, Any]) -> None:
    assert inputs(FULL | changes).digest == inputs(FULL).digest


def test_the_changed_field_is_named_in_the_specs_own_words() -> None:
    bigger = {**FULL, "resources": {**FULL["resources"], "limits": {"cpu": "2", "memory": "4Gi"}}}
    assert changed_inputs(json.dumps(inputs(FULL).as_document()), inputs(bigger)) == ["resources.limits.memory"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '"x"'])
def test_a_pod_that_does_not_say_what_it_was_made_from_is_no_error(text: str | None) -> None:
    assert changed_inputs(text, inputs(FULL)) == []
