"""Time to Ready, and how long nothing can be written when the primary goes away.

    python benchmarks/run.py [--rounds 3]

Runs on the local cluster (name: bench). Every figure stands beside a baseline of the same run: a bare pod that runs
initdb and starts PostgreSQL from the same image, and the same database with the operator switched off. What the
operator costs is in `scale.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from benchmarks.common import machine, print_table  # noqa: E402

import environment as environments  # noqa: E402
from e2e.kube import SMALL, Kube  # noqa: E402
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

    def first_kill(self, hit: Callable[[str], None]) -> Callable[[int], float]:
        """The same for a new database each time, whose operator runs."""

        def measure(number: int) -> float:
            name = f"kill{number}"
            self.kube.database(name, instances=3, postgresql={"synchronous": "Required"})
            self.kube.wait_ready(name)
            writer = Writer(self.kube, name, seconds=16)
            hit(self.leader(name))
            account = writer.settle()
            if account.lost:
                raise SystemExit(f"{account.lost} acknowledged rows were lost")
            self.kube.kubectl("delete", "pod", "writer", "--grace-period=0", "--force")
            self.kube.kubectl("delete", "mndb", name, "--wait=true")
            return account.gap

        return measure

    def kill_first_process(self, pod: str) -> None:
        assert self.environment.local is not None
        os.kill(self.environment.local.pid_of("bench", pod, "postgres"), signal.SIGKILL)

    def kill_postmaster(self, pod: str) -> None:
        kill = "kill -9 $(head -1 /pgdata/pgdata/postmaster.pid)"
        self.kube.kubectl("exec", pod, "-c", "postgres", "--", "sh", "-c", kill)

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


def _pod_ready(pod: dict[str, Any] | None) -> bool:
    conditions = ((pod or {}).get("status") or {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each figure; the median counts")
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
    bench.kube.kubectl("delete", "mndb", "ha", "--wait=true")
    # A kubelet waits longer with each restart of a container, so each kill is a new database's first.
    for what, kill in (
        ("killed first process of the primary, gap", bench.kill_first_process),
        ("killed postmaster of the primary, gap", bench.kill_postmaster),
    ):
        bench.row(what, bench.median(bench.first_kill(kill)), None, "s")
    print_table(("what", "value", "baseline", "ratio"), bench.rows)
    if bench.environment.local:
        bench.environment.local.down()


if __name__ == "__main__":
    main()
