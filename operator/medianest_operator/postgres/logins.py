"""The roles that people and programs log in as."""

from dataclasses import dataclass

from medianest_operator.api.database import DatabaseSpec


@dataclass(frozen=True)
class LoginRole:
    """A role that people or programs log in as."""

    suffix: str
    """Of the Secret's and the role's name."""
    read_only: bool = False
    """Connects to the replicas."""


APP = LoginRole("app")
READ_ONLY = LoginRole("readonly", read_only=True)
MIGRATOR = LoginRole("migrator")
MONITOR = LoginRole("monitor")
BACKUP = LoginRole("backup")
LOGIN_ROLES = (APP, READ_ONLY, MIGRATOR, MONITOR, BACKUP)


def role_name(spec: DatabaseSpec, role: LoginRole) -> str:
    return f"{spec.database.owner}_{role.suffix}"
