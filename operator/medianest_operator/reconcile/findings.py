"""Why an instance isn't ready: what a person would dig out of `kubectl describe pod`, in one sentence."""

import re
from dataclasses import dataclass

from medianest_operator.api.conditions import Reason
from medianest_operator.kubernetes.kinds import EVENT, STATEFUL_SET, Manifest
from medianest_operator.reconcile import jobs
from medianest_operator.reconcile.context import Pod, Run

_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


@dataclass(frozen=True)
class Finding:
    """Something that keeps an instance from being ready."""

    reason: Reason
    message: str


def of_pod(pod: Pod) -> Finding | None:
    """What Kubernetes says of one pod."""
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
            return Finding(Reason.POD_FAILING, _ended(pod, last, container.get("restartCount", 0)))
    return None


def _ended(pod: Pod, last: Manifest, restarts: int) -> str:
    how = last.get("reason", "Error")
    if how == "OOMKilled":
        return f"Pod {pod.name}: out of memory; raise resources.limits.memory (restarted {restarts} times)"
    how = f"{how}, exit code {last.get('exitCode')}"
    return f"Pod {pod.name}: the container ended ({how}), restarted {restarts} times; see its log"


def _plain(message: str) -> str:
    """One line without the runtime's own nesting of errors."""
    text = " ".join(message.split())
    text = re.sub(r"^Back-off pulling image \"[^\"]*\":?\s*", "", text)
    text = re.sub(r"rpc error: code = \w+ desc = ", "", text)
    return text.rstrip(".")


def of_job(run: Run, job: Manifest) -> str | None:
    """What keeps a Job's pods from working, as a sentence; `None` where nothing does."""
    found = (of_pod(Pod(pod)) for pod in jobs.pods(run, job))
    return next((f"{finding.message}." for finding in found if finding), None)


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
        return [Finding(reason, f"{STATEFUL_SET.kind} {run.names.stateful_set} can't make its pods: {text}")]
    return []


async def _unbound(run: Run) -> list[Finding]:
    for claim in run.claims:
        if claim.get("status", {}).get("phase") != "Pending":
            continue
        for message in await _warnings(run, claim["metadata"]["uid"], "ProvisioningFailed"):
            name = claim["metadata"]["name"]
            return [Finding(Reason.VOLUME_UNAVAILABLE, f"Volume {name} can't be made: {_plain(message)}")]
    return []


async def _warnings(run: Run, uid: str, reason: str) -> list[str]:
    """Messages of an object's warnings, the newest first."""
    fields = f"involvedObject.uid={uid},reason={reason},type=Warning"
    events = [event async for event in run.services.client.list(EVENT, run.names.namespace, fields=fields)]
    events.sort(key=lambda event: event.get("lastTimestamp") or event["metadata"]["creationTimestamp"], reverse=True)
    return [event["message"] for event in events]
