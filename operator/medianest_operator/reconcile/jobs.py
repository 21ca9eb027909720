"""What a Job of ours came to: how it ended, and the result that its newest pod left."""

import json
from typing import Any

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import POD, Manifest
from medianest_operator.reconcile.context import Run


def ended(job: Manifest) -> dict[str, Any] | None:
    """The condition that ended a Job; None while it runs."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True":
            return dict(condition)
    return None


def pods(run: Run, job: Manifest) -> list[Manifest]:
    """The pods that a Job has made."""
    uid = job["metadata"]["uid"]
    found = run.services.cache.of_database(POD, run.key)
    return [pod for pod in found if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences", []))]


def result(run: Run, job: Manifest) -> dict[str, Any]:
    """The newest termination message among the pods of a Job; empty while there is none, `message` alone where a pod
    left text that isn't a result."""
    newest: tuple[str, str] = ("", "")
    for pod in pods(run, job):
        for container in pod.get("status", {}).get("containerStatuses", []):
            terminated = container.get("state", {}).get("terminated")
            if terminated and terminated.get("finishedAt", "") >= newest[0]:
                newest = terminated.get("finishedAt", ""), terminated.get("message", "")
    text = newest[1].strip()
    try:
        parsed = json.loads(text) if text else {}
    except ValueError:
        return {"message": text[-1000:]}
    return parsed if isinstance(parsed, dict) else {}


def copy_failure(run: Run, job: Manifest) -> str | None:
    """What the newest failed container said that hands the image's migrations over; `None` where none failed. The
    sandbox is an init container too, and says nothing of that."""
    newest: tuple[str, str] | None = None
    for pod in pods(run, job):
        for container in pod.get("status", {}).get("initContainerStatuses", []):
            if container.get("name") != naming.CONTAINER_COPY:
                continue
            terminated = container.get("state", {}).get("terminated")
            if not terminated or not terminated.get("exitCode"):
                continue
            if newest is None or terminated.get("finishedAt", "") >= newest[0]:
                newest = terminated.get("finishedAt", ""), terminated.get("message", "").strip()
    return newest[1] if newest else None
