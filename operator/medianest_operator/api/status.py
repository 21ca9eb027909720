"""The status of a `MediaNestDatabase`: the product for the one who looks at three in the morning.

Nothing in it ticks: no probe times, no ages, no exact bytes; those are metrics.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.model import ApiModel


class StatusCondition(ApiModel):
    """One condition, after the Kubernetes API conventions."""

    type: Condition
    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str
    observed_generation: int
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Member(ApiModel):
    """One instance as Patroni reports it."""

    name: str
    role: str
    """primary, replica, or unknown while it starts."""
    state: str
    """Patroni's word: running, streaming, starting, stopped, ...; pending or down while its container doesn't run."""
    node: str | None = None
    pending_restart: bool | None = None
    """PostgreSQL says that a changed parameter takes effect only after a restart."""


class Instances(ApiModel):
    ready: int
    desired: int
    summary: str
    """Ready of desired, for people."""
    primary: str | None = None
    """The pod of the primary; absent while there is none."""
    last_primary: str | None = None
    """The pod that led last, also while there is no primary."""
    members: list[Member] = []


class Connection(ApiModel):
    """Where to connect and with which Secret."""

    secret: str
    host: str
    read_only_host: str
    port: int
    database: str
    read_only_secret: str
    migrator_secret: str


class AppliedMigration(ApiModel):
    name: str
    milliseconds: int


class MigrationFailure(ApiModel):
    migration: str
    statement: int | None = None
    line: int | None = None
    sqlstate: str | None = None
    message: str


class Rollback(ApiModel):
    """How a failed run was rolled back."""

    strategy: str
    """Transaction (PostgreSQL's own rollback), Down, Inverse or Restore."""
    verified: bool
    verification: str
    """The comparison with before, in words."""
    statements: list[str] = []
    """What the inverse executed, the first few: what somebody made beside the run may be among it."""


class Rehearsal(ApiModel):
    """What the run on a copy showed."""

    data: bool
    """Whether the copy held the data, or the definitions alone."""
    locks: list[str] = []
    """The strong locks on tables, and for how long at the most."""
    note: str | None = None


class StoredBackup(ApiModel):
    """The backup that a migration took."""

    repositories: list[str] = []
    """Those that have it."""
    bytes: int | None = None
    """The size of its dump as it is stored."""
    restored: bool = False
    """Whether the rehearsal restored it with its data, and found it equal."""


class MigrationRun(ApiModel):
    """The last run of the migration Job."""

    job: str
    digest: str
    """Digest of the source and target that it ran."""
    outcome: str
    """Running, Applied or Failed."""
    step: str | None = None
    """Where it stands while it runs: Planned, BackingUp, Rehearsing, LockingOut, Applying, Verifying, RollingBack."""
    reason: str | None = None
    message: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    applied: list[AppliedMigration] = []
    failed: MigrationFailure | None = None
    rollback: Rollback | None = None
    rehearsal: Rehearsal | None = None
    backup: str | None = None
    """The pre-migration backup's path in its repositories."""
    stored_backup: StoredBackup | None = None
    """More of it; absent where another pod than the one that took it ended the run."""


class Schema(ApiModel):
    version: str | None = None
    """The last migration that is applied, from the live history."""
    pending: list[str] = []
    """Migrations of the source that are not applied yet."""
    drift: list[str] = []
    """What no migration has made, in words; at most ten."""
    last_run: MigrationRun | None = None


class Indexes(ApiModel):
    """The verdicts on the indexes, at most ten names each; the ConfigMap `<name>-report` has all with their fixes."""

    total: int
    """Indexes of the application's tables, `_prisma_migrations` not counted."""
    critical: str
    """Critical indexes present of expected, for instance 6/6."""
    expected: str | None = None
    """The same of all that the applied migrations make, for instance 33/33; absent where that isn't known."""
    missing: list[str] = []
    invalid: list[str] = []
    """Used by no query; without those that are being built."""
    duplicate: list[str] = []
    """Equal to another one."""
    redundant: list[str] = []
    """Another one does the same, and more."""
    unused: list[str] = []
    """Not used once on any instance in at least 14 days."""
    bloated: list[str] = []
    """Emptier by 30 points or more than their fillfactor."""
    foreign_keys_without_index: list[str] = []
    collations: list[str] = []
    """Those whose version is another one than when indexes were built with them."""
    not_valid: list[str] = []
    """Constraints that were never checked against all rows."""
    not_judged: int | None = None
    """Indexes beyond the 2,000 that are judged: nothing is known of them; absent where there are none."""


class Finding(ApiModel):
    """Something that is wrong with the database, and how it ends."""

    reason: Reason
    """Its kind; docs/runbooks has a page of this name."""
    level: Literal["Critical", "Warning", "Hint"]
    """Critical: statements of the application fail or wait, or will before long. A hint costs something and breaks
    nothing."""
    object: str
    """What it is about: an index, a pod, a session."""
    message: str
    fix: str | None = None
    """The statement or command that ends it."""
    bytes: int | None = None
    """The size of what it is about, coarsely."""
    since: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When it began to count."""
    source: str
    """What observes it."""


class Volume(ApiModel):
    """The volumes of one kind: each instance has its own of the same size."""

    name: str
    """data, wal, or backup/ and the name of the repository."""
    size: str
    """What its claims ask for: the size in the spec, or what it has grown to."""
    used: str | None = None
    """How much of the fullest is in use, as a range."""
    full_in: str | None = None
    """When the first is full at the present rate, in words; absent where that is more than a week away."""
    grown_at: str | None = None
    """When the operator made it larger last."""


class Hardening(ApiModel):
    """How each option of spec.hardening stands: Off, Applying, Applied, Waiting (for a schema that has its tables),
    Failed or Removing."""

    recommended_indexes: str = "Off"
    check_constraints: str = "Off"
    audit_columns: str = "Off"
    row_level_security: str = "Off"
    message: str | None = None
    """Why an option isn't as spec.hardening wants."""
    job: str | None = None
    """The Job that is at it, or that failed."""


class LastBackup(ApiModel):
    """The newest backup that a Job of this database finished; where somebody removed that, the newest that is left."""

    id: str
    tier: str
    at: str
    """When it was finished; of one that is left, the moment that its contents are of."""
    started_at: str | None = None
    bytes: int | None = None
    """Of the dump as it is stored."""
    seconds: float | None = None
    source: str | None = None
    """The server that was dumped: the primary, or a replica."""


class TierStatus(ApiModel):
    """One series."""

    name: str
    last_success: str | None = None
    next: str | None = None
    """When its CronJob starts the next; absent while suspended."""


class RepositoryStatus(ApiModel):
    """One place, as the last Job that looked there found it."""

    name: str
    count: int | None = None
    """Complete backups of this database."""
    last_success: str | None = None
    message: str | None = None
    """Why the last backup isn't there."""
    seen: str | None = None
    """When a Job looked there last."""
    signed: int | None = None
    """Of these, those that are signed by the key that the Job had, without those of replaced databases."""
    used_percent: int | None = None
    """How much of its volume is in use; absent of a bucket."""


class Verified(ApiModel):
    """The newest backup that was restored into a throwaway server and found equal to its manifest."""

    backup: str
    repository: str
    at: str
    seconds: float | None = None
    """How long the restore and the comparison took: what a recovery would take."""
    not_in_place: list[str] = []
    """Objects that a restore in place can't bring back as they were: only a superuser may make them, or they belong to
    somebody else. It refuses until each is accepted by its name."""


class FailedJob(ApiModel):
    """The newest failure since the last success."""

    job: str
    at: str
    message: str


class KeptBackup(ApiModel):
    """A backup that there is."""

    id: str
    tier: str
    taken_at: str
    """The moment that its contents are of, as restore.targetTime takes it."""
    bytes: int
    """Of all that is stored of it."""
    verified: bool | None = None
    """Whether its last test restore went well; absent where there was none."""
    repositories: list[str] = []
    """Those that have it."""


class Backups(ApiModel):
    """The backups. The repositories are the truth; this is what the Jobs saw there last."""

    last: LastBackup | None = None
    tiers: Annotated[
        list[TierStatus],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = []
    repositories: Annotated[
        list[RepositoryStatus],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = []
    newest: list[KeptBackup] = []
    """The newest twenty that are complete, the newest first."""
    verified: Verified | None = None
    failed: FailedJob | None = None
    """The newest backup Job that failed, until one succeeds."""
    verification_failed: FailedJob | None = None
    """The newest verification that failed, until one succeeds."""
    next_verification: str | None = None


class Bootstrapped(ApiModel):
    """What spec.bootstrap brought in."""

    phase: str
    """Restoring, Done or Failed."""
    backup: str | None = None
    repository: str | None = None
    job: str | None = None
    message: str | None = None
    differences: list[str] = []
    """What an import differs in from the migrations' schema, in words."""
    finished_at: str | None = None


class LastOperation(ApiModel):
    """The newest MediaNestOperation that has begun, dry runs aside; `kubectl describe mnop` tells the rest."""

    name: str
    operation: str
    """What it is: restore, or tables."""
    phase: str
    """Running, Succeeded or Failed."""


class ReplacedDatabase(ApiModel):
    """A database whose place a restore gave to another one. It takes room on the volume."""

    database: str
    """Its name in PostgreSQL now; it takes no connections."""
    since: str
    until: str
    """When it is backed up and dropped: keepReplaced after it was replaced."""
    problem: str | None = None
    """Why it wasn't dropped when its time was over."""


class Certificates(ApiModel):
    server_not_after: str
    """When the server certificate in use ends."""


class DatabaseStatus(ApiModel):
    """What is."""

    observed_generation: int
    """The generation of the spec that this status speaks of."""
    phase: str
    """One word for people; machines read the conditions."""
    conditions: Annotated[
        list[StatusCondition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = []
    instances: Instances | None = None
    connection: Connection | None = None
    # `schema` as an attribute would shadow a method of pydantic's base class.
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    findings: list[Finding] = []
    """What is wrong, the worst first: at most ten, of each kind one before a second of any."""
    storage: Annotated[
        list[Volume],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = []
    """The volumes, as they were observed last."""
    indexes: Indexes | None = None
    hardening: Hardening | None = None
    """Absent while nothing of it is in the database."""
    backup: Backups | None = None
    bootstrap: Bootstrapped | None = None
    """Absent where spec.bootstrap brought nothing in."""
    replaced: list[ReplacedDatabase] = []
    """The databases that restores have replaced, the newest first."""
    operation: LastOperation | None = None
    """Absent where there is no such object, or all of them wait."""
    image: str | None = None
    """The database image in use."""
    certificates: Certificates | None = None
    replicas: int = 0
    """Pods there are, for the scale subresource."""
    selector: str = ""
    """Label selector of the pods, for the scale subresource."""

    def to_dict(self) -> dict[str, Any]:
        """As it goes to the API server: camelCase, absent rather than null or an empty list."""
        status: dict[str, Any] = present(self.model_dump(mode="json", by_alias=True, exclude_none=True))
        return status


_LARGEST = 2**63 - 1
"""Integers are int64 (Kubernetes API conventions)."""


def present(value: Any) -> Any:
    """Without empty lists, which an object of Kubernetes leaves out, and without numbers that it can't hold."""
    match value:
        case dict():
            return {key: present(item) for key, item in value.items() if item != [] and not _is_no_number(item)}
        case list():
            return [present(item) for item in value if not _is_no_number(item)]
        case bool():
            return value
        case int():
            return max(-_LARGEST, min(value, _LARGEST))
    return value


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
