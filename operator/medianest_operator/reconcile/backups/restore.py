"""The application's database comes to be: empty, from a backup, or from another server; or anew, by a restore in place.

What comes from elsewhere is filled into a candidate beside the live database, verified there by the Job that fills it,
and takes the live one's name; the one that it replaces is kept for a time (`replaced`). Each run begins
with what the server holds (`postgres.databases`), so that an operator that was cut off goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import pydantic

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.bootstrap import Import, RestoreSource
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.quantity import to_bytes
from medianest_operator.errors import Permanent, Transient
from medianest_operator.kubernetes.kinds import digest
from medianest_operator.postgres import databases, logins, roles
from medianest_operator.postgres.databases import LiveDatabase, Mark, Role
from medianest_operator.postgres.sessions import Connection
from medianest_operator.reconcile import attempts
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.backups.replaced import Replaced, is_of_replaced
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.instances.servers import SOON, Servers
from medianest_operator.resources.backup_jobs import import_job, restore_job
from medianest_operator.results.backup import Reason as BackupReason
from medianest_operator.timestamps import stamp, stamp_now

BOOTSTRAP: Final = "bootstrap"
RESTORING, DONE, FAILED, SKIPPED = "Restoring", "Done", "Failed", "Skipped"
_DIGITS: Final = 6
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
    def reasons(self) -> tuple[Reason, Reason]:
        """Under way, and failed."""
        if isinstance(self.source, Import):
            return Reason.IMPORTING, Reason.IMPORT_FAILED
        return Reason.RESTORING, Reason.RESTORE_FAILED


@dataclass(frozen=True)
class Restores:
    """The fact where the application's database and a request for its content stand.

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
    report: api.Restored | None = None
    events: tuple[Announcement, ...] = ()
    closed: str | None = None
    """Why the database lets nobody in, as a sentence; `None` where it does."""


async def reconcile(run: Run) -> Outcome:
    """Bring the application's database in, as far as it can be brought now."""
    primary = run.facts.require(Servers).primary
    if primary is None:
        return Outcome()
    instance = run.instance(primary, _MAINTENANCE_DATABASE)
    # A database isn't replaced while a migration is at work in it.
    may_cut_over = not any(attempts.ended(job) is None for job in run.jobs)
    async with run.services.sessions.use(instance, run.credentials, databases.PATIENCE) as connection:
        found = await databases.read_databases(connection)
        state = await _Restore(run, primary, connection, found, may_cut_over).reconcile()
    return _outcome(state)


async def observe(run: Run) -> Outcome:
    """For a run that must change nothing: whether people get into the application's database."""
    primary, name = run.facts.require(Servers).primary, run.spec.database.name
    if primary is None:
        return Outcome()
    instance = run.instance(primary, _MAINTENANCE_DATABASE)
    async with run.services.sessions.use(instance, run.credentials) as connection:
        live = (await databases.read_databases(connection)).get(name)
    return _outcome(Restores(has_database=live is not None, closed=_closed(name, live), report=_known(run)))


def _closed(name: str, live: LiveDatabase | None) -> str | None:
    """Why nobody gets in, as a sentence; `None` where people do."""
    if live is None:
        return f"There is no database {name}; the operator makes it as soon as it may change something."
    if not live.connects:
        return f"Database {name} takes no connections; the operator lets people in as soon as it may change something."
    if live.limit == 0:
        return (
            f"Database {name} lets nobody in: its owner set CONNECTION LIMIT 0. ALTER DATABASE {name}"
            " CONNECTION LIMIT -1 lifts that."
        )
    return None


def _outcome(state: Restores) -> Outcome:
    verdict = Verdict("False", state.reason, state.message) if state.reason else None
    if state.closed:
        closed = Verdict("False", Reason.CONNECTIONS_REFUSED, state.closed)
        return Outcome(
            facts=(state,), conditions={Condition.AVAILABLE: closed}, obstacle=closed, status={"restore": state.report}
        )
    # Until the application's database is there, nobody can use the one that leads.
    conditions = {} if state.has_database or verdict is None else {Condition.AVAILABLE: verdict}
    return Outcome(
        facts=(state,),
        conditions=conditions,
        obstacle=verdict,
        stalled=verdict if state.failed else None,
        status={"restore": state.report},
        events=state.events,
        next_look=SOON if state.active else None,
    )


def _known(run: Run) -> api.Restored | None:
    """What the status says so far; `None` too where a newer operator wrote what this one can't read."""
    known = run.database.get("status", {}).get("restore")
    try:
        return api.Restored.model_validate(known) if known else None
    except pydantic.ValidationError:
        return None


class _Restore:
    """One run over a database's requests."""

    def __init__(
        self, run: Run, primary: Pod, connection: Connection, found: dict[str, LiveDatabase], may_cut_over: bool
    ) -> None:
        self._run = run
        self._primary = primary
        self._connection = connection
        self._found = found
        self._may_cut_over = may_cut_over
        self._name = run.spec.database.name
        self._attempts = [item for job in run.restore_jobs if not is_of_replaced(item := Attempt(run, job))]
        self._known = _known(run)

    async def reconcile(self) -> Restores:
        live = self._found.get(self._name)
        request = self._request(live)
        told = tuple(await self._clear(request))
        state = await self._bring_in(request, live)
        return replace(state, events=(*told, *state.events)) if told else state

    async def _bring_in(self, request: Request | None, live: LiveDatabase | None) -> Restores:
        if request is not None:
            return await self._follow(request, live)
        if live is None:
            return await self._create()
        if not live.connects:
            await databases.allow_connections(self._connection, self._name)
            live = replace(live, connects=True)
        return Restores(has_database=True, closed=_closed(self._name, live), report=self._known_end(live))

    async def _create(self) -> Restores:
        """An empty database. A request that is there from the beginning, as in a manifest that was used before, finds
        nothing to take the place of."""
        wanted = self._run.spec.restore
        mark = Mark(Role.LIVE, wanted.request_id, stamp_now()) if wanted else None
        await databases.create(self._connection, self._name, self._run.spec.database.owner, mark)
        if wanted is None:
            return Restores(has_database=True, report=self._known)
        message = (
            "The database was made with this request: there was nothing yet to restore in place of. To begin with a"
            " backup, use spec.bootstrap.restore; to restore now, give a new spec.restore.requestId."
        )
        return Restores(
            has_database=True, report=api.Restored(request=wanted.request_id, phase=SKIPPED, message=message)
        )

    def _known_end(self, live: LiveDatabase) -> api.Restored | None:
        """What there is to report where nothing is asked for."""
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

    async def _follow(self, request: Request, live: LiveDatabase | None) -> Restores:
        tries = [item for item in self._attempts if _request_of(item) == request.digest[:16]]
        tries.sort(key=_number_of)
        if not tries:
            return self._failed_before(request, live) or await self._start(request, live, 0)
        attempt = tries[-1]
        if attempt.is_running and not attempt.is_stranded:
            doing = await attempt.obstacle() or self._doing(request, attempt)
            return self._report(request, live, RESTORING, doing, attempt)
        result = attempt.result
        if attempt.succeeded:
            return await self._cut_over(request, live, attempt)
        fallback = "lost its node" if attempt.is_stranded else "failed without a result"
        message = str(result.get("message") or f"Job {attempt.name} {fallback}.")
        # What an earlier pod of the same Job has left behind is no fault of the backup's.
        final = result.get("outcome") == "Failed" and result.get("reason") != BackupReason.TARGET_NOT_EMPTY
        if final or len(tries) >= _TRIES:
            if self._candidate(request) in self._found:
                await databases.drop(self._connection, self._candidate(request))
            again = (
                "Change spec.bootstrap to try again."
                if request.id == BOOTSTRAP
                else "Nothing was changed. A new spec.restore.requestId tries again."
            )
            return self._report(request, live, FAILED, f"{message.rstrip('.')}. {again}", attempt)
        if not attempt.is_stranded and attempt.age < _PAUSE * 2 ** (len(tries) - 1):
            return self._report(request, live, RESTORING, f"{message.rstrip('.')}. Trying again soon.", attempt)
        return await self._start(request, live, len(tries))

    def _failed_before(self, request: Request, live: LiveDatabase | None) -> Restores | None:
        """A request that failed, and whose Job somebody has cleaned away since: it must not begin again by that."""
        known = self._known
        if live is None or known is None or known.request != request.id or known.phase != FAILED:
            return None
        return replace(self._report(request, live, FAILED, known.message or ""), report=known)

    def _doing(self, request: Request, attempt: Attempt) -> str:
        name = attempt.name
        if isinstance(request.source, Import):
            return f"Job {name} imports the database that Secret {request.source.connection_secret.name} names."
        return f"Job {name} restores backup {request.source.backup} of repository {request.source.repository.name}."

    async def _start(self, request: Request, live: LiveDatabase | None, number: int) -> Restores:
        """An empty candidate, and a Job to fill it."""
        if (problem := await self._no_room(live)) is not None:
            return self._report(request, live, FAILED, problem)
        run, candidate = self._run, self._candidate(request)
        await databases.drop(self._connection, candidate)
        migrator = logins.role_name(run.spec, logins.MIGRATOR)
        mark = Mark(Role.CANDIDATE, request.id, stamp_now())
        await databases.create_candidate(self._connection, candidate, run.spec.database.owner, migrator, mark)
        image = run.job_image
        name = digest([request.digest, number])
        annotations = {naming.ANNOTATION_REQUEST: request.digest[:16], naming.ANNOTATION_TRY: str(number)}
        if isinstance(request.source, Import):
            manifest = import_job(
                run.names, run.spec, request.source, candidate, name, image, run.owner, annotations=annotations
            )
        else:
            newest = request.own and request.source.backup.startswith("latest")
            identifier = await databases.system_identifier(self._connection) if newest else None
            manifest = restore_job(
                run.names,
                run.spec,
                request.source,
                candidate,
                name,
                image,
                run.owner,
                annotations=annotations,
                system_identifier=identifier,
            )
        try:
            attempt = await attempts.start(run, manifest)
        except Permanent as error:
            await databases.drop(self._connection, candidate)
            return self._report(request, live, FAILED, error.message)
        return self._report(request, live, RESTORING, self._doing(request, attempt), attempt)

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
            f"There is not enough space: {used >> 20} of {size >> 20} MiB (spec.storage.size) are used, and the"
            " restored copy needs space until the old database is dropped. Nothing was changed. Raise"
            " spec.storage.size and set a new spec.restore.requestId."
        )

    async def _cut_over(self, request: Request, live: LiveDatabase | None, attempt: Attempt) -> Restores:
        """Let the verified candidate take the live name."""
        run, candidate, result = self._run, self._candidate(request), attempt.result
        if candidate not in self._found:
            # It was taken away after it was verified: the Job verifies nothing any more.
            await attempt.discard()
            message = f"Database {candidate} is gone although it was verified; it is filled again"
            raise Transient(request.reasons[0], message)
        if not self._may_cut_over:
            message = "Restored and verified; waiting for a migration to end."
            return self._report(request, live, RESTORING, message, attempt)
        if prepared := await databases.prepared(self._connection, self._name):
            message = (
                f"Restored and verified; waiting for the prepared transaction {prepared}, which nobody but its own"
                " COMMIT PREPARED or ROLLBACK PREPARED ends."
            )
            return self._report(request, live, RESTORING, message, attempt)
        now = stamp(await databases.now(self._connection))
        backup = result.get("backup")
        asked = run.spec.restore.request_id if request.id == BOOTSTRAP and run.spec.restore else request.id
        mark = Mark(Role.LIVE, asked, now, backup)
        kept = (self._kept(request), Mark(Role.KEPT, request.id, now)) if live is not None else None
        await roles.ensure_connect(self._connection, run.spec, candidate, replace=True)
        await run.services.sessions.leave(*run.key, self._name)
        await databases.swap_in(self._connection, candidate, self._name, mark, kept)
        for topic in ("schema", "unwritten", "indexes", "grants", "hardening"):
            run.services.memory.drop(run.key, topic)
        self._found[self._name] = LiveDatabase(self._name, True, mark)
        word = "Imported" if isinstance(request.source, Import) else "Restored"
        tail = (
            f" The database that it replaced is kept as {kept[0]} for {run.spec.backup.keep_replaced}"
            " (spec.backup.keepReplaced), then backed up and dropped."
            if kept
            else ""
        )
        event = Announcement(word, f"{result.get('message', word)}{tail}")
        message = str(result.get("message", ""))
        state = self._report(
            request, self._found[self._name], DONE, message, attempt, kept=kept[0] if kept else None, finished=now
        )
        return replace(state, events=(event,))

    def _report(
        self,
        request: Request,
        live: LiveDatabase | None,
        phase: str,
        message: str,
        attempt: Attempt | None = None,
        *,
        kept: str | None = None,
        finished: str | None = None,
    ) -> Restores:
        result = attempt.result if attempt is not None and phase in {DONE, FAILED} else {}
        doing, failed = request.reasons
        serving = " The database serves as before." if live is not None and phase != DONE else ""
        return Restores(
            has_database=live is not None,
            active=phase == RESTORING,
            reason={RESTORING: doing, FAILED: failed}.get(phase),
            message=message + serving,
            failed=phase == FAILED,
            report=api.Restored(
                request=request.id,
                phase=phase,
                backup=result.get("backup"),
                repository=result.get("repository"),
                job=attempt.name if attempt else None,
                message=message,
                differences=list(result.get("differences", []))[:10],
                kept_database=kept,
                finished_at=finished,
            ),
        )

    # What is left of earlier requests.

    async def _clear(self, request: Request | None) -> list[Announcement]:
        """Drop candidates that nobody asks for any more, and what was kept for long enough."""
        candidate = self._candidate(request) if request else None
        kept = {}
        for item in list(self._found.values()):
            mark = item.mark
            ours = item.name.startswith((f"{self._name}_new_", f"{self._name}_old_"))
            if mark is None or mark.role is Role.LIVE or not ours or item.name == candidate:
                continue
            if mark.role is Role.KEPT:
                kept[item.name] = mark
            else:
                await databases.drop(self._connection, item.name)
                del self._found[item.name]
        told = await Replaced(self._run, self._primary, self._connection, self._found).look_after(kept)
        if self._known and self._known.kept_database not in {None, *self._found}:
            self._known = self._known.model_copy(update={"kept_database": None})
        await self._forget_jobs(request)
        return told

    async def _forget_jobs(self, request: Request | None) -> None:
        for attempt in self._attempts:
            over = request is None and not attempt.is_running
            foreign = request is not None and _request_of(attempt) != request.digest[:16]
            if over or foreign:
                await attempt.discard()

    def _candidate(self, request: Request) -> str:
        return f"{self._name}_new_{request.digest[:8]}"

    def _kept(self, request: Request) -> str:
        return f"{self._name}_old_{request.digest[:8]}"


def _request_of(attempt: Attempt) -> str | None:
    return attempt.annotations.get(naming.ANNOTATION_REQUEST)


def _number_of(attempt: Attempt) -> int:
    """How many tries went before; zero where somebody changed the annotation."""
    text = attempt.annotations.get(naming.ANNOTATION_TRY, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else 0


CONCERN = Concern("restore", Needs.PRIMARY, reconcile, observe, calm=True)
