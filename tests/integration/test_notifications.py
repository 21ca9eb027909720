"""Warnings to a webhook, over a real socket."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from integration.loops import NAMESPACE, Arena, arena
from medianest_operator.kubernetes.events import Recorder
from medianest_operator.kubernetes.kinds import DATABASE, SECRET
from medianest_operator.naming import KIND
from medianest_operator.observability.notifications import TRIES, Destinations, Message, NotSent, send
from medianest_operator.reconcile.notifications import Notifier

WARNING = Message("media", "nest", "MediaNestDatabase", "VerificationFailed", "table users holds 3 rows, expected 4")
HERE = Destinations([ip_network("127.0.0.0/8")])
Serve = Callable[[Callable[[web.Request], Awaitable[web.Response]]], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers: list[TestServer] = []

    async def begin(handler: Callable[[web.Request], Awaitable[web.Response]]) -> str:
        app = web.Application()
        app.router.add_post("/hook/s3cret", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("/hook/s3cret"))

    yield begin
    for server in servers:
        await server.close()


async def test_receiver_gets_a_text_and_its_parts(serve: Serve) -> None:
    got: list[dict[str, str]] = []

    async def take(request: web.Request) -> web.Response:
        got.append(json.loads(await request.text()))
        return web.Response()

    await send(await serve(take), [WARNING], HERE)
    (told,) = got
    assert told["text"] == ("MediaNestDatabase media/nest: VerificationFailed: table users holds 3 rows, expected 4")
    assert (told["namespace"], told["name"], told["reason"]) == ("media", "nest", "VerificationFailed")


async def test_receiver_that_is_busy_is_tried_again(serve: Serve) -> None:
    answers = iter([503, 429, 204])

    async def take(request: web.Request) -> web.Response:
        return web.Response(status=next(answers))

    await send(await serve(take), [WARNING], HERE, pause=0.001)
    assert next(answers, None) is None


@pytest.mark.parametrize(("status", "calls"), [(404, 1), (500, TRIES)])
async def test_refusal_is_told_without_the_url(serve: Serve, status: int, calls: int) -> None:
    seen = 0

    async def take(request: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        return web.Response(status=status)

    with pytest.raises(NotSent, match=f"it answered {status}") as caught:
        await send(await serve(take), [WARNING], HERE, pause=0.001)
    assert "s3cret" not in str(caught.value)
    assert seen == calls


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/hook/s3cret", "ftp://example.org/s3cret", "http://[s3cret"])
async def test_what_can_not_be_reached_is_told_without_the_url(url: str) -> None:
    with pytest.raises(NotSent) as caught:
        await send(url, [WARNING], HERE, pause=0.001)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.96.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b:1::1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2001:db8::1", "ff02::1", "localhost", "2130706433", "0x7f.1", "",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not Destinations().admits(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_addresses_are_admitted(address: str) -> None:
    assert Destinations().admits(address)


async def test_a_name_that_leads_inside_is_refused_and_nothing_arrives(serve: Serve) -> None:
    seen = []

    async def take(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response()

    url = await serve(take)
    with pytest.raises(NotSent, match="not a public one"):
        await send(url, [WARNING], Destinations(), pause=0.001)
    with pytest.raises(NotSent, match="not a public one"):
        await send(url.replace("127.0.0.1", "localhost"), [WARNING], Destinations(), pause=0.001)
    assert seen == []


async def test_the_address_that_was_admitted_is_the_one_that_is_connected_to(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that answers otherwise when it is asked again (DNS rebinding) leads nowhere else."""
    asked = 0

    async def take(request: web.Request) -> web.Response:
        return web.Response()

    url = (await serve(take)).replace("127.0.0.1", "rebinding.example")
    real = socket.getaddrinfo

    def answer(host: object, port: object, *more: object, **options: object) -> object:
        nonlocal asked
        if host != "rebinding.example":
            return real(host, port, *more, **options)  # type: ignore[arg-type]
        asked += 1
        return real("127.0.0.1" if asked == 1 else "127.0.0.2", port, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    await send(url, [WARNING], Destinations([ip_network("127.0.0.1/32")]), pause=0.001)
    assert asked == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_no_redirect_is_followed(serve: Serve, status: int) -> None:
    seen = []

    async def take(request: web.Request) -> web.Response:
        seen.append(request.method)
        return web.Response(status=status, headers={"Location": "/hook/s3cret"})

    with pytest.raises(NotSent):
        await send(await serve(take), [WARNING], HERE, pause=0.001)
    assert seen == ["POST"]


def _database(made: Arena, name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
    """One whose warnings go where Secret `hook` says."""
    wanted = [{"name": "chat", "urlSecret": {"name": "hook"}}]
    made.server.put(DATABASE, {"metadata": {"namespace": namespace, "name": name}, "spec": {"notifications": wanted}})
    return made.server.get(DATABASE, namespace, name)


def _hook(made: Arena, url: str) -> None:
    data = {"url": base64.b64encode(url.encode()).decode()}
    made.server.put(SECRET, {"metadata": {"namespace": NAMESPACE, "name": "hook"}, "data": data})


async def test_many_databases_that_fail_together_are_one_message(serve: Serve) -> None:
    got: list[dict[str, Any]] = []
    arrived = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        got.append(json.loads(await request.text()))
        arrived.set()
        return web.Response()

    async with arena() as made:
        _hook(made, await serve(take))
        notifier = Notifier(made.client, Recorder(made.client, "test"), [ip_network("127.0.0.0/8")], gathered_for=0.5)
        for number in range(30):
            database = _database(made, f"db{number}")
            notifier.warn(database, Message(NAMESPACE, f"db{number}", KIND, "NoPrimary", "There is no primary."))
        await asyncio.wait_for(arrived.wait(), 20)
        arrived.clear()
        notifier.warn(_database(made, "db0"), Message(NAMESPACE, "db0", KIND, "QuerySlow", "It is slow."))
        await asyncio.wait_for(arrived.wait(), 20)
        await notifier.close()
    together, alone = got
    assert together["text"].startswith("30 warnings of 30 objects: NoPrimary (30)\nMediaNestDatabase media/db")
    assert together["text"].endswith("\nand 20 more")
    assert {item["name"] for item in together["messages"]} == {f"db{number}" for number in range(30)}
    assert (alone["name"], alone["reason"]) == ("db0", "QuerySlow")


async def test_what_was_not_delivered_is_said_of_each_database(serve: Serve) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=404)

    async with arena() as made:
        _hook(made, await serve(refuse))
        notifier = Notifier(made.client, Recorder(made.client, "test"), [ip_network("127.0.0.0/8")], gathered_for=0.1)
        for name in ("one", "two"):
            notifier.warn(_database(made, name), Message(NAMESPACE, name, KIND, "NoPrimary", "There is no primary."))
        told: list[dict[str, Any]] = []
        for _ in range(400):
            told = [item for item in made.events() if item["reason"] == "NotificationFailed"]
            if len(told) == 2:
                break
            await asyncio.sleep(0.05)
        await notifier.close()
    assert {item["involvedObject"]["name"] for item in told} == {"one", "two"}
    assert all("s3cret" not in item["message"] for item in told)
