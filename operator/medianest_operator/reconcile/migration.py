"""The migration Job: one a source, found again after a restart by its name, never two at once."""

import json
from dataclasses import dataclass, field
from typing import Any

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Reason
from medianest_operator.controller.kinds import CONFIG_MAP, JOB, POD
from medianest_operator.errors import Permanent
from medianest_operator.migrations.history import History
from medianest_operator.migrations.plan import Plan, make_plan
from medianest_operator.migrations.source import Migration, SourceError, content_digest, migrations_from_mapping
from medianest_operator.reconcile.context import Run
from medianest_operator.resources.meta import Manifest
from medianest_operator.resources.migration_job import migration_job
from medianest_operator.schema import bundled_migrations

RUNNING, APPLIED, FAILED = "Running", "Applied", "Failed"


@dataclass(frozen=True)
class Source:
    """The migrations that the spec names."""

    migrations: tuple[Migration, ...]
    digest: str


@dataclass
class State:
    """Where the schema stands."""

    reason: Reason = Reason.UNKNOWN
    message: str = "The database has not been looked at yet."
    up_to_date: bool | None = None
    pending: list[str] = field(default_factory=list)
    run: api.MigrationRun | None = None


async def source(run: Run) -> Source:
    """Read the source. Raises Permanent where it can't be one."""
    wanted = run.spec.migrations
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
    return Source(migrations, content_digest(migrations, wanted.target))


def job_token(run: Run) -> str:
    """Changes whenever a migration Job does, so that the schema is looked at again."""
    return json.dumps([[job["metadata"]["uid"], _finished(job) is not None] for job in run.jobs])


async def reconcile(run: Run, wanted: Source, history: History) -> State:
    """Start the Job where something is pending, and tell where the schema stands."""
    plan = make_plan(wanted.migrations, history, run.spec.migrations.target)
    state = State(pending=[migration.name for migration in plan.pending])
    name = run.names.migration_job(wanted.digest)
    job = next((job for job in run.jobs if job["metadata"]["name"] == name), None)
    others = [job for job in run.jobs if job["metadata"]["name"] != name]
    if running := [other for other in others if _finished(other) is None]:
        state.run = run_of(run, running[0])
        state.reason, state.up_to_date = Reason.MIGRATING, False
        state.message = f"Waiting for {running[0]['metadata']['name']}, which runs an earlier source."
        return state
    if job is None and not plan.is_up_to_date:
        job = await _start(run, wanted)
    for other in others:
        await run.services.applier.delete(JOB, other)
    state.run = run_of(run, job) if job else None
    _judge(state, plan, history)
    return state


async def _start(run: Run, wanted: Source) -> Manifest:
    image = run.spec.image or run.services.settings.postgres_image
    manifest = migration_job(run.names, run.spec, image, wanted.digest, run.owner)
    return await run.services.applier.apply(JOB, manifest)


def _judge(state: State, plan: Plan, history: History) -> None:
    last = state.run
    if plan.is_up_to_date:
        held = f" {len(plan.held_back)} later ones are held back by migrations.target." if plan.held_back else ""
        notes = f" {' '.join(plan.warnings)}" if plan.warnings else ""
        state.reason, state.up_to_date = Reason.UP_TO_DATE, True
        state.message = f"The schema is at {history.version}.{held}{notes}"
    elif last and last.outcome == FAILED:
        state.reason, state.up_to_date = Reason.MIGRATION_FAILED, False
        state.message = (
            f"{last.message or 'The migration Job failed without a result.'} "
            f"To try the same source again, delete Job {last.job}."
        )
    elif last and last.outcome == APPLIED:
        state.reason, state.up_to_date = Reason.BEHIND, False
        missing = ", ".join(state.pending)
        why = plan.blocker.message if plan.blocker else f"still pending: {missing}"
        state.message = f"Job {last.job} ended, but {why}. Does spec.image hold other migrations than the operator?"
    else:
        state.reason, state.up_to_date = Reason.MIGRATING, False
        by = f"Job {last.job}" if last else "A Job"
        more = f" {last.message}" if last and last.message else ""
        state.message = f"{by} applies {', '.join(state.pending) or 'the migrations'}.{more}"


def _finished(job: Manifest) -> dict[str, Any] | None:
    """The condition that ended a Job; None while it runs."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True":
            return dict(condition)
    return None


def run_of(run: Run, job: Manifest) -> api.MigrationRun:
    """A Job and the result that its newest pod left, as the status tells them."""
    ended = _finished(job)
    outcome = RUNNING if ended is None else APPLIED if ended["type"] == "Complete" else FAILED
    result = _result(run, job["metadata"]["uid"])
    status = job.get("status", {})
    finished = status.get("completionTime") or (ended["lastTransitionTime"] if ended else None)
    message = result.get("message")
    if message is None and outcome == FAILED and ended:
        message = f"Job {job['metadata']['name']} failed: {ended.get('message') or ended.get('reason')}."
    failed = result.get("failed")
    return api.MigrationRun(
        job=job["metadata"]["name"],
        digest=job["metadata"].get("annotations", {}).get(naming.ANNOTATION_SOURCE_DIGEST, "")[:16],
        outcome=outcome,
        reason=result.get("reason"),
        message=message,
        started_at=status.get("startTime"),
        finished_at=finished,
        applied=[api.AppliedMigration.model_validate(item) for item in result.get("applied", [])],
        failed=api.MigrationFailure.model_validate(failed) if failed else None,
    )


def _result(run: Run, job_uid: str) -> dict[str, Any]:
    """The newest result among the pods of a Job; empty while there is none."""
    newest: tuple[str, dict[str, Any]] = ("", {})
    for pod in run.services.cache.of_database(POD, run.key):
        if not any(owner["uid"] == job_uid for owner in pod["metadata"].get("ownerReferences", [])):
            continue
        for container in pod.get("status", {}).get("containerStatuses", []):
            ended = container.get("state", {}).get("terminated")
            if not ended or ended.get("finishedAt", "") < newest[0]:
                continue
            newest = (ended.get("finishedAt", ""), _parse(ended.get("message", "")))
    return newest[1]


def _parse(message: str) -> dict[str, Any]:
    try:
        result = json.loads(message)
    except ValueError:
        return {"message": message.strip()[-1000:]} if message.strip() else {}
    return result if isinstance(result, dict) else {}
