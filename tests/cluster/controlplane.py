"""The control plane: its programs in a network namespace of their own, and the API server's door to the machine."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import components, manifests, network, objectstore, processes
from cluster.components import API_PORT, Component
from cluster.errors import ClusterError, tail
from cluster.layout import Layout
from cluster.pki import Authority, write_key_pair, write_kubeconfig
from cluster.processes import CONTROL_PLANE, capture, entering
from cluster.record import Record

READY_SECONDS = 120.0
API_DOOR = "api-door"
# Users of the API by the file of their certificate: their name and group.
USERS = {
    "admin": ("kubernetes-admin", "system:masters"),
    "apiserver-kubelet": ("kube-apiserver-kubelet", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", ""),
    "coredns": ("coredns", ""),
    "volume-controller": ("volume-controller", ""),
    "network-policy": ("network-policy", ""),
}
# The names of Services are looked up by CoreDNS instead of by the machine's name servers.
WITH_CLUSTER_NAMES = 'mount --bind "$1" "$(readlink -f /etc/resolv.conf)"; shift; exec "$@"'


class ControlPlane:
    """The programs of a cluster that belong to no node.

    Args:
        layout: the cluster's files and addresses.
        record: what the cluster was made with.
    """

    def __init__(self, layout: Layout, record: Record) -> None:
        self.layout = layout
        self._programs = record.programs
        self._options = record.options

    # Files

    def write_files(self, nodes: Sequence[str]) -> None:
        """Write certificates, kubeconfigs and configurations that are not there yet."""
        layout, addresses = self.layout, self.layout.addresses
        authority, front = Authority(layout.pki), Authority(layout.front_pki)
        authority.create()
        front.create()
        front.issue("front-proxy-client", "front-proxy-client")
        service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        authority.issue(
            "apiserver",
            "kube-apiserver",
            names=[
                "127.0.0.1",
                "localhost",
                str(addresses.control_plane),
                str(addresses.kubernetes_service),
                *service,
                f"{service[-1]}.{components.DOMAIN}",
            ],
        )
        write_key_pair(layout.pki, "service-accounts")
        for file, (name, group) in USERS.items():
            authority.issue(file, name, group)
        for index, node in enumerate(nodes, 1):
            names = [node, str(addresses.node(index).address)]
            authority.issue(f"kubelet-{node}", f"system:node:{node}", "system:nodes", names)
        inside = f"https://{addresses.control_plane}:{API_PORT}"
        for user in [*USERS, *(f"kubelet-{node}" for node in nodes)]:
            write_kubeconfig(layout.kubeconfig(user), inside, layout.pki, user)
        components.write_control_plane_config(layout)
        if self._options.s3:
            objectstore.prepare(layout)
        search = " ".join(["default.svc." + components.DOMAIN, "svc." + components.DOMAIN, components.DOMAIN])
        resolver = f"search {search}\nnameserver {addresses.control_plane}\noptions ndots:5\n"
        layout.config("resolv.conf").write_text(resolver)

    # Programs

    def _store(self) -> list[Component]:
        kubenode = self._programs["kubenode"]
        return [components.etcd(kubenode, self.layout), components.api_server(kubenode, self.layout)]

    def _controllers(self) -> list[Component]:
        kubenode, layout = self._programs["kubenode"], self.layout
        wanted = [
            components.controller_manager(kubenode, layout),
            components.scheduler(kubenode, layout),
            components.kube_proxy(kubenode, layout.config("kube-proxy.json")),
            components.coredns(kubenode, layout),
        ]
        if self._options.volumes:
            wanted.append(components.volume_controller(self._programs["volume-controller"], layout))
        if self._options.s3:
            wanted.append(objectstore.component(self._programs["versitygw"], layout))
        return wanted

    def expected(self) -> list[str]:
        """The names of the programs that belong to a running control plane."""
        return [*(component.name for component in [*self._store(), *self._controllers()]), API_DOOR]

    def running(self) -> dict[str, int]:
        """The running programs: process ids by name."""
        return {
            process.component: process.pid
            for process in processes.find(self.layout.addresses.name)
            if process.leader and process.node == CONTROL_PLANE
        }

    def log(self, component: str) -> Path:
        """The log of one of the programs."""
        return self.layout.logs / f"{component}.log"

    def _start(self, wanted: Sequence[Component]) -> dict[str, int]:
        """Start what does not run yet; return the process ids of all that is wanted."""
        running = self.running()
        for component in wanted:
            if component.name not in running:
                running[component.name] = processes.start(
                    [*entering(self.layout.addresses.namespace), *component.argv],
                    cluster=self.layout.addresses.name,
                    node=CONTROL_PLANE,
                    component=component.name,
                    log=self.log(component.name),
                    environment=component.environment,
                )
        return {component.name: running[component.name] for component in wanted}

    def start_store(self) -> dict[str, int]:
        """Start etcd and the API server, open the API server's door to the machine, and return their process ids."""
        self.layout.logs.mkdir(parents=True, exist_ok=True)
        started = self._start(self._store())
        if API_DOOR not in self.running():
            self._open_door()
        return started

    def start_controllers(self) -> None:
        """Start what needs the API server."""
        self._start(self._controllers())

    def start_forwarder(self, listener: socket.socket, name: str, target: str) -> int:
        """Hand a listening socket of the machine to a process inside, which connects it to an address there."""
        forward = str(self._programs["forward"])
        return processes.start(
            [*entering(self.layout.addresses.namespace), forward, str(listener.fileno()), target],
            cluster=self.layout.addresses.name,
            node=CONTROL_PLANE,
            component=name,
            log=self.log(name),
            pass_fds=[listener.fileno()],
        )

    def _open_door(self) -> None:
        known = self.layout.runtime / "port"
        preferred = int(known.read_text()) if known.exists() else self.layout.addresses.preferred_port
        with network.listen(preferred) as listener:
            port = listener.getsockname()[1]
            self.start_forwarder(listener, API_DOOR, f"{self.layout.addresses.control_plane}:{API_PORT}")
        known.write_text(str(port))
        server = f"https://127.0.0.1:{port}"
        write_kubeconfig(self.layout.admin_kubeconfig, server, self.layout.pki, "admin", self.layout.addresses.name)

    # Waiting

    def _ask(self, path: str) -> str:
        """One request to the API server by way of its door.

        Raises:
            OSError: it does not answer.
        """
        pki = self.layout.pki
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        port = int((self.layout.runtime / "port").read_text())
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def await_ready(self, store: Mapping[str, int]) -> None:
        """Wait until the API server says that it is ready.

        Args:
            store: the process ids of etcd and the API server.

        Raises:
            ClusterError: etcd or the API server has ended, or takes too long.
        """
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            try:
                if self._ask("/readyz") == "ok":
                    return
            except OSError:
                pass
            for component, pid in store.items():
                if not processes.alive(pid):
                    raise ClusterError(f"{component} has ended:\n{tail(self.log(component))}")
            time.sleep(0.1)
        raise ClusterError(f"the API server does not get ready:\n{tail(self.log('kube-apiserver'))}")

    def kubectl(self, *arguments: str, **options: Any) -> str:
        """Run kubectl as the admin."""
        command = [
            str(self._programs["kubenode"]),
            "kubectl",
            "--kubeconfig",
            str(self.layout.admin_kubeconfig),
            *arguments,
        ]
        return capture(command, **options)

    def apply_initial(self) -> None:
        """Create what every cluster holds from the start."""
        content = manifests.initial(self.layout.addresses, self._options)
        if self._options.s3:
            content["items"] += objectstore.manifests(self.layout)
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename", "-", input=json.dumps(content))

    def await_nodes(self, names: Sequence[str]) -> None:
        """Wait until nodes are Ready and pods can be made in the default namespace.

        Raises:
            ClusterError: they take too long; the message holds the end of a kubelet's log.
        """
        try:
            wait = ("wait", f"--timeout={READY_SECONDS:.0f}s")
            for name in names:
                self.kubectl(*wait, "--for=create", f"node/{name}")
            self.kubectl(*wait, "--for=condition=Ready", *(f"node/{name}" for name in names))
            self.kubectl(*wait, "--for=create", "serviceaccount/default")
        except ClusterError as error:
            raise ClusterError(f"{error}\n{tail(self.log(f'{names[0]}-kubelet'))}") from error

    # Inside

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the cluster's network, with the cluster's names."""
        environment = dict(options.pop("env", os.environ))
        environment["KUBECONFIG"] = str(self.layout.kubeconfig("admin"))
        resolver = str(self.layout.config("resolv.conf"))
        names = ["unshare", "--mount", "--propagation", "private", "sh", "-c", WITH_CLUSTER_NAMES, "sh", resolver]
        words = [*entering(self.layout.addresses.namespace), *names, *command]
        return subprocess.run(words, env=environment, text=True, **options)
