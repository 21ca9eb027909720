"""What is looked at before a restore in place: which backups come into question, and whether the copy fits."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, LiteralString

from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.backups.logical.finding import Found
from medianest_operator.backups.repository.catalog import Catalog, State
from medianest_operator.backups.repository.manifest import Manifest
from medianest_operator.postgres.rows import only
from medianest_operator.results.backup import Reason, RunFailure

_FULL = 0.9
"""Of a volume: the rest is for the log, and for what is written meanwhile."""
# Everybody may ask for the size of the tablespace that the own database lies in (PostgreSQL manual, 9.27.7).
_USED: LiteralString = """
SELECT pg_catalog.pg_tablespace_size(d.dattablespace) FROM pg_catalog.pg_database d
 WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
"""


def taken_before(found: Found, moment: datetime) -> Found:
    """The same without the backups whose contents are of a later moment.

    Raises:
        RunFailure: that is each of them.
    """
    catalogs = [
        Catalog(catalog.repository, [backup for backup in catalog.backups if backup.moment <= moment])
        for catalog in found.catalogs
    ]
    complete = [backup for catalog in found.catalogs for backup in catalog.backups if backup.state is State.COMPLETE]
    if complete and not any(backup.moment <= moment for backup in complete):
        oldest = min(complete, key=lambda backup: backup.moment)
        raise RunFailure(
            Reason.NO_SUCH_BACKUP,
            f"No backup is of {_shown(moment)} or earlier: the oldest, {oldest.id}, is of {_shown(oldest.moment)}.",
            transient=bool(found.failures) and found.transient,
        )
    return Found(catalogs, found.failures, found.transient)


def _shown(moment: datetime) -> str:
    return f"{moment.astimezone(UTC).isoformat(sep=' ', timespec='milliseconds').removesuffix('+00:00')} UTC"


def used_bytes(connection: Connection[Any]) -> int:
    """Of all databases of the server together.

    Raises:
        psycopg.Error: as the server says.
    """
    return int(only(connection.cursor(row_factory=tuple_row).execute(_USED))[0])


def fits(used: int, manifest: Manifest, volume: int) -> bool:
    """Whether a copy of a backup has room beside what is there: a volume that runs full takes the server down."""
    return used + manifest.database_bytes <= volume * _FULL


def room_left(connection: Connection[Any], volume: int) -> int | None:
    """Bytes that may come into the volume; `None` where its size isn't known.

    Raises:
        psycopg.Error: as the server says.
    """
    return max(0, int(volume * _FULL) - used_bytes(connection)) if volume else None


def lacks_room(used: int, manifest: Manifest, volume: int) -> str:
    """Why it doesn't fit, as a sentence."""
    return (
        f"There is not enough space: the server's databases take {used >> 20} of {volume >> 20} MiB"
        f" (spec.storage.size), and the copy of {manifest.id} takes up to {manifest.database_bytes >> 20} MiB beside"
        " them until the old database is dropped. Raise spec.storage.size first."
    )


def check_room(connection: Connection[Any], manifest: Manifest, volume: int) -> None:
    """Refuse what doesn't fit.

    Args:
        volume: its bytes; 0 where they aren't known, and anything goes.

    Raises:
        RunFailure: it doesn't.
        psycopg.Error: as the server says.
    """
    if volume and not fits(used := used_bytes(connection), manifest, volume):
        raise RunFailure(Reason.NO_ROOM, lacks_room(used, manifest, volume))
