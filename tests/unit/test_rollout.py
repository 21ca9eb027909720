"""Ordered restarts: every situation has exactly one next step."""

from __future__ import annotations

import json
from typing import Any

from medianest_operator import naming
from medianest_operator.naming import Names
from medianest_operator.reconcile.context import Pod
from medianest_operator.reconcile.rollout import Plan, Step, next_step

NAMES = Names("ns", "db")
NEW, OLD = "new", "old"


def pod(ordinal: int, *, primary: bool = False, inputs: str = NEW, ready: bool = True) -> Pod:
    role = naming.ROLE_PRIMARY if primary else naming.ROLE_REPLICA
    member = {"role": role, "state": "running"}
    manifest: dict[str, Any] = {
        "metadata": {
            "name": f"db-{ordinal}",
            "uid": str(ordinal),
            "labels": {naming.LABEL_ROLE: role},
            "annotations": {
                naming.ANNOTATION_POD_INPUTS: inputs,
                naming.PATRONI_STATUS_ANNOTATION: json.dumps(member),
            },
        },
        "spec": {"containers": [{"image": "i"}]},
        "status": {
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"state": {"running": {}}}],
        },
    }
    return Pod(manifest)


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
    assert plan == Plan(Step.SWITCH_OVER, pod(0, primary=True, inputs=OLD), pod(1), why=plan.why if plan else "")


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
