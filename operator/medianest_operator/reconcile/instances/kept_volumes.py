"""Notes on the claims, which outlive the pods, Patroni's objects and the database: who leads, and who was left behind
when the others went on. An instance that was left behind comes back only where nobody old can be elected."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Permanent
from medianest_operator.health import probe
from medianest_operator.kubernetes.kinds import CLAIM, Manifest
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.instances import patroni
from medianest_operator.reconcile.instances.servers import SOON, Servers
from medianest_operator.timestamps import stamp_now

WRITTEN: Final = "configuration"
"""The topic under which it is remembered that Patroni has its configuration, and so elects nobody who is behind."""
_BEGUN: Final = naming.ANNOTATION_BEGUN_BY_CHOICE
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
    if primary and taken_back(by_instance(run)) == run.names.ordinal(primary.name):
        return False
    token = (primary.uid, run.generation) if primary else None
    return bool(run.services.memory.recall(run.key, WRITTEN, token, math.inf))


async def leave_behind(run: Run, ordinals: Iterable[int]) -> None:
    """Note on the claims of instances that others begin without them: until they follow, nobody old is elected."""
    claims = by_instance(run)
    for ordinal in ordinals:
        if not annotation(claims[ordinal], naming.ANNOTATION_LEFT_BEHIND):
            await _annotate(run, claims[ordinal], {naming.ANNOTATION_LEFT_BEHIND: stamp_now()})


def is_chosen(claim: Manifest) -> bool:
    """Whether a person wants to begin with this volume. `false`, or any other word, is no choice."""
    return annotation(claim, naming.ANNOTATION_BEGIN_WITH) in ("", "true")


def is_heard(claim: Manifest) -> bool:
    """Whether a person's choice of this volume stands and was acted on: its instance begins, or is about to."""
    return is_chosen(claim) and annotation(claim, _BEGUN) is not None


def has_led(claim: Manifest) -> bool:
    """Whether the instance that began by a person's choice has led since."""
    begun, led = annotation(claim, _BEGUN), annotation(claim, naming.ANNOTATION_LED_SINCE)
    return bool(begun and led and led >= begun)


def first_that_stays(run: Run, leader: int) -> int:
    """The lowest ordinal of the instances that are wanted: the leader's own where only one is wanted and a person chose
    it, so that what the others have stays as it is until more are; else 0."""
    claims = by_instance(run)
    if run.spec.instances > 1 or leader not in claims:
        return 0
    chosen = is_heard(claims[leader]) or any(
        annotation(claim, naming.ANNOTATION_COPY_AGAIN) for ordinal, claim in claims.items() if ordinal != leader
    )
    return leader if chosen else 0


async def hear(run: Run, ordinal: int) -> None:
    """Note that a person's choice is acted on. What it gives up is decided once that instance leads: until then the
    choice can be taken back."""
    await forget_choices(run, but=ordinal)
    claim = by_instance(run)[ordinal]
    if not is_heard(claim):
        await _annotate(run, claim, {_BEGUN: stamp_now()})


def taken_back(claims: Mapping[int, Manifest]) -> int | None:
    """The instance that began because a person chose it, who doesn't want that any more; `None` where there is none."""
    begun = [ordinal for ordinal, claim in claims.items() if annotation(claim, _BEGUN) and not is_heard(claim)]
    return begun[0] if begun else None


async def forget_choices(run: Run, but: int | None = None) -> None:
    """Remove the notes on instances that began by a choice which doesn't stand any more, once none runs."""
    for ordinal, claim in by_instance(run).items():
        if ordinal != but and annotation(claim, _BEGUN):
            await _annotate(run, claim, {_BEGUN: None})


async def _give_up_others(run: Run, leader: int) -> None:
    """Where a person began with the one that leads: the others are to be copied, although what they have may be
    newer."""
    claims = by_instance(run)
    if leader not in claims or not is_heard(claims[leader]):
        return
    for ordinal, claim in claims.items():
        if ordinal != leader and not annotation(claim, naming.ANNOTATION_COPY_AGAIN):
            await _annotate(run, claim, {naming.ANNOTATION_COPY_AGAIN: stamp_now()})


def how_to_choose(run: Run, claim: str) -> str:
    """What a person does to begin with a volume that may lack something, as a clause."""
    command = f"kubectl -n {run.names.namespace} annotate pvc {claim} {naming.ANNOTATION_BEGIN_WITH}=true"
    return f"to begin with {claim} as it is: {command}"


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
    if run.services.memory.recall(run.key, "volumes noted", token, math.inf) is not None:
        return Outcome()
    late = [claim for claim in by_instance(run).values() if is_chosen(claim) and not is_heard(claim)]
    await _note(run, leader, following)
    run.services.memory.keep(run.key, "volumes noted", token, True)
    return Outcome(events=tuple(_came_too_late(run, claim, leader) for claim in late))


async def follow(run: Run) -> Outcome:
    """Mark, and copy again what was left behind and is of another history, or can't catch up."""
    seen = run.facts.get(Servers) or Servers()
    leader = run.names.ordinal(seen.primary.name) if seen.leads and seen.primary else None
    if leader is not None:
        await _give_up_others(run, leader)
    behind = left_behind(run) if seen.leads and not run.spec.hibernate else frozenset()
    joining = [pod for pod in run.pods if run.names.ordinal(pod.name) in behind and pod != seen.primary]
    problem: Permanent | None = None
    for pod in joining:
        if pod.name not in seen.instances or _is_compared(run, pod):
            continue
        histories = [await _history(run, server) for server in (pod, seen.primary) if server]
        if await _awaits_copy(run, pod, histories[0]):
            return await _copy_again(run, pod, "a person chose another volume to begin with", histories[0].started)
        if _copied(run, pod, math.inf) == histories[0].started:
            # Patroni is about to stop it.
            continue
        if histories[-1].continues(histories[0]):
            run.services.memory.keep(run.key, f"history of {pod.name}", pod.uid, True)
        else:
            problem = _diverged(run, pod)
    marked = await mark(run)
    if leader is not None and taken_back(by_instance(run)) == leader:
        problem = _too_late(run, leader)
    if problem:
        return replace(marked, problem=problem)
    for pod in joining:
        if not seen.follows(pod) and _is_stuck(run, seen, pod):
            if pod.member.get("state") == "starting" and pod.name not in seen.instances:
                # It waits for a log that nobody writes any more: of a history of its own, perhaps.
                return replace(marked, problem=_uncompared(run, pod))
            copying = await _copy_again(run, pod, "it lacks write-ahead log that is not kept")
            return replace(copying, events=(*marked.events, *copying.events))
    unknown = [pod.name for pod in joining if not _is_compared(run, pod)]
    return replace(marked, obstacle=_waiting(unknown), next_look=SOON) if unknown else marked


def _came_too_late(run: Run, claim: Manifest, leader: int) -> Announcement:
    name = claim["metadata"]["name"]
    message = (
        f"The annotation {naming.ANNOTATION_BEGIN_WITH} was removed from {name}: {run.names.pod(leader)} leads, and a"
        f" database begins with another volume only after it was hibernated. Hibernate, annotate, and wake it."
    )
    return Announcement(Reason.CHOICE_IGNORED, message, "Warning")


def _waiting(names: Iterable[str]) -> Verdict:
    message = f"Waiting for {', '.join(names)}, on a volume that was left behind. The database serves."
    return Verdict("False", Reason.WAITING_FOR_REPLICAS, message)


def _is_compared(run: Run, pod: Pod) -> bool:
    """Whether it is known, for as long as its pod lives, that the primary's data continues those of a replica."""
    return bool(run.services.memory.recall(run.key, f"history of {pod.name}", pod.uid, math.inf))


async def _history(run: Run, pod: Pod) -> probe.History:
    instance = run.instance(pod, naming.MAINTENANCE_DATABASE)
    async with run.services.sessions.use(instance, run.credentials) as connection:
        return await probe.history(connection)


def _copied(run: Run, pod: Pod, seconds: float) -> str | None:
    """The start of the server that was to be copied again, by this process, at most so many seconds ago."""
    started: str | None = run.services.memory.recall(run.key, f"copy of {pod.name}", pod.uid, seconds)
    return started


async def _awaits_copy(run: Run, pod: Pod, history: probe.History) -> bool:
    """Whether it has to be copied because a person chose another. The note goes once another server runs there."""
    claim = by_instance(run).get(run.names.ordinal(pod.name) or 0)
    if claim is None or annotation(claim, naming.ANNOTATION_COPY_AGAIN) is None:
        return False
    if _copied(run, pod, math.inf) in {None, history.started}:
        return _copied(run, pod, _CATCHING_UP) is None
    await _annotate(run, claim, {naming.ANNOTATION_COPY_AGAIN: None})
    return False


def _diverged(run: Run, pod: Pod) -> Permanent:
    claim = run.names.claim(naming.VOLUME_DATA, run.names.ordinal(pod.name) or 0)
    message = (
        f"{pod.name} was promoted, or written to, apart from the primary: it may hold what the primary lacks, so that"
        f" the operator doesn't copy over it. Look what it holds; then {_how_to_copy(run, pod)}; or begin with it:"
        f" hibernate, annotate pvc {claim} {naming.ANNOTATION_BEGIN_WITH}=true, and wake"
    )
    return Permanent(Reason.DIVERGED, message)


def _too_late(run: Run, leader: int) -> Permanent:
    claim = run.names.claim(naming.VOLUME_DATA, leader)
    message = (
        f"{run.names.pod(leader)} leads by a choice that was taken back too late. The volumes that were left behind may"
        " hold what it lacks: they are kept as they are, and no instance begins from them. To have the volumes"
        f" compared, hibernate and wake the database; or, {how_to_choose(run, claim)}"
    )
    return Permanent(Reason.DIVERGED, message)


def _uncompared(run: Run, pod: Pod) -> Permanent:
    message = (
        f"{pod.name}, on a volume that was left behind, has been starting for {_PATIENCE['starting'] / 60:.0f} minutes"
        " and answers nothing, so that nobody knows whether it holds what the primary lacks; the operator doesn't copy"
        f" over it. Its log says what it waits for. To give up what it holds, {_how_to_copy(run, pod)}"
    )
    return Permanent(Reason.DIVERGED, message)


def _how_to_copy(run: Run, pod: Pod) -> str:
    command = f"patronictl reinit --force {run.names.scope} {pod.name}"
    return f"have it copied again: kubectl -n {run.names.namespace} exec {pod.name} -c postgres -- {command}"


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
    await _give_up_others(run, leader)
    claims = by_instance(run)
    led = led_since(claims)
    if leader in claims and annotation(claims[leader], naming.ANNOTATION_COPY_AGAIN):
        # It was given up before, and is the one that others are copied from now.
        await _annotate(run, claims[leader], {naming.ANNOTATION_COPY_AGAIN: None})
    if leader in claims and (leader not in led or (annotation(claims[leader], _BEGUN) or "") > led[leader]):
        await _annotate(run, claims[leader], {naming.ANNOTATION_LED_SINCE: stamp_now()})
    for ordinal, claim in claims.items():
        stale = ordinal != leader and annotation(claim, _BEGUN)
        if stale or annotation(claim, naming.ANNOTATION_BEGIN_WITH) is not None:
            # Somebody leads: it was heard, or came too late. Both at once: the one note without the other means that
            # the choice was taken back.
            await _annotate(run, claim, {naming.ANNOTATION_BEGIN_WITH: None, _BEGUN: None})
        behind = annotation(claim, naming.ANNOTATION_LEFT_BEHIND)
        if ordinal != leader and ordinal in led:
            await _annotate(run, claim, {naming.ANNOTATION_LED_SINCE: None})
        if behind and (ordinal == leader or run.names.pod(ordinal) in following):
            await _annotate(run, claim, {naming.ANNOTATION_LEFT_BEHIND: None})
        elif not behind and ordinal != leader and ordinal not in run.asked_for:
            await _annotate(run, claim, {naming.ANNOTATION_LEFT_BEHIND: stamp_now()})


async def _annotate(run: Run, claim: Manifest, notes: Mapping[str, str | None]) -> None:
    metadata = claim["metadata"]
    patch = {"metadata": {"uid": metadata["uid"], "annotations": dict(notes)}}
    live = await run.services.client.merge(CLAIM, run.names.namespace, metadata["name"], patch)
    run.services.cache.put(CLAIM, live)


async def _copy_again(run: Run, pod: Pod, why: str, started: str = "") -> Outcome:
    run.services.memory.drop(run.key, f"behind {pod.name}")
    await patroni.reinitialize(run, pod)
    run.services.memory.keep(run.key, f"copy of {pod.name}", pod.uid, started)
    message = f"Copying {pod.name} again from the primary: its volume is of a time before the others began, and {why}."
    announced = Announcement(Reason.COPYING_AGAIN, message)
    return Outcome(events=(announced,), obstacle=_waiting([pod.name]), next_look=_COPYING)


CONCERN = Concern("volume notes", Needs.CREDENTIALS, follow, mark)
