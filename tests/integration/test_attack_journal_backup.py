"""The path of a migration's backup comes out of the journal, which the migrator may write."""

from __future__ import annotations

import re

import pytest

from integration.serving import Serving, serving
from medianest_operator.kubernetes.kinds import BACKUP

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""Of an object (RFC 1123, as the API server has it)."""


async def with_backup(made: Serving, path: str) -> None:
    with made.database.connect("medianest_migrator") as connection:
        connection.execute(
            "UPDATE medianest_operator.migration_runs SET result = jsonb_set(result, '{backup}', to_jsonb(%s::text))",
            [path],
        )
    # Asked for meanwhile, by a person.
    made.arena.server.put(BACKUP, {"metadata": {"namespace": "media", "name": "mine"}, "spec": {"database": "db"}})
    for _ in range(2):
        made.arena.services.memory.forget(made.key)
        await made.arena.run(made.key)


@pytest.mark.parametrize("path", ["", "no-slash"])
async def test_a_path_without_folders_stops_neither_the_database_nor_its_backups(path: str) -> None:
    async with serving() as made:
        await with_backup(made, path)
        assert made.arena.conditions(made.key)["Ready"][1] != "InternalError", made.arena.message(made.key, "Ready")
        assert made.arena.server.get(BACKUP, "media", "mine")["status"]["phase"] == "Running"


@pytest.mark.parametrize("path", ["x/Not A Name!/y", "x/a?dryRun=All&b=#/y", f"x/{'a' * 300}/y"])
async def test_an_object_is_made_only_for_a_backups_id(path: str) -> None:
    async with serving() as made:
        await with_backup(made, path)
        made_for_it = {name for plural, _, name in made.arena.server.objects if plural == BACKUP.plural} - {"mine"}
        asked_for = {
            call.name for call in made.arena.server.calls if call.kind == BACKUP.plural and call.method == "PATCH"
        }
        assert all(_NAME.fullmatch(str(name)) for name in made_for_it | asked_for), made_for_it | asked_for
        assert made_for_it == set()
