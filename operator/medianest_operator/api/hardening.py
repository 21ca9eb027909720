"""`spec.hardening` of a `MediaNestDatabase`: what the operator may add to the application's tables."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from medianest_operator.api.model import ApiModel, rules


class Option(StrEnum):
    """The fields of `spec.hardening`, in the order in which they are applied: what may take long comes last."""

    CHECK_CONSTRAINTS = "checkConstraints"
    AUDIT_COLUMNS = "auditColumns"
    ROW_LEVEL_SECURITY = "rowLevelSecurity"
    RECOMMENDED_INDEXES = "recommendedIndexes"


def _allowed_values(name: str) -> Any:
    """A list of words that a CHECK constraint admits."""
    return Field(
        min_length=1,
        max_length=50,
        json_schema_extra=rules(
            (
                "self.all(value, self.exists_one(other, other == value))",
                f"hardening.checkConstraints.{name} must not name a value twice",
            ),
        ),
    )


AllowedValue = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", min_length=1, max_length=50)]


class CheckConstraints(ApiModel):
    """CHECK constraints on the columns that hold one of a few words. The defaults admit what MediaNest writes, in both
    spellings of a role: the columns' default is USER, and signing in writes user and admin."""

    enabled: bool = False
    """Add the constraints. Rows that break one are reported, and none of the four is added then."""
    user_roles: Annotated[list[AllowedValue], _allowed_values("userRoles")] = [
        "user", "admin", "moderator", "USER", "ADMIN", "MODERATOR",
    ]  # fmt: skip
    """Allowed in users.role."""
    user_statuses: Annotated[list[AllowedValue], _allowed_values("userStatuses")] = [
        "active", "inactive", "suspended", "deleted",
    ]  # fmt: skip
    """Allowed in users.status."""
    media_types: Annotated[list[AllowedValue], _allowed_values("mediaTypes")] = ["movie", "tv", "music", "book"]
    """Allowed in media_requests.media_type."""
    media_request_statuses: Annotated[list[AllowedValue], _allowed_values("mediaRequestStatuses")] = [
        "pending", "approved", "processing", "partially-available", "available", "completed", "denied", "rejected",
        "failed", "cancelled",
    ]  # fmt: skip
    """Allowed in media_requests.status."""


class Hardening(ApiModel):
    """What MediaNest's readiness reports recommend beyond its own migrations: objects of the operator's in the
    application's tables, each with a comment that says so. All off by default; turning an option off removes its
    objects."""

    recommended_indexes: bool = False
    """The nine further indexes that the reports recommend, built without blocking writers."""
    check_constraints: CheckConstraints = CheckConstraints()
    """Only known words in users.role, users.status, media_requests.media_type and media_requests.status."""
    audit_columns: bool = False
    """When a user was last changed and when a service was configured: users.hardening_updated_at and
    service_config.hardening_created_at. Turning this off drops the columns with what they hold."""
    row_level_security: bool = False
    """A session of the application that sets app.current_user_id reads and writes that user's rows only, or all rows
    where that user is an admin. Without the setting it works as before."""
