"""What Kubernetes asks of manifests: its published schemas, strictly, and the `restricted` Pod Security Standard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import kubernetes_validate

VERSIONS = ("1.30", "1.34", "1.37")
"""The oldest that the chart allows, the one of the e2e tests, the newest whose schema is there."""

Manifest = Mapping[str, Any]


def assert_valid(manifest: Manifest) -> None:
    """Fail unless every field is known and well-formed in all versions."""
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def pod_specs(manifest: Manifest) -> Iterator[Manifest]:
    """The pods that a manifest makes."""
    spec = manifest.get("spec", {})
    template = spec.get("jobTemplate", {"spec": spec})["spec"].get("template")
    if template:
        yield template["spec"]


def assert_restricted(pod: Manifest) -> None:
    """Fail where the `restricted` level would refuse the pod, or where a container may write to its own file system.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/
    """
    whole = pod["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] > 0
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    allowed = {
        "configMap",
        "emptyDir",
        "projected",
        "secret",
        "downwardAPI",
        "persistentVolumeClaim",
        "csi",
        "ephemeral",
    }
    for volume in pod.get("volumes", []):
        assert volume.keys() - {"name"} <= allowed, volume
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own["readOnlyRootFilesystem"] is True
        assert not own.get("privileged")
        assert "runAsUser" not in own
        assert not [port for port in container.get("ports", []) if "hostPort" in port]


def permissions(rules: list[Manifest]) -> set[tuple[str, str, str]]:
    """What rules allow whatever the object's name: group, resource, verb."""
    return {
        (group, resource, verb)
        for rule in rules
        if "resourceNames" not in rule
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def named_permissions(rules: list[Manifest]) -> set[tuple[str, str, str]]:
    """What rules allow for at least some names."""
    return permissions([{key: value for key, value in rule.items() if key != "resourceNames"} for rule in rules])
