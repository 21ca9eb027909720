"""The chart's two dashboards for Grafana: all databases, and one of them.

`tools/render.py` writes them into the chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueColorMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${source}")
_ONE: Final = 'namespace="$namespace", name="$name"'
_WIDTH: Final = 24


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        queries: pairs of a PromQL expression and the legend of its series.
        unit: as Grafana names it.
        width: of 24 columns.
        kind: `graph`, `value` or `table`.
        about: what a person should make of it.
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    width: int = 8
    kind: str = "graph"
    about: str = ""


def _by(metric: str, legend: str, labels: str = _ONE) -> tuple[str, str]:
    return f"{metric}{{{labels}}}", legend


FLEET: Final[Sequence[tuple[str, Sequence[Panel]]]] = (
    (
        "Now",
        (
            Panel("Databases", [("count(medianest_database_ready)", "")], kind="value", width=4),
            Panel("Ready", [("sum(medianest_database_ready)", "")], kind="value", width=4),
            Panel("Not Ready", [("sum(medianest_database_ready == bool 0)", "")], kind="value", width=4),
            Panel(
                "Critical findings", [('sum(medianest_finding{level="critical"}) or vector(0)', "")],
                kind="value", width=4,
            ),
            Panel("Warnings", [('sum(medianest_finding{level="warning"}) or vector(0)', "")], kind="value", width=4),
            Panel(
                "Oldest newest backup",
                [("max(time() - max by (namespace, name) (medianest_backup_last_success_timestamp_seconds))", "")],
                "s", kind="value", width=4, about="The database whose newest backup is the oldest.",
            ),
            Panel(
                "Findings", [("medianest_finding", "")], kind="table", width=16,
                about="What is wrong, by database. kubectl describe mndb has each with its fix.",
            ),
            Panel(
                "Ready", [("sort(max by (namespace, name) (medianest_database_ready))", "")], kind="table", width=8,
                about="Those that aren't come first; hibernated and paused ones are among them.",
            ),
        ),
    ),
    (
        "Databases",
        (
            Panel("Size", [("topk(10, medianest_database_size_bytes)", "{{namespace}}/{{name}}")], "bytes"),
            Panel(
                "Hot queries, 95th percentile",
                [('topk(10, medianest_database_query_seconds{quantile="0.95"})', "{{namespace}}/{{name}}")], "s",
            ),
            Panel(
                "Connections of the most that there may be",
                [
                    (
                        "topk(10, max by (namespace, name) (medianest_database_connections)"
                        " / on (namespace, name) medianest_database_max_connections)",
                        "{{namespace}}/{{name}}",
                    )
                ],
                "percentunit",
            ),
            Panel(
                "Age of the newest backup",
                [
                    (
                        "topk(10, time() - max by (namespace, name) (medianest_backup_last_success_timestamp_seconds))",
                        "{{namespace}}/{{name}}",
                    )
                ],
                "s",
            ),
            Panel(
                "Time since a backup was restored",
                [("topk(10, time() - medianest_backup_verified_timestamp_seconds)", "{{namespace}}/{{name}}")], "s",
            ),
            Panel(
                "Replication lag",
                [("topk(10, max by (namespace, name) (medianest_database_replication_lag_bytes)) or vector(0)",
                  "{{namespace}}/{{name}}")], "bytes",
            ),
        ),
    ),
    (
        "The operator",
        (
            Panel("Leader", [("medianest_operator_leader", "{{pod}}")]),
            Panel(
                "Reconciles",
                [("sum by (result) (rate(medianest_operator_reconciles_total[5m]))", "{{result}}")], "ops",
            ),
            Panel(
                "Time of a reconcile, 95th percentile",
                [
                    (
                        "histogram_quantile(0.95, sum by (le) (rate(medianest_operator_reconcile_seconds_bucket[5m])))",
                        "p95",
                    )
                ],
                "s",
            ),
            Panel("Databases that wait", [("medianest_operator_queue_depth", "{{pod}}")]),
            Panel(
                "Requests to the API server",
                [("sum by (method, code) (rate(medianest_operator_api_requests_total[5m]))", "{{method}} {{code}}")],
                "reqps",
            ),
            Panel(
                "Memory",
                [("process_resident_memory_bytes and on (instance, pod) medianest_operator_build_info", "{{pod}}")],
                "bytes",
            ),
        ),
    ),
)  # fmt: skip

DATABASE: Final[Sequence[tuple[str, Sequence[Panel]]]] = (
    (
        "Now",
        (
            Panel("Ready", [_by("medianest_database_ready", "")], kind="value", width=4),
            Panel(
                "Instances",
                [_by("medianest_database_instances", "{{state}}")], kind="value", width=5,
            ),
            Panel("Size", [_by("medianest_database_size_bytes", "")], "bytes", kind="value", width=5),
            Panel(
                "Age of the newest backup",
                [(f"time() - max(medianest_backup_last_success_timestamp_seconds{{{_ONE}}})", "")],
                "s", kind="value", width=5,
            ),
            Panel(
                "Restored and found equal", [(f"time() - medianest_backup_verified_timestamp_seconds{{{_ONE}}}", "")],
                "s", kind="value", width=5, about="Since the last verification of a backup.",
            ),
            Panel(
                "Findings", [(f"medianest_finding{{{_ONE}}} or on () vector(0)", "")], kind="table", width=12,
                about="What is wrong. kubectl describe mndb has each with its fix.",
            ),
            Panel("Conditions", [_by("medianest_database_condition", "{{type}}")], kind="table", width=12),
        ),
    ),
    (
        "Queries and sessions",
        (
            Panel("Hot queries", [_by("medianest_database_query_seconds", "quantile {{quantile}}")], "s"),
            Panel("A new connection", [_by("medianest_database_connect_seconds", "quantile {{quantile}}")], "s"),
            Panel("A probe", [_by("medianest_database_probe_seconds", "{{pod}}")], "s"),
            Panel(
                "Connections",
                [
                    _by("medianest_database_connections", "{{pod}}"),
                    _by("medianest_database_max_connections", "most that there may be"),
                ],
            ),
            Panel("Connections to the primary", [_by("medianest_database_role_connections", "{{role}}")]),
            Panel("Oldest transaction", [_by("medianest_database_oldest_transaction_seconds", "{{pod}}")], "s"),
            Panel("Sessions that wait for a lock", [_by("medianest_database_blocked_sessions", "longer than 30 s")]),
            Panel("Deadlocks", [(f"delta(medianest_database_deadlocks{{{_ONE}}}[10m])", "in ten minutes")]),
            Panel(
                "Transactions since the oldest row that isn't frozen",
                [_by("medianest_database_transaction_age", "")],
            ),
        ),
    ),
    (
        "Replication and backups",
        (
            Panel(
                "Replication lag",
                [(f"medianest_database_replication_lag_bytes{{{_ONE}}} or on () vector(0)", "{{pod}}")], "bytes",
            ),
            Panel("WAL that a slot keeps", [_by("medianest_database_slot_retained_bytes", "")], "bytes"),
            Panel(
                "Next backup", [(f"medianest_backup_next_timestamp_seconds{{{_ONE}}} - time()", "{{tier}}")], "s",
            ),
            Panel("Backups", [_by("medianest_backup_repository_backups", "{{repository}}")]),
            Panel("Size of the last backup", [_by("medianest_backup_last_size_bytes", "")], "bytes"),
            Panel(
                "Time that it took", [
                    _by("medianest_backup_last_duration_seconds", "backup"),
                    _by("medianest_backup_recovery_seconds", "restore and comparison"),
                ], "s",
            ),
            Panel("Critical indexes missing", [_by("medianest_database_critical_indexes_missing", "")]),
            Panel(
                "Server certificate ends in",
                [(f"medianest_database_certificate_not_after_timestamp_seconds{{{_ONE}}} - time()", "")], "s",
            ),
        ),
    ),
)  # fmt: skip


def documents() -> dict[str, str]:
    """JSON by the dashboard's name."""
    return {
        "fleet": _document("MediaNest databases", "medianest-fleet", FLEET),
        "database": _document("MediaNest database", "medianest-database", DATABASE, one=True),
    }


def _document(title: str, uid: str, rows: Sequence[tuple[str, Sequence[Panel]]], *, one: bool = False) -> str:
    board = (
        dashboard.Dashboard(title)
        .uid(uid)
        .tags(["medianest"])
        .refresh("30s")
        .time("now-6h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
    )
    if one:
        board.with_variable(_variable("namespace", "label_values(medianest_database_ready, namespace)"))
        board.with_variable(_variable("name", 'label_values(medianest_database_ready{namespace="$namespace"}, name)'))
    for row, panels in rows:
        board.with_row(dashboard.Row(row))
        for panel in panels:
            board.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return dashboard.QueryVariable(name).datasource(_SOURCE).query(query).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def _panel(panel: Panel) -> Any:
    kinds: dict[str, Any] = {"graph": timeseries.Panel, "value": stat.Panel, "table": table.Panel}
    built = kinds[panel.kind]().title(panel.title).datasource(_SOURCE).unit(panel.unit).span(panel.width).height(7)
    if panel.about:
        built.description(panel.about)
    if panel.kind == "value":
        built.height(4).color_mode(BigValueColorMode.NONE)
        built.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    for number, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).ref_id(chr(ord("A") + number)).legend_format(legend)
        if panel.kind == "table":
            query.instant().format(PromQueryFormat.TABLE)
        built.with_target(query)
    return built
