"""Warnings go to the webhooks of the database that they are about, beside the run that found them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from medianest_operator.api.notifications import Notification
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError, KubernetesClient
from medianest_operator.kubernetes.events import Recorder
from medianest_operator.kubernetes.kinds import SECRET
from medianest_operator.observability.notifications import Destinations, Message, Network, NotSent, send
from medianest_operator.resources import secrets

log = logging.getLogger(__name__)


class Notifier:
    """Sends in the background, so that a slow receiver holds nothing up. What is under way ends with the process."""

    def __init__(self, client: KubernetesClient, recorder: Recorder, allowed: Sequence[Network] = ()) -> None:
        """
        Args:
            allowed: networks of addresses that aren't public and may be reached all the same.
        """
        self._client = client
        self._recorder = recorder
        self._destinations = Destinations(allowed)
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
            task = asyncio.create_task(self._send(dict(database), wanted, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, database: dict[str, Any], wanted: Notification, message: Message) -> None:
        try:
            url = await self._url(database["metadata"]["namespace"], wanted)
        except NotSent as error:
            text = f"spec.notifications {wanted.name}: {message.reason} was not sent: {error}."
            await self._recorder.record(database, "Warning", "NotificationFailed", text)
            return
        try:
            await send(url, message, self._destinations)
        except NotSent as error:
            metadata = database["metadata"]
            extra = {"database": f"{metadata['namespace']}/{metadata['name']}", "notification": wanted.name}
            log.warning("notification not sent: %s", error, extra=extra)
            text = (
                f"spec.notifications {wanted.name}: {message.reason} was not delivered. Check the URL in Secret"
                f" {wanted.url_secret.name}; the operator's log has the reason."
            )
            await self._recorder.record(database, "Warning", "NotificationFailed", text)

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
        """Stop what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
