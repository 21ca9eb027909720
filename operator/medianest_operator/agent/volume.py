"""`medianest-dbctl read-volume`: how far the data of a stopped server go, by its own files. Nothing is written."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from medianest_operator.postgres import timelines
from medianest_operator.results.volume import VolumeState

_SEGMENT: Final = re.compile(r"([0-9A-F]{8})[0-9A-F]{16}")
_LAST_RECORD: Final = re.compile(r"WAL statistics between [0-9A-F/]+ and ([0-9A-F]+/[0-9A-F]+)")
_NO_SEGMENT: Final = re.compile(r'could not find file "[0-9A-F]{8}([0-9A-F]{8})([0-9A-F]{8})"')


class UnreadableVolume(Exception):
    """The files are not what a server leaves; the text says what is wrong with them."""


def read_volume(data: Path, programs: Path) -> VolumeState:
    """Read a data directory and its log, up to the last record that is whole.

    The control file may be minutes older than the log. Which timeline the log is on is known by its segments: a history
    file alone may be one that a replica was only told of (PostgreSQL manual, Timelines).

    Args:
        data: the data directory; its `pg_wal` may be a link.
        programs: the folder of PostgreSQL's own.

    Raises:
        UnreadableVolume: PostgreSQL's programs can't make sense of it.
    """
    control_file = data / "global" / "pg_control"
    if not control_file.exists():
        return VolumeState(is_empty=True, message="no database")
    control = _control(data, programs)
    try:
        checkpoint = int(control["Latest checkpoint's TimeLineID"])
        redo = timelines.from_lsn(control["Latest checkpoint's REDO location"])
        segment_size = int(control["Bytes per WAL segment"])
        system_identifier = control["Database system identifier"]
    except (KeyError, ValueError) as error:
        raise UnreadableVolume(f"pg_controldata says nothing of {error}") from error
    log = data / "pg_wal"
    timeline = _timeline(log, checkpoint)
    promotions = _promotions(log, timeline)
    begin = redo if timeline == checkpoint else max(redo, *promotions.values())
    end = _end(log, timeline, begin, segment_size, programs)
    promoted = max(promotions.values(), default=0)
    written = f"{datetime.fromtimestamp(control_file.stat().st_mtime, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return VolumeState(
        system_identifier=system_identifier,
        timeline=timeline,
        ends_at=end,
        promotions=promotions,
        begun=_begun(log, timeline, promoted, end, segment_size),
        written=written,
        message=f"timeline {timeline}, log up to {timelines.to_lsn(end)}, last checkpoint {written}",
    )


def _control(data: Path, programs: Path) -> dict[str, str]:
    done = _run(programs / "pg_controldata", str(data))
    if done.returncode != 0 or "WARNING" in done.stdout:
        # It warns of a wrong checksum, and goes on.
        raise UnreadableVolume(f"pg_controldata: {done.stderr.strip() or done.stdout.strip().splitlines()[0]}")
    lines = (line.partition(":") for line in done.stdout.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _timeline(log: Path, checkpoint: int) -> int:
    """The one that the log goes on with, which may be later than that of the last checkpoint."""
    names = os.listdir(log)
    written = {int(found[1], 16) for name in names if (found := _SEGMENT.fullmatch(name))}
    promoted = {int(found[1], 16) for name in names if (found := timelines.HISTORY_FILE.fullmatch(name))}
    return max({checkpoint, *(written & promoted)})


def _promotions(log: Path, timeline: int) -> dict[int, int]:
    """Where each timeline before this one ended."""
    if timeline == 1:
        return {}
    try:
        text = (log / f"{timeline:08X}.history").read_text(encoding="utf-8", errors="replace")
        return timelines.promotions(text)
    except (OSError, ValueError) as error:
        raise UnreadableVolume(f"the history of timeline {timeline}: {error}") from error


def _begun(log: Path, timeline: int, promoted: int, end: int, segment_size: int) -> str:
    """The first bytes of a timeline, in hex. What follows the end of the log is from a file's earlier use."""
    name, offset = timelines.segment(timeline, promoted, segment_size)
    if timeline == 1 or end <= promoted or not (log / name).exists():
        return ""
    with (log / name).open("rb") as file:
        file.seek(offset)
        return file.read(min(timelines.FIRST_BYTES, end - promoted)).hex()


def _end(log: Path, timeline: int, begin: int, segment_size: int, programs: Path) -> int:
    """The end of the last whole record. pg_waldump fails where the log ends, and says so after its statistics."""
    start = f"--start={timelines.to_lsn(begin)}"
    done = _run(programs / "pg_waldump", "--stats", f"--path={log}", f"--timeline={timeline}", start)
    if found := _LAST_RECORD.search(done.stdout):
        return timelines.from_lsn(found[1])
    if missing := _NO_SEGMENT.search(done.stderr):
        # It ends together with a segment.
        per_log = (1 << 32) // segment_size
        end = (int(missing[1], 16) * per_log + int(missing[2], 16)) * segment_size
        if end >= begin:
            return end
    if "could not find a valid record after" in done.stderr:
        return begin
    raise UnreadableVolume(f"pg_waldump: {done.stderr.strip()}")


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, errors="replace", check=False, env=environment
    )
