"""What goes wrong, in words for the person at the terminal."""

from __future__ import annotations

from pathlib import Path

TAIL_LINES = 25


class ClusterError(Exception):
    """The cluster can't do what it was asked for; the message says why and, where known, what to do."""


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, or a sentence in their place if there is none."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return f"(no log at {path})"
    return "\n".join(text.splitlines()[-lines:])
