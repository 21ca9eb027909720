"""A dump on its way into a repository and back: compressed, then encrypted; fetched, decrypted and decompressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from medianest_operator.backups.repository.client import Repository
from medianest_operator.backups.repository.compression import CompressionError, compress, decompress
from medianest_operator.backups.repository.encryption import EncryptionError, decrypt, encrypt
from medianest_operator.backups.repository.layout import Compression, Format, Place
from medianest_operator.backups.repository.manifest import File
from medianest_operator.backups.repository.store import Content, DamagedError, fetch

Through = Callable[[Iterator[bytes]], Iterator[bytes]]
"""Hands on what comes, and may say how far it is."""


def pack(format: Format, chunks: Iterable[bytes], recipients: Sequence[str] = ()) -> Content:
    """What pg_dump writes, uncompressed, as a file to store.

    Args:
        recipients: age's public keys; none: not encrypted.

    Raises:
        EncryptionError: a recipient is none.
    """
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            size += len(chunk)
            yield chunk

    packed = compress(counted())
    if recipients:
        packed = encrypt(packed, recipients)
    return Content(format, packed, bool(recipients), Compression.ZSTD, lambda: size)


def unpack(
    repository: Repository, place: Place, file: File, identities: Sequence[str], through: Through = iter
) -> Iterator[bytes]:
    """What pg_dump wrote; only at the end is it sure that it is all of it, and what was stored.

    Args:
        identities: age's private keys, where it is encrypted.
        through: what the stored bytes go through.

    Raises:
        DamagedError: it isn't, which may come after most of it.
        EncryptionError: it is what was stored, and none of the keys is its own.
        RepositoryError: it can't be read.
    """
    stored = fetch(repository, place, file)
    chunks = through(stored)
    try:
        if file.encrypted:
            chunks = decrypt(chunks, identities)
        if file.compression is Compression.ZSTD:
            assert file.unpacked_bytes is not None
            chunks = decompress(chunks, file.unpacked_bytes)
        yield from chunks
    except (EncryptionError, CompressionError) as error:
        # The key may be wrong, or the file: its sum tells.
        for _ in stored:
            pass
        if isinstance(error, CompressionError):
            raise DamagedError(f"{place.file(file.name)} is damaged: {error}") from error
        raise
