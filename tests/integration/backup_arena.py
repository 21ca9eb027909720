"""A place where backups are spoiled, and what a row of the damage table is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.backup_runs import NAME, NAMESPACE, WHOSE, Answer, Bench, Run, candidate, contents, until
from integration.object_store import Bucket
from integration.postgres_server import Database
from medianest_operator.backups.logical.finding import Wanted
from medianest_operator.backups.logical.restore import RestoreOptions, RestoreRun
from medianest_operator.backups.logical.run import BackupOptions, BackupRun
from medianest_operator.backups.repository.client import Repository
from medianest_operator.backups.repository.layout import Tier
from medianest_operator.results.backup import Result


@dataclass
class Arena:
    """A database, its last good backup, and the place where the next one is spoiled.

    Attributes:
        bench: with one repository, a folder.
        good: the id of the last good backup.
        truth: what the database held then, told by other means than ours.
        spoiled: a later backup in the same place, for damage to what is stored.
    """

    bench: Bench
    good: str
    truth: dict[str, str]
    spoiled: str = ""
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    store: Bucket | None = None

    @property
    def folder(self) -> Path:
        """Of the repository."""
        return self.bench.folder / "main"

    @property
    def bucket(self) -> Bucket:
        """A bucket of its own."""
        assert self.store is not None
        return self.store

    def file(self, name: str, backup: str | None = None) -> Path:
        """One of the spoiled backup's files."""
        return next(self.folder.rglob(f"{backup or self.spoiled}/{name}"))

    def conninfo(self, user: str, database: Database | None = None) -> str:
        source = database or self.bench.source
        return f"host={source.server.folder} port=5432 user={user} dbname={source.name}"

    def backup(self, *repositories: Repository, **options: Any) -> Result:
        """Take one in this process, as impatient as a test has to be."""
        made = BackupOptions(
            **{"tier": Tier.DAILY, "database": (NAMESPACE, NAME), "conninfo": self.conninfo("medianest_backup"),
               "wait": 1.0, **options}
        )  # fmt: skip
        run = BackupRun(repositories or [self.bench.open()], made)
        result = run.run()
        run.clean_up(result)
        assert len(result.to_json().encode()) <= 4096
        return result

    def restore(self, which: str, *identities: str) -> tuple[Result, dict[str, str]]:
        """Restore into a new database; returns what that holds then."""
        target = candidate(self.bench.source.server)
        try:
            options = RestoreOptions(
                Wanted(NAMESPACE, NAME),
                which,
                self.bench.work,
                identities,
                conninfo=self.conninfo("medianest_migrator", target),
            )
            return RestoreRun([self.bench.open()], options).run(), contents(target)
        finally:
            self.bench.source.server.drop_database(target)

    def start(self, *arguments: str) -> Run:
        return self.bench.start("backup", *self.bench.places, *WHOSE, "--tier", "daily", *arguments)

    def start_and_wait(self, *arguments: str) -> Run:
        """A backup that is in the middle of its dump."""
        run = self.start(*arguments)
        until(lambda: any(path.stat().st_size > 1 << 20 for path in self.folder.rglob("data.dump.zst#*")))
        return run


Spoil = Callable[[Arena], None]


@dataclass(frozen=True)
class Stored:
    """Damage to a backup that is stored.

    Attributes:
        words: what the restore of it has to say.
        reason: its reason.
    """

    name: str
    spoil: Spoil
    words: str
    reason: str = "NoSuchBackup"


@dataclass(frozen=True)
class Making:
    """Damage while a backup is made.

    Attributes:
        spoil: makes one, and checks what the run says.
        backups: so many complete ones there are afterwards.
    """

    name: str
    spoil: Spoil
    backups: int = 1


def failed(result: Result | Answer, reason: str, *words: str, outcome: str = "") -> None:
    told = result.result if isinstance(result, Answer) else json.loads(result.to_json())
    assert told["outcome"] in ((outcome,) if outcome else ("Failed", "Transient")), told
    assert told["reason"] == reason, told
    for word in words:
        assert word in told["message"], told
