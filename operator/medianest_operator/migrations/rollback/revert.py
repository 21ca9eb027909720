"""Revert what a run has committed, and verify it: the first way that fits, then the next where that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import Connection, sql

from medianest_operator.api.run_options import RunOptions
from medianest_operator.backups.logical import premigration
from medianest_operator.backups.logical.dump import DumpError, restore_in_place
from medianest_operator.backups.repository.client import Repository, RepositoryError
from medianest_operator.migrations.rollback.inverse import NoInverse, inverse
from medianest_operator.migrations.run import session
from medianest_operator.migrations.run.evidence import (
    Evidence,
    Verification,
    application_catalog,
    read_evidence,
    verify,
)
from medianest_operator.migrations.run.parts import Strategy
from medianest_operator.migrations.script import parse
from medianest_operator.naming import JOURNAL_SCHEMA
from medianest_operator.postgres.execute import run_script

# How often a statement that gets no lock is tried, and the pause between, seconds.
LOCK_ATTEMPTS = 10
LOCK_PAUSE = 1.0


class RevertUnfinished(Exception):
    """The rollback could not be gone to its end (no room, no connection, no lock); going it again may succeed."""


@dataclass(frozen=True)
class Reverted:
    """How it was rolled back, and the comparison with before."""

    strategy: Strategy
    verification: Verification


@dataclass(frozen=True)
class Backup:
    """The pre-migration backup, and how to reach the server with PostgreSQL's own programs."""

    repositories: Sequence[Repository]
    path: str
    environment: Mapping[str, str]
    identities: Sequence[str] = ()

    def read(self) -> Iterator[bytes]:
        return premigration.read(self.repositories, self.path, self.identities)


class Revert:
    """The rollback to a moment.

    Args:
        connection: in autocommit.
        before: the evidence of that moment.
        downs: the scripts that revert the committed migrations, by name, in the order in which those were applied.
        locked out: nobody else has written since before `before`: then rows and sequences must be equal as well.
        backup: what to restore where nothing else leads back; only with the lockout up.
        changed: whether anything of the run was ever committed. If not, what is different is somebody else's, and
            nothing but the verification is left to do.
    """

    def __init__(
        self,
        connection: Connection[Any],
        options: RunOptions,
        report: Callable[[str], None],
        *,
        before: Evidence,
        downs: Mapping[str, str],
        locked_out: bool,
        backup: Backup | None = None,
        changed: bool = True,
    ) -> None:
        self._connection = connection
        self._options = options
        self._report = report
        self._before = before
        self._downs = downs
        self._locked_out = locked_out
        self._backup = backup if locked_out else None
        self._changed = changed

    def run(self) -> Reverted:
        """Go back.

        Raises:
            UndoUnfinished: a restore was cut short, and nothing of it has been committed; or a lock wasn't granted.
            psycopg.OperationalError: the connection is lost.
        """
        reverted = Reverted(Strategy.TRANSACTION, self._verify())
        for strategy, way in self._ways():
            if reverted.verification.is_equal:
                break
            self._report(f"reverting by {strategy.lower()}: {reverted.verification.describe()}")
            if way():
                reverted = Reverted(strategy, self._verify())
        return reverted

    def _ways(self) -> Iterator[tuple[Strategy, Callable[[], bool]]]:
        if not self._changed:
            return
        if self._downs:
            yield Strategy.DOWN, self._by_down_scripts
        yield Strategy.INVERSE, self._by_inverse
        if self._backup is not None:
            yield Strategy.RESTORE, self._by_restore

    def _verify(self) -> Verification:
        if self._locked_out:
            self._set_sequences_back()
        after = read_evidence(self._connection, contents=self._locked_out)
        return verify(self._before, after, writers_may_write=not self._locked_out)

    def _by_down_scripts(self) -> bool:
        for name, text in reversed(list(self._downs.items())):
            script = parse(text)
            if script.is_atomic:
                self._connection.execute("BEGIN")
            try:
                outcome = run_script(self._connection, text)
                if outcome.error is not None:
                    self._report(f"the down script of {name} failed: {outcome.error.message}")
                    return True
                session.reset(self._connection)
                if script.is_atomic:
                    self._connection.execute("COMMIT")
            except psycopg.Error as error:
                if self._connection.broken:
                    raise
                self._report(f"the down script of {name} failed: {error}")
                return True
            finally:
                session.roll_back(self._connection)
                if not self._connection.broken:
                    session.reset(self._connection)
                    session.prepare(self._connection, self._options)
        return True

    def _by_inverse(self) -> bool:
        try:
            statements = inverse(self._before.catalog, application_catalog(self._connection))
        except NoInverse as missing:
            self._report(f"no inverse: {missing}")
            return False
        for statement in statements:
            self._report(f"reverting: {statement}")
            try:
                self._execute_patiently(statement)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                raise RevertUnfinished(f"{statement} gets no lock: {' '.join(str(error).split())}") from error
            except psycopg.Error as error:
                if self._connection.broken:
                    raise
                self._report(f"that failed: {error}")
        return True

    def _execute_patiently(self, statement: str) -> None:
        for attempt in range(1, LOCK_ATTEMPTS + 1):
            try:
                self._connection.execute(statement.encode())
                return
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                if attempt == LOCK_ATTEMPTS:
                    raise
                time.sleep(LOCK_PAUSE)

    def _by_restore(self) -> bool:
        assert self._backup is not None
        self._report(f"restoring {self._backup.path}")
        try:
            restore_in_place(self._backup.read(), self._backup.environment, before=(_CLEAR,), after=())
        except (DumpError, RepositoryError) as error:
            raise RevertUnfinished(f"the restore of {self._backup.path} failed: {error}") from error
        # It warns of every catalog that only a superuser may look at.
        self._connection.execute("SET client_min_messages = error")
        self._connection.execute("ANALYZE")
        self._connection.execute("RESET client_min_messages")
        return True

    def _set_sequences_back(self) -> None:
        for name, (last, called) in self._before.sequences.items():
            query = sql.SQL("SELECT last_value, is_called FROM {}").format(sql.SQL(name))
            try:
                row = self._connection.execute(query).fetchone()
            except psycopg.errors.UndefinedTable:
                continue
            if row is not None and tuple(row) != (last, called):
                self._connection.execute(
                    "SELECT pg_catalog.setval(%s::pg_catalog.regclass, %s, %s)", (name, last, called)
                )


def _stands_alone(catalog: LiteralString) -> LiteralString:
    """Whether a row `o` of this catalog is neither an extension's nor a part of another object that goes with it: a
    range type's constructors, an identity column's sequence, a table's row type (PostgreSQL manual, pg_depend)."""
    return f"""NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{catalog}'::regclass AND d.objid = o.oid
                              AND d.objsubid = 0 AND d.deptype IN ('e', 'i'))"""


# Each query makes statements, which are run before the next query looks. Everything in the application's schemas goes,
# extensions of others and the journal stay. What can't be dropped ends the restore, and with it the transaction.
_CLEARING: Sequence[LiteralString] = (
    """
    SELECT format('SELECT lo_unlink(%s)', oid) FROM pg_largeobject_metadata
     WHERE pg_get_userbyid(lomowner) = current_user""",
    """
    SELECT format('DROP EXTENSION IF EXISTS %I CASCADE', extname) FROM pg_extension
     WHERE pg_get_userbyid(extowner) = current_user""",
    """
    SELECT format('DROP PUBLICATION %I', pubname) FROM pg_publication
     WHERE pg_get_userbyid(pubowner) = current_user""",
    f"""
    SELECT format('DROP SCHEMA %I CASCADE', nspname) FROM pg_namespace o
     WHERE nspname NOT IN ('public', 'information_schema', '{JOURNAL_SCHEMA}') AND nspname !~ '^pg_'
       AND {_stands_alone("pg_namespace")}""",
    # A dump sets them last and tells each table's own rights: what is made before mustn't get any by default.
    """
    SELECT DISTINCT format('ALTER DEFAULT PRIVILEGES%s REVOKE ALL ON %s FROM %s',
               ' IN SCHEMA ' || quote_ident(n.nspname),
               CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS'
                                    WHEN 'T' THEN 'TYPES' ELSE 'SCHEMAS' END,
               CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
      FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace, aclexplode(d.defaclacl) a
     WHERE pg_get_userbyid(d.defaclrole) = current_user AND a.grantee <> d.defaclrole""",
    "SELECT 'CREATE SCHEMA IF NOT EXISTS public AUTHORIZATION pg_database_owner'",
    f"""
    SELECT format('DROP %s IF EXISTS public.%I CASCADE',
               CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                            WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, relname)
      FROM pg_class o
     WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
       AND {_stands_alone("pg_class")}""",
    f"""
    SELECT format('DROP ROUTINE IF EXISTS public.%I(%s) CASCADE', proname, pg_get_function_identity_arguments(oid))
      FROM pg_proc o
     WHERE pronamespace = 'public'::regnamespace AND {_stands_alone("pg_proc")}""",
    f"""
    SELECT format('DROP TYPE IF EXISTS public.%I CASCADE', typname) FROM pg_type o
     WHERE typnamespace = 'public'::regnamespace AND {_stands_alone("pg_type")}""",
)

_CLEAR: LiteralString = (
    "DO $clear$ DECLARE statement text; BEGIN"
    + "".join(f"\n  FOREACH statement IN ARRAY ARRAY({query}) LOOP EXECUTE statement; END LOOP;" for query in _CLEARING)
    + "\nEND $clear$"
)
