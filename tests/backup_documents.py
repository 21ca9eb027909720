"""A backup's manifest as the tests want one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from medianest_operator.backups.repository.layout import Place
from medianest_operator.backups.repository.manifest import File, Manifest


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
