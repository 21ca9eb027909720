"""Elections that nobody wins: Patroni elects only who has all that the last primary is known to have written."""

from __future__ import annotations

from typing import Final

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.api.database import Synchronous
from medianest_operator.errors import Permanent
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.instances import kept_volumes, patroni
from medianest_operator.reconcile.instances.beginning import note_leader, seconds_without_leader
from medianest_operator.reconcile.instances.kept_volumes import how_to_choose
from medianest_operator.reconcile.instances.servers import Servers
from medianest_operator.resources.patroni import LOOP_WAIT, TOLERATED_LAG

_LONG: Final = 60.0
"""Seconds without a leader after which an election won't come to an end by itself."""
_TOLERATED: Final = "tolerated lag"
_RESUMED: Final = (
    "Patroni was paused (patronictl pause) and no instance leads, so that none would ever be started or elected: it is"
    " resumed. To work on the servers by hand, set spec.paused first."
)


async def reconcile(run: Run) -> Outcome:
    """Where the last primary doesn't come back, let one be elected that lacks a little, which asynchronous replication
    allows; where all are there and each lacks something, say so."""
    seen = run.facts.get(Servers) or Servers()
    if seen.leads:
        note_leader(run)
        run.services.memory.drop(run.key, _TOLERATED)
    if seen.leads or run.spec.hibernate:
        return Outcome()
    running = [pod for pod in run.pods if pod.running]
    if running and seconds_without_leader(run) > LOOP_WAIT and await patroni.is_paused(run):
        await patroni.end_pause(run, running[0])
        return Outcome(events=(Announcement(Reason.CONFIGURING, _RESUMED),))
    candidates = [pod for pod in running if pod.serves]
    if not candidates or seconds_without_leader(run) < _LONG:
        return Outcome()
    position = await patroni.known_position(run)
    reached = await patroni.positions(run, candidates)
    best = max(candidates, key=lambda pod: reached[pod.name])
    if reached[best.name] >= position:
        return Outcome()
    last = await patroni.last_leader(run)
    if any(pod.name == last for pod in candidates) or len(candidates) == len(run.asked_for):
        return _nobody_has_all(run, best, position - reached[best.name])
    old = kept_volumes.left_behind(run)
    if run.spec.postgresql.synchronous is not Synchronous.OFF or any(
        run.names.ordinal(pod.name) in old for pod in candidates
    ):
        return Outcome()
    return await _tolerate(run, best, last)


def _nobody_has_all(run: Run, best: Pod, lacks: int) -> Outcome:
    claim = run.names.claim(naming.VOLUME_DATA, run.names.ordinal(best.name) or 0)
    message = (
        f"Nobody is elected: {best.name} lacks {lacks} bytes of the log that the last primary is known"
        f" to have written, and nobody has more. Bring back the volume that has them; or, {how_to_choose(run, claim)}"
    )
    return Outcome(problem=Permanent(Reason.VOLUME_UNAVAILABLE, message))


async def _tolerate(run: Run, pod: Pod, last: str | None) -> Outcome:
    if run.services.memory.recall(run.key, _TOLERATED, None, _LONG):
        return Outcome()
    await patroni.tolerate_lag(run, pod)
    run.services.memory.keep(run.key, _TOLERATED, None, True)
    # As soon as somebody leads, it is the wanted one again.
    run.services.memory.drop(run.key, kept_volumes.WRITTEN)
    message = (
        f"Nobody has all that the last primary{f' {last}' if last else ''} wrote, which has been away for"
        f" {_LONG:.0f} s: a replica that lacks up to {TOLERATED_LAG >> 20} MiB may be elected now."
    )
    return Outcome(events=(Announcement(Reason.LAG_TOLERATED, message, "Warning"),))


CONCERN = Concern("elections", Needs.CREDENTIALS, reconcile)
