"""A `MediaNestOperation`: something that is done with a database once, when somebody asks for it. Like a Job it runs
when it is made, and never again."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, field_validator

from medianest_operator.api.backup import Days
from medianest_operator.api.bootstrap import BackupChoice
from medianest_operator.api.model import ApiModel, DnsLabel, ObjectName, with_rules
from medianest_operator.api.status import StatusCondition, present

LATEST_VERIFIED = "latest-verified"
"""What a restore takes that names nothing."""
_OPERATIONS = ("restore",)
_MOST = 20
MOST_DIFFERENCES = 50
"""Tables in an estimate."""

Moment = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})$",
        max_length=32,
        json_schema_extra={"format": "date-time"},
    ),
]
"""A moment with its time zone, for instance `2026-11-22T09:30:00Z` or `2026-11-22T10:30:00+01:00`."""


class Restore(ApiModel):
    """A restore in place.

    The backup goes into a new database beside the live one, is verified there, and takes its name; the one that it
    replaces is kept for a time. Where anything fails, nothing is changed.
    """

    model_config = with_rules(
        (
            "!has(self.backup) || !has(self.targetTime)",
            "restore.backup and restore.targetTime exclude each other: one names the backup, the other chooses it",
        ),
        (
            "!has(self.acceptUnsigned) || !self.acceptUnsigned"
            " || (has(self.backup) && !self.backup.startsWith('latest'))",
            "restore.acceptUnsigned is for a backup that restore.backup names by its id",
        ),
        (
            "!has(self.tables) || !(has(self.keepReplaced) || has(self.acceptDifferences))",
            "restore.tables replaces nothing: keepReplaced and acceptDifferences don't go with it",
        ),
    )

    backup: BackupChoice | None = None
    """Which one: latest-verified (where unset), latest, or an id."""
    target_time: Moment | None = None
    """Takes the last backup whose contents are not later than this moment, instead."""
    tables: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]],
        Field(min_length=1, max_length=50, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """Only these, as SQL spells them, without a schema those of `public`: their columns and rows go into a schema of
    their own, `restored_` and this object's name, beside the live tables, which stay as they are."""
    repository: DnsLabel | None = None
    """The repository of the database's spec.backup to take it from. Where unset all are looked into; of those that have
    it the first is read."""
    keep_replaced: Days | None = None
    """How long the database that is replaced stays; its spec.backup.keepReplaced where unset."""
    accept_differences: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=300)]],
        Field(max_length=100, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """Objects that may differ from the backup, as the differences of a restore that failed name them, for instance
    `view totals`: they become notes."""
    accept_unsigned: bool = False
    """Restores the backup that is named by its id although it isn't signed by the present key
    (spec.backup.encryption.signingSecret)."""
    dry_run: bool = False
    """Changes nothing: says which backup would be taken, what would be lost, how long it takes and whether it fits."""


class OperationSpec(ApiModel):
    """What is wanted. Immutable: another operation is another object."""

    model_config = with_rules(
        (
            "self == oldSelf",
            "spec can't change: a MediaNestOperation is done once; make another object for another operation",
        ),
        (
            f"[{', '.join(f'has(self.{name})' for name in _OPERATIONS)}].exists_one(named, named)",
            f"spec must name exactly one operation: {', '.join(_OPERATIONS)}",
        ),
    )

    database: ObjectName
    """The MediaNestDatabase in this namespace."""
    ttl_after_finished: Days = "30d"
    """How long this object stays once it is over; then the operator deletes it. One that a GitOps tool or Helm made
    stays until it is removed there: they would make it again, which asks for another restore."""
    restore: Restore | None = None
    """Puts a backup in the database's place."""


class OperationPhase(StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class LostRows(ApiModel):
    """Rows of a table that the backup doesn't have."""

    table: Annotated[str, Field(max_length=300)]
    rows: Annotated[int, Field(ge=0, le=2**53)]


class Estimate(ApiModel):
    """What a restore would do, as far as it can be known before."""

    backup: Annotated[str, Field(max_length=100)]
    """Its id."""
    taken_at: Annotated[str, Field(max_length=40)] | None = None
    """When it began: what was written later isn't in it."""
    bytes: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """Of the dump as it is stored."""
    verified: bool = False
    """Whether it was restored once and found equal."""
    seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    """How long the restore of the newest verified backup took; absent where none was measured."""
    fits: bool | None = None
    """Whether the copy fits into the volume beside the live database."""
    lost: list[LostRows] = []
    """By table, how many more rows the live database has than the backup, the most first: an estimate from the server's
    statistics."""

    @field_validator("lost", mode="before")
    @classmethod
    def _tables(cls, value: Any) -> Any:
        """A result that had to be shortened ends in words; of a longer one the first count."""
        return [item for item in value if isinstance(item, dict)][:_MOST] if isinstance(value, list) else value


class OperationStatus(ApiModel):
    """What became of it."""

    observed_generation: int
    phase: OperationPhase
    conditions: Annotated[
        list[StatusCondition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = []
    operation: str | None = None
    """What it is: restore, tables, or dry run."""
    job: str | None = None
    backup: str | None = None
    """The id of the backup that was taken."""
    repository: str | None = None
    """Where it was taken from."""
    started_at: str | None = None
    finished_at: str | None = None
    seconds: float | None = None
    """From its first Job's start to its end."""
    message: str | None = None
    differences: list[str] = []
    """Why what was restored is not what was backed up, in words; at most fifty, the Job's log has all."""
    schema_name: Annotated[str | None, Field(alias="schema")] = None
    """The schema that restore.tables were brought into."""
    kept_database: str | None = None
    """The database that was replaced. It stays for keepReplaced, then it is backed up and dropped."""
    estimate: Estimate | None = None
    """What a dry run found."""

    def to_dict(self) -> dict[str, Any]:
        """As it goes to the API server: camelCase, absent rather than null or an empty list."""
        status: dict[str, Any] = present(self.model_dump(mode="json", by_alias=True, exclude_none=True))
        return status
