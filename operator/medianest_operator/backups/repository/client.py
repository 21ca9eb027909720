"""Where backups are kept: a folder or an S3-compatible bucket that takes whole objects and gives them back.

Both are spoken to through `obstore`, so there is one way to write, read, list and delete. What an object may hold has
no bound in memory; in a bucket its size has one: 10,000 parts (Amazon S3 User Guide, "multipart upload limits").
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import obstore

from medianest_operator.backups.repository.failures import NotThereError, RepositoryError, explain

if TYPE_CHECKING:
    from obstore import ObjectMeta, WritableFile
    from obstore.store import ObjectStore

    from medianest_operator.backups.repository.locations import Patience

__all__ = [
    "CHUNK",
    "PART",
    "NotThereError",
    "Repository",
    "RepositoryError",
    "StoredObject",
    "open_folder",
    "open_repository",
]

CHUNK = 1 << 20
"""A good size of the pieces that are handed to `Repository.write`, bytes."""
PART = 6 << 20
"""What is sent to a bucket in one request, bytes: one is on its way while the next one is filled."""
RANGE = 2 << 20
"""What is asked of a repository in one request, bytes."""
READ_AHEAD = 2
# What object_store names a file that is being written, before it renames it.
_UNFINISHED = re.compile(r"#\d+$")
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
# A file system's own folder in its root, which only root may look into.
_FOREIGN = "lost+found"


@dataclass(frozen=True, slots=True, order=True)
class StoredObject:
    """An object that is there whole.

    Attributes:
        path: below the repository or its view.
        size: bytes.
        modified: when it was written, by the repository's own clock.
    """

    path: str
    size: int
    modified: datetime


_Objects: TypeAlias = list[StoredObject]


class Repository:
    """Objects under paths with slashes. An object appears whole, or not at all.

    Args:
        name: what results call it.
        url: for people; without secrets.
        connect: makes the store, at the first use.
        folder: where the objects are files.
        prefix: of all paths, empty or with a slash at its end.

    Raises, from every method:
        RepositoryError: what went wrong, where, and what to do about it.
    """

    def __init__(
        self, name: str, url: str, connect: Callable[[], ObjectStore], folder: Path | None = None, prefix: str = ""
    ) -> None:
        self.name = name
        self.url = url
        self._connect = connect
        self._folder = folder
        self._prefix = prefix
        # The url tells it already.
        self._told_prefix = prefix
        self._connected: ObjectStore | None = None
        self.keys: Sequence[bytes] = ()
        """What signs documents here: the first signs, any of them is believed. Without one nothing is checked."""

    def __repr__(self) -> str:
        return f"<Repository {self.name} {self.url}/{self._prefix.removeprefix(self._told_prefix)}>"

    def volume_use(self) -> tuple[int, int] | None:
        """Bytes in use and in all of the file system that a folder lies on; `None` of a bucket."""
        if self._folder is None:
            return None
        try:
            found = os.statvfs(self._folder)
        except OSError:
            # There is nothing yet.
            return None
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        return used, used + found.f_bavail * found.f_frsize

    def below(self, prefix: str) -> Repository:
        """A view of what lies under a prefix: its paths start there."""
        view = Repository(self.name, self.url, self._store, self._folder, f"{self._key(prefix)}/")
        view._told_prefix = self._told_prefix
        view._connected = self._connected
        view.keys = self.keys
        return view

    def write(self, path: str, chunks: Iterable[bytes]) -> int:
        """Store a stream and return its size in bytes.

        Anything raised by `chunks` comes through, and then nothing is left behind: the file in the making is removed,
        the upload in parts is given up. In a folder the object is on the disk when this returns, with the names of the
        folders that lead to it.
        """
        key = self._key(path)
        with self._told("write", path):
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            writer = obstore.open_writer(self._store(), key, buffer_size=PART, max_concurrency=1)
        size = 0
        try:
            for part in _parts(chunks):
                with self._told("write", path):
                    writer.write(part)
                size += len(part)
        except BaseException:
            _abandon(writer)
            raise
        try:
            with self._told("write", path):
                writer.close()
                if self._folder is not None:
                    _put_on_disk(self._folder, key)
        except BaseException:
            # Whether the end of an upload in parts was heard is unknown then, and no such path is written twice.
            if size > PART:
                with suppress(RepositoryError):
                    self.delete(path)
            raise
        return size

    def read(self, path: str) -> Iterator[bytes]:
        """The object's bytes in pieces, a few of them read ahead.

        Each piece is a request of its own, so that a connection that breaks costs one piece and not the whole.
        """
        key = self._key(path)
        with self._told("read", path):
            size = obstore.head(self._store(), key)["size"]

        def fetch(start: int) -> bytes:
            length = min(RANGE, size - start)
            with self._told("read", path):
                data = obstore.get_range(self._store(), key, start=start, length=length).to_bytes()
            if len(data) != length:
                raise RepositoryError(self._at(path, "read", "it became shorter while it was read"))
            return data

        if size <= RANGE:
            if size:
                yield fetch(0)
            return
        with ThreadPoolExecutor(READ_AHEAD, "read-ahead") as pool:
            waiting: deque[Future[bytes]] = deque()
            try:
                for start in range(0, size, RANGE):
                    waiting.append(pool.submit(fetch, start))
                    if len(waiting) > READ_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def list(self, prefix: str = "") -> _Objects:
        """The whole objects under a prefix, which ends at a slash of their paths; sorted by path.

        A folder that isn't there yet has none.
        """
        key = self._key(prefix) if prefix else self._prefix.rstrip("/")
        if self._folder is not None and not self._folder.is_dir():
            return []
        with self._told("list", prefix):
            found = [item for item in self._listed(key) if self._is_own(item["path"])]
        cut = len(self._prefix)
        return sorted(StoredObject(item["path"][cut:], item["size"], item["last_modified"]) for item in found)

    def check_there(self) -> None:
        """Tell a folder that nobody has made from one that is empty; it is made with the first backup.

        Raises:
            RepositoryError: there is no such folder.
        """
        if self._folder is not None and not self._folder.is_dir():
            raise RepositoryError(f"repository {self.name}: there is no folder {self._folder}")

    def delete(self, path: str) -> None:
        """Remove an object; one that isn't there is no error."""
        key = self._key(path)
        if self._folder is not None and not self._folder.is_dir():
            return
        if not self._is_own(key):
            raise RepositoryError(self._at(path, "delete", "it is reached by a symbolic link, and may be another's"))
        with self._told("delete", path), suppress(FileNotFoundError):
            obstore.delete(self._store(), key)

    def _is_own(self, key: str) -> bool:
        """Whether it lies in the folder itself: a link that somebody laid there may lead to another repository."""
        if self._folder is None:
            return True
        parent = (self._folder / key).parent
        return parent.resolve() == self._folder.resolve() / parent.relative_to(self._folder)

    def unfinished(self, prefix: str = "") -> _Objects:
        """Files under a prefix that were being written when their writer was killed, or still are; none in a bucket.

        An upload in parts that nobody ends stays invisible in a bucket: a lifecycle rule of the bucket removes it
        (`AbortIncompleteMultipartUpload`).
        """
        if self._folder is None:
            return []
        root = self._folder / (self._key(prefix) if prefix else self._prefix)
        found = []
        with self._told("list", prefix):
            for file in root.rglob("*") if root.is_dir() else ():
                if not (_UNFINISHED.search(file.name) and self._is_own(str(file.relative_to(self._folder)))):
                    continue
                with suppress(FileNotFoundError):
                    state = file.stat()
                    path = str(file.relative_to(self._folder))[len(self._prefix) :]
                    found.append(StoredObject(path, state.st_size, datetime.fromtimestamp(state.st_mtime, UTC)))
        return sorted(found)

    def discard(self, unfinished: StoredObject) -> None:
        """Remove one of the `unfinished`."""
        assert self._folder is not None
        assert _UNFINISHED.search(unfinished.path)
        with self._told("delete", unfinished.path):
            (self._folder / f"{self._prefix}{unfinished.path}").unlink(missing_ok=True)

    def _listed(self, key: str) -> Iterator[ObjectMeta]:
        places = [key]
        if not key and self._folder is not None:
            # Not a volume's own folder in its root, which nobody may look into.
            root = obstore.list_with_delimiter(self._store())
            yield from root["objects"]
            places = [place for place in root["common_prefixes"] if place != _FOREIGN]
        for place in places:
            for batch in obstore.list(self._store(), place):
                yield from batch

    def _store(self) -> ObjectStore:
        if self._connected is None:
            self._connected = self._connect()
        return self._connected

    def _key(self, path: str) -> str:
        for segment in path.split("/"):
            if not _SEGMENT.fullmatch(segment):
                raise RepositoryError(self._at(path, "use", f"{segment!r} can't be a part of a path"))
        return f"{self._prefix}{path}"

    @contextmanager
    def _told(self, verb: str, path: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except (OSError, ValueError, obstore.exceptions.BaseError) as error:
            told = explain(error, time.monotonic() - began)
            kind = NotThereError if told.missing else RepositoryError
            raise kind(self._at(path, verb, told.text), told.transient) from error

    def _at(self, path: str, verb: str, text: str) -> str:
        what = f"{self._prefix}{path}".removeprefix(self._told_prefix).rstrip("/")
        return f"repository {self.name} ({self.url}): can't {verb} {what or 'it'}: {text}"


def open_folder(path: Path, name: str | None = None) -> Repository:
    """A folder, such as a mounted volume; it is made at the first write."""
    from medianest_operator.backups.repository.locations import folder_store

    return Repository(name or str(path), f"file://{path.absolute()}", lambda: folder_store(path), path)


def open_repository(text: str, patience: Patience | None = None) -> Repository:
    """The repository of a command line: `NAME=URL` or `URL`, see `locations.parse`.

    Args:
        patience: how long a bucket's server may take; `None` is right but for tests.

    Raises:
        RepositoryError: the text is no such location, or a file that it names can't be read.
    """
    from medianest_operator.backups.repository.locations import parse, s3_store

    location = parse(text)
    if patience is not None:
        location = replace(location, patience=patience)
    if location.folder is not None:
        return open_folder(location.folder, location.name)
    prefix = f"{location.prefix}/" if location.prefix else ""
    return Repository(location.name, location.url, lambda: s3_store(location), prefix=prefix)


def _abandon(writer: WritableFile) -> None:
    # The error that led here is the one to tell. A part that is still on its way would outlive the upload that it
    # belongs to (Amazon S3 API, AbortMultipartUpload), so that it is awaited: a write, even of nothing, does that.
    with suppress(OSError, obstore.exceptions.BaseError):
        writer.write(b"")
    with suppress(OSError, obstore.exceptions.BaseError):
        writer.__exit__(Exception, None, None)


def _parts(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that are sent as they are: each write waits until the one before has arrived."""
    held: list[memoryview] = []
    size = 0
    for chunk in chunks:
        rest = memoryview(chunk)
        while size + len(rest) >= PART:
            room = PART - size
            yield b"".join([*held, rest[:room]])
            held, size, rest = [], 0, rest[room:]
        if rest:
            held.append(rest)
            size += len(rest)
    if held:
        yield b"".join(held)


def _put_on_disk(folder: Path, key: str) -> None:
    """A new name is safe only once its folder is on the disk as well, and that one's name in its own."""
    file = folder / key
    for path in (file, *file.parents):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if path == folder:
            break
