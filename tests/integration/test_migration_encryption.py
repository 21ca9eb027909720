"""A run whose backup is encrypted: the rollback needs the private key, and is never begun without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyrage
import pytest

from integration.conftest import workbench
from integration.crashes import look
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.run.options import Workbench
from medianest_operator.migrations.run.run import MigrationRun
from medianest_operator.migrations.source import migrations_from_mapping
from medianest_operator.results.migration import MigrationResult

NEXT = "20260101000000_next.sql"
# Committed before it fails, so that only the backup leads back.
ONLY_BACKUP = "UPDATE users SET name = 'gone';\nCOMMIT;\nSELECT 1/0;\n"


@pytest.fixture
def key() -> pyrage.x25519.Identity:
    return pyrage.x25519.Identity.generate()


def run(database: Database, bench: Workbench, sql: str, **options: object) -> MigrationResult:
    source = (*bundled_migrations(), *migrations_from_mapping({NEXT: sql}))
    with database.connect("medianest_migrator") as connection:
        return MigrationRun(connection, source, replace(RunOptions(), **options), print, bench).run()  # type: ignore[arg-type]


def test_with_the_key_it_leads_back(people: Database, room: Path, key: pyrage.x25519.Identity) -> None:
    before = look(people)
    bench = replace(workbench(people, room), recipients=(str(key.to_public()),), identities=(str(key),))
    result = run(people, bench, ONLY_BACKUP, rehearse=Rehearse.NEVER)
    assert result.rollback is not None
    assert (result.rollback.strategy, result.rollback.verified) == ("Restore", True)
    assert look(people) == before
    stored = list((room / "backups").rglob("data.dump*"))
    assert [path.suffix for path in stored] == [".age"]
    assert stored[0].read_bytes().startswith(b"age-encryption.org/")


def test_without_the_key_it_is_not_begun(people: Database, room: Path, key: pyrage.x25519.Identity) -> None:
    before = look(people)
    bench = replace(workbench(people, room), recipients=(str(key.to_public()),))
    result = run(people, bench, ONLY_BACKUP)
    assert result.reason == "RollbackImpossible"
    assert "the private key isn't here" in result.message
    assert look(people) == before


def test_without_the_key_what_needs_no_backup_runs_unrehearsed(
    people: Database, room: Path, key: pyrage.x25519.Identity
) -> None:
    bench = replace(workbench(people, room), recipients=(str(key.to_public()),))
    result = run(people, bench, "ALTER TABLE users ADD COLUMN nickname text;\n")
    assert result.outcome == "Applied"
    assert result.rehearsal is None or "private key" in (result.rehearsal.note or "")
    assert list((room / "backups").rglob("data.dump.zst.age"))
