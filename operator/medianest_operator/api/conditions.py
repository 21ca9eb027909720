"""Condition types and their reasons: the fixed words of the status.

kstatus (https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus) reads Ready, Reconciling and Stalled; the
last two exist only while they are true.
"""

from enum import StrEnum


class Condition(StrEnum):
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    AVAILABLE = "Available"
    SCHEMA_UP_TO_DATE = "SchemaUpToDate"
    INDEXES_HEALTHY = "IndexesHealthy"
    HARDENING_APPLIED = "HardeningApplied"
    BACKUPS_HEALTHY = "BackupsHealthy"


ABNORMAL_TRUE = frozenset({Condition.RECONCILING, Condition.STALLED})


class Reason(StrEnum):
    # Ready, and why not yet
    READY = "Ready"
    CREATING = "Creating"
    SCALING = "Scaling"
    FAILING_OVER = "FailingOver"
    RESTARTING = "Restarting"
    UPDATING = "Updating"
    CONFIGURING = "Configuring"
    GROWING_VOLUMES = "GrowingVolumes"
    WAITING_FOR_REPLICAS = "WaitingForReplicas"
    DELETING = "Deleting"
    HIBERNATED = "Hibernated"
    HIBERNATING = "Hibernating"
    PAUSED = "Paused"
    # what a person must mend
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
    API_ERROR = "ApiError"
    NAME_TAKEN = "NameTaken"
    # Available
    PRIMARY_SERVING = "PrimaryServing"
    NO_PRIMARY = "NoPrimary"
    PRIMARY_UNREACHABLE = "PrimaryUnreachable"
    # SchemaUpToDate
    UP_TO_DATE = "UpToDate"
    MIGRATING = "Migrating"
    MIGRATION_FAILED = "MigrationFailed"
    MIGRATION_ROLLED_BACK = "MigrationRolledBack"
    ROLLBACK_UNPROVED = "RollbackUnproved"
    DRIFTED = "Drifted"
    SOURCE_INVALID = "MigrationSourceInvalid"
    BEHIND = "Behind"
    UNTRUSTED_RELATION = "UntrustedRelation"
    UNKNOWN = "Unknown"
    # IndexesHealthy
    INDEXES_HEALTHY = "IndexesHealthy"
    INDEXES_MISSING = "IndexesMissing"
    INDEXES_INVALID = "IndexesInvalid"
    INDEXES_DUPLICATE = "IndexesDuplicate"
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
    # spec.bootstrap and spec.restore
    RESTORING = "Restoring"
    RESTORE_FAILED = "RestoreFailed"
    IMPORTING = "Importing"
    IMPORT_FAILED = "ImportFailed"
    # a MediaNestBackup
    BACKUP_PENDING = "BackupPending"
    BACKUP_RUNNING = "BackupRunning"
    BACKUP_SUCCEEDED = "BackupSucceeded"
