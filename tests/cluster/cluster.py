"""A cluster: its life, and what tests and people do with it."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster import addresses, golang, images, network, packages, processes, teardown
from cluster.components import PAUSE_IMAGE
from cluster.controlplane import ControlPlane
from cluster.errors import ClusterError
from cluster.layout import Layout
from cluster.node import Node
from cluster.paths import cache_dir, cluster_dir, runtime_dir
from cluster.progress import say, step, together

DEFAULT_NAME = "dev"


@dataclass(frozen=True)
class Options:
    """What a cluster has.

    Attributes:
        nodes: how many.
        volumes: whether there is a default StorageClass.
        network_policy: whether NetworkPolicies are enforced.
    """

    nodes: int = 1
    volumes: bool = True
    network_policy: bool = False


class Cluster:
    """A local Kubernetes cluster. Making this object starts nothing and asks nothing.

    Args:
        name: tells clusters on one machine apart.
        nodes: how many nodes ``up`` makes.
        volumes: whether ``up`` makes a default StorageClass, whose volumes have a hard size and can grow.
        network_policy: whether ``up`` makes the nodes enforce NetworkPolicies.

    Raises:
        ClusterError: the name can't name a cluster.
    """

    def __init__(
        self, name: str = DEFAULT_NAME, nodes: int = 1, *, volumes: bool = True, network_policy: bool = False
    ) -> None:
        addresses.Addresses(name, 0).node(nodes)
        self.name = name
        self.options = Options(nodes, volumes, network_policy)

    # Where things are

    @functools.cached_property
    def layout(self) -> Layout:
        """The cluster's addresses and files; asking for it gives the cluster its number."""
        return Layout(addresses.allocate(self.name), cluster_dir(self.name), runtime_dir(self.name))

    @property
    def kubeconfig(self) -> Path:
        """For kubectl and clients on this machine; its user may do everything."""
        return self.layout.admin_kubeconfig

    @property
    def audit_log(self) -> Path:
        """Every write that was not Kubernetes' own, one JSON object a line (``verb``, ``userAgent``, ``objectRef``)."""
        return self.layout.audit_log

    def log(self, component: str) -> Path:
        """A component's log, such as ``kube-apiserver`` or ``node1-kubelet``.

        Raises:
            ClusterError: there is none; the message names those that there are.
        """
        path = self.layout.logs / f"{component}.log"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in self.layout.logs.glob("*.log")))
            raise ClusterError(f"no log of {component}; there are: {known or 'none'}")
        return path

    # Life

    @property
    def _record(self) -> Path:
        return self.layout.root / "cluster.json"

    def _recorded(self) -> Options | None:
        """What the cluster was made with, or None if there is no such cluster or it did not survive."""
        try:
            recorded = Options(**json.loads(self._record.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            say(f"  ..  the record of cluster {self.name} is damaged: starting anew")
            return None
        names = network.namespaces(self.layout.addresses)
        # After a reboot, or a run that was killed half-way, there is nothing to go on from.
        return recorded if len(names) == recorded.nodes + 1 else None

    def _programs(self) -> dict[str, Path]:
        wanted = (*golang.CLUSTER_PROGRAMS, *([golang.NETWORK_POLICY] if self.options.network_policy else []))
        return {program.name: golang.binary(program) for program in wanted}

    def program(self, name: str) -> Path:
        """Where a built program is, such as ``kubenode``."""
        return self._programs()[name]

    def build(self) -> dict[str, Path]:
        """Build the programs that the cluster needs, and install packages meanwhile; quick if all is there."""
        wanted = (*golang.CLUSTER_PROGRAMS, *([golang.NETWORK_POLICY] if self.options.network_policy else []))
        lacking = packages.missing(packages.CLUSTER)

        def install() -> None:
            if lacking:
                with step(f"installing {', '.join(lacking)}"):
                    packages.install(lacking)

        return dict(together({"programs": lambda: golang.build_all(wanted), "packages": install})["programs"])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with addresses.locked(self.layout.runtime.with_suffix(".lock")):
            yield

    def up(self) -> None:
        """Start the cluster and wait until every node is Ready; what already runs is left as it is.

        Raises:
            ClusterError: something can't be built, or does not start; the message holds the end of its log.
        """
        packages.require_root()
        programs = self.build()
        with self._alone():
            recorded = self._recorded()
            if recorded is None:
                # Also when there seems to be nothing: a killed run may have left processes and no files.
                teardown.remove(self.layout)
            elif recorded.nodes > self.options.nodes or (recorded.volumes, recorded.network_policy) != (
                self.options.volumes,
                self.options.network_policy,
            ):
                raise ClusterError(
                    f"cluster {self.name} runs with other options ({recorded}): take it down first, or use another name"
                )
            self._create(0 if recorded is None else recorded.nodes)
            self._start(programs)

    def _create(self, existing: int) -> None:
        """Make the network of what is not there yet, and remember that it is complete."""
        layout = self.layout
        if existing == 0:
            layout.root.mkdir(parents=True)
            layout.runtime.mkdir(parents=True, exist_ok=True)
            network.create_control_plane(layout.addresses)
        nodes = [layout.addresses.node(index) for index in range(1, self.options.nodes + 1)]
        for node in nodes[existing:]:
            network.create_node(node, nodes[: node.index - 1])
        self._record.write_text(json.dumps(asdict(self.options)))

    def _start(self, programs: dict[str, Path]) -> None:
        plane = self._control_plane(programs)
        nodes = self.nodes
        plane.write_files([node.name for node in nodes])
        with step("control plane"):
            store = plane.start_store()
            together({node.name: node.boot for node in nodes})
            plane.await_ready(store)
            plane.start_controllers()
            plane.apply_initial()
        with step(f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} ready"):
            self._load_pause(programs["pause"], nodes)
            for node in nodes:
                node.start_programs()
            plane.await_nodes([node.name for node in nodes])

    def _load_pause(self, program: Path, nodes: Sequence[Node]) -> None:
        archive = cache_dir() / "images" / f"pause-{program.parent.name}.tar"
        identity = images.write_program_image(program, PAUSE_IMAGE, archive)
        for node in nodes:
            node.load(archive, identity, [PAUSE_IMAGE])

    def down(self) -> None:
        """Remove the cluster with everything in it; nothing happens if there is none.

        Raises:
            ClusterError: something of it can't be removed.
        """
        packages.require_root()
        with self._alone():
            with step(f"removing cluster {self.name}"):
                teardown.remove(self.layout)
            addresses.release(self.name)
        self.layout.runtime.with_suffix(".lock").unlink(missing_ok=True)
        self.__dict__.pop("layout", None)
        if not addresses.allocated():
            teardown.remove_mount_points()

    def _control_plane(self, programs: dict[str, Path] | None = None) -> ControlPlane:
        return ControlPlane(self.layout, programs or self._programs())

    def status(self) -> dict[str, dict[str, int | None]]:
        """The process ids of all programs by where they run; None for one that should run and doesn't."""
        recorded = self._recorded()
        if recorded is None:
            return {}
        plane = self._control_plane()
        found: dict[str, dict[str, int | None]] = {
            processes.CONTROL_PLANE: {name: plane.running().get(name) for name in plane.expected()}
        }
        for node in self._nodes(recorded):
            running = node.running()
            found[node.name] = {name: running.get(name) for name in node.expected()}
        return found

    # Nodes

    @property
    def nodes(self) -> list[Node]:
        """The cluster's nodes, the first being ``node1``."""
        return self._nodes(self._recorded() or self.options)

    def _nodes(self, options: Options) -> list[Node]:
        parts = frozenset(
            name
            for name, wanted in {"volume-driver": options.volumes, "network-policy": options.network_policy}.items()
            if wanted
        )
        programs = self._programs()
        return [
            Node(self.layout.node(self.layout.addresses.node(index)), programs, parts)
            for index in range(1, options.nodes + 1)
        ]

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
        for name in names:
            archive, identity = images.archive(name)
            nodes = self.nodes
            if all(node.has_image(name, identity) for node in nodes):
                continue
            with step(f"loading {name} into {len(nodes)} node{'s' if len(nodes) > 1 else ''}"):
                together({node.name: functools.partial(node.load, archive, identity, [name]) for node in nodes})

    # Reaching what is inside

    def kubectl(self, *arguments: str, **options: Any) -> str:
        """Run kubectl as the cluster's admin and return what it printed.

        Raises:
            ClusterError: it failed; the message holds what it printed.
        """
        command = [str(self._programs()["kubenode"]), "kubectl", "--kubeconfig", str(self.kubeconfig), *arguments]
        return processes.capture(command, **options)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the cluster's network, where Services and pods have names and routes.

        The command sees this machine's files; ``KUBECONFIG`` is set to the API server's address in there. Names are
        looked up by CoreDNS, so ``medianest-rw.default.svc`` works and nothing outside does.

        Args:
            command: the command and its arguments.
            options: as for :func:`subprocess.run`; output is text.
        """
        return self._control_plane().run(command, **options)

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
            pid = self._control_plane().start_forwarder(listener, f"forward-{address}-{port}", f"{address}:{port}")
            bound: int = listener.getsockname()[1]
        try:
            yield bound
        finally:
            processes.stop([pid])

    def service_address(self, namespace: str, name: str) -> str:
        """A Service's ClusterIP."""
        return self.kubectl("get", "service", name, "--namespace", namespace, "--output", "jsonpath={.spec.clusterIP}")


def existing() -> list[str]:
    """The names of all clusters of which anything is there."""
    return sorted({*addresses.allocated(), *processes.clusters()})
