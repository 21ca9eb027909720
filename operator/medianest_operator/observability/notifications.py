"""Webhooks: a Warning is sent where `spec.notifications` says, beside the Event that tells the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from medianest_operator.timestamps import stamp

log = logging.getLogger(__name__)

TRIES: Final = 4
FIRST_PAUSE: Final = 1.0
"""Seconds before the second try; four times as long before each further one."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)


class NotSent(Exception):
    """Nobody took the notification; the text says why, without the URL, which may hold a token."""


@dataclass(frozen=True)
class Message:
    """What there is to tell."""

    namespace: str
    name: str
    kind: str
    reason: str
    message: str

    def document(self, now: datetime) -> Mapping[str, Any]:
        """The body of the request."""
        return {
            "text": f"{self.kind} {self.namespace}/{self.name}: {self.reason}: {self.message}",
            "namespace": self.namespace,
            "name": self.name,
            "kind": self.kind,
            "reason": self.reason,
            "message": self.message,
            "time": stamp(now),
        }


async def send(url: str, message: Message, pause: float = FIRST_PAUSE) -> None:
    """Post a message; tries again where the receiver doesn't answer or says that it can't now.

    Raises:
        NotSent: it refused, or never answered.
    """
    if not url.startswith(("http://", "https://")):
        raise NotSent("the URL is neither http nor https")
    document = message.document(datetime.now(UTC))
    why = ""
    for number in range(TRIES):
        if number:
            await asyncio.sleep(pause * 4 ** (number - 1))
        try:
            async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, session.post(url, json=document) as response:
                if response.status < 300:
                    return
                why = f"it answered {response.status}"
                if response.status < 500 and response.status != 429:
                    break
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            # The error's own text names the URL.
            why = f"no answer ({type(error).__name__})"
    raise NotSent(why)
