"""The children's manifests: valid in every supported Kubernetes, restricted, owned and labelled."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import Manifest
from unit.family import DATABASE, EVERYTHING, RECIPIENT, SPECS, children
from unit.kubernetes_rules import assert_restricted, assert_valid, pod_specs


@pytest.fixture(params=list(SPECS))
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return children(SPECS[request.param])


def test_every_child_is_valid(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        assert_valid(manifest)
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(names) == len(set(names)), "two children of one kind share a name"


def test_pods_are_restricted(manifests: list[Manifest]) -> None:
    pods = [pod for manifest in manifests for pod in pod_specs(manifest)]
    assert len(pods) >= 9
    for pod in pods:
        assert_restricted(pod)


def test_every_child_goes_with_its_database(manifests: list[Manifest]) -> None:
    kept: list[tuple[str, str]] = []
    for manifest in manifests:
        assert manifest["metadata"]["labels"][naming.LABEL_DATABASE] == "medianest"
        if "ownerReferences" not in manifest["metadata"]:
            # Backups outlive the object, and what Patroni knows of the volumes.
            kept.append((manifest["kind"], manifest["metadata"]["name"]))
            continue
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert owner["uid"] == DATABASE["metadata"]["uid"]
        # Nothing that a deletion would have to wait for.
        assert "blockOwnerDeletion" not in owner
        assert "finalizers" not in manifest["metadata"]
    assert {name for kind, name in kept if kind == "Service"} == {"medianest-rw", "medianest-rw-config"}
    assert {kind for kind, _ in kept} <= {"Service", "PersistentVolumeClaim"}


@pytest.mark.parametrize(("policy", "owned"), [("Retain", False), ("Delete", True)])
def test_backups_outlive_the_object_unless_the_spec_says_otherwise(policy: str, owned: bool) -> None:
    volume = {"name": "here", "volume": {"onDelete": policy}}
    found = children({"backup": {"repositories": [volume]}})
    [claim] = [manifest for manifest in found if manifest["kind"] == "PersistentVolumeClaim"]
    assert ("ownerReferences" in claim["metadata"]) is owned


def test_no_two_children_share_a_name(manifests: list[Manifest]) -> None:
    keys = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(keys) == len(set(keys))


def test_longest_name_fits_everywhere() -> None:
    """A Service's name has 63 characters, and so has a label: a pod's name becomes one (RFC 1123)."""
    longest = {"metadata": {"name": "x" * 40, "namespace": "n" * 63, "uid": "1"}}
    for manifest in children({"instances": 9}, longest):
        assert_valid(manifest)
        assert len(manifest["metadata"]["name"]) <= 63
        for value in manifest["metadata"]["labels"].values():
            assert len(value) <= 63


@pytest.mark.parametrize("raw", SPECS.values(), ids=SPECS)
def test_building_twice_gives_the_same(raw: dict[str, Any]) -> None:
    assert children(raw) == children(raw)


def test_passwords_are_only_in_secrets() -> None:
    for manifest in children(EVERYTHING):
        if manifest["kind"] != "Secret":
            assert "word" not in str(manifest).replace("password", "")


def arguments_of(name: str) -> list[str]:
    """What `medianest-dbctl` is told by a Job or CronJob of the fullest spec."""
    found = next(item for item in children(EVERYTHING) if item["metadata"]["name"] == name and "Job" in item["kind"])
    (pod,) = pod_specs(found)
    command: list[str] = pod["containers"][0]["command"]
    return command[1:]


def values_of(arguments: list[str], option: str) -> list[str]:
    return [value for given, value in itertools.pairwise(arguments) if given == option]


def test_backup_is_told_where_to_and_for_how_long() -> None:
    arguments = arguments_of("medianest-weekly")
    assert arguments[0] == "backup"
    assert values_of(arguments, "--tier") == ["weekly"]
    assert values_of(arguments, "--repository") == [
        "volume=file:///repositories/volume/data",
        "file-server=file:///repositories/file-server/data",
        "offsite=s3://backups/media/nest?region=eu-1&path_style=true&endpoint=https://s3.example:9000"
        "&credentials=/repositories/offsite/credentials&ca=/repositories/offsite/ca/ca.crt",
        "cloud=s3://cloud-backups?region=us-east-1&path_style=false",
    ]
    assert values_of(arguments, "--keep") == ["daily=14d", "weekly=30d", "monthly=400d"]
    assert values_of(arguments, "--format") == ["custom", "plain", "schema"]
    assert values_of(arguments, "--recipient") == [RECIPIENT]
    assert values_of(arguments, "--replica-host") == ["medianest-ro.media.svc"]
    assert "--verify" in arguments
    assert "--verify" not in arguments_of("medianest-daily")


def test_private_key_is_only_where_backups_are_read() -> None:
    readers = {
        "medianest-migrate-01234567",
        "medianest-weekly",
        "medianest-verify",
        "medianest-backup-89abcdef",
        "medianest-restore-01234567",
        "medianest-aside-01234567",
        "medianest-aside-12345678",
    }
    mounted = set()
    for manifest in children(EVERYTHING):
        for pod in pod_specs(manifest):
            if any(volume.get("secret", {}).get("secretName") == "age" for volume in pod["volumes"]):
                mounted.add(manifest["metadata"]["name"])
    assert mounted == readers


def test_backup_on_demand_is_kept_from_when_it_was_asked_for() -> None:
    assert values_of(arguments_of("medianest-backup-89abcdef"), "--keep-until") == ["2026-02-04T00:00:00Z"]


def test_disabled_series_has_no_cron_job() -> None:
    assert {item["metadata"]["name"] for item in children(EVERYTHING) if item["kind"] == "CronJob"} == {
        "medianest-daily", "medianest-weekly", "medianest-verify"
    }  # fmt: skip


def test_cron_jobs_and_their_jobs_say_which_series_they_are() -> None:
    """By it the operator knows since when a series is on, and what a Job was for."""
    crons = [item for item in children({}) if item["kind"] == "CronJob"]
    tiers = [item["metadata"]["labels"].get(naming.LABEL_TIER) for item in crons]
    assert tiers == ["daily", "weekly", "monthly", None]
    for item, tier in zip(crons, tiers, strict=True):
        assert item["spec"]["jobTemplate"]["metadata"]["labels"].get(naming.LABEL_TIER) == tier


def test_nothing_verifies_without_the_private_key() -> None:
    backup = {"encryption": {"recipients": [RECIPIENT]}}
    names = {item["metadata"]["name"] for item in children({"backup": backup}) if item["kind"] == "CronJob"}
    assert names == {"medianest-daily", "medianest-weekly", "medianest-monthly"}
