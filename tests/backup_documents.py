"""A backup's manifest as the tests want one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from medianest_operator.backups.repository.layout import Place
from medianest_operator.backups.repository.manifest import File, Manifest


def resealed(document: dict[str, Any]) -> str:
    """A document that was changed, with a checksum that fits: as whoever can write into a repository makes it."""
    plain = {name: value for name, value in document.items() if name not in ("checksum", "signature")}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return json.dumps(plain | {"checksum": hashlib.sha256(text.encode()).hexdigest()})


def edit_document(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a document in a repository; its checksum fits again."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(resealed(document))


def sample_manifest(place: Place, taken: datetime, files: tuple[File, ...], **other: Any) -> Manifest:
    """A complete one.

    Args:
        other: what it says otherwise than all.
    """
    facts: dict[str, Any] = {
        "id": place.id,
        "tier": place.tier,
        "origin": place.origin,
        "dbname": "medianest",
        "owner": "medianest",
        "taken_at": taken,
        "finished_at": taken,
        "postgres_version": "15.4",
        "pg_dump_version": "15.4",
        "encoding": "UTF8",
        "collate": "C.UTF-8",
        "ctype": "C.UTF-8",
        "fingerprint": "0" * 64,
        "rows": {"users": 3},
        "sequences": {},
        "files": files,
    }
    return Manifest(**facts | other)
