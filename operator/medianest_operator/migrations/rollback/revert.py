"""Revert what a run has committed, and verify it: the first way that fits, then the next where that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psycopg
from psycopg import Connection, sql

from medianest_operator.backups.logical import premigration
from medianest_operator.backups.logical.program import DumpError
from medianest_operator.backups.logical.spool import restore_in_place
from medianest_operator.backups.repository.client import Repository, RepositoryError
from medianest_operator.migrations.rollback.clearing import built_on, clear, dependents, own_entries, own_roles
from medianest_operator.migrations.rollback.holding import added_holders, made_since, written_by_others
from medianest_operator.migrations.rollback.inverse import HOLDERS, NoInverse, drop_of, inverse
from medianest_operator.migrations.rollback.refill import plan_refill
from medianest_operator.migrations.rollback.rights import put_back
from medianest_operator.migrations.run import session
from medianest_operator.migrations.run.description import Description, differences, read_description
from medianest_operator.migrations.run.evidence import (
    INVALID,
    Evidence,
    Verification,
    application_catalog,
    but_for_gone,
    read_evidence,
    tables_changed,
    verify,
)
from medianest_operator.migrations.run.parts import Strategy
from medianest_operator.migrations.script import parse
from medianest_operator.postgres.catalog import Catalog, CatalogObject, Key, difference
from medianest_operator.postgres.contents import has_large_objects_of_others
from medianest_operator.postgres.execute import run_script
from medianest_operator.results.text import first_three

# How often a statement that gets no lock within `session.LOCK_LIMIT` is tried, and the pause between, seconds.
LOCK_ATTEMPTS = 5
LOCK_PAUSE = 1.0


class RestoreFailed(Exception):
    """The backup can't be restored here, and would not be at another try."""


class RevertUnfinished(Exception):
    """The rollback could not be gone to its end (no room, no connection, no lock); going it again may succeed."""


@dataclass(frozen=True)
class Reverted:
    """How it was rolled back, and the comparison with before."""

    strategy: Strategy
    verification: Verification
    cleared: bool = False
    """Whether all that is the role's own was dropped and restored, rather than rows alone brought back."""
    statements: tuple[str, ...] = ()
    """What the inverse executed, what it dropped first: what somebody else made beside the run may be among it."""


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
        locked_out: nobody else has written since before `before`: then rows and sequences must be equal as well.
        backup: what to restore where nothing else leads back; only with the lockout up.
        environment: leads pg_dump to the same database, for the second comparison.
        changed: whether anything of the run was ever committed. If not, what is different is somebody else's, and
            nothing but the verification is left to do.
        hands_off: what others may have written that any way back would take with it, in words: then only rights
            are put back, and the verification tells the rest.
        known: what was there beside `before` when an earlier attempt could not be verified; `None` where there was
            none. What came later somebody has made since, and stays.
        is_copy: the server is a copy's: programs that talk to it see nothing of this process's environment.
        looks: look for others' rows in what is dropped; as a rule where writers aren't locked out.
        given: the columns, as (table, name), that the run has added with a default.
    """

    def __init__(
        self,
        connection: Connection[Any],
        report: Callable[[str], None],
        *,
        before: Evidence,
        downs: Mapping[str, str],
        locked_out: bool,
        environment: Mapping[str, str],
        backup: Backup | None = None,
        changed: bool = True,
        hands_off: str | None = None,
        known: Collection[Key] | None = None,
        is_copy: bool = False,
        looks: bool | None = None,
        given: Collection[tuple[str, str]] = (),
    ) -> None:
        self._connection = connection
        self._report = report
        self._before = before
        self._downs = downs
        self._locked_out = locked_out
        self._environment = environment
        self._backup = backup if locked_out else None
        self._changed = changed
        self._is_copy = is_copy
        self._looks = not locked_out if looks is None else looks
        self._given = frozenset(given)
        self._hands_off = hands_off is not None
        self._known = known
        self._held: list[str] = [] if hands_off is None else [hands_off]
        self._restored = False
        self._cleared = False
        self._executed: list[str] = []
        self._depended_on: list[str] = []
        self._denied: set[str] = set()

    def run(self) -> Reverted:
        """Go back.

        Raises:
            RevertUnfinished: a restore was cut short, and nothing of it has been committed; or a lock wasn't granted.
            psycopg.OperationalError: the connection is lost.
        """
        reverted = Reverted(Strategy.TRANSACTION, self._verify())
        for strategy, way in self._ways():
            if reverted.verification.is_equal:
                break
            self._report(f"reverting by {strategy.lower()}: {reverted.verification.describe()}")
            if way():
                self._restored = self._restored or strategy is Strategy.RESTORE
                reverted = Reverted(strategy, self._verify())
        if self._held and not reverted.verification.is_equal:
            found = reverted.verification
            reverted = replace(reverted, verification=replace(found, differences=(*self._held, *found.differences)))
        executed = sorted(self._executed, key=lambda statement: not statement.startswith("DROP "))
        return replace(reverted, cleared=self._cleared, statements=tuple(executed))

    def _ways(self) -> Iterator[tuple[Strategy, Callable[[], bool]]]:
        if not self._changed:
            return
        if self._hands_off:
            yield Strategy.INVERSE, self._by_rights_alone
            return
        if self._downs:
            yield Strategy.DOWN, self._by_down_scripts
        yield Strategy.INVERSE, self._by_inverse
        if self._backup is not None:
            yield Strategy.RESTORE, partial(self._by_restore, self._backup)

    def _verify(self) -> Verification:
        self._set_sequences_back()
        after = read_evidence(self._connection, contents=self._locked_out)
        after, left = self._without_denied(after)
        compare = partial(verify, self._before, writers_may_write=not self._locked_out, restored=self._restored)
        found = compare(after)
        if found.is_equal and self._before.description is not None and self._changed:
            found = compare(replace(after, description=self._describe()))
        return replace(found, left=left)

    def _without_denied(self, after: Evidence) -> tuple[Evidence, tuple[str, ...]]:
        """Without the indexes of large values that a REINDEX left half built: the schema they are in is a superuser's,
        so that their owner can't drop them. They cost writes, and nothing reads them."""
        left = [item for item in after.catalog.of_kind(INVALID) if drop_of(item) in self._denied]
        if not left:
            return after, ()
        keys = {item.key for item in left}
        catalog = Catalog({key: item for key, item in after.catalog.objects.items() if key not in keys})
        return replace(after, catalog=catalog), tuple(drop_of(item) for item in left)

    def _by_down_scripts(self) -> bool:
        if self._held_by_others():
            return False
        for name, text in reversed(list(self._downs.items())):
            script = parse(text)
            if script.is_atomic:
                self._connection.execute("BEGIN")
            try:
                # Once more, with locks that last until what it drops is gone.
                if self._held_by_others():
                    return True
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
                    session.discard(self._connection)
        return True

    def _by_inverse(self) -> bool:
        self._put_rights_back()
        now = self._own(self._now())
        try:
            before = but_for_gone(self._before.catalog, now)
            statements = inverse(self._without_settings(before), self._without_settings(now))
        except NoInverse as missing:
            self._report(f"no inverse: {missing}")
            return False
        holders = {} if not self._looks else {drop_of(item): item for item in added_holders(self._before.catalog, now)}
        relations = {drop_of(item): item.name for item in now.objects.values() if item.kind in HOLDERS}
        while statements:
            self._depended_on = []
            count = len(self._executed)
            for statement in statements:
                if statement in relations and (built := built_on(self._connection, relations[statement])):
                    self._held.insert(
                        0, f"{relations[statement]} was not dropped, because of {first_three(built, ', ')}"
                    )
                elif self._try(statement, holders.get(statement)):
                    self._executed.append(statement)
            # Once what depends on them is gone, which no order of kinds foresees: types within types, defaults.
            statements = self._depended_on if len(self._executed) > count else []
        return True

    def _by_rights_alone(self) -> bool:
        self._put_rights_back()
        return True

    def _without_settings(self, catalog: Catalog) -> Catalog:
        """A catalog without what was put back already, by its description."""
        if self._before.description is None:
            return catalog
        return Catalog({key: item for key, item in catalog.objects.items() if item.kind != "settings"})

    def _now(self) -> Catalog:
        """The catalog as it is, as far as it was looked at before the run, which an earlier operator may have done."""
        return application_catalog(self._connection).as_of(self._before.catalog.version)

    def _own(self, now: Catalog) -> Catalog:
        """A catalog without what others have added meanwhile: the owner of a schema could drop that as well
        (PostgreSQL manual, DROP TABLE), and it is not the run's."""
        roles = own_roles(self._connection)
        added = now.objects.keys() - self._before.catalog.objects.keys()
        owners = {key: now.objects[key].attributes.get("owner", roles[0]) for key in added}
        whose = {key: f"belongs to {owner}" for key, owner in owners.items() if owner not in roles}
        for key in made_since(self._before.catalog, now, self._known):
            whose.setdefault(key, "was made since the rollback that could not be verified")
        others = whose.keys()
        names = {now.objects[key].name for key in others}
        tables = {now.objects[key].name for key in others if now.objects[key].kind in HOLDERS}
        for key in sorted(others):
            line = f"{now.objects[key].label} {whose[key]}, so it was not dropped"
            self._held += [line] if line not in self._held else []

        def is_theirs(item: CatalogObject) -> bool:
            return item.table in tables or (item.kind == "grants" and item.name.partition(" ")[2] in names)

        left = others | {key for key in added if is_theirs(now.objects[key])}
        return Catalog({key: item for key, item in now.objects.items() if key not in left})

    def _held_by_others(self) -> bool:
        """Whether what the run has added holds something that others wrote; where it does, `_held` says so."""
        if not self._looks:
            return False
        holders = added_holders(self._before.catalog, self._own(self._now()))
        try:
            with self._connection.transaction():
                held = list(written_by_others(self._connection, holders, self._given))
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            raise RevertUnfinished(
                f"what the run has added can't be looked at: {error.diag.message_primary}"
            ) from error
        self._held += [line for line in held if line not in self._held]
        return bool(held)

    def _try(self, statement: str, holder: CatalogObject | None = None) -> bool:
        """Run a statement; whether it did what it should the verification says. Returns whether it was executed.

        Args:
            holder: what it drops, which is looked at before, under the same lock.
        """
        self._report(f"reverting: {statement}")
        try:
            return self._execute_patiently(statement, holder)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            raise RevertUnfinished(f"{statement} gets no lock: {error.diag.message_primary}") from error
        except psycopg.Error as error:
            if self._connection.broken:
                raise
            if isinstance(error, psycopg.errors.DependentObjectsStillExist):
                self._depended_on.append(statement)
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                self._denied.add(statement)
            self._report(f"that failed: {error.diag.message_primary or error}")
            return False

    def _execute_patiently(self, statement: str, holder: CatalogObject | None) -> bool:
        """Returns whether it was executed: what holds others' rows is held."""
        for attempt in range(1, LOCK_ATTEMPTS + 1):
            try:
                if holder is None:
                    self._connection.execute(statement.encode())
                    return True
                with self._connection.transaction():
                    held = list(written_by_others(self._connection, [holder], self._given))
                    if not held:
                        self._connection.execute(statement.encode())
                for line in held:
                    self._report(line)
                self._held += held
                return not held
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                if attempt == LOCK_ATTEMPTS:
                    raise
                time.sleep(LOCK_PAUSE)
        return False

    def _by_restore(self, backup: Backup) -> bool:
        # What is made by the restore gets the rights that default privileges say by then.
        self._put_rights_back()
        if not self._refill(backup):
            built = dependents(self._connection)
            if built:
                self._report(f"not restored, since it would drop what others built on the tables: {first_three(built)}")
                self._held.append(f"the backup can't be restored without dropping {first_three(built, ', ')}")
                return False
            self._cleared = True
            place = clear(not has_large_objects_of_others(self._connection))
            try:
                self._restore(backup, (place,), (), own_entries(self._connection, self._before.catalog))
            except RestoreFailed as error:
                self._report(str(error))
                self._held.append(str(error))
                return False
        # It warns of every catalog that only a superuser may look at.
        self._connection.execute("SET client_min_messages = error")
        self._connection.execute("ANALYZE")
        self._connection.execute("RESET client_min_messages")
        self._put_rights_back()
        return True

    def _refill(self, backup: Backup) -> bool:
        """Where every definition is as before, rows alone are brought back; false where that isn't enough."""
        after = read_evidence(self._connection, contents=True)
        if difference(but_for_gone(self._before.catalog, after.catalog), after.catalog):
            return False
        if self._before.description is not None and differences(self._before.description, self._describe()):
            return False
        planned = plan_refill(self._connection, tables_changed(self._before, after))
        if planned is None:
            return False
        try:
            self._restore(backup, planned.before, planned.after, planned.chosen)
        except RestoreFailed as error:
            self._report(str(error))
            return False
        return self._verify().is_equal

    def _restore(
        self,
        backup: Backup,
        before: Sequence[str],
        after: Sequence[str],
        chosen: Callable[[Sequence[str]], Iterable[str]],
    ) -> None:
        self._report(f"restoring {backup.path}")
        environment = {**backup.environment, "PGOPTIONS": session.PROGRAM_OPTIONS}
        try:
            restore_in_place(backup.read(), environment, before, after, chosen, inherit=not self._is_copy)
        except (DumpError, RepositoryError, OSError) as error:
            text = f"the restore of {backup.path} failed: {error}"
            if isinstance(error, DumpError) and not error.transient:
                raise RestoreFailed(text) from error
            raise RevertUnfinished(text) from error

    def _put_rights_back(self) -> None:
        """Rights, settings and comments, which neither the catalog's difference nor a backup has in full."""
        if self._before.description is None:
            return
        for statement in put_back(self._before.description, self._describe(), locked_out=self._locked_out):
            if self._try(statement):
                self._executed.append(statement)

    def _describe(self) -> Description:
        try:
            return read_description(self._connection, self._environment, inherit=not self._is_copy)
        except DumpError as error:
            raise RevertUnfinished(f"the database can't be described: {error}") from error

    def _set_sequences_back(self) -> None:
        """A sequence knows no transaction (PostgreSQL manual, Sequence Manipulation Functions).

        With the writers at work it stands further on than before; where it stands behind, somebody has set it back, and
        the numbers that were given out would be given out again.
        """
        for name, (last, called) in self._before.sequences.items():
            query = sql.SQL("SELECT last_value, is_called FROM {}").format(sql.SQL(name))
            try:
                row = self._connection.execute(query).fetchone()
            except psycopg.errors.UndefinedTable:
                continue
            if row is None or tuple(row) == (last, called):
                continue
            nobody_wrote = self._locked_out and not self._hands_off
            if not nobody_wrote and not self._is_behind(name, row[0], last):
                continue
            self._report(f"sequence {name} stood at {row[0]}, and is set back to {last}")
            self._connection.execute("SELECT pg_catalog.setval(%s::pg_catalog.regclass, %s, %s)", (name, last, called))

    def _is_behind(self, name: str, now: int, before: int) -> bool:
        query = "SELECT seqincrement, seqcycle FROM pg_catalog.pg_sequence WHERE seqrelid = %s::pg_catalog.regclass"
        row = self._connection.execute(query, (name,)).fetchone()
        return row is not None and not row[1] and (now < before if row[0] > 0 else now > before)
