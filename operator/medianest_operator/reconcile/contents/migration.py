"""Migrations: a Job where something is pending or unfinished, one for each source, never two at once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import pydantic

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason, Severity
from medianest_operator.api.migrations import OnFailure
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.kinds import CONFIG_MAP, digest
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.errors import access
from medianest_operator.migrations.journal import LastRun
from medianest_operator.migrations.plan import Plan, make_plan
from medianest_operator.migrations.source import Migration, SourceError, content_digest, migrations_from_mapping
from medianest_operator.reconcile import attempts
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.backups.requests import Restores
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.contents.schema import Schema
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.instances.servers import SOON, Servers
from medianest_operator.resources.migration_job import migration_job, run_options
from medianest_operator.results.text import first_three
from medianest_operator.timestamps import stamp

_SERVING: Final = "The database serves the schema that it has."
RUNNING, APPLIED, FAILED = "Running", "Applied", "Failed"
TRY_AGAIN_AFTER: Final = timedelta(minutes=5)
"""A Job that ended for a reason that may pass is started again after this time."""
FINISH_AFTER: Final = timedelta(seconds=20)
"""Likewise where a run was cut off in the middle: the database waits for somebody to finish it."""
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


@dataclass(frozen=True)
class MigrationState:
    """Where the schema stands.

    Attributes:
        reason: of SchemaUpToDate; `None` where it keeps its last value.
        pending: migrations of the source that are not applied yet.
        run: the newest run, as the status has it.
        is_running: a Job is at work.
    """

    reason: Reason | None
    message: str
    pending: tuple[str, ...] = ()
    run: api.MigrationRun | None = None
    is_running: bool = False

    @property
    def is_up_to_date(self) -> bool:
        return self.reason in {Reason.UP_TO_DATE, Reason.DRIFTED}


_NO_ROOM: Final = (
    "Waiting for room: a volume is nearly full, and the migrations begin once the application may write again."
)


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


async def reconcile(run: Run) -> Outcome:
    """Start the Job where something is pending or unfinished, and report where the schema stands.

    Never beside a restore, which would take the migration back.
    """
    schema = run.facts.require(Schema)
    if run.facts.require(Restores).active:
        return _outcome(run, schema, None)
    try:
        wanted = await source(run)
    except Permanent as error:
        closed = schema.last_run is not None and schema.last_run.keeps_locked_out
        text = f"{error.message}." if closed else f"{error.message}. {_SERVING}"
        verdict = Verdict("False", error.reason, _with_access(schema, text))
        kept = {"schema": _status(schema, [], None, run)}
        return Outcome(
            conditions={Condition.SCHEMA_UP_TO_DATE: verdict}, status=kept, obstacle=verdict, stalled=verdict
        )
    return _outcome(run, schema, await _follow(run, wanted, schema))


async def observe(run: Run) -> Outcome:
    """Only what the schema itself tells."""
    return _outcome(run, run.facts.require(Schema), None)


async def _follow(run: Run, wanted: Source, schema: Schema) -> MigrationState:
    history = schema.history
    plan = make_plan(wanted.migrations, history, run.spec.migrations.target) if wanted.migrations is not None else None
    pending = tuple(migration.name for migration in plan.pending) if plan else ()
    attempt, others = attempts.named(run, run.jobs, run.names.migration_job(wanted.digest))
    if running := [other for other in others if other.is_running]:
        return MigrationState(
            Reason.MIGRATING,
            f"Waiting for {running[0].name}, which runs an earlier source.",
            pending=pending,
            run=run_of(running[0], schema.last_run),
            is_running=True,
        )
    again = attempt is not None and _is_due_again(attempt, wanted, schema)
    if attempt is not None and again:
        await attempt.discard()
        attempt = None
    if attempt is None and _has_work(wanted, plan, schema):
        is_open = schema.last_run is not None and schema.last_run.is_open
        if run.facts.require(Servers).reads_only and not is_open:
            last = _remembered(schema.last_run, wanted)
            return MigrationState(Reason.MIGRATING, _NO_ROOM, pending=pending, run=last)
        attempt = await _start(run, wanted, schema, again)
    for other in others:
        await other.discard()
    last = run_of(attempt, schema.last_run) if attempt else _remembered(schema.last_run, wanted)
    if attempt is not None and attempt.is_running and naming.ANNOTATION_RECHECK in attempt.annotations:
        return MigrationState(None, "", pending=pending, run=last, is_running=True)
    problem = await attempt.obstacle() if attempt is not None and attempt.is_running else None
    return _judge(MigrationState(None, "", pending=pending, run=last), plan, schema, attempt, problem)


def _has_work(wanted: Source, plan: Plan | None, schema: Schema) -> bool:
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


def _is_due_again(attempt: Attempt, wanted: Source, schema: Schema) -> bool:
    """Whether a Job is to be replaced by a new one of the same source."""
    if attempt.is_running:
        return attempt.is_stranded
    last = schema.last_run
    if last is not None and last.is_open:
        return attempt.age > FINISH_AFTER
    if wanted.may_change and attempt.age > RECHECK_AFTER:
        return True
    if attempt.succeeded:
        # It ended well, but over another history: Prisma may have gone on from there.
        return schema.drift is None and attempt.age > FINISH_AFTER
    return _result(attempt).get("outcome", "Transient") == "Transient" and attempt.age > TRY_AGAIN_AFTER


async def _start(run: Run, wanted: Source, schema: Schema, again: bool) -> Attempt:
    backs_up = bool(schema.history.applied or schema.history.other_relations)
    last = schema.last_run
    recheck = again and wanted.may_change and (last is None or not last.is_open)
    manifest = migration_job(
        run.names, run.spec, run.job_image, wanted.digest, run.owner, backs_up=backs_up, recheck=recheck
    )
    return await attempts.start(run, manifest)


def _judge(
    state: MigrationState, plan: Plan | None, schema: Schema, attempt: Attempt | None, problem: str | None
) -> MigrationState:
    """Where the schema stands, by its history and by what the last run came to.

    Args:
        problem: what keeps the attempt's pods from working, as a sentence.
    """
    last, version = state.run, schema.history.version
    is_running = attempt is not None and attempt.is_running
    ended_well = last is not None and last.outcome == APPLIED
    if plan.is_up_to_date if plan is not None else ended_well:
        if schema.drift:
            message = (
                f"The schema is at {version}, but differs from what its migrations make: {first_three(schema.drift)}."
                " The operator changes nothing: put the difference into a migration, or revert it."
            )
            return replace(state, reason=Reason.DRIFTED, message=message, is_running=is_running)
        held = (
            f" {len(plan.held_back)} later ones are held back by migrations.target." if plan and plan.held_back else ""
        )
        notes = f" {' '.join(plan.warnings)}" if plan and plan.warnings else ""
        message = f"The schema is at {version}.{held}{notes}"
        return replace(state, reason=Reason.UP_TO_DATE, message=message, is_running=is_running)
    if last and last.outcome == FAILED:
        message = last.message or "The migration Job failed without a result."
        again = " To try the same source again, set migrations.retry to a new value."
        message = message if "migrations.retry" in message else message + again
        return replace(state, reason=_failure_reason(last), message=message, is_running=is_running)
    if ended_well and plan is not None and last is not None:
        why = plan.blocker.message if plan.blocker else f"these are still pending: {', '.join(state.pending)}"
        message = (
            f"Job {last.job} ended, but {why}. Check that spec.image matches the operator's version: its bundled"
            " migrations may differ."
        )
        return replace(state, reason=Reason.MIGRATIONS_PENDING, message=message, is_running=is_running)
    return replace(state, reason=Reason.MIGRATING, message=problem or _progress(state), is_running=is_running)


def _failure_reason(last: api.MigrationRun) -> Reason:
    if last.reason in (Reason.ROLLBACK_UNVERIFIED, Reason.ROLLBACK_UNFINISHED):
        return Reason(last.reason)
    return Reason.MIGRATION_ROLLED_BACK if last.rollback and last.rollback.verified else Reason.MIGRATION_FAILED


_STEPS: Final[Mapping[str, str]] = {
    "Planned": "is planning",
    "BackingUp": "is taking the backup before",
    "Rehearsing": "is rehearsing on a copy",
    "LockingOut": "is locking out writers before applying",
    "Applying": "is applying",
    "Verifying": "is verifying",
    "RollingBack": "is rolling back",
}


def _progress(state: MigrationState) -> str:
    last = state.run
    names = ", ".join(state.pending) or "the migrations"
    if last is None:
        doing = "will apply"
    else:
        # Until its pod has written the first into the journal.
        doing = _STEPS.get(last.step, "is applying") if last.step else "is starting, and will apply"
    more = f" {last.message}" if last and last.message else ""
    return f"{f'Job {last.job}' if last else 'A Job'} {doing} {names}.{more}"


def _remembered(last: LastRun | None, wanted: Source) -> api.MigrationRun | None:
    """What the journal tells of a failed run whose Job is gone."""
    if last is None or last.source != wanted.digest or last.finished_at is None or not _failed_for_good(last):
        return None
    result = {"outcome": FAILED, **(last.result or {})}
    return _run_status(
        result,
        job="",
        digest=last.source,
        outcome=FAILED,
        started_at=stamp(last.started_at),
        finished_at=stamp(last.finished_at),
    )


def run_of(attempt: Attempt, last: LastRun | None = None) -> api.MigrationRun:
    """A Job and the result that its newest pod left, as the status has them."""
    outcome = RUNNING if attempt.is_running else APPLIED if attempt.succeeded else FAILED
    # Its pods' Events may come after its own, or not at all where a pod was taken away; the journal has it anyway.
    result = _result(attempt) or ({} if attempt.is_running else _result_in_journal(last, attempt.started_at))
    if attempt.is_running and result.get("outcome") == APPLIED:
        # The Job ends a moment after its pod: a run doesn't say both that it runs and what it came to.
        result = {}
    if "message" not in result and outcome == FAILED:
        result = {**result, "message": f"Job {attempt.name} failed: {attempt.why_ended}."}
    return _run_status(
        result,
        job=attempt.name,
        digest=attempt.annotations.get(naming.ANNOTATION_SOURCE_DIGEST, ""),
        outcome=outcome,
        started_at=attempt.started_at,
        finished_at=attempt.finished_at,
        step=last.step if last is not None and last.is_open and attempt.is_running else None,
    )


def _result_in_journal(last: LastRun | None, since: str | None) -> dict[str, Any]:
    """The result of a run that ended, if it began with a Job."""
    if last is None or last.is_open or since is None or last.started_at < datetime.fromisoformat(since):
        return {}
    return dict(last.result or {})


def _run_status(
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


def _result(attempt: Attempt) -> dict[str, Any]:
    """What a Job's newest pod left; a pod that never got to migrate says why in its init container."""
    found = attempt.result
    problem = attempt.copy_failure if not found else None
    if problem is not None:
        return {"message": f"The image's migrations can't be copied: {problem}", "outcome": FAILED}
    return found


# What follows for the status.


def _outcome(run: Run, schema: Schema, state: MigrationState | None) -> Outcome:
    pending = list(state.pending) if state else list(_known(run).get("pending", []))
    status = {"schema": _status(schema, pending, state.run if state else None, run)}
    if state is not None:
        state = replace(state, message=_with_access(schema, state.message))
    if state is None or state.reason is None:
        return Outcome(facts=(state,) if state else (), status=status)
    verdict = Verdict("True" if state.reason is Reason.UP_TO_DATE else "False", state.reason, state.message)
    obstacle = None
    # A drifted schema serves, and whoever changed it may have had a reason: it doesn't take Ready away.
    if not state.is_up_to_date:
        message = state.message
        closed = schema.last_run is not None and schema.last_run.keeps_locked_out
        is_over = state.reason in {Reason.MIGRATION_ROLLED_BACK, Reason.MIGRATION_FAILED}
        if is_over and not closed and schema.history.version:
            message = _serving_as_before(run, schema, state)
        obstacle = Verdict("False", state.reason, message)
    return Outcome(
        facts=(state,),
        conditions={Condition.SCHEMA_UP_TO_DATE: verdict},
        obstacle=obstacle,
        stalled=verdict if state.reason.severity is Severity.STUCK else None,
        status=status,
        events=tuple(_events(run, state)),
        next_look=_next_look(run, state),
    )


def _with_access(schema: Schema, message: str) -> str:
    """A message that says first of all that the application is locked out, where a run has left that: its Job may have
    ended before it could read that, or without a word."""
    last, closed = schema.last_run, access(True)
    return f"{closed} {message}" if last and last.keeps_locked_out and closed not in message else message


def _next_look(run: Run, state: MigrationState) -> float | None:
    """Seconds: soon while a Job is at work; a ConfigMap, which isn't watched, is read with every probe."""
    if state.is_running:
        return SOON
    return run.services.settings.probe_interval if run.spec.migrations.source.config_map else None


def _known(run: Run) -> Mapping[str, Any]:
    known: Mapping[str, Any] = run.database.get("status", {}).get("schema") or {}
    return known


def _status(schema: Schema, pending: list[str], last: api.MigrationRun | None, run: Run) -> api.Schema:
    if last is None and (known := _known(run).get("lastRun")):
        try:
            last = api.MigrationRun.model_validate(known)
        except pydantic.ValidationError:
            # A newer operator wrote it; the journal has the run anyway.
            last = None
    return api.Schema(version=schema.history.version, pending=pending, drift=list(schema.drift or ()), last_run=last)


def _serving_as_before(run: Run, schema: Schema, state: MigrationState) -> str:
    failed = state.run.failed if state.run else None
    what = f"Migration {failed.migration}" if failed else "A migration"
    if run.spec.migrations.on_failure is OnFailure.HALT:
        how = "failed; what was applied before it stays (onFailure: Halt)."
        return f"Serving schema {schema.history.version}. {what} {how} See SchemaUpToDate."
    if state.reason is Reason.MIGRATION_ROLLED_BACK:
        how = "failed and was rolled back; the rollback was verified, no data was lost."
    else:
        how = "can't be applied; the database was not changed."
    return f"Serving schema {schema.history.version} as before. {what} {how} See SchemaUpToDate."


def _events(run: Run, state: MigrationState) -> Iterable[Announcement]:
    """What a migration run does and did, step by step."""
    now, known = state.run, _known(run).get("lastRun", {})
    if now is None:
        return
    same = known.get("job") == now.job and known.get("startedAt") == now.started_at
    if now.step and (not same or known.get("step") != now.step):
        yield Announcement("MigrationProgress", f"Job {now.job}: {now.step}.")
    if now.rollback and not (same and known.get("rollback")):
        text = f"Rolled back by {now.rollback.strategy.lower()}: {now.rollback.verification}."
        yield Announcement("RolledBack", text, "Normal" if now.rollback.verified else "Warning")
    if now.outcome == APPLIED and now.applied and not (same and known.get("outcome") == APPLIED):
        yield Announcement("MigrationsApplied", f"Applied {', '.join(item.name for item in now.applied)}.")


CONCERN = Concern(
    "migrations",
    Needs.SCHEMA,
    reconcile,
    observe,
    {Condition.SCHEMA_UP_TO_DATE: Verdict("Unknown", Reason.UNKNOWN, "The schema has not been observed yet.")},
    calm=True,
)
