"""Try a run on a copy: the backup restored into a throwaway server, the same files, the same way back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.api.run_options import RunOptions
from medianest_operator.backups.logical.dump import DumpError, restore_as_new
from medianest_operator.migrations.rollback.undo import Undo, UndoUnfinished
from medianest_operator.migrations.run import session
from medianest_operator.migrations.run.apply import Application
from medianest_operator.migrations.run.checks import check_destruction, read_holders
from medianest_operator.migrations.run.evidence import Evidence, application_catalog, prove, read_evidence
from medianest_operator.migrations.run.parts import Part, Strategy, UndoPlan
from medianest_operator.postgres.catalog import Catalog, difference
from medianest_operator.postgres.throwaway import RoleCopy, ThrowawayError, ThrowawayServer, throwaway_server

_ROLES: LiteralString = """
SELECT r.rolname::text,
       array_remove(ARRAY[CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN NOT r.rolinherit THEN 'NOINHERIT' END,
                          CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
                          CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END, 'LOGIN'], NULL),
       coalesce((SELECT array_agg(g.rolname::text ORDER BY 1)
                   FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                  WHERE m.member = r.oid), '{}'),
       coalesce((SELECT s.setconfig FROM pg_catalog.pg_db_role_setting s
                  WHERE s.setrole = r.oid AND s.setdatabase = 0), '{}')
  FROM pg_catalog.pg_roles r WHERE r.rolname !~ '^pg_' ORDER BY 1
"""

# Weaker locks than these hold nobody up in daily work.
_STRONG: LiteralString = """
SELECT l.relation::regclass::text, l.mode
  FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation
 WHERE l.pid = pg_catalog.pg_backend_pid() AND l.granted AND c.relkind IN ('r', 'p', 'm')
   AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
   AND c.relnamespace::regnamespace::text !~ '^pg_' AND l.relation = ANY(%s)
 ORDER BY 1, 2
"""


class CopyError(Exception):
    """No copy could be made; the text says why."""


@dataclass(frozen=True)
class Rehearsed:
    """What the copy showed.

    Attributes:
        catalog: what the run leads to.
        locks: the strong locks that were taken on tables that existed before.
        undo_problem: why the planned way back doesn't lead back, `None` if it does or wasn't needed.
    """

    catalog: Catalog
    locks: tuple[str, ...] = ()
    undo_problem: str | None = None


def read_roles(connection: Connection[Any]) -> list[RoleCopy]:
    """The roles that a copy needs: with them its rights, policies and owners are the same."""
    rows = connection.cursor(row_factory=tuple_row).execute(_ROLES).fetchall()
    return [RoleCopy(name, tuple(words), tuple(groups), tuple(settings)) for name, words, groups, settings in rows]


@dataclass
class Copy:
    """A copy of the database in a throwaway server."""

    server: ThrowawayServer
    dbname: str
    user: str
    stack: ExitStack = field(default_factory=ExitStack)

    def connect(self, options: RunOptions) -> Connection[Any]:
        """As the role that the run itself logs in as."""
        connection = self.stack.enter_context(self.server.connect(self.dbname, self.user))
        session.prepare(connection, options)
        return connection


def make_copy(
    scratch: Path,
    backup: Iterable[bytes],
    roles: Sequence[RoleCopy],
    login: tuple[str, str],
    before: Evidence,
    schema_only: bool,
    stack: ExitStack,
) -> Copy:
    """Restore a backup into a throwaway server and check that it is what was backed up.

    Args:
        login: the database's name, and the role that the run logs in as.

    Raises:
        CopyError: no server, no restore, or the copy differs from `before`.
    """
    try:
        server = stack.enter_context(throwaway_server(scratch))
        server.create_roles(roles)
        restore_as_new(backup, server.environment("postgres"), schema_only)
        with server.connect(login[0]) as connection:
            found = read_evidence(connection)
            if not schema_only:
                connection.execute("ANALYZE")
    except (ThrowawayError, DumpError, psycopg.Error) as error:
        raise CopyError(" ".join(str(error).split())) from error
    if schema_only:
        unlike: list[str] = difference(before.catalog, found.catalog)
    else:
        # A sequence stands where it stands, in no snapshot (PostgreSQL manual, Sequence Manipulation Functions): those
        # who write meanwhile have moved it on before it was dumped.
        unlike = list(prove(replace(before, sequences={}), found, writers_may_write=False).differences)
    if unlike:
        raise CopyError(f"the restored backup differs from the database: {'; '.join(unlike[:3])}")
    return Copy(server, *login, stack)


def rehearse(
    copy: Copy,
    parts: Sequence[Part],
    options: RunOptions,
    undo_plan: UndoPlan,
    schema_only: bool,
    report: Callable[[str], None],
) -> Rehearsed:
    """Apply all parts to the copy; where parts commit before the end, go the planned way back first.

    Raises:
        Failure: a file failed, as it would in the database itself.
        RunError: data would be lost.
    """
    connection = copy.connect(options)

    def told(line: str) -> None:
        report(f"on the copy: {line}")

    holders = read_holders(connection)
    problem = None
    committed = parts[:-1] if parts and parts[-1].is_transaction else parts
    if committed and undo_plan.strategy in (Strategy.DOWN, Strategy.INVERSE):
        # Nobody else writes here, so rows and their contents must come back as well.
        before = read_evidence(connection, contents=True)
        Application(connection, options, told).run(committed)
        problem = _go_back(connection, committed, options, undo_plan, before, told)
        if problem is None:
            Application(connection, options, told).run(committed)
        else:
            return Rehearsed(application_catalog(connection), (), problem)
        parts = parts[len(committed) :]
    locks = _Locks(connection)
    Application(connection, options, told, before_commit=locks.look).run(parts)
    check_destruction(holders, read_holders(connection), options)
    return Rehearsed(application_catalog(connection), locks.described(), problem)


def _go_back(
    connection: Connection[Any],
    committed: Sequence[Part],
    options: RunOptions,
    undo_plan: UndoPlan,
    before: Evidence,
    report: Callable[[str], None],
) -> str | None:
    planned = [item for part in committed for item in part.planned]
    downs = {item.name: item.migration.down for item in planned if item.migration.down is not None}
    wanted = undo_plan.strategy
    undo = Undo(connection, options, report, before=before, downs=downs if wanted is Strategy.DOWN else {}, fenced=True)
    try:
        undone = undo.run()
    except UndoUnfinished as error:
        return f"{wanted.lower()} did not come to its end: {error}"
    names = [item.name for item in planned]
    connection.execute("DELETE FROM public._prisma_migrations WHERE migration_name = ANY(%s)", (names,))
    return None if undone.proof.is_equal else f"after {wanted.lower()}, it is {undone.proof.describe()}"


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
