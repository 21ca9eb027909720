"""Many databases: how long until each has its status, what the operator asks of the API server, what it costs idle.

    python benchmarks/scale.py [--many 1000] [--running 10] [--idle 120]

Runs on the local cluster (name: bench). The many are made hibernated, so that every child but the pods exists, by a
client of this program's own: its time is a baseline of the same run, as is a bare ConfigMap made as often, and as are
all their children where that client applies them with no operator at work. The running ones are small and probed every
15 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "operator"), str(ROOT / "benchmarks")]

from benchmarks.common import machine, print_table  # noqa: E402
from benchmarks.run import HIBERNATED, Bench  # noqa: E402

from e2e.kube import API_VERSION, KIND, SMALL  # noqa: E402
from medianest_operator import naming  # noqa: E402
from medianest_operator.kubernetes.access import Access  # noqa: E402
from medianest_operator.kubernetes.client import KubernetesClient  # noqa: E402
from medianest_operator.kubernetes.kinds import CHILDREN, CONFIG_MAP, DATABASE, Kind, Manifest  # noqa: E402

_AT_A_TIME = 16
_GIVEN = frozenset({"clusterIP", "clusterIPs", "volumeName"})
"""What the API server gives each object for itself."""


@dataclass(frozen=True)
class Made:
    """Seconds from the first create to: the last create, the last status."""

    created: float
    reported: float


async def create(client: KubernetesClient, kind: Kind, manifests: Sequence[Manifest]) -> float:
    """Make objects, some at a time. Returns the seconds that it took."""
    started = time.monotonic()
    limit = asyncio.Semaphore(_AT_A_TIME)

    async def one(manifest: Manifest) -> None:
        async with limit:
            await client.create(kind, manifest)

    await asyncio.gather(*(one(manifest) for manifest in manifests))
    return time.monotonic() - started


async def hibernated(client: KubernetesClient, names: Sequence[str]) -> Made:
    """Make databases that sleep, and wait until each says so."""
    manifests = [
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": n, "namespace": "bench"}, "spec": HIBERNATED}
        for n in names
    ]
    started = time.monotonic()
    _, version = await client.snapshot(DATABASE, "bench")
    waiting = set(names)
    done = asyncio.create_task(_reported(client, version, waiting))
    created = await create(client, DATABASE, manifests)
    await done
    return Made(created, time.monotonic() - started)


async def _reported(client: KubernetesClient, version: str, waiting: set[str]) -> None:
    while waiting:
        async for _, manifest in client.watch(DATABASE, version, "bench"):
            version = manifest["metadata"]["resourceVersion"]
            for condition in manifest.get("status", {}).get("conditions", []):
                if (condition["type"], condition["reason"]) == ("Ready", "Hibernated"):
                    waiting.discard(manifest["metadata"]["name"])
            if not waiting:
                return


async def children(client: KubernetesClient, name: str) -> list[tuple[Kind, str]]:
    """What a database consists of, as JSON that anybody could apply: without what the server has put in."""
    found = []
    for kind in CHILDREN:
        items, _ = await client.snapshot(kind, "bench", labels=f"{naming.LABEL_DATABASE}={name}")
        for item in items:
            metadata = {"name": item["metadata"]["name"], "namespace": "bench"}
            wanted = item.get("spec", {}).items()
            spec = {key: value for key, value in wanted if key not in _GIVEN or "None" in value}
            body = {key: item[key] for key in item.keys() - {"metadata", "spec", "status"}}
            found.append((kind, json.dumps(body | {"metadata": metadata} | ({"spec": spec} if spec else {}))))
    return found


async def copy(client: KubernetesClient, name: str, count: int) -> float:
    """Apply a database's children as often, under other names, with no operator at work. Returns seconds."""
    originals = await children(client, name)
    limit = asyncio.Semaphore(_AT_A_TIME)
    started = time.monotonic()

    async def one(number: int) -> None:
        async with limit:
            for kind, text in originals:
                await client.apply(kind, json.loads(text.replace(f'"{name}', f'"copy{number}')))

    await asyncio.gather(*(one(number) for number in range(count)))
    return time.monotonic() - started


def requests(bench: Bench, after: int = 0) -> tuple[Counter[str], int]:
    """The operator's requests by verb in the API server's audit log, Leases left out, and how long the log is."""
    assert bench.environment.local is not None
    lines = bench.environment.local.audit_log.read_text().splitlines()
    own = (entry for entry in map(json.loads, lines[after:]) if entry["userAgent"].startswith("medianest-operator/"))
    return Counter(e["verb"] for e in own if e.get("objectRef", {}).get("resource") != "leases"), len(lines)


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--many", type=int, default=1000, help="hibernated databases")
    parser.add_argument("--running", type=int, default=10, help="running databases")
    parser.add_argument("--idle", type=float, default=120, help="seconds of each idle window")
    options = parser.parse_args()
    bench = Bench(1)
    print(f"\n{machine()}\n")
    access = Access.of_kubeconfig(bench.environment.kubeconfig)
    await asyncio.sleep(20)
    empty, memory, _ = bench.idle(options.idle)
    bench.row("no database: CPU in 120 s", empty * 1200, None, "ms")
    bench.row("no database: memory of the leader", memory, None, "MiB")
    for number in range(options.running):
        bench.kube.database(f"run{number}", **SMALL)
    for number in range(options.running):
        bench.kube.wait_ready(f"run{number}", seconds=600)
    await asyncio.sleep(20)
    share, memory, writes = bench.idle(options.idle)
    for what, used in (("CPU a database", share), ("the same above the operator's own", share - empty)):
        bench.row(f"{options.running} running: {what} in 120 s", used * 1200 / options.running, None, "ms")
    bench.row(f"{options.running} running: memory of the leader", memory, None, "MiB")
    bench.row(f"{options.running} running: memory of the standby", bench.standby_memory(), None, "MiB")
    bench.row(f"{options.running} running: API writes in {options.idle:.0f} s", writes, None, "")
    # The controller of the many begins afresh: nothing of the running ones is counted.
    bench.kube.kubectl("delete", "mndb", "--all", "--wait=true")
    bench.kube.wait_gone("StatefulSet", f"run{options.running - 1}")
    bench.scale_operator(0)
    bench.scale_operator(2)
    await asyncio.sleep(20)
    async with KubernetesClient(access) as client:
        maps = [
            {"metadata": {"name": f"bare{n}", "namespace": "bench"}, "data": {"a": "b"}} for n in range(options.many)
        ]
        bare = await create(client, CONFIG_MAP, maps)
        bench.row(f"{options.many} bare ConfigMaps, created", bare, None, "s")
        _, log = requests(bench)
        cpu = bench.usage()[0]
        made = await hibernated(client, [f"many{number}" for number in range(options.many)])
        bench.row(f"{options.many} databases, created", made.created, bare, "s", "bare ConfigMaps")
        bench.row("first create to last status", made.reported, bare, "s", "bare ConfigMaps")
        bench.row("last create to last status", made.reported - made.created, bare, "s", "bare ConfigMaps")
        bench.row("the operator's CPU meanwhile", bench.usage()[0] - cpu, None, "s")
        asked, _ = requests(bench, log)
        bench.row("requests a database", sum(asked.values()) / options.many, None, "", str(dict(asked)))
        await asyncio.sleep(20)
        share, memory, writes = await asyncio.to_thread(bench.idle, options.idle)
        bench.row(f"idle, {options.many} hibernated: CPU", share, None, "% of a core")
        bench.row(f"idle, {options.many} hibernated: memory", memory, None, "MiB")
        bench.row(f"idle, {options.many} hibernated: API writes", writes, None, "")
        bench.scale_operator(0)
        copied = await copy(client, "many0", options.many)
        bench.row("the same children, applied by a bare client", copied, bare, "s", "bare ConfigMaps")
        bench.row("first create to last status", made.reported, copied, "s", "the same children by a bare client")
    print_table(("what", "value", "baseline", "ratio"), bench.rows)
    if bench.environment.local:
        bench.environment.local.down()


if __name__ == "__main__":
    asyncio.run(main())
