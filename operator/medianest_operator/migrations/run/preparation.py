"""Before a run changes anything: what the database looks like, its backup, and the rehearsal on a copy of that."""

from __future__ import annotations

import re
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

from medianest_operator.api.migrations import Rehearse
from medianest_operator.backups.logical import premigration
from medianest_operator.backups.logical.dump import DumpError, dump
from medianest_operator.backups.repository.client import Repository, RepositoryError, open_folder
from medianest_operator.backups.repository.facts import DatabaseFacts, read_facts
from medianest_operator.backups.repository.layout import Origin
from medianest_operator.migrations.errors import ADVICE, RunError
from medianest_operator.migrations.journal import Step
from medianest_operator.migrations.rollback.revert import Backup
from medianest_operator.migrations.run import rehearsal
from medianest_operator.migrations.run.apply import Failure
from medianest_operator.migrations.run.checks import check_indexes, named_indexes
from medianest_operator.migrations.run.description import Description, describing
from medianest_operator.migrations.run.evidence import LARGE_OBJECTS, Evidence, read_evidence
from medianest_operator.migrations.run.options import Workbench
from medianest_operator.migrations.run.parts import Strategy
from medianest_operator.migrations.run.stages import Opened
from medianest_operator.migrations.run.work import Work
from medianest_operator.postgres.contents import has_large_objects_of_others, read_tables, read_unreadable, snapshot
from medianest_operator.postgres.throwaway import ThrowawayError
from medianest_operator.results.migration import Outcome, Reason, Rehearsal, StoredBackup
from medianest_operator.results.text import first_three

_NO_RIGHT = "42501"
"""SQLSTATE insufficient_privilege (PostgreSQL manual, appendix A)."""
# foreign_key_violation, not_null_violation, null_value_not_allowed, raise_exception, no_data_found, assert_failure
# (likewise).
_WITHOUT_ROWS = frozenset({"23503", "23502", "22004", "P0001", "P0002", "P0004"})
# undefined_table, undefined_function, undefined_object, invalid_schema_name (likewise).
_NOT_THERE = frozenset({"42P01", "42883", "42704", "3F000"})
_SIZE = "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())"
_ON_THE_COPY = "That was the rehearsal on a copy; the database itself was not touched."


class Preparation:
    """Observes, backs up, rehearses.

    Args:
        work: the run's.
        run: the stage that it is at; its backup's path is noted in its entry.
        stack: closed when the run needs no copy any more.
    """

    def __init__(self, work: Work, run: Opened, stack: ExitStack) -> None:
        self._work = work
        self._parts = run.parts
        self._revert = run.revert
        self._connection = work.connection
        self._journal = work.journal
        self._entry = run.entry
        self._options = work.options
        self._workbench = work.workbench
        self._clock = work.clock
        self._report = work.report
        # Without a table there is nothing yet that a migration could harm, and so nothing to keep.
        self._repositories = self._choose_repositories(not work.tables, stack)
        self._taken: premigration.Taken | None = None
        self._unreadable: list[tuple[str, str]] = []

    def observe_and_back_up(self, contents: bool = False) -> Evidence:
        """One snapshot for the evidence and for the backup.

        Args:
            contents: digest the rows as well, not only count them.

        Raises:
            RunError: the backup failed.
        """
        if self._repositories:
            self._journal.step(self._entry, Step.BACKING_UP)
        with ExitStack() as stack:
            described = None
            if self._revert.commits_early:
                # Beside the backup: both read, and pg_dump takes longest to log in.
                described = stack.enter_context(describing(self._connection, self._workbench.environment))
            exported = stack.enter_context(snapshot(self._connection))
            with self._clock.timed("observe"):
                before = read_evidence(self._connection, contents)
            if self._repositories:
                with self._clock.timed("backup"):
                    self._taken = self._back_up(exported, before)
            if described is not None:
                with self._clock.timed("observe"):
                    before = replace(before, description=self._described(described))
        if self._taken is not None and self._repositories is self._workbench.repositories:
            self._work.stored_backup = StoredBackup(repositories=self._taken.repositories, bytes=self._taken.size)
            self._entry.backup = self._taken.path
            self._report(f"backed up to {self._taken.path}")
        return before

    def _described(self, described: Future[Description]) -> Description:
        try:
            return described.result()
        except DumpError as error:
            raise RunError(
                Reason.BACKUP_FAILED,
                f"The database can't be described by pg_dump: {error}. Nothing was changed; trying again.",
            ) from error

    def rehearse(self, before: Evidence) -> tuple[rehearsal.Rehearsed | None, Rehearsal]:
        """Apply everything to a copy first: a failure there never touches the database.

        Returns what was seen, `None` where no copy could be made, and the same for the result.

        Args:
            before: what the database looked like when it was backed up.

        Raises:
            RunError: the run fails on the copy, or there has to be one and there is none.
        """
        self._journal.step(self._entry, Step.REHEARSING)
        schema_only, note = self._choose_data()
        with ExitStack() as stack:
            try:
                with self._clock.timed("restore"):
                    copy = self._make_copy(before, schema_only, stack)
            except RepositoryError as error:
                raise RunError(
                    Reason.BACKUP_FAILED,
                    f"The pre-migration backup can't be read back: {error}. Nothing was changed; trying again.",
                ) from error
            except (rehearsal.CopyError, DumpError) as error:
                return self._unrehearsed(error)
            if self._work.stored_backup is not None and not schema_only:
                self._work.stored_backup = self._work.stored_backup.model_copy(update={"restored": True})
            self._report("rehearsing on a copy")
            try:
                with self._clock.timed("rehearse"):
                    done = self._try_on(copy, before, schema_only)
            except rehearsal.CopyError as error:
                return self._unrehearsed(error)
        for lock in done.locks:
            self._report(f"on the copy it locked {lock}")
        summary = Rehearsal(data=not schema_only, fingerprint=done.catalog.fingerprint(), locks=done.locks, note=note)
        return done, summary

    def _unrehearsed(self, error: rehearsal.CopyError | DumpError) -> tuple[None, Rehearsal]:
        """Go on without a copy, where that is allowed and another try would not bring one."""
        if error.transient:
            raise RunError(
                Reason.OUT_OF_RESOURCES, f"The run can't be rehearsed now: {error}. Nothing was changed; trying again."
            ) from error
        restores = self._revert.strategy is Strategy.RESTORE
        lacks_rows = isinstance(error, rehearsal.CopyError) and error.lacks_rows
        # A copy without rows rehearses no restore anyway.
        if self._options.rehearse is Rehearse.ALWAYS or (restores and not lacks_rows):
            raise RunError(
                Reason.REHEARSAL_IMPOSSIBLE, f"The run can't be rehearsed: {error}. Nothing was changed."
            ) from error
        self._report(f"warning: not rehearsed: {error}")
        return None, Rehearsal(data=False, note=str(error))

    def _choose_repositories(self, is_empty: bool, stack: ExitStack) -> tuple[Repository, ...]:
        """Where the backup goes: for a rehearsal alone, the scratch space will do."""
        if is_empty and self._options.rehearse is not Rehearse.ALWAYS:
            return ()
        if self._workbench.repositories and not is_empty:
            return self._workbench.repositories
        if self._workbench.scratch is None or self._options.rehearse is Rehearse.NEVER:
            return ()
        return (open_folder(Path(stack.enter_context(TemporaryDirectory(dir=self._workbench.scratch)))),)

    def _back_up(self, exported: str, before: Evidence) -> premigration.Taken:
        hidden = [table.name for table in read_tables(self._connection) if table.has_policies]
        if hidden:
            raise RunError(
                Reason.ROLLBACK_IMPOSSIBLE,
                f"Policies may hide rows of {first_three(hidden, ', ')} from the role that backs up (FORCE ROW LEVEL"
                " SECURITY), so no backup would be whole. Nothing was changed. Take FORCE away, or let a superuser give"
                " the owner BYPASSRLS, and set a new spec.migrations.retry.",
            )
        facts = read_facts(self._connection)
        origin = origin_of(self._workbench, facts)
        version = self._entry.plan.get("version")
        # A backup counts what has rows of its own.
        derived = {LARGE_OBJECTS, *(item.name for item in before.catalog.of_kind("materialized view"))}
        rows = {name: count for name, count in before.rows.items() if name not in derived}
        observed = premigration.Observed(facts, before.catalog, rows, before.sequences, version)
        try:
            own = not has_large_objects_of_others(self._connection)
            self._unreadable = read_unreadable(self._connection)
            for schema, name in self._unreadable:
                self._report(f"warning: {schema}.{name} is not backed up: this role may not read it")
            without = tuple(self._unreadable)
            if not own:
                self._unreadable.append(("public", LARGE_OBJECTS))
                self._report("warning: large objects are not backed up: some belong to others, and pg_dump takes all")
            chunks = dump(self._workbench.environment, exported, large_objects=own, without=without)
            recipients = self._workbench.recipients if self._repositories is self._workbench.repositories else ()
            taken = premigration.take(self._repositories, origin, chunks, observed, self._report, recipients)
        except (RepositoryError, DumpError, ThrowawayError) as error:
            raise RunError(
                Reason.BACKUP_FAILED, f"The pre-migration backup failed: {error}. Nothing was changed; trying again."
            ) from error
        for repository in self._repositories:
            try:
                premigration.prune(repository, origin, but=taken.path)
            except RepositoryError as error:
                self._report(f"warning: older backups stay: {error}")
        return taken

    def _choose_data(self) -> tuple[bool, str | None]:
        """Whether only the definitions are copied, and why."""
        if self._options.rehearse is Rehearse.ALWAYS:
            return False, None
        ((size,),) = self._connection.execute(_SIZE).fetchall()
        limit = self._options.rehearsal_limit
        if size <= limit:
            return False, None
        note = (
            f"the database has {size >> 20} MiB, more than the {limit >> 20} MiB up to which the data are copied:"
            " only the definitions were rehearsed"
        )
        self._report(note)
        return True, note

    def _make_copy(self, before: Evidence, schema_only: bool, stack: ExitStack) -> rehearsal.Copy:
        """Restore the backup next to this process; a backup that can't be restored is none."""
        server = self._work.server
        if server is None or self._taken is None:
            raise rehearsal.CopyError("there is no room for a copy")
        if self._repositories is self._workbench.repositories and (problem := self._workbench.no_restore):
            raise rehearsal.CopyError(problem)
        chunks = premigration.read(self._repositories, self._taken.path, self._workbench.identities)
        origin = rehearsal.Origin.of(self._connection)
        return rehearsal.make_copy(server, chunks, origin, before, schema_only, stack, self._unreadable)

    def _try_on(self, copy: rehearsal.Copy, before: Evidence, schema_only: bool) -> rehearsal.Rehearsed:
        parts, revert = self._parts, self._revert
        try:
            backup = None
            if self._taken is not None:
                backup = Backup(self._repositories, self._taken.path, {}, self._workbench.identities)
            done = rehearsal.rehearse(copy, parts, self._options, revert, schema_only, self._report, backup)
            if done.restore_problem is None:
                check_indexes(before.catalog, done.catalog, named_indexes(parts))
        except Failure as failure:
            if copy.was_superuser and failure.failed is not None and failure.failed.sqlstate == _NO_RIGHT:
                raise rehearsal.CopyError(
                    f"{failure.text} The run's login is a superuser, and a copy has none"
                ) from failure
            if schema_only and _wants_rows(failure):
                raise rehearsal.CopyError(
                    f"{failure.text} The copy holds no rows, which may be the reason", lacks_rows=True
                ) from failure
            if (lacked := _lacked(copy, failure)) is not None:
                raise rehearsal.CopyError(
                    f"{failure.text} The copy lacks {lacked}, which the run's role may not read or make"
                ) from failure
            transient = failure.reason.outcome is not Outcome.FAILED
            raise RunError(
                Reason.MIGRATION_FAILED if transient else failure.reason,
                f"{failure.text} {_ON_THE_COPY} {ADVICE}",
                failure.failed,
            ) from failure
        except RunError as stop:
            raise RunError(stop.reason, f"{stop.message} {_ON_THE_COPY} {ADVICE}", stop.failed) from stop
        except psycopg.OperationalError as error:
            # What a migration itself does wrong is a Failure; this is the copy's server.
            raise RunError(
                Reason.OUT_OF_RESOURCES,
                f"The copy's server was lost in the rehearsal: {' '.join(str(error).split())}. Nothing was changed;"
                " trying again.",
            ) from error
        return done


def _lacked(copy: rehearsal.Copy, failure: Failure) -> str | None:
    """What isn't in a copy and a statement failed for want of."""
    failed = failure.failed
    if failed is None or failed.sqlstate not in _NOT_THERE:
        return None
    for name in sorted(item.name for item in copy.left.names):
        # As a statement may call it: without its schema, and a function by its name alone.
        last = name.partition("(")[0].rpartition(".")[2]
        if re.search(rf"(?<![\w$]){re.escape(last)}(?![\w$])", failed.message):
            return name
    return None


def _wants_rows(failure: Failure) -> bool:
    """Whether a statement may have failed on a copy only because that holds no rows: a row that is referred to, a large
    object, a value that is looked up, a block that raises where it finds nothing."""
    failed = failure.failed
    if failed is None:
        return False
    return failed.sqlstate in _WITHOUT_ROWS or failed.message.startswith("large object ")


def origin_of(workbench: Workbench, facts: DatabaseFacts) -> Origin:
    """Whose the backups of this database are, in its repositories."""
    if workbench.database:
        return Origin(*workbench.database, facts.system_identifier)
    return Origin.local(facts.dbname, facts.system_identifier)
