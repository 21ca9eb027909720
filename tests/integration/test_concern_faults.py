"""Whatever a concern raises ends in a status that says so within one run, and stops no other concern."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Iterator

import aiohttp
import psycopg
import pydantic
import pytest

from integration.loops import arena
from medianest_operator.api.conditions import Reason, Severity
from medianest_operator.errors import Permanent, ReconcileError, Transient
from medianest_operator.kubernetes.client import ApiError, Conflict
from medianest_operator.kubernetes.kinds import DATABASE
from medianest_operator.postgres.sessions import Unreachable
from medianest_operator.reconcile.concern import Concern, Needs, Outcome
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.order import ORDER


def _of_psycopg() -> Iterator[type[psycopg.Error]]:
    """The tree of psycopg's errors: each class of DB-API 2.0, and each SQLSTATE that PostgreSQL knows."""
    found = {psycopg.Error}
    waiting = [psycopg.Error]
    while waiting:
        for child in waiting.pop().__subclasses__():
            if child not in found and child.__module__.startswith("psycopg"):
                found.add(child)
                waiting.append(child)
    yield from sorted(found, key=lambda item: item.__qualname__)


def _invalid() -> pydantic.ValidationError:
    try:
        pydantic.TypeAdapter(int).validate_python("x")
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


BAD = [reason for reason in Reason if reason.severity > Severity.GOOD and reason is not Reason.DELETING]
# All of Python's own that need no argument, and what they say where it matters.
BUILT_IN = [
    kind()
    for kind in vars(builtins).values()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, (UnicodeError, BaseExceptionGroup))
]
OTHERS: list[Exception] = [
    *BUILT_IN, KeyError("lastRun"), OverflowError("Python int too large"), RuntimeError("x" * 5000),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), OSError(28, "No space left on device"),
    _invalid(), ExceptionGroup("several", [ValueError("a")]),
    ApiError(429, "TooManyRequests", "slow down", 1.0), ApiError(500, "", "etcd"), ApiError(503, "", "away"),
    ApiError(403, "Forbidden", "no"), ApiError(422, "Invalid", "no"), Conflict(409, "Conflict", "changed"),
    aiohttp.ClientConnectionError("cut"), aiohttp.ServerDisconnectedError(), TimeoutError(), ConnectionResetError(),
    Unreachable("db-0: connection refused"),
    *(Transient(reason, "a reason of its own") for reason in BAD),
    *(Permanent(reason, "a reason of its own") for reason in BAD),
]  # fmt: skip
TREE = [kind("the server's words") for kind in _of_psycopg()]
# One for each class of DB-API 2.0, and what isn't PostgreSQL's; the whole tree where the schema is read.
FEW: list[Exception] = [error for error in TREE if error.sqlstate is None] + OTHERS
ALL: list[Exception] = TREE + OTHERS


ALONE = {
    "certificates": {"Secret"},
    "parameters": {"StatefulSet"},
    "surroundings": {"Service", "RoleBinding", "ConfigMap"},
    "instances": {"StatefulSet"},
    "backups": {"CronJob", "PersistentVolumeClaim"},
}
"""What is missing without a concern, since nobody else makes it."""


class Raising:
    """A concern that raises what the test wants."""

    def __init__(self, concern: Concern) -> None:
        self.error: Exception = RuntimeError()
        self.concern = dataclasses.replace(concern, act=self._act, observe=self._act, needs=Needs.NOTHING)

    async def _act(self, run: Run) -> Outcome:
        raise self.error


@pytest.mark.parametrize("number", range(len(ORDER)), ids=[concern.name.replace(" ", "-") for concern in ORDER])
async def test_whatever_is_raised_is_in_the_status_after_one_run(number: int) -> None:
    errors = ALL if ORDER[number].name == "schema" else FEW
    assert len(errors) > (300 if errors is ALL else 100)
    raising = Raising(ORDER[number])
    async with arena([*ORDER[:number], raising.concern, *ORDER[number + 1 :]]) as made:
        key = made.make(status={"observedGeneration": -1, "phase": "Pending"})
        await made.run(key)
        for error in errors:
            # As if nothing had ever been observed, so that what the status says comes from this run.
            made.server.put(DATABASE, made.server.get(DATABASE, *key) | {"status": {"observedGeneration": -1}})
            raising.error = error
            await made.run(key)
            status, what = made.status(key), f"{type(error).__name__} in {ORDER[number].name}"
            assert status["observedGeneration"] == 1, what
            conditions = made.conditions(key)
            assert conditions["Ready"][0] == "False", what
            # One of the three tells that something is wrong, or what is going on instead.
            assert {"Reconciling", "Stalled"} & conditions.keys() or conditions["Ready"][1] == "Hibernated", what
            if isinstance(error, ReconcileError) and error.reason.severity >= Severity.STUCK:
                assert error.reason in {reason for _, reason in conditions.values()}, what
            assert all(len(item["message"]) < 2000 for item in status["conditions"]), what
        # Every other concern did its work, whatever this one raised.
        kinds = {item["kind"] for item in made.server.objects.values()}
        wanted = {"Secret", "Service", "StatefulSet", "CronJob", "PersistentVolumeClaim", "RoleBinding", "ConfigMap"}
        assert wanted - kinds <= ALONE.get(ORDER[number].name, set())
