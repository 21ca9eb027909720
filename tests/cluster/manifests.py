"""What a new cluster holds from the start: a default StorageClass, cluster DNS, and rights for its own programs."""

from __future__ import annotations

from typing import Any

from cluster.addresses import Addresses
from cluster.record import Options

VOLUME_DRIVER = "volumes.cluster.local"
STORAGE_CLASS = "standard"
DNS_SERVICE = "kube-dns"

Manifest = dict[str, Any]


def _role(name: str, rules: list[dict[str, list[str]]]) -> list[Manifest]:
    """A ClusterRole for the user of the same name, bound to it."""
    full_name = f"cluster:{name}"
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": full_name},
            "rules": rules,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": full_name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": full_name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
        },
    ]


def _rule(groups: str, resources: str, verbs: str) -> dict[str, list[str]]:
    return {
        "apiGroups": ["" if group == "core" else group for group in groups.split()],
        "resources": resources.split(),
        "verbs": verbs.split(),
    }


def storage() -> list[Manifest]:
    """Volumes of a hard size that grow while mounted: a CSI driver and the default StorageClass."""
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSIDriver",
            "metadata": {"name": VOLUME_DRIVER},
            "spec": {
                "attachRequired": False,
                "podInfoOnMount": False,
                "fsGroupPolicy": "File",
                "volumeLifecycleModes": ["Persistent"],
            },
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": VOLUME_DRIVER,
            "allowVolumeExpansion": True,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        *_role(
            "volume-controller",
            [
                _rule("core", "persistentvolumes", "get list watch create update patch delete"),
                _rule("core", "persistentvolumeclaims", "get list watch update patch"),
                _rule("core", "persistentvolumeclaims/status", "get update patch"),
                _rule("core", "events", "create update patch"),
                _rule("core", "nodes pods", "get list watch"),
                _rule("storage.k8s.io", "storageclasses", "get list watch"),
            ],
        ),
    ]


def external_service(name: str, namespace: str, address: str, ports: list[dict[str, Any]]) -> list[Manifest]:
    """A Service, with its endpoint, for something that runs outside of any pod."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "cluster",
                },
            },
            "addressType": "IPv4",
            "ports": [
                {"name": port["name"], "port": port.get("targetPort", port["port"]), "protocol": port["protocol"]}
                for port in ports
            ],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        },
    ]


def dns(addresses: Addresses) -> list[Manifest]:
    """The well-known name server's Service, and CoreDNS's right to watch what it answers for."""
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    service, endpoints = external_service(DNS_SERVICE, "kube-system", str(addresses.control_plane), ports)
    service["metadata"]["labels"] = {"k8s-app": "kube-dns"}
    service["spec"]["clusterIP"] = str(addresses.dns_service)
    return [
        service,
        endpoints,
        *_role(
            "coredns",
            [
                _rule("core", "endpoints services pods namespaces", "list watch"),
                _rule("discovery.k8s.io", "endpointslices", "list watch"),
            ],
        ),
    ]


def network_policy() -> list[Manifest]:
    """The right to watch what NetworkPolicies depend on."""
    return _role(
        "network-policy",
        [
            _rule("core", "pods namespaces nodes", "get list watch"),
            _rule("networking.k8s.io", "networkpolicies", "get list watch"),
        ],
    )


def initial(addresses: Addresses, options: Options) -> Manifest:
    """Everything that a new cluster starts with, as one List."""
    items = dns(addresses)
    items += storage() if options.volumes else []
    items += network_policy() if options.network_policy else []
    return {"apiVersion": "v1", "kind": "List", "items": items}
