"""Lint over migrations given as texts, on tables of known sizes."""

from __future__ import annotations

from collections.abc import Mapping

from medianest_operator.migrations.lint.lint import Finding, TableSize, lint
from medianest_operator.migrations.source import migrations_from_mapping

USERS = TableSize(
    12_431,
    8_493_465,
    {
        "id": "text",
        "email": "text",
        "avatar": "bytea",
        "role": "character varying(20)",
        "age": "integer",
        "paid": "numeric(8,2)",
        "seen": "timestamp(3) without time zone",
        "tags": "text[]",
        "big": "bigint",
    },
)
TABLES = {
    "users": USERS,
    "accounts": TableSize(1, 16_384),
    '"Büro"': TableSize(3, 8_192, {"Straße": "text"}),
    "audit.events": TableSize(2_000_000, 3 * 1024**3),
    "unknown_columns": TableSize(7, 8_192),
}


def look(*files: str, tables: Mapping[str, TableSize] = TABLES) -> tuple[Finding, ...]:
    source = {f"2026010100000{number}_m.sql": text for number, text in enumerate(files)}
    return lint(migrations_from_mapping(source), tables)
