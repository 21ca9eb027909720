"""Kubernetes Events: one for every transition that a person would want to see, with the conditions' reasons."""

import logging
import os
from datetime import UTC, datetime
from typing import Any, Literal

from medianest_operator import naming
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError, KubernetesClient
from medianest_operator.kubernetes.kinds import EVENT, Manifest
from medianest_operator.timestamps import stamp

log = logging.getLogger(__name__)

_LONGEST = 1024
"""Characters of a message that the API server takes."""


class Recorder:
    """Writes Events. One that can't be written is logged and never holds anything up."""

    def __init__(self, client: KubernetesClient, identity: str) -> None:
        self._client = client
        self._identity = identity

    async def record(self, database: Manifest, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Tell an Event of a database, or of one of its backups."""
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
        try:
            await self._client.create(EVENT, body)
        except (ApiError, *TRANSIENT_ERRORS) as error:
            log.info("event not written: %s", error, extra=extra)
