"""A status holds only what the API server can store, whatever the journal and a Job's pod say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from integration.loops import NAMESPACE, Arena, arena
from integration.serving import serving
from medianest_operator import naming
from medianest_operator.kubernetes.kinds import JOB, POD

_LARGEST = 2**63 - 1
"""Kubernetes API conventions: integers are int64, and neither NaN nor infinities are JSON."""


def numbers(value: Any) -> Iterator[float]:
    match value:
        case dict():
            for item in value.values():
                yield from numbers(item)
        case list():
            for item in value:
                yield from numbers(item)
        case int() | float():
            yield value


def unstorable(status: dict[str, Any]) -> list[float]:
    return [number for number in numbers(status) if not abs(number) <= _LARGEST]


async def test_a_journal_with_a_number_that_no_integer_holds() -> None:
    """The migrator can write it; jsonb takes numbers of 131072 digits."""
    async with serving() as made:
        with made.database.connect("medianest_migrator") as connection:
            connection.execute(
                "UPDATE medianest_operator.migration_runs"
                """ SET result = jsonb_set(result, '{applied}', '[{"name": "x", "milliseconds": 1e400}]')"""
            )
        for _ in range(2):
            made.arena.services.memory.forget(made.key)
            await made.arena.run(made.key)
        assert unstorable(made.arena.status(made.key)) == []


def end_backup(made: Arena, message: str) -> None:
    """A backup Job that is done, and what its pod left."""
    labels = naming.Names(NAMESPACE, "db").labels(naming.COMPONENT_BACKUP)
    end = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"}
    metadata = {"namespace": NAMESPACE, "name": "db-daily-1", "labels": labels | {naming.LABEL_TIER: "daily"}}
    job = made.server.put(JOB, {"metadata": metadata, "spec": {}, "status": {"conditions": [end]}})
    owner = {"kind": "Job", "name": "db-daily-1", "uid": job["metadata"]["uid"]}
    ended = {"exitCode": 0, "finishedAt": "2026-01-01T00:01:00Z", "message": message}
    made.server.put(
        POD,
        {
            "metadata": {"namespace": NAMESPACE, "name": "db-daily-1-x", "labels": labels, "ownerReferences": [owner]},
            "spec": {"containers": [{"name": "backup", "image": "x"}]},
            "status": {"containerStatuses": [{"name": "backup", "state": {"terminated": ended}}]},
        },
    )


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
async def test_a_termination_message_with_a_number_that_no_status_can_hold(number: str) -> None:
    async with arena() as made:
        key = made.make()
        await made.run(key)
        end_backup(made, f'{{"message": "done", "backup": "b1", "seconds": {number}}}')
        await made.run(key)
        await made.run(key)
        assert unstorable(made.status(key)) == []


@pytest.mark.parametrize(
    "message",
    [
        "[" * 2000 + "]" * 2000,
        json.dumps({"finishedAt": "9999-12-31T23:59:59Z"}),
        json.dumps({"finishedAt": "2026-01-01T00:01:00"}),
        json.dumps({"finishedAt": "soon"}),
        json.dumps({"verification": "no"}),
        json.dumps({"catalog": {"volume": {"lastVerified": {"at": 1}}}}),
        json.dumps(
            {"catalog": {"volume": {"newest": [["20260101T000000Z-daily-aaaa", 1, True, 10**12], "and 7 more"]}}}
        ),
        json.dumps({"catalog": {"volume": {"newest": [["20269901T000000Z-odd-aaaa", 1, True, 1], [1], 7]}}}),
        json.dumps({"catalog": {"volume": {"tiers": {"daily": {"last": "9999-12-31T23:59:59Z"}}}}}),
        '{"bytes": 1' + "0" * 400 + "}",
    ],
    ids=["deep", "last-year", "no-zone", "no-date", "verification", "verified", "later", "no-id", "tiers", "bytes"],
)
async def test_a_strange_termination_message_is_no_bug_of_the_operator(message: str) -> None:
    """It ends in a sentence about the backup, not in InternalError of the whole database."""
    async with arena() as made:
        key = made.make()
        await made.run(key)
        end_backup(made, message)
        await made.run(key)
        assert made.conditions(key)["Ready"][1] != "InternalError", made.message(key, "Ready")
