"""SCRAM-SHA-256 verifiers as PostgreSQL stores them (PostgreSQL manual, 53.8 pg_authid; RFC 5803).

Sending the verifier instead of the password keeps the password out of the server's log; comparing against the stored
verifier tells whether a password is in force without keeping it anywhere.

A password that isn't plain ASCII is normalized first with SASLprep (RFC 4013); one that SASLprep refuses is used as it
is. Both are what PostgreSQL and libpq do (src/common/saslprep.c in their source).
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from typing import Final

ITERATIONS: Final = 4096


_PROHIBITED: Final = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    # Unassigned in Unicode 3.2, the version of RFC 3454.
    stringprep.in_table_a1,
)


def _prepared(password: str) -> str:
    """The password as it is hashed."""
    if password.isascii():
        return password
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in password
        if not stringprep.in_table_b1(character)
    )
    if not mapped or any(prohibits(character) for character in mapped for prohibits in _PROHIBITED):
        return password
    if any(stringprep.in_table_d1(character) for character in mapped) and (
        any(stringprep.in_table_d2(character) for character in mapped)
        or not (stringprep.in_table_d1(mapped[0]) and stringprep.in_table_d1(mapped[-1]))
    ):
        return password
    # With today's tables, as PostgreSQL does.
    return unicodedata.normalize("NFKC", mapped)


def _keys(password: str, salt: bytes, iterations: int) -> tuple[str, str]:
    salted = hashlib.pbkdf2_hmac("sha256", _prepared(password).encode(), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return base64.b64encode(stored).decode(), base64.b64encode(server).decode()


def verifier(password: str) -> str:
    """A new verifier of a password, with a random salt."""
    salt = secrets.token_bytes(16)
    stored, server = _keys(password, salt, ITERATIONS)
    return f"SCRAM-SHA-256${ITERATIONS}:{base64.b64encode(salt).decode()}${stored}:{server}"


def matches(password: str, stored_verifier: str | None) -> bool:
    """Whether a stored verifier is one of this password."""
    if not stored_verifier:
        return False
    try:
        scheme, parameters, keys = stored_verifier.split("$")
        iterations, salt = parameters.split(":")
        if scheme != "SCRAM-SHA-256":
            return False
        expected = _keys(password, base64.b64decode(salt), int(iterations))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(":".join(expected), keys)
