"""A Job of ours, from its start to what it came to: written once for migrations, hardening, restores and backups.

A Job's name holds a digest of what it does, so that a restarted operator finds it again and never starts it twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

from medianest_operator import naming
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError
from medianest_operator.kubernetes.kinds import JOB, POD, Manifest
from medianest_operator.reconcile import pod_problems
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.pod_problems import PodProblem

log = logging.getLogger(__name__)

STRANDED_AFTER: Final = timedelta(seconds=10)
"""A pod that is still there so long after the end of its grace period is on a lost node."""
_BEGINS_WITHIN: Final = timedelta(minutes=5)
"""Whatever is pulled and mounted; after that a pod that has not begun is no reason to wait."""
_PATIENCE: Final = timedelta(minutes=1)
"""Until then what keeps a pod from beginning may pass: a node that is being made, a volume on its way."""
_LONGEST: Final = 1000
"""Characters of a text that isn't a result."""


@dataclass(frozen=True)
class Attempt:
    """One Job, as far as it has come."""

    run: Run
    job: Manifest

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])

    @property
    def annotations(self) -> dict[str, str]:
        found: dict[str, str] = self.job["metadata"].get("annotations") or {}
        return found

    @cached_property
    def end(self) -> dict[str, Any] | None:
        """The condition that ended the Job; `None` while it runs."""
        return ended(self.job)

    @property
    def is_running(self) -> bool:
        return self.end is None

    @property
    def succeeded(self) -> bool:
        return self.end is not None and self.end["type"] == "Complete"

    @property
    def is_stranded(self) -> bool:
        """Whether its pod was to end and can't, because its node is lost. A Job waits for such a pod indefinitely.

        Should the pod run on after all, unseen, the lock in the database keeps the next one waiting.
        """
        if not self.is_running:
            return False
        limit = datetime.now(UTC) - STRANDED_AFTER
        stamps = [pod["metadata"].get("deletionTimestamp") for pod in self.pods]
        return bool(stamps) and all(stamp is not None and datetime.fromisoformat(stamp) < limit for stamp in stamps)

    @property
    def has_begun(self) -> bool:
        """Whether a container of it was ever started, also in a pod that is gone."""
        status = self.job.get("status", {})
        counts = (status.get(name) for name in ("ready", "failed", "succeeded", "terminating"))
        if any(counts) or any((status.get("uncountedTerminatedPods") or {}).values()):
            return True
        statuses = [pod.get("status", {}) for pod in self.pods]
        containers = [
            container
            for status in statuses
            for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        ]
        return any({"running", "terminated"} & container.get("state", {}).keys() for container in containers)

    async def is_in_vain(self) -> bool:
        """Whether it can't begin: nothing is lost with one that is made anew."""
        if not self.is_running or self.has_begun:
            return False
        return self._has_waited(_BEGINS_WITHIN) or (self._has_waited(_PATIENCE) and await self.obstacle() is not None)

    async def lasting_obstacle(self) -> PodProblem | None:
        """What keeps a Job from beginning that should have begun by now.

        Raises:
            ApiError: its Events can't be read, among others.
        """
        if not self.is_running or self.has_begun or self.job["spec"].get("suspend") or not self._has_waited(_PATIENCE):
            return None
        return await self._problem()

    def _has_waited(self, limit: timedelta) -> bool:
        """Whether its newest pod is as old, or it is itself where it has none."""
        made = [item["metadata"]["creationTimestamp"] for item in (self.pods or [self.job])]
        return datetime.now(UTC) - max(map(datetime.fromisoformat, made)) > limit

    @property
    def age(self) -> timedelta:
        """How long ago it ended; zero while it runs."""
        if self.end is None:
            return timedelta(0)
        return datetime.now(UTC) - datetime.fromisoformat(self.end["lastTransitionTime"])

    @property
    def started_at(self) -> str | None:
        started: str | None = self.job.get("status", {}).get("startTime")
        return started

    @property
    def finished_at(self) -> str | None:
        finished = self.job.get("status", {}).get("completionTime") or (self.end or {}).get("lastTransitionTime")
        return str(finished) if finished else None

    @cached_property
    def pods(self) -> list[Manifest]:
        """The pods that the Job has made."""
        uid = self.job["metadata"]["uid"]
        found = self.run.services.cache.of_database(POD, self.run.key)
        return [pod for pod in found if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences", []))]

    @cached_property
    def result(self) -> dict[str, Any]:
        """The newest termination message among its pods.

        Empty while there is none; `message` alone where a pod left text that isn't a result.
        """
        text = _newest_message(self.pods, "containerStatuses") or ""
        try:
            parsed = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            # Of a program that ended without a result the last line says why.
            return {"message": (text.strip().splitlines() or [""])[-1][-_LONGEST:]}
        return parsed if isinstance(parsed, dict) else {}

    @property
    def copy_failure(self) -> str | None:
        """What the newest failed container said that hands an image's migrations over; `None` where none failed.

        The sandbox is an init container too, and says nothing of that.
        """
        return _newest_message(self.pods, "initContainerStatuses", failed=naming.CONTAINER_COPY)

    @property
    def why_ended(self) -> str:
        """Kubernetes' own reason, for a Job that left no result."""
        return str((self.end or {}).get("message") or (self.end or {}).get("reason") or "no result")

    async def obstacle(self) -> str | None:
        """What keeps its pods from working, or from being made, as a sentence; `None` where nothing is known to."""
        try:
            problem = await self._problem()
        except (ApiError, *TRANSIENT_ERRORS) as error:
            log.info("could not read the pods' Events: %s", error, extra={"database": "/".join(self.run.key)})
            return None
        return f"{problem.message}." if problem else None

    async def _problem(self) -> PodProblem | None:
        for pod in self.pods:
            if problem := await pod_problems.of_job_pod(self.run, pod):
                return problem
        return None if self.pods else await pod_problems.of_job(self.run, self.job)

    async def give_way(self) -> str:
        """Delete one that is in vain, and that would be another by now; returns that as a sentence."""
        await self.discard()
        return f"Job {self.name} could not begin, and the spec has changed since: another one takes its place."

    async def discard(self) -> None:
        """Delete the Job with its pods."""
        await self.run.services.applier.delete(JOB, self.job)
        self.run.services.cache.remove(JOB, self.job)


def ended(job: Manifest) -> dict[str, Any] | None:
    """The condition that ended a Job; `None` while it runs."""
    for condition in job.get("status", {}).get("conditions") or []:
        if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True":
            return dict(condition)
    return None


def named(run: Run, jobs: Sequence[Manifest], name: str) -> tuple[Attempt | None, list[Attempt]]:
    """The attempt of this name among some Jobs, and all the others."""
    attempts = [Attempt(run, job) for job in jobs]
    return next((item for item in attempts if item.name == name), None), [
        item for item in attempts if item.name != name
    ]


async def start(run: Run, manifest: Manifest) -> Attempt:
    """Start a Job, or find it where it was started before.

    Raises:
        Permanent: the API server refuses it.
    """
    return Attempt(run, await run.services.applier.apply(JOB, manifest))


def _newest_message(pods: Sequence[Manifest], statuses: str, *, failed: str | None = None) -> str | None:
    """The newest termination message.

    Args:
        failed: of containers of this name alone, where they failed.
    """
    newest: tuple[str, str] | None = None
    for pod in pods:
        for container in pod.get("status", {}).get(statuses) or []:
            terminated = container.get("state", {}).get("terminated")
            if not terminated:
                continue
            if failed is not None and (container.get("name") != failed or not terminated.get("exitCode")):
                continue
            if newest is None or terminated.get("finishedAt", "") >= newest[0]:
                newest = terminated.get("finishedAt", ""), (terminated.get("message") or "").strip()
    return newest[1] if newest else None
