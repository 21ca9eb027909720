"""A reflector leaves an API server that can't serve it alone for longer and longer, whatever it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from apiserver import ApiServer, Call, Fault
from medianest_operator.kubernetes.cache import Cache
from medianest_operator.kubernetes.kinds import SECRET
from medianest_operator.kubernetes.reflector import Reflector

_EXPIRED = Fault(410, "The resourceVersion for the provided list is too old", "Expired")


async def calls_of(server: ApiServer, seconds: float) -> list[Call]:
    async with server.client(5) as client:
        following = asyncio.create_task(Reflector(client, Cache(), SECRET, lambda _: None).run())
        await asyncio.sleep(seconds)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return [call for call in server.calls if call.kind == SECRET.plural]


def fails(wanted: Callable[[Call], bool], fault: Fault) -> Callable[[Call], Fault | None]:
    return lambda call: fault if call.kind == SECRET.plural and wanted(call) else None


async def test_a_list_that_is_answered_with_410_is_not_asked_for_without_a_pause() -> None:
    async with ApiServer() as server:
        server.fault = fails(lambda call: not call.is_watch, _EXPIRED)
        calls = await calls_of(server, 2)
    assert len(calls) < 20, f"{len(calls)} lists in 2 s"


async def test_a_watch_that_is_answered_with_410_does_not_list_without_a_pause() -> None:
    async with ApiServer() as server:
        server.fault = fails(lambda call: call.is_watch, _EXPIRED)
        calls = await calls_of(server, 2)
    assert len(calls) < 20, f"{len(calls)} lists and watches in 2 s"


async def test_a_watch_that_ends_at_once_is_not_begun_again_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ended(request: web.Request, *_: Any) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    async with ApiServer() as server:
        monkeypatch.setattr(server, "_watch", ended)
        calls = await calls_of(server, 2)
    assert len(calls) < 20, f"{len(calls)} requests in 2 s"


async def test_the_pause_grows_where_lists_succeed_and_watches_fail() -> None:
    async with ApiServer() as server:
        server.fault = fails(lambda call: call.is_watch, Fault(403, "may list, may not watch", "Forbidden"))
        calls = await calls_of(server, 8)
    # 0.5, 1, 2 and 4 s.
    assert len([call for call in calls if not call.is_watch]) <= 6, f"{len(calls) // 2} whole lists in 8 s"
