"""Where a database's first content comes from (`spec.bootstrap`)."""

from typing import Annotated

from pydantic import Field

from medianest_operator.api.backup import Repository
from medianest_operator.api.model import ApiModel, LocalReference, ObjectName, with_rules

BackupChoice = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", max_length=63)]
"""`latest`, `latest-verified`, or a backup's id as `medianest-dbctl backups list` shows it."""


class BackupsOf(ApiModel):
    """Whose backups: a repository may hold those of many databases."""

    namespace: ObjectName | None = None
    """That database's namespace, also one of another cluster; this object's where unset."""
    name: ObjectName | None = None
    """That database's name; this object's where unset."""


class RestoreSource(ApiModel):
    """A backup, from any repository that this namespace can reach."""

    repository: Repository
    """Where it lies; a volume must be named by claimName."""
    database: BackupsOf = BackupsOf()
    """Whose it is."""
    backup: BackupChoice = "latest"
    """Which one: latest, latest-verified or an id."""
    identity_secret: LocalReference | None = None
    """A Secret whose key `identity` holds age's private key, where the backup is encrypted."""
    signing_secret: LocalReference | None = None
    """A Secret whose keys have signed backups: then only a signed one is restored."""
    accept_unsigned: bool = False
    """Restores the backup that is named by its id although it isn't signed by the present key."""

    model_config = with_rules(
        (
            "!has(self.repository.volume) || has(self.repository.volume.claimName)",
            "bootstrap.restore.repository.volume must name the volume's claim (claimName)",
        )
    )


class ConnectionSecret(ApiModel):
    """A Secret in the object's namespace with a connection URL."""

    name: ObjectName
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "DATABASE_URL"
    """The key with the URL; Prisma's parameters in it are understood."""


class Import(ApiModel):
    """A running PostgreSQL of version 12 to 15, for instance the docker-compose deployment's."""

    connection_secret: ConnectionSecret
    """How to reach it. Its role needs to read every table; nothing is written there."""


class Bootstrap(ApiModel):
    """What a new database begins with. Only looked at while the database doesn't exist yet."""

    model_config = with_rules(
        # CEL reserves the word import; Kubernetes escapes it so.
        (
            "has(self.restore) != has(self.__import__)",
            "bootstrap must name exactly one of restore and import",
        )
    )

    restore: RestoreSource | None = None
    """Begin with a backup."""
    import_: Annotated[Import | None, Field(alias="import")] = None
    """Begin with a copy of a running database."""
