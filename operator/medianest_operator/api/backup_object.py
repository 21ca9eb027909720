"""A `MediaNestBackup`: one backup that somebody asks for, once. Like a Job it runs when it is made, and never again."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from medianest_operator.api.backup import Days
from medianest_operator.api.model import ApiModel, DnsLabel, ObjectName, with_rules
from medianest_operator.api.status import StatusCondition, present


class BackupKind(StrEnum):
    LOGICAL = "Logical"


class BackupSpec(ApiModel):
    """What is wanted. Immutable: another backup is another object."""

    model_config = with_rules(
        (
            "self == oldSelf",
            "spec can't change: a MediaNestBackup is taken once; make another object for another backup",
        ),
        (
            "!has(self.migration) || (!has(self.keep) && !self.verify && size(self.repositories) == 0)",
            "migration names a backup that is there: keep, repositories and verify can't be set beside it",
        ),
    )

    database: ObjectName
    """The MediaNestDatabase in this namespace."""
    kind: BackupKind = BackupKind.LOGICAL
    """A logical backup, made by pg_dump."""
    repositories: Annotated[
        list[DnsLabel], Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = []
    """Names of the database's repositories; all of them where empty."""
    keep: Days | None = None
    """How long it is kept: 30d where unset. Deleting this object doesn't delete the backup."""
    verify: bool = False
    """Restores it once it is taken: it counts only then."""
    migration: ObjectName | None = None
    """The migration Job whose backup this is. The operator makes such an object for each backup that a migration took
    before it changed anything; none is taken for it. The newest three stay, as their backups do."""


class BackupPhase(StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class BackupStatus(ApiModel):
    """What became of it."""

    observed_generation: int
    phase: BackupPhase
    conditions: Annotated[
        list[StatusCondition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = []
    job: str | None = None
    backup: str | None = None
    """Its id in the repositories."""
    repositories: list[str] = []
    """Where it is."""
    started_at: str | None = None
    finished_at: str | None = None
    bytes: int | None = None
    """Of the dump as it is stored."""
    seconds: float | None = None
    source: str | None = None
    """The server that was dumped: the primary, or a replica."""
    verified: bool | None = None
    """Whether it was restored and found equal; absent where that wasn't asked for."""
    message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As it goes to the API server: camelCase, absent rather than null or an empty list."""
        status: dict[str, Any] = present(self.model_dump(mode="json", by_alias=True, exclude_none=True))
        return status
