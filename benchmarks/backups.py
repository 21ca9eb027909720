"""What backups cost: `medianest-dbctl` beside `pg_dump -Fc -Z9 > file` and `pg_restore -j`, in one run.

    python benchmarks/backups.py [--sizes 100MB,1GB,5GB] [--rounds 1] [--jobs 2] [--no-s3]

On a throwaway PostgreSQL (fsync is off for all alike) with MediaNest-shaped data of each size. Whole processes are
timed, with the start of Python in them. A backup's time has its SHA-256, its row counts, its manifest and, in a folder,
its fsync in it; a restore's the download, the comparison and ANALYZE. Memory is the peak of what the process and its
children have for themselves and their part of what they share (`Pss` of /proc/PID/smaps_rollup), looked at every 50 ms;
"own" is that of the process alone: a verification has a whole server among its children.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "operator"), str(ROOT / "tests"), str(ROOT)]

from benchmarks.common import fill, machine, print_table, size  # noqa: E402

from integration.backup_runs import BACKUP_ROLE, candidate  # noqa: E402
from integration.conftest import migrate  # noqa: E402
from integration.memory import Watch  # noqa: E402
from integration.object_store import running_object_store  # noqa: E402
from integration.postgres_server import Database, PostgresServer, binary, running_server  # noqa: E402
from medianest_operator.migrations.bundled import bundled_migrations  # noqa: E402

_WHOSE = ["--namespace", "bench", "--name", "bench"]


@dataclass
class Measured:
    """One run.

    Attributes:
        seconds: of the whole process.
        peak: bytes of memory, its children's included.
        own: the same without them.
        stored: bytes of the dump, where one was made.
    """

    seconds: float
    peak: int
    own: int = 0
    stored: int = 0
    result: dict[str, object] = field(default_factory=dict)


class Bench:
    """One server, one folder, a table of results."""

    def __init__(self, server: PostgresServer, folder: Path, rounds: int, jobs: int, bucket: str | None) -> None:
        self.server = server
        self.folder = folder
        self.rounds = rounds
        self.jobs = jobs
        self.repositories = {"folder": f"folder=file://{folder}/repository"}
        if bucket is not None:
            self.repositories["S3 over TLS"] = bucket
        self.rows: list[tuple[str, ...]] = []
        (folder / "work").mkdir()
        (folder / "work").chmod(0o777)

    def size(self, label: str, wanted: int) -> None:
        """All measurements with so much data."""
        database = self.server.create_database(name=f"size_{wanted}")
        migrate(database, bundled_migrations())
        fill(database, wanted)
        raw_file = self.folder / "raw.dump"
        dumps: dict[str, list[Measured]] = {}
        for _ in range(self.rounds):
            raw = self.raw_dump(database, raw_file)
            raw.stored = raw_file.stat().st_size
            dumps.setdefault("pg_dump -Fc -Z9 > file", []).append(raw)
            for name, url in self.repositories.items():
                arguments = ["backup", "--repository", url, *_WHOSE, "--tier", "daily"]
                taken = self.dbctl(database, "medianest_backup", arguments)
                taken.stored = self.stored(taken)
                dumps.setdefault(f"backup to {name}", []).append(taken)
        self.add(label, dumps)
        restores: dict[str, list[Measured]] = {}
        for _ in range(self.rounds):
            with self.fresh() as target:
                restores.setdefault(f"pg_restore -j{self.jobs}", []).append(self.raw_restore(target, raw_file))
            for name, url in self.repositories.items():
                arguments = ["restore", "--repository", url, *_WHOSE, "--work-dir", str(self.folder / "work")]
                arguments.append(f"--jobs={self.jobs}")
                with self.fresh() as target:
                    measured = self.dbctl(target, "medianest_migrator", arguments)
                    restores.setdefault(f"restore from {name}", []).append(measured)
            arguments = ["verify", "--repository", self.repositories["folder"], *_WHOSE]
            verified = self.dbctl(database, "medianest_backup", [*arguments, "--work-dir", str(self.folder / "work")])
            restores.setdefault("verify", []).append(verified)
            print(f"verification, seconds: {verified.result['seconds']}", flush=True)
        self.add(label, restores)
        self.server.drop_database(database)
        raw_file.unlink()

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Database]:
        target = candidate(self.server)
        try:
            yield target
        finally:
            self.server.drop_database(target)

    def add(self, label: str, ways: dict[str, list[Measured]]) -> None:
        """Lines of the table; the first way is what the others are measured by."""
        baseline: float | None = None
        for way, runs in ways.items():
            seconds = statistics.median(run.seconds for run in runs)
            baseline = baseline or seconds
            peak, own, stored = (max(getattr(run, name) for run in runs) for name in ("peak", "own", "stored"))
            sizes = (f"{size / 2**20:.0f} MiB" if size else "" for size in (stored, peak, own))
            row = (label, way, f"{seconds:.1f} s", f"{baseline / seconds:.2f}", *sizes)
            self.rows.append(row)
            print(" | ".join(row), flush=True)

    def raw_dump(self, database: Database, file: Path) -> Measured:
        with file.open("wb") as target:
            return self.call([binary("pg_dump"), "-Fc", "-Z9"], database.environment("postgres"), target.fileno())

    @staticmethod
    def stored(taken: Measured) -> int:
        """How large a backup is, by its own word."""
        return int(str(taken.result["bytes"]))

    def raw_restore(self, target: Database, file: Path) -> Measured:
        options = [f"-j{self.jobs}", "--exit-on-error", f"--dbname={target.name}"]
        return self.call([binary("pg_restore"), *options, str(file)], target.environment())

    def dbctl(self, database: Database, user: str, arguments: list[str]) -> Measured:
        result = self.folder / "result.json"
        command = [sys.executable, "-m", "medianest_operator.agent", *arguments, f"--result-file={result}"]
        environment = {**database.environment(user), "PYTHONPATH": str(ROOT / "operator")}
        measured = self.call(command, environment)
        measured.result = json.loads(result.read_text())
        return measured

    def call(self, command: list[str], environment: dict[str, str], stdout: int | None = None) -> Measured:
        with tempfile.TemporaryFile("w+") as log:
            started = time.monotonic()
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=log if stdout is None else stdout, stderr=log
            )
            watch = Watch(process.pid)
            code = process.wait()
            seconds = time.monotonic() - started
            peak = watch.stop()
            if code:
                log.seek(0)
                raise SystemExit(f"{shlex.join(command)} failed:\n{log.read()}")
        return Measured(seconds, peak, watch.own_peak)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100MB,1GB", help="of the databases")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each figure; the median counts")
    parser.add_argument("--jobs", type=int, default=2, help="connections that restore at the same time")
    parser.add_argument("--no-s3", action="store_true", help="leave the S3 server out")
    options = parser.parse_args()
    sizes = {label: size(label) for label in options.sizes.split(",")}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mn-bench-")))
        folder.chmod(0o755)
        server = stack.enter_context(running_server("max_wal_size=4GB", "shared_buffers=256MB"))
        server.maintenance.execute(BACKUP_ROLE)
        bucket = None
        if not options.no_s3:
            bucket = stack.enter_context(running_object_store(folder / "s3")).bucket().text()
        bench = Bench(server, folder, options.rounds, options.jobs, bucket)
        print(f"\n{machine()}; medians of {options.rounds}\n", flush=True)
        for label, wanted in sizes.items():
            bench.size(label, wanted)
        print_table(("data", "what", "time", "of the raw speed", "stored", "peak memory", "own"), bench.rows)


if __name__ == "__main__":
    main()
