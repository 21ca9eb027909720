"""Talking to Patroni's REST API: its shared configuration, switchovers, restarts, reloads.

The address is the pod's, the verified name its DNS name, and the controller shows its client certificate, without which
Patroni changes nothing.
"""

import json
import logging
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Transient
from medianest_operator.kubernetes.kinds import ENDPOINTS, POD
from medianest_operator.postgres.sessions import Credentials
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.resources.patroni import LOOP_WAIT, TOLERATED_LAG, dynamic_configuration

log = logging.getLogger(__name__)

_QUICK: Final = aiohttp.ClientTimeout(total=5)
_SLOW: Final = aiohttp.ClientTimeout(total=60)
_LONGEST: Final = 1 << 20
"""Bytes of an answer: the image, and so the program that answers, may be a stranger's."""


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=credentials.ca)
    with tempfile.TemporaryDirectory(prefix="medianest-tls-") as folder:
        certificate, key = Path(folder, naming.TLS_CERT), Path(folder, naming.TLS_KEY)
        key.touch(mode=0o600)
        certificate.write_text(credentials.certificate)
        key.write_text(credentials.key)
        context.load_cert_chain(certificate, key)
    return context


async def _call(
    run: Run, pod: Pod, method: str, path: str, body: Mapping[str, Any] | None = None, *, slow: bool = False
) -> tuple[int, Any]:
    """Status and answer. Raises Transient where Patroni can't be reached."""
    connector = aiohttp.TCPConnector(ssl=_context(run.credentials), force_close=True)
    host = run.names.pod_fqdn(pod.name)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_SLOW if slow else _QUICK) as session,
            session.request(
                method, f"https://{pod.address}:{naming.PATRONI_PORT}{path}", json=body, server_hostname=host
            ) as response,
        ):
            content = await response.content.read(_LONGEST + 1)
            if len(content) > _LONGEST:
                raise Transient(Reason.PATRONI_UNREACHABLE, f"Patroni of {pod.name} answered with more than 1 MiB")
            text = content.decode(errors="replace")
            try:
                return response.status, json.loads(text)
            except ValueError:
                return response.status, text[:500]
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        what = str(error) or type(error).__name__
        raise Transient(Reason.PATRONI_UNREACHABLE, f"Patroni of {pod.name} can't be reached: {what}") from error


async def reconcile_configuration(run: Run, leader: Pod) -> bool:
    """Make the cluster's shared configuration the wanted one. Returns whether it was changed."""
    wanted = dynamic_configuration(run.spec)
    status, live = await _call(run, leader, "GET", "/config")
    if status == 200 and live == wanted:
        return False
    if status not in {200, 404}:
        raise Transient(
            Reason.PATRONI_UNREACHABLE, f"Reading the Patroni configuration from {leader.name} failed: {status} {live}"
        )
    status, answer = await _call(run, leader, "PUT", "/config", wanted)
    if status != 200:
        raise Transient(Reason.PATRONI_REFUSED, f"Patroni refused the configuration: {status} {answer}")
    log.info("changed Patroni's configuration", extra={"database": "/".join(run.key)})
    return True


async def synchronous_replicas(run: Run) -> list[str]:
    """The replicas that Patroni would promote under synchronous replication: it names them in an object of its own, a
    moment after they began to stream, and promotes no other (Patroni manual, Replication modes)."""
    named = (await _record(run, run.names.patroni_sync)).get(naming.PATRONI_SYNC_ANNOTATION, "")
    return [name for name in named.split(",") if name]


async def last_leader(run: Run) -> str | None:
    """The member that led last, as Patroni wrote it down; `None` where it doesn't tell.

    That is who holds the lock; where it was given back, who was promoted last (patroni.ha, `update_cluster_history`).
    """
    if holder := (await _record(run, run.names.scope)).get(naming.PATRONI_LEADER_ANNOTATION):
        return holder
    text = (await _record(run, run.names.patroni_store)).get(naming.PATRONI_HISTORY_ANNOTATION)
    try:
        last = json.loads(text or "[]")[-1]
        return str(last[4])
    except (ValueError, LookupError, TypeError):
        # Of a database without a promotion, or of one whose members wrote what Patroni never does.
        return None


async def has_record(run: Run) -> bool:
    """Whether all is there that Patroni wrote of this database. It goes with the Services, for instance; a pod that is
    still ending, or begins, then makes parts of it again: whose data it has, not who led last."""
    store = await _record(run, run.names.patroni_store)
    kept = store.get(naming.PATRONI_IDENTITY_ANNOTATION) and store.get(naming.PATRONI_CONFIGURATION_ANNOTATION)
    return bool(kept) and naming.PATRONI_POSITION_ANNOTATION in await _record(run, run.names.scope)


async def known_position(run: Run) -> int:
    """Up to which byte of the log the last primary is known to have written; 0 where Patroni doesn't tell."""
    text = (await _record(run, run.names.scope)).get(naming.PATRONI_POSITION_ANNOTATION, "")
    return int(text) if text.isdecimal() else 0


async def positions(run: Run, pods: Iterable[Pod]) -> dict[str, int]:
    """How far the logs of these members go, in bytes, by their names. It is not among what is watched of a pod."""
    found = {}
    for pod in pods:
        live = await run.services.client.get(POD, run.names.namespace, pod.name)
        position = Pod(live).member.get("xlog_location") if live else None
        found[pod.name] = position if isinstance(position, int) else 0
    return found


async def handover_asked_for(run: Run) -> bool:
    """Whether a switchover stands that is to be made at once, also one that a person asked Patroni for."""
    asked = await _record(run, run.names.patroni_failover)
    return any(asked.get(key) for key in ("leader", "member")) and not asked.get("scheduled_at")


async def _record(run: Run, name: str) -> Mapping[str, str]:
    """The annotations of one of Patroni's objects; none where it isn't there."""
    live = await run.services.client.get(ENDPOINTS, run.names.namespace, name) or {}
    annotations: Mapping[str, str] = live.get("metadata", {}).get("annotations") or {}
    return annotations


async def is_paused(run: Run) -> bool:
    """Whether somebody told Patroni to leave the servers alone (`patronictl pause`): it then starts none, and elects
    nobody."""
    text = (await _record(run, run.names.patroni_store)).get(naming.PATRONI_CONFIGURATION_ANNOTATION)
    try:
        return bool(json.loads(text or "{}").get("pause"))
    except (ValueError, AttributeError):
        return False


async def end_pause(run: Run, pod: Pod) -> None:
    """As `patronictl resume`."""
    status, answer = await _call(run, pod, "PATCH", "/config", {"pause": None})
    if status != 200:
        raise Transient(Reason.PATRONI_REFUSED, f"Patroni of {pod.name} refused to end its pause: {status} {answer}")


async def wake(run: Run, pod: Pod) -> None:
    """Make Patroni of a pod look after its server now rather than at the end of its pause.

    A PATCH of the configuration that changes nothing wakes the loop and writes nothing (patroni.api, do_PATCH_config).
    """
    await _call(run, pod, "PATCH", "/config", {"loop_wait": LOOP_WAIT})


async def tolerate_lag(run: Run, pod: Pod) -> None:
    """Let a replica be elected that lacks a little, until the configuration is the wanted one again."""
    status, answer = await _call(run, pod, "PATCH", "/config", {"maximum_lag_on_failover": TOLERATED_LAG})
    if status != 200:
        raise Transient(Reason.PATRONI_REFUSED, f"Patroni of {pod.name} refused to tolerate lag: {status} {answer}")


async def reload(run: Run, pod: Pod) -> None:
    """Make Patroni and PostgreSQL of a pod read their files again, certificates included."""
    await _call(run, pod, "POST", "/reload")


async def reinitialize(run: Run, pod: Pod) -> None:
    """Make a replica throw its data away and copy the primary's. Patroni refuses that to the primary."""
    status, answer = await _call(run, pod, "POST", "/reinitialize", {"force": True}, slow=True)
    if status != 200:
        raise Transient(Reason.PATRONI_REFUSED, f"Patroni of {pod.name} refused to copy it again: {status} {answer}")


async def restart(run: Run, pod: Pod) -> None:
    """Restart PostgreSQL in its pod."""
    status, answer = await _call(run, pod, "POST", "/restart", {}, slow=True)
    if status not in {200, 202}:
        raise Transient(
            Reason.PATRONI_REFUSED, f"Patroni of {pod.name} refused to restart PostgreSQL: {status} {answer}"
        )


async def switch_over(run: Run, leader: Pod, candidate: Pod) -> None:
    """Hand the primary's role to a healthy replica."""
    body = {"leader": leader.name, "candidate": candidate.name}
    status, answer = await _call(run, leader, "POST", "/switchover", body, slow=True)
    if status != 200:
        raise Transient(
            Reason.PATRONI_REFUSED, f"Patroni refused the switchover to {candidate.name}: {status} {answer}"
        )
