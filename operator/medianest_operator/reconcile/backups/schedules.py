"""Backups: the volumes and CronJobs of a database, what its Jobs came to, and the backups that people ask for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import pydantic

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.kinds import CLAIM, CRON_JOB, SECRET, Manifest
from medianest_operator.observability import metrics
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.backups.status import EndedJob, State, collect, never, overdue, verdict
from medianest_operator.reconcile.concern import Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Run, labels_of
from medianest_operator.resources import backup_jobs, repositories
from medianest_operator.resources.backup_jobs import is_suspended
from medianest_operator.results.backup import BackupReport

log = logging.getLogger(__name__)

_SECRETS_EVERY: Final = 60.0
"""Seconds after which the Secrets that Jobs need are looked for again."""
_REPORT_EVERY: Final = 600.0
"""Seconds after which the schedules are compared with the clock again, unless one of them comes before."""


@dataclass(frozen=True)
class BackupsPossible:
    """The fact whether backups can be taken.

    Attributes:
        problem: why not, as a clause; `None` where they can.
    """

    problem: str | None = None


async def reconcile(run: Run) -> Outcome:
    """Make volumes and CronJobs what the spec wants, and find out whether the Jobs would have all that they need."""
    try:
        for claim in repositories.claims(run.names, run.spec, run.owner):
            await _apply_claim(run, claim)
        wanted = backup_jobs.cron_jobs(run.names, run.spec, run.job_image, run.owner)
        for cron_job in wanted:
            if not _is_made_later(run, cron_job):
                await run.services.applier.apply(CRON_JOB, cron_job)
    except Permanent as error:
        return Outcome(facts=(BackupsPossible(error.message.rstrip(".")),))
    names = {cron_job["metadata"]["name"] for cron_job in wanted}
    for live in run.services.cache.of_database(CRON_JOB, run.key):
        if live["metadata"]["name"] not in names:
            await run.services.applier.delete(CRON_JOB, live)
    missing = await _missing(run)
    looks = bool(_secret_names(run)) and not is_suspended(run.spec)
    return Outcome(facts=(BackupsPossible(missing),), next_look=_SECRETS_EVERY if looks else None)


def _is_made_later(run: Run, cron_job: Manifest) -> bool:
    """Whether a CronJob waits until the database wakes: where there is none, there is none to suspend."""
    namespace, name = run.names.namespace, cron_job["metadata"]["name"]
    return run.spec.hibernate and run.services.cache.get(CRON_JOB, namespace, name) is None


async def _apply_claim(run: Run, claim: Manifest) -> None:
    """Raises Permanent where the volume can't be as wanted, with the field to fix."""
    repository = claim["metadata"]["name"].removeprefix(run.names.backup_claim(""))
    try:
        await run.services.applier.apply(CLAIM, claim)
    except Permanent as error:
        if error.reason is not Reason.OBJECT_REFUSED:
            raise
        raise Permanent(
            Reason.BACKUP_MISCONFIGURED,
            f"the volume of backup.repositories {repository} can't be as wanted ({error.message}): it can grow where"
            " its class allows that, never shrink or change its class; give the repository another name for a new one",
        ) from error


def _secret_names(run: Run) -> set[str]:
    """The admin's Secrets that the Jobs mount."""
    wanted = repositories.secret_names(run.spec.backup.repositories)
    return wanted | {item.name for item in (run.spec.backup.identity_secret, run.spec.backup.signing_secret) if item}


async def _missing(run: Run) -> str | None:
    """A Secret that a Job's pod would wait for, in words."""
    for name in sorted(_secret_names(run)):
        if await run.services.client.get(SECRET, run.names.namespace, name) is None:
            return f"there is no Secret {name} in this namespace, which spec.backup names"
    return None


async def report(run: Run) -> Outcome:
    """Where the backups stand: it says nothing about Ready, since a database without a backup serves."""
    now = datetime.now(UTC)
    ended = [job for manifest in run.backup_jobs if (job := _ended(Attempt(run, manifest))) is not None]
    backups = collect(run.spec, _known(run), ended, now)
    crons = run.services.cache.of_database(CRON_JOB, run.key)
    since = {
        labels_of(item).get(naming.LABEL_TIER, ""): datetime.fromisoformat(item["metadata"]["creationTimestamp"])
        for item in crons
    }
    metrics.report_backups(*run.key, backups)
    possible = run.facts.get(BackupsPossible)
    if possible is None and not run.spec.paused:
        # Whether they could be taken was not found out this time.
        return Outcome(status={"backup": backups})
    problem = possible.problem if possible else None
    state = State(backups, problem, overdue(run.spec, backups, since, now), never(run.spec, now))
    return Outcome(
        conditions={Condition.BACKUPS_HEALTHY: Verdict(*verdict(run.spec, state))},
        status={"backup": backups},
        next_look=_next_look(run, backups, now),
    )


def _next_look(run: Run, backups: api.Backups, now: datetime) -> float | None:
    """Seconds until the status is out of date by the clock alone; `None` while nothing is scheduled."""
    if is_suspended(run.spec):
        return None
    coming = [tier.next for tier in backups.tiers if tier.next]
    if backups.next_verification:
        coming.append(backups.next_verification)
    seconds = ((datetime.fromisoformat(moment) - now).total_seconds() for moment in coming)
    return min([_REPORT_EVERY, *(max(0.0, wait) + 1.0 for wait in seconds)])


def _known(run: Run) -> api.Backups | None:
    """What the status says so far; `None` too where a newer operator wrote what this one can't read."""
    known = run.database.get("status", {}).get("backup")
    try:
        return api.Backups.model_validate(known) if known else None
    except pydantic.ValidationError:
        return None


def _ended(attempt: Attempt) -> EndedJob | None:
    if attempt.is_running:
        return None
    return EndedJob(
        name=attempt.name,
        tier=labels_of(attempt.job).get(naming.LABEL_TIER),
        finished=str(attempt.finished_at),
        succeeded=attempt.succeeded,
        result=BackupReport.read(attempt.result).as_document(),
    )


CONCERN = Concern("backups", Needs.NOTHING, reconcile, stable=True)
REPORT = Concern("backup status", Needs.NOTHING, report, report, conditions=(Condition.BACKUPS_HEALTHY,), stable=True)
