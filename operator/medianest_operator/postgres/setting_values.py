"""Settings as `pg_db_role_setting` keeps them (`name=value`), as SQL that sets the same."""

from __future__ import annotations

import re
from typing import Final

from psycopg import sql

# Parameters whose value is a list of names, each quoted by itself (PostgreSQL's source, GUC_LIST_QUOTE).
_LISTS: Final = frozenset({
    "local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces",
})  # fmt: skip

_NAME: Final = re.compile(r'"(?:[^"]|"")*"|[^\s",][^,]*?(?=\s*(?:,|$))')


def name_and_value(setting: str) -> tuple[str, sql.Composable]:
    """The name, and the value for `ALTER ... SET name = value`."""
    name, _, value = setting.partition("=")
    if name not in _LISTS:
        return name, sql.Literal(value)
    parts = [found[0] for found in _NAME.finditer(value)]
    plain = [part[1:-1].replace('""', '"') if part.startswith('"') else part for part in parts]
    return name, sql.SQL(", ").join(sql.Literal(part) for part in plain)
