"""Packing by zstd: what goes in comes out, and how many threads a container has for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medianest_operator.backups.repository.client import CHUNK
from medianest_operator.backups.repository.compression import CompressionError, compress, decompress, processors

HERE = len(os.sched_getaffinity(0))


@given(st.lists(st.binary(max_size=5000), max_size=20), st.integers(1, 4), st.integers(1, 5000))
def test_what_goes_in_comes_out(chunks: list[bytes], threads: int, cut: int) -> None:
    plain = b"".join(chunks)
    packed = b"".join(compress(chunks, threads=threads))
    pieces = [packed[start : start + cut] for start in range(0, len(packed), cut)]
    assert b"".join(decompress(pieces, len(plain))) == plain


def test_no_piece_is_large_however_well_it_packs() -> None:
    packed = b"".join(compress(bytes(CHUNK) for _ in range(100)))
    assert len(packed) < CHUNK
    sizes = [len(piece) for piece in decompress([packed], 100 * CHUNK)]
    assert sum(sizes) == 100 * CHUNK
    assert max(sizes) < 40 * CHUNK


@given(st.binary(max_size=200), st.data())
def test_a_part_of_it_is_an_error(plain: bytes, data: st.DataObject) -> None:
    packed = b"".join(compress([plain], threads=1))
    with pytest.raises(CompressionError):
        list(decompress([packed[: data.draw(st.integers(0, len(packed) - 1))]], len(plain)))


@given(st.binary(min_size=1, max_size=2000))
def test_what_follows_is_an_error(more: bytes) -> None:
    packed = b"".join(compress([b"plain"], threads=1))
    for pieces in ([packed + more], [packed, more]):
        with pytest.raises(CompressionError, match="something follows"):
            list(decompress(pieces, 5))


def test_an_error_of_what_makes_the_pieces_comes_through() -> None:
    def failing() -> list[bytes]:
        raise KeyError("the dump")

    with pytest.raises(KeyError, match="the dump"):
        list(compress(chunk for _ in range(1) for chunk in failing()))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, HERE),
        ({"cpu.max": "max 100000\n"}, HERE),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "900000 100000\n"}, min(9, HERE)),
        ({"cpu.max": "nonsense\n"}, HERE),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, HERE),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_the_containers_limit_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert processors(tmp_path) == expected
