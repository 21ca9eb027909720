"""Backups to put into repositories, and what is to be seen of them there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backup_documents import sample_manifest
from medianest_operator.backups.repository import layout
from medianest_operator.backups.repository.catalog import Backup, Catalog, ids_ahead
from medianest_operator.backups.repository.client import Repository
from medianest_operator.backups.repository.layout import Format, Origin, Place, Tier
from medianest_operator.backups.repository.manifest import Manifest
from medianest_operator.backups.repository.store import Content, Result, store

ORIGIN = Origin("media", "medianest", "7300000000000000001")
OTHER = Origin("media", "medianest", "7300000000000000002")
MEBIBYTE = 1 << 20
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "operator")}


def noise(mebibytes: int) -> Iterator[bytes]:
    for _ in range(mebibytes):
        yield os.urandom(MEBIBYTE)


def back_up(
    repositories: Sequence[Repository],
    chunks: Iterable[bytes] | None = None,
    origin: Origin = ORIGIN,
    tier: Tier = Tier.DAILY,
) -> tuple[Place, dict[str, Result]]:
    now = datetime.now(UTC)
    known = [id_ for repository in repositories for id_ in ids_ahead(repository, origin, now)]
    place = Place(origin, tier, layout.new_id(tier, now, known))
    contents = [Content(Format.CUSTOM, noise(2) if chunks is None else chunks), Content(Format.SCHEMA, [b"schema"])]
    _, results = store(repositories, place, contents, lambda files: sample_manifest(place, datetime.now(UTC), files))
    return place, results


def one(repository: Repository, place: Place) -> Backup:
    [found] = [backup for backup in Catalog.read(repository).backups if backup.place == place]
    return found


def paths(repository: Repository, prefix: str = "") -> list[str]:
    return [item.path for item in repository.list(prefix)]


def chunks(size: int, piece: int = 1 << 20) -> Iterator[bytes]:
    block = os.urandom(piece)
    for start in range(0, size, piece):
        yield block[: min(piece, size - start)]


def manifest_of(repository: Repository, place: Place) -> Manifest:
    manifest = one(repository, place).manifest
    assert manifest is not None
    return manifest


def age_files(folder: Path, names: Iterable[str], age: timedelta) -> None:
    moment = (datetime.now(UTC) - age).timestamp()
    for name in names:
        os.utime(folder / name, (moment, moment))
