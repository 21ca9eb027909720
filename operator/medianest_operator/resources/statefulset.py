"""The StatefulSet of the instances, and the budget that keeps a drain from taking two at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec, Resources
from medianest_operator.api.quantity import MIB, to_bytes
from medianest_operator.api.scheduling import AntiAffinity, Scheduling
from medianest_operator.kubernetes.kinds import DISRUPTION_BUDGET, STATEFUL_SET, Manifest, digest
from medianest_operator.naming import Names
from medianest_operator.resources.meta import manifest, restricted_container, restricted_pod


@dataclass(frozen=True)
class PodInputs:
    """All that a database pod depends on beside its name: the only argument of its template.

    The template may change with the operator's version; the pods follow it only when these inputs differ from the ones
    that they were made from, so a new operator restarts nothing.
    """

    names: Names
    image: str
    image_pull_policy: str
    image_pull_secrets: tuple[str, ...]
    resources: Resources
    separate_wal: bool
    server_secret: str | None
    """The admin's Secret with the server's certificate; `None`: the operator's own."""
    scheduling: Scheduling

    @classmethod
    def of(cls, names: Names, spec: DatabaseSpec, image: str) -> PodInputs:
        """Those of a spec; the image is the one in use where the spec names none."""
        return cls(
            names=names,
            image=image,
            image_pull_policy=spec.image_pull_policy,
            image_pull_secrets=tuple(secret.name for secret in spec.image_pull_secrets),
            resources=spec.resources,
            separate_wal=spec.wal_storage is not None,
            server_secret=spec.tls.server_secret,
            scheduling=spec.scheduling,
        )

    def as_document(self) -> dict[str, Any]:
        """By the spec's own field names, for a pod's annotation; without the names, which never change."""
        return {
            "image": self.image,
            "imagePullPolicy": self.image_pull_policy,
            "imagePullSecrets": list(self.image_pull_secrets),
            "resources": self.resources.model_dump(mode="json", by_alias=True, exclude_none=True),
            "walStorage": self.separate_wal,
            "tls": {"serverSecret": self.server_secret},
            "scheduling": self.scheduling.model_dump(mode="json", by_alias=True, exclude_none=True),
        }

    @property
    def digest(self) -> str:
        """Differs where the pods have to be replaced. Its shape is that of the first version, whose pods carry it."""
        document = {
            "image": self.image,
            "pull": [self.image_pull_policy, list(self.image_pull_secrets)],
            "resources": self.resources.model_dump(),
            "wal": self.separate_wal,
            "tls": self.server_secret,
            "scheduling": self.scheduling.model_dump(mode="json"),
        }
        return digest(document)[:16]


def changed_inputs(before: str | None, now: PodInputs) -> list[str]:
    """Which fields of the spec differ from those that a pod was made from, for instance `resources.limits.memory`.

    Args:
        before: the pod's annotation; nothing is said of one that has none, or another text.
    """
    try:
        old = json.loads(before or "")
    except ValueError:
        return []
    return sorted(_differences(old, now.as_document(), "")) if isinstance(old, dict) else []


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {*old, *new}:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path


def resource_requirements(resources: Resources) -> dict[str, Any]:
    """As Kubernetes wants them; memory is reserved by half where the spec says nothing. There is always a limit of it:
    PostgreSQL is tuned for that."""
    requests = resources.requests.model_dump(exclude_none=True)
    limits = resources.limits.model_dump(exclude_none=True)
    if "memory" not in requests:
        requests["memory"] = f"{max(64, to_bytes(limits['memory']) // 2 // MIB)}Mi"
    return {"requests": requests, "limits": limits}


def _claim(names: Names, volume: str, size: str, storage_class: str | None) -> Manifest:
    spec: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    if storage_class:
        spec["storageClassName"] = storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": volume, "labels": names.labels(naming.COMPONENT_POSTGRES)},
        "spec": spec,
    }


def volume_claims(names: Names, spec: DatabaseSpec) -> list[Manifest]:
    """The claim templates."""
    claims = [_claim(names, naming.VOLUME_DATA, spec.storage.size, spec.storage.storage_class_name)]
    if spec.wal_storage:
        claims.append(_claim(names, naming.VOLUME_WAL, spec.wal_storage.size, spec.wal_storage.storage_class_name))
    return claims


def _affinity(names: Names, scheduling: Scheduling) -> dict[str, Any]:
    if scheduling.affinity:
        return dict(scheduling.affinity)
    term = {"labelSelector": {"matchLabels": names.pod_selector}, "topologyKey": scheduling.topology_key}
    if scheduling.anti_affinity == AntiAffinity.REQUIRED:
        return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    preferred = {"weight": 100, "podAffinityTerm": term}
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}}


def _probe(path: str, **timing: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": naming.PATRONI_PORT, "scheme": "HTTPS"}, **timing}


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _container(inputs: PodInputs) -> dict[str, Any]:
    names = inputs.names
    mounts = [
        {"name": naming.VOLUME_DATA, "mountPath": naming.DATA_MOUNT},
        {"name": "config", "mountPath": naming.CONFIG_MOUNT, "readOnly": True},
        {"name": "server-tls", "mountPath": naming.SERVER_TLS_MOUNT, "readOnly": True},
        {"name": "client-tls", "mountPath": naming.CLIENT_TLS_MOUNT, "readOnly": True},
        {"name": "socket", "mountPath": naming.SOCKET_DIRECTORY},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if inputs.separate_wal:
        mounts.append({"name": naming.VOLUME_WAL, "mountPath": naming.WAL_MOUNT})
    return {
        "name": naming.CONTAINER_POSTGRES,
        "image": inputs.image,
        "imagePullPolicy": inputs.image_pull_policy,
        # The image's entry point, an init, comes before it; an older image has none.
        "args": [naming.PATRONI_BIN, naming.PATRONI_CONFIG],
        "env": [
            _field("PATRONI_NAME", "metadata.name"),
            _field("PATRONI_KUBERNETES_NAMESPACE", "metadata.namespace"),
            _field("PATRONI_KUBERNETES_POD_IP", "status.podIP"),
            {
                "name": "PATRONI_POSTGRESQL_CONNECT_ADDRESS",
                "value": f"$(PATRONI_KUBERNETES_POD_IP):{naming.POSTGRES_PORT}",
            },
            {
                "name": "PATRONI_RESTAPI_CONNECT_ADDRESS",
                "value": f"$(PATRONI_NAME).{names.pods_service}.{names.namespace}.svc:{naming.PATRONI_PORT}",
            },
            {"name": "PGHOST", "value": naming.SOCKET_DIRECTORY},
            {"name": "PATRONICTL_CONFIG_FILE", "value": naming.PATRONI_CONFIG},
        ],
        "ports": [
            {"name": "postgres", "containerPort": naming.POSTGRES_PORT, "protocol": "TCP"},
            {"name": "patroni", "containerPort": naming.PATRONI_PORT, "protocol": "TCP"},
        ],
        "resources": resource_requirements(inputs.resources),
        "securityContext": restricted_container(),
        "livenessProbe": _probe(
            "/liveness", initialDelaySeconds=10, periodSeconds=10, timeoutSeconds=5, failureThreshold=6
        ),
        "readinessProbe": _probe("/readiness", periodSeconds=2, timeoutSeconds=3, failureThreshold=3),
        "volumeMounts": mounts,
    }


def _volumes(inputs: PodInputs) -> list[dict[str, Any]]:
    names = inputs.names
    ca, cert, key = naming.TLS_CA, naming.TLS_CERT, naming.TLS_KEY
    server = inputs.server_secret or names.server_tls_secret

    def secret(name: str, *keys: str) -> dict[str, Any]:
        return {"secret": {"name": name, "items": [{"key": item, "path": item} for item in keys]}}

    own = {"key": ca, "path": naming.CLIENT_CA}
    sources = [secret(server, cert, key, ca), {"secret": {"name": names.patroni_tls_secret, "items": [own]}}]
    return [
        {"name": "config", "configMap": {"name": names.patroni_config}},
        # The group may read the keys, which PostgreSQL accepts of root's files (PostgreSQL manual, 19.9).
        {"name": "server-tls", "projected": {"defaultMode": 0o440, "sources": sources}},
        {
            "name": "client-tls",
            "projected": {"defaultMode": 0o440, "sources": [secret(names.patroni_tls_secret, cert, key)]},
        },
        {"name": "socket", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]


def pod_template(inputs: PodInputs) -> Manifest:
    """The pods' template."""
    names, scheduling = inputs.names, inputs.scheduling
    pod: dict[str, Any] = {
        "serviceAccountName": names.service_account,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 120,
        "securityContext": restricted_pod(naming.POSTGRES_UID),
        "affinity": _affinity(names, scheduling),
        "containers": [_container(inputs)],
        "volumes": _volumes(inputs),
    }
    if inputs.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in inputs.image_pull_secrets]
    if scheduling.node_selector:
        pod["nodeSelector"] = scheduling.node_selector
    if scheduling.tolerations:
        pod["tolerations"] = [item.model_dump(by_alias=True, exclude_none=True) for item in scheduling.tolerations]
    if scheduling.priority_class_name:
        pod["priorityClassName"] = scheduling.priority_class_name
    return {
        "metadata": {
            "labels": names.labels(naming.COMPONENT_POSTGRES) | {naming.LABEL_SCOPE: names.scope},
            "annotations": {
                naming.ANNOTATION_POD_INPUTS: inputs.digest,
                naming.ANNOTATION_POD_INPUTS_DOCUMENT: json.dumps(inputs.as_document(), sort_keys=True),
            },
        },
        "spec": pod,
    }


def stateful_set(
    names: Names,
    spec: DatabaseSpec,
    image: str,
    instances: range,
    owner: Mapping[str, Any],
    *,
    image_from: str,
    claims: list[Manifest] | None = None,
) -> Manifest:
    """The instances. OnDelete, because the operator replaces pods itself: replicas first, then a switchover.

    Args:
        instances: the ordinals of those that run; an empty range keeps the place of the last one.
        image_from: who named the image, the `spec` or the `operator`.
        claims: the claim templates of the live object, which nobody may change in place; `None` makes new ones.
    """
    return manifest(
        STATEFUL_SET,
        names,
        names.stateful_set,
        owner,
        component=naming.COMPONENT_POSTGRES,
        annotations={naming.ANNOTATION_IMAGE_FROM: image_from},
        spec={
            "replicas": len(instances),
            **({"ordinals": {"start": instances.start}} if instances.start else {}),
            "serviceName": names.pods_service,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            # A StatefulSet may go and be made again; with the object the volumes go by their own owner (volumes.py).
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "selector": {"matchLabels": names.pod_selector},
            "template": pod_template(PodInputs.of(names, spec, image)),
            "volumeClaimTemplates": claims or volume_claims(names, spec),
        },
    )


def disruption_budget(names: Names, owner: Mapping[str, Any]) -> Manifest:
    """At most one instance at a time leaves for a drain."""
    return manifest(
        DISRUPTION_BUDGET,
        names,
        names.disruption_budget,
        owner,
        component=naming.COMPONENT_POSTGRES,
        spec={"maxUnavailable": 1, "selector": {"matchLabels": names.pod_selector}},
    )
