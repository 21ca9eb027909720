"""The `MediaNestOperation` objects: what each waits for, how far it is, what it came to, and when it goes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Reason
from medianest_operator.api.operation import OperationPhase, OperationSpec, OperationStatus
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.apply import is_as_applied
from medianest_operator.kubernetes.kinds import DATABASE, JOB, OPERATION, Manifest
from medianest_operator.naming import Key
from medianest_operator.observability.notifications import Message
from medianest_operator.postgres import databases
from medianest_operator.reconcile import attempts
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.backups import asked
from medianest_operator.reconcile.backups.asked import Asked
from medianest_operator.reconcile.backups.requests import NOTHING_CHANGED, Progress, Restores
from medianest_operator.reconcile.concern import Concern, Needs, Outcome
from medianest_operator.reconcile.conditions import conditions_of_attempt
from medianest_operator.reconcile.context import Run, Services
from medianest_operator.reconcile.instances.servers import Servers
from medianest_operator.reconcile.status import timed
from medianest_operator.resources.backup_jobs import aside_job, to_days
from medianest_operator.resources.meta import owner_reference
from medianest_operator.results.restore import RestoreReport
from medianest_operator.timestamps import stamp_now

log = logging.getLogger(__name__)

_DEFAULT_TTL: Final = str(OperationSpec.model_fields["ttl_after_finished"].default)
_TOOLS: Final = (
    "argocd.argoproj.io/", "kustomize.toolkit.fluxcd.io/", "helm.toolkit.fluxcd.io/", "meta.helm.sh/",
    "app.kubernetes.io/managed-by", "app.kubernetes.io/instance",
)  # fmt: skip
"""How the labels and annotations begin by which Argo CD, Flux and Helm know what they have made."""
_OVER: Final = {OperationPhase.SUCCEEDED: True, OperationPhase.FAILED: False}
"""The phases that end it, and whether well."""


async def reconcile(run: Run) -> Outcome:
    """Report how each operation stands, and let those go that have been over for long enough."""
    every = [item for item in asked.all_of(run) if not item.is_going]
    first = next(iter(asked.queue(run, every)), None)
    restores = run.facts.get(Restores)
    statuses = {}
    for item in every:
        follower = _Follower(run.services, item)
        if not item.is_over:
            await _One(run, follower, restores, first).reconcile()
        statuses[item.name] = follower.status
    for item in every:
        await _let_go(run.services, item)
    last, servers = _last(statuses), run.facts.get(Servers)
    failed = last is not None and last.phase == OperationPhase.FAILED and servers is not None and servers.serving
    summary = f"the restore of {naming.OPERATION_KIND} {last.name} failed and changed nothing" if last else None
    return Outcome(status={"operation": last}, summary=summary if failed else None)


async def reject(services: Services, key: Key) -> float | None:
    """Where their database isn't there, they wait for it. Returns the seconds until one of them goes."""
    waits = []
    for manifest in services.cache.of_database(OPERATION, key):
        item = Asked(manifest)
        if item.is_going:
            continue
        if not item.is_over:
            await _Follower(services, item).wait(f"There is no {naming.KIND} {key[1]} in this namespace.")
        elif (wait := await _let_go(services, item)) is not None:
            waits.append(wait)
    return min(waits, default=None)


def _last(statuses: Mapping[str, Mapping[str, Any]]) -> api.LastOperation | None:
    """The newest that has begun; a dry run is none, since it changes nothing."""
    begun = [
        (str(status.get("startedAt") or status.get("finishedAt") or ""), name)
        for name, status in statuses.items()
        if status.get("phase", OperationPhase.PENDING) != OperationPhase.PENDING
        and status.get("operation") != asked.DRY_RUN
    ]
    if not begun:
        return None
    name = max(begun)[1]
    status = statuses[name]
    return api.LastOperation(name=name, operation=str(status["operation"]), phase=str(status["phase"]))


async def _let_go(services: Services, item: Asked) -> float | None:
    """Delete one that has had its time. Returns the seconds until it has; `None` where it has no end."""
    finished = item.known.get("finishedAt")
    if not item.is_over or finished is None or _is_of_a_tool(item.manifest):
        return None
    ttl = to_days(item.spec.ttl_after_finished if item.spec else _DEFAULT_TTL)
    left = (datetime.fromisoformat(finished) + ttl - datetime.now(UTC)).total_seconds()
    if left > 0:
        return left
    namespace = item.manifest["metadata"]["namespace"]
    log.info("%s %s has been over for %s days and goes", naming.OPERATION_KIND, item.name, ttl.days,
             extra={"database": f"{namespace}/{item.manifest['spec'].get('database')}"})  # fmt: skip
    await services.applier.delete(OPERATION, item.manifest)
    return None


def _is_of_a_tool(manifest: Manifest) -> bool:
    """Whether a tool would make it again, which would ask for another restore."""
    metadata = manifest["metadata"]
    marks = [*(metadata.get("labels") or {}), *(metadata.get("annotations") or {})]
    return any(mark.startswith(_TOOLS) for mark in marks)


class _One:
    """One that isn't over, in one run.

    Args:
        first: the one whose turn it is.
    """

    def __init__(self, run: Run, follower: _Follower, restores: Restores | None, first: Asked | None) -> None:
        self._run = run
        self._follower = follower
        self._item = follower.item
        self._restores = restores
        self._first = first

    async def reconcile(self) -> None:
        progress = self._restores.progress if self._restores else None
        if progress is not None and progress.uid == self._item.uid:
            await self._follower.report(progress)
            return
        database = self._run.key[1]
        if problem := self._item.problem(database, self._run.spec):
            await self._follower.fail(Reason.INVALID_SPEC, problem)
        elif self._first is None or self._first.uid != self._item.uid:
            before = f"{naming.OPERATION_KIND} {self._first.name}" if self._first else "another operation"
            await self._follower.wait(f"It waits for {before}, which comes first: one is done at a time.")
        elif obstacle := self._obstacle():
            await self._follower.wait(f"It waits: {naming.KIND} {database} {obstacle}.")
        elif self._item.is_aside:
            await self._aside()
        elif "conditions" not in self._item.known:
            await self._follower.wait(f"It waits until the operator could ask {naming.KIND} {database}.")

    def _obstacle(self) -> str | None:
        """Why it can't begin, or go on, in words that follow the database's name."""
        run, restores, servers = self._run, self._restores, self._run.facts.get(Servers)
        if run.spec.paused:
            return "is paused (spec.paused)"
        if run.spec.hibernate:
            return "is hibernated (spec.hibernate)"
        if servers is None or not servers.serving:
            return "doesn't serve"
        if self._item.operation == asked.TABLES and any(attempts.ended(job) is None for job in run.jobs):
            return "is being migrated"
        if restores is None:
            return None
        if restores.active and restores.progress is None:
            return "is being filled by spec.bootstrap"
        return restores.waits or (None if restores.has_database else "doesn't serve yet")

    async def _aside(self) -> None:
        """Follow the Job of one that leaves the live database in its place: a dry run, or tables beside it."""
        run, name, item = self._run, self._run.names.aside_job(self._item.digest), self._item
        attempt, _ = attempts.named(run, run.aside_jobs, name)
        if attempt is None:
            try:
                attempt = await self._start()
            except Permanent as error:
                await self._follower.fail(Reason.RESTORE_FAILED, error.message)
                return
        details: dict[str, Any] = {"job": attempt.name, "started_at": attempt.started_at}
        if attempt.is_stranded:
            # It has changed nothing, or all that it should have: another one finds out.
            await attempt.discard()
        if await attempt.is_in_vain() and not is_as_applied(JOB, attempt.job, await self._job()):
            message = await attempt.give_way()
            await self._follower.report(Progress(item.uid, OperationPhase.RUNNING, _under_way(item), message, details))
            return
        if attempt.is_running:
            doing = "finds out what a restore would do" if item.is_dry_run else f"brings tables of {item.which} back"
            message = await attempt.obstacle() or f"Job {attempt.name} {doing}."
            progress = Progress(item.uid, OperationPhase.RUNNING, _under_way(item), message, details)
            await self._follower.report(progress)
            return
        result = RestoreReport.read(attempt.result)
        message = result.message or f"Job {attempt.name} ended without a result: see its pod's log."
        details |= {"backup": result.backup, "repository": result.repository, "finished_at": attempt.finished_at}
        tables = item.restore is not None and bool(item.restore.tables)
        if not attempt.succeeded or not (tables or result.estimate):
            told = f"A restore can't be done: {message}" if item.is_dry_run else message
            await self._follower.fail(Reason.RESTORE_FAILED, told, **details)
            return
        details |= {"estimate": result.estimate, "schema_name": result.schema_name}
        reason = Reason.OPERATION_SUCCEEDED if item.is_dry_run else Reason.RESTORED
        done = Progress(item.uid, OperationPhase.SUCCEEDED, reason, message, details)
        await self._follower.report(done)

    async def _start(self) -> Attempt:
        return await attempts.start(self._run, await self._job())

    async def _job(self) -> Manifest:
        run, item = self._run, self._item
        primary = run.facts.require(Servers).primary
        assert primary is not None
        assert item.restore is not None
        source = item.source(run.names, run.spec)
        identifier = None
        if source.backup.startswith("latest"):
            instance = run.instance(primary, naming.MAINTENANCE_DATABASE)
            async with run.services.sessions.use(instance, run.credentials) as connection:
                identifier = await databases.system_identifier(connection)
        owner = owner_reference(item.manifest, OPERATION)
        return aside_job(
            run.names, run.spec, source, item.digest, run.job_image, owner,
            system_identifier=identifier, asked=item.restore, others=item.others(run.spec), schema=item.schema,
        )  # fmt: skip


class _Follower:
    """Writes the status of one.

    Attributes:
        status: as it is by now.
    """

    def __init__(self, services: Services, item: Asked) -> None:
        self._services = services
        self.item = item
        self.status: Mapping[str, Any] = item.known

    async def wait(self, why: str) -> None:
        """Say what it waits for; what has begun goes on afterwards."""
        begun = self.item.known.get("phase") == OperationPhase.RUNNING
        phase = OperationPhase.RUNNING if begun else OperationPhase.PENDING
        reason = _under_way(self.item) if begun else Reason.OPERATION_PENDING
        await self.report(Progress(self.item.uid, phase, reason, f"{why} It goes on afterwards." if begun else why))

    async def fail(self, reason: Reason, message: str, **details: Any) -> None:
        """It is over, and nothing was changed."""
        told = f"{message.rstrip('.')}. {NOTHING_CHANGED} This object is done; make another one for another try."
        await self.report(Progress(self.item.uid, OperationPhase.FAILED, reason, told, details))

    async def report(self, progress: Progress) -> None:
        """Write the status where it differs, and Events where the reason is another."""
        now, known = datetime.now(UTC), self.item.known
        details = {name: value for name, value in progress.details.items() if value is not None}
        details["started_at"] = known.get("startedAt") or details.get("started_at")
        details.setdefault("job", known.get("job"))
        if progress.phase in _OVER:
            details.setdefault("finished_at", stamp_now())
            details["seconds"] = _seconds(details["started_at"], details["finished_at"])
        generation = int(self.item.manifest["metadata"]["generation"])
        conditions = conditions_of_attempt(_OVER.get(progress.phase), progress.reason, progress.message)
        status = OperationStatus(
            observed_generation=generation,
            phase=progress.phase,
            conditions=timed(conditions, known, generation, now),
            operation=self.item.operation,
            message=progress.message,
            **details,
        ).to_dict()
        if status != known:
            if not await self._services.applier.apply_status(OPERATION, self.item.manifest, status):
                return
            await self._announce(progress)
        self.status = status

    async def _announce(self, progress: Progress) -> None:
        before = {item["reason"] for item in self.item.known.get("conditions", [])}
        if progress.reason in before or progress.phase is OperationPhase.PENDING:
            return
        kind: Literal["Normal", "Warning"] = "Warning" if progress.phase is OperationPhase.FAILED else "Normal"
        recorder, metadata = self._services.recorder, self.item.manifest["metadata"]
        whom = self.item.manifest | {"kind": naming.OPERATION_KIND}
        await recorder.record(whom, kind, progress.reason, progress.message)
        wanted = str(self.item.manifest["spec"].get("database"))
        database = self._services.cache.get(DATABASE, metadata["namespace"], wanted)
        if database is None or progress.phase not in _OVER or self.item.is_dry_run:
            return
        told = f"{naming.OPERATION_KIND} {self.item.name}: {progress.message}"
        await recorder.record(database, kind, progress.reason, told)
        if kind == "Warning":
            warning = Message(
                metadata["namespace"], metadata["name"], naming.OPERATION_KIND, progress.reason, progress.message
            )
            self._services.notifier.warn(database, warning)


def _under_way(item: Asked) -> Reason:
    return Reason.OPERATION_RUNNING if item.is_dry_run else Reason.RESTORING


def _seconds(started: str | None, finished: str) -> float | None:
    if started is None:
        return None
    took = datetime.fromisoformat(finished) - datetime.fromisoformat(started)
    return max(0.0, took.total_seconds())


CONCERN = Concern("operations", Needs.NOTHING, reconcile, reconcile)
