"""Leader election by a Lease: one replica acts, the others wait.

The rules are those of client-go's leaderelection: a lease is taken over only when its record has not changed for its
duration *as seen by this process' own clock*, so that the replicas' clocks need not agree.
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from medianest_operator import naming
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError, KubernetesClient
from medianest_operator.kubernetes.kinds import LEASE

log = logging.getLogger(__name__)

DURATION: Final = 15.0
"""Seconds after which a silent leader counts as gone."""
RENEW_DEADLINE: Final = 10.0
"""Seconds after which a leader that can't renew gives up; shorter than DURATION, so that two never act at once."""
RETRY: Final = 2.0


class Lease:
    """The Lease of this controller."""

    def __init__(self, client: KubernetesClient, namespace: str, identity: str, name: str = naming.LEASE) -> None:
        self._client = client
        self._namespace = namespace
        self._identity = identity
        self._name = name
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0

    async def acquire(self) -> None:
        """Return once this process holds the Lease."""
        while not await self._try():  # noqa: ASYNC110 (the Lease is elsewhere: nothing to wait for but time)
            await asyncio.sleep(RETRY)
        log.info("became leader", extra={"identity": self._identity})

    async def hold(self) -> None:
        """Renew for as long as possible; return when the Lease is lost."""
        clock = asyncio.get_running_loop().time
        renewed = clock()
        while clock() - renewed < RENEW_DEADLINE:
            await asyncio.sleep(RETRY)
            started = clock()
            try:
                async with asyncio.timeout(max(0.1, RENEW_DEADLINE - (started - renewed))):
                    if await self._try():
                        renewed = started
                    elif self._seen and self._seen[0] != self._identity:
                        log.error("lost the lease to another replica", extra={"holder": self._seen[0]})
                        return
            except TimeoutError:
                continue
        log.error("could not renew the lease in time")

    async def release(self) -> None:
        """Give the Lease back, so that the next replica need not wait."""
        try:
            live = await self._client.get(LEASE, self._namespace, self._name)
            if live and live["spec"].get("holderIdentity") == self._identity:
                live["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._client.replace(LEASE, live)
        except (ApiError, *TRANSIENT_ERRORS) as error:
            log.warning("could not release the lease: %s", error)

    async def _try(self) -> bool:
        try:
            live = await self._client.get(LEASE, self._namespace, self._name)
            if live is None:
                await self._client.create(LEASE, self._manifest(transitions=0))
                return True
            holder = live["spec"].get("holderIdentity") or ""
            if holder not in {"", self._identity} and not self._expired(holder, live):
                return False
            transitions = live["spec"].get("leaseTransitions", 0) + (holder != self._identity)
            await self._client.replace(LEASE, live | {"spec": self._spec(transitions, live["spec"], holder)})
        except ApiError as error:
            if error.status != 409:
                log.warning("lease: %s", error)
            return False
        except TRANSIENT_ERRORS as error:
            log.warning("lease: the API server can't be reached: %s", error)
            return False
        return True

    def _expired(self, holder: str, live: Mapping[str, Any]) -> bool:
        now = asyncio.get_running_loop().time()
        record = (holder, live["metadata"]["resourceVersion"])
        if record != self._seen:
            self._seen, self._seen_at = record, now
        return now - self._seen_at > float(live["spec"].get("leaseDurationSeconds", DURATION))

    def _spec(self, transitions: int, old: Mapping[str, Any], holder: str) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        acquired = old.get("acquireTime", now) if holder == self._identity else now
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(DURATION),
            "acquireTime": acquired,
            "renewTime": now,
            "leaseTransitions": transitions,
        }

    def _manifest(self, transitions: int) -> dict[str, Any]:
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"namespace": self._namespace, "name": self._name},
            "spec": self._spec(transitions, {}, ""),
        }
