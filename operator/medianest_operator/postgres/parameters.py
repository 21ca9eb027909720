"""PostgreSQL's parameters: tuned from the limits, then the admin's, checked against what PostgreSQL 15 knows.

The rules of thumb are those of the PostgreSQL manual (19.4 Resource Consumption, 20.5 Write Ahead Log): a quarter of
memory for shared_buffers, and caches that the kernel shares with it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.quantity import MIB, megabytes, to_bytes

MARKER: Final = "medianest.configuration"
"""A parameter of our own that names the whole configuration: a server that shows it has read the rest, too."""
PRELOADABLE: Final = frozenset({"auto_explain", "pg_prewarm", "pg_stat_statements", "passwordcheck", "auth_delay"})
"""Libraries of the database image that may be preloaded."""

_MEMORY_UNITS: Final = {"B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
_TIME_UNITS: Final = {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_NUMBER = re.compile(r"^\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*$")
_BOOLEANS: Final = frozenset({"on", "off", "true", "false", "yes", "no", "1", "0", "t", "f", "y", "n"})


def memory_limit(spec: DatabaseSpec) -> int:
    """Bytes that one instance may use."""
    return to_bytes(spec.resources.limits.memory or spec.resources.requests.memory or "1Gi")


def tuned(spec: DatabaseSpec) -> dict[str, str]:
    """Parameters computed from memory, volume sizes and connections."""
    memory = memory_limit(spec)
    shared = memory // 4
    wal_volume = to_bytes(spec.wal_storage.size if spec.wal_storage else spec.storage.size)
    max_wal = min(4096 * MIB, max(96 * MIB, wal_volume // (2 if spec.wal_storage else 10)))
    return {
        "shared_buffers": megabytes(shared),
        "effective_cache_size": megabytes(memory * 3 // 4),
        "maintenance_work_mem": megabytes(min(memory // 16, 2048 * MIB)),
        "work_mem": f"{max(1024, (memory - shared) // 2 // spec.connections.max // 1024)}kB",
        "wal_buffers": megabytes(min(16 * MIB, shared // 16)),
        "max_wal_size": megabytes(max_wal),
        "min_wal_size": megabytes(max(32 * MIB, max_wal // 4)),
        "max_slot_wal_keep_size": megabytes(max(128 * MIB, wal_volume // 5)),
        # A replica that lost its primary asks again soon: under synchronous replication commits wait for it.
        "wal_retrieve_retry_interval": "500ms",
        "checkpoint_completion_target": "0.9",
        "default_statistics_target": "100",
        "random_page_cost": "1.1",
        "effective_io_concurrency": "200",
        "huge_pages": "off",
        "jit": "off",
        "log_checkpoints": "on",
        "log_lock_waits": "on",
        "log_line_prefix": "%m [%p] %q%u@%d %a ",
        "log_timezone": "UTC",
        "timezone": "UTC",
        "password_encryption": "scram-sha-256",
        "shared_preload_libraries": "pg_stat_statements",
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "30000",
        "wal_receiver_timeout": "15s",
        "wal_sender_timeout": "15s",
    }


def desired(spec: DatabaseSpec) -> dict[str, str]:
    """All parameters that go into Patroni's configuration: tuned, the admin's, max_connections, and the marker."""
    admin = {name: str(value) for name, value in spec.postgresql.parameters.items()}
    settings = tuned(spec) | admin | {"max_connections": str(spec.connections.max)}
    text = json.dumps(settings, sort_keys=True)
    return settings | {MARKER: hashlib.sha256(text.encode()).hexdigest()[:12]}


def marker(spec: DatabaseSpec) -> str:
    """The marker's value in a server that has loaded exactly these parameters."""
    return desired(spec)[MARKER]


@cache
def _known() -> Mapping[str, Mapping[str, Any]]:
    text = resources.files(__package__).joinpath("settings-15.json").read_text(encoding="utf-8")
    # PostgreSQL spells three of them with capitals (TimeZone) and reads all of them in any case.
    return {name.lower(): setting for name, setting in json.loads(text).items()}


def problems(spec: DatabaseSpec) -> list[str]:
    """What PostgreSQL would refuse, in sentences that name the field; empty where all is well."""
    found = [
        f"postgresql.parameters.{name}: {problem}"
        for name, value in spec.postgresql.parameters.items()
        if (problem := _problem(name, str(value)))
    ]
    if not found:
        shared = _in_bytes(desired(spec)["shared_buffers"], "8kB")
        limit = memory_limit(spec)
        if shared is not None and shared > limit * 0.6:
            found.append(
                f"postgresql.parameters.shared_buffers: {shared // MIB}MB would not leave enough of the memory "
                f"limit of {limit // MIB}MB; use at most 60 % of resources.limits.memory"
            )
    return found


def _problem(name: str, value: str) -> str | None:
    if name == "shared_preload_libraries":
        unknown = {library.strip(" '\"") for library in value.split(",") if library.strip()} - PRELOADABLE
        names = ", ".join(sorted(unknown))
        return f"{names} isn't in the database image; there are {', '.join(sorted(PRELOADABLE))}" if unknown else None
    if "." in name:
        return None
    setting = _known().get(name)
    if setting is None:
        return "PostgreSQL 15 has no such parameter"
    if setting["context"] == "internal":
        return "can't be set: PostgreSQL reports it only"
    kind = setting["vartype"]
    if kind == "bool":
        return None if value.lower() in _BOOLEANS else f'"{value}" is not a boolean; write "on" or "off"'
    if kind == "enum":
        allowed = setting["enumvals"]
        known = value.lower() in {item.lower() for item in allowed} | (
            {"true", "false", "yes", "no", "1", "0"} & _BOOLEANS
        )
        return None if known else f'"{value}" is not one of {", ".join(allowed)}'
    if kind in {"integer", "real"}:
        return _number_problem(setting, value)
    return None


def _number_problem(setting: Mapping[str, Any], value: str) -> str | None:
    match = _NUMBER.match(value)
    unit = setting.get("unit")
    if not match:
        return f'"{value}" is not a number' + (f" with or without a unit (default {unit})" if unit else "")
    number, suffix = float(match[1]), match[2]
    if suffix:
        factor = _factor(suffix, unit)
        if factor is None:
            units = _MEMORY_UNITS if unit and unit.endswith("B") else _TIME_UNITS if unit else {}
            hint = f"; units are {', '.join(units)}" if units else "; it takes no unit"
            return f'"{value}" has the unknown unit {suffix}{hint}'
        number *= factor
    low, high = float(setting["min_val"]), float(setting["max_val"])
    if not low <= number <= high:
        unit_text = f" (in {unit})" if unit else ""
        return f'"{value}" is outside of {setting["min_val"]} .. {setting["max_val"]}{unit_text}'
    return None


def _factor(suffix: str, unit: str | None) -> float | None:
    """How many of the parameter's own unit one `suffix` is; None where it can't be."""
    if not unit:
        return None
    match = re.match(r"^(\d*)([A-Za-z]+)$", unit)
    if not match:
        return None
    base, name = float(match[1] or 1), match[2]
    for units in (_MEMORY_UNITS, _TIME_UNITS):
        if name in units and suffix in units:
            return float(units[suffix]) / (float(units[name]) * base)
    return None


def _in_bytes(value: str, unit: str) -> int | None:
    match = _NUMBER.match(value)
    if not match:
        return None
    if not match[2]:
        return int(float(match[1]) * 8192) if unit == "8kB" else int(float(match[1]))
    return int(float(match[1]) * _MEMORY_UNITS.get(match[2], 1))
