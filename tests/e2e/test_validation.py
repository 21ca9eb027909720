"""Bad input is refused at apply, with a message that names the field."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import yaml

from e2e.specs import BAD_SPECS, GOOD_SPECS, ONCE_STORED
from environment import Environment


def _manifest(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "medianest.io/v1alpha1",
        "kind": "MediaNestDatabase",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def _apply(environment: Environment, name: str, spec: dict[str, Any]) -> str:
    arguments = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
    return environment.kubectl(*arguments, check=False, text=yaml.safe_dump(_manifest(name, spec)))


@pytest.mark.parametrize(("spec", "message"), BAD_SPECS, ids=[message for _, message in BAD_SPECS])
def test_bad_spec_is_refused(environment: Environment, spec: dict[str, Any], message: str) -> None:
    answer = _apply(environment, "medianest", spec)
    assert message in answer
    assert "created" not in answer


@pytest.mark.parametrize("name", ["0starts-with-a-digit", "x" * 41, "has.dot"])
def test_bad_name_is_refused(environment: Environment, name: str) -> None:
    assert "metadata.name must be at most 40" in _apply(environment, name, {})


@pytest.mark.parametrize("spec", GOOD_SPECS, ids=lambda spec: yaml.safe_dump(spec, default_flow_style=True)[:60])
def test_good_spec_is_accepted(environment: Environment, spec: dict[str, Any]) -> None:
    assert "created (server dry run)" in _apply(environment, "medianest", spec)


@contextlib.contextmanager
def _stored(environment: Environment, name: str, spec: dict[str, Any]) -> Iterator[None]:
    """An object in the cluster, for a while."""
    environment.kubectl("apply", "-f", "-", text=yaml.safe_dump(_manifest(name, spec)))
    try:
        yield
    finally:
        environment.kubectl("-n", "default", "delete", "mndb", name, "--timeout=30s")


# Paused: nothing is made of it while its rules are tried.
_PAUSED = {"paused": True}


def test_an_empty_spec_is_described_in_a_few_lines(environment: Environment) -> None:
    with _stored(environment, "described", _PAUSED):
        lines = environment.kubectl("-n", "default", "describe", "mndb", "described").splitlines()
        spec = lines[lines.index("Spec:") + 1 : next(i for i, line in enumerate(lines) if line.startswith("Status:"))]
        assert len(spec) <= 25
        assert [line for line in spec if "{}" in line or line.rstrip().endswith("<none>")] == []
        # Every heading has something below it.
        assert all(
            len(after) - len(after.lstrip()) > len(line) - len(line.lstrip())
            for line, after in pairwise(spec)
            if line.rstrip().endswith(":")
        )


_VOLUME = {"name": "volume", "volume": {"size": "10Gi"}}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"storage": {"size": "2Gi"}}, {"storage": {"size": "1Gi"}}, "storage.size can't shrink"),
        ({"storage": {"size": "20Gi"}}, {}, "storage.size can't shrink"),
        ({}, {"storage": {"size": "9Gi"}}, "storage.size can't shrink"),
        ({}, {"storage": {"storageClassName": "other"}}, "storage.storageClassName can't change"),
        ({"storage": {"storageClassName": "other"}}, {}, "storage.storageClassName can't change"),
        ({}, {"walStorage": {"size": "1Gi"}}, "walStorage can't be added or removed later"),
        ({}, {"walStorage": {}}, "walStorage can't be added or removed later"),
        ({"walStorage": {}}, {}, "walStorage can't be added or removed later"),
        ({"walStorage": {}}, {"walStorage": {"size": "1Gi"}}, "walStorage.size can't shrink"),
        ({"walStorage": {}}, {"walStorage": {"storageClassName": "a"}}, "walStorage.storageClassName can't change"),
        ({}, {"database": {"name": "other"}}, "database.name can't change"),
        ({}, {"database": {"owner": "other"}}, "database.owner can't change"),
        ({"database": {"name": "other"}}, {}, "database.name can't change"),
        ({}, {"backup": {"repositories": [{"name": "volume", "volume": {"size": "9Gi"}}]}}, "volume.size can't shrink"),
        (
            {"backup": {"repositories": [{"name": "volume", "volume": {"size": "11Gi"}}]}},
            {},
            "volume.size can't shrink",
        ),
        (
            {"backup": {"repositories": [{"name": "volume", "volume": {"size": "11Gi"}}]}},
            {"backup": {"repositories": [{"name": "volume", "volume": {}}]}},
            "volume.size can't shrink",
        ),
        ({}, {"tls": {"duration": "700h"}}, "tls.renewBefore must be shorter than tls.duration"),
        ({}, {"tls": {"renewBefore": "2000h"}}, "tls.renewBefore must be at most half of tls.duration"),
        ({}, {"migrations": {"lockTimeout": "0s"}}, "migrations.lockTimeout must be more than 0s"),
        ({}, {"backup": {"deadline": "5s"}}, "backup.deadline must be at least 1m"),
        ({}, {"postgresql": {"parameters": {"fsync": "off"}}}, "fsync must have its safe value"),
        ({}, {"postgresql": {"synchronous": "Required"}}, "postgresql.synchronous Required needs instances"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_forbidden_change_is_refused(
    environment: Environment, before: dict[str, Any], after: dict[str, Any], message: str
) -> None:
    with _stored(environment, "immutable", _PAUSED | before):
        text = yaml.safe_dump(_manifest("immutable", _PAUSED | after))
        assert message in environment.kubectl("apply", "-f", "-", check=False, text=text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"storage": {"size": "11Gi"}}),
        ({}, {"storage": {"onDelete": "Delete"}}),
        ({}, {"database": {}}),
        ({}, {"database": {"name": "medianest", "owner": "medianest"}}),
        ({"walStorage": {}}, {"walStorage": {"size": "3Gi"}}),
        ({}, {"resources": {"limits": {"memory": "2Gi", "cpu": "2"}}}),
        ({}, {"connections": {"max": 200}}),
        ({}, {"instances": 3, "postgresql": {"synchronous": "Required", "parameters": {"work_mem": "8MB"}}}),
        ({}, {"migrations": {"target": "20250905150611"}}),
        ({}, {"hardening": {"recommendedIndexes": True}}),
        ({}, {"backup": {"repositories": [_VOLUME]}}),
        ({}, {"backup": {"repositories": [{"name": "other", "volume": {"size": "1Gi"}}]}}),
        ({}, {"backup": {"repositories": [{"name": "volume", "volume": {"claimName": "mine"}}]}}),
        ({"storage": {"size": "20Gi"}}, {"storage": {"size": "20Gi"}, "backup": {"suspend": True}}),
        ({"backup": {"repositories": [_VOLUME]}}, {}),
        ({}, {"bootstrap": {"import": {"connectionSecret": {"name": "old"}}}}),
        ({}, {"notifications": [{"name": "chat", "urlSecret": {"name": "chat"}}]}),
        ({}, {"tls": {"duration": "1440h"}}),
        ({}, {"scheduling": {"antiAffinity": "Required"}}),
        ({"scheduling": {"antiAffinity": "Required"}, "tls": {"renewBefore": "48h"}}, {}),
    ],
    ids=lambda value: yaml.safe_dump(value, default_flow_style=True)[:60].strip(),
)
def test_a_section_may_be_named_later(environment: Environment, before: dict[str, Any], after: dict[str, Any]) -> None:
    with _stored(environment, "later", _PAUSED | before):
        text = yaml.safe_dump(_manifest("later", _PAUSED | after))
        assert "configured" in environment.kubectl("apply", "-f", "-", text=text)


@pytest.mark.parametrize("after", [{}, {"instances": 2}, {"backup": {"deadline": "2h"}}, {"storage": {"size": "20Gi"}}])
def test_an_object_with_all_the_former_defaults_can_change(environment: Environment, after: dict[str, Any]) -> None:
    with _stored(environment, "former", ONCE_STORED):
        text = yaml.safe_dump(_manifest("former", _PAUSED | after))
        assert "configured" in environment.kubectl("apply", "-f", "-", text=text)
        patch = ("-n", "default", "patch", "mndb", "former", "--type", "merge", "-p", '{"spec": {"instances": 3}}')
        assert "patched" in environment.kubectl(*patch)
