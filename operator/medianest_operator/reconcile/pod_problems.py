"""Why an instance isn't ready: what a person would dig out of `kubectl describe pod`, in one sentence."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.kubernetes.kinds import EVENT, STATEFUL_SET, Manifest
from medianest_operator.reconcile.context import Pod, Run

_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_HOW = {
    # 128 and the signal's number (containerd, runc).
    137: "was killed by SIGKILL (exit code 137)",
    139: "crashed with SIGSEGV (exit code 139)",
    143: "was ended by SIGTERM (exit code 143)",
}
_NESTING: Final = re.compile(
    r"rpc error: code = \w+ desc = "
    r"|failed to (?:pull and unpack image|resolve reference|do request|create \w+ task)(?: \"[^\"]*\")?: "
)
"""What containerd and the kubelet put before the cause, each naming the same image again."""
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_NOT_BEGUN = frozenset({"ContainerCreating", "PodInitializing"})
_VOLUME_WARNINGS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
_SLOW_START: Final = timedelta(seconds=8)
"""After which a pod that has its node and doesn't begin is asked about. A Secret or volume that is missing is the
kubelet's first warning; until then a pod is merely being made."""

_LAGGING: Final = "no relationship found between node"
"""What the API server says to a kubelet that asks for a volume or a Secret of a pod that it doesn't know to be on that
node yet (Kubernetes documentation, Using Node Authorization). It passes, and the kubelet asks again."""
_SLOW_API_SERVER: Final = timedelta(seconds=60)


@dataclass(frozen=True)
class PodProblem:
    """Something that keeps an instance from being ready."""

    reason: Reason
    message: str


def of_pod(pod: Pod) -> PodProblem | None:
    """What Kubernetes says of one pod; nothing of one that was told to stop."""
    if pod.terminating:
        return None
    status = pod.manifest.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            if condition.get("reason") == "Unschedulable":
                return PodProblem(
                    Reason.UNSCHEDULABLE, f"Pod {pod.name} can't be scheduled: {plain(condition['message'])}"
                )
            return None
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_REASONS:
            detail = plain(message) or reason
            advice = "Check spec.image and spec.imagePullSecrets"
            return PodProblem(Reason.IMAGE_UNAVAILABLE, f"Pod {pod.name}: image {pod.image}: {detail}. {advice}")
        if reason in _CONFIG_REASONS:
            return PodProblem(Reason.POD_FAILING, f"Pod {pod.name}: {plain(message) or reason}")
        last = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated")
        if last and (reason == "CrashLoopBackOff" or "terminated" in container.get("state", {})):
            named = last | {"container": container.get("name", naming.CONTAINER_POSTGRES)}
            return PodProblem(Reason.POD_FAILING, _ended(pod, named, container.get("restartCount", 0), waiting))
    return None


def _ended(pod: Pod, last: Manifest, restarts: int, waiting: Manifest) -> str:
    """How the container ended last, what the kubelet does about it, and which log tells more."""
    how = _HOW.get(last.get("exitCode", 0), f"ended with exit code {last.get('exitCode')}")
    if last.get("reason") == "OOMKilled":
        how = "ran out of memory and was killed (OOMKilled); raise resources.limits.memory"
    times = f"restarted {restarts} time{'' if restarts == 1 else 's'}"
    pause = re.search(r"back-off (\S+) restarting", waiting.get("message", ""))
    back_off = f"the kubelet waits {pause[1]} before the next restart (back-off)" if pause else ""
    option = " --previous" if waiting else ""
    log = f"see kubectl logs {pod.name} -c {last.get('container', naming.CONTAINER_POSTGRES)}{option}"
    return "; ".join(filter(None, (f"Pod {pod.name}: its container {how}", times, back_off, log)))


def plain(message: str) -> str:
    """One line without the runtime's own nesting of errors."""
    text = " ".join(message.split())
    text = re.sub(r"^Back-off pulling image \"[^\"]*\":?\s*", "", text)
    text = _NESTING.sub("", text)
    return text.rstrip(".")


async def of_job_pod(run: Run, manifest: Manifest) -> PodProblem | None:
    """What keeps the pod of a Job from working; nothing where it is done, which its Job notices a moment later.

    Raises:
        ApiError: its Events can't be read.
    """
    states = [container.get("state", {}) for container in manifest.get("status", {}).get("containerStatuses", [])]
    if states and all(state.get("terminated", {}).get("exitCode") == 0 for state in states):
        return None
    pod = Pod(manifest)
    return of_pod(pod) or await _unmounted(run, pod)


async def of_job(run: Run, job: Manifest) -> PodProblem | None:
    """What keeps a Job that has no pod from making one: a quota, or a policy that refuses it.

    Raises:
        ApiError: its Events can't be read.
    """
    metadata = job["metadata"]
    if datetime.fromisoformat(metadata["creationTimestamp"]) + _SLOW_START > datetime.now(UTC):
        return None
    return await _rejected(run, job, f"Job {metadata['name']}")


async def find(run: Run, wanted: int) -> list[PodProblem]:
    """What keeps instances from being ready, the worst first."""
    pods = run.pods
    late = [pod for pod in pods if not pod.ready]
    found = [problem for pod in late if (problem := of_pod(pod) or await _unmounted(run, pod))]
    live = run.stateful_set
    if (
        live
        and len(pods) < wanted
        and live.get("status", {}).get("observedGeneration") == live["metadata"]["generation"]
    ):
        rejected = await _rejected(run, live, f"{STATEFUL_SET.kind} {run.names.stateful_set}")
        found += [rejected] if rejected else []
    if any(problem.reason == Reason.UNSCHEDULABLE for problem in found):
        found = [*await _unbound(run), *found]
    return found


async def _unmounted(run: Run, pod: Pod) -> PodProblem | None:
    """The volume or Secret that a pod on its node waits for: only its Events tell."""
    if not _is_slow(pod, _SLOW_START):
        return None
    for message in await warnings_of(run, pod.uid, _VOLUME_WARNINGS):
        if _LAGGING in message and not _is_slow(pod, _SLOW_API_SERVER):
            continue
        return PodProblem(Reason.POD_FAILING, f"Pod {pod.name} can't start: {plain(message)}")
    return None


def _is_slow(pod: Pod, patience: timedelta) -> bool:
    status = pod.manifest.get("status", {})
    containers = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    states = [container.get("state", {}).get("waiting", {}).get("reason") for container in containers]
    if pod.terminating or not states or not all(state in _NOT_BEGUN for state in states):
        return False
    since = [c["lastTransitionTime"] for c in status.get("conditions", []) if c["type"] == "PodScheduled"]
    return bool(since) and datetime.fromisoformat(since[0]) + patience < datetime.now(UTC)


async def _rejected(run: Run, owner: Manifest, name: str) -> PodProblem | None:
    """Why an object can't make its pods: only its Events tell."""
    for message in await warnings_of(run, owner["metadata"]["uid"], {"FailedCreate"}):
        text = plain(message).split(" error: ", 1)[-1]
        reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in text else Reason.POD_REJECTED
        return PodProblem(reason, f"{name} can't create its pods: {text}")
    return None


async def _unbound(run: Run) -> list[PodProblem]:
    for claim in run.claims:
        if claim.get("status", {}).get("phase") != "Pending":
            continue
        for message in await warnings_of(run, claim["metadata"]["uid"], {"ProvisioningFailed"}):
            name = claim["metadata"]["name"]
            return [PodProblem(Reason.VOLUME_UNAVAILABLE, f"Volume {name} can't be provisioned: {plain(message)}")]
    return []


async def warnings_of(run: Run, uid: str, reasons: Collection[str]) -> list[str]:
    """Messages of an object's warnings for such reasons, the newest first."""
    fields = f"involvedObject.uid={uid},type=Warning"
    listed = run.services.client.list(EVENT, run.names.namespace, fields=fields)
    events = [event async for event in listed if event.get("reason") in reasons]
    events.sort(key=lambda event: event.get("lastTimestamp") or event["metadata"]["creationTimestamp"], reverse=True)
    return [event["message"] for event in events]
