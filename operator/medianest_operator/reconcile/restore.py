"""The application's database comes to be: empty, from a backup, or from another server; or anew, by a restore in place.

What comes from elsewhere is filled into a candidate beside the live database, proved there by the Job that fills it,
and takes the live one's name; the one that it replaces is kept until a later backup has succeeded. Each look begins
with what the server holds (`postgres.databases`), so that an operator that was cut off goes on where it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.bootstrap import Import, RestoreSource
from medianest_operator.api.conditions import Reason
from medianest_operator.api.quantity import to_bytes
from medianest_operator.errors import Permanent, Transient
from medianest_operator.kubernetes.kinds import JOB, Manifest, digest
from medianest_operator.postgres import databases, logins, roles
from medianest_operator.postgres.databases import LiveDatabase, Mark, Role
from medianest_operator.postgres.sessions import Connection, Unreachable
from medianest_operator.reconcile import findings, jobs
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.resources.backup_jobs import import_job, restore_job
from medianest_operator.timestamps import stamp_now

BOOTSTRAP: Final = "bootstrap"
RESTORING, DONE, FAILED, SKIPPED = "Restoring", "Done", "Failed", "Skipped"
_TRIES = 5
_PAUSE = timedelta(seconds=15)
"""Before another try, doubled each time."""
_MAINTENANCE_DATABASE = naming.MAINTENANCE_DATABASE


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        id: `bootstrap`, or spec.restore.requestId.
        source: a backup, or a running server.
        own: whether it is one of this object's own backups.
    """

    id: str
    source: RestoreSource | Import
    own: bool = False

    @property
    def digest(self) -> str:
        """Another source is another request."""
        return digest([self.id, self.source.model_dump(mode="json")])

    @property
    def verb(self) -> str:
        return "Importing" if isinstance(self.source, Import) else "Restoring"

    @property
    def reasons(self) -> tuple[Reason, Reason]:
        """Under way, and failed."""
        if isinstance(self.source, Import):
            return Reason.IMPORTING, Reason.IMPORT_FAILED
        return Reason.RESTORING, Reason.RESTORE_FAILED


@dataclass
class State:
    """Where a request stands.

    Attributes:
        has_database: the application's database is there.
        active: a request is under way, so that nothing else changes the database meanwhile.
        reason: why the object isn't Ready; `None` where no request keeps it from being.
        failed: only another request helps.
    """

    has_database: bool
    active: bool = False
    reason: Reason | None = None
    message: str = ""
    failed: bool = False
    told: api.Restored | None = None
    events: list[tuple[str, str]] = field(default_factory=list)


async def reconcile(run: Run, primary: Pod, *, may_swap: bool) -> State:
    """Bring the database in, as far as it can be brought now.

    Args:
        may_swap: no migration is at work in the live database.
    """
    instance = run.instance(primary, _MAINTENANCE_DATABASE)
    async with run.services.sessions.use(instance, run.credentials, databases.PATIENCE) as connection:
        found = await databases.read_databases(connection)
        return await _Arrival(run, primary, connection, found, may_swap).reconcile()


def look(run: Run) -> State:
    """For a run that must change nothing: what was known."""
    known = run.database.get("status", {}).get("restore")
    return State(has_database=True, told=api.Restored.model_validate(known) if known else None)


class _Arrival:
    """One look at a database's requests."""

    def __init__(
        self, run: Run, primary: Pod, connection: Connection, found: dict[str, LiveDatabase], may_swap: bool
    ) -> None:
        self._run = run
        self._primary = primary
        self._connection = connection
        self._found = found
        self._may_swap = may_swap
        self._name = run.spec.database.name
        known = run.database.get("status", {}).get("restore")
        self._known = api.Restored.model_validate(known) if known else None

    async def reconcile(self) -> State:
        live = self._found.get(self._name)
        request = self._request(live)
        await self._clear(request)
        if request is not None:
            return await self._follow(request, live)
        if live is None:
            return await self._create()
        if not live.connects:
            await databases.allow_connections(self._connection, self._name)
        return State(has_database=True, told=self._settled(live))

    async def _create(self) -> State:
        """An empty database. A request that is there from the beginning, as in a manifest that was used before, finds
        nothing to take the place of."""
        wanted = self._run.spec.restore
        mark = Mark(Role.LIVE, wanted.request_id, stamp_now()) if wanted else None
        await databases.create(self._connection, self._name, self._run.spec.database.owner, mark)
        if wanted is None:
            return State(has_database=True, told=self._known)
        message = (
            "The database was made with this request: there was nothing yet to restore in place of. To begin with a"
            " backup, use spec.bootstrap.restore; to restore now, give a new spec.restore.requestId."
        )
        return State(has_database=True, told=api.Restored(request=wanted.request_id, phase=SKIPPED, message=message))

    def _settled(self, live: LiveDatabase) -> api.Restored | None:
        """What there is to tell where nothing is asked for."""
        known = self._known
        if known is None or known.phase in {DONE, SKIPPED}:
            return known
        if live.mark is not None and live.mark.role is Role.LIVE and live.mark.request == known.request:
            # The operator was cut off between the swap and the status.
            done = {"phase": DONE, "backup": live.mark.backup, "finished_at": live.mark.at, "message": None}
            return known.model_copy(update=done)
        return None

    def _request(self, live: LiveDatabase | None) -> Request | None:
        """What is asked for and not done."""
        spec = self._run.spec
        if live is None:
            if spec.bootstrap is None:
                return None
            source = spec.bootstrap.restore or spec.bootstrap.import_
            return Request(BOOTSTRAP, source) if source else None
        wanted = spec.restore
        if wanted is None or (live.mark is not None and live.mark.request == wanted.request_id):
            return None
        if self._known and self._known.request == wanted.request_id and self._known.phase in {DONE, SKIPPED}:
            return None
        repository = spec.backup.repository(wanted.repository) if wanted.repository else spec.backup.repositories[0]
        if repository is None:
            return None
        if repository.volume is not None:
            claim = repository.volume.claim_name or self._run.names.backup_claim(repository.name)
            volume = repository.volume.model_copy(update={"claim_name": claim})
            repository = repository.model_copy(update={"volume": volume})
        encryption = spec.backup.encryption
        source = RestoreSource(
            repository=repository,
            backup=wanted.backup,
            identity_secret=encryption.identity_secret if encryption else None,
        )
        return Request(wanted.request_id, source, own=True)

    # One request.

    async def _follow(self, request: Request, live: LiveDatabase | None) -> State:
        tries = [job for job in self._run.restore_jobs if _request_of(job) == request.digest[:16]]
        tries.sort(key=lambda job: int(job["metadata"]["annotations"][naming.ANNOTATION_TRY]))
        job = tries[-1] if tries else None
        if job is None:
            return self._failed_before(request, live) or await self._start(request, live, 0)
        end = jobs.ended(job)
        if end is None:
            why = findings.of_job(self._run, job)
            return self._told(request, live, RESTORING, why or self._doing(request, job), job=job)
        result = jobs.result(self._run, job)
        if end["type"] == "Complete":
            return await self._swap(request, live, job, result)
        message = str(result.get("message") or f"Job {job['metadata']['name']} failed without a result.")
        if result.get("outcome") == "Failed" or len(tries) >= _TRIES:
            if self._candidate(request) in self._found:
                await databases.drop(self._connection, self._candidate(request))
            again = (
                "Change spec.bootstrap to try again."
                if request.id == BOOTSTRAP
                else "Nothing was changed. A new spec.restore.requestId tries again."
            )
            return self._told(request, live, FAILED, f"{message.rstrip('.')}. {again}", job=job, result=result)
        since = datetime.now(UTC) - datetime.fromisoformat(end["lastTransitionTime"])
        if since < _PAUSE * 2 ** (len(tries) - 1):
            return self._told(request, live, RESTORING, f"{message.rstrip('.')}. Trying again soon.", job=job)
        return await self._start(request, live, len(tries))

    def _failed_before(self, request: Request, live: LiveDatabase | None) -> State | None:
        """A request that failed, and whose Job somebody has cleaned away since: it must not begin again by that."""
        known = self._known
        if live is None or known is None or known.request != request.id or known.phase != FAILED:
            return None
        return replace(self._told(request, live, FAILED, known.message or ""), told=known)

    def _doing(self, request: Request, job: Manifest) -> str:
        name = job["metadata"]["name"]
        if isinstance(request.source, Import):
            return f"Job {name} imports the database that Secret {request.source.connection_secret.name} names."
        return f"Job {name} restores backup {request.source.backup} of repository {request.source.repository.name}."

    async def _start(self, request: Request, live: LiveDatabase | None, number: int) -> State:
        """An empty candidate, and a Job to fill it."""
        if (problem := await self._no_room(live)) is not None:
            return self._told(request, live, FAILED, problem)
        run, candidate = self._run, self._candidate(request)
        await databases.drop(self._connection, candidate)
        migrator = logins.role_name(run.spec, logins.MIGRATOR)
        mark = Mark(Role.CANDIDATE, request.id, stamp_now())
        await databases.create_candidate(self._connection, candidate, run.spec.database.owner, migrator, mark)
        image = run.spec.image or run.services.settings.postgres_image
        name = digest([request.digest, number])
        if isinstance(request.source, Import):
            manifest = import_job(run.names, run.spec, request.source, candidate, name, image, run.owner)
        else:
            newest = request.own and request.source.backup.startswith("latest")
            identifier = await databases.system_identifier(self._connection) if newest else None
            manifest = restore_job(
                run.names, run.spec, request.source, candidate, name, image, run.owner, system_identifier=identifier
            )
        manifest["metadata"]["annotations"] = {
            naming.ANNOTATION_REQUEST: request.digest[:16],
            naming.ANNOTATION_TRY: str(number),
        }
        try:
            job = await run.services.applier.apply(JOB, manifest)
        except Permanent as error:
            await databases.drop(self._connection, candidate)
            return self._told(request, live, FAILED, error.message)
        return self._told(request, live, RESTORING, self._doing(request, job), job=job)

    async def _no_room(self, live: LiveDatabase | None) -> str | None:
        """A volume that runs full takes the server down: better refuse what can't fit beside what is there."""
        if live is None:
            return None
        size = to_bytes(self._run.spec.storage.size)
        sizes = await databases.read_sizes(self._connection)
        used = sum(sizes.values())
        if used + sizes[live.name] <= size * 0.9:
            return None
        return (
            f"There is no room for a second copy: the databases take {used >> 20} MiB of storage.size"
            f" {size >> 20} MiB, and the restored one comes on top until the old one goes. Nothing was changed. Raise"
            " spec.storage.size and give a new spec.restore.requestId."
        )

    async def _swap(
        self, request: Request, live: LiveDatabase | None, job: Manifest, result: Mapping[str, Any]
    ) -> State:
        """Let the proved candidate take the live name."""
        run, candidate = self._run, self._candidate(request)
        if candidate not in self._found:
            # It was taken away after it was proved: the Job is no proof of anything any more.
            await run.services.applier.delete(JOB, job)
            raise Transient("CandidateGone", f"database {candidate} is gone; it is filled again")
        if not self._may_swap:
            return self._told(request, live, RESTORING, "Restored and proved; waiting for a migration to end.", job=job)
        now = stamp_now()
        backup = result.get("backup")
        asked = run.spec.restore.request_id if request.id == BOOTSTRAP and run.spec.restore else request.id
        mark = Mark(Role.LIVE, asked, now, backup)
        kept = (self._kept(request), Mark(Role.KEPT, request.id, now)) if live is not None else None
        await roles.ensure_connect(self._connection, run.spec, candidate, replace=True)
        await run.services.sessions.leave(*run.key, self._name)
        await databases.swap_in(self._connection, candidate, self._name, mark, kept)
        for topic in ("schema", "grants", "hardening"):
            run.services.memory.drop(run.key, topic)
        self._found[self._name] = LiveDatabase(self._name, True, mark)
        state = self._told(
            request, self._found[self._name], DONE, str(result.get("message", "")), job=job, result=result,
            kept=kept[0] if kept else None, finished=now,
        )  # fmt: skip
        word = "Imported" if isinstance(request.source, Import) else "Restored"
        tail = f" The database that it replaced is kept as {kept[0]} until the next successful backup." if kept else ""
        state.events.append((word, f"{result.get('message', word)}{tail}"))
        return state

    def _told(
        self,
        request: Request,
        live: LiveDatabase | None,
        phase: str,
        message: str,
        *,
        job: Manifest | None = None,
        result: Mapping[str, Any] | None = None,
        kept: str | None = None,
        finished: str | None = None,
    ) -> State:
        told = result or {}
        doing, failed = request.reasons
        serving = " The database serves as before." if live is not None and phase != DONE else ""
        return State(
            has_database=live is not None,
            active=phase == RESTORING,
            reason={RESTORING: doing, FAILED: failed}.get(phase),
            message=message + serving,
            failed=phase == FAILED,
            told=api.Restored(
                request=request.id,
                phase=phase,
                backup=told.get("backup"),
                repository=told.get("repository"),
                job=job["metadata"]["name"] if job else None,
                message=message,
                differences=list(told.get("differences", []))[:10],
                kept_database=kept,
                finished_at=finished,
            ),
        )

    # What is left of earlier requests.

    async def _clear(self, request: Request | None) -> None:
        """Drop candidates that nobody asks for any more, and what was kept once there is a newer backup."""
        candidate = self._candidate(request) if request else None
        last: Mapping[str, Any] = self._run.database.get("status", {}).get("backup", {}).get("last", {})
        for item in list(self._found.values()):
            mark = item.mark
            ours = item.name.startswith((f"{self._name}_new_", f"{self._name}_old_"))
            if mark is None or mark.role is Role.LIVE or not ours or item.name == candidate:
                continue
            outlived = "startedAt" in last and datetime.fromisoformat(last["startedAt"]) > mark.moment
            if mark.role is Role.KEPT and not outlived:
                await self._end_readers(item.name)
            else:
                await databases.drop(self._connection, item.name)
                del self._found[item.name]
                if self._known and self._known.kept_database == item.name:
                    self._known = self._known.model_copy(update={"kept_database": None})
        await self._forget_jobs(request)

    async def _end_readers(self, kept: str) -> None:
        """On the replicas people may still read the database that was replaced, under its new name."""
        run = self._run
        for pod in run.pods:
            if pod.name == self._primary.name or not pod.streaming or not pod.address:
                continue
            with contextlib.suppress(Unreachable):
                instance = run.instance(pod, _MAINTENANCE_DATABASE)
                async with run.services.sessions.use(instance, run.credentials) as connection:
                    await databases.end_sessions(connection, kept)

    async def _forget_jobs(self, request: Request | None) -> None:
        for job in self._run.restore_jobs:
            over = request is None and jobs.ended(job) is not None
            foreign = request is not None and _request_of(job) != request.digest[:16]
            if over or foreign:
                await self._run.services.applier.delete(JOB, job)

    def _candidate(self, request: Request) -> str:
        return f"{self._name}_new_{request.digest[:8]}"

    def _kept(self, request: Request) -> str:
        return f"{self._name}_old_{request.digest[:8]}"


def _request_of(job: Manifest) -> str | None:
    found: str | None = job["metadata"].get("annotations", {}).get(naming.ANNOTATION_REQUEST)
    return found
