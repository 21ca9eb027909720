"""Kubernetes Events: one for every transition that a person would want to see, with the conditions' reasons."""

import logging
import os
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from medianest_operator import naming
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError, KubernetesClient
from medianest_operator.kubernetes.kinds import EVENT, Manifest
from medianest_operator.timestamps import stamp

log = logging.getLogger(__name__)

_LONGEST = 1024
"""Characters of a message that the API server takes."""


_SAME_FOR = timedelta(minutes=10)
"""An Event that is written again within this time counts up instead, as client-go's do."""
_REMEMBERED = 4096


class _Written(NamedTuple):
    name: str
    times: int
    last: datetime


class Recorder:
    """Writes Events. One that can't be written is logged and never holds anything up."""

    def __init__(self, client: KubernetesClient, identity: str) -> None:
        self._client = client
        self._identity = identity
        self._written: dict[tuple[str, str, str, str], _Written] = {}

    async def record(self, database: Manifest, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Write an Event about a database, or about one of its backups; the same one again counts up."""
        metadata = database["metadata"]
        now = datetime.now(UTC)
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "namespace": metadata["namespace"],
                "name": f"{metadata['name']}.{int(now.timestamp() * 1e6):x}{os.urandom(2).hex()}",
            },
            "involvedObject": {
                "apiVersion": naming.API_VERSION,
                "kind": database.get("kind", naming.KIND),
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…",
            "source": {"component": naming.OPERATOR},
            "reportingComponent": naming.OPERATOR,
            "reportingInstance": self._identity,
            "firstTimestamp": stamp(now),
            "lastTimestamp": stamp(now),
            "count": 1,
        }
        extra = {"database": f"{metadata['namespace']}/{metadata['name']}", "reason": reason}
        log.log(logging.WARNING if kind == "Warning" else logging.INFO, message, extra=extra)
        if self._client.is_held_back:
            # An API server in trouble has more important things to take; the log has the message.
            return
        same = metadata["uid"], kind, reason, body["message"]
        known = self._written.get(same)
        try:
            if known is not None and now - known.last < _SAME_FOR:
                again = _Written(known.name, known.times + 1, now)
                count = {"count": again.times, "lastTimestamp": stamp(now)}
                await self._client.merge(EVENT, metadata["namespace"], known.name, count)
            else:
                again = _Written(body["metadata"]["name"], 1, now)
                await self._client.create(EVENT, body)
        except (ApiError, *TRANSIENT_ERRORS) as error:
            log.info("event not written: %s", error, extra=extra)
            return
        self._written.pop(same, None)
        self._written[same] = again
        while len(self._written) > _REMEMBERED:
            del self._written[next(iter(self._written))]
