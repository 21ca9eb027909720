"""Texts short enough for a termination message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

RESULT_LIMIT: Final = 4096
"""Bytes: the kubelet reads no more of a termination message (Kubernetes: "Determine the Reason for Pod Failure")."""
_LONGEST: Final = 1200
"""Characters of a message; more is for the log."""


def shorten(text: str, longest: int) -> str:
    """At most `longest` UTF-8 bytes of the text, with an ellipsis where something was left out."""
    raw = text.encode("utf-8")
    if len(raw) <= longest:
        return text
    return raw[: max(0, longest - 3)].decode("utf-8", "ignore") + "…"


def first_three(items: Sequence[str], separator: str = "; ") -> str:
    """The first three of them in one line, and how many more there are: `a; b; c and 2 more`."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return separator.join(items[:3]) + more


def cut(text: str, limit: int = _LONGEST) -> str:
    """A text of one line and at most that many characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
