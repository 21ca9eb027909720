"""The application's database comes to be: empty, from a backup, from another server; or again, by a restore in place.

What comes from elsewhere is filled into a candidate beside the live database, verified there by the Job that fills it,
and takes the live one's name; the one that it replaces is kept for a time (`replaced`). Each run begins
with what the server holds (`postgres.databases`), so that an operator that was cut off goes on where it was. The live
database's mark says which operation brought it in: that one is done, whatever else got lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pydantic

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.bootstrap import Import
from medianest_operator.api.conditions import Reason
from medianest_operator.api.operation import MOST_DIFFERENCES, OperationPhase
from medianest_operator.errors import Permanent, Transient
from medianest_operator.kubernetes.apply import is_as_applied
from medianest_operator.kubernetes.kinds import JOB, OPERATION, Manifest, digest
from medianest_operator.postgres import copies, databases, logins, roles
from medianest_operator.postgres.databases import LiveDatabase, Mark, Role
from medianest_operator.postgres.sessions import Connection
from medianest_operator.reconcile import attempts
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.backups import asked
from medianest_operator.reconcile.backups.replaced import Replaced, is_of_replaced, known_problems, replaced_of
from medianest_operator.reconcile.backups.requests import (
    BOOTSTRAP,
    DONE,
    FAILED,
    NOTHING_CHANGED,
    RESTORING,
    Progress,
    Request,
    Restores,
    outcome_of,
    why_closed,
)
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.instances.servers import Servers
from medianest_operator.resources.backup_jobs import import_job, restore_job
from medianest_operator.resources.meta import owner_reference
from medianest_operator.results.backup import Reason as BackupReason
from medianest_operator.results.restore import RestoreReport
from medianest_operator.timestamps import stamp, stamp_now

_PHASES: Final = {
    RESTORING: OperationPhase.RUNNING,
    DONE: OperationPhase.SUCCEEDED,
    FAILED: OperationPhase.FAILED,
}
_DIGITS: Final = 6
_TRIES = 5
_PAUSE = timedelta(seconds=15)
"""Before another try, doubled each time."""
_MAINTENANCE_DATABASE = naming.MAINTENANCE_DATABASE


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
    return outcome_of(state)


async def observe(run: Run) -> Outcome:
    """For a run that must change nothing: whether people get into the application's database."""
    primary, name = run.facts.require(Servers).primary, run.spec.database.name
    if primary is None:
        return Outcome()
    instance = run.instance(primary, _MAINTENANCE_DATABASE)
    async with run.services.sessions.use(instance, run.credentials) as connection:
        found = await databases.read_databases(connection)
    live = found.get(name)
    state = Restores(has_database=live is not None, closed=why_closed(name, live), report=_known(run))
    return outcome_of(replace(state, replaced=replaced_of(run.spec, found, known_problems(run))))


def _known(run: Run) -> api.Bootstrapped | None:
    """What the status says so far; `None` too where a newer operator wrote what this one can't read."""
    known = run.database.get("status", {}).get("bootstrap")
    try:
        return api.Bootstrapped.model_validate(known) if known else None
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
        self._replaced = Replaced(run, primary, connection, found)
        self._asked = asked.all_of(run)
        self._known = _known(run)

    async def reconcile(self) -> Restores:
        live = self._found.get(self._name)
        request = self._request(live)
        told = tuple(await self._clear(request))
        state = await self._bring_in(request, live)
        kept = replaced_of(self._run.spec, self._found, self._replaced.problems)
        return replace(state, replaced=kept, events=(*told, *state.events))

    async def _bring_in(self, request: Request | None, live: LiveDatabase | None) -> Restores:
        if request is not None:
            return await self._follow(request, live)
        if live is None:
            await databases.create(self._connection, self._name, self._run.spec.database.owner)
            _forget_contents(self._run)
            return Restores(has_database=True, report=self._known)
        if not live.connects:
            await databases.allow_connections(self._connection, self._name)
            live = replace(live, connects=True)
        return Restores(has_database=True, closed=why_closed(self._name, live), report=self._bootstrapped(live))

    def _bootstrapped(self, live: LiveDatabase | None) -> api.Bootstrapped | None:
        """What spec.bootstrap has brought in, also where the operator was cut off before it could say so."""
        known = self._known
        if live is not None and live.mark is not None and live.mark.request == BOOTSTRAP:
            if known is not None and known.phase == DONE:
                return known
            done = {"phase": DONE, "backup": live.mark.backup, "finished_at": live.mark.at, "message": None}
            return (known or api.Bootstrapped(phase=DONE)).model_copy(update=done)
        return known if known is not None and known.phase == DONE else None

    def _request(self, live: LiveDatabase | None) -> Request | None:
        """What is asked for and not done, or done and not reported."""
        spec = self._run.spec
        if live is None:
            if spec.bootstrap is None:
                return None
            source = spec.bootstrap.restore or spec.bootstrap.import_
            return Request(BOOTSTRAP, source) if source else None
        waiting = asked.queue(self._run, self._asked)
        # One that is done is reported before another begins, whose mark would take the place of its own.
        done = [item for item in self._asked if live.mark and live.mark.request == item.uid and not item.is_over]
        first = next(iter([*done, *waiting]), None)
        if first is None or first.is_aside:
            return None
        return Request(first.uid, first.source(self._run.names, spec), first)

    # One request.

    async def _follow(self, request: Request, live: LiveDatabase | None) -> Restores:
        tries = [item for item in self._attempts if _request_of(item) == request.digest[:16]]
        tries.sort(key=_number_of)
        if live is not None and live.mark is not None and live.mark.request == request.id:
            return self._done(request, live, tries[-1] if tries else None)
        if not tries:
            if live is not None and not self._may_cut_over:
                return Restores(has_database=True, report=self._bootstrapped(live), waits="is being migrated")
            return await self._start(request, live, [])
        attempt = tries[-1]
        if attempt.is_running and not attempt.is_stranded:
            if await attempt.is_in_vain() and not await self._is_of_present(request, tries):
                return self._report(request, live, RESTORING, await attempt.give_way())
            doing = await attempt.obstacle() or f"Job {attempt.name} {request.doing}."
            return self._report(request, live, RESTORING, doing, attempt)
        if attempt.succeeded:
            return await self._cut_over(request, live, attempt)
        result = RestoreReport.read(attempt.result)
        fallback = "lost its node" if attempt.is_stranded else "failed without a result"
        message = result.message or f"Job {attempt.name} {fallback}."
        if result.reason == BackupReason.EXTENSIONS_MISSING and len(tries) < _TRIES:
            return await self._start(request, live, tries)
        # What an earlier pod of the same Job has left behind is no fault of the backup's.
        if (result.is_final and result.reason != BackupReason.TARGET_NOT_EMPTY) or len(tries) >= _TRIES:
            if self._candidate(request) in self._found:
                await databases.drop(self._connection, self._candidate(request))
            told = f"{_unchanged(request, message)} {_what_to_do(request, result.reason)}"
            return self._report(request, live, FAILED, told, attempt)
        if not attempt.is_stranded and attempt.age < _PAUSE * 2 ** (len(tries) - 1):
            again = f"{message.rstrip('.')}. Trying again soon ({len(tries)} of {_TRIES} tries)."
            return self._report(request, live, RESTORING, again, attempt)
        return await self._start(request, live, tries)

    async def _start(self, request: Request, live: LiveDatabase | None, tries: Sequence[Attempt]) -> Restores:
        """An empty candidate, and a Job to fill it."""
        run, candidate = self._run, self._candidate(request)
        needed = _needed(tries)
        wanted = await self._job(request, candidate, len(tries), asks=not needed)
        made = await run.services.applier.live(JOB, run.names.namespace, wanted["metadata"]["name"])
        if made is not None and _request_of(known := Attempt(run, made)) == request.digest[:16]:
            # It was made, and the answer got lost: it is at work in its candidate.
            return self._report(request, live, RESTORING, f"Job {known.name} {request.doing}.", known)
        await databases.drop(self._connection, candidate)
        migrator = logins.role_name(run.spec, logins.MIGRATOR)
        mark = Mark(Role.CANDIDATE, request.id, stamp_now())
        await databases.create_candidate(self._connection, candidate, run.spec.database.owner, migrator, mark)
        # What opens a way to files or to other servers is for a person to make.
        extensions = {name: schema for name, schema in needed.items() if name in copies.EXTENSIONS}
        if extensions:
            instance = run.instance(self._primary, candidate, naming.SUPERUSER)
            async with run.services.sessions.use(instance, run.credentials, databases.PATIENCE) as connection:
                await databases.make_extensions(connection, extensions, run.spec.database.owner)
            await run.services.sessions.leave(*run.key, candidate)
        try:
            attempt = await attempts.start(run, wanted)
        except Permanent as error:
            await databases.drop(self._connection, candidate)
            told = f"{_unchanged(request, error.message)} {_what_to_do(request)}"
            return self._report(request, live, FAILED, told)
        return self._report(request, live, RESTORING, f"Job {attempt.name} {request.doing}.", attempt)

    async def _is_of_present(self, request: Request, tries: Sequence[Attempt]) -> bool:
        """Whether the last try's Job is the one that the spec makes now."""
        *before, last = tries
        wanted = await self._job(request, self._candidate(request), _number_of(last), asks=not _needed(before))
        return is_as_applied(JOB, last.job, wanted)

    async def _job(self, request: Request, candidate: str, number: int, *, asks: bool) -> Manifest:
        run, image = self._run, self._run.job_image
        name = digest([request.digest, number])
        annotations = {naming.ANNOTATION_REQUEST: request.digest[:16], naming.ANNOTATION_TRY: str(number)}
        if isinstance(request.source, Import):
            return import_job(
                run.names, run.spec, request.source, candidate, name, image, run.owner, annotations=annotations
            )
        own = request.asked
        newest = own is not None and request.source.backup.startswith("latest")
        return restore_job(
            run.names,
            run.spec,
            request.source,
            candidate,
            name,
            image,
            owner_reference(own.manifest, OPERATION) if own else run.owner,
            annotations=annotations,
            system_identifier=await databases.system_identifier(self._connection) if newest else None,
            asked=own.restore if own else None,
            others=own.others(run.spec) if own else (),
            asks=asks,
        )

    async def _cut_over(self, request: Request, live: LiveDatabase | None, attempt: Attempt) -> Restores:
        """Let the verified candidate take the live name."""
        run, candidate = self._run, self._candidate(request)
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
        if not await self._is_still_asked_for(request):
            return Restores(has_database=live is not None, report=self._bootstrapped(live))
        now = stamp(await databases.now(self._connection))
        mark = Mark(Role.LIVE, request.id, now, RestoreReport.read(attempt.result).backup)
        kept = None
        if live is not None:
            kept = (self._kept(request), Mark(Role.KEPT, request.id, now, keep=request.keep_replaced))
        await roles.ensure_connect(self._connection, run.spec, candidate, replace=True)
        await run.services.sessions.leave(*run.key, self._name)
        await databases.swap_in(self._connection, candidate, self._name, mark, kept)
        _forget_contents(run)
        if kept is not None:
            self._found[kept[0]] = LiveDatabase(kept[0], False, kept[1])
        self._found[self._name] = LiveDatabase(self._name, True, mark)
        return self._done(request, self._found[self._name], attempt)

    async def _is_still_asked_for(self, request: Request) -> bool:
        """Asked right before the cutover: who deletes an operation in time is not surprised by it."""
        if request.asked is None:
            return True
        client = self._run.services.client
        found = await client.get(OPERATION, self._run.names.namespace, request.asked.name)
        return found is not None and found["metadata"]["uid"] == request.id and not asked.Asked(found).is_going

    def _done(self, request: Request, live: LiveDatabase, attempt: Attempt | None) -> Restores:
        """It has taken the live name, in this run or in one that could not report it."""
        assert live.mark is not None
        word = "Imported" if isinstance(request.source, Import) else "Restored"
        result = RestoreReport.read(attempt.result if attempt is not None else {})
        message = result.message or f"{word}{f' {live.mark.backup}' if live.mark.backup else ''}."
        kept = next((item for item in self._found.values() if _was_replaced_by(item, request)), None)
        if kept is not None and kept.mark is not None:
            how_long = kept.mark.keep or self._run.spec.backup.keep_replaced
            message += (
                f" The database that it replaced is kept as {kept.name} for {how_long}, then backed up and dropped."
            )
        state = self._report(request, live, DONE, message, attempt, kept=kept.name if kept else None, mark=live.mark)
        if request.asked is not None:
            return state
        return replace(state, events=(Announcement(word, message),))

    def _report(
        self,
        request: Request,
        live: LiveDatabase | None,
        phase: str,
        message: str,
        attempt: Attempt | None = None,
        *,
        kept: str | None = None,
        mark: Mark | None = None,
    ) -> Restores:
        result = RestoreReport.read(attempt.result if attempt is not None and phase != RESTORING else {})
        details: dict[str, Any] = {
            "backup": (mark.backup if mark else None) or result.backup,
            "repository": result.repository,
            # Of an operation each has to be accepted by its name; a database's own status stays short.
            "differences": result.differences[: 10 if request.asked is None else MOST_DIFFERENCES],
            "finished_at": mark.at if mark else stamp_now() if phase == FAILED and request.asked else None,
        }
        if attempt is not None:
            details["job"] = attempt.name
        doing, failed = request.reasons
        if request.asked is None:
            serving = " The database serves as before." if live is not None and phase != DONE else ""
            return Restores(
                has_database=live is not None,
                active=phase == RESTORING,
                reason={RESTORING: doing, FAILED: failed}.get(phase),
                message=message + serving,
                failed=phase == FAILED,
                report=api.Bootstrapped(phase=phase, message=message, **details),
            )
        if attempt is not None:
            details["started_at"] = attempt.started_at
        details["kept_database"] = kept
        reason = {RESTORING: doing, DONE: Reason.RESTORED}.get(phase, failed)
        running = phase == RESTORING
        return Restores(
            has_database=True,
            active=running,
            reason=doing if running else None,
            message=f"{naming.OPERATION_KIND} {request.asked.name}: {message} The database serves as before.",
            report=self._bootstrapped(live),
            progress=Progress(request.id, _PHASES[phase], reason, message, details),
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
        await self._forget_jobs(request)
        return await self._replaced.look_after(kept)

    async def _forget_jobs(self, request: Request | None) -> None:
        """Those that nobody asks for any more. The last one of an operation stays as long as that does, for its log."""
        wanted = request.digest[:16] if request else None
        ended = {item.digest[:16]: item.known.get("job") for item in self._asked if not item.is_going}
        for attempt in self._attempts:
            whose = _request_of(attempt)
            if whose == wanted or (not attempt.is_running and ended.get(str(whose)) == attempt.name):
                continue
            await attempt.discard()

    def _candidate(self, request: Request) -> str:
        return f"{self._name}_new_{request.digest[:8]}"

    def _kept(self, request: Request) -> str:
        return f"{self._name}_old_{request.digest[:8]}"


def _forget_contents(run: Run) -> None:
    """What is known of a database is not known of the one that has its name now."""
    for topic in ("schema", "unwritten", "indexes", "grants", "hardening"):
        run.services.memory.drop(run.key, topic)


def _was_replaced_by(item: LiveDatabase, request: Request) -> bool:
    return item.mark is not None and item.mark.role is Role.KEPT and item.mark.request == request.id


def _unchanged(request: Request, message: str) -> str:
    sentence = f"{message.rstrip('.')}."
    return sentence if request.asked is None or NOTHING_CHANGED in sentence else f"{sentence} {NOTHING_CHANGED}"


def _what_to_do(request: Request, reason: str | None = None) -> str:
    if request.asked is None:
        return "Change spec.bootstrap to try again."
    if reason in {BackupReason.NOT_EQUAL, BackupReason.NOT_RESTORABLE}:
        return "To take it all the same, make another object whose restore.acceptDifferences names what differs."
    return "This object is done; make another one for another try."


def _request_of(attempt: Attempt) -> str | None:
    return attempt.annotations.get(naming.ANNOTATION_REQUEST)


def _needed(tries: Sequence[Attempt]) -> dict[str, str]:
    """The extensions that earlier tries asked for, with their schemas."""
    needed: dict[str, str] = {}
    for before in tries:
        needed |= RestoreReport.read(before.result).extensions
    return needed


def _number_of(attempt: Attempt) -> int:
    """How many tries went before; zero where somebody changed the annotation."""
    text = attempt.annotations.get(naming.ANNOTATION_TRY, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else 0


CONCERN = Concern("restore", Needs.PRIMARY, reconcile, observe, calm=True)
