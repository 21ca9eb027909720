"""What a migration run costs: plain psql, `prisma migrate deploy` and `medianest-dbctl migrate`, side by side.

    python benchmarks/migrations.py [--sizes 0,100MB,2GB] [--rounds 3] [--dbctl='--lock-timeout=5s']

On a throwaway PostgreSQL (fsync is off for all alike): the three bundled migrations on an empty database, then one
further migration, a column and an index, on top of MediaNest-shaped data of each size. Whole processes are timed, with
the start of psql, node or Python in them, and every figure is a median that stands beside psql's of the same run.
`medianest-dbctl` backs up and rehearses as the operator's Job does; each step that it tells is a line of its own, and
what is left of the whole is the start of Python and the connection.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "operator"), str(ROOT / "tests"), str(ROOT)]

from benchmarks.common import fill, machine, print_table, size  # noqa: E402

from integration import prisma_cli  # noqa: E402
from integration.conftest import migrate, workbench  # noqa: E402
from integration.postgres_server import Database, PostgresServer, binary, running_server  # noqa: E402
from medianest_operator.migrations.bundled import bundled_migrations  # noqa: E402
from medianest_operator.migrations.source import migrations_from_mapping  # noqa: E402

BUNDLED = {migration.name: migration.sql for migration in bundled_migrations()}
FURTHER = "20260101000000_further"
FURTHER_SQL = """\
ALTER TABLE media_requests ADD COLUMN note text;
CREATE INDEX media_requests_title_idx ON media_requests (title);
"""
UNDO_FURTHER = f"""
DROP INDEX media_requests_title_idx;
ALTER TABLE media_requests DROP COLUMN note;
DELETE FROM _prisma_migrations WHERE migration_name = '{FURTHER}';
"""


class Bench:
    """One server, one folder of migrations, a table of results."""

    def __init__(self, server: PostgresServer, folder: Path, rounds: int, dbctl: list[str]) -> None:
        self.server = server
        self.rounds = rounds
        self.prisma = prisma_cli.Prisma(prisma_cli.install(), folder / "project")
        self.prisma.write(BUNDLED)
        self.rows: list[tuple[str, str, str]] = []
        # Made as the tests make them: a throwaway server runs there as another user.
        workbench(server.maintenance, folder)
        self._dbctl = [f"--repository=file://{folder / 'backups'}", f"--work-dir={folder / 'work'}", *dbctl]
        self._result = folder / "result.json"

    def row(self, what: str, seconds: float, baseline: float) -> None:
        """Add and print a line of the table."""
        self.rows.append((what, f"{seconds * 1000:.0f} ms", f"{seconds / baseline:.2f}"))
        print(" | ".join(self.rows[-1]), flush=True)

    def compare(
        self,
        what: str,
        files: Mapping[str, str],
        source: list[str],
        fresh: Callable[[], Database],
        done: Callable[[], None],
    ) -> None:
        """Time the three ways, in turns, so that a busy moment of the machine hits all of them.

        Args:
            what: what is applied, for the table.
            files: the migrations that psql is to run.
            source: the options that name the migrations to medianest-dbctl.
            fresh: makes a database ready to be migrated.
            done: makes it so again, or removes it.
        """
        ways: dict[str, Callable[[Database], float]] = {
            "psql": lambda database: self.psql(database, files),
            "prisma migrate deploy": self.deploy,
            "medianest-dbctl migrate": lambda database: self.migrate(database, source),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        steps: dict[str, list[float]] = {}
        for _ in range(self.rounds):
            for way, measure in ways.items():
                times[way].append(measure(fresh()))
                done()
            for step in json.loads(self._result.read_text())["steps"]:
                steps.setdefault(step["name"], []).append(step["milliseconds"] / 1000)
        baseline = statistics.median(times["psql"])
        for way, seconds in times.items():
            self.row(f"{what}: {way}", statistics.median(seconds), baseline)
        for step, seconds in steps.items():
            self.row(f"{what}: medianest-dbctl migrate, step {step}", statistics.median(seconds), baseline)

    def psql(self, database: Database, files: Mapping[str, str]) -> float:
        """Each file by a psql of its own, in one transaction, as a person would."""
        started = time.monotonic()
        for name in sorted(files):
            options = [
                "-X",
                "-q",
                "-1",
                "-v",
                "ON_ERROR_STOP=1",
                "-f",
                str(self.prisma.migrations / name / "migration.sql"),
            ]
            self.call([binary("psql"), *options], database)
        return time.monotonic() - started

    def deploy(self, database: Database) -> float:
        started = time.monotonic()
        answer = self.prisma.deploy(database)
        if answer.code:
            raise SystemExit(f"prisma migrate deploy failed:\n{answer.text}")
        return time.monotonic() - started

    def migrate(self, database: Database, source: list[str]) -> float:
        command = [sys.executable, "-m", "medianest_operator.agent", "migrate", *source, *self._dbctl]
        started = time.monotonic()
        self.call([*command, f"--result-file={self._result}"], database)
        return time.monotonic() - started

    def call(self, command: list[str], database: Database) -> None:
        environment = {**os.environ, **database.environment(), "PYTHONPATH": str(ROOT / "operator")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")

    def bundled(self) -> None:
        """The three bundled migrations, on an empty database each time."""
        database = self.server.create_database()

        def fresh() -> Database:
            nonlocal database
            self.server.drop_database(database)
            database = self.server.create_database()
            return database

        self.compare("3 bundled migrations", BUNDLED, ["--bundled"], fresh, lambda: None)
        self.server.drop_database(database)

    def further(self, wanted: int, label: str) -> None:
        """One more migration on top of data."""
        database = self.server.create_database()
        migrate(database, migrations_from_mapping({f"{name}.sql": text for name, text in BUNDLED.items()}))
        fill(database, wanted)
        self.prisma.write({FURTHER: FURTHER_SQL})
        source = ["--source", str(self.prisma.migrations)]
        what = f"1 further at {label}"
        self.compare(what, {FURTHER: FURTHER_SQL}, source, lambda: database, lambda: self.revert(database))
        self.server.drop_database(database)

    def revert(self, database: Database) -> None:
        database.execute(UNDO_FURTHER)
        database.execute("CHECKPOINT")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0,100MB,2GB", help="of the data below the further migration")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each figure; the median counts")
    parser.add_argument("--dbctl", default="", help="more options for `medianest-dbctl migrate`")
    options = parser.parse_args()
    sizes = {label: size(label) for label in options.sizes.split(",") if label}
    with running_server() as server, tempfile.TemporaryDirectory() as name:
        bench = Bench(server, Path(name), options.rounds, shlex.split(options.dbctl))
        print(f"\n{machine()}; medians of {options.rounds}\n")
        bench.bundled()
        for label, wanted in sizes.items():
            bench.further(wanted, label)
        print_table(("what", "time", "of psql's"), bench.rows)


if __name__ == "__main__":
    main()
