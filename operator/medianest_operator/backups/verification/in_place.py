"""A backup's restore in place, tried: by the steps and with the rights that a restore Job has in the real server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace

from medianest_operator.backups.logical.filling import fill, inspect, plan, read_restored
from medianest_operator.backups.logical.toc import extensions_of, owners_of, read_toc
from medianest_operator.backups.verification import amcheck
from medianest_operator.backups.verification.archive import Archive
from medianest_operator.backups.verification.comparison import Comparison, compare
from medianest_operator.postgres.copies import EXTENSIONS, DatabaseCopy, RoleCopy, prepare_candidate, seal
from medianest_operator.postgres.throwaway import ThrowawayServer


@dataclass(frozen=True)
class InPlace:
    """What came of it.

    Attributes:
        lost: what it could not bring back, as was known beforehand: labels of objects.
        comparison: of the rest, owners and rights included.
        checked: tables and indexes that amcheck looked at.
        problems: what it found, in words.
    """

    lost: list[str]
    comparison: Comparison
    checked: int
    problems: list[str]


def restore_in_place(
    server: ThrowawayServer,
    archive: Archive,
    database: DatabaseCopy,
    roles: Sequence[RoleCopy],
    jobs: int,
    timed: Callable[[str], AbstractContextManager[None]],
) -> InPlace:
    """Restore a backup as the operator does it, and compare.

    Args:
        timed: measures a stage.

    Raises:
        RunFailure: it can't be restored so.
        DumpError: the dump can't be read.
        psycopg.Error: the copy could not be begun, or the server is gone.
    """
    names = {role.name for role in roles}
    entries = read_toc(archive.path)
    owners = owners_of(entries, names) | names
    roles = [*roles, *(RoleCopy(name) for name in sorted(owners - names))]
    room = prepare_candidate(server, database, roles, extensions_of(archive.path, entries, owners, EXTENSIONS))
    with closing(room.connect(room.restorer)) as connection:
        with timed("restore"):
            target = inspect(connection, room.environment(), inherit=False)
            made = plan(target, archive)
            fill(target, archive, made, jobs)
        seal(room)
        with timed("compare"):
            found = read_restored(target)
            found = replace(found, catalog=found.catalog.without_extensions(room.brought))
            lost = made.losses.objects(archive.catalog) if archive.catalog else made.losses.told()
            comparison = compare(archive.manifest, archive.catalog, found, accepted=lost)
    # New ones: the server keeps for the other what its ANALYZE has taken.
    with closing(room.connect(room.restorer)) as one, closing(room.connect(room.restorer)) as two, timed("amcheck"):
        return InPlace(lost, comparison, *amcheck.check([one, two]))
