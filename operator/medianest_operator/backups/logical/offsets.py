"""Where the rows of each table begin in a dump, noted in its own table of contents.

pg_dump notes that where it writes into a file. What comes through a pipe lacks it, and each process of `pg_restore
--jobs` then looks through the rows of all tables for those of its own (PostgreSQL's source, pg_backup_custom.c).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

_MAGIC: Final = b"PGDMP"
_VERSION: Final = (1, 14)
"""Of the archives that pg_dump 12 to 15 writes (pg_backup_archiver.h)."""
_CUSTOM: Final = 1
_TABLE_DATA, _UNKNOWN, _KNOWN = 1, 1, 2
"""A block of a table's rows; whether its place is noted."""
# No row holds a zero byte, and of a piece's length at most four in sequence are zero.
_END: Final = bytes(5)


class _Unknown(Exception):
    """It is no archive of the known kind, or its end."""


class _Stream:
    """Bytes that come in pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece, self._at, self._before = b"", 0, 0

    @property
    def position(self) -> int:
        return self._before + self._at

    def take(self, count: int) -> bytes:
        while len(self._piece) - self._at < count:
            self._more()
        found = self._piece[self._at : self._at + count]
        self._at += count
        return found

    def skip_to_end_of_rows(self) -> None:
        while (found := self._piece.find(_END, self._at)) < 0:
            # The end may have come in part.
            self._at = max(self._at, len(self._piece) - len(_END) + 1)
            self._more()
        self._at = found + len(_END)

    def integer(self) -> int:
        sign, *_ = found = self.take(5)
        value = int.from_bytes(found[1:], "little")
        return -value if sign else value

    def text(self) -> bytes | None:
        length = self.integer()
        return None if length < 0 else self.take(length)

    def _more(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise _Unknown
        self._before += self._at
        self._piece, self._at = self._piece[self._at :] + piece, 0


def write_with_offsets(chunks: Iterable[bytes], target: BinaryIO) -> None:
    """Write a dump into a file, and note there where each table's rows are. One of another kind is written as it is.

    Args:
        target: an empty file that can be written anywhere.
    """
    pieces = _written(chunks, target)
    places: dict[int, int] = {}
    found: dict[int, int] = {}
    try:
        stream = _Stream(pieces)
        places = _read_toc(stream)
        while True:
            start = stream.position
            if stream.take(1)[0] != _TABLE_DATA:
                raise _Unknown
            found[stream.integer()] = start
            # A table without rows ends with the first piece's length.
            if stream.integer():
                stream.skip_to_end_of_rows()
    except _Unknown:
        pass
    for _ in pieces:
        pass
    for number, start in found.items():
        if number in places:
            target.seek(places[number])
            target.write(bytes([_KNOWN]) + start.to_bytes(8, "little"))
    target.flush()


def _written(chunks: Iterable[bytes], target: BinaryIO) -> Iterator[bytes]:
    for chunk in chunks:
        target.write(chunk)
        yield chunk


def _read_toc(stream: _Stream) -> dict[int, int]:
    """Where it is to be noted for each entry whose data lie at an unknown place, by the entry's number."""
    if stream.take(5) != _MAGIC:
        raise _Unknown
    major, minor, _, of_integers, of_offsets, format_ = stream.take(6)
    if ((major, minor), of_integers, of_offsets, format_) != (_VERSION, 4, 8, _CUSTOM):
        raise _Unknown
    # How it is packed, and when it was made.
    for _ in range(8):
        stream.integer()
    # Of which database, by which server and pg_dump.
    for _ in range(3):
        stream.text()
    places = {}
    for _ in range(stream.integer()):
        number = stream.integer()
        stream.integer()
        for _ in range(4):
            stream.text()
        stream.integer()
        for _ in range(8):
            stream.text()
        while stream.text() is not None:
            pass
        if stream.take(1)[0] == _UNKNOWN:
            places[number] = stream.position - 1
        stream.take(8)
    return places
