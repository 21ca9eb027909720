"""Keys that name a built thing by what it was built from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

KEY_LENGTH = 16


def content_key(root: Path, files: Iterable[Path], *facts: str) -> str:
    """A short name for the content of files below a folder and some further facts.

    The files' order, times and owners don't matter; their names below the folder, their content and whether they can be
    executed do. A file that is missing counts as such.
    """
    digest = hashlib.sha256()

    def feed(text: bytes) -> None:
        digest.update(len(text).to_bytes(8, "big"))
        digest.update(text)

    for fact in facts:
        feed(fact.encode())
    for path in sorted(set(files)):
        feed(str(path.relative_to(root)).encode())
        if path.is_symlink():
            feed(b"link")
            feed(str(path.readlink()).encode())
        elif path.is_file():
            feed(b"executable" if path.stat().st_mode & 0o100 else b"file")
            feed(path.read_bytes())
        else:
            feed(b"missing")
    return digest.hexdigest()[:KEY_LENGTH]
