"""Try a run on a copy: the backup restored into a throwaway server, the same files, the same rollback."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.api.run_options import RunOptions
from medianest_operator.backups.logical.copying import copy_stream
from medianest_operator.backups.logical.dump import DumpError
from medianest_operator.backups.logical.toc import LeftOut, Name
from medianest_operator.migrations.rollback.revert import Backup, Revert, RevertUnfinished
from medianest_operator.migrations.run import session
from medianest_operator.migrations.run.apply import Application
from medianest_operator.migrations.run.checks import check_destruction, check_emptied, read_holders
from medianest_operator.migrations.run.description import read_description
from medianest_operator.migrations.run.evidence import (
    LARGE_OBJECTS,
    Evidence,
    application_catalog,
    but_for_gone,
    read_evidence,
    verify,
)
from medianest_operator.migrations.run.parts import Part, RevertPlan, Strategy, columns_given
from medianest_operator.migrations.run.records import DatabaseRights
from medianest_operator.postgres.catalog import Catalog, CatalogObject, difference
from medianest_operator.postgres.copies import (
    PUBLIC,
    WRITING,
    DatabaseCopy,
    RoleCopy,
    Room,
    read_database,
    read_roles,
    seal,
)
from medianest_operator.postgres.throwaway import ThrowawayError, ThrowawayServer

# Weaker locks than these hold nobody up in daily work.
_STRONG: LiteralString = """
SELECT l.relation::regclass::text, l.mode
  FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation
 WHERE l.pid = pg_catalog.pg_backend_pid() AND l.granted AND c.relkind IN ('r', 'p', 'm')
   AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
   AND c.relnamespace::regnamespace::text !~ '^pg_' AND l.relation = ANY(%s)
 ORDER BY 1, 2
"""


# A full disk, and room comes back: strerror(ENOSPC), or what PostgreSQL says of a write that was cut short.
_FULL = re.compile(r"No space left on device|could not extend file .*: wrote only")


class CopyError(Exception):
    """No copy could be made; the text says why.

    Attributes:
        transient: trying again may help.
        lacks_rows: there is one, of the definitions alone, and that is not enough to tell.
    """

    def __init__(self, text: str, *, transient: bool = False, lacks_rows: bool = False) -> None:
        super().__init__(text)
        self.transient = transient
        self.lacks_rows = lacks_rows


@dataclass(frozen=True)
class Rehearsed:
    """What the copy showed.

    Attributes:
        catalog: what the run leads to.
        locks: the strong locks that were taken on tables that existed before.
        revert_problem: why the planned rollback doesn't lead back, `None` if it does or wasn't needed.
        restore_problem: why the backup doesn't lead back either, `None` if it does or wasn't needed.
        cleared: the backup led back by dropping all that is the role's own.
    """

    catalog: Catalog
    locks: tuple[str, ...] = ()
    revert_problem: str | None = None
    restore_problem: str | None = None
    cleared: bool = False


@dataclass
class Copy:
    """A copy of the database in a throwaway server.

    Attributes:
        left: what isn't in it.
        before: the catalog of the database where it comes from.
        was_superuser: the run's login is a superuser there; here it is none.
        bootstrap: the name of the bootstrap superuser there.
    """

    room: Room
    left: LeftOut
    before: Catalog
    was_superuser: bool
    bootstrap: str
    stack: ExitStack = field(default_factory=ExitStack)

    def connect(self) -> Connection[Any]:
        """As the role that the run itself logs in as."""
        connection = self.stack.enter_context(self.room.connect(self.room.login))
        session.prepare(connection)
        return connection

    def environment(self) -> dict[str, str]:
        """libpq's variables for PostgreSQL's own programs, as that role."""
        return self.room.server.environment(self.room.database.name, self.room.login)

    def whole(self, catalog: Catalog) -> Catalog:
        """A catalog of the copy with what was left out of it."""
        missing = self.before.objects.keys() - self.left.without(self.before, catalog).objects.keys()
        return Catalog({**catalog.objects, **{key: self.before.objects[key] for key in missing}})


@dataclass(frozen=True)
class Origin:
    """The database that is copied, read where it is.

    Attributes:
        login: the role that the run logs in as.
        is_superuser: whether it is a superuser there; in the copy it is none.
        bootstrap: the name of the bootstrap superuser.
    """

    database: DatabaseCopy
    roles: tuple[RoleCopy, ...]
    login: str
    is_superuser: bool
    bootstrap: str

    @classmethod
    def of(cls, connection: Connection[Any]) -> Origin:
        """What a connection is in.

        Raises:
            psycopg.Error: the connection is lost.
        """
        roles, login = tuple(read_roles(connection)), connection.info.user
        is_superuser = any(role.name == login and "SUPERUSER" in role.attributes for role in roles)
        return cls(read_database(connection), roles, login, is_superuser, _bootstrap(connection))


def make_copy(
    making: Future[ThrowawayServer],
    backup: Iterable[bytes],
    origin: Origin,
    before: Evidence,
    schema_only: bool,
    stack: ExitStack,
    unreadable: Sequence[tuple[str, str]] = (),
) -> Copy:
    """Restore a backup into a throwaway server and check that it is what was backed up.

    Args:
        making: the server, or why there is none.
        unreadable: what isn't in the backup, by schema and name.

    Raises:
        CopyError: no server, no restore, or the copy differs from `before`.
    """
    try:
        copied = copy_stream(making.result(), backup, origin.database, origin.roles, origin.login, schema_only)
        room, left = copied.room, copied.left
        left.names |= {Name.table(name if schema == PUBLIC else f"{schema}.{name}") for schema, name in unreadable}
        with closing(room.connect_reader()) as connection:
            found = read_evidence(connection)
            here = _bootstrap(connection)
        found = replace(
            found, catalog=_as_there(found.catalog.without_extensions(room.brought), here, origin.bootstrap)
        )
        if not schema_only:
            with closing(room.connect(room.restorer, WRITING)) as connection:
                connection.execute("ANALYZE")
        seal(room)
    except ThrowawayError as error:
        text = " ".join(str(error).split())
        raise CopyError(text, transient=error.transient or bool(_FULL.search(text))) from error
    except psycopg.OperationalError as error:
        raise CopyError(f"the sandbox gave up: {' '.join(str(error).split())}", transient=True) from error
    except (DumpError, psycopg.Error, OSError) as error:
        text = " ".join(str(error).split())
        raise CopyError(text, transient=bool(_FULL.search(text))) from error
    found = replace(found, catalog=left.without_rights(found.catalog))
    wanted = replace(before, catalog=left.without(left.without_rights(before.catalog), found.catalog))
    if schema_only:
        unlike: list[str] = difference(but_for_gone(wanted.catalog, found.catalog), found.catalog)
    else:
        # A sequence stands where it stands, in no snapshot (PostgreSQL manual, Sequence Manipulation Functions): those
        # who write meanwhile have moved it on before it was dumped.
        rows = {
            name: count
            for name, count in wanted.rows.items()
            if not left.has_table(name) or (name in found.rows and name != LARGE_OBJECTS)
        }
        wanted = replace(wanted, sequences={}, rows=rows)
        unlike = list(verify(wanted, found, writers_may_write=False, restored=True).differences)
    if unlike:
        raise CopyError(f"the restored backup differs from the database: {'; '.join(unlike[:3])}")
    return Copy(room, left, before.catalog, origin.is_superuser, origin.bootstrap, stack)


def rehearse(
    copy: Copy,
    parts: Sequence[Part],
    options: RunOptions,
    revert_plan: RevertPlan,
    schema_only: bool,
    report: Callable[[str], None],
    backup: Backup | None = None,
) -> Rehearsed:
    """Apply all parts to the copy; where parts commit before the end, go the planned rollback first.

    Args:
        backup: what the copy was made of, restored there again where nothing else leads back.

    Raises:
        Failure: a file failed, as it would in the database itself.
        RunError: data would be lost.
    """
    connection = copy.connect()

    def told(line: str) -> None:
        report(f"on the copy: {line}")

    def applying(before_commit: Callable[[Part], None] = lambda part: None) -> Application:
        rights = DatabaseRights(connection, is_copy=True)

        def look(part: Part) -> None:
            rights.check(part)
            before_commit(part)

        return Application(connection, options, told, before_commit=look, after_alone=rights.check)

    holders, rows = read_holders(connection), read_evidence(connection).rows
    went = _Went()
    committed = parts[:-1] if parts and parts[-1].is_transaction else parts
    if schema_only:
        backup = None
    planned = (
        (Strategy.DOWN, Strategy.INVERSE) if backup is None else (Strategy.DOWN, Strategy.INVERSE, Strategy.RESTORE)
    )
    if committed and revert_plan.strategy in planned:
        # Nobody else writes here, so rows and their contents must come back as well.
        before = read_evidence(connection, contents=True)
        before = replace(before, description=read_description(connection, copy.environment(), inherit=False))
        applying().run(committed)
        went = _go_back(copy, connection, committed, revert_plan, before, told, backup)
        if went.restore_problem is not None or (went.problem is not None and backup is None):
            return Rehearsed(_catalog(copy, connection), (), went.problem, went.restore_problem)
        # A restore makes every table again: what they are known by is another one.
        holders = read_holders(connection)
        applying().run(committed)
        parts = parts[len(committed) :]
    locks = _Locks(connection)
    applying(locks.look).run(parts)
    check_destruction(holders, read_holders(connection), options)
    check_emptied(connection, rows, options)
    return Rehearsed(_catalog(copy, connection), locks.described(), went.problem, cleared=went.cleared)


@dataclass(frozen=True)
class _Went:
    """How a rollback went on the copy.

    Attributes:
        problem: why the planned one doesn't lead back.
        restore_problem: why the backup doesn't either.
        cleared: as in `Rehearsed`.
    """

    problem: str | None = None
    restore_problem: str | None = None
    cleared: bool = False


def _catalog(copy: Copy, connection: Connection[Any]) -> Catalog:
    """What the copy came to, as the database would call it."""
    found = copy.whole(application_catalog(connection).without_extensions(copy.room.brought))
    return _as_there(found, _bootstrap(connection), copy.bootstrap)


def _as_there(catalog: Catalog, here: str, there: str) -> Catalog:
    """A copy's catalog as the database would call it: a range type's constructors belong to the bootstrap superuser,
    whoever makes the type (PostgreSQL's source, makeRangeConstructors), and that has another name here."""

    def called(item: CatalogObject) -> CatalogObject:
        return replace(item, attributes=json.loads(json.dumps(dict(item.attributes)).replace(here, there)))

    return Catalog({key: called(item) for key, item in catalog.objects.items()})


def _bootstrap(connection: Connection[Any]) -> str:
    row = connection.cursor(row_factory=tuple_row).execute("SELECT pg_catalog.pg_get_userbyid(10)::text").fetchone()
    return str(row[0]) if row else ""


def _go_back(
    copy: Copy,
    connection: Connection[Any],
    committed: Sequence[Part],
    revert_plan: RevertPlan,
    before: Evidence,
    report: Callable[[str], None],
    backup: Backup | None,
) -> _Went:
    planned = [item for part in committed for item in part.planned]
    downs = {item.name: item.migration.down for item in planned if item.migration.down is not None}
    wanted = revert_plan.strategy
    revert = Revert(
        connection,
        report,
        before=before,
        downs=downs if wanted is Strategy.DOWN else {},
        locked_out=True,
        environment=copy.environment(),
        backup=None if backup is None else replace(backup, environment=copy.environment()),
        is_copy=True,
        # What it would hold here, where nobody else writes, it would hold there.
        looks=not revert_plan.locked_out,
        given=columns_given(committed),
    )
    try:
        reverted = revert.run()
    except RevertUnfinished as error:
        problem = f"{wanted.lower()} did not come to its end: {error}"
        return _Went(problem, problem if backup is not None else None)
    names = [item.name for item in planned]
    connection.execute("DELETE FROM public._prisma_migrations WHERE migration_name = ANY(%s)", (names,))
    if not reverted.verification.is_equal:
        problem = f"after {reverted.strategy.lower()}, it is {reverted.verification.describe()}"
        return _Went(problem, problem if backup is not None else None)
    if reverted.strategy is Strategy.RESTORE and wanted is not Strategy.RESTORE:
        return _Went(f"{wanted.lower()} alone doesn't lead back, the backup does", cleared=reverted.cleared)
    return _Went(cleared=reverted.cleared)


class _Locks:
    """Looks at the session's own locks before each commit."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._begun = time.monotonic()
        self._found: dict[tuple[str, str], int] = {}
        query = "SELECT array_agg(oid::int8) FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p', 'm')"
        row = connection.execute(query).fetchone()
        self._known = row[0] if row else []

    def look(self, part: Part) -> None:
        milliseconds = round((time.monotonic() - self._begun) * 1000)
        rows = self._connection.cursor(row_factory=tuple_row).execute(_STRONG, (self._known,)).fetchall()
        for table, mode in rows:
            self._found[table, mode] = max(milliseconds, self._found.get((table, mode), 0))
        self._begun = time.monotonic()

    def described(self) -> tuple[str, ...]:
        return tuple(
            f"{table}: {mode.removesuffix('Lock')} for up to {milliseconds} ms"
            for (table, mode), milliseconds in sorted(self._found.items())
        )
