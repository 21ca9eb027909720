"""Ordered restarts: replicas first, then a switchover, then the former primary. One step a run, level-based."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.kubernetes.kinds import POD
from medianest_operator.reconcile import patroni
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.resources.statefulset import pod_inputs


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
    pods: Sequence[Pod], inputs: str, instances: int, names: naming.Names, waiting: frozenset[str] = frozenset()
) -> Plan | None:
    """Decide, purely, what a rollout does next; None where nothing is due.

    A pod is replaced when its inputs differ, PostgreSQL restarted when it says that a parameter waits for that, and the
    primary's role leaves an instance that scaling down takes away. `waiting`
    are the pods whose PostgreSQL says so. A pod that isn't ready is replaced at once if its
    inputs differ (waiting would keep a broken image for ever); otherwise everybody waits for it.
    """
    outdated = [pod for pod in pods if pod.inputs != inputs and not pod.terminating]
    surplus = [pod for pod in pods if names.ordinal(pod.name) >= instances]
    due = [pod for pod in pods if pod in outdated or pod.name in waiting or (pod in surplus and pod.is_primary)]
    if not due:
        return None
    if broken := [pod for pod in outdated if not pod.ready and not pod.is_primary]:
        return Plan(Step.REPLACE, broken[0], why="it isn't ready, and what it was made from changed")
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
    candidates = [pod for pod in staying if pod.streaming and pod is not primary and pod.name not in waiting]
    if candidates:
        return Plan(Step.SWITCH_OVER, primary, candidates[0], why="the primary is due, and a replica is ready to lead")
    if len(pods) > 1:
        return Plan(Step.WAIT, primary, why="no replica is ready to take over from the primary")
    return _act(primary, outdated)


def _act(pod: Pod, outdated: Sequence[Pod]) -> Plan:
    if pod in outdated:
        return Plan(Step.REPLACE, pod, why="what it was made from changed")
    return Plan(Step.RESTART, pod, why="a changed parameter takes effect only after a restart")


async def replace_broken(run: Run) -> Plan | None:
    """Without a primary: replace what never became ready and was made from what is no longer wanted."""
    inputs = pod_inputs(run.spec, run.image)
    broken = [pod for pod in run.pods if pod.inputs != inputs and not pod.ready and not pod.terminating]
    if not broken:
        return None
    plan = Plan(Step.REPLACE, broken[0], why="it isn't ready, and what it was made from changed")
    await _replace(run, plan)
    return plan


async def _replace(run: Run, plan: Plan) -> None:
    message = f"Replacing pod {plan.pod.name}: {plan.why}."
    await run.services.recorder.record(run.database, "Normal", Reason.UPDATING, message)
    await run.services.applier.delete(POD, plan.pod.manifest)


async def reconcile(run: Run, waiting: frozenset[str]) -> Plan | None:
    """Take the next step, if one is due. Returns it, for the status."""
    plan = next_step(run.pods, pod_inputs(run.spec, run.image), run.spec.instances, run.names, waiting)
    if plan is None or plan.step == Step.WAIT:
        return plan
    record = run.services.recorder.record
    match plan.step:
        case Step.REPLACE:
            await _replace(run, plan)
        case Step.RESTART:
            await record(
                run.database, "Normal", Reason.RESTARTING, f"Restarting PostgreSQL in {plan.pod.name}: {plan.why}."
            )
            await patroni.restart(run, plan.pod)
        case Step.SWITCH_OVER if plan.candidate:
            message = f"Switching over from {plan.pod.name} to {plan.candidate.name}: {plan.why}."
            await record(run.database, "Normal", "SwitchingOver", message)
            await patroni.switch_over(run, plan.pod, plan.candidate)
    return plan
