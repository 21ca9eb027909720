"""The backup that a migration takes of what it is about to change: the tier `pre-migration` of the common layout.

It is encrypted where all others are. The rollback then needs the private key: without it no run is begun that only this
backup could revert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from medianest_operator.backups.repository import layout, retention
from medianest_operator.backups.repository.catalog import Catalog, ids_ahead, remove
from medianest_operator.backups.repository.client import NotThereError, Repository, RepositoryError
from medianest_operator.backups.repository.encryption import EncryptionError
from medianest_operator.backups.repository.facts import DatabaseFacts, catalog_content, pg_dump_version
from medianest_operator.backups.repository.layout import Format, Origin, Place, Tier
from medianest_operator.backups.repository.manifest import File, Manifest, ManifestError, operator_version
from medianest_operator.backups.repository.packing import pack, unpack
from medianest_operator.backups.repository.seals import Signature
from medianest_operator.backups.repository.store import cleanup, store
from medianest_operator.postgres.catalog import Catalog as SchemaCatalog


@dataclass(frozen=True)
class Observed:
    """What was seen on the snapshot that is dumped.

    Attributes:
        facts: of the database.
        catalog: its definitions.
        rows: of each table.
        sequences: the last value of each, and whether it was called.
        schema_version: the newest applied migration.
    """

    facts: DatabaseFacts
    catalog: SchemaCatalog
    rows: Mapping[str, int]
    sequences: Mapping[str, tuple[int, bool]]
    schema_version: str | None = None


@dataclass(frozen=True)
class Taken:
    """A backup that was stored.

    Attributes:
        path: of its data, the same in every repository.
        repositories: the names of those that have it.
        size: of the dump as it is stored, bytes.
    """

    path: str
    repositories: tuple[str, ...]
    size: int


def take(
    repositories: Sequence[Repository],
    origin: Origin,
    chunks: Iterable[bytes],
    observed: Observed,
    report: Callable[[str], None] = lambda line: None,
    recipients: Sequence[str] = (),
) -> Taken:
    """Store an uncompressed dump.

    One repository that has it is enough to go back; the others' failures are reported.

    Args:
        recipients: age's public keys; none: not encrypted.

    Raises:
        RepositoryError: no repository has it; nothing of it is left.
        DumpError: out of `chunks`; likewise.
    """
    began = datetime.now(UTC)
    known = [id_ for repository in repositories for id_ in _ids_ahead(repository, origin, began)]
    place = Place(origin, Tier.PRE_MIGRATION, layout.new_id(Tier.PRE_MIGRATION, began, known))
    dump = pack(Format.CUSTOM, chunks, recipients)
    contents = [dump, catalog_content(observed.catalog)]
    manifest, results = store(repositories, place, contents, partial(_manifest, place, began, observed))
    failures = [result for result in results.values() if not result.ok]
    if manifest is None or len(failures) == len(results):
        text = "; ".join(failure.message for failure in failures)
        raise RepositoryError(text, any(failure.transient for failure in failures))
    for failure in failures:
        report(f"warning: not backed up there: {failure.message}")
    holding = tuple(name for name, result in results.items() if result.ok)
    return Taken(place.file(dump.name), holding, manifest.files[0].bytes)


def read(repositories: Sequence[Repository], path: str, identities: Sequence[str] = ()) -> Iterator[bytes]:
    """A backup's dump, from the first repository that has it.

    Args:
        identities: age's private keys, where it is encrypted.

    Raises:
        RepositoryError: it isn't there, it is not what the manifest says, or none of the keys is its own.
    """
    repository, manifest = _find(repositories, path)
    file = manifest.file(Format.CUSTOM)
    if file is None:
        raise RepositoryError(f"{path} is damaged: its manifest doesn't know it")
    try:
        yield from unpack(repository, manifest.place, file, identities)
    except EncryptionError as error:
        raise RepositoryError(f"{path} can't be decrypted: {error}") from error


def prune(repository: Repository, origin: Origin, but: str | None = None) -> list[str]:
    """Remove all but the newest of them, and what never got a manifest; never the one at `but`.

    Returns the paths that were removed.

    Raises:
        RepositoryError: the repository can't be listed, or something in it can't be removed.
    """
    removed = cleanup(repository, origin)
    current = [layout.id_of(but)] if but else []
    backups = Catalog.read(repository, origin).backups
    counts = {Tier.PRE_MIGRATION: layout.PRE_MIGRATION_KEPT}
    for removal in retention.plan(backups, datetime.now(UTC), {}, counts, current):
        if removal.backup.tier is Tier.PRE_MIGRATION:
            removed += remove(repository, removal.backup)
    return removed


def _ids_ahead(repository: Repository, origin: Origin, now: datetime) -> list[str]:
    """One that can't be listed says so when it is written to."""
    try:
        return ids_ahead(repository, origin, now)
    except RepositoryError:
        return []


def _find(repositories: Sequence[Repository], path: str) -> tuple[Repository, Manifest]:
    manifest = f"{path.rpartition('/')[0]}/{layout.MANIFEST}"
    missing: RepositoryError | None = None
    for repository in repositories:
        try:
            found = Manifest.parse(b"".join(repository.read(manifest)), repository.keys)
            if found.signature in (Signature.GOOD, Signature.UNCHECKED):
                return repository, found
            missing = RepositoryError(f"{manifest} is not signed by a key of spec.backup.encryption.signingSecret")
        except NotThereError as error:
            missing = missing or error
        except ManifestError as error:
            missing = RepositoryError(f"{manifest} is damaged: {error}")
        except RepositoryError as error:
            # One that can't be asked at the moment may well have it.
            missing = error
    raise missing or RepositoryError(f"there is no repository to read {path} from")


def _manifest(place: Place, began: datetime, observed: Observed, files: tuple[File, ...]) -> Manifest:
    return Manifest(
        id=place.id,
        tier=place.tier,
        origin=place.origin,
        taken_at=began,
        finished_at=datetime.now(UTC),
        pg_dump_version=pg_dump_version(),
        schema_version=observed.schema_version,
        fingerprint=observed.catalog.fingerprint(),
        catalog_version=observed.catalog.version,
        rows=dict(observed.rows),
        sequences=dict(observed.sequences),
        files=files,
        operator_version=operator_version(),
        **observed.facts.for_manifest(),
    )
