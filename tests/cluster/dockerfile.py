"""What a Dockerfile depends on: the images it starts from and the files that it copies."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from cluster.errors import ClusterError

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")


@dataclass(frozen=True)
class Dockerfile:
    """The parts of a Dockerfile that decide whether an image must be built anew.

    Attributes:
        text: all of it.
        bases: the images that its stages start from, without the stages that start from an earlier one.
        stages: the names of its stages, in order.
        sources: what ``COPY`` and ``ADD`` take from the build context, as written.
    """

    text: str
    bases: tuple[str, ...]
    stages: tuple[str, ...]
    sources: tuple[str, ...]


def _instructions(text: str) -> list[tuple[str, str]]:
    """The instructions with their arguments, continuation lines joined, comments and here-documents left out."""
    found: list[tuple[str, str]] = []
    pending = ""
    end: str | None = None
    for line in text.splitlines():
        if end is not None:
            end = None if line.strip() == end else end
            continue
        if line.lstrip().startswith("#"):
            continue
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        word, _, rest = pending.partition(" ")
        if word:
            found.append((word.upper(), rest.strip()))
            if here := re.search(r"<<-?[\"']?(\w+)[\"']?", rest):
                end = here.group(1)
        pending = ""
    return found


def _substitute(text: str, values: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(3)
        return values.get(name) or match.group(2) or ""

    return _VARIABLE.sub(value, text)


def _copied(arguments: str) -> list[str]:
    """The sources of a ``COPY`` or ``ADD`` that come from the build context."""
    words = json.loads(arguments) if arguments.startswith("[") else shlex.split(arguments)
    if any(word.startswith("--from=") for word in words):
        return []
    paths = [word for word in words if not word.startswith("--")]
    return [path for path in paths[:-1] if "://" not in path and not path.startswith("<<")]


def parse(text: str) -> Dockerfile:
    """Read a Dockerfile.

    Raises:
        ClusterError: it has no ``FROM``.
    """
    values: dict[str, str] = {}
    bases: list[str] = []
    stages: list[str] = []
    sources: list[str] = []
    started = False
    for word, arguments in _instructions(text):
        if word == "ARG" and not started:
            name, _, default = arguments.partition("=")
            values[name.strip()] = default.strip().strip("\"'")
        elif word == "FROM":
            started = True
            words = [part for part in _substitute(arguments, values).split() if not part.startswith("--")]
            if words[0] not in stages and words[0] != "scratch" and words[0] not in bases:
                bases.append(words[0])
            if len(words) == 3 and words[1].upper() == "AS":
                stages.append(words[2])
        elif word in ("COPY", "ADD"):
            sources += _copied(arguments)
    if not started:
        raise ClusterError("the Dockerfile has no FROM")
    return Dockerfile(text, tuple(bases), tuple(stages), tuple(dict.fromkeys(sources)))


def copied_files(sources: tuple[str, ...], files: list[Path]) -> list[Path]:
    """Those of the context's files (relative to it) that the sources of ``COPY`` name, by folder, file or pattern."""
    patterns = [PurePosixPath(source.lstrip("/")).parts for source in sources]

    def matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
        # A star stands for a part of one name, never for a slash; a folder stands for all that is in it.
        return len(parts) >= len(pattern) and all(map(fnmatchcase, parts, pattern))

    return [path for path in files if any(matches(path.parts, pattern) for pattern in patterns)]
