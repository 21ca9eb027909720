"""What makes each of the chart's alerts fire, and what ends it, in Prometheus' notation of series: a value a minute."""

from __future__ import annotations

from dataclasses import dataclass, field

_DATABASE = 'namespace="media", name="db"'
_IDENTITY = {"namespace": "media", "name": "db"}


@dataclass(frozen=True)
class Case:
    """One alert.

    Attributes:
        bad: series that make it fire: each value stands for the first hour, `good` for the time after it.
        also: series that stay as they are.
        labels: of the alert.
    """

    alert: str
    bad: dict[str, tuple[str, str]]
    also: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=lambda: dict(_IDENTITY))


def _one(metric: str, bad: str, good: str, extra: str = "") -> dict[str, tuple[str, str]]:
    return {f"{metric}{{{_DATABASE}{extra}}}": (bad, good)}


def _condition(kind: str, bad: str, good: str) -> dict[str, tuple[str, str]]:
    return _one("medianest_database_condition", bad, good, f', type="{kind}"')


_AWAKE = {f'medianest_database_instances{{{_DATABASE}, state="desired"}}': "3"}
_READY = f'medianest_database_instances{{{_DATABASE}, state="ready"}}'
_HOUR = 3600

CASES: list[Case] = [
    Case("Unavailable", _condition("Available", "0", "1"), _AWAKE, _IDENTITY | {"type": "Available"}),
    Case("NotReady", _one("medianest_database_ready", "0", "1"), _AWAKE),
    Case("Stalled", _condition("Stalled", "1", "_"), labels=_IDENTITY | {"type": "Stalled"}),
    Case("SchemaNotUpToDate", _condition("SchemaUpToDate", "0", "1"), labels=_IDENTITY | {"type": "SchemaUpToDate"}),
    Case("Unhealthy", _condition("Healthy", "0", "1"), _AWAKE, _IDENTITY | {"type": "Healthy"}),
    Case("InstancesMissing", {_READY: ("2", "3")}, _AWAKE),
    Case("WithoutRedundancy", {_READY: ("1", "2")}, _AWAKE, _IDENTITY | {"state": "ready"}),
    Case(
        "ConnectionsExhausted", _one("medianest_database_connections", "96", "50", ', pod="db-0"'),
        {f"medianest_database_max_connections{{{_DATABASE}}}": "100"},
    ),
    Case(
        "QueriesSlow", _one("medianest_database_query_seconds", "0.6", "0.01", ', quantile="0.95"'),
        _AWAKE, _IDENTITY | {"quantile": "0.95"},
    ),
    Case("ProbeSlow", _one("medianest_database_probe_seconds", "1.5", "0.01", ', pod="db-0"'), _AWAKE),
    Case("TransactionNumbersRunOut", _one("medianest_database_transaction_age", "1600000000", "1000")),
    Case("CriticalIndexMissing", _one("medianest_database_critical_indexes_missing", "1", "0")),
    Case("IndexesUnhealthy", _condition("IndexesHealthy", "0", "1"), labels=_IDENTITY | {"type": "IndexesHealthy"}),
    Case(
        "CertificateEnds",
        _one("medianest_database_certificate_not_after_timestamp_seconds", "86400", str(90 * 86400)),
    ),
    Case("BackupsUnhealthy", _condition("BackupsHealthy", "0", "1"), labels=_IDENTITY | {"type": "BackupsHealthy"}),
    Case("BackupFailed", _one("medianest_backup_failed", "1", "0")),
    Case(
        "BackupTooOld",
        _one("medianest_backup_last_success_timestamp_seconds", str(-27 * _HOUR), str(_HOUR), ', tier="daily"'),
        _AWAKE | {f'medianest_backup_next_timestamp_seconds{{{_DATABASE}, tier="daily"}}': str(24 * _HOUR)},
    ),
    Case(
        "BackupOverdue",
        _one("medianest_backup_next_timestamp_seconds", str(-2 * _HOUR), str(24 * _HOUR), ', tier="daily"'),
        _AWAKE, _IDENTITY | {"tier": "daily"},
    ),
    Case(
        "BackupRepositoryBehind",
        _one(
            "medianest_backup_repository_last_success_timestamp_seconds", str(-27 * _HOUR), "0", ', repository="bucket"'
        ),
        {f'medianest_backup_repository_last_success_timestamp_seconds{{{_DATABASE}, repository="volume"}}': "0"},
        _IDENTITY | {"repository": "bucket"},
    ),
    Case("BackupVerificationFailed", _one("medianest_backup_verification_failed", "1", "0")),
    Case(
        "BackupNotVerified",
        _one("medianest_backup_verified_timestamp_seconds", str(-36 * 86400), str(_HOUR)),
    ),
    Case("OperatorDown", {'medianest_operator_build_info{version="1"}': ("_", "1")}, labels={}),
    Case(
        "OperatorWithoutLeader", {'medianest_operator_leader{pod="a"}': ("0", "1")},
        {'medianest_operator_leader{pod="b"}': "0"}, {},
    ),
    Case(
        "OperatorWithTwoLeaders", {'medianest_operator_leader{pod="a"}': ("1", "0")},
        {'medianest_operator_leader{pod="b"}': "1"}, {},
    ),
    Case("OperatorFails", {'medianest_operator_reconciles_total{result="broken"}': ("+3", "+0")}, labels={}),
    Case("OperatorBehind", {'medianest_operator_queue_depth{pod="a"}': ("30", "0")}, labels={}),
    Case(
        "OperatorRefused", {'medianest_operator_api_requests_total{method="GET", code="503"}': ("+10", "+0")},
        {'medianest_operator_api_requests_total{method="GET", code="200"}': "+20"}, {},
    ),
    Case(
        "OperatorDoesNotWatch", {'medianest_operator_watch_failures_total{kind="Pod"}': ("+2", "+0")},
        labels={"kind": "Pod"},
    ),
]  # fmt: skip
