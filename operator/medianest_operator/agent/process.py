"""What the commands have in common: how they read a duration, and how they end."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import typer

from medianest_operator.errors import Interrupted

EXIT_TRANSIENT = 2
"""It could not be done now; trying again may help."""
TEMPORARY = 75
"""What the commands raise in place of exit code 2, "try again", which typer itself has for a wrong command line, so
that the two stay apart until the entry point maps them (75 is BSD's EX_TEMPFAIL)."""
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000}


def duration(text: str) -> int:
    """Milliseconds of a duration such as `10s`, `1m30s`, `500ms` or `0`.

    Raises:
        typer.BadParameter: not a duration.
    """
    if text == "0":
        return 0
    parts = re.findall(r"(\d+)(ms|min|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise typer.BadParameter(f"{text!r} is not a duration; write 10s, 1m30s or 500ms")
    return sum(int(number) * _MILLISECONDS[unit] for number, unit in parts)


def stop_on_sigterm() -> None:
    """Let the first SIGTERM or SIGINT raise `Interrupted`."""

    def stop(number: int, frame: FrameType | None) -> None:
        # Once is enough: a second signal must not cut the roll-back short.
        for ignored in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ignored, signal.SIG_IGN)
        raise Interrupted

    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, stop)


class Ended(Protocol):
    """What every run ends with."""

    @property
    def message(self) -> str: ...

    @property
    def outcome(self) -> Any: ...

    @property
    def reason(self) -> Any: ...

    def to_json(self) -> str: ...


def finish(result: Ended, result_file: Path | None) -> NoReturn:
    """Tell a result, write it where the operator reads it, and end with its exit code.

    Raises:
        typer.Exit: always.
    """
    code = result.outcome.exit_code
    say(result.message if code == 0 else f"{result.outcome} ({result.reason}): {result.message}")
    if result_file is not None:
        result_file.write_text(result.to_json(), encoding="utf-8")
    raise typer.Exit(TEMPORARY if code == EXIT_TRANSIENT else code)


def say(line: str) -> None:
    """A line of the log, at once."""
    print(line, flush=True)
