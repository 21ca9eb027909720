"""Backups: the volumes and CronJobs of a database, what its Jobs came to, and the backups that people ask for."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.kinds import CLAIM, CRON_JOB, SECRET, Manifest
from medianest_operator.observability import metrics
from medianest_operator.reconcile import jobs
from medianest_operator.reconcile.backup_status import EndedJob, State, collect, overdue
from medianest_operator.reconcile.context import Run
from medianest_operator.resources import backup_jobs, repositories

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
