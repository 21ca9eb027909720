"""What a run would do: the source against the history. Pure, so that the controller and the Job agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC

from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.history import History, HistoryRow
from medianest_operator.migrations.source import Migration
from medianest_operator.results.migration import Reason
from medianest_operator.results.text import shorten


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why nothing may be applied, and what to do about it."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to apply and what is odd about the history.

    Attributes:
        pending: to be applied now, in order, up to and including the target.
        held_back: not applied either, but behind the target.
        applied: names that the history holds as applied, in order.
        edited: applied names whose file has changed since. Prisma's deploy doesn't look; the edit has no effect.
        missing: applied names that the source doesn't hold.
        out_of_order: pending names that sort before an applied one.
        failed: names with a failed row that nobody resolved.
        target: where to stop, `None` for the source's end.
        blocker: set if nothing may be applied.
        warnings: what doesn't stop a run, in words.
    """

    pending: tuple[Migration, ...] = ()
    held_back: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    out_of_order: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    target: str | None = None
    blocker: Blocker | None = None
    warnings: tuple[str, ...] = ()

    @property
    def version(self) -> str | None:
        """The last applied migration's name."""
        return self.applied[-1] if self.applied else None

    @property
    def pending_names(self) -> tuple[str, ...]:
        return tuple(migration.name for migration in self.pending)

    @property
    def is_up_to_date(self) -> bool:
        """Nothing to apply and nothing in the way."""
        return not self.pending and self.blocker is None


def make_plan(source: Sequence[Migration], history: History, target: str | None = None) -> Plan:
    """Compare a source with a history.

    Follows Prisma's deploy: a migration without a row that is applied is pending, in the order of names, also when a
    later one is applied already. Beyond Prisma, edits and gaps are looked for and a target is honoured.
    """
    migrations = sorted(source)
    names = {migration.name for migration in migrations}
    recorded = {row.migration_name: row for row in history.applied}
    open_ones = [migration for migration in migrations if migration.name not in recorded]
    pending = tuple(m for m in open_ones if target is None or m.name <= target)
    version = history.version
    failed = tuple(dict.fromkeys(row.migration_name for row in history.rows if row.is_failed))
    edited = tuple(m.name for m in migrations if m.name in recorded and _is_edited(m, recorded[m.name].checksum))
    missing = tuple(name for name in recorded if name not in names)
    out_of_order = tuple(m.name for m in pending if version is not None and m.name < version)
    return Plan(
        pending=pending,
        held_back=tuple(m.name for m in open_ones if m not in pending),
        applied=tuple(recorded),
        edited=edited,
        missing=missing,
        out_of_order=out_of_order,
        failed=failed,
        target=target,
        blocker=_blocker(history, names, target),
        warnings=_warnings(edited, missing, out_of_order, version, target),
    )


def _is_edited(migration: Migration, recorded: str) -> bool:
    """Whether the file isn't the one that was applied.

    A copy of a bundled file, as in a ConfigMap that adds a migration to them, is that of the application.
    """
    if migration.recognises(recorded):
        return False
    twin = next((item for item in bundled_migrations() if item.name == migration.name), None)
    return twin is None or not (twin.recognises(migration.checksum) and twin.recognises(recorded))


def _blocker(history: History, names: set[str], target: str | None) -> Blocker | None:
    if target is not None and target not in names:
        known = ", ".join(sorted(names)[-3:])
        return Blocker(
            Reason.UNKNOWN_TARGET,
            f"target {target} is not in the source; it ends with {known}. Correct spec.migrations.target.",
        )
    failed = [row for row in history.rows if row.is_failed]
    if failed:
        return Blocker(Reason.UNRESOLVED_FAILURE, _describe_failed(failed))
    if not history.applied and history.other_relations:
        count = history.other_relations
        return Blocker(
            Reason.BASELINE_REQUIRED,
            f"the database already holds {count} table{'s' if count > 1 else ''} or view{'s' if count > 1 else ''} but"
            " no applied migration, so it isn't known which migrations they came from. Record those that the database"
            " already contains with `prisma migrate resolve --applied <name>`, oldest first, or start with an empty"
            " database. Nothing was changed.",
        )
    return None


def _describe_failed(failed: Sequence[HistoryRow]) -> str:
    names = ", ".join(dict.fromkeys(row.migration_name for row in failed))
    first = failed[0]
    started = first.started_at.astimezone(UTC)
    why = f" It said: {shorten(' '.join(first.logs.split()), 300)}." if first.logs else ""
    return (
        f"an earlier run of {names} (started {started:%Y-%m-%d %H:%M:%S} UTC) neither finished nor was rolled back,"
        f" so parts of it may be in the database.{why} Look at what it left, then record it with"
        f" `prisma migrate resolve --rolled-back {first.migration_name}` once its changes are removed, or"
        f" `--applied {first.migration_name}` once they are complete. This run changed nothing."
    )


def _warnings(
    edited: Sequence[str],
    missing: Sequence[str],
    out_of_order: Sequence[str],
    version: str | None,
    target: str | None,
) -> tuple[str, ...]:
    warnings = [
        f"{name} was edited after it was applied; the edit has no effect on this database. Restore the file and put"
        " the change into a new migration."
        for name in edited
    ]
    warnings += [f"{name} is applied but is not in the source." for name in missing]
    warnings += [f"{name} is older than the applied {version} and is applied out of order." for name in out_of_order]
    if target is not None and version is not None and version > target:
        warnings.append(f"the database is at {version}, past the target {target}; applied migrations stay.")
    return tuple(warnings)
