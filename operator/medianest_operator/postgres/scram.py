"""SCRAM-SHA-256 verifiers as PostgreSQL stores them (PostgreSQL manual, 53.8 pg_authid; RFC 5803).

Sending the verifier instead of the password keeps the password out of the server's log; comparing against the stored
verifier tells whether a password is in force without keeping it anywhere.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Final

ITERATIONS: Final = 4096


def _keys(password: str, salt: bytes, iterations: int) -> tuple[str, str]:
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
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
