"""What libpq and the server say of an error, as a clause for a sentence of ours."""

from __future__ import annotations

import re
from typing import Final

_HINTS: Final = re.compile(r"\s*Is the server running (?:on that host|locally)[^?]*\?", re.DOTALL)
_ADDRESS: Final = re.compile(r"connection to server (?:at|on socket) [^:]*?(?:, port \d+)? failed:\s*", re.DOTALL)
_LEVEL: Final = re.compile(r"\b(?:FATAL|ERROR|PANIC):\s+")


def as_clause(text: str) -> str:
    """One line without the address, the level, libpq's hint and the full stop: `connection refused`."""
    clause = _LEVEL.sub("", _ADDRESS.sub("", _HINTS.sub("", text)))
    clause = " ".join(clause.split()).rstrip(".!? ")
    # A name in capitals stays as it is: SSL, TLS.
    return clause[:1].lower() + clause[1:] if clause[1:2].islower() else clause
