"""What every child has: its metadata, its owner, and the restricted security contexts."""

from collections.abc import Mapping
from typing import Any

from medianest_operator.kubernetes.kinds import DATABASE, Kind, Manifest
from medianest_operator.naming import Names


def owner_reference(owner: Mapping[str, Any], kind: Kind = DATABASE) -> dict[str, Any]:
    """The child goes when its owner goes; it never blocks that (no foreground deletion waits for it)."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }


def manifest(
    kind: Kind,
    names: Names,
    name: str,
    owner: Mapping[str, Any] | None,
    *,
    component: str | None = None,
    annotations: Mapping[str, str] | None = None,
    **content: Any,
) -> Manifest:
    """A child of the database. Without an owner it outlives the object."""
    metadata: dict[str, Any] = {"namespace": names.namespace, "name": name, "labels": names.labels(component)}
    if annotations:
        metadata["annotations"] = dict(annotations)
    if owner:
        metadata["ownerReferences"] = [dict(owner)]
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **content}


def restricted_pod(uid: int) -> dict[str, Any]:
    """A pod security context of the `restricted` Pod Security Standard."""
    return {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": uid,
        "fsGroup": uid,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def restricted_container() -> dict[str, Any]:
    """A container security context of the same standard, with a read-only root file system."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
