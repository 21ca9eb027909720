"""What a probe notices at once, although most of what was found out before is only asked for again now and then."""

from __future__ import annotations

import pytest

from integration.serving import serving

RENAME = "UPDATE _prisma_migrations SET migration_name = '20990101000000_by_hand' WHERE migration_name LIKE '2025090%'"


@pytest.mark.parametrize(
    ("statement", "condition", "reason"),
    [
        ("ALTER TABLE users ADD COLUMN by_hand text", "SchemaUpToDate", "Drifted"),
        ("DROP INDEX users_email_key", "IndexesHealthy", "IndexesMissing"),
        (RENAME, "SchemaUpToDate", "Migrating"),
    ],
)
async def test_a_change_by_hand_is_in_the_status_after_the_next_probe(
    statement: str, condition: str, reason: str
) -> None:
    async with serving() as made:
        await made.arena.run(made.key)
        made.database.execute(statement)
        await made.arena.run(made.key)
        assert made.arena.conditions(made.key)[condition][1] == reason, made.arena.status(made.key)["conditions"]


async def test_a_quiet_database_costs_no_request() -> None:
    async with serving() as made:
        await made.arena.run(made.key)
        calls = len(made.arena.server.calls)
        for _ in range(5):
            await made.arena.run(made.key)
        assert made.arena.server.calls[calls:] == []
