"""How a database's schema differs from what the bundled migrations make, in words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import psycopg

from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.postgres.catalog import Catalog, difference, read_catalog
from medianest_operator.postgres.copies import DatabaseCopy, RoleCopy, prepare, seal, settle
from medianest_operator.postgres.sandbox import Sandbox
from medianest_operator.postgres.throwaway import ThrowawayError

_HISTORY = "_prisma_migrations"
_SMALL = {"shared_buffers": "16MB", "maintenance_work_mem": "16MB", "max_connections": "8"}
_OWNER = "bundled"
_DATABASE = DatabaseCopy("bundled", _OWNER, "UTF8", "C.UTF-8", "C.UTF-8")


def differences_from_bundled(
    found: Catalog, version: str | None, sandbox: Sandbox, report: Callable[[str], None]
) -> list[str]:
    """What is unlike the bundled schema of a version; the operator's drift detection tells the same later on.

    Args:
        found: without owners and rights.
        version: the newest applied migration.
        sandbox: where the bundled schema is made.
    """
    if version is None:
        return ["there is no migration history (_prisma_migrations): the operator can't know which version this is"]
    migrations = bundled_migrations()
    names = [migration.name for migration in migrations]
    if version not in names:
        return [f"its newest migration, {version}, is not one of the bundled ones (the newest is {names[-1]})"]
    try:
        with sandbox.server(_SMALL) as server:
            room = prepare(server, _DATABASE, [RoleCopy(_OWNER)], {}, {}, _OWNER)
            settle(room)
            seal(room)
            with closing(room.connect(room.login)) as connection:
                for migration in migrations[: names.index(version) + 1]:
                    connection.execute(migration.sql.encode())
                expected = read_catalog(connection).without_privileges()
    except (ThrowawayError, psycopg.Error) as error:
        report(f"not compared with the bundled schema: {' '.join(str(error).split())}")
        return []
    own = [_plain(catalog) for catalog in (expected, found)]
    return difference(*own)


def _plain(catalog: Catalog) -> Catalog:
    """Without the history's table, which Prisma makes itself, and extensions, which are the server's."""
    kept = catalog.without_table(_HISTORY)
    return Catalog({key: item for key, item in kept.objects.items() if key[0] != "extension"})
