"""The spec of a `MediaNestDatabase`. Every field has a safe default: `spec: {}` is a working database."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from medianest_operator import naming
from medianest_operator.api.backup import Backup
from medianest_operator.api.bootstrap import Bootstrap, Restore
from medianest_operator.api.hardening import Hardening
from medianest_operator.api.migrations import Migrations
from medianest_operator.api.model import (
    ApiModel,
    Duration,
    LocalReference,
    ObjectName,
    OnDelete,
    Quantity,
    ResourceAmounts,
    SqlName,
    rules,
    same_storage_class,
    with_rules,
)
from medianest_operator.api.notifications import Notification

RESERVED_PARAMETERS = (
    "allow_system_table_mods", "archive_cleanup_command", "archive_command", "archive_library", "archive_mode",
    "cluster_name", "config_file", "data_directory", "dynamic_library_path", "event_source", "external_pid_file",
    "hba_file", "hot_standby", "ident_file", "listen_addresses", "local_preload_libraries", "log_destination",
    "log_directory", "log_filename", "logging_collector", "max_connections", "port", "primary_conninfo",
    "primary_slot_name", "promote_trigger_file", "recovery_end_command", "recovery_min_apply_delay",
    "restart_after_crash", "restore_command", "session_preload_libraries", "ssl", "ssl_ca_file", "ssl_cert_file",
    "ssl_crl_dir", "ssl_crl_file", "ssl_dh_params_file", "ssl_key_file", "ssl_passphrase_command",
    "synchronous_standby_names", "unix_socket_directories", "unix_socket_group", "unix_socket_permissions",
    "wal_level",
)  # fmt: skip
"""Parameters that the operator or Patroni owns: they carry availability, encryption or the server's identity."""

_RESERVED_LIST = ", ".join(f"'{name}'" for name in RESERVED_PARAMETERS)
_RESERVED_ROLES = "['postgres', 'standby', 'public', 'none', 'medianest_operator']"


class Synchronous(StrEnum):
    """Whether a commit waits for a replica (Patroni's synchronous_mode)."""

    OFF = "Off"
    PREFERRED = "Preferred"
    REQUIRED = "Required"


class AntiAffinity(StrEnum):
    """How strongly the instances avoid sharing a node."""

    PREFERRED = "Preferred"
    REQUIRED = "Required"


class Resources(ApiModel):
    """Resources of one PostgreSQL container. PostgreSQL is tuned from the limits."""

    model_config = with_rules(
        (
            "!has(self.limits.memory) || quantity(self.limits.memory).compareTo(quantity('256Mi')) >= 0",
            "resources.limits.memory must be at least 256Mi: PostgreSQL, Patroni and 50 connections need that",
        ),
        (
            "!has(self.limits.memory) || !has(self.requests.memory) || "
            "quantity(self.requests.memory).compareTo(quantity(self.limits.memory)) <= 0",
            "resources.requests.memory must not exceed resources.limits.memory",
        ),
        (
            "!has(self.limits.cpu) || !has(self.requests.cpu) || "
            "quantity(self.requests.cpu).compareTo(quantity(self.limits.cpu)) <= 0",
            "resources.requests.cpu must not exceed resources.limits.cpu",
        ),
    )

    requests: ResourceAmounts = ResourceAmounts(cpu="250m")
    """What the scheduler reserves; memory: half of the limit where unset."""
    limits: ResourceAmounts = ResourceAmounts(memory="1Gi")
    """What the container may use; memory decides shared_buffers and the rest of the tuning."""


class Storage(ApiModel):
    """The volume of every instance."""

    model_config = with_rules(
        (
            "quantity(self.size).compareTo(quantity('512Mi')) >= 0",
            "storage.size must be at least 512Mi: an empty cluster with its write-ahead log takes some 100 MB",
        ),
        (
            "quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0",
            "storage.size can't shrink: volumes only grow; restore into a new, smaller database instead",
        ),
        same_storage_class("storage"),
    )

    size: Quantity = "10Gi"
    """Size of each volume. It can grow while the database runs where the storage class allows it, and never shrinks."""
    storage_class_name: ObjectName | None = None
    """The storage class; the cluster's default where unset. Immutable."""
    on_delete: OnDelete = OnDelete.RETAIN
    """Retain keeps the volumes when the object is deleted; an object of the same name picks them up again."""


class WalStorage(ApiModel):
    """A volume of its own for the write-ahead log. Can't be added or removed later."""

    model_config = with_rules(
        (
            "quantity(self.size).compareTo(quantity('512Mi')) >= 0",
            "walStorage.size must be at least 512Mi",
        ),
        (
            "quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0",
            "walStorage.size can't shrink: volumes only grow",
        ),
        same_storage_class("walStorage"),
    )

    size: Quantity = "2Gi"
    """Size of the volume; it also bounds max_wal_size."""
    storage_class_name: ObjectName | None = None
    """The storage class; the cluster's default where unset. Immutable."""


class Postgresql(ApiModel):
    """PostgreSQL's own settings."""

    parameters: Annotated[
        dict[str, int | str],
        Field(
            max_length=100,
            json_schema_extra=rules(
                (
                    f"self.all(name, !(name in [{_RESERVED_LIST}]))",
                    "postgresql.parameters must not set a parameter that the operator owns (listening, archiving, "
                    "TLS, authentication, replication, logging destination, wal_level); max_connections is "
                    "connections.max",
                ),
                (
                    "self.all(name, name.matches('^[a-z_][a-z0-9_]*([.][a-z_][a-z0-9_]*)?$'))",
                    "postgresql.parameters must have names as PostgreSQL writes them: small letters, digits, "
                    "underscores, and a dot for an extension's",
                ),
            ),
        ),
    ] = {}
    """Parameters beside and above the ones tuned from the limits, for instance `work_mem: 8MB`. Values are numbers or
    strings (write "on", not on). What needs a restart is restarted in order, replicas first."""
    synchronous: Synchronous = Synchronous.OFF
    """Off: commits don't wait. Preferred: they wait for a replica while one is there. Required: always, so that no
    acknowledged write is lost when the primary is; without a replica, commits wait."""


class DatabaseNames(ApiModel):
    """The database in the server. Immutable."""

    model_config = with_rules(
        ("self.name == oldSelf.name", "database.name can't change: create a new object instead"),
        ("self.owner == oldSelf.owner", "database.owner can't change: create a new object instead"),
        (
            "!(self.name in ['postgres', 'template0', 'template1'])",
            "database.name must not be one of PostgreSQL's own (postgres, template0, template1)",
        ),
        (
            f"!(self.owner in {_RESERVED_ROLES}) && !self.owner.startsWith('pg_')",
            "database.owner must not be a reserved role name (postgres, standby, public, none, pg_*)",
        ),
    )

    name: SqlName = "medianest"
    """Name of the database."""
    owner: SqlName = "medianest"
    """The role that owns the schema; it can't log in. The login roles are <owner>_app, _readonly, _migrator, _monitor
    and _backup; the operator itself reads the database as <owner>_controller."""


class Connections(ApiModel):
    """How many connections, and what the Secrets tell the application's pool."""

    model_config = with_rules(
        (
            "self.limit <= self.max - 10",
            "connections.limit must leave at least 10 of connections.max for replication, migrations and people",
        )
    )

    max: Annotated[int, Field(ge=20, le=1000)] = 100
    """PostgreSQL's max_connections."""
    limit: Annotated[int, Field(ge=1, le=990)] = 50
    """Prisma's connection_limit in DATABASE_URL: the size of one application process's pool."""
    pool_timeout: Annotated[int, Field(ge=1, le=600)] = 60
    """Prisma's pool_timeout in DATABASE_URL, in seconds."""
    connect_timeout: Annotated[int, Field(ge=1, le=300)] = 10
    """connect_timeout in DATABASE_URL, in seconds."""


class Tls(ApiModel):
    """Certificates. TLS itself can't be turned off."""

    model_config = with_rules(
        (
            "duration(self.renewBefore) < duration(self.duration)",
            "tls.renewBefore must be shorter than tls.duration",
        ),
        ("duration(self.duration) >= duration('10m')", "tls.duration must be at least 10m"),
    )

    server_secret: ObjectName | None = None
    """A Secret with tls.crt, tls.key and ca.crt to serve instead of a certificate of the operator's own authority, for
    instance cert-manager's. Its certificate must name <object>-rw.<namespace>.svc and
    *.<object>-pods.<namespace>.svc."""
    duration: Duration = "2160h"
    """How long the operator's certificates are valid."""
    renew_before: Duration = "720h"
    """How long before its end a certificate is renewed; PostgreSQL reloads it, open connections stay."""


class Toleration(ApiModel):
    key: str | None = None
    operator: Annotated[str, Field(pattern="^(Exists|Equal)$")] | None = None
    value: str | None = None
    effect: Annotated[str, Field(pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$")] | None = None
    toleration_seconds: int | None = None


class Scheduling(ApiModel):
    """Where the pods run."""

    node_selector: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that the pods tolerate."""
    anti_affinity: AntiAffinity = AntiAffinity.PREFERRED
    """Preferred spreads the instances over nodes where it can; Required leaves an instance Pending rather than let two
    share."""
    topology_key: Annotated[str, Field(max_length=253)] = "kubernetes.io/hostname"
    """The node label that tells places apart, for instance topology.kubernetes.io/zone."""
    affinity: Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] = {}
    """A pod affinity as Kubernetes defines it, instead of antiAffinity."""
    priority_class_name: ObjectName | None = None
    """The pods' priority class."""


class DatabaseSpec(ApiModel):
    """What the admin wants."""

    model_config = with_rules(
        (
            "self.postgresql.synchronous != 'Required' || self.instances >= 2",
            "postgresql.synchronous Required needs instances of at least 2: with one, commits would wait for ever",
        ),
        (
            "has(self.walStorage) == has(oldSelf.walStorage)",
            "walStorage can't be added or removed later: create a new object with it",
        ),
        (
            "!has(self.restore) || !has(self.restore.repository) || "
            "self.backup.repositories.exists(item, item.name == self.restore.repository)",
            "restore.repository must be the name of one of backup.repositories",
        ),
    )

    instances: Annotated[int, Field(ge=1, le=naming.MAX_INSTANCES)] = 1
    """How many PostgreSQL servers: one primary, the others its streaming replicas."""
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$", max_length=512)] | None = None
    """The database image. Unset: the one that the operator named when the object was created; a newer operator never
    changes it by itself (status.image tells it)."""
    image_pull_policy: Annotated[str, Field(pattern="^(Always|IfNotPresent|Never)$")] = "IfNotPresent"
    """When the kubelet pulls the image."""
    image_pull_secrets: Annotated[list[LocalReference], Field(max_length=16)] = []
    """Secrets for the image's registry."""
    resources: Resources = Resources()
    """Resources of each PostgreSQL container."""
    storage: Storage = Storage()
    """The data volume of each instance."""
    wal_storage: WalStorage | None = None
    """A separate volume for the write-ahead log."""
    postgresql: Postgresql = Postgresql()
    """PostgreSQL's settings."""
    database: DatabaseNames = DatabaseNames()
    """Names of the database and its owner."""
    connections: Connections = Connections()
    """Connection limits and the application's pool."""
    migrations: Migrations = Migrations()
    """The schema's migrations."""
    hardening: Hardening = Hardening()
    """Optional objects of the operator's in the application's tables."""
    backup: Backup = Backup()
    """Backups: where, when, for how long, and how they are verified."""
    bootstrap: Bootstrap | None = None
    """What a new database begins with, instead of nothing: a backup, or a copy of a running database."""
    restore: Restore | None = None
    """Asks for a restore in place."""
    notifications: Annotated[list[Notification], Field(max_length=16)] = []
    """Webhooks that are told of Warnings."""
    tls: Tls = Tls()
    """Certificates."""
    scheduling: Scheduling = Scheduling()
    """Where the pods run."""
    deletion_protection: bool = False
    """Refuses the deletion of this object until it is set to false (by a ValidatingAdmissionPolicy of the chart)."""
    hibernate: bool = False
    """Stops all instances cleanly and keeps the volumes."""
    paused: bool = False
    """The operator changes nothing of this database while true; it goes on to report."""
