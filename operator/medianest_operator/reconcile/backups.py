"""Backups: the volumes and CronJobs of a database, what its Jobs came to, and the backups that people ask for."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Literal

import pydantic

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.backup_object import BackupPhase, BackupSpec, BackupStatus
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.controller.kinds import BACKUP, CLAIM, CRON_JOB, DATABASE, JOB, SECRET
from medianest_operator.controller.queue import Key
from medianest_operator.errors import Permanent
from medianest_operator.observability import metrics
from medianest_operator.observability.notifications import Message
from medianest_operator.reconcile import findings, jobs
from medianest_operator.reconcile.backup_status import EndedJob, State, collect, overdue
from medianest_operator.reconcile.conditions import Verdict
from medianest_operator.reconcile.context import Run, Services
from medianest_operator.reconcile.status import timed
from medianest_operator.resources import backup_jobs, repositories
from medianest_operator.resources.meta import Manifest, digest, owner_reference

log = logging.getLogger(__name__)

_SECRETS_EVERY = 60.0


async def shape(run: Run) -> str | None:
    """Make volumes and CronJobs what the spec wants. Returns in words why no backup can be taken; None if one can."""
    try:
        for claim in repositories.claims(run.names, run.spec, run.owner):
            await _apply_claim(run, claim)
        image = run.spec.image or run.services.settings.postgres_image
        wanted = backup_jobs.cron_jobs(run.names, run.spec, image, run.owner)
        for cron_job in wanted:
            await run.services.applier.apply(CRON_JOB, cron_job)
    except Permanent as error:
        return error.message.rstrip(".")
    names = {cron_job["metadata"]["name"] for cron_job in wanted}
    for live in run.services.cache.of_database(CRON_JOB, run.key):
        if live["metadata"]["name"] not in names:
            await run.services.applier.delete(CRON_JOB, live)
    return await _missing(run)


async def _apply_claim(run: Run, claim: Manifest) -> None:
    """Raises Permanent where the volume can't be as wanted, with the field to mend."""
    repository = claim["metadata"]["name"].removeprefix(run.names.backup_claim(""))
    try:
        await run.services.applier.apply(CLAIM, claim)
    except Permanent as error:
        if error.reason != Reason.API_ERROR:
            raise
        raise Permanent(
            Reason.BACKUP_MISCONFIGURED,
            f"the volume of backup.repositories {repository} can't be as wanted ({error.message}): it can grow where"
            " its class allows that, never shrink or change its class; give the repository another name for a new one",
        ) from error


async def _missing(run: Run) -> str | None:
    """A Secret that a Job's pod would wait for, in words."""
    wanted = repositories.secret_names(run.spec.backup.repositories)
    encryption = run.spec.backup.encryption
    if encryption and encryption.identity_secret:
        wanted.add(encryption.identity_secret.name)
    token = tuple(sorted(wanted))
    if run.services.memory.recall(run.key, "backup-secrets", token, _SECRETS_EVERY) is not None:
        return None
    for name in token:
        if await run.services.client.get(SECRET, run.names.namespace, name) is None:
            return f"there is no Secret {name} in this namespace, which spec.backup names"
    run.services.memory.keep(run.key, "backup-secrets", token, True)
    return None


def look(run: Run, known: api.Backups | None, problem: str | None) -> State:
    """Where the backups stand."""
    now = datetime.now(UTC)
    ended = [job for manifest in run.backup_jobs if (job := _ended(run, manifest)) is not None]
    backups = collect(run.spec, known, ended, now)
    crons = run.services.cache.of_database(CRON_JOB, run.key)
    since = {
        str(item["metadata"]["labels"].get(naming.LABEL_TIER, "")): datetime.fromisoformat(
            item["metadata"]["creationTimestamp"]
        )
        for item in crons
    }
    metrics.tell_backups(*run.key, backups)
    return State(backups, problem, overdue(run.spec, backups, since, now))


def _ended(run: Run, job: Manifest) -> EndedJob | None:
    end = jobs.ended(job)
    if end is None:
        return None
    labels = job["metadata"]["labels"]
    return EndedJob(
        name=job["metadata"]["name"],
        tier=labels.get(naming.LABEL_TIER),
        finished=str(job.get("status", {}).get("completionTime") or end["lastTransitionTime"]),
        succeeded=end["type"] == "Complete",
        result=jobs.result(run, job),
    )


# The backups that people ask for.


async def reconcile_asked(run: Run, obstacle: str | None) -> None:
    """Take the `MediaNestBackup`s of this database, one Job each, and tell what became of them.

    Args:
        obstacle: why none can begin now, in words that follow the database's name.
    """
    for manifest in run.services.cache.of_database(BACKUP, run.key):
        await _Asked(run.services, manifest).reconcile(run, obstacle)


async def reject_asked(services: Services, key: Key) -> None:
    """Tell those whose database isn't there that they wait for it."""
    for manifest in services.cache.of_database(BACKUP, key):
        await _Asked(services, manifest).wait(
            f"There is no {naming.KIND} {key[1]} in this namespace; the backup is taken once it is there and serves."
        )


class _Asked:
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
            await self._tell(BackupPhase.PENDING, Reason.BACKUP_PENDING, why)

    async def reconcile(self, run: Run, obstacle: str | None) -> None:
        """Start its Job once, then follow it."""
        if self._is_over or "deletionTimestamp" in self._manifest["metadata"]:
            return
        try:
            wanted = BackupSpec.model_validate(self._manifest["spec"])
        except pydantic.ValidationError as error:
            await self._tell(BackupPhase.FAILED, Reason.INVALID_SPEC, f"spec is not valid: {error}")
            return
        name = run.names.on_demand_backup_job(digest(self._manifest["metadata"]["uid"]))
        job = self._services.cache.get(JOB, run.names.namespace, name)
        if job is not None:
            await self._follow(run, job)
        elif "job" in self._known:
            await self._tell(
                BackupPhase.FAILED, Reason.BACKUP_FAILED, f"Job {name} was deleted before it ended.", job=name
            )
        elif unknown := [item for item in wanted.repositories if run.spec.backup.repository(item) is None]:
            there = ", ".join(item.name for item in run.spec.backup.repositories)
            message = f"spec.repositories names {', '.join(unknown)}; {naming.KIND} {run.key[1]} has {there}."
            await self._tell(BackupPhase.FAILED, Reason.INVALID_SPEC, message)
        elif wanted.verify and not backup_jobs.can_verify(run.spec):
            message = (
                f"spec.verify needs the private key: {naming.KIND} {run.key[1]} names none in"
                " spec.backup.encryption.identitySecret."
            )
            await self._tell(BackupPhase.FAILED, Reason.INVALID_SPEC, message)
        elif obstacle is not None:
            await self.wait(f"{naming.KIND} {run.key[1]} {obstacle}.")
        else:
            await self._start(run, wanted, digest(self._manifest["metadata"]["uid"]))

    async def _start(self, run: Run, wanted: BackupSpec, identity: str) -> None:
        image = run.spec.image or self._services.settings.postgres_image
        owner = owner_reference(self._manifest, BACKUP)
        asked_at = datetime.fromisoformat(self._manifest["metadata"]["creationTimestamp"])
        manifest = backup_jobs.on_demand_job(run.names, run.spec, wanted, asked_at, identity, image, owner)
        try:
            job = await self._services.applier.apply(JOB, manifest)
        except Permanent as error:
            await self._tell(BackupPhase.FAILED, Reason.BACKUP_FAILED, error.message)
            return
        await self._follow(run, job)

    async def _follow(self, run: Run, job: Manifest) -> None:
        name, end = job["metadata"]["name"], jobs.ended(job)
        told = jobs.result(run, job)
        details: dict[str, Any] = {"job": name, "started_at": job.get("status", {}).get("startTime")}
        if end is None:
            why = findings.of_job(run, job)
            message = why or f"Job {name} takes the backup."
            await self._tell(BackupPhase.RUNNING, Reason.BACKUP_RUNNING, message, **details)
            return
        verification = told.get("verification")
        details |= {
            "backup": told.get("backup"),
            "repositories": sorted(key for key, item in told.get("repositories", {}).items() if item.get("ok")),
            "bytes": told.get("bytes"),
            "seconds": told.get("seconds"),
            "source": told.get("source"),
            "verified": bool(verification.get("ok")) if verification else None,
            "finished_at": told.get("finishedAt") or end["lastTransitionTime"],
        }
        succeeded = end["type"] == "Complete"
        fallback = f"Job {name} {'ended' if succeeded else 'failed'} without a result: see its pod's log."
        message = str(told.get("message") or fallback)
        if succeeded:
            await self._tell(BackupPhase.SUCCEEDED, Reason.BACKUP_SUCCEEDED, message, **details)
        else:
            reason = Reason.VERIFICATION_FAILED if verification and not verification.get("ok") else Reason.BACKUP_FAILED
            await self._tell(BackupPhase.FAILED, reason, message, **details)

    async def _tell(self, phase: BackupPhase, reason: Reason, message: str, **details: Any) -> None:
        """Write the status where it differs, and an Event where the reason is another."""
        metadata = self._manifest["metadata"]
        generation = int(metadata["generation"])
        status = BackupStatus(
            observed_generation=generation,
            phase=phase,
            conditions=timed(_verdicts(phase, reason, message), self._known, generation, datetime.now(UTC)),
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


def _verdicts(phase: BackupPhase, reason: Reason, message: str) -> dict[Condition, Verdict]:
    """Ready, and while it isn't why, as kstatus reads them: a GitOps tool can wait for a backup."""
    if phase is BackupPhase.SUCCEEDED:
        return {Condition.READY: Verdict("True", reason, message)}
    why = Condition.STALLED if phase is BackupPhase.FAILED else Condition.RECONCILING
    return {Condition.READY: Verdict("False", reason, message), why: Verdict("True", reason, message)}
