"""What a database's pods may do at the API server: Patroni's needs and nothing else."""

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import ROLE, ROLE_BINDING, SERVICE_ACCOUNT, Manifest
from medianest_operator.naming import Names
from medianest_operator.resources.meta import manifest


def access(names: Names, owner: Mapping[str, Any]) -> list[Manifest]:
    """ServiceAccount, Role and RoleBinding. Writes are limited by name wherever Kubernetes can (not for create)."""
    pods = [names.pod(ordinal) for ordinal in range(naming.MAX_INSTANCES)]
    endpoints = list(names.patroni_endpoints)
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["pods"], "resourceNames": pods, "verbs": ["get", "patch", "update"]},
        {"apiGroups": [""], "resources": ["endpoints"], "verbs": ["create", "list", "watch"]},
        {
            "apiGroups": [""],
            "resources": ["endpoints"],
            "resourceNames": endpoints,
            "verbs": ["delete", "get", "patch", "update"],
        },
    ]
    subject = {"kind": "ServiceAccount", "name": names.service_account, "namespace": names.namespace}
    reference = {"apiGroup": ROLE.group, "kind": ROLE.kind, "name": names.role}
    return [
        manifest(SERVICE_ACCOUNT, names, names.service_account, owner, automountServiceAccountToken=False),
        manifest(ROLE, names, names.role, owner, rules=rules),
        manifest(ROLE_BINDING, names, names.role, owner, roleRef=reference, subjects=[subject]),
    ]
