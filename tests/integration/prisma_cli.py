"""The application's own migrator: Prisma's command line, installed once and kept in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from integration.npm import installed
from integration.postgres_server import Database

SOURCES = Path(__file__).with_name("prisma")
# The engine in WebAssembly and its start take a second or two; a loaded machine may take longer.
_TIME_LIMIT = 120


def install() -> Path:
    """Install what package-lock.json names, unless it is there already; returns the folder. Prisma's own script would
    download its native engines: it isn't run.

    Raises:
        FileNotFoundError: there is no npm.
        subprocess.CalledProcessError: npm failed; its output is in the exception.
    """
    return installed(SOURCES, "prisma")


@dataclass(frozen=True)
class Answer:
    """What the command line said, on both streams, and its exit code."""

    code: int
    text: str


class Prisma:
    """A project in a folder of its own, with migrations from `name -> SQL`."""

    def __init__(self, packages: Path, folder: Path) -> None:
        self.folder = folder
        self.migrations = folder / "migrations"
        self._command = ["node", str(packages / "node_modules/prisma/build/index.js")]
        self.migrations.mkdir(parents=True)
        for file in ("prisma.config.ts", "schema.prisma", "engine"):
            shutil.copy(SOURCES / file, folder)
        # The configuration looks for the adapter from its own folder upwards.
        (folder / "node_modules").symlink_to(packages / "node_modules")
        (self.migrations / "migration_lock.toml").write_text('provider = "postgresql"\n')

    def write(self, files: Mapping[str, str]) -> None:
        """Add migrations, or replace them."""
        for name, text in files.items():
            (self.migrations / name).mkdir(exist_ok=True)
            # Line ends as given.
            (self.migrations / name / "migration.sql").write_bytes(text.encode())

    def start(self, database: Database, *arguments: str) -> subprocess.Popen[str]:
        """Begin `prisma ARGUMENTS` as the migrator."""
        engine = str(self.folder / "engine")
        environment = {
            **os.environ,
            **database.environment(),
            # Only its form is looked at: the adapter connects.
            "DATABASE_URL": "postgresql://localhost/unused",
            "PRISMA_SCHEMA_ENGINE_BINARY": engine,
            "PRISMA_QUERY_ENGINE_LIBRARY": engine,
            "CHECKPOINT_DISABLE": "1",
            "PRISMA_HIDE_UPDATE_MESSAGE": "1",
            "NO_COLOR": "1",
        }
        return subprocess.Popen(
            [*self._command, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, database: Database, *arguments: str) -> Answer:
        """Run `prisma ARGUMENTS` to its end."""
        return finish(self.start(database, *arguments))

    def status(self, database: Database) -> Answer:
        return self.run(database, "migrate", "status")

    def deploy(self, database: Database) -> Answer:
        return self.run(database, "migrate", "deploy")


def finish(process: subprocess.Popen[str]) -> Answer:
    """Wait for a command's end."""
    with process:
        try:
            text, _ = process.communicate(timeout=_TIME_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Answer(process.returncode, text)
