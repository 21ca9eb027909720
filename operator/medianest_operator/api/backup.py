"""`spec.backup` of a `MediaNestDatabase`: where backups are kept, when they are taken, for how long, how they are
verified and who can read them."""

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field

from medianest_operator.api.auto_grow import AutoGrow, maximum_rule
from medianest_operator.api.model import (
    ApiModel,
    DnsLabel,
    Duration,
    LocalReference,
    ObjectName,
    OnDelete,
    Quantity,
    ResourceAmounts,
    or_default,
    rules,
    with_rules,
)

DEFAULT_REPOSITORY: Final = "volume"
"""Name of the repository that there is where none is named."""


def _field(value: str, sign: str = "[*]") -> str:
    """A field of a schedule as a CronJob reads it: a list of values, ranges and steps."""
    item = f"({sign}|({value})(-({value}))?)(/[1-9][0-9]?)?"
    return f"{item}(,{item})*"


_SCHEDULE: Final = " +".join(
    (
        _field("[0-5]?[0-9]"),
        _field("[01]?[0-9]|2[0-3]"),
        _field("0?[1-9]|[12][0-9]|3[01]", "[*?]"),
        _field("0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"),
        _field("[0-6]|(?i:sun|mon|tue|wed|thu|fri|sat)", "[*?]"),
    )
)


def _days(days: str, months: str) -> str:
    """CEL: whether a schedule names nothing but these days, on any day of the week, in nothing but these months."""
    return rf"self.matches('^[^ ]+ +[^ ]+ +({days})([,-]({days}))* +(?i:{months})(,(?i:{months}))* +[*?]$')"


CronSchedule = Annotated[
    str,
    Field(
        max_length=100,
        json_schema_extra={"pattern": f"^(@(hourly|daily|weekly|monthly|yearly|annually|midnight)|{_SCHEDULE})$"}
        | rules(
            (
                f"!{_days('30|31', '0?2|feb')} && !{_days('31', '0?[2469]|11|feb|apr|jun|sep|nov')}",
                "a schedule must come at some time: none of the months that this one names has such a day",
            )
        ),
    ),
]
"""A schedule as a CronJob takes it: five fields, or a word like `@daily`."""

_DEADLINE: Final = or_default("duration", "deadline", "6h")
_MEMORY_LIMIT: Final = "quantity(has(self.limits) && has(self.limits.memory) ? self.limits.memory : '512Mi')"
_MEMORY_REQUEST: Final = "quantity(has(self.requests) && has(self.requests.memory) ? self.requests.memory : '64Mi')"

Days = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}d$", max_length=5)]
"""A number of days, for instance `7d`."""


class DumpFormat(StrEnum):
    """What a backup holds beside pg_dump's custom format, which it always has."""

    PLAIN = "Plain"
    SCHEMA = "Schema"


class VolumeRepository(ApiModel):
    """A volume. One that the operator makes, unless `claimName` names another."""

    model_config = with_rules(
        (
            "!has(self.claimName) || (!has(self.size) && !has(self.storageClassName))",
            "backup.repositories[].volume must have either claimName or size and storageClassName",
        ),
        (
            "!has(self.claimName) || !has(self.autoGrow)",
            "backup.repositories[].volume must have either claimName or autoGrow: the operator grows its own volumes",
        ),
        maximum_rule("backup.repositories[].volume"),
        (
            "!has(self.size) || quantity(self.size).compareTo(quantity('128Mi')) >= 0",
            "backup.repositories[].volume.size must be at least 128Mi",
        ),
    )

    size: Quantity | None = None
    """Size of the volume; that of storage where unset, also when storage grows. It can grow, and never shrinks."""
    storage_class_name: ObjectName | None = None
    """The storage class; the cluster's default where unset. A volume stays in its class."""
    claim_name: ObjectName | None = None
    """A PersistentVolumeClaim that is there already, for instance one on a file server that other nodes reach too."""
    auto_grow: AutoGrow | None = None
    """A larger volume before it is full, up to a maximum, by what the backup Jobs find there."""
    on_delete: OnDelete = OnDelete.RETAIN
    """Of a volume that the operator makes. Retain keeps it when the object is deleted; an object of the same name finds
    its backups again."""


class S3Repository(ApiModel):
    """A bucket of S3 or of a server that speaks its language."""

    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", max_length=63)]
    """The bucket; it must exist."""
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$", max_length=200)] | None = None
    """A folder in the bucket."""
    endpoint: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]+)?$", max_length=253)] | None = None
    """The server's URL; Amazon's of the region where unset. Plain http:// sends backups unencrypted unless
    backup.encryption is set."""
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=63)] = "us-east-1"
    """The region that requests are signed for."""
    path_style: bool = True
    """Names the bucket in the path, as most servers of one's own want it, not in the host name."""
    credentials_secret: LocalReference | None = None
    """A Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if temporary, AWS_SESSION_TOKEN. Unset: the identity
    of backup.serviceAccountName (workload identity)."""
    ca_secret: LocalReference | None = None
    """A Secret whose ca.crt signs the server's certificate."""


class Repository(ApiModel):
    """A place for backups: exactly one of volume and s3."""

    model_config = with_rules(
        (
            "has(self.volume) != has(self.s3)",
            "backup.repositories[] must name exactly one of volume and s3",
        )
    )

    name: Annotated[DnsLabel, Field(max_length=40)]
    """Its name in the status, in Events and in metrics."""
    volume: VolumeRepository | None = None
    s3: S3Repository | None = None


class Tier(ApiModel):
    """One series of backups."""

    enabled: bool = True
    """False takes none of this tier; what there is stays until it has had its time."""
    schedule: CronSchedule
    """When, in backup.timeZone."""
    keep: Days
    """How long each is kept. The last that was verified and the last of the tier stay longer, where they have to."""


class DailyTier(Tier):
    schedule: CronSchedule = "0 2 * * *"
    keep: Days = "7d"


class WeeklyTier(Tier):
    schedule: CronSchedule = "0 3 * * 0"
    keep: Days = "30d"


class MonthlyTier(Tier):
    schedule: CronSchedule = "0 4 1 * *"
    keep: Days = "90d"


class Logical(ApiModel):
    """The three series that the readiness reports ask for."""

    daily: DailyTier = DailyTier()
    """Every day, kept a week."""
    weekly: WeeklyTier = WeeklyTier()
    """Every Sunday, kept a month, and restored once to verify it."""
    monthly: MonthlyTier = MonthlyTier()
    """Every first of the month, kept a quarter, and restored once to verify it."""
    formats: Annotated[
        list[DumpFormat],
        Field(
            max_length=2,
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ] = []
    """Beside pg_dump's custom format: Plain (SQL) and Schema (definitions only, SQL); all packed by zstd."""


class Verification(ApiModel):
    """A restore into a throwaway server, compared with what the backup's manifest says."""

    enabled: bool = True
    """False: nothing is restored on a schedule, and no backup counts as verified then."""
    schedule: CronSchedule = "0 5 15 * *"
    """When the newest backup is restored once more: the recovery drill. Weekly and monthly ones are verified anyway."""
    reread: Days = "30d"
    """How long a verified backup may stay unread: the drill reads the bytes back, in every repository, of all that
    nobody has read for half of that time."""


class Scratch(ApiModel):
    """Room for verifications and restores: the copy and its server lie there."""

    model_config = with_rules(
        (
            "!has(self.size) || quantity(self.size).compareTo(quantity('512Mi')) >= 0",
            "backup.scratch.size must be at least 512Mi: an empty server with its write-ahead log takes some 100 MB",
        )
    )

    size: Quantity | None = None
    """Three times storage.size where unset."""
    storage_class_name: ObjectName | None = None
    """Takes a volume of this class for the time of the Job, instead of the node's own disk."""


class Encryption(ApiModel):
    """Backups encrypted by age (https://age-encryption.org) before they leave the Job's pod, and signed."""

    model_config = with_rules(
        (
            "(has(self.recipients) && size(self.recipients) > 0) || has(self.signingSecret)",
            "backup.encryption must have recipients, signingSecret or both",
        ),
    )

    recipients: Annotated[
        list[Annotated[str, Field(pattern=r"^age1[02-9ac-hj-np-z]{58}$", max_length=62)]],
        Field(max_length=10),
    ] = []
    """Public keys, as age-keygen prints them. Whoever has one of the private keys can read the backups."""
    identity_secret: LocalReference | None = None
    """A Secret whose key `identity` holds the private key. Only verifications and restores need it; without it neither
    can be made in this cluster."""
    signing_secret: LocalReference | None = None
    """A Secret whose key `key` signs what is stored: 32 random bytes or more, for instance from `openssl rand -hex 32`.
    What isn't signed by it is not restored, and counts for nothing; what others of its keys have signed is believed
    as well, so that one can take another's place."""


class JobRequests(ResourceAmounts):
    cpu: Quantity = "50m"
    """CPU, for instance `500m`."""
    memory: Quantity = "64Mi"
    """Memory, for instance `128Mi`."""


class JobLimits(ResourceAmounts):
    memory: Quantity = "512Mi"
    """Memory, for instance `1Gi`."""


class JobResources(ApiModel):
    """Resources of each backup Job's container. A backup takes some 100 MiB whatever the size of the database; a
    verification runs a small server beside it."""

    model_config = with_rules(
        (
            f"{_MEMORY_LIMIT}.compareTo(quantity('256Mi')) >= 0",
            "backup.resources.limits.memory must be at least 256Mi: a backup takes some 100 MiB, a verification more",
        ),
        (
            f"{_MEMORY_REQUEST}.compareTo({_MEMORY_LIMIT}) <= 0",
            "backup.resources.requests.memory must not exceed backup.resources.limits.memory",
        ),
        (
            "!has(self.limits) || !has(self.limits.cpu) || quantity(has(self.requests) && has(self.requests.cpu) ? "
            "self.requests.cpu : '50m').compareTo(quantity(self.limits.cpu)) <= 0",
            "backup.resources.requests.cpu must not exceed backup.resources.limits.cpu",
        ),
    )

    requests: JobRequests = JobRequests()
    limits: JobLimits = JobLimits()


class Backup(ApiModel):
    """Backups. With nothing said: three series into a volume, verified."""

    model_config = with_rules(
        (
            f"{_DEADLINE} >= duration('1m')",
            "backup.deadline must be at least 1m",
        ),
        (
            f"{_DEADLINE} <= duration('168h')",
            "backup.deadline must be at most 168h: a backup that hangs would be noticed only then",
        ),
    )

    repositories: Annotated[
        list[Repository],
        Field(
            min_length=1,
            max_length=8,
            json_schema_extra=rules(
                (
                    "self.all(a, self.exists_one(b, b.name == a.name))",
                    "backup.repositories must have different names",
                )
            ),
        ),
    ] = [Repository(name=DEFAULT_REPOSITORY, volume=VolumeRepository())]
    """Every backup goes into all of them; one that fails doesn't keep the others from having it. Default: one that is
    named `volume`, a volume of the operator's."""
    logical: Logical = Logical()
    """The series."""
    time_zone: Annotated[
        str,
        Field(max_length=64, json_schema_extra={"pattern": "^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z][A-Za-z0-9_+-]*){0,2}$"}),
    ] = "Etc/UTC"
    """The time zone of all schedules, as in the IANA database, for instance Europe/Berlin."""
    verification: Verification = Verification()
    """The recovery drill."""
    encryption: Encryption | None = None
    """Unset: not encrypted beyond what the repository does itself."""
    scratch: Scratch = Scratch()
    """Room for verifications and restores."""
    resources: JobResources = JobResources()
    """Resources of the Jobs."""
    deadline: Duration = "6h"
    """How long a Job may take."""
    service_account_name: ObjectName | None = None
    """The Jobs' service account, for repositories that know it by workload identity."""
    suspend: bool = False
    """No Job starts on a schedule while true."""
    keep_replaced: Days = "7d"
    """How long a database stays, closed, that a restore in place has replaced. Then it is backed up once more, for 30
    days, and dropped; where no repository takes that backup, it stays."""

    @property
    def recipients(self) -> list[str]:
        """Whom backups are encrypted for; nobody: they aren't."""
        return self.encryption.recipients if self.encryption else []

    @property
    def identity_secret(self) -> LocalReference | None:
        """What decrypts them."""
        return self.encryption.identity_secret if self.encryption else None

    @property
    def signing_secret(self) -> LocalReference | None:
        """What signs them."""
        return self.encryption.signing_secret if self.encryption else None

    def repository(self, name: str) -> Repository | None:
        """The repository of this name; None where there is none."""
        return next((item for item in self.repositories if item.name == name), None)

    def only(self, names: list[str]) -> Self:
        """The same with these repositories alone."""
        return self.model_copy(update={"repositories": [item for item in self.repositories if item.name in names]})
