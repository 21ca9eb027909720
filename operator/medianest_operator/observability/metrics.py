"""Prometheus metrics of the controller and, by database, of what it saw.

Exact figures live here and not in the status, because they change all the time.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from medianest_operator import __version__, naming
from medianest_operator.api.status import Backups

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
WATCH_FAILURES = Counter(
    "medianest_operator_watch_failures_total", "Lists and watches of a kind that failed.", ["kind"]
)
READY = Gauge("medianest_database_ready", "1 while the database's Ready condition is True.", _DATABASE)
INSTANCES = Gauge("medianest_database_instances", "Instances by state.", [*_DATABASE, "state"])
PROBE_SECONDS = Gauge(
    "medianest_database_probe_seconds", "Time of the last SQL probe of an instance.", [*_DATABASE, "pod"]
)
REPLICATION_LAG_BYTES = Gauge(
    "medianest_database_replication_lag_bytes", "WAL that a replica has not replayed yet.", [*_DATABASE, "pod"]
)
CONNECTIONS = Gauge("medianest_database_connections", "Client connections of an instance.", [*_DATABASE, "pod"])
MAX_CONNECTIONS = Gauge(
    "medianest_database_max_connections", "Client connections that the primary lets in besides superusers'.", _DATABASE
)
CONDITION = Gauge(
    "medianest_database_condition", "1 while a condition of the status is True, 0 while it is False.",
    [*_DATABASE, "type"],
)  # fmt: skip
BLOCKED_SESSIONS = Gauge(
    "medianest_database_blocked_sessions", "Sessions of the primary that have waited longer than 30 s for a lock.",
    _DATABASE,
)  # fmt: skip
OLDEST_TRANSACTION = Gauge(
    "medianest_database_oldest_transaction_seconds", "Age of the oldest open transaction of a client.",
    [*_DATABASE, "pod"],
)  # fmt: skip
DEADLOCKS = Gauge("medianest_database_deadlocks", "Deadlocks on the primary since its statistics began.", _DATABASE)
TRANSACTION_AGE = Gauge(
    "medianest_database_transaction_age",
    "Transactions, or multixacts, since the oldest row that isn't frozen.",
    _DATABASE,
)
SLOT_BYTES = Gauge(
    "medianest_database_slot_retained_bytes", "WAL that the slot which keeps most of it keeps on the primary.",
    _DATABASE,
)  # fmt: skip
ROLE_CONNECTIONS = Gauge(
    "medianest_database_role_connections", "Client connections to the primary by role; the five with most.",
    [*_DATABASE, "role"],
)  # fmt: skip
QUERY_SECONDS = Gauge(
    "medianest_database_query_seconds", "Time of the application's hot queries over ten minutes.",
    [*_DATABASE, "quantile"],
)  # fmt: skip
CONNECT_SECONDS = Gauge(
    "medianest_database_connect_seconds", "Time to make a connection over ten minutes.", [*_DATABASE, "quantile"]
)
VOLUME_USED = Gauge(
    "medianest_volume_used_bytes", "Bytes in use on the file system of a volume.", [*_DATABASE, "pod", "volume"]
)
VOLUME_SIZE = Gauge(
    "medianest_volume_size_bytes", "Bytes in use and available on the smallest of a volume.", [*_DATABASE, "volume"]
)
VOLUME_FULL_IN = Gauge(
    "medianest_volume_full_in_seconds", "When the first of them is full at its present rate.", [*_DATABASE, "volume"]
)
DATABASE_BYTES = Gauge("medianest_database_size_bytes", "Size of the application's database.", _DATABASE)
CRITICAL_INDEXES_MISSING = Gauge(
    "medianest_database_critical_indexes_missing", "Critical indexes that are absent or invalid.", _DATABASE
)
CERTIFICATE_NOT_AFTER = Gauge(
    "medianest_database_certificate_not_after_timestamp_seconds", "End of the server certificate.", _DATABASE
)

FINDING = Gauge(
    "medianest_finding", "1 while something is wrong with a database.", [*_DATABASE, "reason", "object", "level"]
)
FINDINGS = 15
"""Series of `FINDING` a database."""
_reported: dict[tuple[str, str], frozenset[tuple[str, str, str]]] = {}
_conditions: dict[tuple[str, str], frozenset[str]] = {}
_roles: dict[tuple[str, str], frozenset[str]] = {}

_SERIES = [*_DATABASE, "tier"]
_PLACE = [*_DATABASE, "repository"]
BACKUP_LAST_SUCCESS = Gauge(
    "medianest_backup_last_success_timestamp_seconds", "End of the last successful backup of a series.", _SERIES
)
BACKUP_NEXT = Gauge("medianest_backup_next_timestamp_seconds", "When the next backup of a series begins.", _SERIES)
BACKUP_STORED = Gauge(
    "medianest_backup_repository_last_success_timestamp_seconds", "Last backup that reached a repository.", _PLACE
)
BACKUP_COUNT = Gauge("medianest_backup_repository_backups", "Complete backups in a repository.", _PLACE)
BACKUP_BYTES = Gauge("medianest_backup_last_size_bytes", "Stored size of the last backup's dump.", _DATABASE)
BACKUP_SECONDS = Gauge("medianest_backup_last_duration_seconds", "Time that the last backup took.", _DATABASE)
BACKUP_VERIFIED = Gauge(
    "medianest_backup_verified_timestamp_seconds", "When a backup was last restored and found equal.", _DATABASE
)
BACKUP_RECOVERY_SECONDS = Gauge(
    "medianest_backup_recovery_seconds", "Time that the last verification's restore and comparison took.", _DATABASE
)
BACKUP_FAILED = Gauge("medianest_backup_failed", "1 while the newest backup is a failed one.", _DATABASE)
BACKUP_VERIFICATION_FAILED = Gauge(
    "medianest_backup_verification_failed", "1 while the newest verification is a failed one.", _DATABASE
)

_OF_BACKUPS = (
    BACKUP_BYTES, BACKUP_SECONDS, BACKUP_VERIFIED, BACKUP_RECOVERY_SECONDS, BACKUP_FAILED, BACKUP_VERIFICATION_FAILED,
)  # fmt: skip
_OF_PRIMARY = (MAX_CONNECTIONS, BLOCKED_SESSIONS, DEADLOCKS, TRANSACTION_AGE, SLOT_BYTES)
_BY_DATABASE = (READY, DATABASE_BYTES, CRITICAL_INDEXES_MISSING, CERTIFICATE_NOT_AFTER, *_OF_PRIMARY, *_OF_BACKUPS)
_VOLUMES = (naming.VOLUME_DATA, naming.VOLUME_WAL)
_BY_POD = (PROBE_SECONDS, REPLICATION_LAG_BYTES, CONNECTIONS, OLDEST_TRANSACTION)
QUANTILES = ("0.5", "0.95")
_ROLES = 5


def serve(port: int) -> None:
    """Answer `/metrics` on `port`. Raises OSError where the port is taken."""
    BUILD.labels(__version__).set(1)
    start_http_server(port)


def report_volume(
    namespace: str, name: str, volume: str, used: Mapping[str, int], size: int, full_in: float | None
) -> None:
    """How full the file systems of a volume are.

    Args:
        used: bytes by pod.
        size: bytes of the smallest.
        full_in: seconds until the first is full; `None` where none fills.
    """
    for pod, taken in used.items():
        VOLUME_USED.labels(namespace, name, pod, volume).set(taken)
    VOLUME_SIZE.labels(namespace, name, volume).set(size)
    if full_in is None:
        _remove(VOLUME_FULL_IN, namespace, name, volume)
    else:
        VOLUME_FULL_IN.labels(namespace, name, volume).set(full_in)


def report_findings(namespace: str, name: str, findings: Sequence[tuple[str, str, str]]) -> None:
    """What is wrong with a database.

    Args:
        findings: reason, object and level of at most `FINDINGS`.
    """
    key, wanted = (namespace, name), frozenset(findings)
    known = _reported.get(key, frozenset())
    for labels in known - wanted:
        _remove(FINDING, *key, *labels)
    for labels in wanted - known:
        FINDING.labels(*key, *labels).set(1)
    _reported[key] = wanted


def report_conditions(namespace: str, name: str, conditions: Mapping[str, str]) -> None:
    """The conditions of the status.

    Args:
        conditions: their status by their type; one that is neither True nor False has no series.
    """
    key = (namespace, name)
    wanted = {kind: int(status == "True") for kind, status in conditions.items() if status in {"True", "False"}}
    for kind in _conditions.get(key, frozenset()) - wanted.keys():
        _remove(CONDITION, *key, kind)
    for kind, value in wanted.items():
        CONDITION.labels(*key, kind).set(value)
    _conditions[key] = frozenset(wanted)


def report_roles(namespace: str, name: str, connections: Mapping[str, int]) -> None:
    """Who is connected to the primary.

    Args:
        connections: how many sessions each role has, those with most first.
    """
    key, wanted = (namespace, name), dict(list(connections.items())[:_ROLES])
    for role in _roles.get(key, frozenset()) - wanted.keys():
        _remove(ROLE_CONNECTIONS, *key, role)
    for role, count in wanted.items():
        ROLE_CONNECTIONS.labels(*key, role).set(count)
    _roles[key] = frozenset(wanted)


def report_quantile(gauge: Gauge, namespace: str, name: str, quantile: str, seconds: float | None) -> None:
    """One of `QUANTILES` of `QUERY_SECONDS` or `CONNECT_SECONDS`; `None` where nothing was measured."""
    if seconds is None:
        _remove(gauge, namespace, name, quantile)
    else:
        gauge.labels(namespace, name, quantile).set(seconds)


def report_backups(namespace: str, name: str, backups: Backups) -> None:
    """What the status says of the backups, as figures."""
    key = (namespace, name)
    for tier in backups.tiers:
        _set_time(BACKUP_LAST_SUCCESS, tier.last_success, *key, tier.name)
        _set_time(BACKUP_NEXT, tier.next, *key, tier.name)
    named = {place.name for place in backups.repositories}
    for gauge in (BACKUP_STORED, BACKUP_COUNT):
        for labels in _series(gauge, namespace, name):
            if labels[2] not in named:
                _remove(gauge, *labels)
    for place in backups.repositories:
        _set_time(BACKUP_STORED, place.last_success, *key, place.name)
        if place.count is not None:
            BACKUP_COUNT.labels(*key, place.name).set(place.count)
    if backups.last:
        BACKUP_BYTES.labels(*key).set(backups.last.bytes or 0)
        BACKUP_SECONDS.labels(*key).set(backups.last.seconds or 0)
    else:
        _remove(BACKUP_BYTES, *key)
        _remove(BACKUP_SECONDS, *key)
    if backups.verified:
        _set_time(BACKUP_VERIFIED, backups.verified.at, *key)
        BACKUP_RECOVERY_SECONDS.labels(*key).set(backups.verified.seconds or 0)
    else:
        _remove(BACKUP_VERIFIED, *key)
        _remove(BACKUP_RECOVERY_SECONDS, *key)
    BACKUP_FAILED.labels(*key).set(backups.failed is not None)
    BACKUP_VERIFICATION_FAILED.labels(*key).set(backups.verification_failed is not None)


def _set_time(gauge: Gauge, stamp: str | None, *labels: str) -> None:
    if stamp:
        gauge.labels(*labels).set(datetime.fromisoformat(stamp).timestamp())
    else:
        _remove(gauge, *labels)


def forget_lag(namespace: str, name: str, pod: str) -> None:
    """A pod is no replica."""
    _remove(REPLICATION_LAG_BYTES, namespace, name, pod)


def forget_primary(namespace: str, name: str) -> None:
    """Drop the series of a database that doesn't run."""
    report_roles(namespace, name, {})
    for gauge in (QUERY_SECONDS, CONNECT_SECONDS):
        for quantile in QUANTILES:
            _remove(gauge, namespace, name, quantile)
    for gauge in _OF_PRIMARY:
        _remove(gauge, namespace, name)


def forget_pod(namespace: str, name: str, pod: str) -> None:
    """Drop the series of a pod that is gone."""
    for gauge in _BY_POD:
        _remove(gauge, namespace, name, pod)
    for volume in _VOLUMES:
        _remove(VOLUME_USED, namespace, name, pod, volume)


def forget(namespace: str, name: str) -> None:
    """Drop the series of a database that is gone."""
    report_findings(namespace, name, ())
    _reported.pop((namespace, name), None)
    report_conditions(namespace, name, {})
    _conditions.pop((namespace, name), None)
    forget_primary(namespace, name)
    _roles.pop((namespace, name), None)
    for volume in _VOLUMES:
        _remove(VOLUME_SIZE, namespace, name, volume)
        _remove(VOLUME_FULL_IN, namespace, name, volume)
    for gauge in _BY_DATABASE:
        _remove(gauge, namespace, name)
    for state in ("ready", "desired"):
        _remove(INSTANCES, namespace, name, state)
    for gauge in (BACKUP_LAST_SUCCESS, BACKUP_NEXT, BACKUP_STORED, BACKUP_COUNT):
        for labels in _series(gauge, namespace, name):
            _remove(gauge, *labels)


def _series(gauge: Gauge, namespace: str, name: str) -> list[tuple[str, ...]]:
    """The labels of a database's series."""
    every = [tuple(sample.labels.values()) for metric in gauge.collect() for sample in metric.samples]
    return [labels for labels in every if labels[:2] == (namespace, name)]


def _remove(gauge: Gauge, *labels: str) -> None:
    try:
        gauge.remove(*labels)
    except KeyError:
        return
