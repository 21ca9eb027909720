"""Encryption of streams: what goes in comes out for the right key, and nothing passes that was changed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyrage
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medianest_operator.backups.repository.encryption import EncryptionError, check_recipient, decrypt, encrypt

KEY = pyrage.x25519.Identity.generate()
PUBLIC = str(KEY.to_public())
PLAIN = os.urandom(300_000)
SEALED = b"".join(encrypt([PLAIN], [PUBLIC]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 200_000), max_size=8), st.integers(1, 300_000))
@example([1, 0, 700], 1)
def test_what_is_encrypted_is_decrypted(sizes: list[int], piece: int) -> None:
    chunks = [os.urandom(size) for size in sizes]
    sealed = b"".join(encrypt(iter(chunks), [PUBLIC]))
    # Each piece is two switches between threads, which take minutes for a million bytes one by one on a busy machine.
    piece = max(piece, len(sealed) // 1_000)
    pieces = (sealed[start : start + piece] for start in range(0, len(sealed), piece))
    assert b"".join(decrypt(pieces, [str(KEY)])) == b"".join(chunks)


def test_any_of_the_recipients_can_read_it() -> None:
    keys = [pyrage.x25519.Identity.generate() for _ in range(3)]
    sealed = list(encrypt([PLAIN], [f" {key.to_public()}\n" for key in keys]))
    for key in keys:
        assert b"".join(decrypt(sealed, [f"# created by age-keygen\n# public key\n{key}\n"])) == PLAIN


def test_another_key_is_told_from_damage() -> None:
    with pytest.raises(EncryptionError, match="encrypted for another key"):
        list(decrypt([SEALED], [str(pyrage.x25519.Identity.generate())]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SEALED) - 1))
def test_what_was_cut_off_is_no_end(length: int) -> None:
    with pytest.raises(EncryptionError, match="changed or cut off"):
        list(decrypt([SEALED[:length]], [str(KEY)]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found(position: int, change: int) -> None:
    changed = bytearray(SEALED)
    changed[position] ^= change
    with pytest.raises(EncryptionError):
        list(decrypt([bytes(changed)], [str(KEY)]))


def test_pieces_behind_the_end_are_found() -> None:
    with pytest.raises(EncryptionError, match="changed or cut off"):
        list(decrypt([SEALED, b"more"], [str(KEY)]))


@pytest.mark.parametrize("direction", ["encrypt", "decrypt"])
def test_a_stream_that_fails_fails_here(direction: str) -> None:
    def failing() -> Iterator[bytes]:
        yield SEALED[:100_000]
        raise KeyError("the dump")

    with pytest.raises(KeyError, match="the dump"):
        list(encrypt(failing(), [PUBLIC]) if direction == "encrypt" else decrypt(failing(), [str(KEY)]))


def test_nobody_waits_for_a_reader_that_has_gone() -> None:
    went = []

    def chunks() -> Iterator[bytes]:
        try:
            while True:
                yield PLAIN
        finally:
            went.append(True)

    source = chunks()
    stream = encrypt(source, [PUBLIC])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    source.close()  # type: ignore[attr-defined]
    assert went


@pytest.mark.parametrize(
    ("recipient", "words"),
    [
        ("age1abc", "no recipient of age"),
        ("", "no recipient of age"),
        # Named, since the key is another one in each process.
        pytest.param(str(KEY), "is a private key; give the public one", id="private"),
    ],
)
def test_a_recipient_that_is_none(recipient: str, words: str) -> None:
    with pytest.raises(EncryptionError, match=words) as caught:
        check_recipient(recipient)
    assert str(KEY) not in str(caught.value)


def test_an_identity_that_is_none_is_not_repeated() -> None:
    broken = str(KEY)[:-1]
    with pytest.raises(EncryptionError, match="can't be read") as caught:
        list(decrypt([SEALED], [broken]))
    assert broken not in str(caught.value)


@pytest.mark.parametrize("kind", ["recipient", "identity"])
def test_none_at_all(kind: str) -> None:
    with pytest.raises(EncryptionError, match=f"there is no {kind}"):
        list(encrypt([b""], []) if kind == "recipient" else decrypt([SEALED], ["# nothing\n"]))
