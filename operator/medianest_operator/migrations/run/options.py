"""How a migration run is to behave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medianest_operator.postgres.sandbox import LocalSandbox, Sandbox

if TYPE_CHECKING:
    # The controller reads the options too, and never a repository.
    from medianest_operator.backups.repository.client import Repository


@dataclass(frozen=True)
class Workbench:
    """What a run needs beside its connection.

    Attributes:
        environment: libpq's variables that lead to the same server and database, for PostgreSQL's own programs and for
            the session that watches.
        repositories: where the pre-migration backup goes; without one there is no backup.
        recipients: age's public keys that the backup is encrypted for; none: it isn't.
        identities: age's private keys; without one an encrypted backup can't be read back here.
        database: namespace and name of the MediaNestDatabase that the backup is of; without them it is a local one.
        scratch: a folder with room; without one there is no rehearsal.
        sandbox: makes the throwaway servers; without one they are made in `scratch`.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    repositories: tuple[Repository, ...] = ()
    scratch: Path | None = None
    database: tuple[str, str] | None = None
    recipients: tuple[str, ...] = ()
    identities: tuple[str, ...] = field(default=(), repr=False)
    sandbox: Sandbox | None = None

    @property
    def copies(self) -> Sandbox | None:
        """What makes the throwaway servers; `None` where there is no room for one."""
        if self.sandbox is not None or self.scratch is None:
            return self.sandbox
        return LocalSandbox(self.scratch)

    @property
    def no_restore(self) -> str | None:
        """Why no backup of this run could be restored, in words; `None` if one could."""
        if not self.repositories:
            return "no place for a backup was given"
        if self.recipients and not self.identities:
            return (
                "the backup would be encrypted, and the private key isn't here (spec.backup.encryption.identitySecret)"
            )
        return None
