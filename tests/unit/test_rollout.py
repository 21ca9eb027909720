"""Ordered restarts: every situation has exactly one next step."""

from __future__ import annotations

from medianest_operator.naming import Names
from medianest_operator.reconcile.context import Pod
from medianest_operator.reconcile.instances.rollout import Step, next_step
from unit.reports import NEW, OLD, pod

NAMES = Names("ns", "db")


def step(*pods: Pod, instances: int | None = None, waiting: str = "") -> tuple[Step, str] | None:
    plan = next_step(pods, NEW, instances or len(pods), NAMES, frozenset(waiting.split()))
    return (plan.step, plan.pod.name) if plan else None


def test_nothing_is_due() -> None:
    assert step(pod(0, primary=True), pod(1), pod(2)) is None


def test_replicas_go_first() -> None:
    assert step(pod(0, primary=True, inputs=OLD), pod(1, inputs=OLD), pod(2)) == (Step.REPLACE, "db-1")
    assert step(pod(0, primary=True), pod(1), waiting="db-0 db-1") == (Step.RESTART, "db-1")


def test_then_the_role_moves_to_a_renewed_replica() -> None:
    plan = next_step([pod(0, primary=True, inputs=OLD), pod(1)], NEW, 2, NAMES)
    assert plan
    assert (plan.step, plan.pod.name, plan.candidate and plan.candidate.name) == (Step.SWITCH_OVER, "db-0", "db-1")
    assert plan.why == "the primary is due, and a replica is ready to lead"


def test_the_only_instance_restarts_in_place() -> None:
    assert step(pod(0, primary=True, inputs=OLD)) == (Step.REPLACE, "db-0")
    assert step(pod(0, primary=True), waiting="db-0") == (Step.RESTART, "db-0")


def test_everybody_waits_for_one_that_is_not_ready() -> None:
    assert step(pod(0, primary=True, inputs=OLD), pod(1, inputs=OLD), pod(2, ready=False)) == (Step.WAIT, "db-2")


def test_a_broken_image_is_replaced_at_once() -> None:
    assert step(pod(0, primary=True), pod(1, inputs=OLD, ready=False)) == (Step.REPLACE, "db-1")


def test_scaling_down_moves_the_role_before_its_pod_goes() -> None:
    pods = pod(0), pod(1), pod(2, primary=True)
    plan = next_step(pods, NEW, 1, NAMES)
    assert plan
    assert (plan.step, plan.pod.name) == (Step.SWITCH_OVER, "db-2")
    assert plan.candidate
    assert plan.candidate.name == "db-0"


def test_the_primary_stays_while_no_replica_can_lead() -> None:
    assert step(pod(0, primary=True, inputs=OLD), pod(1, ready=False)) == (Step.WAIT, "db-1")


def test_a_replica_that_does_not_stream_is_no_candidate() -> None:
    assert step(pod(0, primary=True, inputs=OLD), pod(1, streaming=False)) == (Step.WAIT, "db-0")


def candidate(*pods: Pod, instances: int, eligible: str) -> str | None:
    """Who is to lead next, under synchronous replication; `eligible` are those that Patroni would promote."""
    plan = next_step(pods, NEW, instances, NAMES, eligible=frozenset(eligible.split()))
    return plan.candidate.name if plan and plan.candidate else None


def test_the_candidate_is_one_that_patroni_promotes() -> None:
    three = pod(0), pod(1), pod(2, primary=True)
    assert candidate(*three, instances=2, eligible="db-1") == "db-1"
    assert candidate(*three, instances=2, eligible="db-0 db-1") == "db-0"
    assert candidate(*three, instances=2, eligible="") is None
    four = pod(0), pod(1), pod(2), pod(3, primary=True, inputs=OLD)
    assert candidate(*four, instances=4, eligible="db-2") == "db-2"


def test_the_role_moves_down_only_until_it_is_where_it_stays() -> None:
    assert candidate(pod(0), pod(1), pod(2, primary=True), instances=1, eligible="db-1") == "db-1"
    assert candidate(pod(0), pod(1, primary=True), pod(2), instances=1, eligible="db-2") is None
    assert candidate(pod(0), pod(1, primary=True), pod(2), instances=1, eligible="db-0 db-2") == "db-0"


def test_one_that_stays_alone_stays_where_it_is() -> None:
    assert next_step([pod(1, primary=True)], NEW, 1, NAMES, first=1) is None
    plan = next_step([pod(1, primary=True, inputs=OLD)], NEW, 1, NAMES, first=1)
    assert plan
    assert (plan.step, plan.pod.name) == (Step.REPLACE, "db-1")
