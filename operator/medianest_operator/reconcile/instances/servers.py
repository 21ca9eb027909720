"""The servers: whether the primary takes writes, which replicas follow it, and what keeps the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import psycopg

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.database import Synchronous
from medianest_operator.errors import Transient
from medianest_operator.health import probe
from medianest_operator.health.probe import InstanceFacts, Replica
from medianest_operator.kubernetes.client import TRANSIENT_ERRORS, ApiError
from medianest_operator.observability import metrics
from medianest_operator.postgres.sessions import Busy, Credentials, Unreachable
from medianest_operator.postgres.wording import as_clause
from medianest_operator.reconcile import pod_problems
from medianest_operator.reconcile.concern import Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.instances import patroni
from medianest_operator.reconcile.instances.leftovers import NotYet
from medianest_operator.reconcile.pod_problems import PodProblem
from medianest_operator.resources.patroni import LOOP_WAIT, TTL

log = logging.getLogger(__name__)

SOON: Final = 2.0
"""Seconds until the next probe while something is under way that no event announces."""
_SLOW_REPLICA: Final = 60.0
"""Seconds after which a replica that answers and doesn't stream is no longer just on its way."""


@dataclass(frozen=True)
class Servers:
    """What one run saw over SQL.

    Attributes:
        instances: what each pod that answered said, by its name.
        unreachable: why the others didn't, as a clause.
        replicas: those that the primary sends its log to, by their pods' names.
        primary: the pod that leads, as Patroni labelled it.
    """

    instances: Mapping[str, InstanceFacts] = field(default_factory=dict)
    unreachable: Mapping[str, str] = field(default_factory=dict)
    replicas: Mapping[str, Replica] = field(default_factory=dict)
    primary: Pod | None = None

    @cached_property
    def of_primary(self) -> InstanceFacts | None:
        """What the primary said."""
        return self.instances.get(self.primary.name) if self.primary else None

    @cached_property
    def leads(self) -> bool:
        """Whether the primary answers and isn't in recovery."""
        return self.of_primary is not None and not self.of_primary.in_recovery

    @cached_property
    def commits_wait(self) -> bool:
        """Whether every commit waits for a synchronous replica that isn't there."""
        facts = self.of_primary
        wanted = facts is not None and bool(facts.synchronous_standbys)
        return wanted and not any(replica.is_synchronous for replica in self.replicas.values())

    @cached_property
    def serving(self) -> bool:
        """Whether statements that write come to an end."""
        return self.leads and not self.commits_wait

    @cached_property
    def reads_only(self) -> bool:
        """Whether the application can't write, because a volume is nearly full."""
        return self.of_primary is not None and self.of_primary.reads_only

    def follows(self, pod: Pod) -> bool:
        """Whether a pod is the primary, or a replica that its primary sends the log to."""
        if self.primary is not None and pod.name == self.primary.name:
            return True
        if not self.leads:
            return pod.streaming
        return pod.name in self.replicas and self.replicas[pod.name].is_streaming

    def ready(self, pod: Pod) -> bool:
        """Whether a pod serves as it should: the kubelet, the server itself, and its primary say so."""
        answers = not self.instances or pod.name in self.instances
        return pod.ready and answers and self.follows(pod)


async def observe(run: Run) -> Outcome:
    """Probe every running instance, all at once, and judge."""
    if run.spec.hibernate and not run.pods:
        await run.services.sessions.forget(*run.key)
        return _hibernated(run)
    pods = run.pods
    credentials = run.facts.get(Credentials)
    if credentials is None and any(pod.running for pod in pods):
        message = (
            "The servers can't be probed: the operator has no usable certificate for them; see the other conditions"
        )
        return Outcome(
            problem=Transient(Reason.NOT_OBSERVED, message), status=_status(run, Servers(primary=run.primary))
        )
    seen = await _probe(run) if credentials else Servers(primary=run.primary)
    if run.spec.hibernate:
        return _hibernating(run, seen)
    primary = seen.primary
    if primary is not None and primary.name in seen.unreachable:
        await _wake_patroni(run, primary)
    found: list[PodProblem] = []
    if any(not pod.ready for pod in pods) or len(pods) < run.spec.instances:
        found = await _why(run)
    available = _available(run, seen)
    if not seen.serving:
        obstacle: Verdict | None = _not_serving(run, available, found)
    elif available.status != "True":
        obstacle = available
    else:
        obstacle = await _incomplete(run, seen, found)
    count = run.spec.instances
    return Outcome(
        facts=(seen,),
        conditions={Condition.AVAILABLE: available},
        obstacle=obstacle,
        status=_status(run, seen),
        next_look=SOON if obstacle and (run.pods or run.stateful_set) else None,
        summary=f"{count} instance{'' if count == 1 else 's'} ready",
    )


async def _why(run: Run) -> list[PodProblem]:
    """What keeps instances from being ready; nothing where the API server can't be asked."""
    try:
        return await pod_problems.find(run, run.spec.instances)
    except (ApiError, *TRANSIENT_ERRORS) as error:
        log.info("could not read the reasons: %s", error, extra={"database": "/".join(run.key)})
        return []


# Probing.


async def _probe(run: Run) -> Servers:
    instances: dict[str, InstanceFacts] = {}
    unreachable: dict[str, str] = {}
    busy: dict[str, str] = {}

    async def one(pod: Pod) -> None:
        started = time.monotonic()
        try:
            async with run.services.sessions.use(
                run.instance(pod, naming.MAINTENANCE_DATABASE), run.credentials
            ) as connection:
                facts = await probe.instance_facts(connection, run.spec.database.name)
        except Busy as error:
            # It answers; what kept the probe from its end says nothing of others' statements.
            busy[pod.name] = as_clause(str(error).removeprefix(f"{pod.name}: "))
            return
        except (Unreachable, psycopg.Error) as error:
            unreachable[pod.name] = as_clause(str(error).removeprefix(f"{pod.name}: "))
            return
        instances[pod.name] = facts
        _measure(run, pod, facts, time.monotonic() - started)

    pods = [pod for pod in run.pods if pod.running and pod.address and pod.member.get("state") == "running"]
    names = frozenset(pod.name for pod in pods)
    await run.services.sessions.forget(*run.key, keep=names)
    for gone in run.services.memory.swap(run.key, "measured", names, frozenset()) - names:
        metrics.forget_pod(*run.key, gone)
    await asyncio.gather(*(one(pod) for pod in pods))
    primary = leading(run.primaries, run.primary, instances)
    if primary is not None and primary.name in busy:
        raise Transient(Reason.NOT_OBSERVED, f"the primary {primary.name} was probed in vain: {busy[primary.name]}")
    facts = instances.get(primary.name) if primary else None
    replicas = {replica.name: replica for replica in facts.replicas} if facts else {}
    return Servers(instances, unreachable, replicas, primary)


def leading(labelled: Sequence[Pod], likely: Pod | None, instances: Mapping[str, InstanceFacts]) -> Pod | None:
    """Which of the pods that carry the primary's label leads: the one whose server says so.

    Args:
        likely: which of them it is by the kubelet's word, if that can be told.
    """
    lead = [pod for pod in labelled if pod.name in instances and not instances[pod.name].in_recovery]
    if len(lead) == 1:
        return lead[0]
    return likely or next(iter(labelled), None)


def _measure(run: Run, pod: Pod, facts: InstanceFacts, seconds: float) -> None:
    metrics.PROBE_SECONDS.labels(*run.key, pod.name).set(seconds)
    metrics.CONNECTIONS.labels(*run.key, pod.name).set(facts.connections)
    if not facts.in_recovery:
        metrics.MAX_CONNECTIONS.labels(*run.key).set(facts.max_connections - facts.reserved_connections)
        # It may have been a replica before.
        metrics.forget_lag(*run.key, pod.name)
    for replica in facts.replicas:
        metrics.REPLICATION_LAG_BYTES.labels(*run.key, replica.name).set(replica.lag_bytes)


async def _wake_patroni(run: Run, primary: Pod) -> None:
    """A postmaster that died is started again by Patroni, which looks at the end of its pause: let it look now."""
    if run.services.memory.recall(run.key, "woken", primary.uid, LOOP_WAIT) is not None:
        return
    run.services.memory.keep(run.key, "woken", primary.uid, True)
    with contextlib.suppress(Transient):
        await patroni.wake(run, primary)


# Judging.


def _available(run: Run, seen: Servers) -> Verdict:
    primary = seen.primary
    if seen.leads and primary is not None:
        if seen.commits_wait and not ever_available(run):
            return Verdict("False", Reason.CREATING, "Waiting for the first synchronous replica to stream.")
        if seen.commits_wait:
            message = (
                f"{primary.name} serves reads; commits wait, because no synchronous replica streams"
                f" (spec.postgresql.synchronous: {run.spec.postgresql.synchronous})."
            )
            return Verdict("False", Reason.COMMITS_WAIT, message)
        facts = seen.instances[primary.name]
        if facts.is_full:
            message = (
                f"{primary.name} serves who is connected, and lets nobody else in: all {facts.max_connections}"
                " connections but those for superusers are taken."
            )
            return Verdict("False", Reason.CONNECTIONS_REFUSED, message)
        if facts.reads_only:
            message = (
                f"{primary.name} serves reads. Writes are refused, because a volume is nearly full (StorageHealthy says"
                " which, and why), until less than 85 % of it is in use, or use rests a little lower for some minutes."
            )
            return Verdict("False", Reason.READ_ONLY, message)
        return Verdict("True", Reason.PRIMARY_SERVING, f"{primary.name} serves reads and writes.")
    handover = run.services.handovers.under_way(run.uid)
    if handover is not None:
        message = f"Handing the primary role from {handover.source} to {handover.target}; writes wait until it leads."
        return Verdict("False", Reason.SWITCHING_OVER, message)
    if not ever_available(run):
        return Verdict("False", Reason.CREATING, _creating(run))
    if later := run.facts.get(NotYet):
        return Verdict("False", Reason.NO_PRIMARY, f"There is no primary. {later.message}")
    return _outage(run, seen)


def _outage(run: Run, seen: Servers) -> Verdict:
    primary = seen.primary
    several = len(run.pods) > 1
    otherwise = f" Patroni promotes a replica if it does not return within {TTL} s." if several else ""
    if primary is not None and primary.name in seen.instances:
        return Verdict(
            "False", Reason.NO_PRIMARY, f"{primary.name} is the leader but is still in recovery (read-only)."
        )
    if primary is not None and primary.running and primary.member.get("state") == "running":
        why = seen.unreachable.get(primary.name, "not probed yet")
        return Verdict(
            "False", Reason.PRIMARY_UNREACHABLE, f"The primary {primary.name} does not answer: {why}.{otherwise}"
        )
    known = run.database.get("status", {}).get("instances", {}).get("lastPrimary")
    returning = primary or next((pod for pod in run.pods if pod.name == known), None)
    if (
        returning is not None
        and not returning.terminating
        and not any(p.is_primary for p in run.pods if p != returning)
    ):
        message = f"The primary {returning.name} is restarting ({returning.state}).{otherwise}"
        return Verdict("False", Reason.PRIMARY_RESTARTING, message)
    if several:
        return Verdict("False", Reason.NO_PRIMARY, "There is no primary; Patroni elects one of the replicas.")
    if run.pods and run.spec.instances > 1 and len(run.asked_for) == 1:
        alone = run.pods[0]
        message = f"There is no primary yet; {alone.name} begins alone ({alone.state}), the others join once it leads."
        return Verdict("False", Reason.NO_PRIMARY, message)
    if not run.pods:
        return Verdict("False", Reason.NO_PRIMARY, "There is no primary, and no instance runs.")
    return Verdict("False", Reason.NO_PRIMARY, "There is no primary; the only instance has to come back.")


def ever_available(run: Run) -> bool:
    """Whether the database has served before, as far as its status knows."""
    status = run.database.get("status") or {}
    if status.get("schema", {}).get("version"):
        return True
    known = [item for item in status.get("conditions", []) if item.get("type") == Condition.AVAILABLE]
    return bool(known) and known[0].get("reason") != Reason.CREATING


def _creating(run: Run) -> str:
    """How far the first start is."""
    if later := run.facts.get(NotYet):
        return later.message
    if run.stateful_set is None:
        return "No instance has begun yet."
    if not run.pods:
        return "Creating the pods of the instances."
    words = ", ".join(f"{pod.name} {pod.state}" for pod in run.pods)
    return f"The first instance is starting: {words}."


def _not_serving(run: Run, available: Verdict, found: list[PodProblem]) -> Verdict:
    if found:
        return Verdict("False", found[0].reason, f"{found[0].message}.")
    failing_over = available.reason is Reason.NO_PRIMARY and len(run.pods) > 1
    return Verdict("False", Reason.FAILING_OVER if failing_over else available.reason, available.message)


async def _incomplete(run: Run, seen: Servers, found: list[PodProblem]) -> Verdict | None:
    """What keeps a database that serves from having all its instances."""
    desired, pods = run.spec.instances, run.pods
    ready = [pod for pod in pods if seen.ready(pod)]
    if len(ready) == desired == len(pods):
        return await _unpromotable(run, seen)
    if found:
        message = f"{found[0].message}. The database serves, with {len(ready)} of {desired} instances ready."
        return Verdict("False", found[0].reason, message)
    if len(pods) != desired:
        return Verdict("False", Reason.SCALING, f"Scaling from {len(pods)} to {desired} instances.")
    lame = [pod for pod in pods if pod.ready and pod.name in seen.instances and not seen.follows(pod)]
    if lame and len(lame) + len(ready) == len(pods) and _seconds_lame(run, lame) > _SLOW_REPLICA:
        names = ", ".join(pod.name for pod in lame)
        message = (
            f"{len(ready)} of {desired} instances ready: {names} runs but does not stream from the primary, and"
            " can't take over. The database serves. See the log of its pod; reinitialize it if its WAL is gone."
        )
        return Verdict("False", Reason.REPLICA_NOT_STREAMING, message)
    waiting = ", ".join(f"{pod.name} ({_state(seen, pod)})" for pod in pods if pod not in ready)
    message = f"{len(ready)} of {desired} instances ready; waiting for {waiting}. The database serves."
    return Verdict("False", Reason.WAITING_FOR_REPLICAS, message)


def _state(seen: Servers, pod: Pod) -> str:
    if pod.ready and pod.name in seen.instances and not seen.follows(pod):
        return "not streaming yet"
    return pod.state


def _seconds_lame(run: Run, lame: list[Pod]) -> float:
    """Since when these replicas have answered without streaming, in this process."""
    token = tuple(sorted(pod.uid for pod in lame))
    since: float | None = run.services.memory.recall(run.key, "not-streaming", token, float("inf"))
    if since is None:
        since = time.monotonic()
        run.services.memory.keep(run.key, "not-streaming", token, since)
    return time.monotonic() - since


async def _unpromotable(run: Run, seen: Servers) -> Verdict | None:
    """Under synchronous replication Patroni promotes only a replica that it has named, shortly after it streams."""
    if run.spec.instances == 1 or run.spec.postgresql.synchronous is Synchronous.OFF:
        return None
    named = tuple(sorted(name for name, replica in seen.replicas.items() if replica.is_synchronous))
    token = (seen.primary.uid if seen.primary else None, named)
    if run.services.memory.recall(run.key, "promotable", token, float("inf")):
        return None
    if named and await patroni.synchronous_replicas(run):
        run.services.memory.keep(run.key, "promotable", token, True)
        return None
    message = "Waiting for Patroni to name a synchronous replica; none is promoted before. The database serves."
    return Verdict("False", Reason.WAITING_FOR_REPLICAS, message)


def _hibernating(run: Run, seen: Servers) -> Outcome:
    count = len(run.pods)
    message = f"Stopping {count} instance{'' if count == 1 else 's'}; the volumes are kept."
    verdict = Verdict("False", Reason.HIBERNATING, message)
    available = Verdict("False", Reason.HIBERNATED, "spec.hibernate is true; set it to false to start the instances.")
    return Outcome(
        facts=(seen,), conditions={Condition.AVAILABLE: available}, obstacle=verdict, status=_status(run, seen)
    )


def _hibernated(run: Run) -> Outcome:
    verdict = Verdict("False", Reason.HIBERNATED, "Hibernated: all instances are stopped, the volumes are kept.")
    available = Verdict("False", Reason.HIBERNATED, "spec.hibernate is true; set it to false to start the instances.")
    return Outcome(conditions={Condition.AVAILABLE: available}, obstacle=verdict, status=_status(run, Servers()))


def _status(run: Run, seen: Servers) -> Mapping[str, api.Instances | int | str]:
    ready = sum(seen.ready(pod) for pod in run.pods)
    primary = seen.primary.name if seen.primary else None
    previous = run.database.get("status", {}).get("instances", {}).get("lastPrimary")
    members = [
        api.Member(
            name=pod.name,
            role=pod.role,
            state=pod.state,
            node=pod.node,
            pending_restart=True if pod.pending_restart else None,
        )
        for pod in run.pods
    ]
    desired = 0 if run.spec.hibernate else run.spec.instances
    instances = api.Instances(
        ready=ready,
        desired=desired,
        summary=f"{ready}/{desired}",
        primary=primary,
        last_primary=primary or previous,
        members=members,
    )
    metrics.INSTANCES.labels(*run.key, "ready").set(ready)
    metrics.INSTANCES.labels(*run.key, "desired").set(desired)
    selector = ",".join(f"{key}={value}" for key, value in sorted(run.names.pod_selector.items()))
    return {"instances": instances, "replicas": len(run.pods), "selector": selector}


CONCERN = Concern(
    "servers",
    Needs.NOTHING,
    observe,
    observe,
    {Condition.AVAILABLE: Verdict("False", Reason.CREATING, "The database has not been observed yet.")},
)
