"""Which backup is meant, and in which repository it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from medianest_operator.backups.repository import layout
from medianest_operator.backups.repository.catalog import (
    LATEST,
    LATEST_VERIFIED,
    Backup,
    Catalog,
    CatalogError,
    State,
)
from medianest_operator.backups.repository.client import Repository, RepositoryError
from medianest_operator.backups.repository.layout import Format, Origin
from medianest_operator.results.backup import Reason, RunFailure


@dataclass(frozen=True)
class Wanted:
    """A database, as far as it is said which.

    Attributes:
        namespace: of the MediaNestDatabase; empty: any.
        name: its name; empty: any.
        system_identifier: of its server; empty: any.
    """

    namespace: str = ""
    name: str = ""
    system_identifier: str = ""

    def fits(self, origin: Origin) -> bool:
        """Whether it is that one."""
        return (
            self.namespace in ("", origin.namespace)
            and self.name in ("", origin.name)
            and self.system_identifier in ("", origin.system_identifier)
        )


@dataclass
class Found:
    """What the repositories hold of the wanted database.

    Attributes:
        catalogs: of those that could be read.
        failures: what was wrong with the others.
        transient: those may come back.
    """

    catalogs: list[Catalog] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    transient: bool = False

    def origins(self) -> list[Origin]:
        """The databases that have backups."""
        return sorted({origin for catalog in self.catalogs for origin in catalog.origins})


def look(repositories: Sequence[Repository], wanted: Wanted, report: Callable[[str], None]) -> Found:
    """Read the catalogs of the wanted database."""
    found = Found()
    for repository in repositories:
        try:
            repository.check_there()
            found.catalogs.append(_read(repository, wanted))
        except RepositoryError as error:
            report(f"left out: {error}")
            found.failures[repository.name] = str(error)
            found.transient = found.transient or error.transient
    return found


def of_newest(found: Found) -> Found:
    """The same of one database: of several of a name, as after a disaster recovery, that with the newest backup."""
    backups = [backup for catalog in found.catalogs for backup in catalog.backups]
    # What is none, or somebody else's, may have any id.
    counting = [backup for backup in backups if backup.state is State.COMPLETE and backup.is_authentic]
    newest = max(counting or backups, key=lambda backup: (backup.rank, backup.place)).place.origin
    return Found([catalog.of(newest) for catalog in found.catalogs], found.failures, found.transient)


def choose(
    found: Found,
    which: str,
    needs: Format = Format.CUSTOM,
    *,
    accept_unsigned: bool = False,
    but: Collection[str] = (),
) -> list[tuple[Repository, Backup]]:
    """The backup that is meant, in all repositories that have it.

    Args:
        which: `latest`, `latest-verified` or an id.
        accept_unsigned: see `Catalog.choose`.
        but: as there.

    Raises:
        RunFailure: there is none, or it isn't clear which.
    """
    if not found.catalogs:
        raise RunFailure(Reason.REPOSITORY_FAILED, "; ".join(found.failures.values()), found.transient)
    origins = found.origins()
    by_time = which in (LATEST, LATEST_VERIFIED)
    if by_time and len(origins) > 1:
        raise RunFailure(Reason.NO_SUCH_BACKUP, _ambiguous(found, origins))
    places: list[tuple[Repository, Backup]] = []
    problems: list[str] = []
    for catalog in found.catalogs:
        for own in [catalog.of(origin) for origin in origins] or [catalog]:
            try:
                places.append((catalog.repository, own.choose(which, needs, accept_unsigned=accept_unsigned, but=but)))
            except CatalogError as error:
                if own.backups or len(origins) < 2:
                    problems.append(str(error))
    if not places:
        text = "; ".join(dict.fromkeys([*problems, *found.failures.values(), *_others(found)]))
        raise RunFailure(Reason.NO_SUCH_BACKUP, f"{text}.", transient=bool(found.failures) and found.transient)
    newest = max((backup for _, backup in places), key=lambda backup: backup.rank).id
    found_in = [(repository, backup) for repository, backup in places if backup.id == newest]
    # What is accepted unsigned is no match for a copy of it that is signed.
    return [place for place in found_in if place[1].is_authentic] or found_in


def _read(repository: Repository, wanted: Wanted) -> Catalog:
    if not (wanted.namespace and wanted.name):
        catalog = Catalog.read(repository)
        fitting = [backup for backup in catalog.backups if wanted.fits(backup.place.origin)]
        return Catalog(repository, fitting, catalog.as_of)
    as_of = datetime.now(UTC)
    objects = repository.list(f"{wanted.namespace}/{wanted.name}")
    origins = {parsed[0].origin for item in objects if (parsed := layout.parse(item.path)) is not None}
    return Catalog(
        repository,
        [
            backup
            for origin in sorted(origins)
            if wanted.fits(origin)
            for backup in Catalog.read(repository, origin).backups
        ],
        as_of,
    )


def _others(found: Found) -> list[str]:
    """Whose backups there are where none is of the wanted database: its name may be another one."""
    if found.origins():
        return []
    names: dict[str, None] = {}
    for catalog in found.catalogs:
        for item in catalog.repository.list():
            if (parsed := layout.parse(item.path)) is not None:
                names[f"{parsed[0].origin.namespace}/{parsed[0].origin.name}"] = None
    shown = ", ".join(sorted(names)[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"there are backups of {shown}{more}"] if names else []


def _ambiguous(found: Found, origins: Sequence[Origin]) -> str:
    newest = []
    for origin in origins[:4]:
        ids = [backup.id for catalog in found.catalogs for backup in catalog.of(origin).backups]
        newest.append(f"{origin.prefix} (newest {max(ids)})")
    return (
        f"There are backups of {len(origins)} databases: {'; '.join(newest)}. Say which by its id, or by"
        " --namespace, --name and --system-identifier."
    )
