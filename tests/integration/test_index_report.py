"""What the controller says of a serving database's indexes: the condition, the status, the findings, the ConfigMap."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

from integration.postgres_server import wait_until
from integration.serving import Serving, serving
from medianest_operator.health.indexes import reading
from medianest_operator.health.indexes.catalog import Statistics
from medianest_operator.health.indexes.report import Entry, Report, bounded_json
from medianest_operator.kubernetes.kinds import CONFIG_MAP
from medianest_operator.reconcile.contents import indexes


def config_map(made: Serving) -> dict[str, Any]:
    found: dict[str, Any] = made.arena.server.get(CONFIG_MAP, made.key[0], f"{made.key[1]}-report")
    return found


def change(made: Serving, statements: str) -> None:
    """Run SQL, and wait until the server has counted what it wrote, which comes after the client's end."""
    with made.database.connect() as connection:
        pid = connection.info.backend_pid
        for statement in statements.split(";"):
            if statement.strip():
                connection.execute(statement.encode())
    with made.postgres.maintenance.connect() as watcher:
        wait_until(watcher, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)


def stored(made: Serving) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(config_map(made)["data"]["indexes.json"])
    return report


async def test_status_condition_findings_and_report_of_superfluous_indexes() -> None:
    async with serving() as made:
        assert made.arena.conditions(made.key)["IndexesHealthy"] == ("True", "IndexesHealthy")
        assert made.arena.status(made.key)["indexes"] == {
            "total": 33,
            "critical": "6/6",
            "expected": "33/33",
            "foreignKeysWithoutIndex": ["accounts_user_id_fkey", "service_config_updated_by_fkey"],
        }
        assert config_map(made)["metadata"]["ownerReferences"][0]["name"] == made.key[1]
        change(
            made,
            "".join(f"CREATE INDEX twin_{number:02} ON users (email);" for number in range(13))
            + "CREATE INDEX narrow ON media_requests (user_id)",
        )
        await made.arena.run(made.key)
        status = made.arena.status(made.key)
        assert status["indexes"]["duplicate"] == [*(f"twin_{number:02}" for number in range(10)), "and 3 more"]
        assert status["indexes"]["redundant"] == ["narrow"]
        assert made.arena.conditions(made.key)["IndexesHealthy"] == ("True", "IndexesDuplicate")
        assert made.arena.conditions(made.key)["Ready"] == ("True", "Ready")
        reasons = {item["reason"] for item in status["findings"]}
        assert "IndexesDuplicate" in reasons
        assert all(item["level"] == "Hint" for item in status["findings"])
        report = stored(made)
        assert len(report["duplicate"]) == 13
        for entry in (*report["duplicate"], *report["redundant"]):
            change(made, entry["fix"])
        await made.arena.run(made.key)
        assert "duplicate" not in made.arena.status(made.key)["indexes"]
        assert stored(made)["duplicate"] == []


async def test_invalid_index_makes_the_condition_false_at_once_and_its_statement_ends_it() -> None:
    async with serving() as made:
        change(
            made,
            "CREATE INDEX half ON users (image);"
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'half'::regclass",
        )
        await made.arena.run(made.key)
        assert made.arena.conditions(made.key)["IndexesHealthy"] == ("False", "IndexesInvalid")
        [finding] = [item for item in made.arena.status(made.key)["findings"] if item["reason"] == "IndexesInvalid"]
        change(made, finding["fix"])
        await made.arena.run(made.key)
        assert made.arena.conditions(made.key)["IndexesHealthy"] == ("True", "IndexesHealthy")


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets so many days pass for the operator; the server's statistics are read as that much older."""
    passed = 0
    read = reading.read_statistics

    async def later(connection: AsyncConnection[Any]) -> Statistics:
        found = await read(connection)
        return replace(found, now=found.now + timedelta(days=passed))

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(UTC) + timedelta(days=passed)

    monkeypatch.setattr(reading, "read_statistics", later)
    monkeypatch.setattr(indexes, "datetime", Clock)

    def skip(count: int) -> None:
        nonlocal passed
        passed += count

    return skip


async def test_unused_index_is_called_so_after_two_weeks_and_nothing_is_written_until_then(
    days: Callable[[int], None],
) -> None:
    async with serving() as made:
        change(
            made,
            "INSERT INTO users (id, email) VALUES ('ann', 'ann');"
            "INSERT INTO error_logs (id, user_id, correlation_id, error_code, error_message, request_path,"
            " request_method) SELECT i, 'ann', md5(i::text), 'x', 'x', '/', 'GET' FROM generate_series(1, 30000) i;"
            "ANALYZE error_logs;"
            "CREATE INDEX extra ON error_logs (error_code, correlation_id)",
        )
        await again(made)
        version = config_map(made)["metadata"]["resourceVersion"]
        days(13)
        await again(made)
        assert "unused" not in made.arena.status(made.key)["indexes"]
        assert config_map(made)["metadata"]["resourceVersion"] == version, "nothing in the report ticks"
        days(1)
        await again(made)
        assert made.arena.status(made.key)["indexes"]["unused"] == ["extra"]
        assert made.arena.conditions(made.key)["IndexesHealthy"] == ("True", "IndexesUnused")
        # What somebody writes into the operator's memory makes it begin again, and nothing worse.
        spoiled = config_map(made)
        made.arena.server.put(CONFIG_MAP, spoiled | {"data": {"indexes-seen.json": "[", "indexes.json": "x"}})
        await again(made)
        assert "unused" not in made.arena.status(made.key)["indexes"]
        assert stored(made)["total"] == 34


async def again(made: Serving) -> None:
    """A run that reads everything again, as five minutes later."""
    made.arena.services.memory.drop(made.key, "indexes")
    made.arena.services.memory.drop(made.key, "report of indexes")
    await made.arena.run(made.key)


def test_a_report_that_is_too_long_says_what_it_left_out() -> None:
    entries = tuple(
        Entry(name=f"index_{number}", table="t", evidence="x" * 100, fix="y" * 100) for number in range(5000)
    )
    report = Report(
        total=1, total_with_history=1, critical=6, critical_present=6, duplicate=entries, missing=entries[:9]
    )
    text = bounded_json(report)
    assert len(text.encode()) < 256 << 10
    found = json.loads(text)
    assert len(found["duplicate"]) + found["left_out"]["duplicate"] == 5000
    assert len(found["missing"]) == 9
