"""Statements about indexes, and texts of the catalogs as people may be shown them."""

from __future__ import annotations

import unicodedata
from typing import Final

from medianest_operator.health.indexes.catalog import Index

_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of what ends a line, moves the cursor, or turns the direction of what follows."""


def has_controls(text: str) -> bool:
    """Whether a text looks other than it is, or has several lines."""
    return not text.isprintable() and any(unicodedata.category(letter) in _INVISIBLE for letter in text)


def shown(text: str) -> str:
    """A text on one line, with what can't be seen by its number: a name may hold what seems to be the report's line."""
    if not has_controls(text):
        return text
    return "".join(f"\\u{ord(letter):04x}" if unicodedata.category(letter) in _INVISIBLE else letter for letter in text)


def capitalized(words: str) -> str:
    """Words at the beginning of a sentence; the rest stays as it is."""
    return words[:1].upper() + words[1:]


def drop_statement(index: Index) -> str | None:
    """What drops an index; `None` of a part of a partitioned one, which goes only with the whole."""
    if index.parent is not None:
        return None
    if index.constraint is not None:
        return f"ALTER TABLE {index.table_identifier} DROP CONSTRAINT {index.constraint.name};"
    # A partitioned one goes with its parts, at once (PostgreSQL manual, DROP INDEX).
    return f"DROP INDEX {'' if index.partitioned else 'CONCURRENTLY '}{index.identifier};"
