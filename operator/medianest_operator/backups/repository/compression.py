"""Zstandard as streams: what pg_dump writes is packed by several threads, and never unpacked into more than expected.

The threads are those that the container may use: pg_dump's own zlib has one, and is what took most of a backup's time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from medianest_operator.backups.repository.client import CHUNK

LEVEL = 3
"""Of the same dump less comes out than of zlib's 9, in a tenth of its time; higher ones take far more for little."""
MOST_THREADS = 4
# Each thread's piece of the input, bytes. zstd's own choice, 8 MiB, packs no better, and four threads take 90 MiB then.
_PIECE = 2 << 20
# Ours have 2 MiB; a frame may ask for gigabytes (RFC 8878, 3.1.1.1.2).
_WINDOW = 8 << 20
# So much is taken in at once, bytes: each 4 of them may become 128 KiB (RFC 8878, 3.1.1.2).
_BITE = 1024


class CompressionError(Exception):
    """What should be a frame isn't, or is not the expected one; the text says how."""


def compress(chunks: Iterable[bytes], level: int = LEVEL, threads: int | None = None) -> Iterator[bytes]:
    """One frame, in pieces of `CHUNK`. An exception out of `chunks` comes through.

    Args:
        threads: as many as the container has processors where unset, and at most `MOST_THREADS`.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, threads=threads or min(processors(), MOST_THREADS), job_size=_PIECE, write_checksum=True
    )
    chunker = zstandard.ZstdCompressor(compression_params=parameters).chunker(chunk_size=CHUNK)
    for chunk in chunks:
        yield from chunker.compress(chunk)
    yield from chunker.finish()  # type: ignore[no-untyped-call]


def decompress(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """What is in a frame, in pieces of about `CHUNK`; only at the end is it sure that nothing is missing.

    Args:
        size: of what is in it; as soon as there is more, that is an error.

    Raises:
        CompressionError: it is no frame, more or less than one, or something else is in it.
    """
    frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
    found, held, waiting = 0, list[bytes](), 0
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), _BITE):
            if frame.eof:
                raise CompressionError("something follows the compressed data")
            try:
                piece = frame.decompress(view[start : start + _BITE])
            except zstandard.ZstdError as error:
                raise CompressionError(f"the compressed data are damaged: {error}") from error
            found += len(piece)
            if found > size:
                raise CompressionError(f"more than {size} bytes come out of it")
            held.append(piece)
            waiting += len(piece)
            if waiting >= CHUNK:
                yield b"".join(held)
                held, waiting = [], 0
    if not frame.eof:
        raise CompressionError("the compressed data are cut off")
    if frame.unused_data:
        raise CompressionError("something follows the compressed data")
    if found != size:
        raise CompressionError(f"{found} bytes come out of it, not {size}")
    if held:
        yield b"".join(held)


def processors(root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processors this process may use: the container's limit counts, not the node's number.

    Args:
        root: where the container sees its own control group (Linux, cgroup-v2, "cpu.max"; v1, "cpu.cfs_quota_us").
    """
    there = len(os.sched_getaffinity(0))
    quota = _quota(root)
    return there if quota is None else max(1, min(there, round(quota)))


def _quota(root: Path) -> float | None:
    try:
        if (both := root / "cpu.max").exists():
            quota, period = both.read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):
        # "max", or no control group that can be seen.
        return None
