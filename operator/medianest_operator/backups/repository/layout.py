"""Where everything of a backup lies in a repository; readable, and two databases never mix.

<namespace>/<name>/<system identifier>/<tier>/<id>/
    data.dump.zst[.age]  pg_dump's custom format
    data.sql.zst[.age]   plain SQL
    schema.sql.zst[.age] definitions only
    catalog.json.gz      the catalog of the same snapshot
    manifest.json        written last: without it there is no backup
    verification.json    what the newest restore of it showed
    reading-<token>.json a reader at work
    writing-<token>.json a writer at work

Backups of the first format have data.dump, data.sql.gz and schema.sql.gz in their place, which pg_dump itself packed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

MANIFEST = "manifest.json"
VERIFICATION = "verification.json"
CATALOG = "catalog.json.gz"
READING = "reading-"
WRITING = "writing-"
ENCRYPTED = ".age"
LOCAL = "local"
"""The namespace of databases that no object in a cluster stands for."""

_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_STAMP = "%Y%m%dT%H%M%SZ"
# A Kubernetes name, or what `Origin.local` makes of a database's.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_IDENTIFIER = re.compile(r"\d{1,20}")


class Tier(StrEnum):
    """Why a backup was taken, and with it how long it stays."""

    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    ON_DEMAND = "on-demand"
    PRE_MIGRATION = "pre-migration"
    REPLACED = "replaced"
    """The last one of a database that a restore has replaced: of what came after the restored backup and before the
    restore. It is no state of the present database's, and so is never the latest."""


PRE_MIGRATION_KEPT = 3
"""How many backups of migrations stay: the newest."""

_OUR_YEARS = range(2000, 2200)
"""No clock is so wrong as to be outside: what bears such a moment is somebody else's folder."""
_ID = re.compile(rf"(\d{{8}}T\d{{6}}Z)-({'|'.join(Tier)})(?:-[a-z0-9]{{1,16}})?")


class Format(StrEnum):
    """What a backup's file holds."""

    CUSTOM = "custom"
    PLAIN = "plain"
    SCHEMA = "schema"
    CATALOG = "catalog"


class Compression(StrEnum):
    """What a file was packed by after pg_dump had written it, and before it was encrypted."""

    NONE = "none"
    """By nothing: it is as packed as its own format is."""
    ZSTD = "zstd"
    """Into one frame of Zstandard (RFC 8878)."""


_FILES = {
    (Format.CUSTOM, Compression.NONE): "data.dump",
    (Format.PLAIN, Compression.NONE): "data.sql.gz",
    (Format.SCHEMA, Compression.NONE): "schema.sql.gz",
    (Format.CATALOG, Compression.NONE): CATALOG,
    (Format.CUSTOM, Compression.ZSTD): "data.dump.zst",
    (Format.PLAIN, Compression.ZSTD): "data.sql.zst",
    (Format.SCHEMA, Compression.ZSTD): "schema.sql.zst",
}
_OURS = re.compile(
    rf"({'|'.join(re.escape(name) + '(?:' + re.escape(ENCRYPTED) + ')?' for name in _FILES.values())}"
    rf"|{re.escape(MANIFEST)}|{re.escape(VERIFICATION)}|(?:{READING}|{WRITING})[a-z0-9]+\.json)"
)


def file_name(format: Format, compression: Compression, encrypted: bool) -> str | None:
    """The name of a backup's file; `None` where there is no such file."""
    name = _FILES.get((format, compression))
    return f"{name}{ENCRYPTED}" if name and encrypted else name


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """The database that was backed up.

    Attributes:
        namespace: of the MediaNestDatabase, or `local`.
        name: of the MediaNestDatabase.
        system_identifier: PostgreSQL's own of the cluster (`pg_control_system()`), so that a database made anew under
            the same name doesn't count the old one's backups as its own.

    Raises:
        ValueError: one of them can't be a part of a path.
    """

    namespace: str
    name: str
    system_identifier: str

    def __post_init__(self) -> None:
        for label, text in (("namespace", self.namespace), ("name", self.name)):
            if not _NAME.fullmatch(text):
                raise ValueError(f"{text!r} can't be a {label}: letters, digits, dots and hyphens")
        if not _IDENTIFIER.fullmatch(self.system_identifier):
            raise ValueError(f"{self.system_identifier!r} is no system identifier of PostgreSQL")

    @classmethod
    def local(cls, database: str, system_identifier: str) -> Origin:
        """Of a database that no MediaNestDatabase stands for; different names stay different."""
        name = database
        if not _NAME.fullmatch(name) or len(name) > 63:
            digest = hashlib.sha256(database.encode()).hexdigest()[:8]
            name = re.sub(r"[^A-Za-z0-9]+", "-", database).strip("-")[:50] + f"-{digest}"
        return cls(LOCAL, name.lstrip("-"), system_identifier)

    @property
    def prefix(self) -> str:
        """Of all paths of its backups, without a slash at the end."""
        return f"{self.namespace}/{self.name}/{self.system_identifier}"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where one backup lies.

    Attributes:
        origin: whose it is.
        tier: its tier.
        id: its id, `20261122T030000Z-daily-k3v9`: ids sort by time.
    """

    origin: Origin
    tier: Tier
    id: str

    @property
    def folder(self) -> str:
        """The path of its folder, without a slash at the end."""
        return f"{self.origin.prefix}/{self.tier}/{self.id}"

    def file(self, name: str) -> str:
        """The path of one of its objects."""
        return f"{self.folder}/{name}"


def new_id(tier: Tier, now: datetime, existing: Iterable[str] = ()) -> str:
    """An id that is later than all `existing` ones of the database.

    A clock that was set back then doesn't change which backup is the newest.

    Args:
        now: aware.
        existing: the ids of the database's backups in all repositories, see `catalog.ids_ahead`; others' are ignored.

    The letters at its end keep two backups apart that begin in the same second.
    """
    moment = now.astimezone(UTC).replace(microsecond=0)
    for known in map(id_moment, existing):
        # After the last of them there is no later one.
        if known is not None and known >= moment and known.year < _OUR_YEARS[-1]:
            moment = known + timedelta(seconds=1)
    return f"{moment:{_STAMP}}-{tier}-{token()}"


def id_moment(text: str) -> datetime | None:
    """The moment in an id, by which ids sort; `None` if it is none of ours."""
    found = _ID.fullmatch(text)
    if found is None:
        return None
    try:
        moment = datetime.strptime(found[1], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None
    return moment if moment.year in _OUR_YEARS else None


def id_tier(text: str) -> Tier | None:
    """The tier in an id; `None` if it is none of ours."""
    found = _ID.fullmatch(text)
    return Tier(found[2]) if found is not None else None


def token() -> str:
    """Four letters and digits that hardly come twice."""
    return "".join(secrets.choice(_LETTERS) for _ in range(4))


def id_of(path: str) -> str:
    """The id of the backup that a file of ours belongs to."""
    return path.split("/")[-2]


def is_of(path: str, origin: Origin, tier: Tier) -> bool:
    """Whether a path is that of a backup of this origin and tier: what somebody else may have written is no path that
    anything is read from before that."""
    found = parse(path)
    return found is not None and (found[0].origin, found[0].tier) == (origin, tier)


def parse(path: str) -> tuple[Place, str] | None:
    """The backup that an object belongs to, and the object's name in its folder; `None` if it isn't ours."""
    parts = path.split("/")
    if len(parts) != 6:
        return None
    namespace, name, identifier, tier, id_, file = parts
    if id_moment(id_) is None or id_tier(id_) != tier or not _OURS.fullmatch(file):
        return None
    try:
        return Place(Origin(namespace, name, identifier), Tier(tier), id_), file
    except ValueError:
        return None
