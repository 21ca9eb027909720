"""Why an instance isn't ready: what a person would dig out of `kubectl describe pod`, in one sentence."""

import re
from dataclasses import dataclass

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
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


@dataclass(frozen=True)
class Finding:
    """Something that keeps an instance from being ready."""

    reason: Reason
    message: str


def of_pod(pod: Pod) -> Finding | None:
    """What Kubernetes says of one pod; nothing of one that was told to stop."""
    if pod.terminating:
        return None
    status = pod.manifest.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            if condition.get("reason") == "Unschedulable":
                return Finding(
                    Reason.UNSCHEDULABLE, f"Pod {pod.name} can't be scheduled: {_plain(condition['message'])}"
                )
            return None
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_REASONS:
            detail = _plain(message) or reason
            advice = "Check spec.image and spec.imagePullSecrets"
            return Finding(Reason.IMAGE_UNAVAILABLE, f"Pod {pod.name}: image {pod.image}: {detail}. {advice}")
        if reason in _CONFIG_REASONS:
            return Finding(Reason.POD_FAILING, f"Pod {pod.name}: {_plain(message) or reason}")
        last = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated")
        if last and (reason == "CrashLoopBackOff" or "terminated" in container.get("state", {})):
            named = last | {"container": container.get("name", naming.CONTAINER_POSTGRES)}
            return Finding(Reason.POD_FAILING, _ended(pod, named, container.get("restartCount", 0), waiting))
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


def _plain(message: str) -> str:
    """One line without the runtime's own nesting of errors."""
    text = " ".join(message.split())
    text = re.sub(r"^Back-off pulling image \"[^\"]*\":?\s*", "", text)
    text = re.sub(r"rpc error: code = \w+ desc = ", "", text)
    return text.rstrip(".")


def of_manifest(pod: Manifest) -> Finding | None:
    """As `of_pod`, for the pod of a Job."""
    return of_pod(Pod(pod))


async def find(run: Run, wanted: int) -> list[Finding]:
    """What keeps instances from being ready, the worst first."""
    pods = run.pods
    found = [finding for pod in pods if not pod.ready and (finding := of_pod(pod))]
    live = run.stateful_set
    if (
        live
        and len(pods) < wanted
        and live.get("status", {}).get("observedGeneration") == live["metadata"]["generation"]
    ):
        found += await _rejected(run, live)
    if any(finding.reason == Reason.UNSCHEDULABLE for finding in found):
        found = [*await _unbound(run), *found]
    return found


async def _rejected(run: Run, stateful_set: Manifest) -> list[Finding]:
    """Why the StatefulSet can't make its pods: only its Events tell."""
    messages = await _warnings(run, stateful_set["metadata"]["uid"], "FailedCreate")
    for message in messages:
        text = _plain(message).split(" error: ", 1)[-1]
        reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in text else Reason.POD_REJECTED
        return [Finding(reason, f"{STATEFUL_SET.kind} {run.names.stateful_set} can't create its pods: {text}")]
    return []


async def _unbound(run: Run) -> list[Finding]:
    for claim in run.claims:
        if claim.get("status", {}).get("phase") != "Pending":
            continue
        for message in await _warnings(run, claim["metadata"]["uid"], "ProvisioningFailed"):
            name = claim["metadata"]["name"]
            return [Finding(Reason.VOLUME_UNAVAILABLE, f"Volume {name} can't be provisioned: {_plain(message)}")]
    return []


async def _warnings(run: Run, uid: str, reason: str) -> list[str]:
    """Messages of an object's warnings, the newest first."""
    fields = f"involvedObject.uid={uid},reason={reason},type=Warning"
    events = [event async for event in run.services.client.list(EVENT, run.names.namespace, fields=fields)]
    events.sort(key=lambda event: event.get("lastTimestamp") or event["metadata"]["creationTimestamp"], reverse=True)
    return [event["message"] for event in events]
