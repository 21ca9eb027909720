"""Webhooks: a Warning is sent where `spec.notifications` says, beside the Event of the same words."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from medianest_operator.timestamps import stamp

log = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

TRIES: Final = 4
FIRST_PAUSE: Final = 1.0
"""Seconds before the second try; four times as long before each further one."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)


_TRANSLATED: Final[tuple[Network, ...]] = tuple(
    ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)
"""IPv6 addresses that stand for an IPv4 address, which may be any (RFC 6052, RFC 8215, RFC 3056, RFC 4380)."""


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
            "text": _plain(f"{self.kind} {self.namespace}/{self.name}: {self.reason}: {self.message}"),
            "namespace": self.namespace,
            "name": self.name,
            "kind": self.kind,
            "reason": self.reason,
            "message": self.message,
            "time": stamp(now),
        }


_SHOWN: Final = 10
"""Messages that the text of several says in full."""
_LISTED: Final = 100
"""Messages that one request holds."""


def document(messages: Sequence[Message], now: datetime) -> Mapping[str, Any]:
    """The body of a request: the message's own, or, for several of about the same time, one `text` for all of them and
    their own documents as `messages`. `reason` is the most frequent then, and what else there is, the first one's.

    Args:
        messages: at least one.
    """
    if len(messages) == 1:
        return messages[0].document(now)
    reasons = Counter(message.reason for message in messages)
    objects = len({(message.kind, message.namespace, message.name) for message in messages})
    counted = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(5))
    lines = [message.document(now)["text"] for message in messages[:_SHOWN]]
    rest = [f"and {len(messages) - _SHOWN} more"] if len(messages) > _SHOWN else []
    return dict(messages[0].document(now)) | {
        "reason": reasons.most_common(1)[0][0],
        "text": "\n".join([f"{len(messages)} warnings of {objects} objects: {counted}", *lines, *rest]),
        "count": len(messages),
        "messages": [message.document(now) for message in messages[:_LISTED]],
        "time": stamp(now),
    }


def _plain(text: str) -> str:
    """Without what Slack and Mattermost read as a link or a mention: names come from whoever may choose them."""
    return text.replace("<", "‹").replace(">", "›")


class Destinations(AbstractResolver):
    """Which addresses a webhook may have.

    Whoever may write a database's Secret names the URL, and the request comes from the operator's place in the network.
    So an address is refused unless it is a public one, or lies in a network that the operator's own flags allow. The
    address that was looked at is the one that is connected to: the name isn't resolved a second time.
    """

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        """
        Args:
            allowed: networks of addresses that aren't public and may be reached.
        """
        self._allowed = tuple(allowed)

    def admits(self, address: str) -> bool:
        """Whether a request may go to an address."""
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
            found = found.ipv4_mapped
        if any(found.version == network.version and found in network for network in self._allowed):
            return True
        translated = any(found.version == network.version and found in network for network in _TRANSLATED)
        return found.is_global and not found.is_multicast and not translated

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a name that a request may go to. Raises NotSent where there are only others."""
        found = await ThreadedResolver().resolve(host, port, family)
        admitted = [item for item in found if self.admits(item["host"])]
        if not admitted:
            raise NotSent("its address is not a public one, and --webhook-allow does not name its network")
        return admitted

    async def close(self) -> None:
        """Nothing is kept between two names."""


async def send(url: str, messages: Sequence[Message], destinations: Destinations, pause: float = FIRST_PAUSE) -> None:
    """Post messages in one request; tries again where the receiver doesn't answer or says that it can't now.

    Args:
        destinations: where it may go.

    Raises:
        NotSent: it refused, never answered, or may not be asked. The text is for the operator's log alone: whoever
            named the URL would learn from it what the operator can reach.
    """
    if not url.startswith(("http://", "https://")):
        raise NotSent("the URL is neither http nor https")
    try:
        host = URL(url).host or ""
    except ValueError as error:
        raise NotSent("the URL can't be read") from error
    if _is_address(host) and not destinations.admits(host):
        # An address in the URL itself is never resolved.
        raise NotSent("its address is not a public one, and --webhook-allow does not name its network")
    body = document(messages, datetime.now(UTC))
    why = ""
    for number in range(TRIES):
        if number:
            await asyncio.sleep(pause * 4 ** (number - 1))
        # One that forgets the addresses at once, and a resolver that is closed by whoever made it.
        connector = aiohttp.TCPConnector(resolver=destinations, use_dns_cache=False, force_close=True)
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT, connector=connector) as session,
                session.post(url, json=body, allow_redirects=False) as response,
            ):
                if response.status < 300:
                    return
                why = f"it answered {response.status}"
                if response.status < 500 and response.status != 429:
                    break
        except (TimeoutError, aiohttp.ClientError, ValueError, OSError) as error:
            # The error's own text names the URL.
            why = f"no answer ({type(error).__name__})"
    raise NotSent(why)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
