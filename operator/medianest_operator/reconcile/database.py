"""One run for one database: the order of the concerns, and nothing else."""

import logging
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pydantic

from medianest_operator import naming
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.database import DatabaseSpec, Synchronous
from medianest_operator.api.status import Backups, DatabaseStatus
from medianest_operator.errors import Permanent, ReconcileError, Transient
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError
from medianest_operator.kubernetes.kinds import DATABASE, Manifest
from medianest_operator.naming import Key
from medianest_operator.observability import metrics
from medianest_operator.observability.notifications import Message
from medianest_operator.postgres import parameters
from medianest_operator.postgres.sessions import Unreachable
from medianest_operator.reconcile import (
    backup_objects,
    backups,
    certificates,
    findings,
    hardening,
    logins,
    migration,
    patroni,
    restore,
    rollout,
    server,
    status,
    volumes,
    workload,
)
from medianest_operator.reconcile.conditions import Findings
from medianest_operator.reconcile.context import Pod, Run, Services
from medianest_operator.reconcile.transitions import transitions

log = logging.getLogger(__name__)

_SOON = 2.0
"""Seconds until another look while something is under way that tells no event."""


class DatabaseReconciler:
    """Brings databases to what their spec wants."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def reconcile(self, key: Key) -> float | None:
        """One run. Returns the seconds until the next look, or None where there is nothing to look at.

        Raises Transient, ApiError or a connection error where it has to be tried again.
        """
        database = self._services.cache.get(DATABASE, *key)
        if database is None or "deletionTimestamp" in database["metadata"]:
            await self._forget(key)
            await backup_objects.reject(self._services, key)
            return None
        names = naming.Names(*key)
        found = Findings(names, None, int(database["metadata"]["generation"]))
        retry: Exception | None = None
        try:
            spec = _parse(database)
        except Permanent as error:
            found.problem = error
            await self._report(database, found)
            return self._services.settings.sweep_interval
        run = Run(self._services, database, spec)
        found.spec = spec
        try:
            if not spec.paused:
                await self._shape(run, found)
            await self._serve(run, found)
            migrated = found.migration.run if found.migration else None
            await backup_objects.reconcile(run, _not_to_be_dumped(run, found), migrated)
        except ReconcileError as error:
            if error.reason == Reason.DELETING:
                return self._services.settings.probe_interval
            found.problem = found.problem or error
            retry = error if isinstance(error, Transient) else None
        except Unreachable as error:
            found.serving, found.unreachable, retry = False, str(error), error
        except (ApiError, *TRANSIENT_ERRORS) as error:
            retry = error
        await self._fill(run, found)
        await self._report(database, found)
        if retry:
            raise retry
        return self._next_look(run, found)

    async def _shape(self, run: Run, found: Findings) -> None:
        """Everything that can be applied before the first server runs.

        What a person must mend is noted, not raised: certificates go on being renewed and servers looked at meanwhile.
        """
        try:
            await certificates.reconcile(run)
            await logins.reconcile(run)
            await workload.reconcile_surroundings(run)
            if problems := parameters.problems(run.spec):
                raise Permanent(Reason.INVALID_PARAMETER, "; ".join(problems))
            await volumes.reconcile(run)
            await workload.reconcile_stateful_set(run)
            found.no_backups = await backups.shape(run)
        except Permanent as error:
            found.problem = error

    async def _serve(self, run: Run, found: Findings) -> None:
        """Look at the servers, and do what needs one; only look while paused or while the spec can't be acted on."""
        passive = run.spec.paused or found.problem is not None
        if "credentials" not in run.notes and not await certificates.load(run):
            return
        look = await server.look(run)
        primary = found.primary = run.primary
        found.serving = look.serves(primary)
        if primary is None or not found.serving:
            found.unreachable = look.unreachable.get(primary.name) if primary else None
            if not passive and not run.spec.hibernate:
                found.rollout = await rollout.replace_broken(run)
            return
        found.silent = frozenset(pod.name for pod in run.pods) - frozenset(look.instances)
        if passive:
            found.restore = restore.look(run)
            schema = await self._schema(run, primary, found)
            if schema is None:
                return
            found.schema_version, found.indexes = schema.history.version, schema.indexes
            return
        await server.reconcile(run, primary, look)
        found.restore = await restore.reconcile(run, primary, may_swap=not migration.is_running(run))
        for reason, message in found.restore.events:
            await self._services.recorder.record(run.database, "Normal", reason, message)
        run.has_database = found.restore.has_database
        if not run.has_database:
            return
        schema = await self._schema(run, primary, found)
        if schema is not None:
            found.schema_version, found.indexes = schema.history.version, schema.indexes
            found.indexes = hardening.application_indexes(schema.indexes)
            if not found.restore.active:
                await self._change_schema(run, found, primary, schema)
        refused = look.instances[primary.name].refused_parameters
        if refused and found.problem is None:
            found.problem = Permanent(
                Reason.INVALID_PARAMETER, f"postgresql.parameters: PostgreSQL refused {'; '.join(refused)}"
            )
        if not run.spec.hibernate:
            loaded = parameters.marker(run.spec)
            found.configuring = [name for name, facts in look.instances.items() if facts.configuration != loaded]
            waiting = frozenset(name for name, facts in look.instances.items() if facts.pending_restart)
            found.rollout = await rollout.reconcile(run, waiting)
            if run.spec.instances > 1 and run.spec.postgresql.synchronous is not Synchronous.OFF:
                found.unpromotable = not await patroni.synchronous_replicas(run)

    async def _change_schema(self, run: Run, found: Findings, primary: Pod, schema: server.SchemaFacts) -> None:
        """Migrate and harden, one at a time; never beside a restore, which would take it back."""
        try:
            found.migration = await migration.reconcile(run, await migration.source(run), schema)
        except Permanent as error:
            found.problem = error
        found.hardening = await hardening.reconcile(run, primary, schema.history, found.migration)

    async def _schema(self, run: Run, primary: Pod, found: Findings) -> server.SchemaFacts | None:
        """None where it isn't what anybody of ours made: nothing is changed there, and everything else goes on."""
        try:
            if run.has_database:
                await server.reconcile_grants(run, primary)
            return await server.schema_facts(run, primary, migration.job_token(run), migration.is_running(run))
        except Permanent as error:
            found.problem = found.problem or error
            return None

    async def _fill(self, run: Run, found: Findings) -> None:
        """What the status tells whatever happened."""
        found.pods = run.pods
        found.primary = run.primary
        found.wanted = 0 if run.spec.hibernate else run.spec.instances
        found.image = run.image
        found.server_not_after = run.notes.get("server_not_after")
        found.growing = volumes.growing(run)
        known = run.database.get("status", {}).get("backup")
        found.backups = backups.look(run, Backups.model_validate(known) if known else None, found.no_backups)
        if any(not pod.ready for pod in found.pods) or len(found.pods) < found.wanted:
            try:
                found.pod_findings = await findings.find(run, found.wanted)
            except (ApiError, *TRANSIENT_ERRORS) as error:
                log.info("could not look for the reasons: %s", error, extra={"database": "/".join(run.key)})

    async def _report(self, database: Manifest, found: Findings) -> None:
        """Write the status where it differs, then tell the transitions."""
        previous: Mapping[str, Any] = database.get("status") or {}
        built = status.build(found, previous, datetime.now(UTC))
        current = built.to_dict()
        key = found.names.namespace, found.names.database
        _measure(key, built, found)
        if current == previous:
            return
        if not await self._services.applier.apply_status(DATABASE, database, current):
            return
        for transition in transitions(previous, built):
            await self._services.recorder.record(database, transition.kind, transition.reason, transition.message)
            if transition.kind == "Warning":
                told = Message(*key, naming.KIND, transition.reason, transition.message)
                self._services.notifier.warn(database, told)

    def _next_look(self, run: Run, found: Findings) -> float:
        interval = self._services.settings.probe_interval * random.uniform(0.9, 1.1)
        migrating = found.migration is not None and found.migration.is_running
        waiting = found.configuring or found.unpromotable or found.silent or (found.primary and not found.serving)
        if found.rollout or migrating or waiting:
            return min(_SOON, interval)
        if "server_not_after" in run.notes:
            return min(interval, certificates.next_renewal(run).total_seconds())
        return interval

    async def _forget(self, key: Key) -> None:
        await self._services.sessions.forget(*key)
        for pod in self._services.memory.swap(key, "measured", frozenset(), frozenset[str]()):
            metrics.forget_pod(*key, pod)
        self._services.memory.forget(key)
        metrics.forget(*key)


def _not_to_be_dumped(run: Run, found: Findings) -> str | None:
    """Why nobody should begin a backup that was asked for, in words."""
    if run.spec.hibernate or run.spec.paused:
        return "hibernates" if run.spec.hibernate else "is paused"
    if not found.serving or not run.has_database:
        return "doesn't serve yet"
    if found.restore and found.restore.active:
        return "is being restored"
    if found.migration and found.migration.is_running:
        # A dump's locks and a migration's would wait for each other.
        return "is being migrated"
    return None


def _parse(database: Manifest) -> DatabaseSpec:
    """The spec. Raises Permanent where it isn't one, which the API server lets through only for older objects."""
    try:
        return DatabaseSpec.model_validate(database.get("spec") or {})
    except pydantic.ValidationError as error:
        problems = "; ".join(
            f"spec.{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
        )
        raise Permanent(Reason.INVALID_SPEC, problems) from error


def _measure(key: Key, current: DatabaseStatus, found: Findings) -> None:
    ready = any(item.type == Condition.READY and item.status == "True" for item in current.conditions)
    metrics.READY.labels(*key).set(int(ready))
    if current.instances:
        metrics.INSTANCES.labels(*key, "ready").set(current.instances.ready)
        metrics.INSTANCES.labels(*key, "desired").set(current.instances.desired)
    if found.server_not_after:
        metrics.CERTIFICATE_NOT_AFTER.labels(*key).set(found.server_not_after.timestamp())
