"""What each version of the schema looks like: kept by the runs themselves, or found out by replaying the source.

Drift is measured against it, and a database without a history is adopted by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import Connection

from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations import history as prisma
from medianest_operator.migrations.errors import RunError
from medianest_operator.migrations.history import History
from medianest_operator.migrations.run import session
from medianest_operator.migrations.run.apply import Application, Failure
from medianest_operator.migrations.run.evidence import application_catalog
from medianest_operator.migrations.run.parts import make_parts, parse_all
from medianest_operator.migrations.run.work import Work
from medianest_operator.migrations.source import Migration
from medianest_operator.postgres.catalog import Catalog, difference
from medianest_operator.postgres.copies import EXTENSIONS, prepare, read_database, read_roles, seal, settle
from medianest_operator.postgres.sandbox import Sandbox
from medianest_operator.postgres.throwaway import ThrowawayError
from medianest_operator.results.migration import Reason
from medianest_operator.results.text import first_three

RUN, REPLAY, OBSERVED = "run", "replay", "observed"
"""Where a recorded version comes from: a verified run on a database without drift, the source alone, a mere look."""

_REPLAY_DATABASE = "replay"


def schema_of(catalog: Catalog) -> Catalog:
    """What of a catalog is the schema's own: without the rights, which follow from this database's roles, and without
    tables that came out of a backup."""
    return catalog.without_restored().without_privileges()


@contextmanager
def replay(
    connection: Connection[Any], source: Sequence[Migration], sandbox: Sandbox
) -> Iterator[Iterator[tuple[str, Catalog]]]:
    """The schema after each migration of a source, built in a throwaway server.

    Raises:
        ThrowawayError: no server.
        Failure: a migration fails on an empty database.
    """
    database = replace(read_database(connection), name=_REPLAY_DATABASE, settings=())
    with sandbox.server() as server:
        room = prepare(server, database, read_roles(connection), {}, _extensions(connection), connection.info.user)
        settle(room)
        seal(room)
        with room.connect(room.login) as copy:
            yield _replayed(copy, source, room.brought)


def _replayed(
    copy: Connection[Any], source: Sequence[Migration], brought: Sequence[str]
) -> Iterator[tuple[str, Catalog]]:
    options = RunOptions()
    session.prepare(copy)
    prisma.ensure_table(copy)
    application = Application(copy, options, lambda line: None)
    for part in make_parts(parse_all(source), together=False):
        application.run([part])
        yield part.planned[0].name, schema_of(application_catalog(copy)).without_extensions(brought)


def _extensions(connection: Connection[Any]) -> dict[str, str]:
    """What a superuser put there before the first migration, as far as a copy may have it, and the schema of each."""
    rows = connection.execute(
        "SELECT e.extname::text, n.nspname::text FROM pg_catalog.pg_extension e"
        " JOIN pg_catalog.pg_roles r ON r.oid = e.extowner JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
        " WHERE r.rolsuper AND e.extname <> 'plpgsql'"
    ).fetchall()
    return {name: schema for name, schema in rows if name in EXTENSIONS}


def record_version(work: Work) -> None:
    """Keep the schema of the version that the database is at, which drift is measured against, unless there is none or
    it is known already.

    Where the run has led here from a schema that was as recorded, the database is what it should be. Otherwise the
    source says what that is; only where it can't be replayed, the database is taken at its word.
    """
    connection, journal, version, sandbox = work.connection, work.journal, work.version, work.workbench.copies
    if version is None:
        return
    journal.ensure()
    if work.undrifted:
        journal.record_version(version, schema_of(application_catalog(connection)), RUN)
        return
    known = journal.version(version)
    if known is not None and known[0] != OBSERVED:
        return
    found = None
    names = {migration.name for migration in work.source}
    history = prisma.read_history(connection)
    replayable = all(row.migration_name in names for row in history.applied)
    if replayable and sandbox is not None:
        applied = {row.migration_name for row in history.applied}
        try:
            with replay(connection, [m for m in sorted(work.source) if m.name in applied], sandbox) as versions:
                for _, catalog in versions:
                    found = catalog
        except (ThrowawayError, Failure, psycopg.Error) as error:
            work.report(f"the source could not be replayed: {' '.join(str(error).split())}")
    if found is not None:
        journal.record_version(version, found, REPLAY)
    else:
        journal.record_version(version, schema_of(application_catalog(connection)), OBSERVED)


def adopt_baseline(work: Work, why: str) -> History:
    """Give a database without a history the history that its schema shows.

    Every migration up to the one whose schema equals the database's is recorded as `prisma migrate resolve --applied`
    records it. Returns the new history.

    Args:
        why: a history is needed; what the run ends with if none is found.

    Raises:
        RunError: the schema is that of no migration, or that can't be found out.
    """
    connection, sandbox = work.connection, work.workbench.copies
    if sandbox is None:
        raise RunError(Reason.BASELINE_REQUIRED, why[0].upper() + why[1:])
    live = schema_of(application_catalog(connection))
    nearest: tuple[list[str], str] | None = None
    names: list[str] = []
    matched: list[str] = []
    try:
        with replay(connection, sorted(work.source), sandbox) as versions:
            for name, catalog in versions:
                names.append(name)
                unlike = difference(catalog, live)
                if not unlike:
                    matched = list(names)
                elif nearest is None or len(unlike) < len(nearest[0]):
                    nearest = unlike, name
    except (ThrowawayError, Failure, psycopg.Error) as error:
        raise RunError(
            Reason.BASELINE_REQUIRED,
            f"{why[0].upper()}{why[1:]} (The source could not be replayed: {' '.join(str(error).split())}.)",
        ) from error
    if not matched:
        close = f"; nearest is {nearest[1]}, but {first_three(nearest[0])}" if nearest else ""
        raise RunError(
            Reason.BASELINE_REQUIRED, f"{why[0].upper()}{why[1:]} Its schema is that of no migration{close}."
        )
    by_name = {migration.name: migration for migration in work.source}
    with connection.transaction():
        prisma.ensure_table(connection)
        for name in matched:
            prisma.insert_resolved(connection, by_name[name], datetime.now(UTC))
    work.report(
        f"adopted: the schema equals that of {matched[-1]} (verified); {len(matched)} migrations recorded as applied"
    )
    return prisma.read_history(connection)
