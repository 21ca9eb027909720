"""Record what this version of the operator stores, for `tests/integration/test_backup_formats.py`.

    python tests/record_backups.py NAME [OPERATOR]

Takes a backup and lets a migration take one, of a database with objects of many kinds, and keeps both with what the
database held, told by `pg_dump` and by digests of its rows. Run it before a change of a backup's format or of the
catalog's questions: every version that was recorded stays restorable. OPERATOR is another checkout's source root.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from integration import backup_runs
from integration.backup_runs import WHOSE, Bench, add_backup_role, contents, definitions
from integration.postgres_server import running_server
from medianest_operator.migrations.bundled import bundled_migrations

FORMATS = Path(__file__).parent / "integration" / "data" / "backups"
FURNITURE = Path(__file__).parent / "integration" / "data" / "furniture.sql"
NEXT = "20270101000000_next"


def write(folder: Path, migration: str) -> None:
    """One migration as a file."""
    folder.mkdir(parents=True)
    (folder / "migration.sql").write_text(migration)


def migrate(bench: Bench, source: Path) -> None:
    """As the operator's Job does."""
    arguments = ("--source", str(source), "--rehearse", "Never", *bench.places, *WHOSE)
    ended = bench.start("migrate", *arguments, user="medianest_migrator").end()
    assert ended.code == 0, ended.text


def main(name: str, operator: str | None = None) -> None:
    """Record one version."""
    if operator is not None:
        backup_runs.OPERATOR = Path(operator).resolve()
    room = Path(tempfile.mkdtemp(prefix="record-"))
    room.chmod(0o755)
    try:
        source_folder = room / "source"
        for migration in bundled_migrations():
            write(source_folder / migration.name, migration.sql)
        with running_server() as server:
            add_backup_role(server)
            source = server.create_database(name="recorded")
            bench = Bench(source, room, [f"main=file://{room}/main"])
            migrate(bench, source_folder)
            source.execute(FURNITURE.read_text(), user="medianest_migrator")
            taken = bench.backup("--format", "custom", "--format", "plain", "--format", "schema")
            assert taken.code == 0, taken.text
            truth = {"contents": contents(source, ("public", "extra")), "definitions": definitions(source)}
            write(source_folder / NEXT, "ALTER TABLE users ADD note text;")
            migrate(bench, source_folder)
        target = FORMATS / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(room / "main", target / "repository")
        (target / "truth.json").write_text(json.dumps(truth, indent=1, sort_keys=True) + "\n")
    finally:
        shutil.rmtree(room)


if __name__ == "__main__":
    main(*sys.argv[1:])
