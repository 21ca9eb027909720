"""The spec of a `MediaNestDatabase`. Every field has a safe default: `spec: {}` is a working database."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from medianest_operator import naming
from medianest_operator.api.auto_grow import WARNING_RULES, AutoGrow, maximum_rule
from medianest_operator.api.backup import DEFAULT_REPOSITORY, Backup
from medianest_operator.api.bootstrap import Bootstrap
from medianest_operator.api.hardening import Hardening
from medianest_operator.api.migrations import Migrations
from medianest_operator.api.model import (
    ApiModel,
    Duration,
    ImageName,
    LocalReference,
    ObjectName,
    OnDelete,
    Quantity,
    ResourceAmounts,
    SqlName,
    or_default,
    rules,
    same_storage_class,
    with_rules,
)
from medianest_operator.api.monitoring import Monitoring
from medianest_operator.api.notifications import Notification
from medianest_operator.api.parameters import NO_COMMIT, PATRONI_MINIMA, parameter_rules
from medianest_operator.api.scheduling import Scheduling

_LEAST_CONNECTIONS, _FALLBACK_CONNECTIONS = PATRONI_MINIMA["max_connections"]
_DURATION = or_default("duration", "duration", "2160h")
_RENEW_BEFORE = or_default("duration", "renewBefore", "720h")
_RESERVED_ROLES = "['postgres', 'standby', 'public', 'none', 'medianest_operator']"


class Synchronous(StrEnum):
    """Whether a commit waits for a replica (Patroni's synchronous_mode)."""

    OFF = "Off"
    PREFERRED = "Preferred"
    REQUIRED = "Required"


class ContainerRequests(ResourceAmounts):
    cpu: Quantity = "250m"
    """CPU, for instance `500m`."""
    memory: Quantity | None = None
    """Memory, for instance `1Gi`; half of the limit where unset."""


class ContainerLimits(ResourceAmounts):
    memory: Quantity = "1Gi"
    """Memory, for instance `4Gi`: it decides shared_buffers and the rest of the tuning."""


class Resources(ApiModel):
    """Resources of one PostgreSQL container. PostgreSQL is tuned from the limits."""

    model_config = with_rules(
        (
            "!has(self.limits.memory) || quantity(self.limits.memory).compareTo(quantity('256Mi')) >= 0",
            "resources.limits.memory must be at least 256Mi: PostgreSQL, Patroni and 50 connections need that",
        ),
        (
            "!has(self.limits.memory) || quantity(self.limits.memory).compareTo(quantity('4Ti')) <= 0",
            "resources.limits.memory must be at most 4Ti: PostgreSQL can't be tuned for more",
        ),
        (
            "!has(self.limits.cpu) || quantity(self.limits.cpu).compareTo(quantity('50m')) >= 0",
            "resources.limits.cpu must be at least 50m: with less, PostgreSQL doesn't answer its probes in time",
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

    requests: ContainerRequests = ContainerRequests()
    """What the scheduler reserves."""
    limits: ContainerLimits = ContainerLimits()
    """What the container may use."""


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
        maximum_rule("storage"),
    )

    size: Quantity = "10Gi"
    """Size of each volume. It can grow while the database runs where the storage class allows it, and never shrinks."""
    storage_class_name: ObjectName | None = None
    """The storage class; the cluster's default where unset. Immutable."""
    on_delete: OnDelete = OnDelete.RETAIN
    """Retain keeps the volumes when the object is deleted; an object of the same name picks them up again."""
    auto_grow: AutoGrow | None = None
    """Larger volumes before they are full, up to a maximum."""
    read_only_when_full: bool = True
    """The application can only read while a volume of the primary, also one of the log, is nearly full. Where this is
    false it writes until PostgreSQL stops."""


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
        maximum_rule("walStorage"),
    )

    size: Quantity = "2Gi"
    """Size of the volume; it also bounds max_wal_size."""
    storage_class_name: ObjectName | None = None
    """The storage class; the cluster's default where unset. Immutable."""
    auto_grow: AutoGrow | None = None
    """Larger volumes before they are full, up to a maximum."""


class Postgresql(ApiModel):
    """PostgreSQL's own settings."""

    model_config = with_rules(
        (
            "!has(self.parameters) || self.synchronous == 'Off' || !('synchronous_commit' in self.parameters) || "
            f"!(string(self.parameters['synchronous_commit']).lowerAscii() in {list(NO_COMMIT)})",
            "postgresql.parameters.synchronous_commit must not be off or local beside postgresql.synchronous Preferred "
            "or Required: no commit would wait for a replica, and acknowledged writes would be lost with the primary",
        )
    )

    parameters: Annotated[dict[str, int | str], Field(max_length=100, json_schema_extra=parameter_rules())] = {}
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

    max: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            json_schema_extra=rules(
                (
                    f"self >= {_LEAST_CONNECTIONS}",
                    f"connections.max must be at least {_LEAST_CONNECTIONS}: Patroni ignores less and starts "
                    f"PostgreSQL with {_FALLBACK_CONNECTIONS}",
                )
            ),
        ),
    ] = 100
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
            f"{_RENEW_BEFORE} < {_DURATION}",
            "tls.renewBefore must be shorter than tls.duration",
        ),
        (
            f"{_RENEW_BEFORE}.getSeconds() * 2 <= {_DURATION}.getSeconds()",
            "tls.renewBefore must be at most half of tls.duration: a certificate would be renewed again and again",
        ),
        (
            f"{_RENEW_BEFORE} >= duration('2m')",
            "tls.renewBefore must be at least 2m: the kubelet brings a renewed certificate to the pods within that",
        ),
        (f"{_DURATION} >= duration('10m')", "tls.duration must be at least 10m"),
        (
            f"{_DURATION} <= duration('87600h')",
            "tls.duration must be at most 87600h: the CA's own certificate is valid for ten years",
        ),
    )

    server_secret: ObjectName | None = None
    """A Secret with tls.crt, tls.key and ca.crt to serve instead of a certificate of the operator's own CA, for
    instance cert-manager's. Its certificate must name <object>-rw.<namespace>.svc and
    *.<object>-pods.<namespace>.svc."""
    duration: Duration = "2160h"
    """How long the operator's certificates are valid."""
    renew_before: Duration = "720h"
    """How long before its end a certificate is renewed; PostgreSQL reloads it, open connections stay."""


def _size_of(spec: str, repository: str) -> str:
    """CEL: the size of a repository's volume of the operator's, or that of storage where none is said."""
    return f"(has({repository}.volume.size) ? {repository}.volume.size : {spec}.storage.size)"


def _made_volumes(spec: str, item: str, condition: str, default: str) -> str:
    """CEL: a condition over all repositories whose volume the operator makes; another one where none is named."""
    return (
        f"(has({spec}.backup) && has({spec}.backup.repositories) ? {spec}.backup.repositories.all({item}, "
        f"!has({item}.volume) || has({item}.volume.claimName) || ({condition})) : ({default}))"
    )


def _not_smaller(new: str, old: str) -> str:
    return f"quantity({new}).compareTo(quantity({old})) >= 0"


# Of each repository before, those of the same name now. Where no repository is named there is one, of storage's size.
_NO_BACKUP_VOLUME_SHRINKS = _made_volumes(
    "oldSelf",
    "o",
    _made_volumes(
        "self",
        "n",
        f"n.name != o.name || {_not_smaller(_size_of('self', 'n'), _size_of('oldSelf', 'o'))}",
        f"o.name != '{DEFAULT_REPOSITORY}' || {_not_smaller('self.storage.size', _size_of('oldSelf', 'o'))}",
    ),
    _made_volumes(
        "self",
        "n",
        f"n.name != '{DEFAULT_REPOSITORY}' || {_not_smaller(_size_of('self', 'n'), 'oldSelf.storage.size')}",
        "true",
    ),
)


class DatabaseSpec(ApiModel):
    """What the admin wants."""

    model_config = with_rules(
        (
            "self.postgresql.synchronous != 'Required' || self.instances >= 2",
            "postgresql.synchronous Required needs instances of at least 2: with one, commits would wait indefinitely",
        ),
        (
            "has(self.walStorage) == has(oldSelf.walStorage)",
            "walStorage can't be added or removed later: create a new object with it",
        ),
        (
            _NO_BACKUP_VOLUME_SHRINKS,
            "backup.repositories[].volume.size can't shrink: volumes only grow; give the repository another name for a "
            "new one",
        ),
        *WARNING_RULES,
    )

    instances: Annotated[int, Field(ge=1, le=naming.MAX_INSTANCES)] = 1
    """How many PostgreSQL servers: one primary, the others its streaming replicas."""
    image: ImageName | None = None
    """The database image. Unset: the one that the operator named when the object was created; a newer operator never
    changes it (see status.image)."""
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
    monitoring: Monitoring = Monitoring()
    """What counts as slow, and from when on volumes are too full."""
    notifications: Annotated[list[Notification], Field(max_length=16)] = []
    """Webhooks that are called with each Warning."""
    tls: Tls = Tls()
    """Certificates."""
    scheduling: Scheduling = Scheduling()
    """Where the pods run."""
    deletion_protection: bool = False
    """Refuses the deletion of this object until it is set to false (by a ValidatingAdmissionPolicy of the chart)."""
    hibernate: bool = False
    """Stops all instances cleanly and keeps the volumes."""
    paused: bool = False
    """The operator changes nothing of this database while true, but for whether its volumes go with the object; it goes
    on to report."""
