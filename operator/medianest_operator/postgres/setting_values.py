"""Settings as `pg_db_role_setting` keeps them (`name=value`), as SQL that sets the same."""

from __future__ import annotations

import re
from typing import Final

from psycopg import sql

# Lists that the server keeps quoted, element by element (variable_is_guc_list_quote in pg_dump's source).
_LISTS: Final = frozenset({
    "local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces",
})  # fmt: skip
_ELEMENT: Final = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,]*))\s*(?:,|$)')


def name_and_value(setting: str) -> tuple[str, sql.Composable]:
    """The name, and the value for `ALTER ... SET name = value`."""
    name, _, value = setting.partition("=")
    if name not in _LISTS:
        return name, sql.Literal(value)
    return name, sql.SQL(", ").join(map(sql.Literal, _elements(value)))


def _elements(value: str) -> list[str]:
    """The elements of such a list, without their quotes, as pg_dump takes it apart (SplitGUCList in its source).

    What stands there is the owner's text (ALTER DATABASE ... SET ... FROM CURRENT stores it as it is): it must not get
    into a statement in any other way than as literals.
    """
    found = _ELEMENT.findall(value)
    elements = [quoted.replace('""', '"') if quoted else plain.strip() for quoted, plain in found]
    return [element for element in elements if element] or [""]
