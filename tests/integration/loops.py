"""A reconciler, or the whole loop, on the API server of `tests/apiserver.py`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from apiserver import ApiServer
from medianest_operator import naming
from medianest_operator.controller.queue import WorkQueue
from medianest_operator.kubernetes.apply import Applier
from medianest_operator.kubernetes.cache import Cache
from medianest_operator.kubernetes.client import KubernetesClient
from medianest_operator.kubernetes.events import Recorder
from medianest_operator.kubernetes.existing import ExistingNames
from medianest_operator.kubernetes.kinds import CHILDREN, DATABASE, EVENT, OWN, POD, Manifest
from medianest_operator.naming import Key
from medianest_operator.postgres.sessions import Sessions
from medianest_operator.reconcile.concern import Concern
from medianest_operator.reconcile.context import Services
from medianest_operator.reconcile.database import DatabaseReconciler
from medianest_operator.reconcile.instances.handovers import Handovers
from medianest_operator.reconcile.memory import Memory
from medianest_operator.reconcile.notifications import Notifier
from medianest_operator.reconcile.order import ORDER
from medianest_operator.settings import Settings

IMAGE = "images.example/medianest-postgres:1"
NAMESPACE = "media"
SETTINGS = Settings(postgres_image=IMAGE)


class Arena:
    """One reconciler that is called by hand, so that a test decides when a run takes place."""

    def __init__(self, server: ApiServer, client: KubernetesClient, order: Sequence[Concern] = ORDER) -> None:
        self.server = server
        self.client = client
        self.cache = Cache()
        self.queue = WorkQueue()
        self.sessions = Sessions()
        self.existing = ExistingNames(client)
        recorder = Recorder(client, "test")
        self.services = Services(
            settings=SETTINGS,
            client=client,
            cache=self.cache,
            applier=Applier(client, self.cache, self.existing),
            recorder=recorder,
            sessions=self.sessions,
            memory=Memory(),
            notifier=Notifier(client, recorder),
            handovers=Handovers(self.queue.add),
        )
        self.reconciler = DatabaseReconciler(self.services, order)

    def make(self, name: str = "db", spec: dict[str, Any] | None = None, **more: Any) -> Key:
        """A database object."""
        metadata = {"namespace": NAMESPACE, "name": name}
        self.server.put(DATABASE, {"metadata": metadata, "spec": spec or {}, **more})
        return NAMESPACE, name

    async def observe(self) -> None:
        """Bring the cache up to date, as the watches would."""
        for kind in (*OWN, *CHILDREN):
            for item in list(self.server.all(kind)):
                if kind in OWN or item["metadata"].get("labels", {}).get(naming.LABEL_MANAGED_BY) == naming.OPERATOR:
                    self.cache.put(kind, item)
            present = {item["metadata"]["uid"] for item in self.server.all(kind)}
            known = [item for item in self.cache.all(kind) if item["metadata"]["uid"] not in present]
            for item in known:
                self.cache.remove(kind, item)

    async def run(self, key: Key) -> Exception | None:
        """One run. Returns what it raised: something to try again."""
        await self.observe()
        try:
            await self.reconciler.reconcile(key)
        except Exception as error:
            return error
        return None

    def status(self, key: Key) -> dict[str, Any]:
        """The object's status at the server."""
        status: dict[str, Any] = self.server.get(DATABASE, *key).get("status") or {}
        return status

    def conditions(self, key: Key) -> dict[str, tuple[str, str]]:
        """Status and reason of each condition at the server."""
        return {item["type"]: (item["status"], item["reason"]) for item in self.status(key).get("conditions", [])}

    def message(self, key: Key, kind: str) -> str:
        """What a condition says."""
        return next(str(item["message"]) for item in self.status(key)["conditions"] if item["type"] == kind)

    def events(self, kind: str | None = None) -> list[Manifest]:
        """The Events that were written, of one type where it is named."""
        return [item for item in self.server.all(EVENT) if kind in {None, item["type"]}]

    async def close(self) -> None:
        await self.services.handovers.close()
        await self.services.notifier.close()
        await self.sessions.close()


def waits_for_a_secret(server: ApiServer, job: Manifest, secret: str) -> None:
    """Let a Job's pod be on its node, where the kubelet can't mount a Secret."""
    uid = f"{job['metadata']['uid']}-pod"
    metadata = {
        "namespace": NAMESPACE, "name": f"{job['metadata']['name']}-x", "uid": uid, "labels": job["metadata"]["labels"],
        "ownerReferences": [{"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}],
    }  # fmt: skip
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    containers = [{"name": "backup", "state": {"waiting": {"reason": "ContainerCreating"}}}]
    status = {"phase": "Pending", "conditions": [scheduled], "containerStatuses": containers}
    pod = {"metadata": metadata, "spec": {"containers": [{"image": "image"}]}, "status": status}
    server.put(POD, pod)
    server.get(POD, NAMESPACE, str(metadata["name"]))["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    # Watches tell of it as it is now.
    server.put(POD, pod)
    server.put(EVENT, {
        "metadata": {"namespace": NAMESPACE, "name": uid, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "involvedObject": {"uid": uid}, "type": "Warning", "reason": "FailedMount",
        "message": f'MountVolume.SetUp failed for volume "signing" : secret "{secret}" not found',
    })  # fmt: skip


@contextlib.asynccontextmanager
async def arena(order: Sequence[Concern] = ORDER, patience: float = 5.0) -> AsyncIterator[Arena]:
    """A server, a client whose requests may take so many seconds, and a reconciler."""
    async with ApiServer() as server, server.client(patience) as client:
        made = Arena(server, client, order)
        try:
            yield made
        finally:
            await made.close()
