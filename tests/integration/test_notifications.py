"""Warnings to a webhook, over a real socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from medianest_operator.observability.notifications import TRIES, Message, NotSent, send

WARNING = Message("media", "nest", "MediaNestDatabase", "VerificationFailed", "table users holds 3 rows, expected 4")
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

    await send(await serve(take), WARNING)
    (told,) = got
    assert told["text"] == ("MediaNestDatabase media/nest: VerificationFailed: table users holds 3 rows, expected 4")
    assert (told["namespace"], told["name"], told["reason"]) == ("media", "nest", "VerificationFailed")


async def test_receiver_that_is_busy_is_tried_again(serve: Serve) -> None:
    answers = iter([503, 429, 204])

    async def take(request: web.Request) -> web.Response:
        return web.Response(status=next(answers))

    await send(await serve(take), WARNING, pause=0.001)
    assert next(answers, None) is None


@pytest.mark.parametrize(("status", "calls"), [(404, 1), (500, TRIES)])
async def test_refusal_is_told_without_the_url(serve: Serve, status: int, calls: int) -> None:
    seen = 0

    async def take(request: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        return web.Response(status=status)

    with pytest.raises(NotSent, match=f"it answered {status}") as caught:
        await send(await serve(take), WARNING, pause=0.001)
    assert "s3cret" not in str(caught.value)
    assert seen == calls


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/hook/s3cret", "ftp://example.org/s3cret", "http://[s3cret"])
async def test_what_can_not_be_reached_is_told_without_the_url(url: str) -> None:
    with pytest.raises(NotSent) as caught:
        await send(url, WARNING, pause=0.001)
    assert "s3cret" not in str(caught.value)
