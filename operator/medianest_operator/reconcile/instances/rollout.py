"""Ordered restarts: replicas first, then a switchover, then the former primary. One step a run, level-based."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.api.database import Synchronous
from medianest_operator.kubernetes.kinds import POD
from medianest_operator.reconcile.concern import Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.instances import kept_volumes, patroni
from medianest_operator.reconcile.instances.handovers import Handover
from medianest_operator.reconcile.instances.servers import SOON, Servers
from medianest_operator.resources.statefulset import PodInputs, changed_inputs

_PAUSE_AFTER_REFUSAL: Final = 30.0
"""Seconds before Patroni is asked again for a switchover that it refused."""


class Step(StrEnum):
    """What comes next."""

    REPLACE = "replace"
    RESTART = "restart"
    SWITCH_OVER = "switch over"
    WAIT = "wait"


@dataclass(frozen=True)
class Plan:
    """The next step of a rollout, and why."""

    step: Step
    pod: Pod
    candidate: Pod | None = None
    why: str = ""


def next_step(
    pods: Sequence[Pod],
    inputs: str,
    instances: int,
    names: naming.Names,
    waiting: frozenset[str] = frozenset(),
    eligible: frozenset[str] | None = None,
    first: int = 0,
) -> Plan | None:
    """Decide, purely, what a rollout does next; None where nothing is due.

    A pod is replaced when its inputs differ, PostgreSQL is restarted when a changed parameter waits for that, and the
    primary role leaves an instance that scaling down takes away. A pod that isn't ready is replaced at once if its
    inputs differ (waiting would keep a broken image indefinitely); otherwise everybody waits for it.

    Args:
        waiting: pods whose PostgreSQL says that a parameter waits for a restart.
        eligible: the replicas that Patroni would promote; `None`: every one that streams.
        first: the ordinal of the first instance that stays.
    """
    outdated = [pod for pod in pods if pod.inputs != inputs and not pod.terminating]
    surplus = [pod for pod in pods if (names.ordinal(pod.name) or 0) not in range(first, first + instances)]
    due = [pod for pod in pods if pod in outdated or pod.name in waiting or (pod in surplus and pod.is_primary)]
    if not due:
        return None
    if broken := [pod for pod in outdated if not pod.ready and not pod.is_primary]:
        return Plan(Step.REPLACE, broken[0], why="it is not ready, and was made from an earlier spec")
    staying = [pod for pod in pods if pod not in surplus]
    unsettled = [pod for pod in pods if not pod.ready and pod not in outdated]
    if unsettled or len(staying) < instances:
        return Plan(Step.WAIT, (unsettled or due)[0], why="every instance must be ready before the next one restarts")
    replicas = [pod for pod in due if not pod.is_primary and pod not in surplus]
    if replicas:
        return _act(replicas[0], outdated)
    primary = next((pod for pod in due if pod.is_primary), None)
    if primary is None:
        return None
    place = names.ordinal(primary.name) or 0
    candidates = [
        pod
        for pod in pods
        if pod.streaming
        and pod is not primary
        and pod.name not in waiting
        and (eligible is None or pod.name in eligible)
        # The role moves down only, so that it comes to an instance that stays after as many steps as it takes.
        and (pod in staying or (eligible is not None and (names.ordinal(pod.name) or 0) < place))
    ]
    if candidates:
        why = "the primary is due, and a replica is ready to lead"
        return Plan(Step.SWITCH_OVER, primary, min(candidates, key=lambda pod: pod in surplus), why=why)
    if len(pods) > 1:
        return Plan(Step.WAIT, primary, why="no replica is ready to take over from the primary")
    return _act(primary, outdated)


def _act(pod: Pod, outdated: Sequence[Pod]) -> Plan:
    if pod in outdated:
        return Plan(Step.REPLACE, pod, why="it was made from an earlier spec")
    return Plan(Step.RESTART, pod, why="a changed parameter takes effect only after a restart")


async def reconcile(run: Run) -> Outcome:
    """Take the next step, if one is due."""
    if run.spec.hibernate:
        return Outcome()
    servers = run.facts.get(Servers)
    if servers is None or not servers.leads:
        return await _replace_broken(run)
    if under_way := run.services.handovers.under_way(run.uid):
        message = f"Handing the primary role from {under_way.source} to {under_way.target}."
        return Outcome(obstacle=Verdict("False", Reason.SWITCHING_OVER, message), next_look=SOON)
    if refused := run.services.handovers.failure(run.uid):
        run.services.memory.keep(run.key, "refused-handover", None, refused)
        return Outcome(problem=refused)
    waiting = frozenset(name for name, facts in servers.instances.items() if facts.pending_restart)
    eligible: frozenset[str] | None = None
    inputs = run.once("inputs", lambda: PodInputs.of(run.names, run.spec, run.image).digest)
    leader = run.names.ordinal(run.primary.name) if run.primary else None
    first = kept_volumes.first_that_stays(run, leader) if leader is not None else 0
    plan = next_step(run.pods, inputs, run.spec.instances, run.names, waiting, first=first)
    if plan is not None and plan.step is Step.SWITCH_OVER and run.spec.postgresql.synchronous is not Synchronous.OFF:
        # Patroni refuses a switchover to anybody else (Patroni manual, Replication modes).
        eligible = frozenset(await patroni.synchronous_replicas(run))
        plan = next_step(run.pods, inputs, run.spec.instances, run.names, waiting, eligible, first)
    if plan is None:
        return Outcome()
    await _take(run, plan)
    return Outcome(obstacle=_verdict(plan), next_look=SOON)


async def _take(run: Run, plan: Plan) -> None:
    match plan.step:
        case Step.REPLACE:
            await _replace(run, plan)
        case Step.RESTART:
            message = f"Restarting PostgreSQL in {plan.pod.name}: {plan.why}."
            await run.services.recorder.record(run.database, "Normal", Reason.RESTARTING, message)
            await patroni.restart(run, plan.pod)
        case Step.SWITCH_OVER if plan.candidate:
            if run.services.memory.recall(run.key, "refused-handover", None, _PAUSE_AFTER_REFUSAL) is not None:
                return
            await hand_over(run, plan.pod, plan.candidate, plan.why)


async def hand_over(run: Run, leader: Pod, candidate: Pod, why: str) -> None:
    """Announce a planned handover of the primary role, and begin it beside this run."""
    message = f"Switching over from {leader.name} to {candidate.name}: {why}."
    await run.services.recorder.record(run.database, "Normal", Reason.SWITCHING_OVER, message)
    run.services.handovers.start(
        run.key, run.uid, Handover(leader.name, candidate.name), lambda: patroni.switch_over(run, leader, candidate)
    )


async def _replace_broken(run: Run) -> Outcome:
    """Without a primary: replace what never became ready and was made from what is no longer wanted."""
    inputs = PodInputs.of(run.names, run.spec, run.image).digest
    broken = [pod for pod in run.pods if pod.inputs != inputs and not pod.ready and not pod.terminating]
    if not broken:
        return Outcome()
    plan = Plan(Step.REPLACE, broken[0], why="it is not ready, and was made from an earlier spec")
    await _replace(run, plan)
    return Outcome(obstacle=_verdict(plan), next_look=SOON)


async def _replace(run: Run, plan: Plan) -> None:
    changed = changed_inputs(plan.pod.inputs_document, PodInputs.of(run.names, run.spec, run.image))
    which = f" ({', '.join(changed)} changed)" if changed else ""
    message = f"Replacing pod {plan.pod.name}: {plan.why}{which}."
    await run.services.recorder.record(run.database, "Normal", Reason.UPDATING, message)
    await run.services.applier.delete(POD, plan.pod.manifest)


def _verdict(plan: Plan) -> Verdict:
    match plan.step:
        case Step.WAIT:
            return Verdict("False", Reason.UPDATING, f"Rolling restart is waiting for {plan.pod.name}: {plan.why}.")
        case Step.SWITCH_OVER:
            whom = f" to {plan.candidate.name}" if plan.candidate else ""
            message = f"Handing the primary role from {plan.pod.name}{whom}: {plan.why}."
            return Verdict("False", Reason.SWITCHING_OVER, message)
        case Step.RESTART:
            return Verdict("False", Reason.RESTARTING, f"Rolling restart: restarting {plan.pod.name}: {plan.why}.")
        case Step.REPLACE:
            return Verdict("False", Reason.UPDATING, f"Rolling restart: replacing {plan.pod.name}: {plan.why}.")


CONCERN = Concern("rollout", Needs.NOTHING, reconcile)
