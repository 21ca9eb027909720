"""The indexes that the applied migrations make, against those that there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from medianest_operator.health.indexes.catalog import Index
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


_NAME: Final = re.compile(
    r"""(CREATE\ (?:UNIQUE\ )?INDEX\ )
        ("(?:[^"]|"")*"|\S+)
        (\ ON\ (?:ONLY\ )?)
        ((?:"(?:[^"]|"")*"|[^\s"])+)
        (\ USING\ .*)""",
    re.DOTALL | re.VERBOSE,
)

_QUOTED: Final = re.compile(r"'(?:[^'\\]|'')*'|\"(?:[^\"]|\"\")*\"")


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
        return Missing(item, words, f"REINDEX INDEX CONCURRENTLY {index.identifier};")
    create = _create(item)
    if create is None:
        return Missing(item, "there is none" if index is None else "there is another index of its name", None)
    if index is not None:
        drop = f"DROP INDEX CONCURRENTLY {index.identifier};"
        if index.constraint:
            drop = f"ALTER TABLE {index.table_identifier} DROP CONSTRAINT {index.constraint.name};"
        return Missing(item, "there is another index of its name", f"{drop} {create}", dropped=index)
    if other is not None:
        schema_and_name = _quoted(item)
        return Missing(
            item,
            f"there is an equal one with another name, {other.name}",
            f"ALTER INDEX {other.identifier} RENAME TO {schema_and_name};",
            renamed=other,
        )
    return Missing(item, "there is none", create)


def _body(definition: str) -> str:
    """A definition without the index's name."""
    match = _NAME.fullmatch(definition)
    return f"{match[1]}{match[3]}{match[4]}{match[5]}" if match else definition


def _quoted(item: IndexDefinition) -> str:
    match = _NAME.fullmatch(item.definition)
    return match[2] if match else item.name


def _create(item: IndexDefinition) -> str | None:
    """The statement that makes it; `None` where the definition, which the journal may have, is not one definition."""
    match = _NAME.fullmatch(item.definition)
    if match is None or re.search(r";|--|/\*|['\"$]", _QUOTED.sub("", item.definition)):
        return None
    create = f"{match[1]}CONCURRENTLY {match[2]}{match[3]}{match[4]}{match[5]};"
    if item.primary:
        create += f" ALTER TABLE {match[4]} ADD CONSTRAINT {match[2]} PRIMARY KEY USING INDEX {match[2]};"
    return create
