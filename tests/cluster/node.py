"""One node: a network namespace, a mount namespace and the programs in them, and what tests may do to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from cluster import cgroups, components, network, processes
from cluster.archives import Loadable
from cluster.components import Component
from cluster.errors import ClusterError, tail
from cluster.layout import NodeLayout
from cluster.processes import capture, entering
from cluster.record import Record

MACHINE = "machine"
START_SECONDS = 30.0
# Mounts made in a node stay in the node. It lets go of the machine's other namespaces too, which its copy of the mount
# table would otherwise keep from going away. What the kubelet mounts must reach its containers: hence rshared.
ENTER_MACHINE = """
set -e
mount --make-rprivate /
for namespace in /run/netns/*; do umount --lazy "$namespace" 2>/dev/null || true; done
mount --make-rshared /
pause="$1"; shift
while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done
exec "$pause"
"""


class Node:
    """A node of a cluster.

    Args:
        layout: its files and addresses.
        record: what its cluster was made with.
    """

    def __init__(self, layout: NodeLayout, record: Record) -> None:
        self.layout = layout
        self._programs = record.programs
        self._options = record.options

    @property
    def name(self) -> str:
        """Its name in Kubernetes."""
        return self.layout.addresses.name

    @property
    def _cluster(self) -> str:
        return self.layout.cluster.addresses.name

    # Programs

    def _components(self) -> list[Component]:
        node, kubenode = self.layout, self._programs["kubenode"]
        wanted = [
            components.kubelet(kubenode, node),
            components.kube_proxy(kubenode, node.config("kube-proxy.json")),
        ]
        if self._options.volumes:
            wanted.append(components.volume_driver(kubenode, node))
        if self._options.network_policy:
            wanted.append(components.network_policy(self._programs["network-policy"], node))
        return wanted

    def expected(self) -> list[str]:
        """The names of the programs that belong to a running node."""
        return [MACHINE, "containerd", *(component.name for component in self._components())]

    def running(self) -> dict[str, int]:
        """The node's running programs: process ids by name."""
        return {
            process.component: process.pid
            for process in processes.find(self._cluster)
            if process.leader and process.node == self.name
        }

    def log(self, component: str) -> Path:
        """The log of one of the node's programs."""
        return self.layout.cluster.logs / f"{self.name}-{component}.log"

    def _start(self, component: Component, enter: Sequence[str]) -> int:
        return processes.start(
            [*enter, *component.argv],
            cluster=self._cluster,
            node=self.name,
            component=component.name,
            log=self.log(component.name),
        )

    def boot(self) -> None:
        """Start what a node needs before the API server is there: its namespaces and containerd."""
        running = self.running()
        if MACHINE not in running and running:
            # Its mounts went with whoever held them together; what is left of it can't be joined to new ones.
            self._kill()
            running = {}
        if MACHINE not in running:
            running[MACHINE] = self._start_machine()
        if "containerd" not in running:
            pid = self._start(components.containerd(self.layout), self._enter(running[MACHINE]))
            self._await_containerd(pid)

    def start_programs(self) -> None:
        """Start the programs that talk to the API server."""
        running = self.running()
        for component in self._components():
            if component.name not in running:
                self._start(component, self._enter(running[MACHINE]))

    def _start_machine(self) -> int:
        # Groups of containers that were killed keep the kubelet busy for a while if it finds them.
        cgroups.remove(self.layout.addresses.cgroup)
        cgroups.create(self.layout.addresses.cgroup)
        # Sockets and states of containers that don't run any more: on a real node, /run is empty after a reboot.
        shutil.rmtree(self.layout.runtime, ignore_errors=True)
        pairs: list[str] = []
        for target, source in self.layout.mounts.items():
            source.mkdir(parents=True, exist_ok=True)
            target.mkdir(parents=True, exist_ok=True)
            pairs += [str(source), str(target)]
        components.write_node_config(self.layout)
        script = ("sh", "-c", ENTER_MACHINE, "sh", str(self._programs["pause"]), *pairs)
        machine = Component(MACHINE, ("unshare", "--mount", *script))
        pid = self._start(machine, entering(self.layout.addresses.namespace))
        self._await_machine(pid)
        return pid

    def _await_machine(self, pid: int) -> None:
        """Wait until the mounts are made: the process then is the pause program."""
        deadline = time.monotonic() + START_SECONDS
        pause = self._programs["pause"].resolve()
        while processes.alive(pid) and time.monotonic() < deadline:
            if Path(f"/proc/{pid}/exe").resolve() == pause:
                return
            time.sleep(0.01)
        raise ClusterError(f"{self.name} can't set up its mounts:\n{tail(self.log(MACHINE))}")

    def _await_containerd(self, pid: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while processes.alive(pid) and time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(str(self.layout.socket))
                except OSError:
                    time.sleep(0.02)
                    continue
            return
        raise ClusterError(f"containerd does not start on {self.name}:\n{tail(self.log('containerd'))}")

    def _enter(self, machine: int) -> list[str]:
        return entering(self.layout.addresses.namespace, machine)

    # Images

    def load(self, image: Loadable) -> bool:
        """Import an image, unless the node has it with the same content already.

        Returns:
            whether it was imported.

        Raises:
            ClusterError: containerd refused it.
        """
        if self.has_image(image):
            return False
        present = set(self.ctr("content", "list", "--quiet").split())
        command = [*self._ctr(), "images", "import", "-"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            # When containerd gives up early, what it says is worth more than that it no longer listens.
            with contextlib.suppress(BrokenPipeError), process.stdin as sink:
                image.write(sink, present)
            output = process.stdout.read().decode(errors="replace")
        if process.returncode != 0:
            raise ClusterError(f"{self.name} can't import {image.name}:\n{output}")
        self._image_record.write_text(json.dumps({**self._images(), image.name: image.identity}, indent=1))
        return True

    @property
    def _image_record(self) -> Path:
        return self.layout.root / "images.json"

    def _images(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._image_record.read_text()))
        except FileNotFoundError:
            return {}

    def has_image(self, image: Loadable) -> bool:
        """Whether an image of that name was loaded with that very content."""
        return self._images().get(image.name) == image.identity

    def ctr(self, *arguments: str) -> str:
        """Run containerd's own client in the namespace that Kubernetes uses."""
        return capture([*self._ctr(), *arguments])

    def _ctr(self) -> list[str]:
        return ["ctr", "--address", str(self.layout.socket), "--namespace", "k8s.io"]

    # What tests do to a node

    def run(self, command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command inside the node: in its network and with its mounts."""
        machine = self.running().get(MACHINE)
        if machine is None:
            raise ClusterError(f"{self.name} is not running")
        return subprocess.run([*self._enter(machine), *command], text=True, **options)  # type: ignore[call-overload, no-any-return]

    def disconnect(self) -> None:
        """Pull the node's network cable: everything on it goes on running, alone."""
        network.plug(self.layout.addresses, connected=False)

    def reconnect(self) -> None:
        """Put the node's network cable in again."""
        network.plug(self.layout.addresses, connected=True)

    def stop(self) -> None:
        """Lose the node as by a power cut: no goodbye on the network, every process gone at once."""
        self.disconnect()
        self._kill()

    def start(self) -> None:
        """Bring a node back that was stopped; its disk is as it was."""
        self.reconnect()
        self.boot()
        self.start_programs()

    def _kill(self) -> None:
        own = [process.pid for process in processes.find(self._cluster) if process.node == self.name]
        processes.stop([*own, *cgroups.pids(self.layout.addresses.cgroup)], gently=False)

    def pid_of(self, container_id: str) -> int:
        """The process id, on the machine, of a container's PID 1.

        Args:
            container_id: as in a pod's status, with or without the runtime's name before it.

        Raises:
            ClusterError: the container is not running on this node.
        """
        task = container_id.removeprefix("containerd://")
        path = self.layout.runtime / "io.containerd.runtime.v2.task" / "k8s.io" / task / "init.pid"
        try:
            pid = int(path.read_text())
        except (FileNotFoundError, ValueError) as error:
            raise ClusterError(f"container {task[:12]} does not run on {self.name}") from error
        if not processes.alive(pid):
            raise ClusterError(f"container {task[:12]} has ended on {self.name}")
        return pid

    def processes_of(self, container_id: str) -> dict[int, str]:
        """The command lines of all processes in a container, by their process ids on the machine."""
        folder = cgroups.of_process(self.pid_of(container_id))
        if folder is None:
            return {}
        found = {}
        for line in (folder / "cgroup.procs").read_text().split():
            try:
                command = Path(f"/proc/{line}/cmdline").read_bytes()
            except OSError:
                continue
            found[int(line)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def freeze(self, container_id: str) -> None:
        """Stop every process of a container where it stands (SIGSTOP), as a hanging disk or a starved CPU would."""
        self._signal(container_id, signal.SIGSTOP)

    def thaw(self, container_id: str) -> None:
        """Let a frozen container go on."""
        self._signal(container_id, signal.SIGCONT)

    def _signal(self, container_id: str, number: signal.Signals) -> None:
        for pid in self.processes_of(container_id):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
