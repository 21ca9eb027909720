"""Values to try for each parameter of PostgreSQL 15: good ones, bad ones, and ones that another kind of it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

from medianest_operator.api.database import DatabaseSpec

KNOWN: Mapping[str, Mapping[str, Any]] = {
    name.lower(): setting
    for name, setting in json.loads(
        resources.files("medianest_operator.postgres").joinpath("settings-15.json").read_text(encoding="utf-8")
    ).items()
}
"""What pg_settings says of PostgreSQL 15 and of the libraries that may be preloaded, by name in small letters."""

_BOOLEANS = ("on", "off", "true", "FALSE", "1", "0", "yes", "t", "y", "maybe")
_NUMBERS = ("10", "1e1", "1.5", " 10 ", "-1", "0x10", "abc", "")
_WITH_UNITS = ("10s", "1 min", "2d", "5us", "10MB", "1GB", "8kB", "10B", "100000kB", "1TB", "64mb")
_STRINGS = (
    "", "all", "none", "a,,b", "pg_catalog", '"$user", public', 'a"b', "it's", "back\\slash", "%m [%p]", "C", "xx_YY",
    "UTF8", "klingon", "ISO, DMY", "ISO,MDY", "Europe/Berlin", "Nowhere/Land", "utc", "Default", "english",
    "pg_catalog.english", "view, foreign-table", "too_many_rows",
)  # fmt: skip


def samples(name: str, setting: Mapping[str, Any]) -> tuple[str, ...]:
    """Values to try for this parameter."""
    match setting["vartype"]:
        case "bool":
            return _BOOLEANS
        case "enum":
            words = tuple(setting["enumvals"])
            return (*words, words[0].upper(), *_BOOLEANS)
        case "string":
            return _STRINGS
    bounds = (str(setting["min_val"]), str(setting["max_val"]))
    return (*bounds, *_NUMBERS, *(_WITH_UNITS if setting.get("unit") else ()))


def spec(name: str, value: str, others: Mapping[str, str] = MappingProxyType({})) -> DatabaseSpec:
    """A large database with this parameter."""
    return DatabaseSpec.model_validate(
        {
            "postgresql": {"parameters": {name: value, **others}},
            "resources": {"limits": {"memory": "4Ti"}},
            "connections": {"limit": 1},
        }
    )
