"""Client-side encryption of backups by age (https://age-encryption.org/v1), as streams.

Who backs up needs the recipients' public keys alone; an identity, the private key, is only needed to restore.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyrage

PIECE = 1 << 20
"""About the size of the pieces that come out, bytes."""


class EncryptionError(Exception):
    """A key is none, or it is the wrong one, or the bytes are not what was encrypted; the text says which."""


def check_recipient(text: str) -> str:
    """A public key (`age1...`, or an SSH one), as it is used, without blanks around it.

    Raises:
        EncryptionError: it is none; a private key in its place isn't repeated in the text.
    """
    _recipient(text)
    return text.strip()


def encrypt(chunks: Iterable[bytes], recipients: Sequence[str]) -> Iterator[bytes]:
    """What any of the recipients can decrypt, in pieces.

    An exception out of `chunks` comes through.

    Raises:
        EncryptionError: a recipient is none, or there is none.
    """
    keys = [_recipient(text) for text in recipients]
    if not keys:
        raise EncryptionError("there is no recipient to encrypt for")
    return _piped(chunks, lambda source, target: pyrage.encrypt_io(source, target, keys))


def decrypt(chunks: Iterable[bytes], identities: Sequence[str]) -> Iterator[bytes]:
    """The plain bytes, in pieces, each of them authenticated; only at the end is it sure that none is missing.

    Args:
        identities: private keys (`AGE-SECRET-KEY-1...`), or the texts of files with some, a line each.

    Raises:
        EncryptionError: none of the identities fits, or the bytes were changed or cut off.
    """
    keys = [key for text in identities for key in _identities(text)]
    if not keys:
        raise EncryptionError("there is no identity (private key) to decrypt with")
    return _piped(chunks, lambda source, target: pyrage.decrypt_io(source, target, keys))


def _recipient(text: str) -> Any:
    text = text.strip()
    try:
        if text.startswith("ssh-"):
            return pyrage.ssh.Recipient.from_str(text)
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        if "SECRET" in text.upper() or "PRIVATE" in text.upper():
            raise EncryptionError("a recipient is a private key; give the public one, which starts with age1") from None
        raise EncryptionError(f"{text[:100]!r} is no recipient of age (age1...): {error}") from error


def _identities(text: str) -> Iterator[Any]:
    try:
        if "PRIVATE KEY-----" in text:
            yield pyrage.ssh.Identity.from_buffer(text.encode())
            return
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                yield pyrage.x25519.Identity.from_str(line.strip())
    except pyrage.IdentityError as error:
        # Nothing of the text: it may be a private key with a letter missing.
        raise EncryptionError(f"an identity can't be read, it has to be AGE-SECRET-KEY-1...: {error}") from None


def _piped(chunks: Iterable[bytes], work: Callable[[_Source, _Target], object]) -> Iterator[bytes]:
    """Lead chunks through `work`, which pulls and pushes, in a thread of its own.

    The chunks are gone through in the caller's thread, so that their exceptions, and signals, arrive there.
    """
    pipe = _Pipe()
    thread = threading.Thread(target=pipe.run, args=(work,), name="age", daemon=True)
    thread.start()
    try:
        for chunk in chunks:
            if chunk and not pipe.give(chunk):
                break
            yield from pipe.taken()
        pipe.end()
        thread.join()
        yield from pipe.taken()
    finally:
        pipe.end(cut=True)
        thread.join()
    if pipe.error is not None:
        raise _told(pipe.error) from pipe.error


def _told(error: BaseException) -> EncryptionError:
    text = str(error).strip()
    if "no matching keys" in text.lower():
        return EncryptionError(
            "it is encrypted for another key than those given; encryption.identitySecret (--identity-file) may hold"
            " several, the earlier ones too"
        )
    return EncryptionError(f"the encrypted file was changed or cut off, or is none of age's: {text.lower()}")


class _Pipe:
    """Both ends of a thread that turns a stream into another; holds little more than one chunk of each."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._condition = threading.Condition()
        self._given = b""
        self._position = 0
        self._ended = False
        self._cut = False
        self._done = False
        self._made: deque[bytes] = deque()
        self._making = bytearray()

    def run(self, work: Callable[[_Source, _Target], object]) -> None:
        try:
            work(_Source(self), _Target(self))
        except BaseException as error:  # told by the other end
            self.error = error
        with self._condition:
            self._done = True
            self._flush()
            self._condition.notify_all()

    def give(self, chunk: bytes) -> bool:
        """Hand over a chunk once the one before is used up; false if the work has ended."""
        with self._condition:
            self._condition.wait_for(lambda: self._position >= len(self._given) or self._done)
            self._given, self._position = chunk, 0
            self._condition.notify_all()
            return not self._done

    def end(self, cut: bool = False) -> None:
        """No more chunks; `cut` ends the work where it is."""
        with self._condition:
            self._ended = True
            self._cut = self._cut or cut
            self._condition.notify_all()

    def taken(self) -> Iterator[bytes]:
        while True:
            with self._condition:
                if not self._made:
                    return
                piece = self._made.popleft()
            yield piece

    def read(self, size: int) -> bytes:
        with self._condition:
            self._condition.wait_for(lambda: self._position < len(self._given) or self._ended)
            if self._cut:
                raise BrokenPipeError("nobody wants it any more")
            piece = self._given[self._position : self._position + size]
            self._position += len(piece)
            if self._position >= len(self._given):
                self._condition.notify_all()
            return piece

    def write(self, data: bytes) -> int:
        with self._condition:
            if self._cut:
                raise BrokenPipeError("nobody wants it any more")
            self._making += data
            if len(self._making) >= PIECE:
                self._flush()
        return len(data)

    def _flush(self) -> None:
        if self._making:
            self._made.append(bytes(self._making))
            self._making.clear()


class _Source:
    """What pyrage reads."""

    def __init__(self, pipe: _Pipe) -> None:
        self._pipe = pipe

    def read(self, size: int = -1, /) -> bytes:
        return self._pipe.read(size if size >= 0 else PIECE)


class _Target:
    """What pyrage writes to."""

    def __init__(self, pipe: _Pipe) -> None:
        self._pipe = pipe

    def write(self, data: bytes, /) -> int:
        return self._pipe.write(bytes(data))

    def flush(self) -> None:
        """Pieces are handed on when they are large enough."""
