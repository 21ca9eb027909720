"""What a database's pods may do at the API server: Patroni's needs and nothing else."""

from collections.abc import Mapping
from typing import Any

from medianest_operator.kubernetes.kinds import ROLE_BINDING, SERVICE_ACCOUNT, Manifest
from medianest_operator.naming import Names
from medianest_operator.resources.meta import manifest


def access(names: Names, owner: Mapping[str, Any], role: str) -> list[Manifest]:
    """ServiceAccount, and RoleBinding to the fixed role of all instances.

    A fixed one, so that the operator needs no right to write roles, nor any that it would have to grant.

    Args:
        role: kind and name, for instance `ClusterRole/medianest-instance`.
    """
    kind, _, name = role.partition("/")
    subject = {"kind": "ServiceAccount", "name": names.service_account, "namespace": names.namespace}
    reference = {"apiGroup": ROLE_BINDING.group, "kind": kind, "name": name}
    return [
        manifest(SERVICE_ACCOUNT, names, names.service_account, owner, automountServiceAccountToken=False),
        manifest(ROLE_BINDING, names, names.role_binding, owner, roleRef=reference, subjects=[subject]),
    ]
