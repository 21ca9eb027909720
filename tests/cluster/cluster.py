"""A cluster: its life, and what tests and people do with it."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import addresses, archives, golang, images, network, objectstore, packages, processes, teardown
from cluster.components import PAUSE_IMAGE
from cluster.controlplane import ControlPlane
from cluster.errors import ClusterError
from cluster.layout import Layout
from cluster.node import Node
from cluster.objectstore import ObjectStore
from cluster.paths import cluster_dir, runtime_dir
from cluster.progress import step, together
from cluster.record import Options, Record

DEFAULT_NAME = "dev"


class Cluster:
    """A local Kubernetes cluster. Making this object starts nothing and asks nothing.

    Args:
        name: tells clusters on one machine apart.
        nodes: how many nodes ``up`` makes.
        volumes: whether ``up`` makes a default StorageClass, whose volumes have a hard size and can grow.
        network_policy: whether ``up`` makes the nodes enforce NetworkPolicies.
        s3: whether ``up`` starts an S3 server.

    Raises:
        ClusterError: the name can't name a cluster.
    """

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        nodes: int = 1,
        *,
        volumes: bool = True,
        network_policy: bool = False,
        s3: bool = False,
    ) -> None:
        addresses.Addresses(name, 0).node(nodes)
        self.name = name
        self.options = Options(nodes, volumes, network_policy, s3)

    # Where things are

    @property
    def layout(self) -> Layout:
        """The cluster's addresses and files.

        Raises:
            ClusterError: there is no cluster of this name.
        """
        number = addresses.allocated().get(self.name)
        if number is None:
            raise ClusterError(f"there is no cluster {self.name}: start it with 'up'")
        return self._layout(addresses.Addresses(self.name, number))

    def _layout(self, network_addresses: addresses.Addresses) -> Layout:
        return Layout(network_addresses, cluster_dir(self.name), runtime_dir(self.name))

    @property
    def kubeconfig(self) -> Path:
        """For kubectl and clients on this machine; its user may do everything."""
        return cluster_dir(self.name) / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """Every write that was not Kubernetes' own, one JSON object a line (``verb``, ``userAgent``, ``objectRef``)."""
        return self.layout.audit_log

    def log(self, component: str) -> Path:
        """A component's log, such as ``kube-apiserver`` or ``node1-kubelet``.

        Raises:
            ClusterError: there is none; the message names those that there are.
        """
        logs = self.layout.logs
        path = logs / f"{component}.log"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in logs.glob("*.log")))
            raise ClusterError(f"no log of {component}; there are: {known or 'none'}")
        return path

    # Life

    def _recorded(self) -> Record | None:
        """What the cluster was made with, or None if there is none, or none that could go on."""
        if self.name not in addresses.allocated():
            return None
        layout = self.layout
        record = Record.read(layout.record)
        # After a reboot, or a run that was killed half-way, there is nothing to go on from.
        complete = record is not None and len(network.namespaces(layout.addresses)) == record.options.nodes + 1
        return record if record is not None and complete and record.usable() else None

    def _existing(self) -> Record:
        record = self._recorded()
        if record is None:
            raise ClusterError(f"there is no cluster {self.name}: start it with 'up'")
        return record

    def program(self, name: str) -> Path:
        """Where one of the cluster's programs is, such as ``kubenode``."""
        return self._existing().programs[name]

    def build(self) -> dict[str, Path]:
        """Build the programs that the cluster needs, and install packages meanwhile; quick if all is there."""
        wanted = [*golang.CLUSTER_PROGRAMS]
        wanted += [golang.NETWORK_POLICY] if self.options.network_policy else []
        wanted += [golang.S3] if self.options.s3 else []
        tasks = {
            "programs": lambda: golang.build_all(wanted),
            "packages": lambda: packages.ensure(packages.CLUSTER),
        }
        return dict(together(tasks)["programs"])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with addresses.locked(runtime_dir(self.name).with_suffix(".lock")):
            yield

    def up(self) -> None:
        """Start the cluster and wait until every node is Ready.

        What already runs is left as it is, with the programs that it was made with; what is asked for and was not there
        is added.

        Raises:
            ClusterError: something can't be built, or does not start; the message holds the end of its log.
        """
        packages.require_root()
        recorded = self._recorded()
        programs = self.build() if recorded is None or recorded.options | self.options != recorded.options else {}
        with self._alone():
            layout = self._layout(addresses.allocate(self.name))
            recorded = self._recorded()
            if recorded is None:
                # Also when there seems to be nothing: a killed run may have left processes and no files.
                teardown.remove(layout)
                layout.root.mkdir(parents=True)
                layout.runtime.mkdir(parents=True, exist_ok=True)
                network.create_control_plane(layout.addresses)
                record = Record(self.options, programs)
                self._add_nodes(layout, 0, record.options.nodes)
            else:
                record = Record(recorded.options | self.options, {**programs, **recorded.programs})
                self._add_nodes(layout, recorded.options.nodes, record.options.nodes)
            record.write(layout.record)
            self._start(record)

    def _add_nodes(self, layout: Layout, existing: int, wanted: int) -> None:
        nodes = [layout.addresses.node(index) for index in range(1, wanted + 1)]
        for node in nodes[existing:]:
            network.create_node(node, nodes[: node.index - 1])

    def _start(self, record: Record) -> None:
        plane = ControlPlane(self.layout, record)
        nodes = self._nodes(record)
        names = [node.name for node in nodes]
        plane.write_files(names)
        with step("control plane"):
            store = plane.start_store()
            together({node.name: node.boot for node in nodes})
            plane.await_ready(store)
            plane.start_controllers()
            plane.apply_initial()
        with step(f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} ready"):
            pause = archives.of_program(record.programs["pause"], PAUSE_IMAGE)
            for node in nodes:
                node.load(pause)
                node.start_programs()
            plane.await_nodes(names)

    def down(self) -> None:
        """Remove the cluster with everything in it; nothing happens if there is none.

        Raises:
            ClusterError: something of it can't be removed.
        """
        packages.require_root()
        with self._alone():
            with step(f"removing cluster {self.name}"):
                # No name or folder depends on the number, so what a lost allocation left behind is found as well.
                teardown.remove(self._layout(addresses.Addresses(self.name, 0)))
            addresses.release(self.name)
            runtime_dir(self.name).with_suffix(".lock").unlink(missing_ok=True)
        if not addresses.allocated():
            teardown.remove_mount_points()

    def status(self) -> dict[str, dict[str, int | None]]:
        """The process ids of all programs by where they run; None for one that should run and doesn't."""
        record = self._recorded()
        if record is None:
            return {}
        plane = ControlPlane(self.layout, record)
        running = plane.running()
        found = {processes.CONTROL_PLANE: {name: running.get(name) for name in plane.expected()}}
        for node in self._nodes(record):
            running = node.running()
            found[node.name] = {name: running.get(name) for name in node.expected()}
        return found

    # Nodes

    def process(self, component: str) -> int:
        """The pid of a component of the control plane, for instance `kube-apiserver`. Raises ClusterError."""
        found = {name: pid for place in self.status().values() for name, pid in place.items()}
        pid = found.get(component)
        if pid is None:
            raise ClusterError(f"{component} does not run")
        return pid

    @property
    def nodes(self) -> list[Node]:
        """The cluster's nodes, the first being ``node1``."""
        return self._nodes(self._existing())

    def _nodes(self, record: Record) -> list[Node]:
        layout = self.layout
        indices = range(1, record.options.nodes + 1)
        return [Node(layout.node(layout.addresses.node(index)), record) for index in indices]

    def node(self, which: int | str) -> Node:
        """A node by its index, counted from 1, or by its name.

        Raises:
            ClusterError: there is no such node.
        """
        for index, node in enumerate(self.nodes, 1):
            if which in (index, node.name):
                return node
        raise ClusterError(f"cluster {self.name} has no node {which}")

    def container(self, namespace: str, pod: str, container: str) -> tuple[Node, str]:
        """Where a running container is: its node, and its id there.

        Raises:
            ClusterError: there is no such pod, or the container does not run.
        """
        status = json.loads(self.kubectl("get", "pod", pod, "--namespace", namespace, "--output", "json"))
        statuses = status["status"].get("containerStatuses", []) + status["status"].get("initContainerStatuses", [])
        for entry in statuses:
            if entry["name"] == container and entry.get("containerID") and "running" in entry.get("state", {}):
                return self.node(status["spec"]["nodeName"]), entry["containerID"]
        raise ClusterError(f"container {container} of {namespace}/{pod} does not run")

    def pid_of(self, namespace: str, pod: str, container: str) -> int:
        """The process id, on this machine, of a container's PID 1: for a kill that nobody announces."""
        node, identity = self.container(namespace, pod, container)
        return node.pid_of(identity)

    def processes_of(self, namespace: str, pod: str, container: str) -> dict[int, str]:
        """The command lines of a container's processes, by their process ids on this machine."""
        node, identity = self.container(namespace, pod, container)
        return node.processes_of(identity)

    # Images

    def load(self, *names: str) -> None:
        """Bring images from the image store into every node that doesn't have them as they are now.

        Args:
            names: images that were built, or paths of Docker archives.

        Raises:
            ClusterError: there is no such image.
        """
        with self._alone():
            nodes = self.nodes
            for name in names:
                image = images.find(name)
                lacking = [node for node in nodes if not node.has_image(image)]
                if lacking:
                    with step(f"loading {name} into {', '.join(node.name for node in lacking)}"):
                        together({node.name: functools.partial(node.load, image) for node in lacking})

    # Reaching what is inside

    def kubectl(self, *arguments: str, **options: Any) -> str:
        """Run kubectl as the cluster's admin and return what it printed.

        Raises:
            ClusterError: it failed; the message holds what it printed.
        """
        command = [str(self.program("kubenode")), "kubectl", "--kubeconfig", str(self.kubeconfig), *arguments]
        return processes.capture(command, **options)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the cluster's network, where Services and pods have names and routes.

        The command sees this machine's files; ``KUBECONFIG`` is set to the API server's address in there. Names are
        looked up by CoreDNS, so ``medianest-rw.default.svc`` works and nothing outside does.

        Args:
            command: the command and its arguments.
            options: as for :func:`subprocess.run`; output is text.
        """
        return ControlPlane(self.layout, self._existing()).run(command, **options)

    @contextmanager
    def forward(self, address: str, port: int, local_port: int = 0) -> Iterator[int]:
        """Make an address inside reachable on this machine's loopback, for as long as the block runs.

        Args:
            address: a pod's or Service's address, as in their status.
            port: the port there.
            local_port: the port wanted here; 0 for any.

        Yields:
            the port on 127.0.0.1.
        """
        with network.listen(local_port) as listener:
            pid = ControlPlane(self.layout, self._existing()).start_forwarder(
                listener, f"forward-{address}-{port}", f"{address}:{port}"
            )
            bound: int = listener.getsockname()[1]
        try:
            yield bound
        finally:
            processes.stop([pid])

    @property
    def s3(self) -> ObjectStore:
        """How to reach the cluster's S3 server.

        Raises:
            ClusterError: the cluster was made without one.
        """
        if not self._existing().options.s3:
            raise ClusterError(f"cluster {self.name} has no S3 server: 'up --s3' adds one")
        return objectstore.access(self.layout)

    def service_address(self, namespace: str, name: str) -> str:
        """A Service's ClusterIP."""
        return self.kubectl("get", "service", name, "--namespace", namespace, "--output", "jsonpath={.spec.clusterIP}")


def existing() -> list[str]:
    """The names of all clusters of which anything is there."""
    return sorted({*addresses.allocated(), *processes.clusters()})
