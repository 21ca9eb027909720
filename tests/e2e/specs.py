"""Specs that the API server refuses and why, some that it accepts, and one as it was stored formerly."""

from __future__ import annotations

from typing import Any

import yaml


def _parameters(**values: Any) -> dict[str, Any]:
    return {"postgresql": {"parameters": values}}


def _backups(**fields: Any) -> dict[str, Any]:
    return {"backup": fields}


def _daily(schedule: str) -> dict[str, Any]:
    return _backups(logical={"daily": {"schedule": schedule, "keep": "7d"}})


_NODES: dict[str, Any] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}
_NEVER = "a schedule must come at some time"
_DAILY = "spec.backup.logical.daily.schedule"

CONTROLLER_REVIEW: list[tuple[dict[str, Any], str]] = [
    # durations
    ({"migrations": {"statementTimeout": "99999999999h"}}, "spec.migrations.statementTimeout"),
    (
        {"migrations": {"statementTimeout": "600h"}},
        "migrations.statementTimeout must be at most 596h",
    ),
    ({"migrations": {"lockTimeout": "600h"}}, "migrations.lockTimeout must be at most 596h: PostgreSQL"),
    ({"tls": {"duration": "100000h", "renewBefore": "90000h"}}, "tls.duration must be at most 87600h: the CA's own"),
    ({"tls": {"duration": "87600h", "renewBefore": "70080h"}}, "tls.renewBefore must be at most half of tls.duration"),
    ({"tls": {"duration": "10m", "renewBefore": "9m59s"}}, "tls.renewBefore must be at most half of tls.duration"),
    ({"tls": {"renewBefore": "0s"}}, "tls.renewBefore must be at least 2m"),
    ({"tls": {"renewBefore": "2160h"}}, "tls.renewBefore must be shorter than tls.duration"),
    ({"tls": {"duration": "700h"}}, "tls.renewBefore must be shorter than tls.duration"),
    (_backups(deadline="2540400h"), "spec.backup.deadline"),
    (_backups(deadline="2540h"), "backup.deadline must be at most 168h"),
    # what Patroni drops
    ({"connections": {"max": 20, "limit": 5}}, "connections.max must be at least 25: Patroni ignores less"),
    (_parameters(max_wal_senders=0), "postgresql.parameters.max_wal_senders is too low: Patroni would ignore it"),
    (_parameters(max_replication_slots="0"), "postgresql.parameters.max_replication_slots is too low"),
    (_parameters(max_worker_processes=0), "postgresql.parameters.max_worker_processes is too low"),
    (_parameters(max_locks_per_transaction=31), "postgresql.parameters.max_locks_per_transaction is too low"),
    # what breaks the configuration file
    (_parameters(search_path="public\n"), "postgresql.parameters.search_path must not hold a line break"),
    (_parameters(log_line_prefix="%m\n"), "postgresql.parameters.log_line_prefix must not hold a line break"),
    # what loses data
    (_parameters(fsync="off"), "postgresql.parameters.fsync must have its safe value"),
    (_parameters(full_page_writes="off"), "postgresql.parameters.full_page_writes must have its safe value"),
    (
        {"instances": 2, "postgresql": {"synchronous": "Required", "parameters": {"synchronous_commit": "off"}}},
        "postgresql.parameters.synchronous_commit must not be off or local",
    ),
    (
        {"instances": 2, "postgresql": {"synchronous": "Preferred", "parameters": {"synchronous_commit": "Local"}}},
        "postgresql.parameters.synchronous_commit must not be off or local",
    ),
    (
        _parameters(zero_damaged_pages="on"),
        "zero_damaged_pages must have its safe value or not be set",
    ),
    (_parameters(ignore_checksum_failure="on"), "ignore_checksum_failure must have its safe value or not be set"),
    (_parameters(recovery_target_time="2020-01-01"), "recovery_target_time must not be set: the operator owns it"),
    # who is kept out, and who gets in
    (_parameters(default_transaction_read_only="on"), "default_transaction_read_only must have its safe value"),
    (_parameters(jit_provider="../../x"), "postgresql.parameters.jit_provider must not be set"),
    (_parameters(ssl_ciphers="NULL"), "postgresql.parameters.ssl_ciphers must not be set"),
    (_parameters(password_encryption="md5"), "password_encryption must have its safe value or not be set: another"),
    # resources
    (
        {"resources": {"requests": {"memory": "2Gi"}}},
        "resources.requests.memory must not exceed resources.limits.memory",
    ),
    ({"resources": {"limits": {"memory": "100Ti"}}}, "resources.limits.memory must be at most 4Ti"),
    ({"resources": {"limits": {"cpu": "1m"}}}, "resources.limits.cpu must be at least 50m"),
    (_backups(scratch={"size": "0"}), "backup.scratch.size must be at least 512Mi"),
    ({"migrations": {"rehearsalLimit": "1m"}}, "migrations.rehearsalLimit must be at least 64Mi"),
    (_backups(resources={"limits": {"memory": "1"}}), "backup.resources.limits.memory must be at least 256Mi"),
    (_backups(resources={"requests": {"memory": "1Gi"}}), "backup.resources.requests.memory must not exceed"),
    # where pods run
    ({"scheduling": {"affinity": {"foo": 1}}}, 'unknown field "spec.scheduling.affinity.foo"'),
    ({"scheduling": {"affinity": {"podAntiAfinity": {}}}}, 'unknown field "spec.scheduling.affinity.podAntiAfinity"'),
    ({"scheduling": {"affinity": {"nodeAffinity": _NODES}}}, "nodeSelectorTerms"),
    ({"scheduling": {"nodeSelector": {"a b": "c"}}}, "scheduling.nodeSelector must have labels as keys"),
    ({"scheduling": {"nodeSelector": {"a": "ü"}}}, "spec.scheduling.nodeSelector.a"),
    ({"scheduling": {"topologyKey": "a b"}}, "spec.scheduling.topologyKey"),
    ({"scheduling": {"tolerations": [{"operator": "Equal"}]}}, "scheduling.tolerations[] must have a key, or operator"),
    (
        {"scheduling": {"tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": -5}]}},
        "spec.scheduling.tolerations[0].tolerationSeconds",
    ),
    (
        {"scheduling": {"tolerations": [{"key": "a", "tolerationSeconds": 5}]}},
        "scheduling.tolerations[].tolerationSeconds must stand with effect NoExecute",
    ),
    (
        {"scheduling": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
        "scheduling.tolerations[] must not have a value with operator Exists",
    ),
    # names
    ({"image": "a:::@@"}, "spec.image"),
    ({"image": "registry.example.org/Upper/case:1"}, "spec.image"),
    ({"migrations": {"source": {"image": {"reference": "a:::@@"}}}}, "spec.migrations.source.image.reference"),
    (
        {"migrations": {"source": {"image": {"reference": "a:1", "path": "/../../proc/1/root"}}}},
        "migrations.source.image.path must be a folder of the image, without . and ..",
    ),
    (
        {"migrations": {"source": {"image": {"reference": "a:1", "path": "/proc/1/root"}}}},
        "migrations.source.image.path must be a folder of the image",
    ),
    (
        _backups(repositories=[{"name": "a", "volume": {"claimName": "data-medianest-0"}}]),
        "claimName must not be a volume of the database itself",
    ),
    (
        _backups(repositories=[{"name": "a", "volume": {"claimName": "wal-medianest-2"}}]),
        "claimName must not be a volume of the database itself",
    ),
    # times
    (_backups(timeZone="/etc/passwd"), "spec.backup.timeZone"),
    (_backups(timeZone="+/-"), "spec.backup.timeZone"),
    (_daily("99 99 99 99 99"), _DAILY),
    (_daily("TZ=UTC 0 0 * *"), _DAILY),
    (_daily("0 0 L * *"), _DAILY),
    (_daily("0 0 30 2 *"), _NEVER),
    (_daily("0 0 31 feb,APR,6,09,11 ?"), _NEVER),
    (_backups(verification={"schedule": "5 4 30,31 02 *"}), _NEVER),
]
"""What a review of the controller found to pass: the specs of its table."""

GOOD_SPECS: list[dict[str, Any]] = [
    {"monitoring": {"storageWarning": 88}, "storage": {"autoGrow": {"trigger": 85}}},
    {
        "monitoring": {"storageWarning": 70},
        "storage": {"autoGrow": {"maximum": "20Gi", "trigger": 71, "increase": "10Gi", "minimumInterval": "1m"}},
        "walStorage": {"size": "2Gi", "autoGrow": {"maximum": "2Gi"}},
        "backup": {"repositories": [{"name": "a", "volume": {"autoGrow": {"maximum": "50Gi"}}}]},
    },
    {},
    {"instances": 3, "postgresql": {"synchronous": "Required", "parameters": {"synchronous_commit": "remote_apply"}}},
    _parameters(fsync="on", synchronous_commit="off", max_wal_senders=3, huge_pages="try", work_mem="8MB"),
    _parameters(search_path='"$user", public', password_encryption="scram-sha-256", **{"app.tenant": "x"}),
    {"resources": {"limits": {}, "requests": {"memory": "64Mi"}}},
    {"resources": {"limits": {"cpu": "2"}}},
    {"connections": {"max": 25, "limit": 5}},
    {"migrations": {"statementTimeout": "596h", "lockTimeout": "1h30m", "rehearsalLimit": "64Mi"}},
    {"tls": {"duration": "1h", "renewBefore": "30m"}},
    {"tls": {"duration": "1440h"}},
    {"tls": {"serverSecret": "given"}},
    {"image": "localhost:5000/a/b_c:1.2@sha256:" + "a" * 64},
    {"image": "postgres:15"},
    _backups(deadline="30m", timeZone="America/Argentina/Buenos_Aires", scratch={"size": "1Gi"}),
    _backups(timeZone="Etc/GMT+5", resources={"limits": {"cpu": "1"}}),
    _backups(repositories=[{"name": "a", "volume": {"claimName": "data-medianest-backups"}}]),
    _daily("*/15 0-6,22 1,15 jan-DEC MON-fri"),
    _daily("0 0 31 1,2 *"),
    _daily("0 0 29 2 *"),
    _daily("0 0 30 2 0"),
    _daily("@weekly"),
    {
        "scheduling": {
            "nodeSelector": {"example.org/disk": "ssd", "zone": ""},
            "tolerations": [
                {"operator": "Exists"},
                {"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": 0},
            ],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]}
                        ]
                    }
                },
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 100,
                            "podAffinityTerm": {
                                "labelSelector": {"matchLabels": {"app": "x"}},
                                "topologyKey": "kubernetes.io/hostname",
                            },
                        }
                    ]
                },
            },
        }
    },
]

BAD_SPECS: list[tuple[dict[str, Any], str]] = [
    ({"instances": 0}, "spec.instances"),
    ({"instances": 10}, "spec.instances"),
    ({"instances": "three"}, "spec.instances"),
    ({"image": "has a space"}, "spec.image"),
    ({"imagePullPolicy": "Sometimes"}, "spec.imagePullPolicy"),
    ({"resources": {"limits": {"memory": "64Mi"}}}, "resources.limits.memory must be at least 256Mi"),
    ({"resources": {"limits": {"memory": "lots"}}}, "spec.resources.limits.memory"),
    (
        {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}},
        "resources.requests.memory must not exceed",
    ),
    ({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}, "resources.requests.cpu must not exceed"),
    ({"storage": {"size": "10"}}, "storage.size must be at least 512Mi"),
    ({"storage": {"size": "ten gigabytes"}}, "spec.storage.size"),
    ({"storage": {"onDelete": "Shred"}}, "spec.storage.onDelete"),
    ({"storage": {"size": "10Gi", "autoGrow": {"maximum": "9Gi"}}}, "storage.autoGrow.maximum must be at least"),
    ({"walStorage": {"autoGrow": {"maximum": "1Gi"}}}, "walStorage.autoGrow.maximum must be at least walStorage.size"),
    ({"storage": {"autoGrow": {"maximum": "20Gi", "trigger": 90}}}, "spec.storage.autoGrow.trigger"),
    (
        {"storage": {"autoGrow": {"maximum": "20Gi", "trigger": 80}}},
        "storage.autoGrow.trigger must be above monitoring",
    ),
    (
        {"monitoring": {"storageWarning": 85}, "storage": {"autoGrow": {"maximum": "20Gi"}}},
        "storage.autoGrow.trigger must be above monitoring.storageWarning",
    ),
    (
        {"monitoring": {"storageWarning": 86}, "walStorage": {"autoGrow": {"maximum": "20Gi"}}},
        "walStorage.autoGrow.trigger must be above monitoring.storageWarning",
    ),
    ({"storage": {"autoGrow": {"maximum": "20Gi", "minimumInterval": "30s"}}}, "autoGrow.minimumInterval must be 1m"),
    ({"storage": {"autoGrow": {"maximum": "20Gi", "increase": "101%"}}}, "spec.storage.autoGrow.increase"),
    ({"monitoring": {"storageWarning": 95}}, "spec.monitoring.storageWarning"),
    (
        _backups(repositories=[{"name": "a", "volume": {"size": "2Gi", "autoGrow": {"maximum": "1Gi"}}}]),
        "backup.repositories[].volume.autoGrow.maximum must be at least backup.repositories[].volume.size",
    ),
    (
        _backups(repositories=[{"name": "a", "volume": {"claimName": "mine", "autoGrow": {"maximum": "1Gi"}}}]),
        "backup.repositories[].volume must have either claimName or autoGrow",
    ),
    (
        _backups(repositories=[{"name": "a", "volume": {"autoGrow": {"maximum": "50Gi", "trigger": 75}}}]),
        "backup.repositories[].volume.autoGrow.trigger must be above monitoring.storageWarning",
    ),
    ({"storage": {"storageClassName": "Not A Name"}}, "spec.storage.storageClassName"),
    ({"walStorage": {"size": "1Mi"}}, "walStorage.size must be at least 512Mi"),
    ({"postgresql": {"synchronous": "Sometimes"}}, "spec.postgresql.synchronous"),
    ({"postgresql": {"synchronous": "Required"}}, "postgresql.synchronous Required needs instances of at least 2"),
    ({"postgresql": {"parameters": {"ssl": "off"}}}, "postgresql.parameters.ssl must not be set: the operator owns it"),
    ({"postgresql": {"parameters": {"archive_command": "/bin/true"}}}, "parameters.archive_command must not be set"),
    ({"postgresql": {"parameters": {"max_connections": 500}}}, "max_connections is connections.max"),
    ({"postgresql": {"parameters": {"Work_Mem": "8MB"}}}, "postgresql.parameters.Work_Mem must be named as PostgreSQL"),
    ({"postgresql": {"parameters": {"jit": True}}}, "spec.postgresql.parameters.jit"),
    ({"database": {"name": "postgres"}}, "database.name must not be one of PostgreSQL's own"),
    ({"database": {"name": "has-dash"}}, "spec.database.name"),
    ({"database": {"owner": "pg_owner"}}, "database.owner must not be a reserved role name"),
    ({"database": {"owner": "postgres"}}, "database.owner must not be a reserved role name"),
    ({"connections": {"max": 10}}, "spec.connections.max"),
    ({"connections": {"max": 60, "limit": 55}}, "connections.limit must leave at least 10"),
    ({"migrations": {"source": {"bundled": {}, "configMap": {"name": "x"}}}}, "only one of bundled, configMap and"),
    ({"migrations": {"source": {"image": {"reference": "a:1", "path": "relative"}}}}, "migrations.source.image.path"),
    ({"migrations": {"onFailure": "Ignore"}}, "migrations.onFailure"),
    ({"migrations": {"rehearse": "Sometimes"}}, "migrations.rehearse"),
    ({"migrations": {"lockTimeout": "0s"}}, "migrations.lockTimeout must be more than 0s"),
    ({"migrations": {"rehearsalLimit": "1Ti"}}, "migrations.rehearsalLimit must be at most 16Gi"),
    ({"migrations": {"retry": "-"}}, "migrations.retry"),
    (
        {"backup": {"repositories": [{"name": "a", "volume": {"size": "1Mi"}}]}},
        "backup.repositories[].volume.size must be at least 128Mi",
    ),
    (
        {"backup": {"repositories": [{"name": "a"}]}},
        "backup.repositories[] must name exactly one of volume and s3",
    ),
    (
        {"backup": {"repositories": [{"name": "a", "volume": {}}, {"name": "a", "volume": {}}]}},
        "backup.repositories must have different names",
    ),
    (
        {"backup": {"repositories": [{"name": "a", "volume": {"claimName": "x", "size": "1Gi"}}]}},
        "backup.repositories[].volume must have either claimName or size and storageClassName",
    ),
    ({"backup": {"logical": {"daily": {"schedule": "sometimes", "keep": "7d"}}}}, "spec.backup.logical.daily.schedule"),
    ({"backup": {"logical": {"daily": {"schedule": "@daily", "keep": "7"}}}}, "spec.backup.logical.daily.keep"),
    ({"backup": {"deadline": "5s"}}, "backup.deadline must be at least 1m"),
    ({"backup": {"encryption": {"recipients": ["not a key"]}}}, "spec.backup.encryption.recipients[0]"),
    ({"backup": {"encryption": {}}}, "backup.encryption must have recipients, signingSecret or both"),
    ({"bootstrap": {}}, "bootstrap must name exactly one of restore and import"),
    (
        {"bootstrap": {"restore": {"repository": {"name": "a", "volume": {}}}}},
        "bootstrap.restore.repository.volume must name the volume's claim (claimName)",
    ),
    # A restore in place is an object of its own.
    ({"restore": {"backup": "latest"}}, 'unknown field "spec.restore"'),
    ({"migrations": {"source": {"configMap": {}}}}, "spec.migrations.source.configMap.name"),
    ({"migrations": {"target": "../etc"}}, "spec.migrations.target"),
    (
        {"hardening": {"checkConstraints": {"userRoles": ["user", "user"]}}},
        "hardening.checkConstraints.userRoles must not name a value twice",
    ),
    ({"hardening": {"checkConstraints": {"mediaTypes": []}}}, "spec.hardening.checkConstraints.mediaTypes"),
    ({"hardening": {"checkConstraints": {"userStatuses": ["x" * 51]}}}, "spec.hardening.checkConstraints.userStatuses"),
    ({"tls": {"duration": "24h", "renewBefore": "48h"}}, "tls.renewBefore must be shorter than tls.duration"),
    ({"tls": {"duration": "1m", "renewBefore": "30s"}}, "tls.duration must be at least 10m"),
    ({"tls": {"duration": "forever"}}, "spec.tls.duration"),
    ({"scheduling": {"antiAffinity": "Maybe"}}, "spec.scheduling.antiAffinity"),
    ({"scheduling": {"tolerations": [{"effect": "Never"}]}}, "spec.scheduling.tolerations[0].effect"),
    ({"paused": "yes"}, "spec.paused"),
    ({"instnaces": 3}, 'unknown field "spec.instnaces"'),
    *CONTROLLER_REVIEW,
]

ONCE_STORED: dict[str, Any] = yaml.safe_load("""
instances: 1
imagePullPolicy: IfNotPresent
imagePullSecrets: []
resources: {requests: {cpu: 250m}, limits: {memory: 1Gi}}
storage: {size: 10Gi, onDelete: Retain}
postgresql: {parameters: {}, synchronous: "Off"}
database: {name: medianest, owner: medianest}
connections: {max: 100, limit: 50, poolTimeout: 60, connectTimeout: 10}
migrations: {source: {}, onFailure: Rollback, rehearse: Auto, rehearsalLimit: 2Gi, allowDestructive: false,
  lockTimeout: 10s, statementTimeout: 0s}
hardening:
  recommendedIndexes: false
  checkConstraints: {enabled: false, userRoles: [user, admin, moderator, USER, ADMIN, MODERATOR],
    userStatuses: [active, inactive, suspended, deleted], mediaTypes: [movie, tv, music, book],
    mediaRequestStatuses: [pending, approved, processing, partially-available, available, completed, denied, rejected,
      failed, cancelled]}
  auditColumns: false
  rowLevelSecurity: false
backup:
  repositories: [{name: volume, volume: {onDelete: Retain}}]
  logical:
    daily: {enabled: true, schedule: 0 2 * * *, keep: 7d}
    weekly: {enabled: true, schedule: 0 3 * * 0, keep: 30d}
    monthly: {enabled: true, schedule: 0 4 1 * *, keep: 90d}
    formats: []
  timeZone: Etc/UTC
  verification: {enabled: true, schedule: 0 5 15 * *}
  scratch: {}
  resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 512Mi}}
  deadline: 6h
  suspend: false
notifications: []
tls: {duration: 2160h, renewBefore: 720h}
scheduling: {nodeSelector: {}, tolerations: [], antiAffinity: Preferred, topologyKey: kubernetes.io/hostname,
  affinity: {}}
deletionProtection: false
hibernate: false
paused: true
""")
"""What an operator before this definition left in every object that named nothing."""

BAD_OPERATIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "spec must name exactly one operation: restore"),
    ({"revert": {"operation": "a"}}, 'unknown field "spec.revert"'),
    ({"database": "Db", "restore": {}}, "spec.database"),
    ({"restore": {"backup": "latest", "targetTime": "2026-11-22T09:30:00Z"}}, "backup and restore.targetTime exclude"),
    ({"restore": {"backup": "../latest"}}, "spec.restore.backup"),
    ({"restore": {"targetTime": "yesterday"}}, "spec.restore.targetTime"),
    ({"restore": {"targetTime": "2026-11-22T09:30:00"}}, "spec.restore.targetTime"),
    ({"restore": {"targetTime": "2026-02-30T09:30:00Z"}}, "spec.restore.targetTime"),
    ({"restore": {"repository": "At tic"}}, "spec.restore.repository"),
    ({"restore": {"keepReplaced": "0d"}}, "spec.restore.keepReplaced"),
    ({"restore": {"keepReplaced": "7h"}}, "spec.restore.keepReplaced"),
    ({"restore": {"acceptDifferences": ["view a", "view a"]}}, "spec.restore.acceptDifferences"),
    ({"restore": {"tables": ["users"], "keepReplaced": "7d"}}, "restore.tables replaces nothing"),
    ({"restore": {"tables": ["users"], "acceptDifferences": ["view a"]}}, "restore.tables replaces nothing"),
    ({"restore": {"tables": ["users", "users"]}}, "spec.restore.tables"),
    ({"restore": {"tables": [""]}}, "spec.restore.tables"),
    ({"restore": {"tables": []}}, "spec.restore.tables"),
    ({"restore": {"acceptDifferences": [""]}}, "spec.restore.acceptDifferences"),
    ({"restore": {"dryRun": "yes"}}, "spec.restore.dryRun"),
    ({"restore": {"acceptUnsigned": True}}, "restore.acceptUnsigned is for a backup that restore.backup names"),
    ({"restore": {"acceptUnsigned": True, "backup": "latest"}}, "restore.acceptUnsigned is for a backup"),
    ({"restore": {"requestId": "1"}}, 'unknown field "spec.restore.requestId"'),
    ({"ttlAfterFinished": "30", "restore": {}}, "spec.ttlAfterFinished"),
]
GOOD_OPERATIONS: list[dict[str, Any]] = [
    {"restore": {}},
    {"restore": {"backup": "20261122T020000Z-daily-aaaa", "acceptUnsigned": True}},
    {"restore": {"backup": "20261122T020000Z-daily-aaaa", "repository": "volume", "keepReplaced": "90d"}},
    {"restore": {"targetTime": "2026-11-22T10:30:00+01:00", "dryRun": True}, "ttlAfterFinished": "1d"},
    {"restore": {"acceptDifferences": ["view totals", "table users: column nickname (text)"]}},
    {"restore": {"tables": ["users", 'other."Odd Name"'], "targetTime": "2026-11-22T09:30:00Z", "dryRun": True}},
]
