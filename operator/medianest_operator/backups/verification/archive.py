"""A backup's dump on this machine: checked, decrypted, and its table of contents as far as a role may restore it."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medianest_operator.backups.logical.dump import DumpError, contents
from medianest_operator.backups.logical.offsets import write_with_offsets
from medianest_operator.backups.repository.catalog import Backup, reading
from medianest_operator.backups.repository.client import Repository, RepositoryError
from medianest_operator.backups.repository.encryption import EncryptionError
from medianest_operator.backups.repository.layout import Format
from medianest_operator.backups.repository.manifest import Manifest
from medianest_operator.backups.repository.packing import unpack
from medianest_operator.backups.repository.store import DamagedError
from medianest_operator.backups.verification.comparison import stored_catalog
from medianest_operator.postgres.catalog import Catalog
from medianest_operator.postgres.scratch import scratch_folder
from medianest_operator.results.backup import Reason, RunFailure

TELL_EVERY = 10.0
"""Seconds between two lines about the progress."""


@dataclass(frozen=True)
class Archive:
    """A dump in a file.

    Attributes:
        path: the file, in a folder of its own that is there until the block ends.
        manifest: the backup's.
        catalog: the stored one.
        seconds: how long it took to get here.
    """

    path: Path
    manifest: Manifest
    catalog: Catalog | None
    seconds: float


@contextmanager
def downloaded(
    repository: Repository,
    backup: Backup,
    work: Path,
    identities: Sequence[str],
    report: Callable[[str], None] = lambda line: None,
    copy_bytes: int = 0,
) -> Iterator[Archive]:
    """Bring a backup here; it is marked as being read as long as the block lasts, and removed here at its end.

    The dump lies here unpacked: pg_restore reads that faster than what is packed, and only a file by several processes.

    Args:
        copy_bytes: what the restored database takes here, beside the dump.

    Raises:
        RunFailure: it is damaged, can't be decrypted or doesn't fit here.
    """
    manifest = backup.manifest
    assert manifest is not None
    began = time.monotonic()
    with (
        told(work, manifest, copy_bytes),
        reading(repository, backup),
        scratch_folder(work, "backup-") as folder,
    ):
        path = folder / "data.dump"
        _fetch(repository, manifest, path, identities, report)
        catalog = stored_catalog(repository, manifest, identities)
        try:
            contents(path)
        except DumpError as error:
            raise RunFailure(Reason.BACKUP_DAMAGED, f"{manifest.id} can't be read: {error}") from error
        seconds = time.monotonic() - began
        report(f"downloaded {manifest.id} from {repository.name} in {seconds:.1f} s")
        yield Archive(path, manifest, catalog, seconds)


@contextmanager
def told(work: Path, manifest: Manifest, copy_bytes: int) -> Iterator[None]:
    """What goes wrong with a backup, in a run's words.

    Args:
        copy_bytes: as for `downloaded`.

    Raises:
        RunFailure: that.
    """
    try:
        yield
    except DamagedError as error:
        raise RunFailure(Reason.BACKUP_DAMAGED, str(error)) from error
    except RepositoryError as error:
        raise RunFailure(Reason.REPOSITORY_FAILED, str(error), error.transient) from error
    except EncryptionError as error:
        raise RunFailure(Reason.DECRYPTION_FAILED, f"{manifest.id}: {error}") from error
    except OSError as error:
        dump = manifest.file(Format.CUSTOM)
        needed = ((dump.restored_bytes if dump is not None else 0) + copy_bytes >> 20) + 1
        raise RunFailure(
            Reason.NO_ROOM, f"{work}: {error.strerror}; about {needed} MiB are needed there to restore {manifest.id}"
        ) from error


def _fetch(
    repository: Repository, manifest: Manifest, path: Path, identities: Sequence[str], report: Callable[[str], None]
) -> None:
    file = manifest.file(Format.CUSTOM)
    if file is None:
        raise RunFailure(Reason.NO_SUCH_BACKUP, f"{manifest.id} has no dump in pg_dump's own format to restore from")
    if file.encrypted and not identities:
        raise RunFailure(
            Reason.DECRYPTION_FAILED,
            f"{manifest.id} is encrypted: give the private key, by encryption.identitySecret or with --identity-file",
        )
    if shutil.disk_usage(path.parent).free < file.restored_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    through = partial(_progress, total=file.bytes, report=report)
    with path.open("wb") as target:
        write_with_offsets(unpack(repository, manifest.place, file, identities, through), target)


def _progress(chunks: Iterable[bytes], total: int, report: Callable[[str], None]) -> Iterator[bytes]:
    size, said = 0, time.monotonic()
    for chunk in chunks:
        size += len(chunk)
        if time.monotonic() - said >= TELL_EVERY:
            said = time.monotonic()
            report(f"downloaded {size >> 20} of {total >> 20} MiB")
        yield chunk
