"""The indexes that the applied migrations make, against those that there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from medianest_operator.health.indexes.catalog import Index
from medianest_operator.health.indexes.words import drop_statement, has_controls
from medianest_operator.postgres.index_definition import IndexDefinition


@dataclass(frozen=True)
class Missing:
    """An expected index that isn't there, or isn't what it should be.

    Attributes:
        dropped: the one that the fix drops.
        renamed: the one to which the fix gives the name.
    """

    expected: IndexDefinition
    evidence: str
    fix: str | None
    dropped: Index | None = None
    renamed: Index | None = None


# What pg_get_indexdef writes. Each part can be read in one way alone, so that no definition takes long.
_IDENTIFIER: Final = r'(?:[a-z_][a-z0-9_$]*+|"(?:[^"]|"")++")'
_NAME: Final = re.compile(
    rf"(CREATE (?:UNIQUE )?INDEX )({_IDENTIFIER})( ON )(ONLY )?({_IDENTIFIER}\.{_IDENTIFIER})( USING .*)", re.DOTALL
)
# Outside of texts and names: no end of a statement, no comment, no quote of another kind, no command or variable of
# psql. A text has no backslash, so that nobody disagrees about where it ends.
_TOKEN: Final = re.compile(
    rf"""'(?:[^'\\]|'')*+' | {_IDENTIFIER} | [0-9]++ | :: | -(?!-) | /(?!\*) | [A-Za-z_.,()\[\]<>=+*~!@\#%^&|? ]""",
    re.VERBOSE,
)
_OUTSIDE: Final = re.compile(
    rf""" USING {_IDENTIFIER} \(\)(?: INCLUDE \(\))?(?: NULLS NOT DISTINCT)?(?: WITH \(\))?"""
    rf"""(?: TABLESPACE {_IDENTIFIER})?(?: WHERE .+)?"""
)
_LONGEST: Final = 8192
"""Characters of a statement; a longer one nobody reads before running it."""


def missing(expected: Iterable[IndexDefinition], indexes: Sequence[Index]) -> list[Missing]:
    """What of the expected ones isn't there and usable, by name."""
    by_name = {index.name: index for index in indexes}
    wanted = {item.name: item for item in expected}
    alike: dict[tuple[str, bool], Index] = {}
    for other in indexes:
        if other.usable and other.name not in wanted:
            alike.setdefault((_body(other.definition), other.primary), other)
    found = []
    for name in sorted(wanted):
        item, index = wanted[name], by_name.get(name)
        if index is not None and index.usable and _body(index.definition) == _body(item.definition):
            continue
        found.append(_explained(item, index, alike.get((_body(item.definition), item.primary))))
    return found


def _explained(item: IndexDefinition, index: Index | None, other: Index | None) -> Missing:
    if index is not None and _body(index.definition) == _body(item.definition):
        words = "it is being built" if index.in_work else "it is invalid, so no query uses it"
        # A partitioned one becomes valid with the last part that is attached (`invalid` says so).
        return Missing(item, words, None if index.partitioned else f"REINDEX INDEX CONCURRENTLY {index.identifier};")
    create = _create(item)
    if create is None:
        return Missing(item, "there is none" if index is None else "there is another index of its name", None)
    if index is not None:
        drop = drop_statement(index)
        if drop is None:
            return Missing(item, "there is another index of its name, a part of a partitioned one", None)
        return Missing(item, "there is another index of its name", f"{drop} {create}", dropped=index)
    if other is not None:
        return Missing(
            item,
            f"there is an equal one with another name, {other.name}",
            f"ALTER INDEX {other.identifier} RENAME TO {_name(item)};",
            renamed=other,
        )
    return Missing(item, "there is none", create)


def _body(definition: str) -> str:
    """A definition without the index's name."""
    match = _NAME.fullmatch(definition)
    return f"{match[1]}{match[3]}{match[4] or ''}{match[5]}{match[6]}" if match else definition


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _name(item: IndexDefinition) -> str:
    """Its name as a statement has it, in quotes where PostgreSQL isn't known to write it without."""
    match = _NAME.fullmatch(item.definition)
    return match[2] if match and _unquoted(match[2]) == item.name else _quoted(item.name)


def _unquoted(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier


def _create(item: IndexDefinition) -> str | None:
    """The statement that makes it; `None` where the definition, which the journal may have, is not one definition.

    The journal lies in the application's database: who may write there may have put in anything, and a person pastes
    the statement into psql, as somebody who may do more.
    """
    match = _NAME.fullmatch(item.definition)
    if match is None or len(item.definition) > _LONGEST or has_controls(item.definition):
        return None
    table = match[5]
    if _unquoted(match[2]) != item.name or table not in (f"public.{item.table}", f"public.{_quoted(item.table)}"):
        return None
    if not _is_definition(match[6]):
        return None
    if match[4]:
        # Neither CONCURRENTLY nor as a constraint (PostgreSQL manual, CREATE INDEX and ALTER TABLE). Without ONLY the
        # partitions' own are made, or attached where there are equal ones.
        return None if item.primary else f"{match[1]}{match[2]} ON {table}{match[6]};"
    create = f"{match[1]}CONCURRENTLY {match[2]} ON {table}{match[6]};"
    if item.primary:
        create += f" ALTER TABLE {table} ADD CONSTRAINT {match[2]} PRIMARY KEY USING INDEX {match[2]};"
    return create


def _is_definition(text: str) -> bool:
    """Whether what follows the table's name is what PostgreSQL writes there, and nothing else."""
    place, depth, outside = 0, 0, []
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            return False
        token, place = match[0], match.end()
        depth -= token == ")"
        if depth < 0:
            return False
        if depth == 0:
            outside.append(token)
        depth += token == "("
    # What parentheses hold is left out: an opening one is outside of them, and so is what closes it.
    return depth == 0 and _OUTSIDE.fullmatch("".join(outside)) is not None
