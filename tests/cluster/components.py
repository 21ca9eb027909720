"""What runs in a cluster: the command lines and configurations of its programs, without running any of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.layout import Layout, NodeLayout

API_PORT = 6443
KUBERNETES_VERSION = "1.34.4"
DOMAIN = "cluster.local"
PAUSE_IMAGE = "localhost/medianest-cluster/pause:1"
NODE_STATUS_SECONDS = 4
# A lost node is noticed after this time, its pods are given up after the toleration on top of it. Upstream's 40 s and
# 300 s would make every test of a lost node take six minutes.
NODE_GRACE_SECONDS = 16
TOLERATION_SECONDS = 5
# Memory is there, and two cores are shared with what is measured: collect the garbage of the control plane less often.
_LAZY_COLLECTOR = {"GOGC": "400"}


@dataclass(frozen=True)
class Component:
    """A program with its arguments and what its environment adds, by the name that its log has."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def _flags(**values: object) -> tuple[str, ...]:
    return tuple(f"--{name.replace('_', '-')}={value}" for name, value in values.items())


def etcd(binary: Path, layout: Layout) -> Component:
    """The store. What it holds may be lost with the machine, so nothing waits for the disk."""
    flags = _flags(
        data_dir=layout.root / "etcd",
        listen_client_urls="http://127.0.0.1:2379",
        advertise_client_urls="http://127.0.0.1:2379",
        listen_peer_urls="http://127.0.0.1:2380",
        log_level="warn",
    )
    return Component("etcd", (str(binary), "etcd", *flags, "--unsafe-no-fsync"), _LAZY_COLLECTOR)


def api_server(binary: Path, layout: Layout) -> Component:
    """The API server with the default admission plugins and an audit log of every write."""
    pki, front = layout.pki, layout.front_pki
    flags = _flags(
        etcd_servers="http://127.0.0.1:2379",
        advertise_address=layout.addresses.control_plane,
        bind_address="0.0.0.0",
        secure_port=API_PORT,
        tls_cert_file=pki / "apiserver.crt",
        tls_private_key_file=pki / "apiserver.key",
        client_ca_file=pki / "ca.crt",
        kubelet_client_certificate=pki / "apiserver-kubelet.crt",
        kubelet_client_key=pki / "apiserver-kubelet.key",
        kubelet_certificate_authority=pki / "ca.crt",
        kubelet_preferred_address_types="InternalIP",
        service_account_key_file=pki / "service-accounts.pub",
        service_account_signing_key_file=pki / "service-accounts.key",
        service_account_issuer=f"https://kubernetes.default.svc.{DOMAIN}",
        service_cluster_ip_range=layout.addresses.services,
        authorization_mode="Node,RBAC",
        allow_privileged="true",
        enable_admission_plugins="NodeRestriction",
        requestheader_client_ca_file=front / "ca.crt",
        requestheader_allowed_names="front-proxy-client",
        requestheader_username_headers="X-Remote-User",
        requestheader_group_headers="X-Remote-Group",
        requestheader_extra_headers_prefix="X-Remote-Extra-",
        proxy_client_cert_file=front / "front-proxy-client.crt",
        proxy_client_key_file=front / "front-proxy-client.key",
        default_not_ready_toleration_seconds=TOLERATION_SECONDS,
        default_unreachable_toleration_seconds=TOLERATION_SECONDS,
        audit_policy_file=layout.config("audit-policy.json"),
        audit_log_path=layout.audit_log,
        audit_log_format="json",
        audit_log_maxsize=200,
        audit_log_maxbackup=1,
    )
    return Component("kube-apiserver", (str(binary), "kube-apiserver", *flags), _LAZY_COLLECTOR)


def controller_manager(binary: Path, layout: Layout) -> Component:
    """All controllers that are on by default."""
    kubeconfig = layout.kubeconfig("controller-manager")
    flags = _flags(
        kubeconfig=kubeconfig,
        authentication_kubeconfig=kubeconfig,
        authorization_kubeconfig=kubeconfig,
        leader_elect="false",
        use_service_account_credentials="true",
        root_ca_file=layout.pki / "ca.crt",
        service_account_private_key_file=layout.pki / "service-accounts.key",
        cluster_signing_cert_file=layout.pki / "ca.crt",
        cluster_signing_key_file=layout.pki / "ca.key",
        cluster_cidr=layout.addresses.pods,
        allocate_node_cidrs="false",
        node_monitor_period="2s",
        node_monitor_grace_period=f"{NODE_GRACE_SECONDS}s",
        node_eviction_rate=10,
        secondary_node_eviction_rate=10,
        kube_api_qps=100,
        kube_api_burst=200,
    )
    return Component("kube-controller-manager", (str(binary), "kube-controller-manager", *flags), _LAZY_COLLECTOR)


def scheduler(binary: Path, layout: Layout) -> Component:
    """The scheduler."""
    kubeconfig = layout.kubeconfig("scheduler")
    flags = _flags(
        kubeconfig=kubeconfig,
        authentication_kubeconfig=kubeconfig,
        authorization_kubeconfig=kubeconfig,
        leader_elect="false",
    )
    return Component("kube-scheduler", (str(binary), "kube-scheduler", *flags))


def coredns(binary: Path, layout: Layout) -> Component:
    """The cluster's name server. It runs beside the API server, so that losing a node loses no names."""
    return Component("coredns", (str(binary), "coredns", "-conf", str(layout.config("Corefile"))))


def volume_controller(binary: Path, layout: Layout) -> Component:
    """Provisions, grows and deletes volumes."""
    flags = _flags(kubeconfig=layout.kubeconfig("volume-controller"), root=layout.volumes)
    return Component("volume-controller", (str(binary), *flags))


def kube_proxy(binary: Path, config: Path) -> Component:
    """Makes Services reachable, on a node and in the control plane's namespace."""
    return Component("kube-proxy", (str(binary), "kube-proxy", *_flags(config=config)))


def containerd(node: NodeLayout) -> Component:
    """The container runtime of a node."""
    return Component("containerd", ("containerd", "--config", str(node.config("containerd.toml"))))


def kubelet(binary: Path, node: NodeLayout) -> Component:
    """The agent of a node."""
    flags = _flags(
        config=node.config("kubelet.json"),
        kubeconfig=node.cluster.kubeconfig(f"kubelet-{node.addresses.name}"),
        hostname_override=node.addresses.name,
        node_ip=node.addresses.address,
        housekeeping_interval="30s",
    )
    return Component("kubelet", (str(binary), "kubelet", *flags))


def volume_driver(binary: Path, node: NodeLayout) -> Component:
    """The node's half of the CSI driver."""
    flags = _flags(
        root=node.cluster.volumes,
        node=node.addresses.name,
        endpoint="/var/lib/kubelet/plugins/volumes/csi.sock",
        plugins_registry="/var/lib/kubelet/plugins_registry",
    )
    return Component("volume-driver", (str(binary), "volume-driver", *flags))


def network_policy(binary: Path, node: NodeLayout) -> Component:
    """Enforces NetworkPolicy on a node."""
    flags = _flags(
        kubeconfig=node.cluster.kubeconfig("network-policy"),
        node=node.addresses.name,
        services=node.cluster.addresses.services,
    )
    return Component("network-policy", (str(binary), *flags))


def audit_policy() -> dict[str, Any]:
    """Log who wrote what, once each, except for what Kubernetes writes about itself all the time."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "omitManagedFields": True,
        "rules": [
            {"level": "None", "verbs": ["get", "list", "watch"]},
            {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]},
            {
                "level": "None",
                "users": [
                    "system:apiserver",
                    "system:kube-controller-manager",
                    "system:kube-scheduler",
                    "system:kube-proxy",
                    "volume-controller",
                ],
            },
            # Questions about permissions are asked by creating an object that is never kept.
            {"level": "None", "resources": [{"group": "authorization.k8s.io"}, {"group": "authentication.k8s.io"}]},
            {"level": "Metadata"},
        ],
    }


def corefile(layout: Layout) -> str:
    """CoreDNS's configuration. Names outside the cluster don't exist in it."""
    return f"""\
.:53 {{
    errors
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {layout.kubeconfig("coredns")}
        ttl 5
    }}
    cache 5
}}
"""


def kube_proxy_config(layout: Layout, node_name: str, address: object) -> dict[str, Any]:
    """Kube-proxy's configuration for the node of that name and address.

    The connection tracking limits stay as they are (0): setting them needs rights over the whole machine.
    """
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(layout.kubeconfig("kube-proxy"))},
        "mode": "iptables",
        "clusterCIDR": str(layout.addresses.pods),
        "hostnameOverride": node_name,
        "bindAddress": str(address),
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


def kubelet_config(node: NodeLayout) -> dict[str, Any]:
    """The kubelet's configuration.

    ``KubeletInUserNamespace`` lets it go on where the machine's root may not raise limits, ``failCgroupV1: false``
    where the machine still has version 1 (https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/).
    """
    pki = node.cluster.pki
    certificate = f"kubelet-{node.addresses.name}"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / f"{certificate}.crt"),
        "tlsPrivateKeyFile": str(pki / f"{certificate}.key"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.addresses.cgroup}",
        "enforceNodeAllocatable": ["pods"],
        "failCgroupV1": False,
        "failSwapOn": False,
        "featureGates": {"KubeletInUserNamespace": True},
        "clusterDNS": [str(node.cluster.addresses.dns_service)],
        "clusterDomain": DOMAIN,
        # A pod must not inherit the machine's name servers, which it can't reach.
        "resolvConf": str(node.config("resolv.conf")),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        # The disk is the machine's: neither a full one nor many images are the node's to act upon.
        "evictionHard": {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 250,
        "nodeStatusUpdateFrequency": f"{NODE_STATUS_SECONDS}s",
        "nodeLeaseDurationSeconds": 10,
        "syncFrequency": "10s",
        "configMapAndSecretChangeDetectionStrategy": "Watch",
    }


def containerd_config(node: NodeLayout) -> str:
    """Containerd's configuration, version 2 (containerd 1.6 of Debian 12 and later)."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{node.root}/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "/run/containerd/containerd.sock"
[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  tolerate_missing_hugetlb_controller = true
  [{cri}.cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{node.root}/config/cni"
  [{cri}.containerd]
    snapshotter = "overlayfs"
    [{cri}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def cni_config(node: NodeLayout) -> dict[str, Any]:
    """Pods hang on a bridge of their node; what goes to other nodes is routed, never masqueraded."""
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": str(node.addresses.pods)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def write_node_config(node: NodeLayout) -> None:
    """Write the configuration files of a node's programs."""
    node.config("cni").mkdir(parents=True, exist_ok=True)
    node.config("cni/10-pods.conflist").write_text(json.dumps(cni_config(node), indent=1))
    node.config("containerd.toml").write_text(containerd_config(node))
    node.config("kubelet.json").write_text(json.dumps(kubelet_config(node), indent=1))
    proxy = kube_proxy_config(node.cluster, node.addresses.name, node.addresses.address)
    node.config("kube-proxy.json").write_text(json.dumps(proxy, indent=1))
    node.config("resolv.conf").write_text("")


def write_control_plane_config(layout: Layout) -> None:
    """Write the configuration files of the control plane's programs."""
    layout.config("").mkdir(parents=True, exist_ok=True)
    layout.config("audit-policy.json").write_text(json.dumps(audit_policy(), indent=1))
    layout.config("Corefile").write_text(corefile(layout))
    # Kube-proxy wants a node of its name; the first node's stands in, since nothing here depends on which it is.
    first = layout.addresses.node(1)
    proxy = kube_proxy_config(layout, first.name, layout.addresses.control_plane)
    layout.config("kube-proxy.json").write_text(json.dumps(proxy, indent=1))
