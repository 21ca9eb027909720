"""The run's journal: a row for each run in a schema of our own, so that whoever comes next knows where it stands.

A run writes each step before it takes it. Whatever ends the process, the next run reads the last row: if it has no
end, its changes are either there as a whole, or they are rolled back, and that is verified, before
anything else happens.
"""

from __future__ import annotations

import enum
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection, Connection
from psycopg.rows import dict_row, tuple_row
from psycopg.types.json import Jsonb

from medianest_operator.migrations.run.evidence import catalog_from_json
from medianest_operator.naming import JOURNAL_SCHEMA
from medianest_operator.postgres.catalog import Catalog, CatalogObject
from medianest_operator.postgres.roles import let_reader_in
from medianest_operator.postgres.trusted import Relation, UntrustedContent, clamped, reading
from medianest_operator.results.migration import MigrationResult, Outcome, Reason

SCHEMA = JOURNAL_SCHEMA


class Step(enum.StrEnum):
    """Where a run stands, in the order in which a run goes through them."""

    PLANNED = "Planned"
    BACKING_UP = "BackingUp"
    REHEARSING = "Rehearsing"
    LOCKING_OUT = "LockingOut"
    APPLYING = "Applying"
    VERIFYING = "Verifying"
    ROLLING_BACK = "RollingBack"
    FINISHED = "Finished"


CHANGING = frozenset({Step.APPLYING, Step.VERIFYING, Step.ROLLING_BACK})
"""The steps in which the database's schema may be between two versions."""


class Ending(enum.StrEnum):
    """How a run ended, in the journal's words."""

    APPLIED = "Applied"
    ROLLED_BACK = "RolledBack"
    UNVERIFIED = "Unverified"
    REFUSED = "Refused"
    """It failed before it changed anything."""


CREATE: tuple[LiteralString, ...] = (
    "CREATE SCHEMA IF NOT EXISTS medianest_operator",
    "COMMENT ON SCHEMA medianest_operator IS 'What the MediaNest operator remembers of its migration runs'",
    """
CREATE TABLE IF NOT EXISTS medianest_operator.migration_runs (
    id           uuid PRIMARY KEY,
    source       text NOT NULL,
    step         text NOT NULL,
    strategy     text,
    started_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    ending       text,
    plan         jsonb NOT NULL,
    before       jsonb,
    lockout        jsonb,
    backup       text,
    result       jsonb
)
""",
    """
CREATE TABLE IF NOT EXISTS medianest_operator.schema_versions (
    version      text PRIMARY KEY,
    fingerprint  text NOT NULL,
    catalog      jsonb NOT NULL,
    origin       text NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now()
)
""",
)

_SELECT_EXISTS: LiteralString = (
    "SELECT pg_catalog.to_regclass('medianest_operator.migration_runs') IS NOT NULL AS there"
)

_SELECT_OPEN: LiteralString = """
SELECT id, source, step, strategy, started_at, plan, before, lockout, backup, result, ending
  FROM medianest_operator.migration_runs
 WHERE finished_at IS NULL OR ending = 'Unverified'
 ORDER BY started_at DESC
 LIMIT 1
"""

_SELECT_LAST_OF: LiteralString = """
SELECT ending, result FROM medianest_operator.migration_runs
 WHERE source = %s AND finished_at IS NOT NULL
 ORDER BY finished_at DESC
 LIMIT 1
"""

LARGEST_RESULT = 1 << 18
LARGEST_CATALOG = 1 << 24
"""Bytes of JSON that the controller takes from the journal: several times what a run writes."""

RUNS = Relation(
    SCHEMA,
    "migration_runs",
    {
        "id": "uuid",
        "source": "text",
        "step": "text",
        "strategy": "text",
        "started_at": "timestamptz",
        "finished_at": "timestamptz",
        "ending": "text",
        "lockout": "jsonb",
        "backup": "text",
        "result": "jsonb",
    },
)
VERSIONS = Relation(SCHEMA, "schema_versions", {"version": "text", "catalog": "jsonb"})

# For the controller, to which the rows are somebody's input (as in `history`).
_SELECT_LAST: LiteralString = f"""
SELECT id::pg_catalog.text AS id, pg_catalog.left(source, 128) AS source, pg_catalog.left(step, 64) AS step,
       pg_catalog.left(strategy, 64) AS strategy, {clamped("started_at")} AS started_at,
       {clamped("finished_at")} AS finished_at, pg_catalog.left(ending, 64) AS ending,
       pg_catalog.left(backup, 1024) AS backup, pg_catalog.octet_length(result::pg_catalog.text) AS size,
       CASE WHEN pg_catalog.octet_length(result::pg_catalog.text) <= {LARGEST_RESULT} THEN result::pg_catalog.text END
         AS result,
       lockout IS NOT NULL AND (lockout OPERATOR(pg_catalog.->) 'mark'::pg_catalog.text)::pg_catalog.text
         IS DISTINCT FROM 'null' AS locked_out
  FROM ONLY medianest_operator.migration_runs
 ORDER BY started_at DESC
 LIMIT 1
"""

_SELECT_VERSION: LiteralString = f"""
SELECT CASE WHEN pg_catalog.octet_length(catalog::pg_catalog.text) <= {LARGEST_CATALOG}
            THEN catalog::pg_catalog.text END
  FROM ONLY medianest_operator.schema_versions WHERE version OPERATOR(pg_catalog.=) %s LIMIT 1
"""

_INSERT: LiteralString = """
INSERT INTO medianest_operator.migration_runs (id, source, step, strategy, plan)
VALUES (%(id)s, %(source)s, %(step)s, %(strategy)s, %(plan)s)
"""

# Old runs tell nothing that anybody needs: their evidence goes with the next run, the rows themselves after fifty.
_PRUNE: tuple[LiteralString, ...] = (
    "UPDATE medianest_operator.migration_runs SET before = NULL WHERE finished_at IS NOT NULL"
    " AND ending <> 'Unverified' AND before IS NOT NULL",
    "DELETE FROM medianest_operator.migration_runs WHERE finished_at IS NOT NULL AND ending <> 'Unverified'"
    " AND id NOT IN (SELECT id FROM medianest_operator.migration_runs ORDER BY started_at DESC LIMIT 50)",
)


@dataclass
class Entry:
    """One run's row.

    Attributes:
        id: of this run.
        source: digest of what it runs: files, target and options.
        step: the last step begun.
        strategy: how the run would be rolled back.
        plan: the parts with each migration's name, history row and way of reverting it, as JSON.
        before: the evidence from before, as JSON; `None` until it was taken.
        lockout: the rights that are taken from writers, as JSON; `None` while nobody is to be locked out.
        backup: the pre-migration backup's path in the repository.
        unverified: an earlier attempt to revert the run ended unverified.
    """

    source: str
    plan: Mapping[str, Any]
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    step: Step = Step.PLANNED
    strategy: str | None = None
    before: Mapping[str, Any] | None = None
    lockout: Mapping[str, Any] | None = None
    backup: str | None = None
    unverified: bool = False

    @property
    def is_locked_out(self) -> bool:
        """Whether the rights are taken: what is to be taken is written down before."""
        return self.lockout is not None and self.lockout.get("mark", "") is not None


@dataclass(frozen=True)
class LastRun:
    """The newest run as the controller sees it while and after it runs."""

    id: str
    source: str
    step: str
    strategy: str | None
    started_at: datetime
    finished_at: datetime | None
    ending: str | None
    backup: str | None
    result: Mapping[str, Any] | None
    locked_out: bool
    """Whether it has taken the application's rights to connect."""

    @property
    def is_open(self) -> bool:
        return self.finished_at is None

    @property
    def keeps_locked_out(self) -> bool:
        """Whether it hasn't given them back yet."""
        return self.locked_out and (self.is_open or self.ending == Ending.UNVERIFIED)


class Journal:
    """The journal over a run's own connection, so that an entry commits together with the changes that it speaks of."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def ensure(self) -> None:
        """Create the schema and its tables where they are missing."""
        if not self.exists():
            with self._connection.transaction():
                for statement in CREATE:
                    self._connection.execute(statement)
                let_reader_in(self._connection, *((table.schema, table.name) for table in (RUNS, VERSIONS)))

    def exists(self) -> bool:
        row = self._connection.execute(_SELECT_EXISTS).fetchone()
        return bool(row and row[0])

    def holds(self, entry: Entry) -> bool:
        """Whether a run's row is there."""
        if not self.exists():
            return False
        query = "SELECT count(*) FROM medianest_operator.migration_runs WHERE id = %s"
        row = self._connection.execute(query, (entry.id,)).fetchone()
        return row is not None and row[0] == 1

    def keep(self, entry: Entry) -> None:
        """Write a run's row again where a migration has removed it: whose rights were taken stands nowhere else."""
        self.ensure()
        if not self.holds(entry):
            self.begin(entry)
            self.update(entry)

    def open_entry(self) -> Entry | None:
        """The run that never ended, or that ended unverified; `None` where nothing is open."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(_SELECT_OPEN).fetchone()
        if row is None:
            return None
        return Entry(
            id=row["id"],
            source=row["source"],
            step=Step(row["step"]),
            strategy=row["strategy"],
            plan=row["plan"],
            before=row["before"],
            lockout=row["lockout"],
            backup=row["backup"],
            unverified=row["ending"] == Ending.UNVERIFIED,
        )

    def locks_out(self) -> bool:
        """Whether a run that never ended, or that ended unverified, keeps the application locked out."""
        if not self.exists():
            return False
        entry = self.open_entry()
        return entry is not None and entry.is_locked_out

    def result_of(self, source: str) -> tuple[Ending, Mapping[str, Any]] | None:
        """How the last run of a source ended, and its result; `None` where none did."""
        row = self._connection.execute(_SELECT_LAST_OF, (source,)).fetchone()
        return (Ending(row[0]), row[1] or {}) if row else None

    def is_applied(self, entry: Entry) -> bool:
        """Whether a run's end as applied has been committed."""
        if not self.exists():
            return False
        row = self._connection.execute(
            "SELECT ending FROM medianest_operator.migration_runs WHERE id = %s", (entry.id,)
        ).fetchone()
        return row is not None and row[0] == Ending.APPLIED

    def begin(self, entry: Entry) -> None:
        """Write a new run, and drop what nobody needs of the old ones."""
        with self._connection.transaction():
            for statement in _PRUNE:
                self._connection.execute(statement)
            values = {"id": entry.id, "source": entry.source, "step": entry.step, "strategy": entry.strategy}
            self._connection.execute(_INSERT, {**values, "plan": Jsonb(entry.plan)})

    def update(self, entry: Entry, **changes: Any) -> None:
        """Write what changed, in the transaction that is open or in one of its own."""
        for name, value in changes.items():
            setattr(entry, name, value)
        self._connection.execute(
            "UPDATE medianest_operator.migration_runs SET step = %s, strategy = %s, plan = %s, before = %s,"
            " lockout = %s, backup = %s WHERE id = %s",
            (
                *(entry.step, entry.strategy, Jsonb(entry.plan), _json(entry.before), _json(entry.lockout)),
                *(entry.backup, entry.id),
            ),
        )

    def step(self, entry: Entry, step: Step) -> None:
        """Write that a step begins; cheaper than `update`, whose evidence is large."""
        entry.step = step
        self._connection.execute(
            "UPDATE medianest_operator.migration_runs SET step = %s WHERE id = %s", (step, entry.id)
        )

    def note(self, entry: Entry, **facts: Any) -> None:
        """Add to what the plan says, in the transaction that is open or in one of its own."""
        entry.plan = {**entry.plan, **facts}
        self._connection.execute(
            "UPDATE medianest_operator.migration_runs SET plan = %s WHERE id = %s", (Jsonb(entry.plan), entry.id)
        )

    def note_lockout(self, entry: Entry, lockout: Mapping[str, Any]) -> None:
        """Write what is known of the lockout, in the transaction that is open or in one of its own."""
        entry.lockout = lockout
        self._connection.execute(
            "UPDATE medianest_operator.migration_runs SET lockout = %s WHERE id = %s", (Jsonb(lockout), entry.id)
        )

    def finish(self, entry: Entry, ending: Ending, result: Mapping[str, Any]) -> None:
        """Write the run's end, in the transaction that is open or in one of its own."""
        self._connection.execute(
            "UPDATE medianest_operator.migration_runs SET step = %s, finished_at = now(), ending = %s, result = %s"
            " WHERE id = %s",
            (Step.FINISHED, ending, Jsonb(result), entry.id),
        )

    def record_version(self, version: str, catalog: Catalog, origin: str) -> None:
        """Keep the catalog that a version of the schema has: what drift is measured against."""
        document = [
            {"kind": item.kind, "table": item.table, "name": item.name, "attributes": dict(item.attributes)}
            for _, item in sorted(catalog.objects.items())
        ]
        self._connection.execute(
            "INSERT INTO medianest_operator.schema_versions (version, fingerprint, catalog, origin)"
            " VALUES (%s, %s, %s, %s) ON CONFLICT (version) DO UPDATE SET fingerprint = excluded.fingerprint,"
            " catalog = excluded.catalog, origin = excluded.origin, recorded_at = now()",
            (version, catalog.fingerprint(), Jsonb(document), origin),
        )

    def version(self, version: str) -> tuple[str, Catalog] | None:
        """The recorded catalog of a version and where it came from."""
        row = self._connection.execute(
            "SELECT origin, catalog FROM medianest_operator.schema_versions WHERE version = %s", (version,)
        ).fetchone()
        return (row[0], catalog_from_json(row[1])) if row else None


def _json(value: Mapping[str, Any] | None) -> Jsonb | None:
    return None if value is None else Jsonb(value)


async def read_last_run(connection: AsyncConnection[Any]) -> LastRun | None:
    """The newest run, for the controller; `None` where there is no journal or no run.

    Raises:
        UntrustedRelation: the journal's table is not the one that runs make.
        UntrustedContent: it holds what no run writes.
        psycopg.OperationalError: as the server says.
    """
    async with reading(connection, RUNS) as exists, connection.cursor(row_factory=dict_row) as cursor:
        row = await (await cursor.execute(_SELECT_LAST)).fetchone() if exists else None
    if row is None:
        return None
    size = row.pop("size")
    if row["step"] not in set(Step) or row["ending"] not in {None, *Ending}:
        words = f"step {row['step']!r} and ending {row['ending']!r}"
        raise UntrustedContent(f"{RUNS.label} has a run with {words}, which this operator doesn't know")
    if size is not None and row["result"] is None:
        raise UntrustedContent(
            f"{RUNS.label} has a result of {size} bytes; the largest that is read is {LARGEST_RESULT}"
        )
    return LastRun(**{**row, "result": _checked_result(row["result"])})


def _checked_result(text: str | None) -> Mapping[str, Any] | None:
    """A result of the shape that runs write; nothing else gets any further."""
    if text is None:
        return None
    try:
        document: dict[str, Any] = json.loads(text)
        # A run that was cut off leaves fewer fields than a Job's result has.
        least = {"outcome": Outcome.FAILED, "reason": Reason.INTERRUPTED, "message": ""}
        MigrationResult.model_validate({**least, **document})
    except (ValueError, TypeError, RecursionError) as error:
        what = " ".join(str(error).split())[:200]
        raise UntrustedContent(f"{RUNS.label} has a result that no run of this operator writes: {what}") from error
    return document


async def read_version(connection: AsyncConnection[Any], version: str) -> Catalog | None:
    """The recorded catalog of a version, for the controller. Raises as `read_last_run`."""
    async with reading(connection, VERSIONS) as exists, connection.cursor(row_factory=tuple_row) as cursor:
        row = await (await cursor.execute(_SELECT_VERSION, (version,))).fetchone() if exists else None
    if row is None:
        return None
    if row[0] is None:
        raise UntrustedContent(f"{VERSIONS.label} has a catalog of more than {LARGEST_CATALOG} bytes for {version}")
    try:
        catalog = catalog_from_json(json.loads(row[0]))
        if all(_is_catalog_object(item) for item in catalog.objects.values()):
            return catalog
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UntrustedContent(f"{VERSIONS.label} has a catalog for {version} that no run of this operator writes")


def _is_catalog_object(item: CatalogObject) -> bool:
    whole = all(isinstance(part, str) for part in item.key) and isinstance(item.attributes, Mapping)
    return whole and (item.kind != "column" or isinstance(item.attributes.get("position"), int))


def result_as_json(text: str) -> Mapping[str, Any]:
    """A result's own JSON, as the journal keeps it."""
    document: Mapping[str, Any] = json.loads(text)
    return document
