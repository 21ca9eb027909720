"""Every name that the project gives: kinds, labels, annotations, objects, ports, paths, roles.

Nothing else spells one. Objects of a database start with the database's own name, so that `kubectl get all` sorts them
together; labels follow the Kubernetes recommended set.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

GROUP: Final = "medianest.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "MediaNestDatabase"
PLURAL: Final = "medianestdatabases"
SHORT_NAME: Final = "mndb"
CATEGORY: Final = "medianest"
BACKUP_KIND: Final = "MediaNestBackup"
BACKUP_PLURAL: Final = "medianestbackups"
BACKUP_SHORT_NAME: Final = "mnbk"
OPERATION_KIND: Final = "MediaNestOperation"
OPERATION_PLURAL: Final = "medianestoperations"
OPERATION_SHORT_NAME: Final = "mnop"

INSTANCE_ROLE: Final = "ClusterRole/medianest-instance"
"""Kind and name of the fixed role of all database pods, which comes with the operator."""
OPERATOR: Final = "medianest-operator"
"""The controller's own name: field manager, user agent, Lease, event source."""
FIELD_MANAGER: Final = OPERATOR
STATUS_FIELD_MANAGER: Final = f"{OPERATOR}-status"

# Labels (https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/)
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_DATABASE: Final = f"{GROUP}/database"
LABEL_ROLE: Final = f"{GROUP}/role"
"""Set on every database pod by Patroni."""
LABEL_TIER: Final = f"{GROUP}/tier"
"""On a backup Job: the series that it belongs to."""
LABEL_SCOPE: Final = f"{GROUP}/patroni-scope"
MANAGED_SELECTOR: Final = f"{LABEL_MANAGED_BY}={OPERATOR}"

ROLE_PRIMARY: Final = "primary"
ROLE_REPLICA: Final = "replica"
COMPONENT_POSTGRES: Final = "postgres"
COMPONENT_MIGRATION: Final = "migration"
COMPONENT_HARDENING: Final = "hardening"
COMPONENT_BACKUP: Final = "backup"
COMPONENT_VERIFICATION: Final = "verification"
COMPONENT_RESTORE: Final = "restore"
COMPONENT_ASIDE: Final = "aside"
"""Of a Job that says what a restore would do."""
COMPONENT_VOLUME: Final = "volume"
"""Of a Job that reads how far the data on a kept volume go."""
COMPONENT_REPOSITORY: Final = "backup-repository"

ANNOTATION_APPLIED: Final = f"{GROUP}/applied-hash"
"""Digest of the manifest as it was last applied, so that a field that left the manifest is noticed."""
ANNOTATION_POD_INPUTS: Final = f"{GROUP}/pod-inputs"
"""Digest of the parts of the spec that a database pod depends on: another digest, and only that, replaces the pod."""
ANNOTATION_POD_INPUTS_DOCUMENT: Final = f"{GROUP}/pod-inputs-document"
"""The same parts themselves, so that people can be told which of them changed."""
ANNOTATION_IMAGE_FROM: Final = f"{GROUP}/image-from"
"""On the StatefulSet: whether its image was named by the `spec` or by the `operator`."""
ANNOTATION_LED_SINCE: Final = f"{GROUP}/led-since"
"""On the claim of an instance's data: when it was first seen to lead, where it led last."""
ANNOTATION_LEFT_BEHIND: Final = f"{GROUP}/left-behind"
"""On the claim of an instance's data: when the others went on without it."""
ANNOTATION_BEGIN_WITH: Final = f"{GROUP}/begin-with"
"""On the claim of an instance's data, by a person: begin with this one, although another may have newer data."""
ANNOTATION_BEGUN_BY_CHOICE: Final = f"{GROUP}/begun-by-choice"
"""On the claim of an instance's data: when it began because a person chose it, until it leads with that choice."""
ANNOTATION_COPY_AGAIN: Final = f"{GROUP}/copy-again"
"""On the claim of an instance's data: a person began with another one, so that this one is to be replaced."""
ANNOTATION_SOURCE_DIGEST: Final = f"{GROUP}/migrations-digest"
ANNOTATION_RECHECK: Final = f"{GROUP}/recheck"
"""On a migration Job that only looks whether an image has other migrations by now."""
ANNOTATION_REQUEST: Final = f"{GROUP}/request"
"""On a restore Job: which request it is for."""
ANNOTATION_TRY: Final = f"{GROUP}/try"
"""On a restore Job: how many went before it for the same request."""
ANNOTATION_REPLACED: Final = f"{GROUP}/replaced"
"""On the Job that backs up a database which a restore has replaced: that database's name."""
ANNOTATION_GROWN_AT: Final = f"{GROUP}/grown-at"
"""On a claim: when the operator asked for a larger volume last, by the spec or automatically."""
PATRONI_STATUS_ANNOTATION: Final = "status"
"""The annotation in which a Patroni member tells its state (patroni.dcs.kubernetes)."""
PATRONI_SYNC_ANNOTATION: Final = "sync_standby"
"""The annotation in which Patroni names the synchronous replicas, separated by commas."""
PATRONI_LEADER_ANNOTATION: Final = "leader"
"""The annotation of Patroni's lock: the member that holds it; absent or empty where it was given back."""
PATRONI_POSITION_ANNOTATION: Final = "optime"
"""The annotation beside the lock: how far the primary had written its log when it last renewed it, in bytes."""
PATRONI_IDENTITY_ANNOTATION: Final = "initialize"
"""The annotation with the server's identity, beside the history."""
PATRONI_CONFIGURATION_ANNOTATION: Final = "config"
"""The annotation with the shared configuration, beside the history."""
PATRONI_HISTORY_ANNOTATION: Final = "history"
"""The annotation with every promotion: [timeline that ended, position, reason, time, member that was promoted]."""

# Ports
POSTGRES_PORT: Final = 5432
PATRONI_PORT: Final = 8008
METRICS_PORT: Final = 8080
HEALTH_PORT: Final = 8081

# Inside the database image
POSTGRES_UID: Final = 999
POSTGRES_BIN: Final = "/usr/lib/postgresql/15/bin"
PATRONI_BIN: Final = "/opt/medianest/bin/patroni"
DBCTL_BIN: Final = "/opt/medianest/bin/medianest-dbctl"
DATA_MOUNT: Final = "/pgdata"
DATA_DIRECTORY: Final = f"{DATA_MOUNT}/pgdata"
WAL_MOUNT: Final = "/pgwal"
WAL_DIRECTORY: Final = f"{WAL_MOUNT}/pg_wal"
SOCKET_DIRECTORY: Final = "/run/postgresql"
CONFIG_MOUNT: Final = "/etc/medianest"
PATRONI_CONFIG_KEY: Final = "patroni.yml"
PATRONI_CONFIG: Final = f"{CONFIG_MOUNT}/{PATRONI_CONFIG_KEY}"
SERVER_TLS_MOUNT: Final = "/tls/server"
CLIENT_TLS_MOUNT: Final = "/tls/client"
MIGRATIONS_MOUNT: Final = "/migrations"
REPOSITORY_MOUNT: Final = "/repositories"
"""One folder a repository: `data` where it is a volume, `credentials` and `ca` where it is a bucket."""
SIGNING_MOUNT: Final = "/signing"
IDENTITY_MOUNT: Final = "/identity"
IDENTITY_KEY: Final = "identity"
"""Of the Secret with age's private key."""
WORK_MOUNT: Final = "/work"
"""Scratch space of a Job: spooled dumps."""
SANDBOX_MOUNT: Final = "/sandbox"
"""What a Job's container shares with the one in which copies are made: the server's socket and its data."""

# Containers and volumes
CONTAINER_POSTGRES: Final = "postgres"
CONTAINER_MIGRATE: Final = "migrate"
CONTAINER_HARDEN: Final = "harden"
CONTAINER_BACKUP: Final = "backup"
CONTAINER_VERIFY: Final = "verify"
CONTAINER_RESTORE: Final = "restore"
CONTAINER_COPY: Final = "copy-migrations"
CONTAINER_READ_VOLUME: Final = "read-volume"
CONTAINER_SANDBOX: Final = "sandbox"
VOLUME_DATA: Final = "data"
VOLUME_WAL: Final = "wal"

# PostgreSQL roles that don't depend on the spec
SUPERUSER: Final = "postgres"
REPLICATION_ROLE: Final = "standby"
MAINTENANCE_DATABASE: Final = "postgres"
"""PostgreSQL's own, in which no role but the superuser may make anything."""
CERT_MAP: Final = "medianest"
"""The pg_ident map from certificate names to roles."""
CERT_PATRONI: Final = "medianest-patroni"
CERT_CONTROLLER: Final = "medianest-controller"

JOURNAL_SCHEMA: Final = "medianest_operator"
"""In the application's database, beside its own schemas: what the operator remembers of its migration runs."""
RESTORED_TABLES: Final = "Tables of backup"
"""How the comment of a schema begins that holds tables out of a backup: it is no part of the application's schema."""
READ_BY_CONTROLLER: Final = (
    ("public", "_prisma_migrations"),
    (JOURNAL_SCHEMA, "migration_runs"),
    (JOURNAL_SCHEMA, "schema_versions"),
)
"""The application's tables, by schema and name, that the controller reads: no others."""

TLS_CERT: Final = "tls.crt"
TLS_KEY: Final = "tls.key"
TLS_CA: Final = "ca.crt"
CLIENT_CA: Final = "client-ca.crt"
"""In the server's Secret: the CA whose client certificates PostgreSQL and Patroni accept."""

_SCHEMA_ROOM: Final = 54
MAX_INSTANCES: Final = 9
LEASE: Final = OPERATOR


Key = tuple[str, str]
"""Namespace and name of a database."""


def restored_schema(operation: str) -> str:
    """Where an operation brings single tables back: at most 63 bytes, an identifier that needs no quotes."""
    plain = re.sub("[^a-z0-9_]", "_", operation)
    if len(plain) > _SCHEMA_ROOM:
        plain = f"{plain[: _SCHEMA_ROOM - 9]}_{hashlib.sha256(operation.encode()).hexdigest()[:8]}"
    return f"restored_{plain}"


@dataclass(frozen=True)
class Names:
    """The names of everything that belongs to one database."""

    namespace: str
    database: str

    @property
    def scope(self) -> str:
        """Patroni's scope, so that its leader object is the endpoints of the read-write Service."""
        return self.read_write_service

    @property
    def stateful_set(self) -> str:
        return self.database

    @property
    def service_account(self) -> str:
        return self.database

    @property
    def role_binding(self) -> str:
        return self.database

    @property
    def read_write_service(self) -> str:
        return f"{self.database}-rw"

    @property
    def read_only_service(self) -> str:
        return f"{self.database}-ro"

    @property
    def pods_service(self) -> str:
        """The headless Service that gives every pod its DNS name."""
        return f"{self.database}-pods"

    @property
    def patroni_store(self) -> str:
        """Where Patroni keeps the shared configuration, the server's identity and the history of promotions."""
        return f"{self.scope}-config"

    @property
    def patroni_failover(self) -> str:
        """Where a switchover that somebody asked for stands until it was made."""
        return f"{self.scope}-failover"

    @property
    def patroni_sync(self) -> str:
        """Where Patroni names the synchronous replicas."""
        return f"{self.scope}-sync"

    @property
    def report(self) -> str:
        """The ConfigMap with all that was found out about the database's indexes."""
        return f"{self.database}-report"

    @property
    def patroni_config(self) -> str:
        return f"{self.database}-patroni"

    @property
    def disruption_budget(self) -> str:
        return self.database

    @property
    def ca_secret(self) -> str:
        return f"{self.database}-ca"

    @property
    def server_tls_secret(self) -> str:
        return f"{self.database}-server-tls"

    @property
    def patroni_tls_secret(self) -> str:
        return f"{self.database}-patroni-tls"

    @property
    def controller_tls_secret(self) -> str:
        return f"{self.database}-controller-tls"

    def role_secret(self, suffix: str) -> str:
        """The Secret of a login role: `app`, `readonly`, `migrator`, `monitor` or `backup`."""
        return f"{self.database}-{suffix}"

    def pod(self, ordinal: int) -> str:
        return f"{self.stateful_set}-{ordinal}"

    def slot(self, ordinal: int) -> str:
        """The replication slot that Patroni keeps for a member (patroni.dcs.slot_name_from_member_name)."""
        return re.sub("[-.]", "_", self.pod(ordinal))[:63]

    def ordinal(self, pod: str) -> int | None:
        """The ordinal of a pod of this database's StatefulSet; `None` for one of another name."""
        prefix, _, number = pod.rpartition("-")
        return int(number) if prefix == self.stateful_set and number.isascii() and number.isdigit() else None

    def pod_fqdn(self, pod: str) -> str:
        return f"{pod}.{self.pods_service}.{self.namespace}.svc"

    def service_fqdn(self, service: str) -> str:
        return f"{service}.{self.namespace}.svc"

    def claim(self, volume: str, ordinal: int) -> str:
        """The PersistentVolumeClaim that the StatefulSet makes for a pod."""
        return f"{volume}-{self.pod(ordinal)}"

    def migration_job(self, digest: str) -> str:
        return f"{self.database}-migrate-{digest[:8]}"

    def hardening_job(self, digest: str) -> str:
        return f"{self.database}-harden-{digest[:8]}"

    def backup_cron_job(self, tier: str) -> str:
        """Short, since a CronJob's name has at most 52 characters: its Jobs' end in the time."""
        return f"{self.database}-{tier}"

    @property
    def verification_cron_job(self) -> str:
        return f"{self.database}-verify"

    def on_demand_backup_job(self, digest: str) -> str:
        """The Job of a `MediaNestBackup`, whose own name may be longer than a Job's."""
        return f"{self.database}-backup-{digest[:8]}"

    def migration_backup(self, backup: str) -> str:
        """The `MediaNestBackup` of the backup that a migration took."""
        return f"{self.database}-{backup.lower()}"

    def restore_job(self, digest: str) -> str:
        return f"{self.database}-restore-{digest[:8]}"

    def aside_job(self, digest: str) -> str:
        """The Job of an operation that leaves the live database in its place."""
        return f"{self.database}-aside-{digest[:8]}"

    def replaced_job(self, digest: str) -> str:
        """The Job that backs up a database which a restore has replaced."""
        return f"{self.database}-replaced-{digest[:8]}"

    def volume_job(self, digest: str) -> str:
        """The Job that reads one volume."""
        return f"{self.database}-volume-{digest[:8]}"

    def backup_claim(self, repository: str) -> str:
        """The claim of a repository's volume."""
        return f"{self.database}-backup-{repository}"

    def labels(self, component: str | None = None) -> dict[str, str]:
        labels = {
            LABEL_MANAGED_BY: OPERATOR,
            LABEL_NAME: CATEGORY,
            LABEL_INSTANCE: self.database,
            LABEL_DATABASE: self.database,
        }
        return labels | ({LABEL_COMPONENT: component} if component else {})

    @property
    def pod_selector(self) -> dict[str, str]:
        return {LABEL_DATABASE: self.database, LABEL_COMPONENT: COMPONENT_POSTGRES}
