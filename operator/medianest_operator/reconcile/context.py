"""What every concern works with, and what is known of one database at the start of a run."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, TypeVar

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.kubernetes.apply import Applier
from medianest_operator.kubernetes.cache import Cache
from medianest_operator.kubernetes.client import KubernetesClient
from medianest_operator.kubernetes.events import Recorder
from medianest_operator.kubernetes.kinds import CLAIM, CRON_JOB, DATABASE, JOB, POD, STATEFUL_SET, Kind, Manifest
from medianest_operator.naming import Key, Names
from medianest_operator.postgres import logins
from medianest_operator.postgres.sessions import Credentials, Instance, Sessions
from medianest_operator.reconcile.concern import Facts
from medianest_operator.reconcile.instances.handovers import Handovers
from medianest_operator.reconcile.memory import Memory
from medianest_operator.reconcile.notifications import Notifier
from medianest_operator.resources.meta import owner_reference
from medianest_operator.settings import Settings
from medianest_operator.timestamps import seconds_since

T = TypeVar("T")

_LONG_PAST_ITS_END: Final = 30.0
"""Seconds after the end of its grace period (which `deletionTimestamp` names) at which a pod counts as lost."""


@dataclass(frozen=True)
class Services:
    """The process' tools, shared by all databases."""

    settings: Settings
    client: KubernetesClient
    cache: Cache
    applier: Applier
    recorder: Recorder
    sessions: Sessions
    memory: Memory
    notifier: Notifier
    handovers: Handovers


@dataclass(frozen=True)
class Pod:
    """A database pod: what Kubernetes and Patroni say of it. Nobody changes the manifest."""

    manifest: Manifest

    @cached_property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @cached_property
    def uid(self) -> str:
        return str(self.manifest["metadata"]["uid"])

    @cached_property
    def address(self) -> str | None:
        address: str | None = self.manifest.get("status", {}).get("podIP")
        return address

    @cached_property
    def node(self) -> str | None:
        node: str | None = self.manifest["spec"].get("nodeName")
        return node

    @cached_property
    def terminating(self) -> bool:
        return "deletionTimestamp" in self.manifest["metadata"]

    @property
    def lost(self) -> bool:
        """Whether it should have ended long ago: its kubelet is away, and will stop it when it is back."""
        ends: str | None = self.manifest["metadata"].get("deletionTimestamp")
        return ends is not None and seconds_since(ends) > _LONG_PAST_ITS_END

    @cached_property
    def ready(self) -> bool:
        conditions = self.manifest.get("status", {}).get("conditions", [])
        return not self.terminating and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    @cached_property
    def running(self) -> bool:
        states = self.manifest.get("status", {}).get("containerStatuses", [])
        return not self.terminating and any("running" in state.get("state", {}) for state in states)

    @cached_property
    def inputs(self) -> str | None:
        inputs: str | None = self.manifest["metadata"].get("annotations", {}).get(naming.ANNOTATION_POD_INPUTS)
        return inputs

    @cached_property
    def inputs_document(self) -> str | None:
        """What it was made from, as text."""
        document: str | None = (
            self.manifest["metadata"].get("annotations", {}).get(naming.ANNOTATION_POD_INPUTS_DOCUMENT)
        )
        return document

    @cached_property
    def image(self) -> str:
        return str(self.manifest["spec"]["containers"][0]["image"])

    @cached_property
    def is_primary(self) -> bool:
        return bool(self.manifest["metadata"].get("labels", {}).get(naming.LABEL_ROLE) == naming.ROLE_PRIMARY)

    @cached_property
    def member(self) -> Mapping[str, Any]:
        """Patroni's own word on this member; empty before its first."""
        text = self.manifest["metadata"].get("annotations", {}).get(naming.PATRONI_STATUS_ANNOTATION)
        try:
            member = json.loads(text) if text else {}
        except ValueError:
            return {}
        return member if isinstance(member, dict) else {}

    @cached_property
    def serves(self) -> bool:
        """Whether its server runs, as a primary or a replica, by Patroni's last word."""
        return self.running and self.member.get("state") == "running"

    @cached_property
    def role(self) -> str:
        if self.is_primary:
            return naming.ROLE_PRIMARY
        return naming.ROLE_REPLICA if self.member.get("role") == naming.ROLE_REPLICA else "unknown"

    @cached_property
    def state(self) -> str:
        if self.terminating:
            return "stopping"
        if not self.running:
            return "pending" if self.manifest.get("status", {}).get("phase", "Pending") == "Pending" else "down"
        return str(self.member.get("replication_state") or self.member.get("state") or "starting")

    @cached_property
    def streaming(self) -> bool:
        """A replica that follows its primary, as Patroni last said: `replication_state` is absent where it doesn't."""
        return self.ready and self.role == naming.ROLE_REPLICA and self.member.get("replication_state") == "streaming"

    @cached_property
    def pending_restart(self) -> bool:
        return bool(self.member.get("pending_restart"))


def labels_of(manifest: Manifest) -> Mapping[str, str]:
    """An object's labels; an object without any has no such field."""
    labels: Mapping[str, str] = manifest["metadata"].get("labels") or {}
    return labels


def _owner(manifest: Manifest, kind: Kind) -> str | None:
    """The UID of the object of such a kind that owns this one."""
    references = manifest["metadata"].get("ownerReferences") or []
    return next((item["uid"] for item in references if item["kind"] == kind.kind), None)


@dataclass
class Run:
    """One run for one database: what was read, and what the concerns found out."""

    services: Services
    database: Manifest
    spec: DatabaseSpec
    facts: Facts = field(default_factory=Facts)
    """What the concerns before this one have found out."""

    @cached_property
    def key(self) -> Key:
        return self.names.namespace, self.names.database

    @cached_property
    def names(self) -> Names:
        metadata = self.database["metadata"]
        return Names(metadata["namespace"], metadata["name"])

    @property
    def uid(self) -> str:
        return str(self.database["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.database["metadata"]["generation"])

    def once(self, topic: str, work_out: Callable[[], T]) -> T:
        """What follows from the spec and the image alone, worked out once for each of their versions."""
        token = (self.database["metadata"].get("uid"), self.generation, self.image)
        return self.services.memory.once(self.key, topic, token, work_out)

    def seen(self, topic: str, work_out: Callable[[], T]) -> T:
        """What follows from the cache alone, worked out once for each of its states."""
        token = (self.services.cache.revision(self.key), self.database["metadata"].get("uid"))
        return self.services.memory.once(self.key, topic, token, work_out)

    @cached_property
    def owner(self) -> dict[str, Any]:
        return owner_reference(self.database)

    @property
    def stateful_set(self) -> Manifest | None:
        """This object's; not one that an earlier object of the same name has left, which is on its way out."""
        live = self.services.cache.get(STATEFUL_SET, self.names.namespace, self.names.stateful_set)
        return None if live is None or self._is_of_another(live) else live

    @property
    def pods(self) -> list[Pod]:
        """The instances' pods, in their order; not those of an earlier StatefulSet."""
        return self.seen("pods", self._pods)

    def _pods(self) -> list[Pod]:
        live = self.stateful_set
        uid = live["metadata"]["uid"] if live else None
        return [pod for pod in self.pods_of_name if _owner(pod.manifest, STATEFUL_SET) in {None, uid}]

    @property
    def pods_of_name(self) -> list[Pod]:
        """All pods that look like an instance, those of an earlier StatefulSet too."""
        manifests = self.services.cache.of_database(POD, self.key)
        label = naming.LABEL_COMPONENT
        pods = [Pod(pod) for pod in manifests if labels_of(pod).get(label) == naming.COMPONENT_POSTGRES]
        numbered = {ordinal: pod for pod in pods if (ordinal := self.names.ordinal(pod.name)) is not None}
        return [numbered[ordinal] for ordinal in sorted(numbered)]

    @property
    def asked_for(self) -> range:
        """The ordinals of the instances that the StatefulSet asks for; none where there is none."""
        live = self.stateful_set
        if live is None:
            return range(0)
        start = int((live["spec"].get("ordinals") or {}).get("start") or 0)
        return range(start, start + int(live["spec"]["replicas"]))

    def _is_of_another(self, manifest: Manifest) -> bool:
        """Whether an object belongs to an earlier database of this name."""
        return _owner(manifest, DATABASE) not in {None, self.database["metadata"].get("uid")}

    @property
    def primaries(self) -> list[Pod]:
        """The pods that Patroni labelled as the primary. The label of one whose node is lost stays as it was."""
        return [pod for pod in self.pods if pod.is_primary and pod.address and not pod.terminating]

    @property
    def primary(self) -> Pod | None:
        """The pod that leads, as Patroni labelled it; None while there is none, or several that look alike."""
        labelled = self.primaries
        running = [pod for pod in labelled if pod.running and pod.member.get("role") == "primary"]
        ready = [pod for pod in running if pod.ready]
        alike = ready or running or labelled
        return alike[0] if len(alike) == 1 else None

    @property
    def jobs(self) -> list[Manifest]:
        """The Jobs that migrate."""
        return self._jobs_of(naming.COMPONENT_MIGRATION)

    @property
    def hardening_jobs(self) -> list[Manifest]:
        return self._jobs_of(naming.COMPONENT_HARDENING)

    @property
    def backup_jobs(self) -> list[Manifest]:
        """The Jobs that take backups, and those that verify one."""
        jobs = self._jobs_of(naming.COMPONENT_BACKUP) + self._jobs_of(naming.COMPONENT_VERIFICATION)
        own = {item["metadata"]["uid"] for item in self.services.cache.of_database(CRON_JOB, self.key)}
        return [job for job in jobs if _owner(job, CRON_JOB) in {None, *own}]

    @property
    def restore_jobs(self) -> list[Manifest]:
        """The Jobs that bring a backup or another server's database in."""
        return self._jobs_of(naming.COMPONENT_RESTORE)

    @property
    def aside_jobs(self) -> list[Manifest]:
        """The Jobs of operations that leave the live database in its place."""
        return self._jobs_of(naming.COMPONENT_ASIDE)

    @property
    def volume_jobs(self) -> list[Manifest]:
        """The Jobs that read kept volumes."""
        return self._jobs_of(naming.COMPONENT_VOLUME)

    def _jobs_of(self, component: str) -> list[Manifest]:
        jobs = self.services.cache.of_database(JOB, self.key)
        of_component = [job for job in jobs if labels_of(job).get(naming.LABEL_COMPONENT) == component]
        return [job for job in of_component if not self._is_of_another(job)]

    @property
    def claims(self) -> list[Manifest]:
        """This object's; not those that go with an earlier one."""
        return [claim for claim in self.claims_of_name if not self._is_of_another(claim)]

    @property
    def claims_of_name(self) -> list[Manifest]:
        """All of this database's name."""
        return self.services.cache.of_database(CLAIM, self.key)

    @cached_property
    def image(self) -> str:
        """The spec's image; else the one that the object was created with, so that a new operator changes nothing."""
        if self.spec.image:
            return self.spec.image
        default = self.services.settings.postgres_image
        live = self.stateful_set
        if live is None:
            # Not made yet, or taken away for a moment while its volumes grow.
            running = [pod.image for pod in self.pods if not pod.terminating]
            return str((running or [self.database.get("status", {}).get("image")])[0] or default)
        if live["metadata"].get("annotations", {}).get(naming.ANNOTATION_IMAGE_FROM) == "spec":
            return default
        return str(live["spec"]["template"]["spec"]["containers"][0]["image"])

    def instance(self, pod: Pod, dbname: str, user: str | None = None) -> Instance:
        """Where to connect for a pod that has an address, and as whom.

        That is the superuser in the maintenance database, and in any other one the reader, so that what the application
        defines there can't be used against the server.

        Args:
            user: another login, for statements in which every name is qualified and that read nothing of the
                application's.
        """
        host = self.names.pod_fqdn(pod.name)
        if user is None:
            maintenance = dbname == naming.MAINTENANCE_DATABASE
            user = naming.SUPERUSER if maintenance else logins.controller_name(self.spec.database.owner)
        return Instance(*self.key, pod.name, pod.uid, pod.address or "", host, dbname, user)

    def login(self, pod: Pod, dbname: str, role: logins.LoginRole, passwords: Mapping[str, str]) -> Instance:
        """The same as a login role, by its password as people and programs log in.

        Args:
            passwords: by the suffix of the role.
        """
        instance = self.instance(pod, dbname, logins.role_name(self.spec, role))
        return replace(instance, password=passwords[role.suffix])

    @property
    def job_image(self) -> str:
        """The image of Jobs: the spec's, else the one of *this* operator, although the servers keep theirs.

        A Job's program and the controller that reads its result then always are of one version. PostgreSQL's own
        programs in it work with older servers of the same major version (PostgreSQL manual, pg_dump).
        """
        return self.spec.image or self.services.settings.postgres_image

    @property
    def credentials(self) -> Credentials:
        """The controller's own, for a concern that needs them. Raises LookupError where no concern found them."""
        return self.facts.require(Credentials)
