"""The backup that a migration takes of what it is about to change.

`pre-migration/<UTC time>-<run>/data.dump` with a `manifest.json` beside it that is written last: a backup without its
manifest doesn't exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from medianest_operator.backups.repository import Repository, RepositoryError

PREFIX = "pre-migration"
DATA = "data.dump"
MANIFEST = "manifest.json"
KEEP = 3
"""How many of them stay."""


def take(repository: Repository, chunks: Iterable[bytes], run: str, facts: Mapping[str, Any]) -> str:
    """Store a dump and then its manifest; returns the backup's path, the dump's own.

    Args:
        run: an id of the migration run.
        facts: what the manifest is to say of the snapshot that was dumped: fingerprint, rows, version.

    Raises:
        RepositoryError: it can't be stored; what was written of it is removed.
        DumpError: out of `chunks`; likewise.
    """
    folder = f"{PREFIX}/{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{run[:8]}"
    digest = hashlib.sha256()

    def counted() -> Iterator[bytes]:
        for chunk in chunks:
            digest.update(chunk)
            yield chunk

    path = f"{folder}/{DATA}"
    size = repository.write(path, counted())
    document = {**facts, "run": run, "bytes": size, "sha256": digest.hexdigest(), "format": "pg_dump custom"}
    text = json.dumps(document, indent=1, sort_keys=True, default=str)
    try:
        repository.write(f"{folder}/{MANIFEST}", [text.encode()])
    except RepositoryError:
        repository.delete(path)
        raise
    return path


def read(repository: Repository, path: str) -> Iterator[bytes]:
    """A backup's dump.

    Raises:
        RepositoryError: it isn't there, or it is not what the manifest says.
    """
    folder = path.rpartition("/")[0]
    manifest = json.loads(b"".join(repository.read(f"{folder}/{MANIFEST}")))
    digest = hashlib.sha256()
    for chunk in repository.read(path):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != manifest["sha256"]:
        raise RepositoryError(f"{path} is damaged: its SHA-256 is not the manifest's")


def prune(repository: Repository, keep: int = KEEP, but: str | None = None) -> list[str]:
    """Remove all but the newest backups, and what never got a manifest; never the one at `but`.

    Returns the paths that were removed.
    """
    found: dict[str, set[str]] = {}
    for path in (item.path for item in repository.list(PREFIX)):
        folder, _, name = path.rpartition("/")
        found.setdefault(folder, set()).add(name)
    whole = sorted(folder for folder, names in found.items() if MANIFEST in names)
    current = but.rpartition("/")[0] if but else None
    doomed = {folder for folder in found if folder not in whole} | set(whole[:-keep])
    removed = []
    for folder in sorted(doomed - {current}):
        # The manifest goes first: from then on there is no such backup.
        for name in sorted(found[folder], key=lambda name: name != MANIFEST):
            repository.delete(f"{folder}/{name}")
            removed.append(f"{folder}/{name}")
    return removed
