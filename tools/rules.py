"""The chart's alerts: one for each kind of finding, from the table of reasons, and those that no finding tells of.

`tools/render.py` writes them into the chart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medianest_operator.api.conditions import REASONS, Reason, Severity

ROOT: Final = Path(__file__).resolve().parent.parent
RUNBOOKS: Final = "RUNBOOKS"
"""Stands for the place of docs/runbooks, which whoever installs the chart may name."""

_DATABASE = "{{ $labels.namespace }}/{{ $labels.name }}"
_AWAKE = 'and on (namespace, name) medianest_database_instances{state="desired"} > 0'
"""Not of a database that was told to sleep."""


@dataclass(frozen=True)
class Rule:
    """One alert.

    Attributes:
        name: without the prefix that all have.
        expression: in PromQL; true of a database that it should be raised for.
        lasts: how long it has to be true.
        severity: `critical` wakes somebody, `warning` waits for the morning.
        summary: what is wrong, as a sentence.
        page: of docs/runbooks.
    """

    name: str
    expression: str
    lasts: str
    severity: str
    summary: str
    page: str


def _condition(kind: str, value: int) -> str:
    return f'max by (namespace, name, type) (medianest_database_condition{{type="{kind}"}}) == {value}'


_WRITTEN: Final = (
    Rule(
        "Unavailable", f"{_condition('Available', 0)} {_AWAKE}", "1m", "critical",
        f"{_DATABASE} takes no writes, or lets nobody in.", "NoPrimary",
    ),
    Rule(
        "NotReady", f"max by (namespace, name) (medianest_database_ready) == 0 {_AWAKE}", "15m", "warning",
        f"{_DATABASE} has not been Ready for 15 minutes.", "README",
    ),
    Rule(
        "Stalled", _condition("Stalled", 1), "5m", "warning",
        f"{_DATABASE} stays as it is until somebody changes something.", "README",
    ),
    Rule(
        "SchemaNotUpToDate", _condition("SchemaUpToDate", 0), "15m", "warning",
        f"The schema of {_DATABASE} is not what its migrations make.", "Drifted",
    ),
    Rule(
        "Unhealthy", f"{_condition('Healthy', 0)} {_AWAKE}", "30m", "warning",
        f"Something has been wrong with the servers of {_DATABASE} for half an hour; status.findings says what.",
        "README",
    ),
    Rule(
        "InstancesMissing",
        'medianest_database_instances{state="ready"} < on (namespace, name)'
        ' medianest_database_instances{state="desired"}',
        "10m", "warning", f"{_DATABASE} has fewer instances ready than it should.", "ReplicaNotStreaming",
    ),
    Rule(
        "WithoutRedundancy",
        'medianest_database_instances{state="ready"} <= 1 and on (namespace, name)'
        ' medianest_database_instances{state="desired"} > 1',
        "5m", "critical", f"{_DATABASE} is one failure away from an outage.", "ReplicaNotStreaming",
    ),
    Rule(
        "ConnectionsExhausted",
        "max by (namespace, name) (medianest_database_connections)"
        " >= on (namespace, name) 0.95 * medianest_database_max_connections",
        "2m", "critical", f"{_DATABASE} has next to no connection left.", "ConnectionsRefused",
    ),
    Rule(
        "QueriesSlow", f'medianest_database_query_seconds{{quantile="0.95"}} > 0.5 {_AWAKE}', "10m", "warning",
        f"One in twenty of the application's hot queries takes longer than half a second in {_DATABASE}.", "QuerySlow",
    ),
    Rule(
        "ProbeSlow", f"max by (namespace, name) (medianest_database_probe_seconds) > 1 {_AWAKE}", "5m", "warning",
        f"A server of {_DATABASE} takes longer than a second to say how it is.", "ProbeFailed",
    ),
    Rule(
        "TransactionNumbersRunOut", "medianest_database_transaction_age > 1.5e9", "0s", "critical",
        f"{_DATABASE} stops taking writes before long: transaction numbers run out.", "WraparoundNear",
    ),
    Rule(
        "CriticalIndexMissing", "medianest_database_critical_indexes_missing > 0", "2m", "critical",
        f"A critical index of {_DATABASE} is missing or invalid.", "IndexesMissing",
    ),
    Rule(
        "IndexesUnhealthy", _condition("IndexesHealthy", 0), "10m", "warning",
        f"Indexes of {_DATABASE} are missing or invalid.", "IndexesInvalid",
    ),
    Rule(
        "CertificateEnds", "medianest_database_certificate_not_after_timestamp_seconds - time() < 7 * 86400", "30m",
        "warning", f"The server certificate of {_DATABASE} ends within a week and was not renewed.",
        "InvalidCertificate",
    ),
    Rule(
        "BackupsUnhealthy", _condition("BackupsHealthy", 0), "15m", "warning",
        f"Backups of {_DATABASE} are not as they should be.", "BackupFailed",
    ),
    Rule(
        "BackupFailed", "medianest_backup_failed == 1", "0s", "warning",
        f"The newest backup of {_DATABASE} failed.", "BackupFailed",
    ),
    Rule(
        "BackupTooOld",
        "time() - max by (namespace, name) (medianest_backup_last_success_timestamp_seconds) > 26 * 3600"
        f' and on (namespace, name) medianest_backup_next_timestamp_seconds{{tier="daily"}} {_AWAKE}',
        "0s", "critical", f"{_DATABASE} is to be backed up daily, and had no new backup for more than 26 hours.",
        "BackupOverdue",
    ),
    Rule(
        "BackupOverdue", f"time() - medianest_backup_next_timestamp_seconds > 3600 {_AWAKE}", "0s", "warning",
        f"The {{{{ $labels.tier }}}} backup of {_DATABASE} is an hour late.", "BackupOverdue",
    ),
    Rule(
        "BackupRepositoryBehind",
        "max by (namespace, name) (medianest_backup_repository_last_success_timestamp_seconds) - on (namespace, name)"
        " group_right () medianest_backup_repository_last_success_timestamp_seconds > 26 * 3600",
        "0s", "warning",
        f"Repository {{{{ $labels.repository }}}} of {_DATABASE} lacks the newest backups, which another one has.",
        "BackupFailed",
    ),
    Rule(
        "BackupVerificationFailed", "medianest_backup_verification_failed == 1", "0s", "critical",
        f"A backup of {_DATABASE} could not be restored.", "VerificationFailed",
    ),
    Rule(
        "BackupNotVerified", "time() - medianest_backup_verified_timestamp_seconds > 35 * 86400", "0s", "warning",
        f"No backup of {_DATABASE} has been restored for more than 35 days, so nobody knows whether one can be.",
        "VerificationFailed",
    ),
    Rule(
        "OperatorDown", "absent(medianest_operator_build_info)", "5m", "critical",
        "No MediaNest operator answers: databases serve, and nobody looks after them.", "README",
    ),
    Rule(
        "OperatorWithoutLeader", "sum(medianest_operator_leader) == 0", "2m", "critical",
        "No replica of the MediaNest operator holds the Lease, so none acts.", "README",
    ),
    Rule(
        "OperatorWithTwoLeaders", "sum(medianest_operator_leader) > 1", "2m", "warning",
        "Two replicas of the MediaNest operator say that they hold the Lease.", "README",
    ),
    Rule(
        "OperatorFails", 'sum(rate(medianest_operator_reconciles_total{result="broken"}[15m])) > 0', "15m", "warning",
        "The MediaNest operator meets errors that nobody expected; its log has them.", "InternalError",
    ),
    Rule(
        "OperatorBehind", "max(medianest_operator_queue_depth) > 20", "15m", "warning",
        "Databases wait for the MediaNest operator to look at them.", "ApiError",
    ),
    Rule(
        "OperatorRefused",
        'sum(rate(medianest_operator_api_requests_total{code=~"429|5.."}[15m]))'
        " > 0.1 * sum(rate(medianest_operator_api_requests_total[15m]))",
        "15m", "warning", "The API server can't answer one in ten of the MediaNest operator's requests.", "ApiError",
    ),
    Rule(
        "OperatorDoesNotWatch", "increase(medianest_operator_watch_failures_total[15m]) > 10", "5m", "warning",
        "The MediaNest operator can't watch {{ $labels.kind }} objects.", "ApiError",
    ),
)  # fmt: skip


def rules() -> Iterator[Rule]:
    """All alerts."""
    titles = dict(re.findall(r"^\| \[(\w+)\]\(\w+\.md\) \| (.+) \|$", _index(), flags=re.MULTILINE))
    for reason in Reason:
        facts = REASONS[reason]
        if facts.finding and facts.severity is not Severity.GOOD:
            yield Rule(
                reason.value,
                f'max by (namespace, name, object) (medianest_finding{{reason="{reason}"}}) > 0',
                "0s",
                "critical" if facts.severity is Severity.OUTAGE else "warning",
                f"{_DATABASE}, {{{{ $labels.object }}}}: {titles[reason.value].replace('`', '')}.",
                reason.value,
            )
    yield from _WRITTEN


def groups() -> dict[str, Any]:
    """As Prometheus reads them."""
    return {"groups": [{"name": "medianest", "rules": [_rule(rule) for rule in rules()]}]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "alert": f"MediaNest{rule.name}",
        "expr": rule.expression,
        "for": rule.lasts,
        "labels": {"severity": rule.severity},
        "annotations": {"summary": rule.summary, "runbook_url": f"{RUNBOOKS}/{rule.page}.md"},
    }


def _index() -> str:
    return (ROOT / "docs/runbooks/README.md").read_text()
