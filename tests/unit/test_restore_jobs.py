"""A restore's Job has one pod: a second one would find what the first has filled so far."""

from __future__ import annotations

import pytest

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import Manifest
from unit.family import SPECS, children

JOBS = [item for item in children(SPECS["everything"]) if item["kind"] == "Job"]


def component_of(job: Manifest) -> str:
    component: str = job["metadata"]["labels"]["app.kubernetes.io/component"]
    return component


@pytest.mark.parametrize(
    "job",
    [job for job in JOBS if component_of(job) == naming.COMPONENT_RESTORE and "restore" in job["metadata"]["name"]],
    ids=lambda job: job["metadata"]["name"],
)
def test_no_pod_of_a_restore_is_replaced(job: Manifest) -> None:
    """Neither one that failed nor one that was evicted."""
    assert job["spec"]["backoffLimit"] == 0
    assert [rule["action"] for rule in job["spec"]["podFailurePolicy"]["rules"]] == ["FailJob"]


def test_replaced_database_is_backed_up_from_its_new_name() -> None:
    [job] = [job for job in JOBS if naming.ANNOTATION_REPLACED in job["metadata"].get("annotations", {})]
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert {"name": "PGDATABASE", "value": "medianest_old"} in container["env"]
    assert job["metadata"]["annotations"][naming.ANNOTATION_REPLACED] == "medianest_old"
    arguments = container["command"]
    assert arguments[arguments.index("--tier") + 1] == "replaced"
    assert "--keep-until" in arguments
