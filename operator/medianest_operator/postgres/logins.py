"""The roles that people and programs log in as."""

from dataclasses import dataclass
from typing import Final

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


CONTROLLER_SUFFIX: Final = "controller"


def controller_name(owner: str) -> str:
    """The role that the controller reads the application's database as, by the owner's name.

    It has no password and no Secret: the controller's certificate is mapped to it (`hba`). It owns nothing, is a member
    of nothing, and may read `naming.READ_BY_CONTROLLER`, so that what a migrator defines there never runs with rights
    that it hasn't. `pg_read_all_data` would be too much: it reads pg_authid too.
    """
    return f"{owner}_{CONTROLLER_SUFFIX}"


def role_name(spec: DatabaseSpec, role: LoginRole) -> str:
    return f"{spec.database.owner}_{role.suffix}"
