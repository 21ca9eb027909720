"""A document's own checksum, and its signature: whether it is as it was written, and by whom it was.

The checksum shows damage. The signature is an HMAC (RFC 2104) by a key that no repository holds: whoever can write into
a bucket, and has age's public key, can encrypt a dump of his own, but not say that it is a backup. Both are over the
document's canonical JSON without them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

CHECKSUM = "checksum"
SIGNATURE = "signature"
SHORTEST_KEY = 32
"""Bytes; HMAC-SHA-256 gains nothing by more (RFC 2104, section 3)."""


class SealError(ValueError):
    """A document isn't as it was written; the text says how."""


class Signature(StrEnum):
    """Whether a document was signed by one of the keys."""

    UNCHECKED = "Unchecked"
    """There is no key to check it with."""
    GOOD = "Good"
    MISSING = "Missing"
    WRONG = "Wrong"


def seal(document: Mapping[str, Any], keys: Sequence[bytes]) -> dict[str, Any]:
    """A document with its checksum and, where there is a key, signed by the first."""
    text = _canonical(document)
    sealed = {**document, CHECKSUM: hashlib.sha256(text).hexdigest()}
    if keys:
        sealed[SIGNATURE] = hmac.new(keys[0], text, hashlib.sha256).hexdigest()
    return sealed


def unseal(text: bytes, keys: Sequence[bytes]) -> tuple[dict[str, Any], bool, Signature]:
    """A document without its seals, whether it has a checksum, and what its signature is.

    Raises:
        SealError: it is no JSON object, names something twice, or isn't what its checksum is of.
    """
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise SealError(f"it is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise SealError("it is no JSON object")
    checksum, signature = document.pop(CHECKSUM, None), document.pop(SIGNATURE, None)
    found = _canonical(document)
    if checksum is not None and checksum != hashlib.sha256(found).hexdigest():
        raise SealError("its checksum is that of another content")
    if not keys:
        return document, checksum is not None, Signature.UNCHECKED
    if not isinstance(signature, str):
        return document, checksum is not None, Signature.MISSING
    wanted = (hmac.new(key, found, hashlib.sha256).hexdigest() for key in keys)
    is_good = any(hmac.compare_digest(one, signature.encode("ascii", "replace").decode()) for one in wanted)
    return document, checksum is not None, Signature.GOOD if is_good else Signature.WRONG


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise SealError("it names something twice")
    return found
