"""What Argo CD and Flux make of a database, a backup or an operation, over recordings of a real cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import lua51

from medianest_operator.api.conditions import REASONS, Reason, Severity

ROOT = Path(__file__).resolve().parents[2]
GITOPS = ROOT / "docs" / "gitops"
STATUSES = Path(__file__).parent / "statuses"
CUSTOMIZATIONS = [
    f"resource.customizations.health.medianest.io_{kind}"
    for kind in ("MediaNestDatabase", "MediaNestBackup", "MediaNestOperation")
]

# Stage: Argo CD's word, kstatus' word.
EXPECTED = {
    "unseen": ("Progressing", "InProgress"),
    "unseen-generation": ("Progressing", "InProgress"),
    "creating": ("Progressing", "InProgress"),
    "migrating": ("Progressing", "InProgress"),
    "ready": ("Healthy", "Current"),
    "failing-over": ("Progressing", "InProgress"),
    "hibernating": ("Progressing", "InProgress"),
    "hibernated": ("Suspended", "InProgress"),
    "paused": ("Suspended", "InProgress"),
    "bad-migration": ("Degraded", "Failed"),
    "missing-source": ("Degraded", "Failed"),
    "bad-parameter": ("Degraded", "Failed"),
    "image-unavailable": ("Degraded", "InProgress"),
    "unschedulable": ("Degraded", "InProgress"),
    "quota-exceeded": ("Degraded", "InProgress"),
    "restoring": ("Progressing", "InProgress"),
    "restore-failed": ("Healthy", "Current"),
    "bootstrap-failed": ("Degraded", "Failed"),
    "operation-pending": ("Progressing", "InProgress"),
    "operation-running": ("Progressing", "InProgress"),
    "operation-succeeded": ("Healthy", "Current"),
    "operation-failed": ("Degraded", "Failed"),
    "backup-pending": ("Progressing", "InProgress"),
    "backup-running": ("Progressing", "InProgress"),
    "backup-succeeded": ("Healthy", "Current"),
    "backup-failed": ("Degraded", "Failed"),
}


def recorded(stage: str) -> dict[str, Any]:
    database: dict[str, Any] = json.loads((STATUSES / f"{stage}.json").read_text())
    return database


def argo_health(database: dict[str, Any]) -> tuple[str, str]:
    """Run the script as Argo CD does: Lua 5.1, the object as the global `obj`, a table as the result."""
    lua = lua51.LuaRuntime(unpack_returned_tuples=True)
    lua.globals().obj = lua.table_from(database, recursive=True)
    result = lua.execute((GITOPS / "health.lua").read_text())
    return result["status"], result["message"]


def kstatus(database: dict[str, Any]) -> str:
    """The rules of kstatus for a kind that it doesn't know, in their order.

    https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md: deletion, the observed generation,
    Reconciling and Stalled, then Ready; an object that shows none of them counts as current.
    """
    metadata, status = database["metadata"], database.get("status", {})
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != metadata["generation"]:
        return "InProgress"
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    if conditions.get("Ready") in {"False", "Unknown"}:
        return "InProgress"
    return "Current"


@pytest.mark.parametrize("stage", EXPECTED)
def test_argo_cd_says(stage: str) -> None:
    status, message = argo_health(recorded(stage))
    assert status == EXPECTED[stage][0]
    assert message


@pytest.mark.parametrize("stage", EXPECTED)
def test_flux_says(stage: str) -> None:
    assert kstatus(recorded(stage)) == EXPECTED[stage][1]


def test_a_deleted_object_is_progressing_for_argo_cd() -> None:
    database = recorded("ready")
    database["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert argo_health(database)[0] == "Progressing"
    assert kstatus(database) == "Terminating"


def test_message_says_what_is_wrong() -> None:
    _, message = argo_health(recorded("bad-migration"))
    assert message.startswith('MigrationFailed: Statement 2 (line 2) of 20260101120000_plays: column "title" does not')


@pytest.mark.parametrize("stage", EXPECTED)
def test_ready_is_true_only_for_the_generation_that_was_acted_on(stage: str) -> None:
    database = recorded(stage)
    for condition in database["status"].get("conditions", []):
        if condition["type"] == "Ready" and condition["status"] == "True":
            seen = condition["observedGeneration"] == database["metadata"]["generation"]
            assert seen == (stage in {"ready", "restore-failed", "backup-succeeded", "operation-succeeded"})


def test_every_recording_is_tested() -> None:
    assert {path.stem for path in STATUSES.glob("*.json")} == set(EXPECTED)


def test_script_knows_only_reasons_that_there_are() -> None:
    text = (GITOPS / "health.lua").read_text()
    table = text[text.index("{") + 1 : text.index("}")]
    named = {line.split("=")[0].strip() for line in table.strip().splitlines()}
    assert named <= {reason.value for reason in Reason}


def test_config_map_holds_the_script() -> None:
    config_map = yaml.safe_load((GITOPS / "argocd-cm.yaml").read_text())
    script = (GITOPS / "health.lua").read_text()
    assert config_map["data"] == dict.fromkeys(CUSTOMIZATIONS, script)


def test_the_script_knows_every_reason_that_needs_a_person() -> None:
    """Those that stop everything are Stalled already, and a finding is never Ready's."""
    listed = set(re.findall(r"^  (\w+) = true,$", (GITOPS / "health.lua").read_text(), flags=re.MULTILINE))
    table = {
        reason.value
        for reason, facts in REASONS.items()
        if facts.severity is Severity.DEGRADED and not facts.passes and not facts.finding
    }
    assert listed == table
