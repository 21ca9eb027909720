"""Which of several kept volumes has the newest data, where Patroni's record is gone: a Job reads each of them.

The record goes with its Services (`kubectl delete all --all`), or was never restored with the volumes. The notes on the
claims are then all that is left, and are older than a promotion that no operator saw.
"""

from __future__ import annotations

from collections.abc import Mapping

import pydantic

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.kinds import Manifest, digest
from medianest_operator.reconcile import attempts
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.instances import kept_volumes
from medianest_operator.reconcile.instances.leftovers import NotYet
from medianest_operator.resources.volume_job import volume_job
from medianest_operator.results.volume import VolumeState


async def find(run: Run, claims: Mapping[int, Manifest], noted: int | None) -> int | NotYet | None:
    """The ordinal of the instance whose data continue those of all others.

    What a person has given up is not asked. A single volume needs no comparison.

    Args:
        claims: the kept ones, by their ordinal.
        noted: who led last by the notes; leads where others have just as much, or where none has any data.

    Raises:
        Permanent: none continues all others, or one can't be read.
        ApiError: the Jobs can't be made, or read, now.
    """
    candidates = [
        ordinal
        for ordinal, claim in claims.items()
        if kept_volumes.annotation(claim, naming.ANNOTATION_COPY_AGAIN) is None
    ]
    if len(candidates) < 2:
        return noted
    reading = {ordinal: await _reading(run, claims[ordinal], ordinal) for ordinal in candidates}
    states = {ordinal: await _state(run, claims, ordinal, attempt) for ordinal, attempt in reading.items()}
    waiting = [run.names.claim(naming.VOLUME_DATA, ordinal) for ordinal, state in states.items() if state is None]
    if waiting:
        several = "s" if len(waiting) > 1 else ""
        message = f"Reading volume{several} {', '.join(waiting)}: nothing says which has what was written last."
        return NotYet(message)
    return _newest(run, {ordinal: state for ordinal, state in states.items() if state and not state.is_empty}, noted)


async def forget(run: Run) -> None:
    """Remove the Jobs: what they read is true until an instance begins."""
    for job in run.volume_jobs:
        await Attempt(run, job).discard()


async def _reading(run: Run, claim: Manifest, ordinal: int) -> Attempt:
    """The Job that reads a volume, started where there is none."""
    name = run.names.volume_job(digest([run.uid, claim["metadata"]["uid"], run.job_image]))
    attempt, _ = attempts.named(run, run.volume_jobs, name)
    if attempt is not None and attempt.is_stranded:
        await attempt.discard()
        attempt = None
    if attempt is not None:
        return attempt
    return await attempts.start(run, volume_job(run.names, run.spec, run.job_image, name, ordinal, run.owner))


async def _state(run: Run, claims: Mapping[int, Manifest], ordinal: int, attempt: Attempt) -> VolumeState | None:
    """What was read on a volume; `None` while it is being read."""
    if attempt.is_running:
        if obstacle := await attempt.obstacle():
            raise _unreadable(run, claims, ordinal, obstacle.rstrip("."), attempt)
        return None
    try:
        state = VolumeState.model_validate(attempt.result)
        if attempt.succeeded and (state.is_empty or state.timeline):
            return state
    except pydantic.ValidationError:
        # Of an image that isn't ours.
        pass
    raise _unreadable(run, claims, ordinal, str(attempt.result.get("message") or attempt.why_ended), attempt)


def _newest(run: Run, states: Mapping[int, VolumeState], noted: int | None) -> int | None:
    ordered = sorted(states, key=lambda ordinal: (ordinal != noted, ordinal))
    for ordinal in ordered:
        if all(states[ordinal].continues(other) for other in states.values()):
            return ordinal
    if not states:
        return noted
    found = "; ".join(
        f"{run.names.claim(naming.VOLUME_DATA, ordinal)}: {state.message}" for ordinal, state in sorted(states.items())
    )
    latest = max(states, key=lambda ordinal: (states[ordinal].written, states[ordinal].timeline))
    choice = kept_volumes.how_to_choose(run, run.names.claim(naming.VOLUME_DATA, latest))
    message = (
        f"The kept volumes went apart, each may hold what the others lack: {found}. Choose the one to begin with;"
        f" {choice}. The others are copied again"
    )
    raise Permanent(Reason.DIVERGED, message)


def _unreadable(run: Run, claims: Mapping[int, Manifest], ordinal: int, why: str, attempt: Attempt) -> Permanent:
    claim = run.names.claim(naming.VOLUME_DATA, ordinal)
    other = next(number for number in claims if number != ordinal)
    message = (
        f"Volume {claim} may have what was written last, and can't be read: {why}. To have it read again, delete Job"
        f" {attempt.name}; or, {kept_volumes.how_to_choose(run, run.names.claim(naming.VOLUME_DATA, other))}"
    )
    return Permanent(Reason.VOLUME_UNAVAILABLE, message)
