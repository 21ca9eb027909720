"""Databases that a restore has replaced: they stay for a time, closed, are then backed up once more, and dropped."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

import pydantic

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.kubernetes.kinds import digest
from medianest_operator.postgres import databases, logins
from medianest_operator.postgres.databases import LiveDatabase, Mark, Role
from medianest_operator.postgres.sessions import Connection, Unreachable
from medianest_operator.reconcile import attempts
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.concern import Announcement
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.resources.backup_jobs import KEEP_ON_DEMAND, replaced_job, to_days
from medianest_operator.timestamps import stamp

_AGAIN: Final = timedelta(hours=1)
"""After a backup that failed, before another try."""


def replaced_of(
    spec: DatabaseSpec, found: Mapping[str, LiveDatabase], problems: Mapping[str, str]
) -> tuple[api.ReplacedDatabase, ...]:
    """Those that are kept, the newest first.

    Args:
        problems: why some of them are still there, by name.
    """
    kept = []
    for item in found.values():
        if (mark := item.mark) is not None and mark.role is Role.KEPT:
            until = mark.moment + to_days(mark.keep or spec.backup.keep_replaced)
            since, problem = stamp(mark.moment), problems.get(item.name)
            kept.append(api.ReplacedDatabase(database=item.name, since=since, until=stamp(until), problem=problem))
    return tuple(sorted(kept, key=lambda item: (item.since, item.database), reverse=True))


class Replaced:
    """Those of one database.

    Attributes:
        problems: why some are still there, by name: after a failed backup until one succeeds.

    Args:
        connection: to the maintenance database.
        found: all databases of the server; what is dropped is taken out.
    """

    def __init__(self, run: Run, primary: Pod, connection: Connection, found: dict[str, LiveDatabase]) -> None:
        self.problems = known_problems(run)
        self._run = run
        self._primary = primary
        self._connection = connection
        self._found = found
        self._attempts = {name: Attempt(run, job) for job in run.restore_jobs if (name := _kept_by(job)) is not None}

    async def look_after(self, kept: dict[str, Mark]) -> list[Announcement]:
        """Let go of what has had its time. Returns what there is to tell.

        Args:
            kept: the databases that were replaced, by name.
        """
        now = await databases.now(self._connection) if kept else None
        told = []
        for name, mark in kept.items():
            keep = mark.keep or self._run.spec.backup.keep_replaced
            if now is None or now - mark.moment < to_days(keep):
                self.problems.pop(name, None)
                await self._end_readers(name)
            else:
                told += await self._let_go(name, mark.moment, now, keep)
        for name, attempt in self._attempts.items():
            if name not in kept:
                await attempt.discard()
        self.problems = {name: why for name, why in self.problems.items() if name in self._found}
        return told

    async def _let_go(self, name: str, since: datetime, now: datetime, keep: str) -> list[Announcement]:
        attempt = self._attempts.get(name)
        if attempt is None:
            await self._back_up(name, now)
            return []
        if attempt.is_running and not attempt.is_stranded:
            return []
        # Where one repository has it, the others' trouble keeps nothing.
        if backup := attempt.result.get("backup"):
            await databases.drop(self._connection, name)
            # Its Job is discarded by the next run: the status has yet to learn of the backup.
            del self._found[name]
            message = (
                f"Database {name}, which a restore replaced on {since:%Y-%m-%d}, was dropped after {keep}"
                f" (keepReplaced). Backup {backup} holds it, for {KEEP_ON_DEMAND} more."
            )
            return [Announcement("ReplacedDropped", message)]
        if attempt.is_stranded:
            await attempt.discard()
            return []
        why = str(attempt.result.get("message") or f"Job {attempt.name} left no result").rstrip(".")
        self.problems[name] = (
            f"Database {name}, which a restore replaced on {since:%Y-%m-%d}, is past keepReplaced ({keep}), and isn't"
            f" dropped, because its backup fails: {why}. It is tried again every hour; drop it yourself to discard it."
        )
        if attempt.age >= _AGAIN:
            await attempt.discard()
        return []

    async def _back_up(self, name: str, now: datetime) -> None:
        run = self._run
        await databases.open_to(self._connection, name, logins.role_name(run.spec, logins.BACKUP))
        # From now on: its time may have been over long ago, with no operator there.
        until = stamp(now + to_days(KEEP_ON_DEMAND))
        job = run.names.replaced_job(digest([run.uid, name]))
        await attempts.start(run, replaced_job(run.names, run.spec, name, until, job, run.job_image, run.owner))

    async def _end_readers(self, name: str) -> None:
        """On the replicas people may still read the database that was replaced, under its new name."""
        run = self._run
        for pod in run.pods:
            if pod.name == self._primary.name or not pod.streaming or not pod.address:
                continue
            with contextlib.suppress(Unreachable):
                instance = run.instance(pod, naming.MAINTENANCE_DATABASE)
                async with run.services.sessions.use(instance, run.credentials) as connection:
                    await databases.end_sessions(connection, name)


def known_replaced(run: Run) -> tuple[api.ReplacedDatabase, ...]:
    """As the status says it so far; none where a newer operator wrote what this one can't read."""
    try:
        known = run.database.get("status", {}).get("replaced") or []
        return tuple(api.ReplacedDatabase.model_validate(item) for item in known)
    except pydantic.ValidationError:
        return ()


def known_problems(run: Run) -> dict[str, str]:
    """Why some of them weren't dropped when their time was over, by name."""
    return {item.database: item.problem for item in known_replaced(run) if item.problem}


def is_of_replaced(attempt: Attempt) -> bool:
    """Whether a Job backs up a replaced database, rather than restore anything."""
    return naming.ANNOTATION_REPLACED in attempt.annotations


def _kept_by(job: dict[str, object]) -> str | None:
    metadata = job["metadata"]
    assert isinstance(metadata, dict)
    name: str | None = (metadata.get("annotations") or {}).get(naming.ANNOTATION_REPLACED)
    return name
