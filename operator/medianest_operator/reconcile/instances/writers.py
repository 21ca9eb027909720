"""The application's writers: stopped before a volume is full, and let in again once there is room."""

from __future__ import annotations

import time
from collections.abc import Sequence

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.health.writing import Filled, Guard, may_write_again
from medianest_operator.postgres import logins, read_only
from medianest_operator.postgres.read_only import Mark
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.concern import Announcement
from medianest_operator.reconcile.context import Pod, Run


async def stop_or_let(
    run: Run, primary: Pod, mark: Mark | None, guard: Guard, filled: Sequence[Filled]
) -> tuple[Announcement, ...]:
    """Let the application only read while a volume of the primary is too full, and write again after that.

    Args:
        mark: what says that it can only read; `None`: it writes.
        guard: of this database.
        filled: the primary's volumes.

    Raises:
        Unreachable: the primary doesn't answer.
        psycopg.Error: as it says.
    """
    # The owner may have taken the setting back, and the mark is there still.
    reads_only = mark is not None and mark.is_on
    wanted, now = run.spec.storage.read_only_when_full, time.monotonic()
    stop = wanted and not reads_only and guard.stops(filled, now)
    room = guard.lets(filled, now) if reads_only else may_write_again(filled)
    lets = mark is not None and (room or not wanted)
    if not stop and not reads_only and not lets:
        return ()
    instance, database = run.instance(primary, naming.MAINTENANCE_DATABASE), run.spec.database.name
    async with run.services.sessions.use(instance, run.credentials) as connection:
        if stop:
            ended = await read_only.begin(connection, database, _spared(run))
            if ended is None:
                return ()
            await read_only.hold_vacuum(connection, database)
            message = (
                f"The application can only read from now on: a volume of {primary.name} is nearly full, and PostgreSQL"
                f" would stop. {ended} sessions were ended. It may write again below 85 %, or where use rests a little"
                " lower for some minutes."
            )
            return (Announcement(Reason.READ_ONLY, message, "Warning"),)
        if mark is None:
            return ()
        if lets:
            await read_only.end(connection, database, _spared(run), mark)
            if not mark.is_on or mark.was_on:
                return ()
            return (Announcement("WritesAllowed", f"The application may write again: {_why(run, primary)}."),)
        await read_only.hold_vacuum(connection, database)
        await read_only.end_late_sessions(connection, database, _spared(run), mark)
    return ()


def _why(run: Run, primary: Pod) -> str:
    if not run.spec.storage.read_only_when_full:
        return "spec.storage.readOnlyWhenFull is off"
    return f"there is room on {primary.name}"


def _spared(run: Run) -> frozenset[str]:
    """Roles whose sessions go on: they only read, or a Job that writes with them would end between two states."""
    readers = (logins.READ_ONLY, logins.MONITOR, logins.BACKUP)
    spared = {logins.controller_name(run.spec.database.owner), *(logins.role_name(run.spec, role) for role in readers)}
    jobs = [*run.jobs, *run.hardening_jobs, *run.restore_jobs, *run.aside_jobs]
    if any(Attempt(run, job).is_running for job in jobs):
        spared.add(logins.role_name(run.spec, logins.MIGRATOR))
    return frozenset(spared)
