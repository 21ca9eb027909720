"""Timelines: their history files and the log's segments (PostgreSQL manual, 26.3.5 and 30.6)."""

from __future__ import annotations

import re
from typing import Final

HISTORY_FILE: Final = re.compile(r"([0-9A-F]{8})\.history")
FIRST_BYTES: Final = 64
"""Of a timeline that tell it from another of the same number and the same beginning: a page's header may come before
the first record, which holds the moment of the promotion (`xl_end_of_recovery`, or a checkpoint)."""


def promotions(text: str) -> dict[int, int]:
    """Where each timeline before this one ended, in bytes of the log, by its number.

    Args:
        text: a history file's.

    Raises:
        ValueError: it is none.
    """
    lines = [line.split("\t") for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    try:
        found = {int(fields[0]): from_lsn(fields[1]) for fields in lines}
    except IndexError as error:
        raise ValueError(f"not a history file: {text!r}") from error
    if not found:
        raise ValueError("the history file is empty")
    return found


def segment(timeline: int, position: int, size: int) -> tuple[str, int]:
    """The file that holds a position of the log, and the position's place in it.

    Args:
        size: of a segment, in bytes.
    """
    number, offset = divmod(position, size)
    per_log = (1 << 32) // size
    return f"{timeline:08X}{number // per_log:08X}{number % per_log:08X}", offset


def to_lsn(position: int) -> str:
    """A position as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def from_lsn(lsn: str) -> int:
    """A position that PostgreSQL wrote, in bytes.

    Raises:
        ValueError: it is none.
    """
    high, separator, low = lsn.partition("/")
    if not separator:
        raise ValueError(f"not a position in the log: {lsn}")
    return (int(high, 16) << 32) + int(low, 16)
