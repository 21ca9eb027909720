"""A restore's Job has one pod: a second one would find what the first has filled so far. A dry run's only reads."""

from __future__ import annotations

import pytest

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import Manifest
from unit.family import SPECS, children

JOBS = [item for item in children(SPECS["everything"]) if item["kind"] == "Job"]
ASIDE = [item for item in JOBS if item["metadata"]["labels"]["app.kubernetes.io/component"] == naming.COMPONENT_ASIDE]


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


def test_a_dry_run_is_told_all_that_the_restore_is_and_reads_the_live_database() -> None:
    """By the role that may only read; nothing is made for it."""
    job, _ = ASIDE
    [restore] = [job for job in JOBS if "-restore-0123" in job["metadata"]["name"]]
    [container] = job["spec"]["template"]["spec"]["containers"]
    [other] = restore["spec"]["template"]["spec"]["containers"]
    whose = container["command"].index("--namespace")
    assert container["command"][:whose] == [*other["command"][: other["command"].index("--namespace")], "--dry-run"]
    assert container["command"][whose + 4 :] == other["command"][whose + 3 :]
    assert "view $$(HOME)" in container["command"]
    environment = {item["name"]: item for item in container["env"]}
    assert environment["PGDATABASE"]["value"] == "media"
    assert environment["PGPASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "medianest-backup"
    assert container["volumeMounts"] == other["volumeMounts"]


def test_tables_come_back_into_the_live_database_by_the_migrator() -> None:
    """Unlike a restore's, its pod may be replaced: it does all or nothing."""
    _, job = ASIDE
    [container] = job["spec"]["template"]["spec"]["containers"]
    told = container["command"]
    named = [told[place + 1] for place, word in enumerate(told) if word == "--table"]
    assert named == ["users", '"a$$(HOME)"']
    assert told[told.index("--into-schema") + 1] == "restored_x"
    assert told[told.index("--request") + 1] == "123456789abcdef0"
    assert "--dry-run" not in told
    environment = {item["name"]: item for item in container["env"]}
    assert environment["PGDATABASE"]["value"] == "media"
    assert environment["PGPASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "medianest-migrator"
    assert job["spec"]["backoffLimit"] > 0


@pytest.mark.parametrize(
    ("operation", "schema"),
    [
        ("back", "restored_back"),
        ("one.table-back", "restored_one_table_back"),
        ("a" * 54, f"restored_{'a' * 54}"),
        ("a" * 200, f"restored_{'a' * 45}_c2a908d9"),
    ],
)
def test_the_schema_of_an_operation_needs_no_quotes(operation: str, schema: str) -> None:
    assert naming.restored_schema(operation) == schema
    assert len(schema) <= 63


def test_replaced_database_is_backed_up_from_its_new_name() -> None:
    [job] = [job for job in JOBS if naming.ANNOTATION_REPLACED in job["metadata"].get("annotations", {})]
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert {"name": "PGDATABASE", "value": "medianest_old"} in container["env"]
    assert job["metadata"]["annotations"][naming.ANNOTATION_REPLACED] == "medianest_old"
    arguments = container["command"]
    assert arguments[arguments.index("--tier") + 1] == "replaced"
    assert "--keep-until" in arguments
