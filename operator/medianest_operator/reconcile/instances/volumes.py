"""Volumes that grow: the claims first, then the StatefulSet's template, which nobody may change in place."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.model import OnDelete
from medianest_operator.api.quantity import to_bytes
from medianest_operator.errors import Permanent, Transient
from medianest_operator.kubernetes.client import ApiError
from medianest_operator.kubernetes.kinds import CLAIM, STATEFUL_SET, Manifest
from medianest_operator.reconcile.concern import Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.pod_problems import plain, warnings_of
from medianest_operator.resources.meta import owner_reference
from medianest_operator.timestamps import stamp_now

_REFUSED_FOR: Final = 60.0
"""Seconds after which a size is asked for again that was refused."""
_SKEW: Final = timedelta(minutes=5)
"""How far another operator's clock may be ahead."""
_EVENTS_EVERY: Final = 10.0
"""Seconds after which the Events of a volume that is to grow are read again."""
_RESIZE_WARNINGS: Final = frozenset({"VolumeResizeFailed", "FileSystemResizeFailed"})
"""Of the driver's sidecar and of the kubelet (external-resizer; Kubernetes, pkg/kubelet/events)."""


def asked_sizes(run: Run) -> dict[str, str]:
    """What the spec asks for, by volume."""
    sizes = {naming.VOLUME_DATA: run.spec.storage.size}
    if run.spec.wal_storage:
        sizes[naming.VOLUME_WAL] = run.spec.wal_storage.size
    return sizes


def wanted_sizes(run: Run) -> dict[str, str]:
    """The size of each volume: what the spec asks for, or what it has grown to. All instances have the same."""
    sizes = asked_sizes(run)
    for claim, volume in of_instances(run):
        if _requested(claim) > to_bytes(sizes[volume]):
            sizes[volume] = str(claim["spec"]["resources"]["requests"]["storage"])
    return sizes


def grown_spec(run: Run) -> DatabaseSpec:
    """The spec with the sizes that the volumes have grown to."""
    sizes, spec = wanted_sizes(run), run.spec
    storage = spec.storage.model_copy(update={"size": sizes[naming.VOLUME_DATA]})
    log = spec.wal_storage and spec.wal_storage.model_copy(update={"size": sizes[naming.VOLUME_WAL]})
    return spec.model_copy(update={"storage": storage, "wal_storage": log})


def of_instances(run: Run) -> list[tuple[Manifest, str]]:
    """The claims of the instances that there are or are to be, each with its volume's name.

    One that was scaled away keeps its size until it is back: a volume that no pod uses may never be grown.
    """
    there = {*range(run.spec.instances), *run.asked_for}
    named = {run.names.claim(volume, ordinal): volume for volume in asked_sizes(run) for ordinal in there}
    claims = [(claim, named.get(claim["metadata"]["name"])) for claim in run.claims]
    return [(claim, volume) for claim, volume in claims if volume is not None]


def _requested(claim: Manifest) -> int:
    return to_bytes(claim["spec"]["resources"]["requests"]["storage"])


class TemplateRenewal:
    """The fact that the StatefulSet is on its way out, to be made again with other claim templates."""


async def reconcile(run: Run) -> Outcome:
    """Ask for larger claims where the spec wants them. Raises Permanent where the storage class can't grow volumes."""
    # First: a volume that can't grow must not keep another from staying.
    await _own(run)
    sizes, asked = wanted_sizes(run), asked_sizes(run)
    for claim, volume in of_instances(run):
        if _requested(claim) >= to_bytes(sizes[volume]):
            continue
        try:
            await _grow(run, claim, sizes[volume])
        except Permanent:
            if _requested(claim) < to_bytes(asked[volume]):
                raise
            # It only isn't as large as another instance's, which has grown automatically: `obstacle` tells.
    await _renew_template(run)
    return await observe(run)


async def observe_paused(run: Run) -> Outcome:
    """The same, but for the policy on deletion: who pauses a database to keep it must not lose it."""
    await _own(run)
    return await observe(run)


async def observe(run: Run) -> Outcome:
    """Whether volumes are on their way to the size that the spec asks for. One that grows automatically keeps nobody
    from being Ready."""
    asked = asked_sizes(run)
    pending = [claim for claim, volume in _growing(run) if _requested(claim) <= to_bytes(asked[volume])]
    if not pending:
        return Outcome()
    if problem := await obstacle(run, pending):
        verdict = Verdict("False", problem.reason, f"{problem.message}.")
        return Outcome(obstacle=verdict, stalled=verdict, next_look=_EVENTS_EVERY)
    sizes = ", ".join(f"{volume} {size}" for volume, size in asked.items())
    names = ", ".join(str(claim["metadata"]["name"]) for claim in pending)
    message = f"Growing the volumes to {sizes}: waiting for {names}."
    verdict = Verdict("False", Reason.GROWING_VOLUMES, message)
    return Outcome(obstacle=verdict, next_look=_EVENTS_EVERY)


async def obstacle(run: Run, claims: Sequence[Manifest] | None = None) -> Permanent | None:
    """Why volumes that were asked to grow don't: what the driver or the kubelet say of them.

    Args:
        claims: which; all that are on their way to a larger size where it is `None`.

    Raises:
        ApiError: their Events can't be read.
    """
    if claims is None:
        sizes = wanted_sizes(run)
        for claim, volume in of_instances(run):
            topic = f"refusal of {claim['metadata']['name']}"
            refused: Permanent | None = run.services.memory.recall(run.key, topic, sizes[volume], 2 * _REFUSED_FOR)
            if refused is not None and _requested(claim) < to_bytes(sizes[volume]):
                return refused
    for claim in [claim for claim, _ in _growing(run)] if claims is None else claims:
        name, uid = str(claim["metadata"]["name"]), str(claim["metadata"].get("uid"))
        if (said := run.services.memory.recall(run.key, f"expansion of {name}", uid, _EVENTS_EVERY)) is None:
            said = await warnings_of(run, uid, _RESIZE_WARNINGS)
            run.services.memory.keep(run.key, f"expansion of {name}", uid, said)
        states = claim.get("status", {}).get("allocatedResourceStatuses") or {}
        if said or str(states.get("storage")).endswith(("Infeasible", "Failed")):
            size = claim["spec"]["resources"]["requests"]["storage"]
            why = plain(said[0]) if said else "its driver says that it is not feasible"
            return Permanent(
                Reason.VOLUME_CANNOT_GROW, f"Volume {name} was asked to grow to {size} and does not: {why}"
            )
    return None


async def grow_to(run: Run, volume: str, size: str) -> None:
    """Make one volume of all instances larger.

    Raises:
        Permanent: the API server refuses it.
        ApiError: it can't be asked.
    """
    for claim, name in of_instances(run):
        if name == volume and _requested(claim) < to_bytes(size):
            await _grow(run, claim, size)


async def _grow(run: Run, claim: Manifest, size: str) -> None:
    """Ask for a larger volume; what was refused is asked for again after a minute, not before."""
    name, memory = claim["metadata"]["name"], run.services.memory
    refused: Permanent | None = memory.recall(run.key, f"refusal of {name}", size, _REFUSED_FOR)
    if refused is not None:
        raise Permanent(refused.reason, refused.message)
    patch = {
        "metadata": {"annotations": {naming.ANNOTATION_GROWN_AT: stamp_now()}},
        "spec": {"resources": {"requests": {"storage": size}}},
    }
    try:
        live = await run.services.client.merge(CLAIM, run.names.namespace, name, patch)
    except ApiError as error:
        if error.refused:
            refused = _refusal(name, size, error)
            memory.keep(run.key, f"refusal of {name}", size, refused)
            raise refused from error
        raise
    run.services.cache.put(CLAIM, live)


def _refusal(name: str, size: str, error: ApiError) -> Permanent:
    field = "walStorage.size" if name.startswith(f"{naming.VOLUME_WAL}-") else "storage.size"
    said = f"{field}: volume {name} can't grow to {size}: {error.message}"
    if "exceeded quota" in error.message:
        return Permanent(Reason.QUOTA_EXCEEDED, f"{said}. Raise the quota, or free some of it")
    return Permanent(
        Reason.VOLUME_CANNOT_GROW,
        f"{said}. Use a storage class with allowVolumeExpansion (it may be turned on for this one), or move to a new"
        " database",
    )


async def _own(run: Run) -> None:
    """Let the volumes of the instances, of those that were scaled away too, go with the object or stay, as the policy
    says. A StatefulSet's own retention policy would let them go with it, and reaches no claim without a pod."""
    goes = run.spec.storage.on_delete is OnDelete.DELETE
    owners = [owner_reference(run.database) | {"controller": False}] if goes else []
    volumes = (naming.VOLUME_DATA, naming.VOLUME_WAL)
    names = {run.names.claim(volume, number) for volume in volumes for number in range(naming.MAX_INSTANCES)}
    for claim in run.claims:
        metadata = claim["metadata"]
        known = {item["uid"] for item in metadata.get("ownerReferences") or []}
        if metadata["name"] not in names or known == {item["uid"] for item in owners}:
            continue
        patch = {"metadata": {"uid": metadata["uid"], "ownerReferences": owners}}
        live = await run.services.client.merge(CLAIM, run.names.namespace, metadata["name"], patch)
        run.services.cache.put(CLAIM, live)


async def _renew_template(run: Run) -> None:
    """Replace the StatefulSet under its pods, so that new instances get the new size."""
    live = run.stateful_set
    if live is None:
        return
    if "deletionTimestamp" in live["metadata"]:
        raise _renewal(run)
    templates = {claim["metadata"]["name"]: claim for claim in live["spec"]["volumeClaimTemplates"]}
    sizes = wanted_sizes(run)
    if all(_requested(templates[volume]) == to_bytes(size) for volume, size in sizes.items() if volume in templates):
        return
    await run.services.applier.delete(STATEFUL_SET, live, propagation="Orphan")
    # Its finalizer takes a moment; an object applied meanwhile would meet the old one.
    raise _renewal(run)


def _renewal(run: Run) -> Transient:
    run.facts.add(TemplateRenewal())
    message = "The StatefulSet is replaced under its running pods, so that new instances get the new size"
    return Transient(Reason.GROWING_VOLUMES, message)


def _growing(run: Run) -> list[tuple[Manifest, str]]:
    """Claims whose file system has not reached the wanted size yet, each with its volume's name."""
    return [(claim, volume) for claim, volume in of_instances(run) if not has_grown(claim)]


def is_growing(run: Run, volume: str) -> bool:
    """Whether a volume of some instance that runs has yet to reach the size that was asked for. Without a pod it may
    never reach it."""
    running = [run.names.ordinal(pod.name) for pod in run.pods if pod.running]
    mounted = {run.names.claim(volume, ordinal) for ordinal in running if ordinal is not None}
    return any(claim["metadata"]["name"] in mounted for claim, _ in _growing(run))


def has_grown(claim: Manifest) -> bool:
    """Whether a claim's volume is as large as asked for."""
    capacity = claim.get("status", {}).get("capacity", {}).get("storage")
    return not capacity or to_bytes(capacity) >= _requested(claim)


def grown_at(claim: Manifest) -> datetime | None:
    """When the operator asked for a larger volume last; `None` where it never did, or the note isn't the operator's:
    anybody may annotate a claim. A moment that is still to come would keep the volume as it is until then."""
    noted = (claim["metadata"].get("annotations") or {}).get(naming.ANNOTATION_GROWN_AT)
    try:
        moment = datetime.fromisoformat(str(noted))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None and moment <= datetime.now(UTC) + _SKEW else None


CONCERN = Concern("volumes", Needs.NOTHING, reconcile, observe_paused, stable=True)
