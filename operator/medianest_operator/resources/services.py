"""Services: the primary, the replicas, the pods' names, and the ones that keep Patroni's Endpoints."""

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import SERVICE, Manifest
from medianest_operator.naming import Names
from medianest_operator.resources.meta import manifest

_POSTGRES_PORT = {"name": "postgres", "port": naming.POSTGRES_PORT, "targetPort": naming.POSTGRES_PORT}


def services(names: Names, owner: Mapping[str, Any], *, keeps: bool, synchronous: bool) -> list[Manifest]:
    """The Services of a database.

    Args:
        synchronous: Patroni names synchronous replicas, in Endpoints of their own.
        keeps: the volumes outlive the object. What Patroni knows of them does so too: whose data it is, who led last,
            and how far it had written. Its Endpoints go with their Service.
    """

    def service(name: str, **spec: Any) -> Manifest:
        kept = keeps and name in {names.scope, names.patroni_store}
        return manifest(SERVICE, names, name, None if kept else owner, component=naming.COMPONENT_POSTGRES, spec=spec)

    # The endpoints controller deletes Endpoints without a Service when it starts.
    of_patroni = [names.patroni_store, *([names.patroni_sync] if synchronous else [])]
    replicas = names.pod_selector | {naming.LABEL_ROLE: naming.ROLE_REPLICA}
    return [
        # No selector: Patroni writes the primary's address, so there is one at any time, also while a lost node's pod
        # still carries the primary's label.
        service(names.read_write_service, ports=[_POSTGRES_PORT]),
        service(names.read_only_service, ports=[_POSTGRES_PORT], selector=replicas),
        service(
            names.pods_service,
            clusterIP="None",
            publishNotReadyAddresses=True,
            selector=names.pod_selector,
            ports=[_POSTGRES_PORT, {"name": "patroni", "port": naming.PATRONI_PORT, "targetPort": naming.PATRONI_PORT}],
        ),
        *(service(name, clusterIP="None") for name in of_patroni),
    ]
