"""Bad input is refused at apply, with a message that names the field."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from environment import Environment

BAD_SPECS: list[tuple[dict[str, Any], str]] = [
    ({"instances": 0}, "spec.instances"),
    ({"instances": 10}, "spec.instances"),
    ({"instances": "three"}, "spec.instances"),
    ({"image": "has a space"}, "spec.image"),
    ({"imagePullPolicy": "Sometimes"}, "spec.imagePullPolicy"),
    ({"resources": {"limits": {"memory": "64Mi"}}}, "resources.limits.memory must be at least 256Mi"),
    ({"resources": {"limits": {"memory": "lots"}}}, "spec.resources.limits.memory"),
    (
        {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}},
        "resources.requests.memory must not exceed",
    ),
    ({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}, "resources.requests.cpu must not exceed"),
    ({"storage": {"size": "10"}}, "storage.size must be at least 512Mi"),
    ({"storage": {"size": "ten gigabytes"}}, "spec.storage.size"),
    ({"storage": {"onDelete": "Shred"}}, "spec.storage.onDelete"),
    ({"storage": {"storageClassName": "Not A Name"}}, "spec.storage.storageClassName"),
    ({"walStorage": {"size": "1Mi"}}, "walStorage.size must be at least 512Mi"),
    ({"postgresql": {"synchronous": "Sometimes"}}, "spec.postgresql.synchronous"),
    ({"postgresql": {"synchronous": "Required"}}, "postgresql.synchronous Required needs instances of at least 2"),
    ({"postgresql": {"parameters": {"ssl": "off"}}}, "postgresql.parameters must not set a parameter"),
    ({"postgresql": {"parameters": {"archive_command": "/bin/true"}}}, "postgresql.parameters must not set"),
    ({"postgresql": {"parameters": {"max_connections": 500}}}, "max_connections is connections.max"),
    ({"postgresql": {"parameters": {"Work_Mem": "8MB"}}}, "postgresql.parameters must have names as PostgreSQL"),
    ({"postgresql": {"parameters": {"jit": True}}}, "spec.postgresql.parameters.jit"),
    ({"database": {"name": "postgres"}}, "database.name must not be one of PostgreSQL's own"),
    ({"database": {"name": "has-dash"}}, "spec.database.name"),
    ({"database": {"owner": "pg_owner"}}, "database.owner must not be a reserved role name"),
    ({"database": {"owner": "postgres"}}, "database.owner must not be a reserved role name"),
    ({"connections": {"max": 10}}, "spec.connections.max"),
    ({"connections": {"max": 60, "limit": 55}}, "connections.limit must leave at least 10"),
    ({"migrations": {"source": {"bundled": {}, "configMap": {"name": "x"}}}}, "only one of bundled, configMap and"),
    ({"migrations": {"source": {"image": {"reference": "a:1", "path": "relative"}}}}, "migrations.source.image.path"),
    ({"migrations": {"onFailure": "Ignore"}}, "migrations.onFailure"),
    ({"migrations": {"rehearse": "Sometimes"}}, "migrations.rehearse"),
    ({"migrations": {"lockTimeout": "0s"}}, "migrations.lockTimeout must be more than 0s"),
    ({"migrations": {"rehearsalLimit": "1Ti"}}, "migrations.rehearsalLimit must be at most 16Gi"),
    ({"migrations": {"retry": "-"}}, "migrations.retry"),
    (
        {"backup": {"repositories": [{"name": "a", "volume": {"size": "1Mi"}}]}},
        "backup.repositories[].volume.size must be at least 128Mi",
    ),
    (
        {"backup": {"repositories": [{"name": "a"}]}},
        "backup.repositories[] must name exactly one of volume and s3",
    ),
    (
        {"backup": {"repositories": [{"name": "a", "volume": {}}, {"name": "a", "volume": {}}]}},
        "backup.repositories must have different names",
    ),
    (
        {"backup": {"repositories": [{"name": "a", "volume": {"claimName": "x", "size": "1Gi"}}]}},
        "backup.repositories[].volume must have either claimName or size and storageClassName",
    ),
    ({"backup": {"logical": {"daily": {"schedule": "sometimes", "keep": "7d"}}}}, "spec.backup.logical.daily.schedule"),
    ({"backup": {"logical": {"daily": {"schedule": "@daily", "keep": "7"}}}}, "spec.backup.logical.daily.keep"),
    ({"backup": {"deadline": "5s"}}, "backup.deadline must be at least 1m"),
    ({"backup": {"encryption": {"recipients": ["not a key"]}}}, "spec.backup.encryption.recipients[0]"),
    ({"bootstrap": {}}, "bootstrap must name exactly one of restore and import"),
    (
        {"bootstrap": {"restore": {"repository": {"name": "a", "volume": {}}}}},
        "bootstrap.restore.repository.volume must name the volume's claim (claimName)",
    ),
    (
        {"restore": {"requestId": "1", "repository": "nowhere"}},
        "restore.repository must be the name of one of backup.repositories",
    ),
    ({"migrations": {"source": {"configMap": {}}}}, "spec.migrations.source.configMap.name"),
    ({"migrations": {"target": "../etc"}}, "spec.migrations.target"),
    (
        {"hardening": {"checkConstraints": {"userRoles": ["user", "user"]}}},
        "hardening.checkConstraints.userRoles must not name a value twice",
    ),
    ({"hardening": {"checkConstraints": {"mediaTypes": []}}}, "spec.hardening.checkConstraints.mediaTypes"),
    ({"hardening": {"checkConstraints": {"userStatuses": ["x" * 51]}}}, "spec.hardening.checkConstraints.userStatuses"),
    ({"tls": {"duration": "24h", "renewBefore": "48h"}}, "tls.renewBefore must be shorter than tls.duration"),
    ({"tls": {"duration": "1m", "renewBefore": "30s"}}, "tls.duration must be at least 10m"),
    ({"tls": {"duration": "forever"}}, "spec.tls.duration"),
    ({"scheduling": {"antiAffinity": "Maybe"}}, "spec.scheduling.antiAffinity"),
    ({"scheduling": {"tolerations": [{"effect": "Never"}]}}, "spec.scheduling.tolerations[0].effect"),
    ({"paused": "yes"}, "spec.paused"),
    ({"instnaces": 3}, 'unknown field "spec.instnaces"'),
]


def _apply(environment: Environment, name: str, spec: dict[str, Any]) -> str:
    manifest = {
        "apiVersion": "medianest.io/v1alpha1",
        "kind": "MediaNestDatabase",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }
    arguments = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
    return environment.kubectl(*arguments, check=False, text=yaml.safe_dump(manifest))


@pytest.mark.parametrize(("spec", "message"), BAD_SPECS, ids=[message for _, message in BAD_SPECS])
def test_bad_spec_is_refused(environment: Environment, spec: dict[str, Any], message: str) -> None:
    answer = _apply(environment, "medianest", spec)
    assert message in answer
    assert "created" not in answer


@pytest.mark.parametrize("name", ["0starts-with-a-digit", "x" * 41, "has.dot"])
def test_bad_name_is_refused(environment: Environment, name: str) -> None:
    assert "metadata.name must be at most 40" in _apply(environment, name, {})


def test_empty_spec_is_enough(environment: Environment) -> None:
    assert "created (server dry run)" in _apply(environment, "medianest", {})


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"storage": {"size": "2Gi"}}, {"storage": {"size": "1Gi"}}, "storage.size can't shrink"),
        ({}, {"storage": {"storageClassName": "other"}}, "storage.storageClassName can't change"),
        ({}, {"walStorage": {"size": "1Gi"}}, "walStorage can't be added or removed later"),
        ({}, {"database": {"name": "other"}}, "database.name can't change"),
        ({}, {"database": {"owner": "other"}}, "database.owner can't change"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_forbidden_change_is_refused(
    environment: Environment, before: dict[str, Any], after: dict[str, Any], message: str
) -> None:
    name = "immutable"
    manifest = {
        "apiVersion": "medianest.io/v1alpha1",
        "kind": "MediaNestDatabase",
        "metadata": {"name": name, "namespace": "default"},
        # Paused: nothing is made of it while its rules are tried.
        "spec": {"paused": True} | before,
    }
    environment.kubectl("apply", "-f", "-", text=yaml.safe_dump(manifest))
    try:
        manifest["spec"] = {"paused": True} | after
        assert message in environment.kubectl("apply", "-f", "-", check=False, text=yaml.safe_dump(manifest))
    finally:
        environment.kubectl("-n", "default", "delete", "mndb", name, "--timeout=30s")
