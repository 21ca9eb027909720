"""The loop as a whole: an API server in trouble is left alone, one namespace harms no other, one leader acts."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from apiserver import ApiServer, Call, Fault
from integration.loops import IMAGE, arena
from medianest_operator.controller.lease import Lease
from medianest_operator.controller.loop import Loop
from medianest_operator.kubernetes.client import KubernetesClient
from medianest_operator.kubernetes.kinds import (
    BACKUP,
    CRON_JOB,
    DATABASE,
    LEASE,
    OPERATION,
    POD,
    ROLE_BINDING,
    STATEFUL_SET,
)
from medianest_operator.settings import Settings
from soaking import rounds

ASLEEP = {"hibernate": True}


async def until(true: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < deadline, f"never: {what}"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(server: ApiServer, *namespaces: str, workers: int = 16) -> AsyncIterator[Loop]:
    """The loop on this server; databases are handed to it as kopf would."""
    async with server.client() as client:
        loop = Loop(Settings(postgres_image=IMAGE, namespaces=namespaces, workers=workers), client)
        await loop.start()
        try:
            yield loop
        finally:
            await loop.stop()


def make(server: ApiServer, namespace: str, name: str, spec: dict[str, Any] | None = None) -> None:
    status = {"observedGeneration": -1, "phase": "Pending"}
    server.put(DATABASE, {"metadata": {"namespace": namespace, "name": name}, "spec": spec or ASLEEP, "status": status})


def reported(server: ApiServer, namespace: str, name: str) -> bool:
    return bool(server.get(DATABASE, namespace, name).get("status", {}).get("conditions"))


def status_writes(server: ApiServer) -> Counter[str]:
    return Counter(str(call.name) for call in server.calls if call.subresource == "status")


@pytest.mark.parametrize("retry_after", [None, "2"])
async def test_an_overloaded_api_server_is_left_alone(retry_after: str | None) -> None:
    """Every write but that of a status is refused for a while, with many databases to make."""
    count, minute = rounds(50, 1000), rounds(10, 60)
    async with ApiServer() as server, running(server) as loop:
        headers = {"Retry-After": retry_after} if retry_after else {}
        server.fault = lambda call: Fault(503, headers=headers) if call.is_write and not call.subresource else None
        for number in range(count):
            make(server, "media", f"db{number}")
            loop.observe(DATABASE, "ADDED", server.get(DATABASE, "media", f"db{number}"))
        await until(
            lambda: all(reported(server, "media", f"db{number}") for number in range(count)), "all reported", 300
        )
        server.calls.clear()
        await asyncio.sleep(minute)
        assert max(status_writes(server).values(), default=0) <= 1
        assert not [call for call in server.calls if call.kind == "events"]
        # Backed off: far fewer than the sixteen workers could send.
        assert len(server.calls) < count * 10
        server.fault = lambda _: None
        await until(lambda: len(list(server.all(STATEFUL_SET))) == count, "all made", 600)


async def test_a_namespace_that_may_not_be_read_harms_no_other() -> None:
    async with ApiServer() as server:
        server.fault = lambda call: Fault(403, "forbidden") if call.namespace == "gone" else None
        make(server, "media", "db")
        make(server, "gone", "db")
        async with running(server, "gone", "media") as loop:
            for namespace in ("gone", "media"):
                loop.observe(DATABASE, "ADDED", server.get(DATABASE, namespace, "db"))
            await until(lambda: reported(server, "media", "db"), "the readable namespace's database is reported")
            assert not reported(server, "gone", "db")
            assert loop.is_alive()
            # It comes back by itself.
            server.fault = lambda _: None
            await until(lambda: reported(server, "gone", "db"), "and the other one's once it may be read", 60)


@pytest.mark.parametrize("annotation", ["[]", "{", "null", '{"role": 1}', "[" * 5000])
async def test_a_foreign_pod_with_our_labels_stops_nobody(annotation: str) -> None:
    labels = {"app.kubernetes.io/managed-by": "medianest-operator", "medianest.io/database": "db"}
    async with ApiServer() as server:
        odd = {"namespace": "media", "name": "stranger", "labels": labels, "annotations": {"status": annotation}}
        server.put(POD, {"metadata": odd, "spec": {}})
        labels = labels | {"app.kubernetes.io/component": "postgres"}
        server.put(POD, {"metadata": odd | {"name": "db-x", "labels": labels}, "spec": {}})
        make(server, "media", "db", {})
        make(server, "media", "other", {})
        async with running(server) as loop:
            for name in ("db", "other"):
                loop.observe(DATABASE, "ADDED", server.get(DATABASE, "media", name))
            await until(lambda: reported(server, "media", "db") and reported(server, "media", "other"), "both reported")
            assert {item["metadata"]["name"] for item in server.all(STATEFUL_SET)} == {"db", "other"}
            assert loop.is_alive()


async def test_nothing_is_made_before_the_namespace_is_known() -> None:
    """A Secret that isn't in the cache yet must not be taken for absent: its CA is trusted by clients."""
    async with ApiServer() as server:
        server.fault = lambda call: Fault(503) if call.kind == "secrets" and call.method == "GET" else None
        make(server, "media", "db")
        async with running(server) as loop:
            loop.observe(DATABASE, "ADDED", server.get(DATABASE, "media", "db"))
            await asyncio.sleep(3)
            assert not [call for call in server.calls if call.is_write]
            server.fault = lambda _: None
            await until(lambda: reported(server, "media", "db"), "reported", 60)


async def test_a_cut_watch_loses_nothing() -> None:
    async with ApiServer() as server:
        make(server, "media", "db")
        async with running(server) as loop:
            loop.observe(DATABASE, "ADDED", server.get(DATABASE, "media", "db"))
            await until(lambda: bool(list(server.all(STATEFUL_SET))), "made")
            server.calls.clear()
            for _ in range(5):
                server.end_watches()
                labels = {"app.kubernetes.io/managed-by": "medianest-operator", "medianest.io/database": "db"}
                server.put(POD, {"metadata": {"namespace": "media", "name": "db-0", "labels": labels}, "spec": {}})
                await until(lambda: loop.cache.get(POD, "media", "db-0") is not None, "the pod is known")
                gone = server.objects.pop((POD.plural, "media", "db-0"))
                server.publish_deletion(POD, gone)
                await until(lambda: loop.cache.get(POD, "media", "db-0") is None, "the pod is gone")
            assert [item["metadata"]["name"] for item in loop.cache.all(STATEFUL_SET)] == ["db"]
            assert not [call for call in server.calls if call.method == "DELETE"], "what was cut is not gone"


@pytest.mark.parametrize("answer", [503, 404])
async def test_backups_are_not_rejected_before_databases_are_known(answer: int) -> None:
    """Also where nobody has defined the database's own kind, without which the operator is of no use."""
    async with ApiServer() as server:
        server.fault = lambda call: Fault(answer) if call.kind == DATABASE.plural and call.method == "GET" else None
        backup = {"metadata": {"namespace": "media", "name": "b"}, "spec": {"database": "db"}}
        server.put(BACKUP, backup)
        async with running(server) as loop:
            loop.observe(BACKUP, "ADDED", server.get(BACKUP, "media", "b"))
            await asyncio.sleep(2)
            assert "status" not in server.get(BACKUP, "media", "b")


async def test_a_kind_that_nobody_has_defined_stops_no_database() -> None:
    """Helm brings no new definition with an upgrade. Once it is there it is watched without a restart."""
    async with ApiServer() as server:
        server.fault = lambda call: Fault(404) if call.kind == OPERATION.plural else None
        make(server, "media", "db")
        async with running(server) as loop:
            defined = loop.defined
            await until(lambda: reported(server, "media", "db"), "reported")
            assert not defined.is_set()
            server.put(OPERATION, {"metadata": {"namespace": "media", "name": "o"}, "spec": {"database": "db"}})
            server.fault = lambda _: None
            await asyncio.wait_for(defined.wait(), 30)
            await until(lambda: "status" in server.get(OPERATION, "media", "o"), "seen")


# The Lease.


async def _held(server: ApiServer, client: KubernetesClient, *, stood_by: bool) -> tuple[Lease, asyncio.Task[None]]:
    lease = Lease(client, "system", "me")
    if stood_by:
        other = Lease(client, "system", "other")
        await other.acquire()
        waiting = asyncio.create_task(lease.acquire())
        await asyncio.sleep(2.5)
        await other.release()
        await asyncio.wait_for(waiting, 20)
    else:
        await lease.acquire()
    return lease, asyncio.create_task(lease.hold())


@pytest.mark.parametrize("stood_by", [False, True])
@pytest.mark.parametrize("fault", [Fault(500), Fault(409), Fault(429, headers={"Retry-After": "9"}), Fault(cut=True)])
async def test_a_leader_survives_a_failed_renewal(stood_by: bool, fault: Fault) -> None:
    async with ApiServer() as server, server.client() as client:
        _, holding = await _held(server, client, stood_by=stood_by)
        failed = 0

        def once(call: Call) -> Fault | None:
            nonlocal failed
            if call.kind != "leases" or failed >= 2:
                return None
            failed += 1
            return fault

        server.fault = once
        await until(lambda: failed >= 2, "two renewals failed")
        await asyncio.sleep(3)
        assert not holding.done()
        holding.cancel()


async def test_a_renewal_is_one_request() -> None:
    async with ApiServer() as server, server.client() as client:
        _, holding = await _held(server, client, stood_by=False)
        before = len(server.calls)
        await until(lambda: len(server.calls) >= before + 2, "two renewals")
        assert {call.method for call in server.calls[before:]} == {"PUT"}
        holding.cancel()


async def test_a_leader_leaves_when_another_holds_the_lease() -> None:
    async with ApiServer() as server, server.client() as client:
        _, holding = await _held(server, client, stood_by=False)
        live = server.get(LEASE, "system", "medianest-operator")
        server.put(LEASE, live | {"spec": live["spec"] | {"holderIdentity": "other"}})
        await asyncio.wait_for(holding, 10)


async def test_a_leader_whose_lease_was_taken_knows_with_its_next_request() -> None:
    async with ApiServer() as server, server.client() as client:
        lease, holding = await _held(server, client, stood_by=False)
        assert lease.is_held
        live = server.get(LEASE, "system", "medianest-operator")
        server.put(LEASE, live | {"spec": live["spec"] | {"holderIdentity": "other"}})
        before = len(server.calls)
        await asyncio.wait_for(holding, 10)
        assert not lease.is_held
        assert [call.method for call in server.calls[before:]] == ["PUT", "GET"]


async def test_whoever_may_not_act_writes_nothing() -> None:
    async with ApiServer() as server, server.client() as client:
        client.may_write = lambda: False
        with pytest.raises(ConnectionError, match="Lease"):
            await client.create(POD, {"metadata": {"namespace": "media", "name": "p"}})
        assert await client.get(POD, "media", "p") is None
        lease = Lease(client, "system", "me")
        await lease.acquire()
        assert lease.is_held


@pytest.mark.parametrize(
    "spec",
    [
        {"holderIdentity": "ghost", "leaseDurationSeconds": 3600, "leaseTransitions": 1},
        {"holderIdentity": "", "leaseDurationSeconds": 15, "leaseTransitions": 2**31 - 1},
    ],
)
async def test_an_edited_lease_does_not_keep_everybody_from_leading(spec: dict[str, Any]) -> None:
    async with ApiServer() as server, server.client() as client:
        server.put(LEASE, {"metadata": {"namespace": "system", "name": "medianest-operator"}, "spec": spec})
        await asyncio.wait_for(Lease(client, "system", "me").acquire(), 25)
        live = server.get(LEASE, "system", "medianest-operator")["spec"]
        assert live["holderIdentity"] == "me"
        assert 0 <= live["leaseTransitions"] < 2**31


async def test_a_lease_that_nobody_gave_back_is_taken_after_its_leader_knows() -> None:
    async with ApiServer() as server, server.client() as client:
        first, holding = await _held(server, client, stood_by=False)
        waiting = asyncio.create_task(Lease(client, "system", "other").acquire())
        await asyncio.sleep(1)
        server.objects.pop((LEASE.plural, "system", "medianest-operator"))
        await asyncio.wait({waiting}, timeout=15)
        # Whichever came first has it, and the other one knows.
        assert first.is_held != waiting.done()
        assert holding.done() == waiting.done()
        holding.cancel()
        waiting.cancel()


async def test_a_leader_leaves_when_it_can_not_renew_in_time() -> None:
    async with ApiServer() as server, server.client() as client:
        _, holding = await _held(server, client, stood_by=True)
        server.fault = lambda _: Fault(500)
        await asyncio.wait_for(holding, 14)


def binding_of(release: str) -> dict[str, Any]:
    """What the chart makes in each namespace that a release watches alone."""
    subject = {"kind": "ServiceAccount", "name": "medianest-operator", "namespace": release}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "medianest-operator"}
    return {"metadata": {"namespace": "media", "name": "medianest-operator"}, "roleRef": role, "subjects": [subject]}


async def test_a_release_for_the_whole_cluster_leaves_the_namespaces_of_another_one() -> None:
    async with ApiServer() as server:
        server.put(ROLE_BINDING, binding_of("media-operators"))
        make(server, "media", "db")
        make(server, "music", "db")
        async with running(server) as loop:
            for namespace in ("media", "music"):
                loop.observe(DATABASE, "ADDED", server.get(DATABASE, namespace, "db"))
            await until(lambda: reported(server, "music", "db"), "the other namespace's database is reported")
            await until(lambda: not loop.queue.busy, "both were looked at")
            assert not [call for call in server.calls if call.is_write and call.namespace == "media"]


async def test_a_release_acts_in_the_namespaces_that_it_watches_alone() -> None:
    async with ApiServer() as server:
        server.put(ROLE_BINDING, binding_of("medianest-system"))
        make(server, "media", "db")
        async with running(server, "media") as loop:
            loop.observe(DATABASE, "ADDED", server.get(DATABASE, "media", "db"))
            await until(lambda: reported(server, "media", "db"), "reported")
            assert [item["metadata"]["name"] for item in server.all(STATEFUL_SET)] == ["db"]


async def test_a_database_that_was_made_asleep_gets_its_cron_jobs_when_it_wakes() -> None:
    async with arena() as made:
        key = made.make("db", ASLEEP)
        await made.run(key)
        assert list(made.server.all(STATEFUL_SET))
        assert not list(made.server.all(CRON_JOB))
        assert made.conditions(key)["Ready"] == ("False", "Hibernated")
        for asleep in (False, True):
            made.make("db", {"hibernate": asleep})
            await made.run(key)
            crons = list(made.server.all(CRON_JOB))
            assert [cron["spec"]["suspend"] for cron in crons] == [asleep] * 4


async def test_a_watch_that_falls_silent_is_given_up() -> None:
    """A connection whose other end is gone without a word: no packet tells of it."""
    async with ApiServer() as server, server.client() as client:
        _, version = await client.snapshot(DATABASE, "media")
        async with asyncio.timeout(90):
            assert [item async for item in client.watch(DATABASE, version, "media", seconds=300, silence=0.3)] == []
