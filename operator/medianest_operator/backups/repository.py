"""Where backups are kept: a place that takes whole objects under a path, and gives them back.

What a migration needs of it is small: write a stream so that it is there whole or not at all, read it, list, delete.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

CHUNK = 1 << 20
_PARTIAL = ".partial"


class RepositoryError(Exception):
    """The place can't be written or read; the text says what and why."""


class Repository(Protocol):
    """Objects under paths with slashes. An object appears whole, or not at all."""

    def write(self, path: str, chunks: Iterable[bytes]) -> int:
        """Store a stream and return its size in bytes; an exception out of `chunks` leaves nothing behind."""

    def read(self, path: str) -> Iterator[bytes]:
        """The object's bytes in pieces."""

    def list(self, prefix: str) -> list[str]:
        """The paths of the whole objects below a prefix, sorted."""

    def delete(self, path: str) -> None:
        """Remove an object; one that isn't there is no error."""


class DirectoryRepository:
    """A folder, which is what a mounted volume is.

    Raises, from every method:
        RepositoryError: the file system refuses (full, read-only, not mounted).
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, path: str, chunks: Iterable[bytes]) -> int:
        target = self._root / path
        partial = target.with_name(target.name + _PARTIAL)
        size = 0
        with self._told(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
                        size += len(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                partial.rename(target)
                _sync_folder(target.parent)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        return size

    def read(self, path: str) -> Iterator[bytes]:
        with self._told(path), (self._root / path).open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def list(self, prefix: str) -> list[str]:
        with self._told(prefix):
            found = (self._root / prefix).rglob("*")
            files = (item for item in found if item.is_file() and not item.name.endswith(_PARTIAL))
            return sorted(str(item.relative_to(self._root)) for item in files)

    def delete(self, path: str) -> None:
        with self._told(path):
            target = self._root / path
            target.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                target.parent.rmdir()

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RepositoryError(f"{path} in the backup volume: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """A new name is safe only once its folder is on the disk as well."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
