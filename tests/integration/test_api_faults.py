"""An API server in trouble is not a database in trouble.

While a database serves, each request that a run makes fails in turn, in every way in which an API server fails.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from apiserver import Call, Fault
from integration.serving import Serving, serving
from medianest_operator.kubernetes.kinds import CHILDREN, DATABASE, EVENT, POD, SECRET
from soaking import rounds

FAULTS = {
    "429": Fault(429, "too many requests", "TooManyRequests", {"Retry-After": "0"}),
    "500": Fault(500, "etcdserver: request timed out"),
    "503": Fault(503, "apiserver not ready", "ServiceUnavailable"),
    "403": Fault(403, "forbidden: RBAC", "Forbidden"),
    "409": Fault(409, "the object has been modified", "Conflict"),
    "422": Fault(422, "spec: Invalid value", "Invalid"),
    "webhook": Fault(400, 'admission webhook "policy.example" denied the request: no', "BadRequest"),
    "webhook-away": Fault(500, 'failed calling webhook "policy.example": connection refused', "InternalError"),
    "silence": Fault(silent=True),
    "cut": Fault(cut=True),
}
REFUSALS = {"403", "422", "webhook"}
"""What the API server says of the object, not of itself: for a person to change."""
PASSING = ["429", "500", "503", "webhook-away", "cut"]
"""What says that it can't answer now: the operator makes no difference between these."""
WAYS = [[kind] for kind in FAULTS] if rounds(0, 1) else [PASSING, *([kind] for kind in FAULTS if kind not in PASSING)]
"""Each request fails in the ways of one list in turn; in a soak in every way."""


@pytest.fixture
async def database() -> AsyncIterator[Serving]:
    async with serving(patience=0.5) as made:
        yield made


def everything_is_asked_again(made: Serving) -> None:
    """As if the operator had just begun, and somebody had deleted all that may be made again."""
    arena = made.arena
    for kind in CHILDREN:
        if kind in {POD, SECRET}:
            continue
        for item in list(arena.server.all(kind)):
            if item["metadata"]["labels"].get("app.kubernetes.io/component") != "migration":
                del arena.server.objects[(kind.plural, made.key[0], item["metadata"]["name"])]
    for item in list(arena.server.all(SECRET)):
        if item["metadata"]["name"] in {"db-patroni-tls", "db-app"}:
            del arena.server.objects[(SECRET.plural, made.key[0], item["metadata"]["name"])]
    arena.services.memory.forget(made.key)
    arena.existing.forget()


async def requests_of_a_run(made: Serving) -> list[Call]:
    everything_is_asked_again(made)
    made.arena.server.calls.clear()
    await made.arena.run(made.key)
    return list(dict.fromkeys(made.arena.server.calls))


def one(failing: Call, fault: Fault) -> Callable[[Call], Fault | None]:
    return lambda call: fault if call == failing else None


@pytest.mark.parametrize("kinds", WAYS, ids=" ".join)
async def test_a_serving_database_stays_available_whatever_request_fails(kinds: list[str], database: Serving) -> None:
    arena, key = database.arena, database.key
    calls = await requests_of_a_run(database)
    assert len(calls) > 20
    await arena.run(key)
    before = arena.status(key)
    if kinds == ["silence"]:
        # Each costs its timeout: one of each sort is enough.
        calls = list({(call.method, call.kind): call for call in calls}.values())
    for failing, kind in zip(calls, itertools.cycle(kinds), strict=False):
        everything_is_asked_again(database)
        for event in list(arena.events()):
            del arena.server.objects[(EVENT.plural, key[0], event["metadata"]["name"])]
        arena.server.fault = one(failing, FAULTS[kind])
        for _ in range(3):
            await arena.run(key)
            conditions = arena.conditions(key)
            assert conditions["Available"] == ("True", "PrimaryServing"), (str(failing), arena.status(key))
            for other in ("SchemaUpToDate", "IndexesHealthy"):
                assert conditions[other][0] == "True", (str(failing), other)
            if kind not in REFUSALS:
                assert conditions["Ready"][0] == "True", (str(failing), arena.message(key, "Ready"))
                assert arena.events("Warning") == [], (str(failing), arena.events("Warning"))
            else:
                words = {event["reason"] for event in arena.events("Warning")}
                assert words <= {"ObjectRefused", "VolumeCannotGrow", "BackupMisconfigured"}, (str(failing), words)
        # It ends when the API's trouble does.
        arena.server.fault = lambda _: None
        for _ in range(2):
            arena.services.memory.forget(key)
            await arena.run(key)
        assert arena.conditions(key) == {
            item["type"]: (item["status"], item["reason"]) for item in before["conditions"]
        }
        assert "Not observed since" not in str(arena.status(key)), str(failing)
    assert arena.server.get(DATABASE, *key)["spec"] == {}
