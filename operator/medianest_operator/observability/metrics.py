"""Prometheus metrics of the controller and, by database, of what it saw.

Exact figures live here and not in the status, because they change all the time.
"""

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from medianest_operator import __version__

_DATABASE = ("namespace", "name")

BUILD = Gauge("medianest_operator_build_info", "Version of the controller.", ["version"])
LEADER = Gauge("medianest_operator_leader", "1 while this replica holds the Lease.")
RECONCILES = Counter("medianest_operator_reconciles_total", "Reconciles by their end.", ["result"])
RECONCILE_SECONDS = Histogram(
    "medianest_operator_reconcile_seconds",
    "Time of one reconcile.",
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 1, 5, 20),
)
QUEUE_DEPTH = Gauge("medianest_operator_queue_depth", "Databases waiting to be reconciled.")
API_REQUESTS = Counter("medianest_operator_api_requests_total", "Requests to the API server.", ["method", "code"])
READY = Gauge("medianest_database_ready", "1 while the database's Ready condition is True.", _DATABASE)
INSTANCES = Gauge("medianest_database_instances", "Instances by state.", [*_DATABASE, "state"])
PROBE_SECONDS = Gauge(
    "medianest_database_probe_seconds", "Time of the last SQL probe of an instance.", [*_DATABASE, "pod"]
)
REPLICATION_LAG_BYTES = Gauge(
    "medianest_database_replication_lag_bytes", "WAL that a replica has not replayed yet.", [*_DATABASE, "pod"]
)
CONNECTIONS = Gauge("medianest_database_connections", "Client connections of an instance.", [*_DATABASE, "pod"])
MAX_CONNECTIONS = Gauge("medianest_database_max_connections", "max_connections of an instance.", [*_DATABASE, "pod"])
DATABASE_BYTES = Gauge("medianest_database_size_bytes", "Size of the application's database.", _DATABASE)
CRITICAL_INDEXES_MISSING = Gauge(
    "medianest_database_critical_indexes_missing", "Critical indexes that are absent or invalid.", _DATABASE
)
CERTIFICATE_NOT_AFTER = Gauge(
    "medianest_database_certificate_not_after_timestamp_seconds", "End of the server certificate.", _DATABASE
)

_BY_DATABASE = (READY, DATABASE_BYTES, CRITICAL_INDEXES_MISSING, CERTIFICATE_NOT_AFTER)
_BY_POD = (PROBE_SECONDS, REPLICATION_LAG_BYTES, CONNECTIONS, MAX_CONNECTIONS)


def serve(port: int) -> None:
    """Answer `/metrics` on `port`. Raises OSError where the port is taken."""
    BUILD.labels(__version__).set(1)
    start_http_server(port)


def forget_pod(namespace: str, name: str, pod: str) -> None:
    """Drop the series of a pod that is gone."""
    for gauge in _BY_POD:
        _remove(gauge, namespace, name, pod)


def forget(namespace: str, name: str) -> None:
    """Drop the series of a database that is gone."""
    for gauge in _BY_DATABASE:
        _remove(gauge, namespace, name)
    for state in ("ready", "desired"):
        _remove(INSTANCES, namespace, name, state)


def _remove(gauge: Gauge, *labels: str) -> None:
    try:
        gauge.remove(*labels)
    except KeyError:
        return
