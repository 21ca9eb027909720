"""Which instance begins a database of which none runs: the one that led last, alone. The others join once it leads.

Patroni elects the first instance that is there and not too far behind what it knows of the last primary. That is right
after a failure. It is wrong where all instances begin from their volumes: one that was scaled away long ago, or stopped
a moment before the primary, would lead if it is the first, and what was written since would be lost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.kinds import CLAIM, STATEFUL_SET, Manifest
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.instances import kept_volumes, leftovers, newest, patroni
from medianest_operator.reconcile.instances.leftovers import NotYet
from medianest_operator.resources.patroni import TTL

_WITHOUT_LEADER: Final = "without a leader"


async def first_instances(run: Run) -> range | NotYet:
    """The ordinals of the instances that begin a database of which none is asked for.

    Raises:
        Permanent: what was written last may be on a volume that isn't there.
        ApiError: who led last can't be known now.
    """
    claims = await _kept(run)
    chosen = _chosen(run, claims)
    if chosen is not None:
        if run.pods:
            return range(0)
        # How far another had come, which keeps this one from being elected.
        await leftovers.forget(run)
    elif kept_volumes.taken_back(claims) is not None:
        # What Patroni knows is of a beginning that isn't wanted any more.
        await leftovers.forget(run)
        await kept_volumes.forget_choices(run)
    last = chosen if chosen is not None else await _led_last(run, claims)
    if last is not None and last not in claims:
        # Its labels may have been taken away, too.
        claims = await _kept(run, last)
    if chosen is None and len(claims) > 1 and (last is None or last in claims) and not await patroni.has_record(run):
        _check_all_there(run, claims)
        found = await newest.find(run, claims, last)
        if isinstance(found, NotYet):
            return found
        last = found
    await newest.forget(run)
    if last in claims and last is not None:
        await _check_log(run, claims, last)
        others = [ordinal for ordinal in claims if ordinal != last]
        await kept_volumes.leave_behind(run, others)
        if chosen is not None:
            await kept_volumes.hear(run, chosen)
        return range(last, last + 1)
    if not claims:
        _refuse_log_alone(run)
        return range(run.spec.instances)
    gap = next(number for number in range(naming.MAX_INSTANCES + 1) if number not in claims)
    if last is not None:
        raise _unavailable(run, claims, run.names.claim(naming.VOLUME_DATA, last))
    if kept_volumes.left_behind(run):
        raise _unavailable(run, claims, "the volume of the instance that led last")
    if gap == 0:
        raise _unavailable(run, claims, run.names.claim(naming.VOLUME_DATA, 0))
    return range(min(gap, run.spec.instances))


async def first_again(run: Run, asked: range) -> range:
    """The ordinals to ask for where some are asked for already and none leads. Most often the same: Patroni elects.

    Where a person has chosen another or takes the choice back, or Patroni's record is gone, they stop first. Where none
    of them is elected, because another has newer data, all begin whose volumes are kept: who lacks something isn't
    elected.

    Raises:
        Permanent: a person has chosen more than one.
        ApiError: what Patroni knows can't be read now.
    """
    claims = kept_volumes.by_instance(run)
    chosen = _chosen(run, claims)
    if chosen is not None:
        begun = asked == range(chosen, chosen + 1) and kept_volumes.is_heard(claims[chosen])
        return asked if begun else range(asked.start, asked.start)
    taken_back = kept_volumes.taken_back(claims)
    if taken_back is not None and not kept_volumes.has_led(claims[taken_back]):
        # Too late is no reason to stop what has served since.
        return range(asked.start, asked.start)
    if len(asked) > 1 and kept_volumes.led_since(claims) and not await patroni.has_record(run):
        # Patroni would elect whoever is there first: they stop, and the volumes are read.
        return range(asked.start, asked.start)
    others = set(claims) - set(asked)
    there = [pod for pod in run.pods if pod.serves]
    if not others or len(there) < len(asked) or seconds_without_leader(run) < TTL:
        return asked
    if max((await patroni.positions(run, there)).values()) >= await patroni.known_position(run):
        return asked
    return range(min({*others, asked.start}), max({*others, *asked}) + 1)


def seconds_without_leader(run: Run) -> float:
    """Since when this process has seen none."""
    since: float = run.services.memory.once(run.key, _WITHOUT_LEADER, None, time.monotonic)
    return time.monotonic() - since


def note_leader(run: Run) -> None:
    """Note that there is a leader."""
    run.services.memory.drop(run.key, _WITHOUT_LEADER)


async def _kept(run: Run, last: int = 0) -> Mapping[int, Manifest]:
    """The claims by their ordinal, also those that lost their labels or never had any: a StatefulSet takes them too.

    Where another application has a StatefulSet of this name the others are that one's.

    Args:
        last: the instance that is known to have led last, which may be more than are wanted now.
    """
    names = run.names
    if run.stateful_set is None and await run.services.client.get(STATEFUL_SET, names.namespace, names.stateful_set):
        return kept_volumes.by_instance(run)
    for ordinal in {*range(run.spec.instances), last}:
        name = names.claim(naming.VOLUME_DATA, ordinal)
        if run.services.cache.get(CLAIM, names.namespace, name) is not None:
            continue
        claim = await run.services.client.get(CLAIM, names.namespace, name)
        if claim is not None:
            patch = {"metadata": {"uid": claim["metadata"]["uid"], "labels": names.labels(naming.COMPONENT_POSTGRES)}}
            run.services.cache.put(CLAIM, await run.services.client.merge(CLAIM, names.namespace, name, patch))
    return kept_volumes.by_instance(run)


def _chosen(run: Run, claims: Mapping[int, Manifest]) -> int | None:
    """Which one a person wants. Raises Permanent where that is more than one."""
    chosen = [ordinal for ordinal, claim in claims.items() if kept_volumes.is_chosen(claim)]
    if len(chosen) > 1:
        names = " and ".join(run.names.claim(naming.VOLUME_DATA, ordinal) for ordinal in chosen)
        message = f"{names} carry the annotation {naming.ANNOTATION_BEGIN_WITH}; leave it on the one to begin with"
        raise Permanent(Reason.VOLUME_UNAVAILABLE, message)
    return chosen[0] if chosen else None


async def _led_last(run: Run, claims: Mapping[int, Manifest]) -> int | None:
    """Who led last, by Patroni's word, which is written whether the operator runs or not; else by the claims' notes,
    which outlive Patroni's objects; else by the status."""
    if not claims:
        return None
    ordinal = run.names.ordinal(await patroni.last_leader(run) or "")
    if ordinal is not None:
        return ordinal
    since = kept_volumes.led_since(claims)
    if since:
        return max(since, key=lambda ordinal: since[ordinal])
    return run.names.ordinal(run.database.get("status", {}).get("instances", {}).get("lastPrimary") or "")


def _check_all_there(run: Run, claims: Mapping[int, Manifest]) -> None:
    """Raises Permanent where the volumes can't be compared because one of several is missing: it may be the newest."""
    for ordinal in range(max(run.spec.instances, *claims)):
        if ordinal not in claims:
            never = f"; where it never was, set spec.instances to {max(claims) + 1}" if ordinal > max(claims) else ""
            raise _unavailable(run, claims, run.names.claim(naming.VOLUME_DATA, ordinal), never)


async def _check_log(run: Run, claims: Mapping[int, Manifest], ordinal: int) -> None:
    """Raises Permanent where an instance's data is kept without its write-ahead log: its server can't start."""
    if run.spec.wal_storage is None:
        return
    log, data = (run.names.claim(volume, ordinal) for volume in (naming.VOLUME_WAL, naming.VOLUME_DATA))
    if await run.services.client.get(CLAIM, run.names.namespace, log) is not None:
        return
    if others := {key: claim for key, claim in claims.items() if key != ordinal}:
        raise _unavailable(run, others, log)
    message = (
        f"{log} is not there, the write-ahead log of {data}, without which its server can't start. Bring it back; or"
        f" delete {data}, to begin empty"
    )
    raise Permanent(Reason.VOLUME_UNAVAILABLE, message)


def _refuse_log_alone(run: Run) -> None:
    """Raises Permanent where the write-ahead log of an instance is kept without its data."""
    there = {claim["metadata"]["name"] for claim in run.claims}
    for ordinal in range(run.spec.instances):
        log = run.names.claim(naming.VOLUME_WAL, ordinal)
        if log in there:
            data = run.names.claim(naming.VOLUME_DATA, ordinal)
            message = (
                f"Volume {log} is kept, a write-ahead log, but {data} is not there, whose it is. Bring {data} back; or"
                f" delete {log}, to begin empty"
            )
            raise Permanent(Reason.VOLUME_UNAVAILABLE, message)


def _unavailable(run: Run, claims: Mapping[int, Manifest], missing: str, otherwise: str = "") -> Permanent:
    """
    Args:
        otherwise: what else may help, as a clause.
    """
    left = {
        ordinal: kept_volumes.annotation(claim, naming.ANNOTATION_LEFT_BEHIND) or ""
        for ordinal, claim in claims.items()
    }
    led = kept_volumes.led_since(claims)
    newest = max(claims, key=lambda ordinal: (led.get(ordinal, ""), left[ordinal], -ordinal))
    other = claims[newest]["metadata"]["name"]
    return Permanent(
        Reason.VOLUME_UNAVAILABLE,
        f"Volume {other} is kept, but {missing} is not there, which may hold what was written last. Bring it back"
        f"{otherwise}; or, {kept_volumes.how_to_choose(run, other)}; or delete what is kept, to begin empty",
    )
