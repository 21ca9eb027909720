"""What an earlier database of the same name left behind, before the first instance of a new one begins.

Patroni keeps its leader, its configuration and the synchronous replicas in Endpoints. A pod that is still ending makes
them again after the garbage collector took them away; then nobody owns them. A new cluster that finds a leader there
takes itself for initialized and waits for that leader for ever (patroni.ha, `bootstrap` and `_run_cycle`).
"""

from __future__ import annotations

from dataclasses import dataclass

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import ENDPOINTS, JOB, STATEFUL_SET
from medianest_operator.reconcile.context import Run

_VOLUMES = (naming.VOLUME_DATA, naming.VOLUME_WAL)


@dataclass(frozen=True)
class NotYet:
    """The fact that no instance can begin yet.

    Attributes:
        message: what has to come first, as a sentence.
    """

    message: str


async def clear(run: Run) -> NotYet | None:
    """Remove what Patroni knew of a database whose data is gone. Returns what has to end first, if anything.

    Where a volume is kept, what Patroni knows stays: it tells how far the last primary had come.

    Raises:
        ApiError: that can't be done now.
    """
    names = run.names
    known = run.services.cache.get(STATEFUL_SET, names.namespace, names.stateful_set)
    if known is not None and run.stateful_set is None:
        return NotYet(f"StatefulSet {names.stateful_set} of an earlier database is still being deleted.")
    if pods := run.pods_of_name:
        if any(not pod.terminating for pod in run.pods):
            return None
        return NotYet(f"Pod {pods[0].name} of an earlier StatefulSet is still ending.")
    of_instances = {names.claim(volume, number) for volume in _VOLUMES for number in range(naming.MAX_INSTANCES)}
    kept = {claim["metadata"]["name"] for claim in run.claims if "deletionTimestamp" not in claim["metadata"]}
    claims = of_instances & {claim["metadata"]["name"] for claim in run.claims_of_name}
    if going := sorted(claims - kept):
        return NotYet(f"Volume {going[0]} of an earlier database of this name is still being deleted.")
    if claims:
        return None
    await forget(run)
    return None


async def forget(run: Run) -> None:
    """Remove all that Patroni knows of a database of which no pod runs, and the Jobs that changed one which is gone: an
    empty database, or an older volume, has to be migrated again."""
    names = run.names
    # Each by its name: a list by label goes through all Endpoints of the namespace.
    for name in (names.scope, names.patroni_store, names.patroni_failover, names.patroni_sync):
        record = await run.services.client.get(ENDPOINTS, names.namespace, name)
        if record and record["metadata"].get("labels", {}).get(naming.LABEL_SCOPE) == names.scope:
            await run.services.applier.delete(ENDPOINTS, record)
    for job in [*run.jobs, *run.hardening_jobs]:
        await run.services.applier.delete(JOB, job)
        run.services.cache.remove(JOB, job)
