"""The kinds that the controller talks about, and their paths at the API server."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from medianest_operator import naming

Manifest = dict[str, Any]
"""An object as the API server has it, or is to have it."""


def digest(value: object) -> str:
    """SHA-256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of object. Each is made once, below."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path, for instance `/apis/apps/v1/namespaces/default/statefulsets/medianest`."""
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if namespace:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


DATABASE = Kind(naming.GROUP, naming.VERSION, naming.PLURAL, naming.KIND)
BACKUP = Kind(naming.GROUP, naming.VERSION, naming.BACKUP_PLURAL, naming.BACKUP_KIND)
OPERATION = Kind(naming.GROUP, naming.VERSION, naming.OPERATION_PLURAL, naming.OPERATION_KIND)
STATEFUL_SET = Kind("apps", "v1", "statefulsets", "StatefulSet")
POD = Kind("", "v1", "pods", "Pod")
SECRET = Kind("", "v1", "secrets", "Secret")
SERVICE = Kind("", "v1", "services", "Service")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNT = Kind("", "v1", "serviceaccounts", "ServiceAccount")
CLAIM = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
ENDPOINTS = Kind("", "v1", "endpoints", "Endpoints")
EVENT = Kind("", "v1", "events", "Event")
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
DISRUPTION_BUDGET = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
JOB = Kind("batch", "v1", "jobs", "Job")
CRON_JOB = Kind("batch", "v1", "cronjobs", "CronJob")
LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease")

CHILDREN = (
    STATEFUL_SET, POD, SECRET, SERVICE, CONFIG_MAP, SERVICE_ACCOUNT, CLAIM, ROLE_BINDING, DISRUPTION_BUDGET, JOB,
    CRON_JOB,
)  # fmt: skip
"""Kinds that belong to a database: watched by label, kept in the cache."""

OWN = (DATABASE, BACKUP, OPERATION)
"""Kinds that people make: watched whole."""

BY_KIND = {kind.kind: kind for kind in (*OWN, *CHILDREN)}
