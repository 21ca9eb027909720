"""What a backup, a verification, a restore or an import ends in, as the Job hands it to the operator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from medianest_operator.results.text import RESULT_LIMIT, cut


class Outcome(StrEnum):
    """How a run ended, and with it the exit code."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    """It would fail again."""
    TRANSIENT = "Transient"
    """Another try may help."""

    @property
    def exit_code(self) -> int:
        return {Outcome.SUCCEEDED: 0, Outcome.FAILED: 1, Outcome.TRANSIENT: 2}[self]


class Reason(StrEnum):
    """Why."""

    SUCCEEDED = "Succeeded"
    CONNECT_FAILED = "ConnectFailed"
    PERMISSION_DENIED = "PermissionDenied"
    DUMP_FAILED = "DumpFailed"
    REPOSITORY_FAILED = "RepositoryFailed"
    NO_SUCH_BACKUP = "NoSuchBackup"
    BACKUP_DAMAGED = "BackupDamaged"
    DECRYPTION_FAILED = "DecryptionFailed"
    VERIFICATION_FAILED = "VerificationFailed"
    TARGET_NOT_EMPTY = "TargetNotEmpty"
    TARGET_UNFIT = "TargetUnfit"
    SOURCE_UNFIT = "SourceUnfit"
    RESTORE_FAILED = "RestoreFailed"
    NOT_EQUAL = "NotEqual"
    NOT_RESTORABLE = "NotRestorable"
    EXTENSIONS_MISSING = "ExtensionsMissing"
    UNSUPPORTED_VERSION = "UnsupportedVersion"
    NO_ROOM = "NoRoom"
    INVALID_OPTIONS = "InvalidOptions"
    INTERRUPTED = "Interrupted"
    INTERNAL_ERROR = "InternalError"


class RunFailure(Exception):
    """A run can't go on.

    Attributes:
        reason: for programs.
        message: for people: what is wrong, and what to do.
        transient: another try may help.
    """

    def __init__(self, reason: Reason, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.transient = transient


@dataclass
class Result:
    """What is told.

    Attributes:
        outcome: how it ended.
        reason: why.
        message: for people.
        more: what else there is to tell, by the names in the JSON; absent values are left out.
    """

    outcome: Outcome
    reason: Reason
    message: str
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def success(cls, message: str, **more: Any) -> Result:
        """One that went well."""
        return cls(Outcome.SUCCEEDED, Reason.SUCCEEDED, message, more)

    @classmethod
    def failure(cls, failure: RunFailure, **more: Any) -> Result:
        """One that didn't."""
        outcome = Outcome.TRANSIENT if failure.transient else Outcome.FAILED
        return cls(outcome, failure.reason, failure.message, more)

    def to_json(self) -> str:
        """At most `RESULT_LIMIT` bytes: first what only people read goes, then long texts and lists are cut."""
        document: dict[str, Any] = {"outcome": self.outcome, "reason": self.reason, "message": cut(self.message)}
        document |= {name: value for name, value in self.more.items() if value is not None}
        return next(text for text in map(_dump, _ever_shorter(document)) if len(text.encode()) <= RESULT_LIMIT)


_ITEMS = 20
_LETTERS = 40
"""So many of each text stay: ids and the names of repositories have no more."""
_MESSAGE = 200


def _ever_shorter(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The document, with less in it each time; the last ones always fit."""
    yield document
    if isinstance(catalog := document.get("catalog"), dict):
        document = document | {"catalog": _read_by_controller(catalog)}
    most = _ITEMS
    for letters, items in _limits():
        # As many of each list as there is room for.
        for some in range(most, items - 1, -1):
            yield _with_message(_shortened(document, letters, some), document, max(letters, _MESSAGE))
        most = items - 1
    rest = _shortened(document, _LETTERS, 0)
    yield rest
    kept = _with_message(rest, document, _MESSAGE)
    for name in sorted(rest, key=lambda name: len(_dump(rest[name])), reverse=True):
        if name not in ("outcome", "reason", "message"):
            del kept[name]
            yield dict(kept)


def _limits() -> Iterator[tuple[int, int]]:
    letters, items = 600, _ITEMS
    while letters:
        yield letters, items
        letters, items = letters * 2 // 3, items * 2 // 3


def _read_by_controller(catalog: Mapping[str, Any]) -> dict[str, Any]:
    """The summaries without what only people read, and a series' last moment only where it is later than in those
    before: of the repositories the latest counts."""
    known = {to_camel(name) for name in Summary.model_fields}
    latest: dict[str, str] = {}
    short = {}
    for repository, summary in catalog.items():
        if not isinstance(summary, dict):
            continue
        tiers = {}
        for tier, told in (summary.get("tiers") or {}).items():
            if (last := str(told.get("last") or "")) > latest.get(tier, ""):
                tiers[tier] = {"last": last}
                latest[tier] = last
        short[repository] = {name: value for name, value in summary.items() if name in known} | {"tiers": tiers}
    return short


def _with_message(shortened: dict[str, Any], document: Mapping[str, Any], letters: int) -> dict[str, Any]:
    return shortened | {"message": cut(document["message"], letters)}


def _shortened(value: Any, letters: int, items: int) -> Any:
    match value:
        case dict():
            # Repositories and tiers count as well as others' lists do.
            kept = list(value.items())[: max(items, 16)]
            return {name: _shortened(item, letters, items) for name, item in kept}
        case list() | tuple():
            if value and isinstance(value[0], list):
                # Backups, which are whole or not there: how many there are is told beside them.
                return value[:items]
            kept_items = [_shortened(item, letters, items) for item in value[:items]]
            return [*kept_items, f"and {len(value) - items} more"] if len(value) > items else kept_items
        case str():
            return cut(value, max(letters, _LETTERS))
    return value


def _dump(document: Any) -> str:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=str)
    # The name of a file may hold bytes that are no text.
    return text.encode(errors="replace").decode()


# What the controller reads of it. A Job's pod is the namespace's: its message is input, like any other.


def _moment(text: str) -> str:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None or not _YEARS[0] <= found.year <= _YEARS[1]:
        raise ValueError("a moment has a time zone and a year of this century or the next")
    return text


_YEARS = (2000, 2199)
Moment = Annotated[str, AfterValidator(_moment)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=RESULT_LIMIT)]
Name = Annotated[str, Field(max_length=253)]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Report(_Read):
    """What a Job found, as the controller reads it."""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """The report in a termination message, without the parts that can't be read.

        A part is of another version of the program, or of somebody else; what else there is counts all the same.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            strange = {item["loc"][0] for item in error.errors() if item["loc"]}
        return cls.model_validate({key: value for key, value in document.items() if key not in strange})


class StoredIn(_Read):
    """Whether the backup reached a repository."""

    ok: bool
    message: Text | None = None


class Verified(_Read):
    """A backup that was verified."""

    backup: Name
    at: Moment
    seconds: Seconds | None = None
    lost: list[Text] = []


class TierSummary(_Read):
    last: Moment | None = None


def _whole(value: Any) -> Any:
    """A result that had to be shortened ends in words."""
    return [item for item in value if isinstance(item, list) and len(item) == 4] if isinstance(value, list) else value


Newest = tuple[Name, Annotated[int, Field(ge=0, lt=2**63)], bool | None, Annotated[int, Field(gt=-(2**33), lt=2**33)]]
"""A backup: its id, its bytes, whether a test restore of it went well, and the seconds from its id's moment to the
moment that its contents are of: less than none where a clock had been ahead."""


class Summary(_Read):
    """What a repository held at the end.

    Attributes:
        newest: `None` where an earlier version of the program reported.
        signed: how many of them are signed by the Job's key; none where it had no key.
        as_of: when it was looked at, by the Job's clock; `None` where an earlier version reported.
        used_percent: of the file system that it lies on; `None` of a bucket, and where an earlier version reported.
    """

    count: Annotated[int, Field(ge=0, le=2**31)] | None = None
    tiers: dict[Name, TierSummary] = {}
    last_verified: Verified | None = None
    newest: Annotated[list[Newest] | None, BeforeValidator(_whole)] = None
    signed: Annotated[int, Field(ge=0, le=2**31)] | None = None
    as_of: Moment | None = None
    used_percent: Annotated[int, Field(ge=0, le=100)] | None = None


class Check(_Read):
    """How the verification of the backup ended."""

    ok: bool
    message: Text = ""


class BackupReport(Report):
    """The result of a Job that took a backup, verified one, or both."""

    message: Text | None = None
    backup: Name | None = None
    started_at: Moment | None = None
    finished_at: Moment | None = None
    bytes: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    seconds: Seconds | dict[Name, Seconds] | None = None
    """That it took; by its steps, where it only verified."""
    source: Name | None = None
    repositories: dict[Name, StoredIn] = {}
    catalog: dict[Name, Summary] = {}
    verification: Check | None = None

    def as_document(self) -> dict[str, Any]:
        """By the names in the JSON, without what is absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def total_seconds(self) -> float | None:
        """That the whole took, where it says so."""
        return None if isinstance(self.seconds, dict) else self.seconds
