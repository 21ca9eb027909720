"""Time to Ready, failover gaps, idle API writes, and the controller's CPU and memory.

    python benchmarks/run.py [--many 1000] [--rounds 3]

Runs on the local cluster (name: bench). Every figure stands beside a baseline of the same run: a bare pod that runs
initdb and starts PostgreSQL from the same image, and the same database with the operator switched off. For the many
objects no pod runs: they are made hibernated, so that every child but the pods exists.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import yaml  # noqa: E402
from benchmarks.common import machine, print_table  # noqa: E402

import environment as environments  # noqa: E402
from e2e.kube import API_VERSION, KIND, SMALL, Kube  # noqa: E402
from e2e.workload import Writer  # noqa: E402

DEPLOYMENT = "deployment/medianest-operator"
HIBERNATED = SMALL | {"hibernate": True}
_TICKS = os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


class Bench:
    """One cluster, one namespace, a table of results."""

    def __init__(self, rounds: int) -> None:
        self.environment = environments.prepare("bench", nodes=3)
        environments.install(self.environment)
        self.environment.kubectl("create", "namespace", "bench", check=False)
        self.kube = Kube(self.environment, "bench")
        self.rounds = rounds
        self.rows: list[tuple[str, str, str, str]] = []

    def row(self, what: str, value: float, baseline: float | None, unit: str, of: str = "") -> None:
        """Add and print a line of the table."""
        ratio = f"{value / baseline:.2f} of {of}" if baseline else of
        self.rows.append((what, f"{value:.2f} {unit}", f"{baseline:.2f} {unit}" if baseline else "", ratio))
        print(" | ".join(self.rows[-1]), flush=True)

    def median(self, measure: Callable[[int], float]) -> float:
        return statistics.median(measure(number) for number in range(self.rounds))

    def bare_pod(self, number: int) -> float:
        """A pod of the same image that runs initdb and starts PostgreSQL, until it is Ready."""
        name = f"bare{number}"
        command = "initdb -D /tmp/d >/dev/null && exec postgres -D /tmp/d -k /tmp -c listen_addresses="
        probe = {"exec": {"command": ["pg_isready", "-h", "/tmp"]}, "periodSeconds": 1}
        container = {
            "name": "postgres",
            "image": environments.POSTGRES_IMAGE,
            "command": ["sh", "-c", command],
            "readinessProbe": probe,
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container]}}

        def start() -> None:
            self.kube.apply(pod)
            self.kube.kubectl("wait", "--for=condition=Ready", f"pod/{name}")

        seconds = timed(start)
        self.kube.kubectl("delete", "pod", name, "--grace-period=0", "--force")
        return seconds

    def ready(self, instances: int) -> Callable[[int], float]:
        """From apply to Ready, the schema included."""

        def measure(number: int) -> float:
            name = f"r{instances}x{number}"

            def make() -> None:
                self.kube.database(name, instances=instances)
                self.kube.wait_ready(name)

            seconds = timed(make)
            self.kube.kubectl("delete", "mndb", name)
            self.kube.wait_gone("StatefulSet", name)
            return seconds

        return measure

    def gap(self, hit: Callable[[str], None]) -> Callable[[int], float]:
        """The longest time without an acknowledged write, with the primary hit in the middle."""

        def measure(_: int) -> float:
            self.settled("ha", 3)
            writer = Writer(self.kube, "ha", seconds=16)
            hit(self.leader("ha"))
            account = writer.settle_alone()
            if account.lost:
                raise SystemExit(f"{account.lost} acknowledged rows were lost")
            self.kube.kubectl("delete", "pod", "writer", "--grace-period=0", "--force")
            return account.gap

        return measure

    def leader(self, name: str) -> str:
        labels = f"medianest.io/database={name},medianest.io/role=primary"
        return self.kube.kubectl("get", "pods", "-l", labels, "-o", "jsonpath={.items[0].metadata.name}")

    def settled(self, name: str, instances: int) -> None:
        """Patroni alone says that all follow one leader (the operator may be off)."""
        for pod in (f"{name}-{number}" for number in range(instances)):
            self.kube.wait("Pod", pod, _pod_ready, "ready")

    def force_delete(self, pod: str) -> None:
        self.kube.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")

    def switch_over(self, pod: str) -> None:
        self.kube.kubectl("exec", pod, "-c", "postgres", "--", "patronictl", "switchover", "--leader", pod, "--force")

    def scale_operator(self, replicas: int) -> None:
        self.environment.kubectl("-n", environments.NAMESPACE, "scale", DEPLOYMENT, f"--replicas={replicas}")
        self.environment.kubectl("-n", environments.NAMESPACE, "rollout", "status", DEPLOYMENT)

    def leader_pod(self) -> str:
        """The operator's pod that holds the Lease."""
        lease = ("get", "lease", "medianest-operator", "-o", "jsonpath={.spec.holderIdentity}")
        return self.environment.kubectl("-n", environments.NAMESPACE, *lease)

    def usage(self) -> tuple[float, float]:
        """CPU seconds so far and MiB resident of the controller that leads."""
        return self._usage_of(self.leader_pod())

    def standby_memory(self) -> float:
        """MiB resident of the controller that stands by."""
        names = ("get", "pods", "-l", "app.kubernetes.io/name=medianest-operator", "-o", "name")
        pods = {
            name.removeprefix("pod/") for name in self.environment.kubectl("-n", environments.NAMESPACE, *names).split()
        }
        return self._usage_of((pods - {self.leader_pod()}).pop())[1]

    def _usage_of(self, pod: str) -> tuple[float, float]:
        assert self.environment.local is not None
        pid = self.environment.local.pid_of(environments.NAMESPACE, pod, "operator")
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return (int(fields[11]) + int(fields[12])) / _TICKS, pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def idle(self, seconds: float) -> tuple[float, float, int]:
        """Share of a core, MiB, and API writes of the operator while nothing changes."""
        before, writes = self.usage()[0], self.writes()
        time.sleep(seconds)
        after, memory = self.usage()
        return (after - before) / seconds * 100, memory, self.writes() - writes

    def writes(self) -> int:
        assert self.environment.local is not None
        entries = map(json.loads, self.environment.local.audit_log.read_text().splitlines())
        own = (entry for entry in entries if entry["userAgent"].startswith("medianest-operator/"))
        return sum(entry.get("objectRef", {}).get("resource") != "leases" for entry in own)

    def hibernated(self, first: int, last: int) -> float:
        """Make many objects whose pods don't run; seconds until each has its status."""
        manifests = [
            {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": f"many{n}"}, "spec": HIBERNATED}
            for n in range(first, last)
        ]

        def make() -> None:
            self.kube.kubectl("apply", "-f", "-", text="---\n".join(yaml.safe_dump(item) for item in manifests))
            for number in range(first, last):
                self.kube.wait_condition(f"many{number}", "Ready", "False", "Hibernated", seconds=1800)

        return timed(make)


def _pod_ready(pod: dict[str, Any] | None) -> bool:
    conditions = ((pod or {}).get("status") or {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--many", type=int, default=1000, help="objects whose pods don't run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each figure; the median counts")
    parser.add_argument("--idle", type=float, default=60, help="seconds of each idle window")
    options = parser.parse_args()
    bench = Bench(options.rounds)
    print(f"\n{machine()}; medians of {options.rounds}\n")
    bare = bench.median(bench.bare_pod)
    bench.row("one instance, apply to Ready", bench.median(bench.ready(1)), bare, "s", "a bare initdb pod")
    bench.row("three instances, apply to Ready", bench.median(bench.ready(3)), bare, "s", "a bare initdb pod")
    bench.kube.database("ha", instances=3, postgresql={"synchronous": "Required"})
    bench.kube.wait_ready("ha")
    for what, hit in (
        ("force-deleted primary, gap", bench.force_delete),
        ("planned switchover, gap", bench.switch_over),
    ):
        with_operator = bench.median(bench.gap(hit))
        bench.scale_operator(0)
        alone = bench.median(bench.gap(hit))
        bench.scale_operator(2)
        bench.row(what, with_operator, alone, "s", "Patroni alone")
    bench.kube.wait_ready("ha")
    cpu_one, memory_one, writes = bench.idle(options.idle)
    bench.row(f"idle, 1 database: API writes in {options.idle:.0f} s", writes, None, "")
    bench.row("idle, 1 database: CPU", cpu_one, None, "% of a core")
    bench.row("idle, 1 database: memory", memory_one, None, "MiB")
    made = 0
    for many in (10, options.many):
        seconds = bench.hibernated(made, many)
        bench.row(f"{many - made} more hibernated objects, apply to status", seconds, None, "s")
        made = many
        cpu, memory, writes = bench.idle(options.idle)
        bench.row(f"idle, {many} hibernated: API writes in {options.idle:.0f} s", writes, None, "")
        bench.row(f"idle, {many} hibernated: CPU", cpu, cpu_one, "% of a core", "1 database")
        bench.row(f"idle, {many} hibernated: memory", memory, memory_one, "MiB", "1 database")
    print_table(("what", "value", "baseline", "ratio"), bench.rows)
    if bench.environment.local:
        bench.environment.local.down()


if __name__ == "__main__":
    main()
