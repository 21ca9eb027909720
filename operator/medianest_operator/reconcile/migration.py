"""The migration Job: one a source, found again after a restart by its name, never two at once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.kinds import CONFIG_MAP, JOB, Manifest, digest
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.journal import LastRun
from medianest_operator.migrations.plan import Plan, make_plan
from medianest_operator.migrations.source import Migration, SourceError, content_digest, migrations_from_mapping
from medianest_operator.reconcile import findings, jobs
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.server import SchemaFacts
from medianest_operator.resources.migration_job import migration_job, run_options
from medianest_operator.results.text import first_three
from medianest_operator.timestamps import stamp

RUNNING, APPLIED, FAILED = "Running", "Applied", "Failed"
TRY_AGAIN_AFTER: Final = timedelta(minutes=5)
"""A Job that ended for a reason that may pass by itself is made anew after this time."""
FINISH_AFTER: Final = timedelta(seconds=20)
"""Likewise where a run was cut off in the middle: the database waits for somebody to finish it."""
STRANDED_AFTER: Final = timedelta(seconds=10)
"""A pod that is still there so long after the end of its grace period is on a lost node."""
RECHECK_AFTER: Final = timedelta(hours=1)
"""An image that is named by a tag may hold other migrations by now."""


@dataclass(frozen=True)
class Source:
    """The migrations that the spec names.

    Attributes:
        migrations: `None` where only the Job can see them: they are in an image.
        digest: changes whenever a run would do something else.
        may_change: the name stays and the content may not.
    """

    migrations: tuple[Migration, ...] | None
    digest: str
    may_change: bool = False


@dataclass
class State:
    """Where the schema stands."""

    reason: Reason = Reason.UNKNOWN
    message: str = "The database has not been looked at yet."
    up_to_date: bool | None = None
    pending: list[str] = field(default_factory=list)
    drift: list[str] = field(default_factory=list)
    run: api.MigrationRun | None = None
    is_running: bool = False


async def source(run: Run) -> Source:
    """Read the source. Raises Permanent where it can't be one."""
    wanted = run.spec.migrations
    options = run_options(run.spec)
    if wanted.source.image is not None:
        image = wanted.source.image
        document = {"image": image.reference, "path": image.path, **options.digested()}
        return Source(None, digest(document), may_change="@sha256:" not in image.reference)
    if wanted.source.config_map is None:
        migrations = bundled_migrations()
    else:
        name = wanted.source.config_map.name
        config_map = await run.services.client.get(CONFIG_MAP, run.names.namespace, name)
        if config_map is None:
            raise Permanent(
                Reason.SOURCE_INVALID, f"migrations.source.configMap: there is no ConfigMap {name} in this namespace"
            )
        try:
            migrations = migrations_from_mapping(config_map.get("data") or {}, f"ConfigMap {name}")
        except SourceError as error:
            raise Permanent(Reason.SOURCE_INVALID, f"migrations.source.configMap: {error}") from error
    if wanted.target and wanted.target not in {migration.name for migration in migrations}:
        names = ", ".join(migration.name for migration in migrations)
        raise Permanent(
            Reason.SOURCE_INVALID, f"migrations.target: {wanted.target} is not in the source, which holds {names}"
        )
    return Source(migrations, content_digest(migrations, options.digested()))


def job_token(run: Run) -> str:
    """Changes whenever a Job that changes the schema does, so that it is looked at again."""
    changing = [*run.jobs, *run.hardening_jobs]
    return json.dumps([[job["metadata"]["uid"], jobs.ended(job) is not None] for job in changing])


def is_running(run: Run) -> bool:
    """Whether a migration Job is at work, so that its steps are worth looking at."""
    return any(jobs.ended(job) is None for job in run.jobs)


async def reconcile(run: Run, wanted: Source, schema: SchemaFacts) -> State:
    """Start the Job where something is pending or unfinished, and tell where the schema stands."""
    history = schema.history
    plan = make_plan(wanted.migrations, history, run.spec.migrations.target) if wanted.migrations is not None else None
    state = State(
        pending=[migration.name for migration in plan.pending] if plan else [], drift=list(schema.drift or ())
    )
    name = run.names.migration_job(wanted.digest)
    job = next((job for job in run.jobs if job["metadata"]["name"] == name), None)
    others = [job for job in run.jobs if job["metadata"]["name"] != name]
    if running := [other for other in others if jobs.ended(other) is None]:
        state.run = run_of(run, running[0], schema.last_run)
        state.reason, state.up_to_date, state.is_running = Reason.MIGRATING, False, True
        state.message = f"Waiting for {running[0]['metadata']['name']}, which runs an earlier source."
        return state
    again = job is not None and _is_due_again(run, job, wanted, schema)
    if job is not None and again:
        await run.services.applier.delete(JOB, job)
        run.services.cache.remove(JOB, job)
        job = None
    if job is None and _has_work(wanted, plan, schema):
        job = await _start(run, wanted, schema, again)
    for other in others:
        await run.services.applier.delete(JOB, other)
    state.is_running = job is not None and jobs.ended(job) is None
    state.run = run_of(run, job, schema.last_run) if job else _remembered(schema.last_run, wanted)
    if job is not None and state.is_running and _is_recheck(job):
        return state
    _judge(run, state, plan, schema, job)
    return state


def _is_recheck(job: Manifest) -> bool:
    return naming.ANNOTATION_RECHECK in job["metadata"].get("annotations", {})


def _has_work(wanted: Source, plan: Plan | None, schema: SchemaFacts) -> bool:
    last = schema.last_run
    if last is not None and last.is_open:
        return True
    if last is not None and last.source == wanted.digest and _failed_for_good(last):
        return False
    # Nobody has said yet what this version should look like, so drift from it couldn't be seen.
    unrecorded = schema.drift is None
    return plan is None or not plan.is_up_to_date or unrecorded


def _failed_for_good(last: LastRun) -> bool:
    return not last.is_open and (last.result or {}).get("outcome") == FAILED


def _is_due_again(run: Run, job: Manifest, wanted: Source, schema: SchemaFacts) -> bool:
    """Whether a Job is to be replaced by a new one of the same source."""
    ended = jobs.ended(job)
    if ended is None:
        return _is_stranded(run, job)
    age = datetime.now(UTC) - datetime.fromisoformat(ended["lastTransitionTime"])
    last = schema.last_run
    if last is not None and last.is_open:
        return age > FINISH_AFTER
    if wanted.may_change and age > RECHECK_AFTER:
        return True
    if ended["type"] == "Complete":
        # It ended well, but over another history: Prisma may have gone on from there.
        return schema.drift is None and age > FINISH_AFTER
    result = _result(run, job)
    return result.get("outcome", "Transient") == "Transient" and age > TRY_AGAIN_AFTER


def _is_stranded(run: Run, job: Manifest) -> bool:
    """Whether its pod was to end and can't: its node is lost. A Job waits for such a pod for ever.

    Should the pod run on after all, unseen, the lock in the database keeps the next one waiting.
    """
    limit = datetime.now(UTC) - STRANDED_AFTER
    stamps = [pod["metadata"].get("deletionTimestamp") for pod in jobs.pods(run, job)]
    return bool(stamps) and all(stamp is not None and datetime.fromisoformat(stamp) < limit for stamp in stamps)


async def _start(run: Run, wanted: Source, schema: SchemaFacts, again: bool) -> Manifest:
    image = run.spec.image or run.services.settings.postgres_image
    backs_up = bool(schema.history.applied or schema.history.other_relations)
    last = schema.last_run
    recheck = again and wanted.may_change and (last is None or not last.is_open)
    manifest = migration_job(run.names, run.spec, image, wanted.digest, run.owner, backs_up=backs_up, recheck=recheck)
    return await run.services.applier.apply(JOB, manifest)


def _judge(run: Run, state: State, plan: Plan | None, schema: SchemaFacts, job: Manifest | None) -> None:
    last, version = state.run, schema.history.version
    ended_well = last is not None and last.outcome == APPLIED
    if plan.is_up_to_date if plan is not None else ended_well:
        held = (
            f" {len(plan.held_back)} later ones are held back by migrations.target." if plan and plan.held_back else ""
        )
        notes = f" {' '.join(plan.warnings)}" if plan and plan.warnings else ""
        state.reason, state.up_to_date = Reason.UP_TO_DATE, True
        state.message = f"The schema is at {version}.{held}{notes}"
        if schema.drift:
            state.reason = Reason.DRIFTED
            state.message = (
                f"The schema is not what its migrations made it: {first_three(schema.drift)}. Nothing is"
                " changed by itself: put it into a migration, or undo it."
            )
    elif last and last.outcome == FAILED:
        state.reason, state.up_to_date = _failure_reason(last), False
        again = " To try the same source again, set migrations.retry to a new value."
        message = last.message or "The migration Job failed without a result."
        state.message = message if "migrations.retry" in message else message + again
    elif ended_well and plan is not None:
        state.reason, state.up_to_date = Reason.BEHIND, False
        why = plan.blocker.message if plan.blocker else f"still pending: {', '.join(state.pending)}"
        state.message = (
            f"Job {last.job if last else ''} ended, but {why}. Does spec.image hold other migrations than the operator?"
        )
    else:
        state.reason, state.up_to_date = Reason.MIGRATING, False
        state.message = _progress(run, state, job)


def _failure_reason(last: api.MigrationRun) -> Reason:
    if last.reason == Reason.ROLLBACK_UNPROVED:
        return Reason.ROLLBACK_UNPROVED
    return Reason.MIGRATION_ROLLED_BACK if last.rollback and last.rollback.proved else Reason.MIGRATION_FAILED


_STEPS: Final[Mapping[str, str]] = {
    "Planned": "plans",
    "BackingUp": "backs up before",
    "Rehearsing": "rehearses on a copy",
    "Fencing": "holds writers off for",
    "Applying": "applies",
    "Proving": "proves",
    "RollingBack": "undoes",
}


def _progress(run: Run, state: State, job: Manifest | None) -> str:
    last = state.run
    names = ", ".join(state.pending) or "the migrations"
    if job is not None and (problem := findings.of_job(run, job)):
        return problem
    doing = _STEPS.get(last.step or "", "applies") if last else "applies"
    more = f" {last.message}" if last and last.message else ""
    return f"{f'Job {last.job}' if last else 'A Job'} {doing} {names}.{more}"


def _remembered(last: LastRun | None, wanted: Source) -> api.MigrationRun | None:
    """What the journal tells of a failed run whose Job is gone."""
    if last is None or last.source != wanted.digest or last.finished_at is None or not _failed_for_good(last):
        return None
    result = {"outcome": FAILED, **(last.result or {})}
    return _told(
        result,
        job="",
        digest=last.source,
        outcome=FAILED,
        started_at=stamp(last.started_at),
        finished_at=stamp(last.finished_at),
    )


def run_of(run: Run, job: Manifest, last: LastRun | None = None) -> api.MigrationRun:
    """A Job and the result that its newest pod left, as the status tells them."""
    ended = jobs.ended(job)
    outcome = RUNNING if ended is None else APPLIED if ended["type"] == "Complete" else FAILED
    status = job.get("status", {})
    # Its pods' Events may come after its own, or not at all where a pod was taken away; the journal has it anyway.
    result = _result(run, job) or (_result_in_journal(last, status.get("startTime")) if ended else {})
    if "message" not in result and outcome == FAILED and ended:
        result["message"] = f"Job {job['metadata']['name']} failed: {ended.get('message') or ended.get('reason')}."
    return _told(
        result,
        job=job["metadata"]["name"],
        digest=job["metadata"].get("annotations", {}).get(naming.ANNOTATION_SOURCE_DIGEST, ""),
        outcome=outcome,
        started_at=status.get("startTime"),
        finished_at=status.get("completionTime") or (ended["lastTransitionTime"] if ended else None),
        step=last.step if last is not None and last.is_open and ended is None else None,
    )


def _result_in_journal(last: LastRun | None, since: str | None) -> dict[str, Any]:
    """The result of a run that ended, if it began with a Job."""
    if last is None or last.is_open or since is None or last.started_at < datetime.fromisoformat(since):
        return {}
    return dict(last.result or {})


def _told(
    result: Mapping[str, Any],
    *,
    job: str,
    digest: str,
    outcome: str,
    started_at: str | None,
    finished_at: str | None,
    step: str | None = None,
) -> api.MigrationRun:
    def part(name: str, model: type[Any]) -> Any:
        return model.model_validate(result[name]) if result.get(name) else None

    return api.MigrationRun(
        job=job,
        digest=digest[:16],
        outcome=outcome,
        step=step,
        reason=result.get("reason"),
        message=result.get("message"),
        started_at=started_at,
        finished_at=finished_at,
        applied=[api.AppliedMigration.model_validate(item) for item in result.get("applied", [])],
        failed=part("failed", api.MigrationFailure),
        rollback=part("rollback", api.Rollback),
        rehearsal=part("rehearsal", api.Rehearsal),
        backup=result.get("backup"),
        stored_backup=part("stored_backup", api.StoredBackup),
    )


def _result(run: Run, job: Manifest) -> dict[str, Any]:
    """What a Job's newest pod left; a pod that never got to migrate tells why in its init container."""
    found = jobs.result(run, job)
    problem = jobs.copy_failure(run, job) if not found else None
    if problem is not None:
        return {"message": f"The image's migrations can't be copied: {problem}", "outcome": FAILED}
    return found
