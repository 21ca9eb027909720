"""Volumes that grow: the claims first, then the StatefulSet's template, which nobody may change in place."""

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.api.model import OnDelete
from medianest_operator.api.quantity import to_bytes
from medianest_operator.errors import Permanent, Transient
from medianest_operator.kubernetes.client import ApiError
from medianest_operator.kubernetes.kinds import CLAIM, STATEFUL_SET, Manifest
from medianest_operator.reconcile.concern import Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Run
from medianest_operator.resources.meta import owner_reference


def wanted_sizes(run: Run) -> dict[str, str]:
    """Size by volume."""
    sizes = {naming.VOLUME_DATA: run.spec.storage.size}
    if run.spec.wal_storage:
        sizes[naming.VOLUME_WAL] = run.spec.wal_storage.size
    return sizes


def _of_instances(run: Run) -> list[tuple[Manifest, str]]:
    """The claims of the instances that there are or are to be, each with its volume's name.

    One that was scaled away keeps its size until it is back: a volume that no pod uses may never be grown.
    """
    there = {*range(run.spec.instances), *run.asked_for}
    named = {run.names.claim(volume, ordinal): volume for volume in wanted_sizes(run) for ordinal in there}
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
    sizes = wanted_sizes(run)
    for claim, volume in _of_instances(run):
        if _requested(claim) < to_bytes(sizes[volume]):
            await _grow(run, claim, sizes[volume])
    await _renew_template(run)
    return await observe(run)


async def observe_paused(run: Run) -> Outcome:
    """The same, but for the policy on deletion: who pauses a database to keep it must not lose it."""
    await _own(run)
    return await observe(run)


async def observe(run: Run) -> Outcome:
    """Whether volumes are on their way to their size."""
    pending = growing(run)
    if not pending:
        return Outcome()
    sizes = ", ".join(f"{volume} {size}" for volume, size in wanted_sizes(run).items())
    message = f"Growing the volumes to {sizes}: waiting for {', '.join(pending)}."
    return Outcome(obstacle=Verdict("False", Reason.GROWING_VOLUMES, message))


async def _grow(run: Run, claim: Manifest, size: str) -> None:
    name = claim["metadata"]["name"]
    patch = {"spec": {"resources": {"requests": {"storage": size}}}}
    try:
        live = await run.services.client.merge(CLAIM, run.names.namespace, name, patch)
    except ApiError as error:
        if error.refused:
            raise Permanent(
                Reason.VOLUME_CANNOT_GROW,
                f"storage.size: volume {name} can't grow to {size}: {error.message}. Use a storage class with "
                f"allowVolumeExpansion (it may be turned on for this one), or move to a new database",
            ) from error
        raise
    run.services.cache.put(CLAIM, live)


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


def growing(run: Run) -> list[str]:
    """Claims whose file system has not reached the wanted size yet."""
    pending = []
    for claim, _ in _of_instances(run):
        capacity = claim.get("status", {}).get("capacity", {}).get("storage")
        if capacity and to_bytes(capacity) < _requested(claim):
            pending.append(str(claim["metadata"]["name"]))
    return pending


CONCERN = Concern("volumes", Needs.NOTHING, reconcile, observe_paused, stable=True)
