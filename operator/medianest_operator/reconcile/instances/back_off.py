"""Pods that the kubelet keeps waiting although what they failed for is over: their volume was full, and has grown.

The kubelet doubles its pause before each restart of a container, up to five minutes (Kubernetes documentation, Pod
Lifecycle, restartPolicy). A new pod begins at once.
"""

from __future__ import annotations

from datetime import datetime

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.kubernetes.kinds import POD, Manifest
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.instances import volumes


async def reconcile(run: Run) -> Outcome:
    """Replace the pods in back-off whose volume has grown since they were made."""
    replaced = [pod for pod in run.pods if is_in_back_off(pod) and _has_grown_since(run, pod)]
    for pod in replaced:
        await run.services.applier.delete(POD, pod.manifest)
    events = (
        Announcement(
            Reason.RESTARTING,
            f"Replaced pod {pod.name}, which the kubelet kept waiting (back-off): its volume has grown meanwhile.",
        )
        for pod in replaced
    )
    return Outcome(events=tuple(events))


def is_in_back_off(pod: Pod) -> bool:
    """Whether the kubelet waits before it starts a container of a pod again."""
    states = pod.manifest.get("status", {}).get("containerStatuses", [])
    waiting = [(state.get("state", {}).get("waiting") or {}).get("reason") for state in states]
    return not pod.terminating and "CrashLoopBackOff" in waiting


def _has_grown_since(run: Run, pod: Pod) -> bool:
    ordinal = run.names.ordinal(pod.name)
    if ordinal is None:
        return False
    names = {run.names.claim(volume, ordinal) for volume in (naming.VOLUME_DATA, naming.VOLUME_WAL)}
    made = datetime.fromisoformat(pod.manifest["metadata"]["creationTimestamp"])
    return any(claim["metadata"]["name"] in names and _grown_after(claim, made) for claim in run.claims)


def _grown_after(claim: Manifest, made: datetime) -> bool:
    """Whether a volume was asked to grow after a moment, and has, as far as it can without a new pod."""
    noted = volumes.grown_at(claim)
    if noted is None or noted <= made:
        return False
    waits_for_pod = any(
        item.get("type") == "FileSystemResizePending" and item.get("status") == "True"
        for item in claim.get("status", {}).get("conditions") or []
    )
    return volumes.has_grown(claim) or waits_for_pod


CONCERN = Concern("back-off", Needs.NOTHING, reconcile, stable=True)
