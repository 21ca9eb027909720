"""Leader election by a Lease: one replica acts, the others wait.

The rules are those of client-go's leaderelection: a lease is taken over only when its record has not changed for its
duration *as seen by this process' own clock*, so that the replicas' clocks need not agree.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from medianest_operator import naming
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError, Conflict, KubernetesClient
from medianest_operator.kubernetes.kinds import LEASE, Manifest

log = logging.getLogger(__name__)

DURATION: Final = 15.0
"""Seconds after which a silent leader counts as gone."""
RENEW_DEADLINE: Final = 10.0
"""Seconds after which a leader that can't renew gives up; shorter than DURATION, so that two never act at once."""
RETRY: Final = 2.0
_MARGIN: Final = 1.0
_GIVEN_BACK: Final = 1
"""Seconds of a Lease that its holder has given back."""
_INT32: Final = 2**31
RENEW: Final = 5.0
"""Seconds between two renewals: three may fail before RENEW_DEADLINE."""


class _Answer(Enum):
    """What one try to hold the Lease came to."""

    HELD = "held"
    ANOTHERS = "held by another replica"
    CHANGED = "somebody wrote in between"
    UNKNOWN = "not known"


class Lease:
    """The Lease of this controller."""

    def __init__(self, client: KubernetesClient, namespace: str, identity: str, name: str = naming.LEASE) -> None:
        self._client = client
        self._namespace = namespace
        self._identity = identity
        self._name = name
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self._held: Manifest | None = None
        """The Lease as this process last wrote it."""
        self._renewed_at = -math.inf
        self._sudden = False

    @property
    def is_held(self) -> bool:
        """Whether this process may act now: it renewed in time, and nobody else was seen to write.

        A process that was frozen finds out by its clock before it finds out by a request.
        """
        return time.monotonic() - self._renewed_at < RENEW_DEADLINE

    async def acquire(self) -> None:
        """Return once this process holds the Lease, and whoever held it before has found out."""
        while await self._try() is not _Answer.HELD or await self._is_early():  # noqa: ASYNC110 (only time passes)
            await asyncio.sleep(RETRY)
        log.info("became leader", extra={"identity": self._identity})

    async def _is_early(self) -> bool:
        """Where nobody gave the Lease back that was free, let a leader come to the renewal that tells it."""
        if not self._sudden:
            return False
        self._sudden = False
        await asyncio.sleep(RENEW + _MARGIN)
        return await self._try() is not _Answer.HELD

    async def hold(self) -> None:
        """Renew for as long as possible; return when the Lease is lost.

        It is lost when another replica is seen to hold it, or when it could not be renewed in time. A request that
        fails says neither.
        """
        clock = asyncio.get_running_loop().time
        renewed = started = clock()
        while clock() - renewed < RENEW_DEADLINE:
            await asyncio.sleep(RENEW if renewed >= started else RETRY)
            started = clock()
            try:
                async with asyncio.timeout(max(0.1, RENEW_DEADLINE - (started - renewed))):
                    answer = await self._try()
            except TimeoutError:
                continue
            if answer is _Answer.HELD:
                renewed = started
            elif answer is _Answer.ANOTHERS:
                log.error("lost the lease to another replica", extra={"holder": self._seen and self._seen[0]})
                return
        log.error("could not renew the lease in time")

    async def release(self) -> None:
        """Give the Lease back, so that the next replica need not wait."""
        try:
            live = await self._client.get(LEASE, self._namespace, self._name, urgent=True)
            if live and live["spec"].get("holderIdentity") == self._identity:
                live["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": _GIVEN_BACK}
                await self._client.replace(LEASE, live, urgent=True)
        except (ApiError, *TRANSIENT_ERRORS) as error:
            log.warning("could not release the lease: %s", error)

    async def _try(self) -> _Answer:
        started = time.monotonic()
        answer = await self._write()
        if answer is _Answer.CHANGED:
            # Who wrote has to be known before anything else is done.
            self._renewed_at = -math.inf
            answer = await self._write()
        if answer is _Answer.HELD:
            self._renewed_at = started
        elif answer is not _Answer.UNKNOWN:
            self._renewed_at = -math.inf
        return answer

    async def _write(self) -> _Answer:
        # While nobody else writes, the next renewal needs no look: the API server refuses it otherwise, by the version.
        live, self._held = self._held, None
        try:
            live = live or await self._client.get(LEASE, self._namespace, self._name, urgent=True)
            if live is None:
                self._held = await self._client.create(LEASE, self._manifest(transitions=0), urgent=True)
                self._sudden = True
                return _Answer.HELD
            holder = live["spec"].get("holderIdentity") or ""
            if holder not in {"", self._identity} and not self._expired(holder, live):
                return _Answer.ANOTHERS
            transitions = (live["spec"].get("leaseTransitions", 0) + (holder != self._identity)) % _INT32
            given_back = live["spec"].get("leaseDurationSeconds") == _GIVEN_BACK
            renewed = live | {"spec": self._spec(transitions, live["spec"], holder)}
            self._held = await self._client.replace(LEASE, renewed, urgent=True)
            self._sudden = holder == "" and not given_back
        except Conflict:
            return _Answer.CHANGED
        except (ApiError, *TRANSIENT_ERRORS) as error:
            if isinstance(error, ApiError) and error.status == 404:
                return _Answer.CHANGED
            log.warning("lease: %s", error or repr(error))
            return _Answer.UNKNOWN
        return _Answer.HELD

    def _expired(self, holder: str, live: Mapping[str, Any]) -> bool:
        now = asyncio.get_running_loop().time()
        record = (holder, live["metadata"]["resourceVersion"])
        if record != self._seen:
            self._seen, self._seen_at = record, now
        return now - self._seen_at > min(DURATION, float(live["spec"].get("leaseDurationSeconds", DURATION)))

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
