"""A statement of the probe that ran into its time limit says nothing of the writes of others."""

from __future__ import annotations

from integration.serving import serving


async def test_a_probe_that_waits_for_a_lock_is_no_outage() -> None:
    async with serving() as made:
        with made.database.connect() as holding, made.database.connect("medianest_migrator") as writing:
            with holding.transaction():
                holding.execute("LOCK TABLE pg_catalog.pg_settings IN ACCESS EXCLUSIVE MODE")
                await made.arena.run(made.key)
                writing.execute("CREATE TABLE public.written AS SELECT 1 AS one")
            told = made.arena.conditions(made.key)["Available"], made.arena.message(made.key, "Available")
    assert told[0] == ("True", "PrimaryServing"), told[1]
