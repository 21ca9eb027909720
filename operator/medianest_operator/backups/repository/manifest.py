"""What is written beside a backup's data: what it is, and what a restore of it has shown.

Neither holds data, secrets or passwords, and neither is encrypted: what a repository holds can be seen without a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from medianest_operator.backups.repository import layout
from medianest_operator.backups.repository.layout import Compression, Format, Origin, Place, Tier
from medianest_operator.backups.repository.seals import SealError, Signature, seal, unseal
from medianest_operator.postgres.catalog import VERSION
from medianest_operator.postgres.database_rights import DatabaseRight, Right

FORMAT_VERSION = 2
"""Of what is written; all up to it are read. 2: files may be packed by zstd, and documents have a checksum. To an
operator that knows 1 alone, that is of a newer version, and left alone."""
LARGEST = 16 << 20
"""A manifest that is larger isn't read, bytes."""

_LONGEST_LIST = 100

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class ManifestError(ValueError):
    """A document in a repository is not what it should be; the text says how."""


class NewerFormatError(ManifestError):
    """A newer version of the operator wrote it, and may have meant something that this one doesn't know."""


class _Document(BaseModel):
    # A later version may say more; what it says must not make an older one blind.
    model_config = ConfigDict(frozen=True, extra="ignore")

    _signature: Signature = PrivateAttr(default=Signature.UNCHECKED)

    def to_bytes(self, keys: Sequence[bytes] = ()) -> bytes:
        """JSON to be read by people as well, with its checksum.

        Args:
            keys: the first of them signs it.

        Raises:
            ManifestError: what would be written can't be read back: better no backup than one like that.
        """
        sealed = seal(self.model_dump(mode="json", exclude_none=True), keys)
        text = (json.dumps(sealed, indent=1, ensure_ascii=False) + "\n").encode()
        if type(self).parse(text, keys).model_dump() != self.model_dump():
            raise ManifestError("it reads otherwise than it was written")
        return text

    @classmethod
    def parse(cls, text: bytes, keys: Sequence[bytes] = ()) -> Self:
        """The document in a file.

        Args:
            keys: one of which has to have signed it, if it is signed at all: see `signature`.

        Raises:
            ManifestError: it is none, or not as it was written.
        """
        try:
            document, has_checksum, signature = unseal(text, keys)
        except SealError as error:
            if _says_newer(text):
                # It may seal otherwise.
                raise NewerFormatError(f"it is of a newer version of the operator, and {error}") from error
            raise ManifestError(str(error)) from error
        try:
            found = cls.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            kind = NewerFormatError if _is_newer(document) else ManifestError
            raise kind(f"{where}: {first['msg']}" if where else str(first["msg"])) from error
        if not has_checksum and found._needs_checksum:
            raise ManifestError("it has no checksum")
        found._signature = signature
        return found

    @property
    def signature(self) -> Signature:
        """Whether one of the keys has signed it that it was read with."""
        return self._signature

    @property
    def _needs_checksum(self) -> bool:
        return False


def _says_newer(text: bytes) -> bool:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and _is_newer(document)


def _is_newer(document: Mapping[str, Any]) -> bool:
    """Whether a document says of itself, whatever else it says, that a newer version of the operator wrote it."""
    known = {"format_version": FORMAT_VERSION, "catalog_version": VERSION}
    return any(isinstance(found := document.get(name), int) and found > latest for name, latest in known.items())


class File(_Document):
    """One file of a backup.

    Attributes:
        name: in the backup's folder.
        format: what it holds.
        bytes: as it is stored.
        sha256: of the stored bytes, lowercase hex.
        encrypted: whether the stored bytes are age's.
        compression: what is inside of the encryption.
        unpacked_bytes: what comes out of that; nothing more is taken out of it.
    """

    name: str
    format: Format
    bytes: Count
    sha256: Sha256
    encrypted: bool
    compression: Compression = Compression.NONE
    unpacked_bytes: Count | None = None

    @model_validator(mode="after")
    def _named_as_in_the_layout(self) -> Self:
        if self.name != layout.file_name(self.format, self.compression, self.encrypted):
            raise ValueError(f"{self.name!r} is not the name of a file of format {self.format}")
        if self.compression is not Compression.NONE and self.unpacked_bytes is None:
            raise ValueError(f"how large {self.name} is without its compression isn't said")
        return self

    @property
    def restored_bytes(self) -> int:
        """What it takes as a file that a restore reads."""
        return self.bytes if self.unpacked_bytes is None else self.unpacked_bytes


class RoleNeed(_Document):
    """A role that objects of the database belong to or are granted to; never with its password.

    Attributes:
        name: as in pg_roles.
        attributes: what it may do there: `rolcanlogin`, `rolbypassrls` and so on.
        member_of: the roles that it is a member of.
    """

    name: str
    attributes: Mapping[str, bool] = {}
    member_of: tuple[str, ...] = ()


class DatabaseProperties(_Document):
    """What is a database's own, besides what is in it.

    Attributes:
        provider: of its collation: `c` for the C library's, `i` for ICU's.
        icu_locale: where that is ICU's.
        connection_limit: how many may connect; -1: as many as the server takes.
        comment: on it.
        settings: `ALTER DATABASE ... SET` (by the empty name) and `ALTER ROLE ... IN DATABASE ... SET` by role, as
            `name=value`.
        rights: on it, by role or `public`.
        large_objects: how many it holds.
        grants: `rights` of all but the owner, by who granted them; `None`: an earlier version didn't note them.
    """

    provider: str = "c"
    icu_locale: str | None = None
    connection_limit: int = -1
    comment: str | None = None
    settings: dict[str, tuple[str, ...]] = {}
    rights: dict[str, tuple[Right, ...]] = {}
    large_objects: Count = 0
    grants: tuple[DatabaseRight, ...] | None = None


class Manifest(_Document):
    """What a backup is. It is written last: without it there is no backup.

    Attributes:
        format_version: of this document.
        id: the backup's.
        tier: its tier.
        origin: whose it is.
        dbname: the database's name in PostgreSQL.
        owner: the role that owns it.
        taken_at: the moment that its contents are of, by the clock of who took it; ages are counted from it.
        contents_at: the same by the server's clock, by which people know when something happened; `None`: not noted.
        finished_at: when the last byte was stored.
        postgres_version: the server's, as in `server_version`.
        pg_dump_version: the program's.
        encoding: the database's.
        collate: its `LC_COLLATE`.
        ctype: its `LC_CTYPE`.
        source: `primary`, or `replica NAME`.
        schema_version: the newest applied migration.
        fingerprint: of the catalog, see `postgres.catalog.Catalog.fingerprint`.
        catalog_version: what the catalog knows, see `postgres.catalog.VERSION`.
        moved: labels of what was changed while it was dumped: a definition is spelled as it is at the moment, so either
            version may be in the dump or in the catalog.
        rows: of every table, counted on the dump's own snapshot.
        sequences: the last value of each and whether it was called, of about the same moment: sequences know no
            snapshots.
        roles: the ones that a restore with all owners and rights needs.
        extensions: their versions.
        database: the database's own properties; `None`: an earlier version took it.
        database_bytes: `pg_database_size`.
        keep_until: kept until then, and no longer, whatever its tier says.
        files: all files with data.
        operator_version: who wrote this.
    """

    format_version: int = FORMAT_VERSION
    id: str
    tier: Tier
    origin: Origin
    dbname: str
    owner: str
    taken_at: AwareDatetime
    contents_at: AwareDatetime | None = None
    finished_at: AwareDatetime
    postgres_version: str
    pg_dump_version: str
    encoding: str
    collate: str
    ctype: str
    source: str = "primary"
    schema_version: str | None = None
    fingerprint: str
    catalog_version: Annotated[int, Field(ge=1)] = 1
    moved: tuple[str, ...] = ()
    rows: dict[str, Count]
    sequences: dict[str, tuple[int, bool]]
    roles: tuple[RoleNeed, ...] = ()
    extensions: dict[str, str] = {}
    database: DatabaseProperties | None = None
    database_bytes: Count = 0
    keep_until: AwareDatetime | None = None
    files: Annotated[tuple[File, ...], Field(min_length=1)]
    operator_version: str = ""

    @field_validator("format_version")
    @classmethod
    def _known(cls, value: int) -> int:
        if value > FORMAT_VERSION:
            raise ValueError(f"format {value} is of a newer version of the operator; this one reads {FORMAT_VERSION}")
        return value

    @field_validator("catalog_version")
    @classmethod
    def _compared(cls, value: int) -> int:
        if value > VERSION:
            raise ValueError(f"a newer version of the operator looked at more than this one: {value}, here {VERSION}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if layout.id_moment(self.id) is None or layout.id_tier(self.id) is not self.tier:
            raise ValueError(f"{self.id!r} is no id of the tier {self.tier}")
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError("a file is there twice")
        return self

    @property
    def _needs_checksum(self) -> bool:
        return self.format_version > 1

    @property
    def moment(self) -> datetime:
        """What its contents are of, by the server's clock where that is known."""
        return self.contents_at or self.taken_at

    @property
    def place(self) -> Place:
        """Where the backup says that it lies."""
        return Place(self.origin, self.tier, self.id)

    @property
    def bytes(self) -> int:
        """All stored files together."""
        return sum(file.bytes for file in self.files)

    def file(self, format: Format) -> File | None:
        """The file of a format, if the backup has one."""
        return next((file for file in self.files if file.format is format), None)


class Verification(_Document):
    """What the newest restore of a backup showed.

    Attributes:
        outcome: `ok`, or `failed`: the backup can't be trusted.
        at: when it ended.
        seconds: how long it took.
        message: what was found, for people.
        stages: seconds by stage: download, restore, compare, amcheck.
        read_at: when its bytes were last read back and summed up since.
        manifest: SHA-256 of the manifest that it speaks of: that of another backup says nothing of this one.
        lost: what a restore in place doesn't bring back, as a superuser's does: labels of objects.
        operator_version: who wrote this.
    """

    outcome: Literal["ok", "failed"]
    at: AwareDatetime
    seconds: Annotated[float, Field(ge=0)]
    message: str = ""
    stages: dict[str, float] = {}
    read_at: AwareDatetime | None = None
    manifest: Sha256 | None = None
    lost: tuple[str, ...] = ()
    operator_version: str = ""

    @property
    def ok(self) -> bool:
        """Whether the backup was restored and equal to what its manifest says."""
        return self.outcome == "ok"

    @classmethod
    def of(
        cls,
        ok: bool,
        at: datetime,
        seconds: float,
        message: str = "",
        stages: Mapping[str, float] | None = None,
        lost: Sequence[str] = (),
    ) -> Verification:
        """One made now."""
        return cls(
            outcome="ok" if ok else "failed",
            at=at,
            seconds=round(seconds, 3),
            message=message,
            stages={name: round(value, 3) for name, value in (stages or {}).items()},
            lost=tuple(lost[:_LONGEST_LIST]),
            operator_version=operator_version(),
        )


def operator_version() -> str:
    """This program's version, empty where it isn't installed."""
    try:
        return version("medianest-operator")
    except PackageNotFoundError:
        return ""
