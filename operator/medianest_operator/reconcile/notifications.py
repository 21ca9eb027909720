"""Warnings go to the webhooks of the database that they are about, beside the run that found them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pydantic

from medianest_operator.api.notifications import Notification
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError, KubernetesClient
from medianest_operator.kubernetes.events import Recorder
from medianest_operator.kubernetes.kinds import SECRET
from medianest_operator.observability.notifications import Destinations, Message, Network, NotSent, send
from medianest_operator.resources import secrets

log = logging.getLogger(__name__)


_GATHERED_FOR: Final = 5.0
"""Seconds from the first message to a webhook until it is sent, with those that came meanwhile: when a node or the API
server fails, many databases do."""


_LAST_SECONDS: Final = 3.0
"""In which messages are still sent when the process ends."""


@dataclass(frozen=True)
class _Pending:
    """A message on its way, and what it is about."""

    database: dict[str, Any]
    wanted: Notification
    message: Message


class Notifier:
    """Sends in the background, so that a slow receiver holds nothing up."""

    def __init__(
        self,
        client: KubernetesClient,
        recorder: Recorder,
        allowed: Sequence[Network] = (),
        gathered_for: float = _GATHERED_FOR,
    ) -> None:
        """
        Args:
            allowed: networks of addresses that aren't public and may be reached all the same.
            gathered_for: seconds in which messages to one URL become one request.
        """
        self._client = client
        self._recorder = recorder
        self._destinations = Destinations(allowed)
        self._gathered_for = gathered_for
        self._closing = asyncio.Event()
        self._gathering: dict[str, list[_Pending]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def warn(self, database: Mapping[str, Any], message: Message) -> None:
        """Tell the webhooks of a database that want to know.

        Args:
            database: the `MediaNestDatabase`.
            message: about it, or about one of its backups.
        """
        for raw in (database.get("spec") or {}).get("notifications") or []:
            try:
                wanted = Notification.model_validate(raw)
            except pydantic.ValidationError:
                continue
            if wanted.reasons and message.reason not in wanted.reasons:
                continue
            task = asyncio.create_task(self._gather(_Pending(dict(database), wanted, message)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _gather(self, pending: _Pending) -> None:
        """Add a message to those that wait for the same URL; the first of them sends them all."""
        try:
            url = await self._url(pending.database["metadata"]["namespace"], pending.wanted)
        except NotSent as error:
            text = f"spec.notifications {pending.wanted.name}: {pending.message.reason} was not sent: {error}."
            await self._recorder.record(pending.database, "Warning", "NotificationFailed", text)
            return
        if url in self._gathering:
            self._gathering[url].append(pending)
            return
        self._gathering[url] = [pending]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), self._gathered_for)
        await self._send(url, self._gathering.pop(url))

    async def _send(self, url: str, gathered: Sequence[_Pending]) -> None:
        try:
            await send(url, [pending.message for pending in gathered], self._destinations)
        except NotSent as error:
            for pending in gathered:
                await self._not_delivered(pending, error)

    async def _not_delivered(self, pending: _Pending, error: NotSent) -> None:
        metadata, wanted = pending.database["metadata"], pending.wanted
        extra = {"database": f"{metadata['namespace']}/{metadata['name']}", "notification": wanted.name}
        log.warning("notification not sent: %s", error, extra=extra)
        text = (
            f"spec.notifications {wanted.name}: {pending.message.reason} was not delivered. Check the URL in Secret"
            f" {wanted.url_secret.name}; the operator's log has the reason."
        )
        await self._recorder.record(pending.database, "Warning", "NotificationFailed", text)

    async def _url(self, namespace: str, wanted: Notification) -> str:
        secret = wanted.url_secret
        try:
            found = await self._client.get(SECRET, namespace, secret.name)
        except (ApiError, *TRANSIENT_ERRORS) as error:
            raise NotSent(f"Secret {secret.name} can't be read: {error}") from error
        url = secrets.decode(found, secret.key) if found else None
        if url is None:
            raise NotSent(f"there is no Secret {secret.name} with key {secret.key} in this namespace")
        return url.strip()

    async def close(self) -> None:
        """Send what was gathered, and stop what doesn't end soon."""
        self._closing.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
