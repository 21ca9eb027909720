"""One stream into several repositories at once, and a manifest last; what remains of broken attempts is removed.

A repository that fails, or is slow to fail, doesn't keep a backup out of the others. In memory are a few pieces of the
stream for each repository, however large the backup is.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from medianest_operator.backups.repository import layout
from medianest_operator.backups.repository.client import Repository, RepositoryError, StoredObject
from medianest_operator.backups.repository.layout import Compression, Format, Origin, Place
from medianest_operator.backups.repository.manifest import File, Manifest
from medianest_operator.timestamps import stamp_now

HEARTBEAT = 600.0
"""So often says a writer that it is still at work, seconds."""
ABANDONED = timedelta(hours=1)
"""After that time without a word, what has no manifest is nobody's."""
READ_AT_MOST = timedelta(hours=24)
"""After that time a reader is gone."""
# Chunks that wait for one repository, beside the parts that it is sending.
_QUEUE = 2


@dataclass(frozen=True)
class Content:
    """A file to store.

    Attributes:
        format: what it holds.
        chunks: its bytes as they are to be stored, gone through once; an exception out of it ends the whole backup.
        encrypted: whether these are age's.
        compression: what they are packed by, inside of the encryption.
        unpacked: once all chunks were gone through, how many bytes were packed.
    """

    format: Format
    chunks: Iterable[bytes]
    encrypted: bool = False
    compression: Compression = Compression.NONE
    unpacked: Callable[[], int | None] = lambda: None

    @property
    def name(self) -> str:
        """Its file's name in the backup's folder."""
        name = layout.file_name(self.format, self.compression, self.encrypted)
        assert name is not None
        return name


@dataclass(frozen=True)
class Result:
    """What became of a backup in one repository.

    Attributes:
        ok: it is there, with its manifest.
        path: its folder there.
        message: why it isn't.
        transient: whether trying again may help.
    """

    ok: bool
    path: str
    message: str = ""
    transient: bool = False


def store(
    repositories: Sequence[Repository],
    place: Place,
    contents: Iterable[Content],
    make_manifest: Callable[[tuple[File, ...]], Manifest],
) -> tuple[Manifest | None, dict[str, Result]]:
    """Store a backup.

    Returns its manifest, `None` where no repository has all files, and what became of it by the repositories' names.

    Args:
        repositories: with different names.
        place: a folder that nobody else writes to, see `layout.new_id`.
        contents: the files, one after the other.
        make_manifest: called once, with all files, after the last byte; not called where no repository has them.

    An exception out of `contents`, their chunks or `make_manifest` (and a signal's) comes through; then nothing of the
    backup is left in any repository that can still be reached.
    """
    if len({repository.name for repository in repositories}) != len(repositories):
        raise ValueError("two repositories have the same name")
    uploads = [Upload(repository, place) for repository in repositories]
    manifest: Manifest | None = None
    try:
        files = []
        for content in contents:
            files.append(_spread(content, uploads))
            if not any(upload.is_alive for upload in uploads):
                break
        alive = [upload for upload in uploads if upload.is_alive]
        if alive:
            manifest = make_manifest(tuple(files))
            for upload in alive:
                upload.begin_manifest(manifest.to_bytes(upload.repository.keys))
            for upload in alive:
                upload.end_manifest()
    except BaseException:
        for upload in uploads:
            upload.abandon()
        raise
    finally:
        for upload in uploads:
            upload.close()
    return manifest, {upload.repository.name: upload.result() for upload in uploads}


def _spread(content: Content, uploads: Sequence[Upload]) -> File:
    name = content.name
    digest, size = hashlib.sha256(), 0
    for upload in uploads:
        upload.begin(name)
    for chunk in content.chunks:
        digest.update(chunk)
        size += len(chunk)
        # Not `any`: all of them are to have it.
        if not [upload for upload in uploads if upload.give(chunk)]:
            break
    for upload in uploads:
        upload.end(size)
    return File(
        name=name,
        format=content.format,
        bytes=size,
        sha256=digest.hexdigest(),
        encrypted=content.encrypted,
        compression=content.compression,
        unpacked_bytes=content.unpacked(),
    )


class DamagedError(RepositoryError):
    """What is stored is not what was stored."""


def fetch(repository: Repository, place: Place, file: File) -> Iterator[bytes]:
    """The stored bytes of one of a backup's files; at the end it is sure that they are those that were stored.

    Raises:
        DamagedError: they aren't, which may come after most of them.
        RepositoryError: it can't be read.
    """
    path = place.file(file.name)
    digest, size = hashlib.sha256(), 0
    for chunk in repository.read(path):
        digest.update(chunk)
        size += len(chunk)
        yield chunk
    if size != file.bytes:
        raise DamagedError(f"{path} is damaged: it has {size} bytes, not the manifest's {file.bytes}")
    if digest.hexdigest() != file.sha256:
        raise DamagedError(f"{path} is damaged: its SHA-256 is not the manifest's")


class _Abandoned(Exception):
    """The stream ended early."""


class _Channel:
    """A few pieces of a stream between two threads, either of which may go away."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._ended = self._cut = self._closed = False

    def put(self, piece: bytes) -> bool:
        """Hand over a piece once there is room; false if nobody takes any."""
        with self._condition:
            self._condition.wait_for(lambda: len(self._pieces) < _QUEUE or self._closed)
            self._pieces.append(piece)
            self._condition.notify_all()
            return not self._closed

    def end(self, cut: bool = False) -> None:
        """There are no more pieces; `cut`: though there should be."""
        with self._condition:
            self._ended = True
            self._cut = self._cut or cut
            self._condition.notify_all()

    def close(self) -> None:
        """Nobody takes pieces any more."""
        with self._condition:
            self._closed = True
            self._pieces.clear()
            self._condition.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._pieces or self._ended)
                if self._cut:
                    raise _Abandoned
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
                self._condition.notify_all()
            yield piece


class Upload:
    """A backup on its way into one repository, in a thread of its own: no call to a store is made in the caller's.

    A signal is so heard at once, and a store that hangs holds up nothing but itself.
    """

    def __init__(self, repository: Repository, place: Place) -> None:
        self.repository = repository
        self._place = place
        self._marker = place.file(f"{layout.WRITING}{layout.token()}{layout.token()}.json")
        self._pool = ThreadPoolExecutor(1, f"upload-{repository.name}")
        self._channel = _Channel()
        self._task: Future[int] | None = None
        self._begun: list[str] = []
        self._error: RepositoryError | None = None
        self._said: float | None = None
        self._complete = False

    @property
    def is_alive(self) -> bool:
        """Whether it hasn't failed."""
        return self._error is None

    def begin(self, name: str) -> None:
        """Start a file."""
        if self.is_alive:
            self._channel = _Channel()
            self._start(name, self._channel)

    def give(self, chunk: bytes) -> bool:
        """Hand over the file's next piece, once there is room for it; false if the repository has failed."""
        if self.is_alive and not self._channel.put(chunk):
            self._settle()
        return self.is_alive

    def end(self, size: int) -> None:
        """End the file, and wait until the repository has it."""
        if self.is_alive:
            self._channel.end()
            stored = self._settle()
            if stored is not None and stored != size:
                self._error = RepositoryError(f"{self.repository.name} has {stored} bytes of {size}", transient=True)

    def begin_manifest(self, manifest: bytes) -> None:
        """Start to write the manifest, with which the backup will be there."""
        self._start(layout.MANIFEST, [manifest])

    def end_manifest(self) -> None:
        """Wait until the repository has it."""
        self._complete = self._settle() is not None

    def abandon(self) -> None:
        """Give all of it up; the file in the making ends nowhere."""
        self._channel.end(cut=True)
        if self._task is not None:
            self._settle()
        self._complete = False
        self._error = self._error or RepositoryError(f"{self.repository.name}: the backup was given up")

    def close(self) -> None:
        """Take away the mark of a writer at work, and where the backup isn't complete all that is there of it."""
        # The manifest goes first: from then on there is no such backup.
        doomed = [] if self._complete else self._begun[::-1]
        removal = self._pool.submit(self._remove, [*doomed, self._marker])
        self._pool.shutdown(wait=False)
        # A repository that doesn't even let its rest be removed has said so before; `cleanup` is for that.
        with suppress(RepositoryError):
            removal.result()

    def result(self) -> Result:
        """What became of it."""
        if self._complete:
            return Result(True, self._place.folder)
        error = self._error or RepositoryError(f"{self.repository.name}: the backup did not get there")
        return Result(False, self._place.folder, str(error), error.transient)

    def _start(self, name: str, pieces: Iterable[bytes]) -> None:
        path = self._place.file(name)
        self._begun.append(path)
        self._task = self._pool.submit(self._write, path, pieces)

    def _settle(self) -> int | None:
        assert self._task is not None
        try:
            return self._task.result()
        except RepositoryError as error:
            self._error = error
        except Exception as error:
            # Whatever it is, it is this repository's: the others go on.
            self._error = RepositoryError(f"{self.repository.name}: {type(error).__name__}: {error}")
        return None

    def _write(self, path: str, pieces: Iterable[bytes]) -> int:
        try:
            return self.repository.write(path, self._telling(pieces))
        finally:
            if isinstance(pieces, _Channel):
                pieces.close()

    def _telling(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces; now and then leaves word that somebody is at work here, so that nobody cleans up."""
        self._tell()
        for piece in pieces:
            yield piece
            self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if self._said is None or now - self._said > HEARTBEAT:
            text = json.dumps({"at": stamp_now()})
            self.repository.write(self._marker, [text.encode()])
            self._said = now

    def _remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.repository.delete(path)


def cleanup(repository: Repository, origin: Origin) -> list[str]:
    """Remove what broken attempts have left of a database's backups; returns the paths that are gone.

    That is what a killed program was writing or removing, by its mark, where nothing was written beside it for an hour
    before the newest object; and the marks of writers and readers that are gone. What has neither a manifest nor such a
    mark is nobody's attempt: somebody may be copying a backup in, its manifest last. The times are the repository's
    own: a clock that is wrong here does no harm.

    Raises:
        RepositoryError: it can't be listed, or something can't be removed.
    """
    objects = repository.list(origin.prefix)
    unfinished = repository.unfinished(origin.prefix)
    newest = max((item.modified for item in [*objects, *unfinished]), default=None)
    if newest is None:
        return []
    doomed = [item.path for item in objects if item.path in _left_over(objects, newest)]
    for path in doomed:
        repository.delete(path)
    for item in unfinished:
        if layout.parse(item.path.rpartition("#")[0]) is not None and newest - item.modified > ABANDONED:
            repository.discard(item)
            doomed.append(item.path)
    return doomed


def _left_over(objects: Sequence[StoredObject], newest: datetime) -> set[str]:
    folders: dict[Place, dict[str, StoredObject]] = defaultdict(dict)
    for item in objects:
        parsed = layout.parse(item.path)
        if parsed is not None:
            folders[parsed[0]][parsed[1]] = item
    doomed = set()
    for files in folders.values():
        age = newest - max(item.modified for item in files.values())
        if layout.MANIFEST not in files and any(name.startswith(layout.WRITING) for name in files):
            doomed |= {item.path for item in files.values()} if age > ABANDONED else set()
            continue
        for name, item in files.items():
            limit = {layout.READING: READ_AT_MOST, layout.WRITING: ABANDONED}.get(name.partition("-")[0] + "-")
            if limit is not None and newest - item.modified > limit:
                doomed.add(item.path)
    return doomed
