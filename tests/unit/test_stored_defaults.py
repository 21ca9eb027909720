"""What the API server stores of a spec that names nothing, and where people read the other defaults."""

from __future__ import annotations

import re
from typing import Any

import pytest
import reference

from medianest_operator import naming
from medianest_operator.api.crd import custom_resource_definitions, database_spec
from medianest_operator.api.database import DatabaseSpec

VERSION = custom_resource_definitions()[naming.PLURAL]["spec"]["versions"][0]
SPEC: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]["properties"]["spec"]
DEFAULTS = DatabaseSpec().model_dump(mode="json", by_alias=True, exclude_none=True)


def described(value: Any, indent: int = 0) -> list[str]:
    """A value as `kubectl describe` lays it out: a line for each field, and a heading for each object."""
    return [
        line
        for name, child in value.items()
        for line in ([f"{' ' * indent}{name}:", *described(child, indent + 2)] if isinstance(child, dict) else [name])
    ]


def with_defaults(schema: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """What the API server stores, as its documentation says: a default for each absent field of an object that is there
    (Kubernetes, Extend the Kubernetes API with CustomResourceDefinitions, Defaulting)."""
    for name, child in schema.get("properties", {}).items():
        if name not in value and "default" in child:
            value[name] = child["default"]
        if isinstance(value.get(name), dict):
            value[name] = with_defaults(child, dict(value[name]))
    return value


def test_an_empty_spec_is_stored_in_a_few_lines_without_empty_headings() -> None:
    stored = with_defaults(SPEC, dict(SPEC["default"]))
    assert stored == SPEC["default"]
    assert len(described(stored)) <= 25
    assert {} not in [value for _, value in _walk(stored)]
    assert [] not in [value for _, value in _walk(stored)]


@pytest.mark.parametrize("section", SPEC["properties"])
def test_a_section_that_is_named_stores_nothing_of_another(section: str) -> None:
    value: Any = {} if SPEC["properties"][section].get("properties") else DEFAULTS.get(section, "x")
    assert with_defaults(SPEC, {section: value}).keys() == SPEC["default"].keys() | {section}


def test_what_is_stored_is_what_the_operator_takes_for_it() -> None:
    stored = with_defaults(SPEC, {})
    assert DatabaseSpec.model_validate(stored) == DatabaseSpec()
    assert with_defaults(SPEC, {"resources": {"limits": {"cpu": "2"}}})["resources"] == {
        "requests": {"cpu": "250m"},
        "limits": {"cpu": "2", "memory": "1Gi"},
    }
    assert with_defaults(SPEC, {"walStorage": {}})["walStorage"] == {"size": "2Gi"}


def _walk(value: Any, path: str = "spec") -> list[tuple[str, Any]]:
    found = [(path, value)]
    if isinstance(value, dict):
        for name, child in value.items():
            found += _walk(child, f"{path}.{name}")
    return found


@pytest.mark.parametrize(("where", "value"), [item for item in _walk(DEFAULTS) if not isinstance(item[1], dict)])
def test_every_default_is_told_by_kubectl_explain_and_the_reference(where: str, value: Any) -> None:
    if value in ("", []):
        return
    field = dict(reference.fields(SPEC, "spec"))[where]
    assert "Default: " in field["description"]
    word = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool | int) else ""
    assert word in field["description"]
    row = next(line for line in reference.PAGE.read_text().splitlines() if line.startswith(f"| `{where}` |"))
    assert f"`{word}" in row.split(" | ")[2] or not word


def test_the_operators_defaults_are_those_of_the_schema() -> None:
    for where, field in reference.fields(database_spec(), "spec"):
        value: Any = DEFAULTS
        for name in where.split(".")[1:]:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None and not field.get("properties"):
            assert field["default"] == value, where


def test_rules_take_an_absent_field_for_its_default() -> None:
    compared = 0
    for where, field in [("spec", database_spec()), *reference.fields(database_spec(), "spec")]:
        for rule in field.get("x-kubernetes-validations", []):
            for path, value in re.findall(r"\? self\.([\w.]+) : '([^']*)'", rule["rule"]):
                inner = dict(reference.fields(field, "self"))[f"self.{path}"]
                assert inner["default"] == value, f"{where}.{path}"
                compared += 1
    assert compared >= 10
