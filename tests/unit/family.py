"""All that a database is made of, for several specs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import yaml
from render import ROOT

from medianest_operator import naming
from medianest_operator.api.backup_object import BackupSpec
from medianest_operator.api.bootstrap import Import, RestoreSource
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.operation import Restore
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
    volume_job,
)

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
TABLES = Restore.model_validate({"tables": ["users", '"a$(HOME)"'], "backup": "latest"})
IN_PLACE = Restore.model_validate({"targetTime": "2026-01-30T09:30:00+01:00", "acceptDifferences": ["view $(HOME)"]})
LOOK = IN_PLACE.model_copy(update={"dry_run": True})
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
        *services.services(names, owner, keeps=True, synchronous=True),
        patroni.config_map(names, spec, owner),
        statefulset.stateful_set(names, spec, IMAGE, range(spec.instances), owner, image_from="spec"),
        statefulset.disruption_budget(names, owner),
        migration_job.migration_job(names, spec, IMAGE, "0123456789abcdef", owner, backs_up=True),
        hardening_job.hardening_job(names, spec, IMAGE, "0123456789abcdef", owner),
        volume_job.volume_job(names, spec, IMAGE, "db-volume-01234567", 0, owner),
        *repositories.claims(names, spec, owner),
        *backup_jobs.cron_jobs(names, spec, IMAGE, owner),
        backup_jobs.on_demand_job(names, spec, ASKED, ASKED_AT, "89abcdef01234567", IMAGE, owner),
        backup_jobs.replaced_job(
            names, spec, "medianest_old", "2026-02-01T00:00:00Z", "db-replaced-01234567", IMAGE, owner
        ),
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
            asked=IN_PLACE,
        ),
        *(
            backup_jobs.aside_job(
                names,
                spec,
                RESTORE,
                digest,
                IMAGE,
                owner,
                system_identifier="77109",
                asked=asked,
                others=[],
                schema="restored_x",
            )
            for digest, asked in (("0123456789abcdef", LOOK), ("123456789abcdef0", TABLES))
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
