"""What an earlier database of the same name left behind, before the first instance of a new one begins.

Patroni keeps its leader, its configuration and the synchronous replicas in Endpoints. A pod that is still ending makes
them again after the garbage collector took them away; then nobody owns them. A new cluster that finds a leader there
takes itself for initialized and waits for that leader for ever (patroni.ha, `bootstrap` and `_run_cycle`).
"""

from __future__ import annotations

from dataclasses import dataclass

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.kinds import ENDPOINTS
from medianest_operator.reconcile.context import Run

_VOLUMES = (naming.VOLUME_DATA, naming.VOLUME_WAL)


def instances_with_data(run: Run) -> int:
    """How many instances, from the first one on, find a volume that an earlier database of this name has left.

    They have to begin alone: an instance without data that began beside them could make an empty database first.

    Raises:
        Permanent: the first instance would begin empty although others have data.
    """
    kept = {claim["metadata"]["name"] for claim in run.claims if "deletionTimestamp" not in claim["metadata"]}
    wanted = [run.names.claim(naming.VOLUME_DATA, number) for number in range(naming.MAX_INSTANCES)]
    count = next((number for number, name in enumerate(wanted) if name not in kept), len(wanted))
    others = [name for name in wanted[count:] if name in kept]
    if others and count == 0:
        raise Permanent(
            Reason.VOLUME_UNAVAILABLE,
            f"Volume {others[0]} of an earlier database is kept, but {wanted[0]} is not there, so the database would"
            f" begin empty. Bring {wanted[0]} back, or delete the kept volumes, or give the database another name",
        )
    return count


@dataclass(frozen=True)
class EarlierDatabase:
    """The fact that an earlier database of this name has not ended yet.

    Attributes:
        message: what of it is still there, as a sentence.
    """

    message: str


async def clear(run: Run) -> EarlierDatabase | None:
    """Remove what Patroni knew of a database whose data is gone. Returns what has to end first, if anything.

    Where a volume is kept, all stays: it tells which instance has the newest data.

    Raises:
        ApiError: that can't be done now.
    """
    names = run.names
    of_instances = {names.claim(volume, number) for volume in _VOLUMES for number in range(naming.MAX_INSTANCES)}
    claims = [claim["metadata"] for claim in run.claims if claim["metadata"]["name"] in of_instances]
    if any("deletionTimestamp" not in claim for claim in claims):
        return None
    if pods := run.pods:
        return EarlierDatabase(f"Pod {pods[0].name} of an earlier database of this name is still ending.")
    if claims:
        volume = claims[0]["name"]
        return EarlierDatabase(f"Volume {volume} of an earlier database of this name is still being deleted.")
    labels = f"{naming.LABEL_SCOPE}={names.scope}"
    found, _ = await run.services.client.snapshot(ENDPOINTS, names.namespace, labels=labels, metadata_only=True)
    for item in found:
        await run.services.applier.delete(ENDPOINTS, item)
    return None
