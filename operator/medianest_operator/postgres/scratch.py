"""Folders for copies of a database, which nobody may leave behind: not even a process that is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_SUFFIX = ".held"


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder that goes at the block's end; those of its kind go first that a killed process left there.

    A lock on a file beside it says that somebody is at work in it: the kernel takes the lock away with the process.

    Args:
        prefix: of its name, which says what kind it is.

    Raises:
        OSError: it can't be made.
    """
    parent = parent.resolve()
    _sweep(parent, prefix)
    with _held(parent, prefix) as marker:
        folder = marker.with_suffix("")
        folder.mkdir(0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(parent: Path, prefix: str) -> Iterator[Path]:
    """A file that is locked as long as the block lasts."""
    while True:
        marker = parent / f"{prefix}{secrets.token_hex(4)}{_SUFFIX}"
        handle = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        # Somebody who sweeps may have been quicker, and removed it.
        if _lock(handle) and os.fstat(handle).st_nlink:
            break
        os.close(handle)
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)
        os.close(handle)


def _sweep(parent: Path, prefix: str) -> None:
    for marker in parent.glob(f"{prefix}*{_SUFFIX}"):
        # What is another user's stays: it is for that one to remove.
        with contextlib.suppress(OSError):
            handle = os.open(marker, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _lock(handle):
                    shutil.rmtree(marker.with_suffix(""), ignore_errors=True)
                    marker.unlink(missing_ok=True)
            finally:
                os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
