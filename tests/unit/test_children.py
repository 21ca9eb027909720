"""The children's manifests: valid in every supported Kubernetes, restricted, owned and labelled."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from render import ROOT

from medianest_operator import naming
from medianest_operator.api.backup_object import BackupSpec
from medianest_operator.api.bootstrap import Import, RestoreSource
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.kubernetes.kinds import Manifest
from medianest_operator.naming import Names
from medianest_operator.postgres import logins
from medianest_operator.resources import (
    backup_jobs,
    hardening_job,
    meta,
    migration_job,
    patroni,
    rbac,
    repositories,
    secrets,
    services,
    statefulset,
)
from unit.kubernetes_rules import assert_restricted, assert_valid, pod_specs

IMAGE = "images.example/medianest-postgres:1"
DATABASE = {"metadata": {"name": "medianest", "namespace": "media", "uid": "0f5ee9a4"}}
RECIPIENT = "age1" + "q" * 58
EVERYTHING: dict[str, Any] = {
    "instances": 9,
    "image": IMAGE,
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "images"}],
    "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "2", "memory": "4Gi"}},
    "storage": {"size": "50Gi", "storageClassName": "fast", "onDelete": "Delete"},
    "walStorage": {"size": "5Gi", "storageClassName": "fast"},
    "postgresql": {"synchronous": "Required", "parameters": {"work_mem": "8MB", "max_worker_processes": 12}},
    "database": {"name": "media", "owner": "media"},
    "connections": {"max": 200, "limit": 90, "poolTimeout": 5, "connectTimeout": 3},
    "migrations": {
        "source": {"configMap": {"name": "migrations"}},
        "target": "20250704075237_init",
        "onFailure": "Halt",
        "rehearse": "Always",
        "rehearsalLimit": "500Mi",
        "allowDestructive": True,
        "lockTimeout": "2s",
        "statementTimeout": "1h",
        "retry": "second",
    },
    "backup": {
        "repositories": [
            {"name": "volume", "volume": {"size": "5Gi", "storageClassName": "slow", "onDelete": "Delete"}},
            {"name": "file-server", "volume": {"claimName": "shared-backups"}},
            {
                "name": "offsite",
                "s3": {
                    "bucket": "backups",
                    "prefix": "media/nest",
                    "endpoint": "https://s3.example:9000",
                    "region": "eu-1",
                    "credentialsSecret": {"name": "offsite-keys"},
                    "caSecret": {"name": "offsite-ca"},
                },
            },
            {"name": "cloud", "s3": {"bucket": "cloud-backups", "pathStyle": False}},
        ],
        "logical": {
            "daily": {"schedule": "30 1 * * *", "keep": "14d"},
            "monthly": {"enabled": False, "schedule": "@monthly", "keep": "400d"},
            "formats": ["Plain", "Schema"],
        },
        "timeZone": "Europe/Berlin",
        "verification": {"schedule": "@weekly"},
        "encryption": {"recipients": [RECIPIENT], "identitySecret": {"name": "age"}},
        "scratch": {"size": "20Gi", "storageClassName": "fast"},
        "resources": {"limits": {"memory": "1Gi", "cpu": "1"}},
        "deadline": "2h",
        "serviceAccountName": "backups",
    },
    "hardening": {
        "recommendedIndexes": True,
        "checkConstraints": {"enabled": True, "userRoles": ["user", "$(HOME)"]},
        "auditColumns": True,
        "rowLevelSecurity": True,
    },
    "tls": {"serverSecret": "own-certificate", "duration": "24h", "renewBefore": "8h"},
    "scheduling": {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "db", "effect": "NoSchedule"}],
        "antiAffinity": "Required",
        "topologyKey": "topology.kubernetes.io/zone",
        "priorityClassName": "databases",
    },
}
ASKED_AT = datetime(2026, 1, 30, tzinfo=UTC)
ASKED = BackupSpec(database="medianest", keep="5d", verify=True)
RESTORE = RestoreSource.model_validate(
    {
        "repository": {"name": "old", "volume": {"claimName": "old-backups"}},
        "database": {"namespace": "elsewhere", "name": "older"},
        "backup": "latest-verified",
        "identitySecret": {"name": "age"},
    }
)
IMPORT = Import.model_validate({"connectionSecret": {"name": "compose", "key": "url"}})
SPECS: dict[str, dict[str, Any]] = {
    "empty": {},
    "migrations from an image": {"migrations": {"source": {"image": {"reference": "images.example/medianest:2"}}}},
    "everything": EVERYTHING,
    "homelab": yaml.safe_load((ROOT / "examples/homelab.yaml").read_text())["spec"],
    "production": yaml.safe_load((ROOT / "examples/production.yaml").read_text())["spec"],
}


def children(raw: dict[str, Any], database: dict[str, Any] | None = None) -> list[Manifest]:
    """All that a database is made of."""
    database = database or DATABASE
    spec = DatabaseSpec.model_validate(raw)
    names = Names(database["metadata"]["namespace"], database["metadata"]["name"])
    owner = meta.owner_reference(database)
    return [
        *rbac.access(names, owner, naming.INSTANCE_ROLE),
        *services.services(names, owner),
        patroni.config_map(names, spec, owner),
        statefulset.stateful_set(names, spec, IMAGE, spec.instances, owner, image_from="spec"),
        statefulset.disruption_budget(names, owner),
        migration_job.migration_job(names, spec, IMAGE, "0123456789abcdef", owner, backs_up=True),
        hardening_job.hardening_job(names, spec, IMAGE, "0123456789abcdef", owner),
        *repositories.claims(names, spec, owner),
        *backup_jobs.cron_jobs(names, spec, IMAGE, owner),
        backup_jobs.on_demand_job(names, spec, ASKED, ASKED_AT, "89abcdef01234567", IMAGE, owner),
        backup_jobs.restore_job(
            names,
            spec,
            RESTORE,
            "medianest_new",
            "0123456789abcdef",
            IMAGE,
            owner,
            annotations={naming.ANNOTATION_TRY: "0"},
            system_identifier="77109",
        ),
        backup_jobs.import_job(
            names,
            spec,
            IMPORT,
            "medianest_new",
            "fedcba9876543210",
            IMAGE,
            owner,
            annotations={naming.ANNOTATION_TRY: "0"},
        ),
        secrets.tls_secret(names, names.server_tls_secret, "certificate", "key", "authority", owner),
        *(
            secrets.login_secret(names, spec, role, "word", "authority", owner, replicas=spec.instances > 1)
            for role in logins.LOGIN_ROLES
        ),
    ]


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
    for manifest in manifests:
        assert manifest["metadata"]["labels"][naming.LABEL_DATABASE] == "medianest"
        if manifest["kind"] == "PersistentVolumeClaim" and "ownerReferences" not in manifest["metadata"]:
            # Backups outlive the object.
            continue
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert owner["uid"] == DATABASE["metadata"]["uid"]
        # Nothing that a deletion would have to wait for.
        assert "blockOwnerDeletion" not in owner
        assert "finalizers" not in manifest["metadata"]


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
