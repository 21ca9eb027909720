"""What the controller gets at its start, by flags or by environment variables of the same name."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from medianest_operator import naming


@dataclass(frozen=True)
class Settings:
    """The controller's own configuration; the databases' is in their spec."""

    postgres_image: str
    """The database image of objects that name none."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to watch; empty means all of them."""
    instance_role: str = naming.INSTANCE_ROLE
    """Kind and name of the role that the databases' pods get."""
    operator_namespace: str = "medianest-system"
    """Where the Lease lives."""
    identity: str = "local"
    """This process' name in the Lease: the pod's name."""
    probe_interval: float = 15.0
    """Seconds between two probes of a database over SQL."""
    sweep_interval: float = 600.0
    """Seconds between two full lists, which drop objects whose deletion a broken watch hid."""
    workers: int = 16
    """Databases reconciled at the same time."""
    metrics_port: int = 8080
    health_port: int = 8081
    leader_election: bool = True
    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks of addresses that aren't public and that webhooks may have all the same."""
