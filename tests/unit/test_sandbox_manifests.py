"""The container in which copies are made has nothing that is worth taking, whatever the spec says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes.utils.quantity import parse_quantity

from medianest_operator.kubernetes.kinds import Manifest
from unit.family import EVERYTHING, SPECS, children


def jobs(raw: dict[str, Any]) -> Iterator[tuple[str, Manifest]]:
    """The pod template of each Job and CronJob, with the command that it runs."""
    for manifest in children(raw):
        if manifest["kind"] == "Job":
            template = manifest["spec"]["template"]
        elif manifest["kind"] == "CronJob":
            template = manifest["spec"]["jobTemplate"]["spec"]["template"]
        else:
            continue
        yield " ".join(template["spec"]["containers"][0]["command"][1:]), template


def sandboxes(raw: dict[str, Any]) -> list[tuple[Manifest, Manifest]]:
    found = []
    for _, template in jobs(raw):
        for container in template["spec"].get("initContainers", []):
            if container["name"] == "sandbox":
                found.append((template, container))
    return found


@pytest.mark.parametrize("raw", SPECS.values(), ids=SPECS)
def test_it_has_no_variable_no_secret_and_no_repository(raw: dict[str, Any]) -> None:
    found = sandboxes(raw)
    assert len(found) >= 4
    for template, container in found:
        assert not {"env", "envFrom", "ports", "volumeDevices"} & container.keys()
        [mount] = container["volumeMounts"]
        assert (mount["name"], mount["subPath"]) == ("work", "sandbox")
        [volume] = [item for item in template["spec"]["volumes"] if item["name"] == "work"]
        assert volume.keys() - {"name"} <= {"emptyDir", "ephemeral"}
        assert not set(container["command"]) & {"--repository", "--identity-file"}


@pytest.mark.parametrize("raw", SPECS.values(), ids=SPECS)
def test_the_others_only_read_what_it_writes(raw: dict[str, Any]) -> None:
    for template, own in sandboxes(raw):
        pod = template["spec"]
        others = [item for item in [*pod["containers"], *pod["initContainers"]] if item is not own]
        for container in others:
            for mount in container["volumeMounts"]:
                if mount["name"] == "work" and mount.get("subPath") != "work":
                    assert (mount["subPath"], mount.get("readOnly")) == ("sandbox", True)


@pytest.mark.parametrize("raw", SPECS.values(), ids=SPECS)
def test_no_token_comes_in(raw: dict[str, Any]) -> None:
    for template, _ in sandboxes(raw):
        pod, annotations = template["spec"], template["metadata"]["annotations"]
        assert pod["automountServiceAccountToken"] is False
        assert "shareProcessNamespace" not in pod
        for webhook in ("eks.amazonaws.com", "azure.workload.identity"):
            assert annotations[f"{webhook}/skip-containers"] == "sandbox"
        # A projected token is a volume too.
        assert not [volume for volume in pod["volumes"] if "projected" in volume]


@pytest.mark.parametrize("raw", SPECS.values(), ids=SPECS)
def test_every_job_that_copies_has_one_and_is_told_so(raw: dict[str, Any]) -> None:
    with_one = [id(template) for template, _ in sandboxes(raw)]
    assert with_one
    for command, template in jobs(raw):
        names = [item["name"] for item in template["spec"].get("initContainers", [])]
        copies = command.split()[0] in ("migrate", "verify", "import") or "--verify" in command
        assert ("sandbox" in names) is copies, command
        assert ("--sandbox /sandbox" in command) is copies, command
        assert ("annotations" in template["metadata"]) is copies


def test_it_goes_on_beside_the_job_and_ends_with_it() -> None:
    """A native sidecar: an init container that is restarted, and that the pod's end doesn't wait for."""
    for template, container in sandboxes(EVERYTHING):
        assert container["restartPolicy"] == "Always"
        assert template["spec"]["restartPolicy"] == "Never"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("raw", SPECS.values(), ids=SPECS)
def test_both_together_have_what_the_job_had_alone(raw: dict[str, Any]) -> None:
    wanted: dict[str, Any] = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
    given = raw.get("backup", {}).get("resources", {})
    wanted_backup = {kind: {**wanted[kind], **given.get(kind, {})} for kind in wanted}
    for command, template in jobs(raw):
        pods = [item for item in template["spec"].get("initContainers", []) if item["name"] == "sandbox"]
        if not pods:
            continue
        expected = wanted if command.startswith("migrate") else wanted_backup
        own, other = template["spec"]["containers"][0]["resources"], pods[0]["resources"]
        for kind, amounts in expected.items():
            assert own[kind].keys() == other[kind].keys() == amounts.keys()
            for name, amount in amounts.items():
                total = parse_quantity(own[kind][name]) + parse_quantity(other[kind][name])  # type: ignore[no-untyped-call]
                assert total == parse_quantity(amount), (command, kind, name)  # type: ignore[no-untyped-call]
