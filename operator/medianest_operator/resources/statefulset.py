"""The StatefulSet of the instances, and the budget that keeps a drain from taking two at once."""

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.api.database import AntiAffinity, DatabaseSpec
from medianest_operator.api.model import OnDelete
from medianest_operator.api.quantity import MIB, to_bytes
from medianest_operator.kubernetes.kinds import DISRUPTION_BUDGET, STATEFUL_SET, Manifest, digest
from medianest_operator.naming import Names
from medianest_operator.resources.meta import manifest, restricted_container, restricted_pod


def pod_inputs(spec: DatabaseSpec, image: str) -> str:
    """Digest of all that a database pod depends on.

    The template itself may change with the operator's version; the pods follow it only when this digest differs, so a
    new operator restarts nothing.
    """
    return digest(
        {
            "image": image,
            "pull": [spec.image_pull_policy, [secret.name for secret in spec.image_pull_secrets]],
            "resources": spec.resources.model_dump(),
            "wal": spec.wal_storage is not None,
            "tls": spec.tls.server_secret,
            "scheduling": spec.scheduling.model_dump(mode="json"),
        }
    )[:16]


def resource_requirements(spec: DatabaseSpec) -> dict[str, Any]:
    """As Kubernetes wants them; memory is reserved by half where the spec says nothing."""
    requests = spec.resources.requests.model_dump(exclude_none=True)
    limits = spec.resources.limits.model_dump(exclude_none=True)
    if "memory" in limits and "memory" not in requests:
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


def _affinity(names: Names, spec: DatabaseSpec) -> dict[str, Any]:
    if spec.scheduling.affinity:
        return dict(spec.scheduling.affinity)
    term = {"labelSelector": {"matchLabels": names.pod_selector}, "topologyKey": spec.scheduling.topology_key}
    if spec.scheduling.anti_affinity == AntiAffinity.REQUIRED:
        return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    preferred = {"weight": 100, "podAffinityTerm": term}
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}}


def _probe(path: str, **timing: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": naming.PATRONI_PORT, "scheme": "HTTPS"}, **timing}


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _container(names: Names, spec: DatabaseSpec, image: str) -> dict[str, Any]:
    mounts = [
        {"name": naming.VOLUME_DATA, "mountPath": naming.DATA_MOUNT},
        {"name": "config", "mountPath": naming.CONFIG_MOUNT, "readOnly": True},
        {"name": "server-tls", "mountPath": naming.SERVER_TLS_MOUNT, "readOnly": True},
        {"name": "client-tls", "mountPath": naming.CLIENT_TLS_MOUNT, "readOnly": True},
        {"name": "socket", "mountPath": naming.SOCKET_DIRECTORY},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if spec.wal_storage:
        mounts.append({"name": naming.VOLUME_WAL, "mountPath": naming.WAL_MOUNT})
    return {
        "name": naming.CONTAINER_POSTGRES,
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        "command": [naming.PATRONI_BIN, naming.PATRONI_CONFIG],
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
        "resources": resource_requirements(spec),
        "securityContext": restricted_container(),
        "livenessProbe": _probe(
            "/liveness", initialDelaySeconds=10, periodSeconds=10, timeoutSeconds=5, failureThreshold=6
        ),
        "readinessProbe": _probe("/readiness", periodSeconds=2, timeoutSeconds=3, failureThreshold=3),
        "volumeMounts": mounts,
    }


def _volumes(names: Names, spec: DatabaseSpec) -> list[dict[str, Any]]:
    ca, cert, key = naming.TLS_CA, naming.TLS_CERT, naming.TLS_KEY
    server = spec.tls.server_secret or names.server_tls_secret

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


def pod_template(names: Names, spec: DatabaseSpec, image: str) -> Manifest:
    """The pods' template."""
    scheduling = spec.scheduling
    pod: dict[str, Any] = {
        "serviceAccountName": names.service_account,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 120,
        "securityContext": restricted_pod(naming.POSTGRES_UID),
        "affinity": _affinity(names, spec),
        "containers": [_container(names, spec, image)],
        "volumes": _volumes(names, spec),
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in spec.image_pull_secrets]
    if scheduling.node_selector:
        pod["nodeSelector"] = scheduling.node_selector
    if scheduling.tolerations:
        pod["tolerations"] = [item.model_dump(by_alias=True, exclude_none=True) for item in scheduling.tolerations]
    if scheduling.priority_class_name:
        pod["priorityClassName"] = scheduling.priority_class_name
    return {
        "metadata": {
            "labels": names.labels(naming.COMPONENT_POSTGRES) | {naming.LABEL_SCOPE: names.scope},
            "annotations": {naming.ANNOTATION_POD_INPUTS: pod_inputs(spec, image)},
        },
        "spec": pod,
    }


def stateful_set(
    names: Names,
    spec: DatabaseSpec,
    image: str,
    replicas: int,
    owner: Mapping[str, Any],
    *,
    image_from: str,
    claims: list[Manifest] | None = None,
) -> Manifest:
    """The instances. OnDelete, because the operator replaces pods itself: replicas first, then a switchover.

    Args:
        image_from: who named the image, the `spec` or the `operator`.
        claims: the claim templates of the live object, which nobody may change in place; `None` makes new ones.
    """
    kept = "Delete" if spec.storage.on_delete == OnDelete.DELETE else "Retain"
    return manifest(
        STATEFUL_SET,
        names,
        names.stateful_set,
        owner,
        component=naming.COMPONENT_POSTGRES,
        annotations={naming.ANNOTATION_IMAGE_FROM: image_from},
        spec={
            "replicas": replicas,
            "serviceName": names.pods_service,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": kept, "whenScaled": "Retain"},
            "selector": {"matchLabels": names.pod_selector},
            "template": pod_template(names, spec, image),
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
