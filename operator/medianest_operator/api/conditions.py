"""Condition types and their reasons: the fixed words of the status.

kstatus (https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus) reads Ready, Reconciling and Stalled; the
last two exist only while they are true.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple


class Condition(StrEnum):
    """The types of conditions, in the order in which the status lists them."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    FINISHED = "Finished"
    """Of what ends: it has, well (then it is Ready, too) or not."""
    AVAILABLE = "Available"
    SCHEMA_UP_TO_DATE = "SchemaUpToDate"
    HEALTHY = "Healthy"
    """The servers, their replication, and what is asked of them."""
    STORAGE_HEALTHY = "StorageHealthy"
    INDEXES_HEALTHY = "IndexesHealthy"
    HARDENING_APPLIED = "HardeningApplied"
    BACKUPS_HEALTHY = "BackupsHealthy"


ABNORMAL_TRUE: Final = frozenset({Condition.RECONCILING, Condition.STALLED})


class Severity(IntEnum):
    """How bad a reason is. Of several that keep a database from being Ready, Ready shows the worst."""

    GOOD = 0
    """As the spec wants it."""
    PROGRESS = 1
    """On its way there; nobody has to do anything."""
    DEGRADED = 2
    """Something is wrong that a person should know of."""
    STUCK = 3
    """Nothing moves until a person changes something."""
    OUTAGE = 4
    """The application's statements fail or wait."""


class Reason(StrEnum):
    """Why a condition is as it is."""

    # What each means for people and tools is in REASONS.

    # Ready, and why not yet
    READY = "Ready"
    CREATING = "Creating"
    SCALING = "Scaling"
    FAILING_OVER = "FailingOver"
    SWITCHING_OVER = "SwitchingOver"
    RESTARTING = "Restarting"
    UPDATING = "Updating"
    COPYING_AGAIN = "CopyingAgain"
    LAG_TOLERATED = "LagTolerated"
    DIVERGED = "Diverged"
    CHOICE_IGNORED = "ChoiceIgnored"
    CONFIGURING = "Configuring"
    GROWING_VOLUMES = "GrowingVolumes"
    WAITING_FOR_REPLICAS = "WaitingForReplicas"
    DELETING = "Deleting"
    HIBERNATED = "Hibernated"
    HIBERNATING = "Hibernating"
    PAUSED = "Paused"
    REPLICA_NOT_STREAMING = "ReplicaNotStreaming"
    # what a person must fix
    INVALID_SPEC = "InvalidSpec"
    INVALID_PARAMETER = "InvalidParameter"
    INVALID_CERTIFICATE = "InvalidCertificate"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    UNSCHEDULABLE = "Unschedulable"
    VOLUME_UNAVAILABLE = "VolumeUnavailable"
    VOLUME_CANNOT_GROW = "VolumeCannotGrow"
    QUOTA_EXCEEDED = "QuotaExceeded"
    POD_REJECTED = "PodRejected"
    POD_FAILING = "PodFailing"
    OBJECT_REFUSED = "ObjectRefused"
    NAME_TAKEN = "NameTaken"
    UNTRUSTED_RELATION = "UntrustedRelation"
    OUTDATED_DEFINITION = "OutdatedDefinition"
    # what kept the operator from observing or acting
    API_ERROR = "ApiError"
    PATRONI_UNREACHABLE = "PatroniUnreachable"
    PATRONI_REFUSED = "PatroniRefused"
    NOT_OBSERVED = "NotObserved"
    STATEMENT_FAILED = "StatementFailed"
    INTERNAL_ERROR = "InternalError"
    # Available
    PRIMARY_SERVING = "PrimaryServing"
    NO_PRIMARY = "NoPrimary"
    PRIMARY_UNREACHABLE = "PrimaryUnreachable"
    PRIMARY_RESTARTING = "PrimaryRestarting"
    COMMITS_WAIT = "CommitsWait"
    CONNECTIONS_REFUSED = "ConnectionsRefused"
    READ_ONLY = "ReadOnly"
    # SchemaUpToDate
    UP_TO_DATE = "UpToDate"
    MIGRATING = "Migrating"
    MIGRATION_FAILED = "MigrationFailed"
    MIGRATION_ROLLED_BACK = "MigrationRolledBack"
    ROLLBACK_UNFINISHED = "RollbackUnfinished"
    ROLLBACK_UNVERIFIED = "RollbackUnverified"
    DRIFTED = "Drifted"
    SOURCE_INVALID = "MigrationSourceInvalid"
    MIGRATIONS_PENDING = "MigrationsPending"
    UNKNOWN = "Unknown"
    # Healthy
    HEALTHY = "Healthy"
    PROBE_FAILED = "ProbeFailed"
    QUERY_SLOW = "QuerySlow"
    CONNECT_SLOW = "ConnectSlow"
    CONNECTIONS_NEAR_LIMIT = "ConnectionsNearLimit"
    TRANSACTION_LEFT_OPEN = "TransactionLeftOpen"
    SESSIONS_BLOCKED = "SessionsBlocked"
    DEADLOCKS = "Deadlocks"
    PREPARED_TRANSACTION_LEFT = "PreparedTransactionLeft"
    REPLICA_LAGGING = "ReplicaLagging"
    REPLAY_PAUSED = "ReplayPaused"
    SLOT_INACTIVE = "SlotInactive"
    SLOT_LOST = "SlotLost"
    CHECKSUM_FAILED = "ChecksumFailed"
    WRAPAROUND_NEAR = "WraparoundNear"
    SEQUENCE_RUNNING_OUT = "SequenceRunningOut"
    SEQUENCE_BEHIND = "SequenceBehind"
    AUTOVACUUM_BEHIND = "AutovacuumBehind"
    AUTOVACUUM_OFF = "AutovacuumOff"
    STATISTICS_STALE = "StatisticsStale"
    ORPHANS_FOUND = "OrphansFound"
    CONSTRAINT_VIOLATED = "ConstraintViolated"
    # StorageHealthy
    STORAGE_HEALTHY = "StorageHealthy"
    VOLUME_FILLING = "VolumeFilling"
    VOLUME_NEARLY_FULL = "VolumeNearlyFull"
    VOLUME_FULL = "VolumeFull"
    VOLUME_SHARED = "VolumeShared"
    # IndexesHealthy
    INDEXES_HEALTHY = "IndexesHealthy"
    INDEXES_MISSING = "IndexesMissing"
    INDEXES_INVALID = "IndexesInvalid"
    COLLATION_CHANGED = "CollationChanged"
    INDEXES_INCOMPLETE = "IndexesIncomplete"
    INDEXES_DUPLICATE = "IndexesDuplicate"
    INDEXES_REDUNDANT = "IndexesRedundant"
    INDEXES_UNUSED = "IndexesUnused"
    INDEXES_BLOATED = "IndexesBloated"
    FOREIGN_KEY_WITHOUT_INDEX = "ForeignKeyWithoutIndex"
    CONSTRAINT_NOT_VALID = "ConstraintNotValid"
    # HardeningApplied
    HARDENING_APPLIED = "HardeningApplied"
    HARDENING_APPLYING = "HardeningApplying"
    HARDENING_WAITING = "HardeningWaiting"
    HARDENING_FAILED = "HardeningFailed"
    # BackupsHealthy
    BACKUPS_HEALTHY = "BackupsHealthy"
    NO_BACKUP_YET = "NoBackupYet"
    BACKUP_FAILED = "BackupFailed"
    BACKUP_OVERDUE = "BackupOverdue"
    BACKUPS_SUSPENDED = "BackupsSuspended"
    BACKUP_MISCONFIGURED = "BackupMisconfigured"
    VERIFICATION_FAILED = "VerificationFailed"
    # spec.bootstrap, and a MediaNestOperation's restore
    RESTORING = "Restoring"
    RESTORED = "Restored"
    RESTORE_FAILED = "RestoreFailed"
    IMPORTING = "Importing"
    IMPORT_FAILED = "ImportFailed"
    # a MediaNestBackup
    BACKUP_PENDING = "BackupPending"
    BACKUP_RUNNING = "BackupRunning"
    BACKUP_SUCCEEDED = "BackupSucceeded"
    # a MediaNestOperation
    OPERATION_PENDING = "OperationPending"
    OPERATION_RUNNING = "OperationRunning"
    OPERATION_SUCCEEDED = "OperationSucceeded"

    @property
    def severity(self) -> Severity:
        return REASONS[self].severity

    @property
    def is_warning(self) -> bool:
        """Whether its Event is a Warning, which webhooks are told of."""
        return self.severity >= Severity.DEGRADED and not REASONS[self].quiet

    @property
    def passes(self) -> bool:
        """Whether the operator, Patroni or the cluster gets out of it without a person."""
        return REASONS[self].passes

    @property
    def is_cause(self) -> bool:
        """Whether it explains an outage."""
        return REASONS[self].cause

    @property
    def has_runbook(self) -> bool:
        """Whether docs/runbooks has a page of this name."""
        return REASONS[self].runbook


class Facts(NamedTuple):
    """What a reason means.

    Attributes:
        severity: how bad it is.
        passes: nobody has to do anything for it to end.
        runbook: docs/runbooks has a page of its name.
        quiet: it is neither an Event's Warning nor sent to webhooks, although it isn't good.
        cause: where nothing serves it is why, and Ready says so rather than how the outage looks.
        finding: it is only ever a finding's, and never Ready's.
    """

    severity: Severity
    passes: bool = True
    runbook: bool = False
    quiet: bool = False
    cause: bool = False
    finding: bool = False


_GOOD = Facts(Severity.GOOD)
_PROGRESS = Facts(Severity.PROGRESS)
_DEGRADED = Facts(Severity.DEGRADED, passes=False, runbook=True)
_STUCK = Facts(Severity.STUCK, passes=False, runbook=True)
_OUTAGE = Facts(Severity.OUTAGE, runbook=True)
_UNSEEN = Facts(Severity.DEGRADED, runbook=True, quiet=True)
_HINT = Facts(Severity.GOOD, passes=False, runbook=True, finding=True)
_FINDING = _DEGRADED._replace(finding=True)
_GRAVE = _FINDING._replace(severity=Severity.OUTAGE)

REASONS: Final[Mapping[Reason, Facts]] = MappingProxyType(
    {
        Reason.READY: _GOOD,
        Reason.CREATING: _PROGRESS,
        Reason.SCALING: _PROGRESS,
        Reason.FAILING_OVER: Facts(Severity.OUTAGE, quiet=True),
        Reason.SWITCHING_OVER: _PROGRESS,
        Reason.RESTARTING: _PROGRESS,
        Reason.UPDATING: _PROGRESS,
        Reason.COPYING_AGAIN: _PROGRESS,
        Reason.LAG_TOLERATED: Facts(Severity.DEGRADED),
        Reason.DIVERGED: _DEGRADED._replace(cause=True),
        Reason.CHOICE_IGNORED: Facts(Severity.DEGRADED),
        Reason.CONFIGURING: _PROGRESS,
        Reason.GROWING_VOLUMES: _PROGRESS,
        Reason.WAITING_FOR_REPLICAS: _PROGRESS,
        Reason.DELETING: _PROGRESS,
        Reason.HIBERNATED: _GOOD,
        Reason.HIBERNATING: _PROGRESS,
        Reason.PAUSED: _GOOD,
        Reason.REPLICA_NOT_STREAMING: _DEGRADED,
        Reason.INVALID_SPEC: _STUCK,
        Reason.INVALID_PARAMETER: _STUCK,
        Reason.INVALID_CERTIFICATE: _STUCK,
        Reason.IMAGE_UNAVAILABLE: _DEGRADED,
        Reason.UNSCHEDULABLE: _DEGRADED,
        Reason.VOLUME_UNAVAILABLE: _DEGRADED._replace(cause=True),
        Reason.VOLUME_CANNOT_GROW: _STUCK,
        Reason.QUOTA_EXCEEDED: _DEGRADED,
        Reason.POD_REJECTED: _DEGRADED,
        Reason.POD_FAILING: _DEGRADED,
        Reason.OBJECT_REFUSED: _STUCK,
        Reason.NAME_TAKEN: _STUCK,
        Reason.UNTRUSTED_RELATION: _STUCK,
        Reason.OUTDATED_DEFINITION: _DEGRADED,
        Reason.API_ERROR: _UNSEEN,
        Reason.PATRONI_UNREACHABLE: _UNSEEN,
        Reason.PATRONI_REFUSED: Facts(Severity.DEGRADED, runbook=True),
        Reason.NOT_OBSERVED: _UNSEEN,
        Reason.STATEMENT_FAILED: _DEGRADED,
        Reason.INTERNAL_ERROR: _DEGRADED,
        Reason.PRIMARY_SERVING: _GOOD,
        Reason.NO_PRIMARY: _OUTAGE,
        Reason.PRIMARY_UNREACHABLE: _OUTAGE,
        Reason.PRIMARY_RESTARTING: Facts(Severity.OUTAGE, quiet=True),
        Reason.COMMITS_WAIT: _OUTAGE,
        Reason.CONNECTIONS_REFUSED: Facts(Severity.OUTAGE, passes=False, runbook=True),
        Reason.READ_ONLY: Facts(Severity.OUTAGE, passes=False, runbook=True),
        Reason.UP_TO_DATE: _GOOD,
        Reason.MIGRATING: _PROGRESS,
        Reason.MIGRATION_FAILED: _STUCK,
        Reason.MIGRATION_ROLLED_BACK: _STUCK,
        Reason.ROLLBACK_UNFINISHED: _STUCK,
        Reason.ROLLBACK_UNVERIFIED: _STUCK,
        Reason.DRIFTED: _DEGRADED,
        Reason.SOURCE_INVALID: _STUCK,
        Reason.MIGRATIONS_PENDING: _STUCK,
        Reason.UNKNOWN: _PROGRESS,
        Reason.HEALTHY: _GOOD,
        Reason.PROBE_FAILED: _FINDING,
        Reason.QUERY_SLOW: _FINDING,
        Reason.CONNECT_SLOW: _FINDING,
        Reason.CONNECTIONS_NEAR_LIMIT: _FINDING,
        Reason.TRANSACTION_LEFT_OPEN: _FINDING,
        Reason.SESSIONS_BLOCKED: _FINDING,
        Reason.DEADLOCKS: _FINDING,
        Reason.PREPARED_TRANSACTION_LEFT: _FINDING,
        Reason.REPLICA_LAGGING: _FINDING,
        Reason.REPLAY_PAUSED: _FINDING,
        Reason.SLOT_INACTIVE: _FINDING,
        Reason.SLOT_LOST: _FINDING,
        Reason.CHECKSUM_FAILED: _GRAVE,
        Reason.WRAPAROUND_NEAR: _FINDING,
        Reason.SEQUENCE_RUNNING_OUT: _FINDING,
        Reason.SEQUENCE_BEHIND: _GRAVE,
        Reason.AUTOVACUUM_BEHIND: _FINDING,
        Reason.AUTOVACUUM_OFF: _FINDING,
        Reason.STATISTICS_STALE: _HINT,
        Reason.ORPHANS_FOUND: _FINDING,
        Reason.CONSTRAINT_VIOLATED: _FINDING,
        Reason.STORAGE_HEALTHY: _GOOD,
        Reason.VOLUME_FILLING: _FINDING,
        Reason.VOLUME_NEARLY_FULL: _FINDING,
        Reason.VOLUME_FULL: _GRAVE,
        # How such a class works is no fault of anybody's: the condition stays True.
        Reason.VOLUME_SHARED: _HINT,
        Reason.INDEXES_HEALTHY: _GOOD,
        Reason.INDEXES_MISSING: _DEGRADED,
        Reason.INDEXES_INVALID: _DEGRADED,
        Reason.COLLATION_CHANGED: _DEGRADED,
        # These cost something and break nothing: the condition stays True, and nobody is woken.
        Reason.INDEXES_INCOMPLETE: _HINT,
        Reason.INDEXES_DUPLICATE: _HINT,
        Reason.INDEXES_REDUNDANT: _HINT,
        Reason.INDEXES_UNUSED: _HINT,
        Reason.INDEXES_BLOATED: _HINT,
        Reason.FOREIGN_KEY_WITHOUT_INDEX: _HINT,
        Reason.CONSTRAINT_NOT_VALID: _HINT,
        Reason.HARDENING_APPLIED: _GOOD,
        Reason.HARDENING_APPLYING: _PROGRESS,
        Reason.HARDENING_WAITING: _PROGRESS,
        Reason.HARDENING_FAILED: _DEGRADED,
        Reason.BACKUPS_HEALTHY: _GOOD,
        Reason.NO_BACKUP_YET: _PROGRESS,
        Reason.BACKUP_FAILED: _DEGRADED,
        Reason.BACKUP_OVERDUE: _DEGRADED,
        Reason.BACKUPS_SUSPENDED: _PROGRESS,
        Reason.BACKUP_MISCONFIGURED: _DEGRADED,
        Reason.VERIFICATION_FAILED: _DEGRADED,
        Reason.RESTORING: _PROGRESS,
        Reason.RESTORED: _GOOD,
        Reason.RESTORE_FAILED: _STUCK,
        Reason.IMPORTING: _PROGRESS,
        Reason.IMPORT_FAILED: _STUCK,
        Reason.BACKUP_PENDING: _PROGRESS,
        Reason.BACKUP_RUNNING: _PROGRESS,
        Reason.BACKUP_SUCCEEDED: _GOOD,
        Reason.OPERATION_PENDING: _PROGRESS,
        Reason.OPERATION_RUNNING: _PROGRESS,
        Reason.OPERATION_SUCCEEDED: _GOOD,
    }
)
"""The one table of what reasons mean: Events, webhooks, the runbooks' index and docs/gitops/health.lua follow it."""
