"""Backups: the volumes and CronJobs of a database, what its Jobs came to, and the backups that people ask for."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final

import pydantic

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.backups.repository.layout import Tier
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.client import ApiError
from medianest_operator.kubernetes.kinds import CLAIM, CRON_JOB, SECRET, Manifest
from medianest_operator.observability import metrics
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.backups import repository_volumes
from medianest_operator.reconcile.backups.replaced import is_of_replaced, known_replaced
from medianest_operator.reconcile.backups.requests import Restores
from medianest_operator.reconcile.backups.status import EndedJob, State, collect, never, overdue, verdict
from medianest_operator.reconcile.concern import Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Run, labels_of
from medianest_operator.resources import backup_jobs, repositories
from medianest_operator.resources.backup_jobs import is_suspended
from medianest_operator.results.backup import BackupReport

log = logging.getLogger(__name__)

_SECRETS_EVERY: Final = 60.0
"""Seconds after which the Secrets that Jobs need are looked for again."""
_BEGIN_EVERY: Final = 15.0
"""Seconds after which it is asked again why a Job doesn't begin: no watched object tells."""
_STILL_SUSPENDED: Final = "The CronJobs are suspended, and stay so while spec.paused is true"
_JUST_NOW: Final = timedelta(seconds=60)
_WHY_NOT_BEGUN: Final[Mapping[Reason, str]] = {
    Reason.UNSCHEDULABLE: "its pod can't be scheduled; kubectl describe pod says why",
    Reason.QUOTA_EXCEEDED: "a quota leaves no room for its pod; kubectl describe job says which",
    Reason.POD_REJECTED: "its pod is refused; kubectl describe job says by what",
}
_REPORT_EVERY: Final = 600.0
"""Seconds after which the schedules are compared with the clock again, unless one of them comes before."""


@dataclass(frozen=True)
class BackupsPossible:
    """The fact whether backups can be taken.

    Attributes:
        problem: why not, as a clause; `None` where they can.
        missing: repositories that no Job can reach, each with what is missing, as a clause.
    """

    problem: str | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


async def reconcile(run: Run) -> Outcome:
    """Make volumes and CronJobs what the spec wants, and find out whether the Jobs would have all that they need."""
    wanted = backup_jobs.cron_jobs(run.names, run.spec, run.job_image, run.owner)
    await _discard_outdated(run, wanted)
    waiting = await _let_go(run, {cron_job["metadata"]["name"] for cron_job in wanted})
    if is_suspended(run.spec):
        for cron_job in run.services.cache.of_database(CRON_JOB, run.key):
            await _suspend(run, cron_job)
    try:
        for claim in repositories.claims(run.names, run.spec, run.owner):
            await _apply_sized(run, claim)
        for cron_job in wanted:
            if not _is_made_later(run, cron_job):
                await run.services.applier.apply(CRON_JOB, cron_job)
    except Permanent as error:
        facts = (BackupsPossible(error.message.rstrip(".")),)
        return Outcome(facts=facts, next_look=_SECRETS_EVERY if waiting else None)
    waiting = waiting or bool(_not_begun(run))
    looks = waiting or (bool(_keys(run) or _credentials(run)) and not is_suspended(run.spec))
    return Outcome(facts=(await _possible(run),), next_look=_SECRETS_EVERY if looks else None)


def _not_begun(run: Run) -> list[Attempt]:
    """The Jobs of which no container was started yet."""
    attempts = [Attempt(run, job) for job in run.backup_jobs]
    return [attempt for attempt in attempts if attempt.is_running and not attempt.has_begun]


async def _discard_outdated(run: Run, wanted: Sequence[Manifest]) -> None:
    """Delete the CronJobs' Jobs that wait for a Secret or a volume which the spec no longer names: a series goes on
    only once its Job has ended."""
    mounts = {item["metadata"]["name"]: _mounted(item["spec"]["jobTemplate"]) for item in wanted}
    for attempt in _not_begun(run):
        cron_job = _scheduled_by(attempt.job)
        if cron_job is None or not _mounted(attempt.job) - mounts.get(cron_job, set()):
            continue
        if await attempt.is_in_vain():
            log.info("Job %s can't begin, and is of an earlier spec: it goes", attempt.name,
                     extra={"database": "/".join(run.key)})  # fmt: skip
            await attempt.discard()


def _scheduled_by(job: Manifest) -> str | None:
    """The CronJob that has started a Job at its time; `None` for one that a person made of it."""
    metadata = job["metadata"]
    if (metadata.get("annotations") or {}).get("cronjob.kubernetes.io/instantiate") == "manual":
        return None
    owners = metadata.get("ownerReferences", [])
    return next((o["name"] for o in owners if o["kind"] == CRON_JOB.kind and o.get("controller")), None)


def _mounted(job: Manifest) -> set[tuple[str, str]]:
    """The Secrets and claims that a Job's pods wait for."""
    volumes = job["spec"]["template"]["spec"].get("volumes") or []
    secrets = {("Secret", str(v["secret"]["secretName"])) for v in volumes if "secret" in v}
    claims = (v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v)
    return secrets | {("PersistentVolumeClaim", str(name)) for name in claims}


async def _waiting(run: Run) -> str | None:
    """Which Job can't begin, and why, as a sentence.

    Raises:
        ApiError: the Events that would tell can't be read.
    """
    for attempt in _not_begun(run):
        if finding := await attempt.lasting_obstacle():
            # Counts of nodes and names of pods come and go in the others' messages.
            why = _WHY_NOT_BEGUN.get(finding.reason, finding.message)
            return f"Job {attempt.name} can't begin: {why}."
    return None


async def _let_go(run: Run, wanted: Collection[str]) -> bool:
    """Delete the CronJobs that aren't wanted any more. Returns whether some have yet to wait, suspended: what one
    started goes with it, and so does what a person made of it (`kubectl create job --from`)."""
    waiting = False
    for live in run.services.cache.of_database(CRON_JOB, run.key):
        if live["metadata"]["name"] in wanted:
            continue
        if _is_at_work(run, live):
            await _suspend(run, live)
            waiting = True
        else:
            await run.services.applier.delete(CRON_JOB, live)
            run.services.cache.remove(CRON_JOB, live)
    return waiting


async def _suspend(run: Run, cron_job: Manifest) -> None:
    """Let a CronJob start nothing more, whatever else of it can't be as wanted."""
    if cron_job["spec"].get("suspend"):
        return
    namespace, name = run.names.namespace, cron_job["metadata"]["name"]
    try:
        live = await run.services.client.merge(CRON_JOB, namespace, name, {"spec": {"suspend": True}})
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return
    run.services.cache.put(CRON_JOB, live)


def _is_at_work(run: Run, cron_job: Manifest) -> bool:
    """Whether a Job of it has yet to end, or ended just now: the status has yet to learn what it came to."""
    uid = cron_job["metadata"].get("uid")
    attempts = [
        Attempt(run, job)
        for job in run.backup_jobs
        if any(owner.get("uid") == uid for owner in job["metadata"].get("ownerReferences", []))
    ]
    return any(attempt.is_running or attempt.age < _JUST_NOW for attempt in attempts)


def _is_made_later(run: Run, cron_job: Manifest) -> bool:
    """Whether a CronJob waits until the database wakes: where there is none, there is none to suspend."""
    namespace, name = run.names.namespace, cron_job["metadata"]["name"]
    return run.spec.hibernate and run.services.cache.get(CRON_JOB, namespace, name) is None


async def _apply_sized(run: Run, claim: Manifest) -> None:
    """A volume that can't grow any further automatically stays as large as it is: backups go on.

    Raises:
        Permanent: as `_apply_claim`.
    """
    as_it_is, larger = repository_volumes.sized(run, claim, grows=False), repository_volumes.sized(run, claim)
    if larger["spec"] == as_it_is["spec"]:
        repository_volumes.note_refusal(run, claim, None)
        await _apply_claim(run, as_it_is)
        return
    if repository_volumes.was_just_refused(run, larger):
        await _apply_claim(run, as_it_is)
        return
    try:
        await _apply_claim(run, larger)
    except Permanent as error:
        repository_volumes.note_refusal(run, larger, error)
        await _apply_claim(run, as_it_is)
    else:
        repository_volumes.note_refusal(run, claim, None)


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


def _keys(run: Run) -> set[str]:
    """The Secrets that each Job needs: its pod waits for them."""
    return {item.name for item in (run.spec.backup.identity_secret, run.spec.backup.signing_secret) if item}


def _credentials(run: Run) -> dict[str, set[str]]:
    """The Secrets that a Job needs for a repository, by its name, where it needs any."""
    found = {item.name: repositories.secret_names([item]) for item in run.spec.backup.repositories}
    return {name: secrets for name, secrets in found.items() if secrets}


async def _possible(run: Run) -> BackupsPossible:
    keys, credentials = _keys(run), _credentials(run)
    absent = set()
    for name in sorted(keys.union(*credentials.values())):
        if await run.services.client.get(SECRET, run.names.namespace, name) is None:
            absent.add(name)
    told = {name: f"there is no Secret {name} in this namespace, which spec.backup names" for name in absent}
    missing = {
        repository: told[min(secrets & absent)] for repository, secrets in credentials.items() if secrets & absent
    }
    if lost := keys & absent:
        return BackupsPossible(told[min(lost)])
    if missing and len(missing) == len(run.spec.backup.repositories):
        return BackupsPossible(missing[min(missing)])
    return BackupsPossible(missing=missing)


async def report(run: Run) -> Outcome:
    """Where the backups stand: it says nothing about Ready, since a database without a backup serves."""
    now = datetime.now(UTC)
    ended = [job for manifest in run.backup_jobs if (job := _ended(Attempt(run, manifest))) is not None]
    ended += [job for manifest in run.restore_jobs if (job := _ended_of_replaced(Attempt(run, manifest))) is not None]
    crons = run.services.cache.of_database(CRON_JOB, run.key)
    spec = backup_jobs.as_scheduled(run.spec, crons) if run.spec.paused else run.spec
    backups = collect(spec, _known(run), ended, now)
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
    state = State(
        backups,
        problem,
        overdue(spec, backups, since, now),
        never(spec, now),
        possible.missing if possible else {},
        # Where this run couldn't ask, as they were.
        found.replaced if (found := run.facts.get(Restores)) else known_replaced(run),
        await _waiting(run),
        State.suspended if run.spec.backup.suspend else _STILL_SUSPENDED,
    )
    return Outcome(
        conditions={Condition.BACKUPS_HEALTHY: Verdict(*verdict(spec, state))},
        status={"backup": backups},
        next_look=_next_look(run, spec, backups, now),
    )


def _next_look(run: Run, spec: DatabaseSpec, backups: api.Backups, now: datetime) -> float | None:
    """Seconds until the status is out of date by the clock alone; `None` while nothing is scheduled."""
    soon = [_BEGIN_EVERY] if _not_begun(run) else []
    if is_suspended(spec):
        return min(soon, default=None)
    coming = [tier.next for tier in backups.tiers if tier.next]
    if backups.next_verification:
        coming.append(backups.next_verification)
    seconds = ((datetime.fromisoformat(moment) - now).total_seconds() for moment in coming)
    return min([_REPORT_EVERY, *soon, *(max(0.0, wait) + 1.0 for wait in seconds)])


def _known(run: Run) -> api.Backups | None:
    """What the status says so far; `None` too where a newer operator wrote what this one can't read."""
    known = run.database.get("status", {}).get("backup")
    try:
        return api.Backups.model_validate(known) if known else None
    except pydantic.ValidationError:
        return None


def _ended(attempt: Attempt) -> EndedJob | None:
    return None if attempt.is_running else _as_ended(attempt, labels_of(attempt.job).get(naming.LABEL_TIER))


def _ended_of_replaced(attempt: Attempt) -> EndedJob | None:
    return None if attempt.is_running or not is_of_replaced(attempt) else _as_ended(attempt, Tier.REPLACED.value)


def _as_ended(attempt: Attempt, tier: str | None) -> EndedJob:
    return EndedJob(
        name=attempt.name,
        tier=tier,
        finished=str(attempt.finished_at),
        started=attempt.started_at,
        succeeded=attempt.succeeded,
        result=BackupReport.read(attempt.result).as_document(),
    )


CONCERN = Concern("backups", Needs.NOTHING, reconcile, stable=True)
REPORT = Concern("backup status", Needs.NOTHING, report, report, conditions=(Condition.BACKUPS_HEALTHY,), stable=True)
