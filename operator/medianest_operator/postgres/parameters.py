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

from medianest_operator.api.database import DatabaseSpec, Synchronous
from medianest_operator.api.parameters import (
    FALSE_WORDS,
    GROUPS,
    NO_COMMIT,
    PATRONI_MINIMA,
    RESERVED_PARAMETERS,
    TRUE_WORDS,
)
from medianest_operator.api.quantity import MIB, megabytes, to_bytes
from medianest_operator.postgres.parameter_strings import string_problem

MARKER: Final = "medianest.configuration"
"""A parameter of our own that names the whole configuration: a server that shows it has read the rest, too."""
PRELOADABLE: Final = frozenset({"auto_explain", "pg_prewarm", "pg_stat_statements", "passwordcheck", "auth_delay"})
"""Libraries of the database image that may be preloaded."""

_MEMORY_UNITS: Final = {"B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
_TIME_UNITS: Final = {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_NUMBER = re.compile(r"^\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*$")
_BOOLEANS: Final = frozenset({*TRUE_WORDS, *FALSE_WORDS})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_MOST_SHARED: Final = 0.6
"""Of the memory limit: the rest is for sessions, sorts and the kernel's cache."""
_DEFAULTS: Final = {
    "max_locks_per_transaction": "64",
    "max_pred_locks_per_transaction": "64",
    "track_activity_query_size": "1024",
    "pg_stat_statements.max": "5000",
}
"""PostgreSQL's own, of what takes shared memory."""

_TOO_MANY: Final = "each takes shared memory and a slot, at every instance"
_BOUNDS: Final[Mapping[str, tuple[int | None, int | None, str]]] = {
    **{
        name: (low, 256, f"Patroni ignores less and starts PostgreSQL with {instead}; {_TOO_MANY}")
        for name, (low, instead) in PATRONI_MINIMA.items()
        if name not in {"max_connections", "max_locks_per_transaction"}
    },
    "max_locks_per_transaction": (
        PATRONI_MINIMA["max_locks_per_transaction"][0],
        100_000,
        f"Patroni ignores less and starts PostgreSQL with {PATRONI_MINIMA['max_locks_per_transaction'][1]}",
    ),
    "max_pred_locks_per_transaction": (None, 100_000, _TOO_MANY),
    "max_prepared_transactions": (None, 1000, _TOO_MANY),
    "autovacuum_max_workers": (None, 64, _TOO_MANY),
    "wal_keep_size": (16, None, "Patroni ignores less and starts PostgreSQL with 128MB"),
    "max_wal_size": (32, None, "PostgreSQL doesn't start with less than two segments of 16MB"),
    "min_wal_size": (32, None, "PostgreSQL doesn't start with less than two segments of 16MB"),
    "max_stack_depth": (
        None,
        7680,
        "of a container's stack of 8MB PostgreSQL keeps 512kB, or doesn't start",
    ),
    "min_dynamic_shared_memory": (None, 128, "/dev/shm has 256MB in the pod"),
    "huge_page_size": (None, 0, "the pods have no huge pages"),
    "idle_session_timeout": (60_000, None, "Patroni's and the operator's own sessions pause between their questions"),
}
"""Narrower bounds than PostgreSQL's own, in the parameter's own unit, and why."""
_STATISTICS: Final = ("log_executor_stats", "log_parser_stats", "log_planner_stats", "log_statement_stats")
_ZERO_DISABLES: Final = frozenset({"idle_session_timeout"})


def memory_limit(spec: DatabaseSpec) -> int:
    """Bytes that one instance may use."""
    return to_bytes(spec.resources.limits.memory)


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
        "wal_retrieve_retry_interval": "200ms",
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
    """What PostgreSQL or Patroni would refuse, ignore or not start with, in sentences that name the field; empty where
    all is well. What the API server refuses at apply is in it too: an object may be older than that."""
    found = [
        f"postgresql.parameters.{name}: {problem}"
        for name, value in spec.postgresql.parameters.items()
        if (problem := _problem(name, str(value)))
    ]
    least, instead = PATRONI_MINIMA["max_connections"]
    if spec.connections.max < least:
        found.append(f"connections.max: Patroni ignores less than {least} and starts PostgreSQL with {instead}")
    commit = str(spec.postgresql.parameters.get("synchronous_commit", "on")).lower()
    if spec.postgresql.synchronous != Synchronous.OFF and commit in NO_COMMIT:
        found.append(
            f"postgresql.parameters.synchronous_commit: with {commit}, no commit waits for a replica, which"
            f" postgresql.synchronous {spec.postgresql.synchronous} asks for"
        )
    found += [
        f"resources.limits.memory: {spec.resources.limits.memory} is too much to tune {name} for: {problem}"
        for name, value in tuned(spec).items()
        if (problem := _type_problem(name, value))
    ]
    return found or _misfits(spec)


def _misfits(spec: DatabaseSpec) -> list[str]:
    """What doesn't go together with other fields of the spec."""
    settings, found = desired(spec), []
    limit = memory_limit(spec)
    shares = {name: _in_bytes(settings, name) * times for name, times in _shared_memory(settings, spec).items()}
    if sum(shares.values()) > limit * _MOST_SHARED:
        worst = max(shares, key=lambda name: shares[name])
        found.append(
            f"postgresql.parameters.{worst}: {shares[worst] // MIB}MB of shared memory would not leave enough of the"
            f" memory limit of {limit // MIB}MB; use at most 60 % of resources.limits.memory for all of"
            f" {', '.join(shares)}"
        )
    switched_on = {name for name in _STATISTICS if settings.get(name, "off").lower() in TRUE_WORDS}
    if "log_statement_stats" in switched_on and len(switched_on) > 1:
        others = ", ".join(sorted(switched_on - {"log_statement_stats"}))
        found.append(f"postgresql.parameters.log_statement_stats: PostgreSQL doesn't start with it beside {others}")
    reserved = _in_unit("superuser_reserved_connections", settings.get("superuser_reserved_connections", "3"))
    if reserved is not None and reserved + spec.connections.limit >= spec.connections.max:
        found.append(
            f"postgresql.parameters.superuser_reserved_connections: {int(reserved)} and connections.limit"
            f" {spec.connections.limit} are not less than connections.max {spec.connections.max}"
        )
    return found


def _shared_memory(settings: Mapping[str, str], spec: DatabaseSpec) -> dict[str, int]:
    """What PostgreSQL takes of shared memory at its start: how many times each parameter's bytes or number counts.

    Sizes of a lock and of a statement's statistics are those of PostgreSQL 15 on 64 bits, rounded up.
    """
    prepared = _in_unit("max_prepared_transactions", settings.get("max_prepared_transactions", "0")) or 0
    holders = spec.connections.max + int(prepared)
    return {
        "shared_buffers": 1,
        "wal_buffers": 1,
        "max_locks_per_transaction": holders * 320,
        "max_pred_locks_per_transaction": holders * 320,
        "track_activity_query_size": spec.connections.max,
        "pg_stat_statements.max": 512,
    }


def _problem(name: str, value: str) -> str | None:
    """What is wrong with one parameter, as a clause; `None` where nothing is."""
    if name in RESERVED_PARAMETERS:
        return "can't be set: the operator or Patroni owns it"
    if name == MARKER or name.startswith(f"{MARKER.split('.')[0]}."):
        return "can't be set: it is how the operator sees which configuration is loaded"
    if _CONTROL.search(value):
        return "a line break or a control character in it would break the configuration file; leave it out"
    for group in GROUPS:
        safe = group.values.get(name)
        if safe is not None and value.lower() not in safe:
            hint = f'write "{safe[0]}", or leave it out' if safe else "leave it out"
            return f'"{value}" {group.reason}; {hint}'
    if name == "shared_preload_libraries":
        unknown = {library.strip(" '\"") for library in value.split(",") if library.strip()} - PRELOADABLE
        names = ", ".join(sorted(unknown))
        return f"{names} isn't in the database image; there are {', '.join(sorted(PRELOADABLE))}" if unknown else None
    return _type_problem(name, value)


def _type_problem(name: str, value: str) -> str | None:
    setting = _known().get(name)
    if setting is None:
        library, dot, _ = name.partition(".")
        if not dot:
            return "PostgreSQL 15 has no such parameter"
        # Others may be the application's own: PostgreSQL takes any name with a dot that no library claims.
        owned = any(known.startswith(f"{library}.") for known in _known())
        return f"{library} of PostgreSQL 15 has no such parameter" if owned else None
    if setting["context"] == "internal":
        return "can't be set: PostgreSQL reports it only"
    kind = setting["vartype"]
    if kind == "bool":
        return None if value.lower() in _BOOLEANS else f'"{value}" is not a boolean; write "on" or "off"'
    if kind == "enum":
        return _enum_problem(setting["enumvals"], value)
    if kind in {"integer", "real"}:
        return _number_problem(name, setting, value)
    return string_problem(name, value)


def _enum_problem(allowed: list[str], value: str) -> str | None:
    # Where a parameter was a boolean once, PostgreSQL still takes a boolean's words.
    words = {item.lower() for item in allowed} | (_BOOLEANS if "on" in allowed else frozenset())
    return None if value.lower() in words else f'"{value}" is not one of {", ".join(allowed)}'


def _number_problem(name: str, setting: Mapping[str, Any], value: str) -> str | None:
    match, unit = _NUMBER.match(value), setting.get("unit")
    if not match:
        return f'"{value}" is not a number' + (f" with or without a unit (default {unit})" if unit else "")
    number = _in_unit(name, value)
    if number is None:
        units = _MEMORY_UNITS if unit and unit.endswith("B") else _TIME_UNITS if unit else {}
        hint = f"; units are {', '.join(units)}" if units else "; it takes no unit"
        return f'"{value}" has the unknown unit {match[2]}{hint}'
    unit_text = f" (in {unit})" if unit else ""
    if not float(setting["min_val"]) <= number <= float(setting["max_val"]):
        return f'"{value}" is outside of {setting["min_val"]} .. {setting["max_val"]}{unit_text}'
    low, high, reason = _BOUNDS.get(name, (None, None, ""))
    disables = name in _ZERO_DISABLES and number == 0
    if not disables and ((low is not None and number < low) or (high is not None and number > high)):
        span = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
        return f'"{value}" must be {span}{unit_text}: {reason}'
    return None


def _in_unit(name: str, value: str) -> float | None:
    """A number in its parameter's own unit; `None` where it is none."""
    match, unit = _NUMBER.match(value), _known()[name].get("unit")
    if not match:
        return None
    factor = _factor(match[2], unit) if match[2] else 1.0
    return None if factor is None else float(match[1]) * factor


def _factor(suffix: str, unit: str | None) -> float | None:
    """How many of the parameter's own unit one `suffix` is; None where it can't be."""
    match = re.match(r"^(\d*)([A-Za-z]+)$", unit or "")
    if not match:
        return None
    base, name = float(match[1] or 1), match[2]
    for units in (_MEMORY_UNITS, _TIME_UNITS):
        if name in units and suffix in units:
            return float(units[suffix]) / (float(units[name]) * base)
    return None


def _in_bytes(settings: Mapping[str, str], name: str) -> int:
    """A parameter's bytes, or its number where it has no unit; PostgreSQL's own value where nobody set it."""
    value = _in_unit(name, settings.get(name, _DEFAULTS.get(name, "0"))) or 0
    unit = _known()[name].get("unit")
    return int(value * (_factor("B", unit) or 1) ** -1) if unit else int(value)
