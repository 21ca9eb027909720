"""`spec.migrations` of a `MediaNestDatabase`: where the schema's migrations come from, and how they are run."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from medianest_operator.api.model import ApiModel, Duration, ImageName, ObjectName, Quantity, or_default, with_rules


class OnFailure(StrEnum):
    """What becomes of what a failed run has done."""

    ROLLBACK = "Rollback"
    """The database goes back to where the run began, and that is verified."""
    HALT = "Halt"
    """What was applied before the failure stays, as Prisma's deploy does."""


class Rehearse(StrEnum):
    """Whether the run is tried on a copy first."""

    AUTO = "Auto"
    """With the data up to a size, above it with the definitions alone."""
    ALWAYS = "Always"
    """With the data, whatever their size; where no copy can be made, nothing is applied."""
    NEVER = "Never"


_LONGEST = "596h"
"""2147483647 ms, the most that lock_timeout and statement_timeout take."""
_LOCK_TIMEOUT = or_default("duration", "lockTimeout", "10s")
_STATEMENT_TIMEOUT = or_default("duration", "statementTimeout", "0s")
_REHEARSAL_LIMIT = or_default("quantity", "rehearsalLimit", "2Gi")


class Bundled(ApiModel):
    """The three migrations that come with the operator."""


class ConfigMapSource(ApiModel):
    name: ObjectName
    """A ConfigMap in the object's namespace with one key a migration: <migration>.sql."""


class ImageSource(ApiModel):
    model_config = with_rules(
        (
            "!has(self.path) || !self.path.split('/').exists(part, part in ['.', '..']) && "
            "!self.path.matches('^/(proc|sys|dev)(/|$)')",
            "migrations.source.image.path must be a folder of the image, without . and .., and not below /proc, /sys "
            "or /dev",
        )
    )

    reference: ImageName
    """The application's image. One named by tag is pulled again every hour, and its migrations are compared by
    content; name it by digest (@sha256:...) to pin it."""
    path: Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]*[^/\x00-\x1f\x7f]$", max_length=512)] = (
        "/app/prisma/migrations"
    )
    """The folder with the migrations inside the image, in Prisma's layout. The image needs a `cp`."""
    pull_policy: Annotated[str, Field(pattern="^(Always|IfNotPresent|Never)$")] | None = None
    """When the kubelet pulls it. Unset: Always for a tag, IfNotPresent for a digest."""


class MigrationSource(ApiModel):
    """Where the migrations come from; the bundled ones where nothing is named."""

    # No default inside: one that the API server fills in would stand beside what a later manifest names.
    model_config = with_rules(
        (
            "(has(self.bundled) ? 1 : 0) + (has(self.configMap) ? 1 : 0) + (has(self.image) ? 1 : 0) <= 1",
            "migrations.source must name only one of bundled, configMap and image",
        )
    )

    bundled: Bundled | None = None
    """MediaNest's schema as it comes with the operator."""
    config_map: ConfigMapSource | None = None
    """Migrations from a ConfigMap."""
    image: ImageSource | None = None
    """Migrations from the application's own image."""

    @property
    def is_bundled(self) -> bool:
        return self.config_map is None and self.image is None


class Migrations(ApiModel):
    """The schema's migrations: applied, or rolled back and verified to be."""

    model_config = with_rules(
        (
            f"{_LOCK_TIMEOUT} > duration('0s')",
            "migrations.lockTimeout must be more than 0s: who waits for a lock holds up everybody behind it",
        ),
        (
            f"{_LOCK_TIMEOUT} <= duration('{_LONGEST}')",
            f"migrations.lockTimeout must be at most {_LONGEST}: PostgreSQL counts its milliseconds in 31 bits",
        ),
        (
            f"{_STATEMENT_TIMEOUT} <= duration('{_LONGEST}')",
            f"migrations.statementTimeout must be at most {_LONGEST}: PostgreSQL counts its milliseconds in 31 bits",
        ),
        (
            f"{_REHEARSAL_LIMIT}.compareTo(quantity('16Gi')) <= 0",
            "migrations.rehearsalLimit must be at most 16Gi: the copy lies on the node's disk",
        ),
        (
            f"{_REHEARSAL_LIMIT}.compareTo(quantity('64Mi')) >= 0",
            "migrations.rehearsalLimit must be at least 64Mi: an empty database takes 8Mi; to rehearse not at all, set "
            "migrations.rehearse to Never",
        ),
    )

    source: MigrationSource = MigrationSource()
    """Where the migrations come from; the bundled ones where unset."""
    target: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z_.-]*$", max_length=200)] | None = None
    """The last migration to apply; all of the source where unset. What is already applied stays."""
    on_failure: OnFailure = OnFailure.ROLLBACK
    """Rollback: a failed run goes back to where it began, and that is verified. Halt: what it applied before it failed
    stays, as with `prisma migrate deploy`."""
    rehearse: Rehearse = Rehearse.AUTO
    """Auto tries each run on a copy of the database first, up to rehearsalLimit with its data and above with the
    definitions alone; Always with the data; Never not at all."""
    rehearsal_limit: Quantity = "2Gi"
    """Size of the database up to which Auto copies the data; the copy lies in an emptyDir of the Job's pod."""
    allow_destructive: bool = False
    """Lets migrations drop tables and columns that exist, truncate, or delete without a condition."""
    lock_timeout: Duration = "10s"
    """How long a statement waits for a table's lock before the run lets go and tries again."""
    statement_timeout: Duration = "0s"
    """How long a statement may take; 0s sets no limit."""
    retry: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=63)] | None = None
    """Another value lets a source be tried again that failed; without one it waits until it changes."""
