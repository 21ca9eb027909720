"""Which values PostgreSQL 15 takes for its parameters that are strings.

One that it refuses breaks the configuration file: a running server keeps its old configuration, the next start fails.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Final
from zoneinfo import available_timezones

_ANYTHING: Final = ""
_IDENTIFIER: Final = r'("([^"]|"")*"|[^",\s]+)'
_LIST_OF = r"({0})(\s*,\s*({0}))*"
_LOCALES: Final = (r"C|POSIX|C\.(UTF-8|utf8)", "the image has the locales C, POSIX and C.UTF-8")
_MANAGERS: Final = (
    "all|xlog|transaction|storage|clog|database|tablespace|multixact|relmap|standby|heap2|heap|btree|hash|gin|gist|"
    "sequence|spgist|brin|committs|replicationorigin|generic|logicalmessage"
)
_ENCODINGS: Final = (
    r"utf-?8|unicode|sql_ascii|latin([1-9]|10)|iso_8859_[5-8]|win(125[0-8]|866|874)|koi8[ru]|euc_(jp|cn|kr|tw)|"
    "euc_jis_2004|shift_jis_2004|sjis|big5|gbk|gb18030|uhc|johab"
)
_CHECKS: Final = "shadowed_variables|strict_multi_assignment|too_many_rows"

_RULES: Final[Mapping[str, tuple[str, str]]] = {
    "application_name": (_ANYTHING, ""),
    "backtrace_functions": (r"[A-Za-z0-9_, ]*", "it takes names of C functions, between commas"),
    "bonjour_name": (_ANYTHING, ""),
    "client_encoding": (f"(?i:{_ENCODINGS})", "it takes an encoding of PostgreSQL, for instance UTF8"),
    "datestyle": (
        r"(?i:(iso|sql|postgres|german)(\s*,\s*(mdy|dmy|ymd))?|mdy|dmy|ymd)",
        "it takes ISO, SQL, Postgres or German, and MDY, DMY or YMD after a comma",
    ),
    "default_text_search_config": (r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?", "it takes a name, with a schema or none"),
    "lc_messages": _LOCALES,
    "lc_monetary": _LOCALES,
    "lc_numeric": _LOCALES,
    "lc_time": _LOCALES,
    "log_line_prefix": (_ANYTHING, ""),
    "plpgsql.extra_errors": (rf"none|all|{_LIST_OF.format(_CHECKS)}", "it takes none, all or names of checks"),
    "plpgsql.extra_warnings": (rf"none|all|{_LIST_OF.format(_CHECKS)}", "it takes none, all or names of checks"),
    "restrict_nonsystem_relation_kind": (
        rf"|{_LIST_OF.format('(?i:view|foreign-table)')}",
        "it takes view, foreign-table or both",
    ),
    "search_path": (
        rf"\s*|\s*{_LIST_OF.format(_IDENTIFIER)}\s*",
        "it takes names of schemas, between commas",
    ),
    "syslog_ident": (_ANYTHING, ""),
    "timezone_abbreviations": ("Default|Australia|India", "it takes Default, Australia or India"),
    "wal_consistency_checking": (rf"|{_LIST_OF.format(f'(?i:{_MANAGERS})')}", "it takes all, or names of managers"),
}
"""By parameter, in small letters: a pattern of the whole value, and what it asks for. What is not here can't be set, or
only to a value of `api.parameters.GROUPS`."""

_ZONES: Final = frozenset({"timezone", "log_timezone"})
CHECKED: Final = frozenset(_RULES) | _ZONES


def string_problem(name: str, value: str) -> str | None:
    """Why PostgreSQL would refuse the value of a parameter that is a string; `None` where it would not."""
    if name in _ZONES:
        known = value.lower() in _zones()
        return None if known else f'"{value}" is not a time zone of the IANA database, for instance Europe/Berlin'
    pattern, hint = _RULES.get(name, (_ANYTHING, ""))
    if pattern and not re.fullmatch(pattern, value):
        return f'"{value}" is refused by PostgreSQL: {hint}'
    return None


@cache
def _zones() -> frozenset[str]:
    # PostgreSQL reads the files of the same database in any case.
    return frozenset(zone.lower() for zone in available_timezones())
