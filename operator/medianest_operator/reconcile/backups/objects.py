"""The `MediaNestBackup` objects: the backups that people ask for, and those that migrations took."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal

import pydantic

from medianest_operator import naming
from medianest_operator.api.backup_object import BackupPhase, BackupSpec, BackupStatus
from medianest_operator.api.conditions import Reason
from medianest_operator.api.status import MigrationRun, StoredBackup
from medianest_operator.backups.repository import layout
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.kinds import BACKUP, DATABASE, JOB, Manifest, digest
from medianest_operator.naming import Key
from medianest_operator.observability.notifications import Message
from medianest_operator.reconcile import attempts
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.backups.requests import Restores
from medianest_operator.reconcile.concern import Concern, Needs, Outcome
from medianest_operator.reconcile.conditions import conditions_of_attempt
from medianest_operator.reconcile.contents.migration import MigrationState
from medianest_operator.reconcile.context import Run, Services
from medianest_operator.reconcile.instances.servers import Servers
from medianest_operator.reconcile.status import timed
from medianest_operator.resources import backup_jobs
from medianest_operator.resources.meta import owner_reference
from medianest_operator.results.backup import BackupReport

_SUCCEEDED: Final = {BackupPhase.SUCCEEDED: True, BackupPhase.FAILED: False}


async def reconcile(run: Run) -> Outcome:
    """Take the backups of this database that are asked for, one Job each, and report what became of them."""
    state = run.facts.get(MigrationState)
    migration = state.run if state else None
    if migration is not None and migration.finished_at is not None and migration.backup is not None:
        await _record(run, migration, migration.backup)
    obstacle = _obstacle(run)
    for manifest in run.services.cache.of_database(BACKUP, run.key):
        await _Object(run.services, manifest).reconcile(run, obstacle, migration)
    return Outcome()


def _obstacle(run: Run) -> str | None:
    """Why no backup can begin now, in words that follow the database's name."""
    if run.spec.hibernate or run.spec.paused:
        return "is hibernated" if run.spec.hibernate else "is paused"
    servers, restores, migration = run.facts.get(Servers), run.facts.get(Restores), run.facts.get(MigrationState)
    if servers is None or not servers.serving or restores is None or not restores.has_database:
        return "does not serve yet"
    if restores.active:
        return "is being restored"
    if migration is not None and migration.is_running:
        # A dump's locks and a migration's would wait for each other.
        return "is being migrated"
    return None


async def reject(services: Services, key: Key) -> None:
    """Report of those whose database isn't there that they wait for it."""
    for manifest in services.cache.of_database(BACKUP, key):
        await _Object(services, manifest).wait(
            f"There is no {naming.KIND} {key[1]} in this namespace; the backup is taken once it exists and serves."
        )


async def _record(run: Run, migration: MigrationRun, path: str) -> None:
    """Make the object of a migration's backup, and let those go whose backups have gone."""
    # What comes out of the journal is the migrator's text: only a backup's path names an object.
    if layout.parse(path) is None:
        return
    services, owner = run.services, run.owner
    name = run.names.migration_backup(layout.id_of(path))
    if services.cache.get(BACKUP, run.names.namespace, name) is not None:
        return
    wanted = backup_jobs.migration_backup(run.names, name, migration.job, owner)
    await _Object(services, await services.applier.apply(BACKUP, wanted)).report_migration(migration)
    # Their names, and so what is listed, sort by the time at which they were taken.
    told = [item for item in services.cache.of_database(BACKUP, run.key) if "migration" in item["spec"]]
    for item in told[: -layout.PRE_MIGRATION_KEPT]:
        await services.applier.delete(BACKUP, item)


class _Object:
    """One `MediaNestBackup`."""

    def __init__(self, services: Services, manifest: Manifest) -> None:
        self._services = services
        self._manifest = manifest
        self._known: dict[str, Any] = manifest.get("status") or {}

    @property
    def _is_over(self) -> bool:
        return self._known.get("phase") in {BackupPhase.SUCCEEDED, BackupPhase.FAILED}

    async def wait(self, why: str) -> None:
        """Tell what it waits for; one that is over waits for nothing."""
        if not self._is_over and "job" not in self._known:
            await self._report(BackupPhase.PENDING, Reason.BACKUP_PENDING, why)

    async def reconcile(self, run: Run, obstacle: str | None, migration: MigrationRun | None) -> None:
        """Start its Job once, then follow it."""
        if self._is_over or "deletionTimestamp" in self._manifest["metadata"]:
            return
        try:
            wanted = BackupSpec.model_validate(self._manifest["spec"])
        except pydantic.ValidationError as error:
            await self._report(BackupPhase.FAILED, Reason.INVALID_SPEC, f"spec is not valid: {error}")
            return
        if wanted.migration is not None:
            await self._look_up(wanted.migration, migration)
            return
        name = run.names.on_demand_backup_job(digest(self._manifest["metadata"]["uid"]))
        job = self._services.cache.get(JOB, run.names.namespace, name)
        if job is not None:
            await self._follow(Attempt(run, job))
        elif "job" in self._known:
            await self._report(
                BackupPhase.FAILED, Reason.BACKUP_FAILED, f"Job {name} was deleted before it ended.", job=name
            )
        elif unknown := [item for item in wanted.repositories if run.spec.backup.repository(item) is None]:
            there = ", ".join(item.name for item in run.spec.backup.repositories)
            message = f"spec.repositories names {', '.join(unknown)}; {naming.KIND} {run.key[1]} has {there}."
            await self._report(BackupPhase.FAILED, Reason.INVALID_SPEC, message)
        elif wanted.verify and not backup_jobs.can_verify(run.spec):
            message = (
                f"spec.verify needs the private key: {naming.KIND} {run.key[1]} names none in"
                " spec.backup.encryption.identitySecret."
            )
            await self._report(BackupPhase.FAILED, Reason.INVALID_SPEC, message)
        elif obstacle is not None:
            await self.wait(f"{naming.KIND} {run.key[1]} {obstacle}.")
        else:
            await self._start(run, wanted, digest(self._manifest["metadata"]["uid"]))

    async def _look_up(self, job: str, migration: MigrationRun | None) -> None:
        """One that names a migration, and was not told of it yet."""
        known = migration is not None and migration.backup is not None and layout.parse(migration.backup) is not None
        if migration is not None and known and migration.job == job and migration.finished_at:
            await self.report_migration(migration)
        else:
            message = (
                f"spec.migration: the last migration is not {job}, or it took no backup. The operator makes such"
                " objects itself; one for a backup that is to be taken has no spec.migration."
            )
            await self._report(BackupPhase.FAILED, Reason.INVALID_SPEC, message)

    async def report_migration(self, migration: MigrationRun) -> None:
        """Say what is known of the backup that a migration took."""
        assert migration.backup is not None
        identity = layout.id_of(migration.backup)
        stored = migration.stored_backup or StoredBackup()
        restored = ", and restored for its rehearsal" if stored.restored else ""
        await self._report(
            BackupPhase.SUCCEEDED,
            Reason.BACKUP_SUCCEEDED,
            f"{identity} was taken by Job {migration.job} before it changed anything{restored}.",
            job=migration.job,
            backup=identity,
            repositories=sorted(stored.repositories),
            bytes=stored.bytes,
            source="primary",
            verified=stored.restored or None,
            started_at=migration.started_at,
            finished_at=migration.finished_at,
        )

    async def _start(self, run: Run, wanted: BackupSpec, identity: str) -> None:
        owner = owner_reference(self._manifest, BACKUP)
        asked_at = datetime.fromisoformat(self._manifest["metadata"]["creationTimestamp"])
        manifest = backup_jobs.on_demand_job(run.names, run.spec, wanted, asked_at, identity, run.job_image, owner)
        try:
            attempt = await attempts.start(run, manifest)
        except Permanent as error:
            await self._report(BackupPhase.FAILED, Reason.BACKUP_FAILED, error.message)
            return
        await self._follow(attempt)

    async def _follow(self, attempt: Attempt) -> None:
        result = BackupReport.read(attempt.result)
        details: dict[str, Any] = {"job": attempt.name, "started_at": attempt.started_at}
        if attempt.is_stranded:
            await attempt.discard()
            message = f"The node of Job {attempt.name} was lost before the backup was complete; make another object."
            await self._report(BackupPhase.FAILED, Reason.BACKUP_FAILED, message, **details)
            return
        if attempt.is_running:
            message = await attempt.obstacle() or f"Job {attempt.name} is taking the backup."
            await self._report(BackupPhase.RUNNING, Reason.BACKUP_RUNNING, message, **details)
            return
        verification = result.verification
        details |= {
            "backup": result.backup,
            "repositories": sorted(name for name, place in result.repositories.items() if place.ok),
            "bytes": result.bytes,
            "seconds": result.total_seconds,
            "source": result.source,
            "verified": verification.ok if verification else None,
            "finished_at": result.finished_at or attempt.finished_at,
        }
        fallback = (
            f"Job {attempt.name} {'ended' if attempt.succeeded else 'failed'} without a result: see its pod's log."
        )
        message = result.message or fallback
        if attempt.succeeded:
            await self._report(BackupPhase.SUCCEEDED, Reason.BACKUP_SUCCEEDED, message, **details)
        else:
            reason = Reason.VERIFICATION_FAILED if verification and not verification.ok else Reason.BACKUP_FAILED
            await self._report(BackupPhase.FAILED, reason, message, **details)

    async def _report(self, phase: BackupPhase, reason: Reason, message: str, **details: Any) -> None:
        """Write the status where it differs, and an Event where the reason is another."""
        metadata = self._manifest["metadata"]
        generation = int(metadata["generation"])
        conditions = conditions_of_attempt(_SUCCEEDED.get(phase), reason, message)
        status = BackupStatus(
            observed_generation=generation,
            phase=phase,
            conditions=timed(conditions, self._known, generation, datetime.now(UTC)),
            message=message,
            **details,
        ).to_dict()
        if status == self._known:
            return
        if not await self._services.applier.apply_status(BACKUP, self._manifest, status):
            return
        before = {item["reason"] for item in self._known.get("conditions", [])}
        if reason not in before and phase is not BackupPhase.PENDING:
            whom = self._manifest | {"kind": naming.BACKUP_KIND}
            kind: Literal["Normal", "Warning"] = "Warning" if phase is BackupPhase.FAILED else "Normal"
            await self._services.recorder.record(whom, kind, reason, message)
            if kind == "Warning":
                self._warn(reason, message)

    def _warn(self, reason: Reason, message: str) -> None:
        metadata = self._manifest["metadata"]
        database = self._services.cache.get(DATABASE, metadata["namespace"], self._manifest["spec"]["database"])
        if database is not None:
            told = Message(metadata["namespace"], metadata["name"], naming.BACKUP_KIND, reason, message)
            self._services.notifier.warn(database, told)


CONCERN = Concern("on-demand backups", Needs.NOTHING, reconcile, reconcile)
