"""Notes on the claims, which outlive the pods, Patroni's objects and the database: who leads, and who was left behind
when the others went on. An instance that was left behind comes back only where nobody old can be elected."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Final

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.health import probe
from medianest_operator.kubernetes.kinds import CLAIM, Manifest
from medianest_operator.reconcile import patroni
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.servers import Servers
from medianest_operator.timestamps import stamp_now

WRITTEN: Final = "configuration"
"""The topic under which it is remembered that Patroni has its configuration, and so elects nobody who is behind."""
_CATCHING_UP: Final = 60.0
"""Seconds without any progress after which a replica whose volume was left behind won't catch up."""
_COPYING: Final = 5.0
"""Seconds until it is looked again after a copy was asked for."""
_PATIENCE: Final[Mapping[str, float]] = {"start failed": _CATCHING_UP, "crashed": _CATCHING_UP, "starting": 600.0}
"""The same by Patroni's word on it where it doesn't answer. One that starts may have much to recover."""


def by_instance(run: Run) -> Mapping[int, Manifest]:
    """The claims of the data volumes that stay, by their instance's ordinal."""
    names = {run.names.claim(naming.VOLUME_DATA, number): number for number in range(naming.MAX_INSTANCES)}
    kept = {
        names[claim["metadata"]["name"]]: claim
        for claim in run.claims
        if claim["metadata"]["name"] in names and "deletionTimestamp" not in claim["metadata"]
    }
    return dict(sorted(kept.items()))


def annotation(claim: Manifest, name: str) -> str | None:
    value: str | None = (claim["metadata"].get("annotations") or {}).get(name)
    return value


def led_since(claims: Mapping[int, Manifest]) -> dict[int, str]:
    """Since when each of them has led, where that is noted."""
    noted = {ordinal: annotation(claim, naming.ANNOTATION_LED_SINCE) for ordinal, claim in claims.items()}
    return {ordinal: since for ordinal, since in noted.items() if since}


def left_behind(run: Run) -> frozenset[int]:
    """The instances whose volumes are from a time before others went on without them."""

    def find() -> frozenset[int]:
        claims = by_instance(run).items()
        return frozenset(ordinal for ordinal, claim in claims if annotation(claim, naming.ANNOTATION_LEFT_BEHIND))

    return run.seen("left behind", find)


def may_join(run: Run, ordinal: int) -> bool:
    """Whether an instance may start beside the primary: one that was left behind must not be elected before it follows,
    and what an earlier operator configured didn't forbid that."""
    if ordinal not in left_behind(run):
        return True
    primary = run.primary
    token = (primary.uid, run.generation) if primary else None
    return bool(run.services.memory.recall(run.key, WRITTEN, token, math.inf))


async def leave_behind(run: Run, ordinals: Iterable[int]) -> None:
    """Note on the claims of instances that others begin without them: until they follow, nobody old is elected."""
    claims = by_instance(run)
    for ordinal in ordinals:
        if not annotation(claims[ordinal], naming.ANNOTATION_LEFT_BEHIND):
            await _annotate(run, claims[ordinal], naming.ANNOTATION_LEFT_BEHIND, stamp_now())


async def mark(run: Run) -> Outcome:
    """Note on the claims who leads and who was left behind.

    Notes are made while the database is paused, too: Patroni isn't paused.
    """
    seen = run.facts.get(Servers) or Servers()
    leader = run.names.ordinal(seen.primary.name) if seen.leads and seen.primary else None
    if leader is None:
        return Outcome()
    behind = left_behind(run)
    following = frozenset(
        pod.name
        for pod in run.pods
        if seen.follows(pod) and (run.names.ordinal(pod.name) not in behind or _is_compared(run, pod))
    )
    token = (run.services.cache.revision(run.key), leader, following)
    if run.services.memory.recall(run.key, "volumes noted", token, math.inf) is None:
        await _note(run, leader, following)
        run.services.memory.keep(run.key, "volumes noted", token, True)
    return Outcome()


async def follow(run: Run) -> Outcome:
    """Mark, and copy again what was left behind and is of another history, or can't catch up."""
    seen = run.facts.get(Servers) or Servers()
    behind = left_behind(run) if seen.leads and not run.spec.hibernate else frozenset()
    joining = [pod for pod in run.pods if run.names.ordinal(pod.name) in behind and pod != seen.primary]
    for pod in joining:
        if pod.name in seen.instances and not _is_compared(run, pod) and not await _compare(run, seen, pod):
            return await _copy_again(run, pod, "went another way than the primary's")
    await mark(run)
    for pod in joining:
        if not seen.follows(pod) and _is_stuck(run, seen, pod):
            return await _copy_again(run, pod, "lacks write-ahead log that is not kept")
    return Outcome()


def _is_compared(run: Run, pod: Pod) -> bool:
    return bool(run.services.memory.recall(run.key, f"history of {pod.name}", pod.uid, math.inf))


async def _compare(run: Run, seen: Servers, pod: Pod) -> bool:
    """Whether the primary's data continues those of a replica. It is remembered for as long as its pod lives."""
    if seen.primary is None:
        return True
    histories = []
    for server in (pod, seen.primary):
        instance = run.instance(server, naming.MAINTENANCE_DATABASE)
        async with run.services.sessions.use(instance, run.credentials) as connection:
            histories.append(await probe.history(connection))
    if histories[1].continues(histories[0]):
        run.services.memory.keep(run.key, f"history of {pod.name}", pod.uid, True)
        return True
    return False


def _is_stuck(run: Run, seen: Servers, pod: Pod) -> bool:
    """Whether it has replayed nothing for a while. Nobody asks whether it has a connection to its primary: one of
    another history is let in, and refused what it asks for, over and over."""
    facts = seen.instances.get(pod.name)
    patience = _CATCHING_UP if facts else _PATIENCE.get(str(pod.member.get("state")))
    if patience is None:
        # It is being copied, or not there yet.
        run.services.memory.drop(run.key, f"behind {pod.name}")
        return False
    token = pod.uid, facts.replayed if facts else None
    since: float = run.services.memory.once(run.key, f"behind {pod.name}", token, time.monotonic)
    return time.monotonic() - since > patience


async def _note(run: Run, leader: int, following: frozenset[str]) -> None:
    claims = by_instance(run)
    led = led_since(claims)
    if leader in claims and leader not in led:
        await _annotate(run, claims[leader], naming.ANNOTATION_LED_SINCE, stamp_now())
    for ordinal, claim in claims.items():
        if annotation(claim, naming.ANNOTATION_BEGIN_WITH) is not None:
            # Somebody leads: it was heard, or came too late.
            await _annotate(run, claim, naming.ANNOTATION_BEGIN_WITH, None)
        behind = annotation(claim, naming.ANNOTATION_LEFT_BEHIND)
        if ordinal != leader and ordinal in led:
            await _annotate(run, claim, naming.ANNOTATION_LED_SINCE, None)
        if behind and (ordinal == leader or run.names.pod(ordinal) in following):
            await _annotate(run, claim, naming.ANNOTATION_LEFT_BEHIND, None)
        elif not behind and ordinal != leader and ordinal not in run.asked_for:
            await _annotate(run, claim, naming.ANNOTATION_LEFT_BEHIND, stamp_now())


async def _annotate(run: Run, claim: Manifest, annotation: str, value: str | None) -> None:
    metadata = claim["metadata"]
    patch = {"metadata": {"uid": metadata["uid"], "annotations": {annotation: value}}}
    live = await run.services.client.merge(CLAIM, run.names.namespace, metadata["name"], patch)
    run.services.cache.put(CLAIM, live)


async def _copy_again(run: Run, pod: Pod, why: str) -> Outcome:
    run.services.memory.drop(run.key, f"behind {pod.name}")
    await patroni.reinitialize(run, pod)
    message = f"Copying {pod.name} again from the primary: its volume is of a time before the others began, and {why}."
    return Outcome(events=(Announcement(Reason.COPYING_AGAIN, message),), next_look=_COPYING)


CONCERN = Concern("volume notes", Needs.CREDENTIALS, follow, mark)
