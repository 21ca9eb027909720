"""The primary goes away in every way: no acknowledged row is lost, and the status tells the story."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e.kube import KIND, Kube, condition_of
from e2e.workload import TOLERATIONS, Writer
from environment import Environment


def _make(kube: Kube, synchronous: str = "Required", **spec: object) -> None:
    kube.database("ha", instances=3, postgresql={"synchronous": synchronous}, **spec)
    kube.wait_ready("ha")


def _wait_other_primary(kube: Kube, old: str) -> str:
    def other(current: dict[str, object] | None) -> bool:
        instances = ((current or {}).get("status") or {}).get("instances") or {}  # type: ignore[attr-defined]
        return instances.get("primary") not in {None, old}

    return str(kube.wait(KIND, "ha", other, f"led by another than {old}")["status"]["instances"]["primary"])


def test_force_deleted_primary_loses_nothing(kube: Kube, record_property: Callable[[str, object], None]) -> None:
    _make(kube)
    old = kube.primary("ha")
    writer = Writer(kube, "ha", seconds=20)
    kube.kubectl("delete", "pod", old, "--grace-period=0", "--force", "--wait=false")
    account = writer.settle()
    record_property("gap_seconds", account.gap)
    print(f"force-deleted primary: gap {account.gap} s, {account.acknowledged} rows acknowledged, {account.lost} lost")
    assert account.acknowledged > 20
    assert account.lost == 0
    kube.wait_ready("ha")
    # The status told of it; nothing of the kind is told of a database that is being created.
    kube.wait_event("ha", "NoPrimary", "PrimaryRestarting", "PrimaryUnreachable", "CommitsWait")
    kube.wait_event("ha", "PrimaryServing", times=2)


def test_planned_switchover_loses_nothing(kube: Kube, record_property: Callable[[str, object], None]) -> None:
    _make(kube)
    old = kube.primary("ha")
    writer = Writer(kube, "ha", seconds=15)
    told = kube.kubectl("exec", old, "-c", "postgres", "--", "patronictl", "switchover", "--leader", old, "--force")
    print(told)
    new = _wait_other_primary(kube, old)
    account = writer.settle()
    record_property("gap_seconds", account.gap)
    print(f"planned switchover: gap {account.gap} s, {account.acknowledged} rows acknowledged, {account.lost} lost")
    assert account.lost == 0
    kube.wait_ready("ha")
    assert ("PrimaryChanged", f"Primary changed from {old} to {new}.") in kube.events("ha")


def test_killed_postmaster_comes_back(kube: Kube) -> None:
    _make(kube, "Preferred")
    primary = kube.primary("ha")
    writer = Writer(kube, "ha", seconds=20)
    kube.kubectl(
        "exec", primary, "-c", "postgres", "--", "sh", "-c", "kill -9 $(head -1 /pgdata/pgdata/postmaster.pid)"
    )
    account = writer.settle()
    print(f"killed postmaster: gap {account.gap} s, {account.lost} lost of {account.acknowledged}")
    assert account.lost == 0
    kube.wait_ready("ha")


def test_killed_first_process_is_seen_and_mended(kube: Kube, environment: Environment) -> None:
    if environment.local is None:
        pytest.skip("needs the node's own processes: only root on the node can kill a container's first process")
    kube.database("solo")
    kube.wait_ready("solo")
    os.kill(environment.local.pid_of(kube.namespace, "solo-0", "postgres"), signal.SIGKILL)
    kube.wait_event("solo", "PrimaryRestarting")
    kube.wait_ready("solo")
    kube.wait_event("solo", "Ready", times=2)


def _first_process(pod: str, other_than: int) -> int | None:
    """The process id, on this machine, of the first process of a pod's new container, once Patroni is to run there."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            inside = (folder / "status").read_text().partition("NSpid:")[2].splitlines()[0].split()
            begins = inside[-1] == "1" and b"patroni.yml" in (folder / "cmdline").read_bytes()
            if begins and int(folder.name) != other_than and pod in (folder / "cgroup").read_text():
                return int(folder.name)
    return None


def test_an_instance_that_has_just_begun_hears_that_it_is_to_stop(kube: Kube, environment: Environment) -> None:
    """Python needs longer than this until it listens; and what a PID 1 doesn't listen to is lost to it."""
    if environment.local is None:
        pytest.skip("needs the node's own processes: only root on the node can signal a container's first process")
    kube.database("solo")
    kube.wait_ready("solo")
    uid = kube.get("Pod", "solo-0")["metadata"]["uid"]  # type: ignore[index]
    old = environment.local.pid_of(kube.namespace, "solo-0", "postgres")
    os.kill(old, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (new := _first_process(uid, old)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert new is not None
    time.sleep(0.02)
    os.kill(new, signal.SIGTERM)

    def began_again(pod: dict[str, Any] | None) -> bool:
        return pod is not None and pod["status"]["containerStatuses"][0]["restartCount"] == 2

    kube.wait("Pod", "solo-0", began_again, "stopped and begun again", seconds=60)
    kube.wait_ready("solo")


def test_status_members_follow_patroni(kube: Kube) -> None:
    _make(kube, "Off")
    members = kube.get(KIND, "ha")["status"]["instances"]["members"]  # type: ignore[index]
    listed = json.loads(kube.kubectl("exec", "ha-0", "-c", "postgres", "--", "patronictl", "list", "-f", "json"))
    assert {(item["name"], item["role"]) for item in members} == {
        (item["Member"], "primary" if item["Role"] == "Leader" else "replica") for item in listed
    }


@pytest.mark.alone
def test_lost_node_loses_nothing(kube: Kube, environment: Environment) -> None:
    if environment.local is None:
        pytest.skip("cuts the power of a node, which only the local cluster can")
    _make(kube)
    old = kube.primary("ha")
    members = kube.get(KIND, "ha")["status"]["instances"]["members"]  # type: ignore[index]
    nodes = {member["name"]: member["node"] for member in members}
    assert len(set(nodes.values())) == 3
    elsewhere = next(node for pod, node in nodes.items() if pod != old)
    writer = Writer(kube, "ha", seconds=50, node=elsewhere)
    lost = environment.local.node(nodes[old])
    lost.stop()
    try:
        new = _wait_other_primary(kube, old)
        account = writer.settle()
        print(f"lost node: gap {account.gap} s, {account.acknowledged} rows acknowledged, {account.lost} lost")
        assert account.lost == 0
        assert kube.primary("ha") == new
        assert condition_of(kube.get(KIND, "ha"), "Ready")["status"] == "False"
    finally:
        lost.start()
    kube.wait_ready("ha", seconds=300)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (4, 3)])
def test_scaling_down_synchronous(kube: Kube, before: int, after: int) -> None:
    """The primary is on the highest ordinal, and Patroni promotes none but the synchronous replica."""
    kube.database("ha", instances=before, postgresql={"synchronous": "Required"})
    kube.wait_ready("ha")
    last = f"ha-{before - 1}"
    while (primary := kube.primary("ha")) != last:
        leads = json.loads(kube.kubectl("exec", primary, "-c", "postgres", "--", "patronictl", "list", "-f", "json"))
        standby = next(item["Member"] for item in leads if item["Role"] in {"Sync Standby", "Quorum Standby"})
        if standby != last:
            # While the others are made again, Patroni has only the last to name.
            others = {f"ha-{number}" for number in range(before)} - {primary, last}
            kube.kubectl("delete", "pod", *sorted(others), "--wait=true")
            kube.wait_ready("ha")
            continue
        kube.kubectl(
            "exec", primary, "-c", "postgres", "--", "patronictl", "switchover", "--candidate", last, "--force"
        )
        _wait_other_primary(kube, primary)
        kube.wait_ready("ha")
    kube.patch("ha", {"instances": after})
    ready = kube.wait_ready("ha", seconds=180)
    assert ready["status"]["instances"]["summary"] == f"{after}/{after}"
    assert kube.primary("ha") != last
    kube.wait_event("ha", "SwitchingOver")
    assert "PatroniRefused" not in kube.reasons("ha")


@pytest.mark.alone
def test_an_api_server_that_is_away_demotes_nobody(kube: Kube, environment: Environment) -> None:
    """Patroni's failsafe mode: a primary whose members all answer goes on without its store.

    Once the API server is back Patroni may restart the primary in its place: its own requests, which waited there, make
    it lose the lock to itself. That is after the time that is looked at here; nobody else must lead even then.
    """
    if environment.local is None:
        pytest.skip("freezes the API server, which only the local cluster can")
    # Until they have renewed their leases, all nodes look lost to the controller manager once the API server is back.
    _make(kube, scheduling={"tolerations": TOLERATIONS})
    primary = kube.primary("ha")
    writer = Writer(kube, "ha", seconds=55)
    frozen = environment.local.process("kube-apiserver")
    os.kill(frozen, signal.SIGSTOP)
    try:
        time.sleep(60)
    finally:
        os.kill(frozen, signal.SIGCONT)
    account = writer.settle()
    print(f"API server away for 60 s: gap {account.gap} s, {account.lost} lost of {account.acknowledged}")
    assert account.lost == 0
    # Nobody was demoted: that is within 30 s (ttl and retry_timeout), and lasts until the API server is back.
    assert account.gap < 20
    ready = kube.wait_ready("ha", seconds=180)
    assert ready["status"]["instances"]["primary"] == primary
    assert "PrimaryChanged" not in kube.reasons("ha")
