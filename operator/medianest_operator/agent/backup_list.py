"""What `medianest-dbctl backups list` prints."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import IO, Any

from medianest_operator.backups.logical.finding import Found
from medianest_operator.backups.repository.catalog import Backup, State


def as_json(found: Found) -> str:
    """All backups, the oldest first, and what was wrong with repositories."""
    document = {"backups": [_document(backup) for backup in _ordered(found)], "failures": found.failures}
    return json.dumps(document, indent=2, ensure_ascii=False)


def as_table(found: Found, file: IO[str]) -> None:
    """The same for people, the newest first."""
    from rich.console import Console
    from rich.table import Table

    backups = _ordered(found)[::-1]
    console = Console(file=file, soft_wrap=False, width=None if file.isatty() else 200)
    several = len({backup.place.origin for backup in backups}) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ["ID", "TIER", "TAKEN", "AGE", "SIZE", "VERIFIED", "STATE", "REPOSITORY"]
    for column in [*columns, *(["DATABASE"] if several else [])]:
        table.add_column(column, no_wrap=column not in ("STATE", "VERIFIED"), overflow="fold")
    now = datetime.now(UTC)
    for backup in backups:
        cells = [
            backup.id,
            backup.tier.value,
            f"{backup.taken_at.astimezone(UTC):%Y-%m-%d %H:%M}",
            age((now - backup.taken_at).total_seconds()),
            size(backup.bytes),
            _verified(backup),
            _state(backup),
            backup.repository,
        ]
        table.add_row(*cells, *([backup.place.origin.prefix] if several else []))
    if backups:
        console.print(table)
    elif not found.failures:
        console.print("No backups.")


def _ordered(found: Found) -> list[Backup]:
    every = (backup for catalog in found.catalogs for backup in catalog.backups)
    return sorted(every, key=lambda backup: (backup.rank, backup.repository))


def age(seconds: float) -> str:
    """`3d`, `5h`, as kubectl has it."""
    if seconds < 0:
        return "in the future"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(number: int) -> str:
    """Bytes in the largest unit of 1024 that they fill."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _verified(backup: Backup) -> str:
    verification = backup.verification
    if verification is None:
        return "no"
    return f"yes, {verification.seconds:.0f}s" if verification.ok else f"failed: {verification.message}"


def _state(backup: Backup) -> str:
    if backup.state is State.COMPLETE:
        return "Complete, being read" if backup.read else "Complete"
    return f"{backup.state}: {backup.reason}"


def _document(backup: Backup) -> dict[str, Any]:
    manifest, verification = backup.manifest, backup.verification
    return {
        "id": backup.id,
        "tier": backup.tier.value,
        "namespace": backup.place.origin.namespace,
        "name": backup.place.origin.name,
        "systemIdentifier": backup.place.origin.system_identifier,
        "repository": backup.repository,
        "path": backup.place.folder,
        "state": backup.state.value,
        "reason": backup.reason or None,
        "takenAt": backup.taken_at.astimezone(UTC).isoformat(timespec="seconds"),
        "bytes": backup.bytes,
        "encrypted": any(file.encrypted for file in manifest.files) if manifest else None,
        "schemaVersion": manifest.schema_version if manifest else None,
        "rows": sum(manifest.rows.values()) if manifest else None,
        "keepUntil": manifest.keep_until.isoformat() if manifest and manifest.keep_until else None,
        "beingRead": backup.read,
        "verification": {
            "ok": verification.ok,
            "lost": verification.lost,
            "at": verification.at.isoformat(timespec="seconds"),
            "seconds": verification.seconds,
            "message": verification.message,
        }
        if verification
        else None,
    }
