"""The verdicts on a database's indexes, as one document for people and for machines.

Nothing in it ticks: a size is the power of two that it reaches, and an index' file never shrinks but by a rebuild.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pydantic import BaseModel, ConfigDict, field_validator

from medianest_operator.health.findings import coarse
from medianest_operator.health.indexes import bloat, expected
from medianest_operator.health.indexes.bloat import Measured
from medianest_operator.health.indexes.catalog import HISTORY_TABLE, Catalog, Collation, Index
from medianest_operator.health.indexes.foreign_keys import without_index
from medianest_operator.health.indexes.invalid import invalid
from medianest_operator.health.indexes.overlap import Overlap, overlaps
from medianest_operator.health.indexes.queries import MOST
from medianest_operator.health.indexes.usage import UNUSED_AFTER, without_needed
from medianest_operator.health.indexes.words import capitalized, drop_statement, has_controls, shown
from medianest_operator.postgres.index_definition import IndexDefinition

_LONGEST: Final = 2000
"""Characters of a text in the report."""
_LONGEST_FIX: Final = 16384


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Entry(_Frozen):
    """One verdict.

    Attributes:
        name: the index, foreign key, collation or constraint.
        table: its table, where it has one.
        evidence: why, as a sentence.
        fix: the exact statements that end it; `None` where there is none that fits all cases, or a name in it has
            control characters.
        bytes: the size of the index, as the power of two that it reaches.
        points: of a bloated one, about by how many it is emptier than its fillfactor, in steps of ten.
    """

    name: str
    table: str | None = None
    evidence: str
    fix: str | None = None
    bytes: int | None = None
    points: int | None = None

    @field_validator("name", "table", "evidence")
    @classmethod
    def _on_one_line(cls, text: str | None) -> str | None:
        return None if text is None else shown(text)[:_LONGEST]

    @field_validator("fix")
    @classmethod
    def _without_controls(cls, text: str | None) -> str | None:
        # Escaped it would name another index; as it is, it looks like lines that aren't its own.
        return None if text is None or has_controls(text) or len(text) > _LONGEST_FIX else text


class Report(_Frozen):
    """The state of the indexes in schema `public`.

    Attributes:
        total: all indexes on the application's tables, primary keys and invalid ones included, without those of
            `_prisma_migrations` (33 after the bundled migrations).
        total_with_history: the same with `_prisma_migrations` (34 after the bundled migrations).
        critical: how many indexes MediaNest's queries can't do without.
        critical_present: how many of them exist, are as they should be, and valid.
        expected: how many indexes the applied migrations make; `None` where nobody knows.
        expected_present: how many of them exist, are as they should be, and valid.
        missing_critical: the critical ones that don't, or aren't.
        missing: all expected ones that don't, or aren't.
        invalid: what no query uses, but for what is being built or dropped.
        duplicate: what is equal to another one.
        redundant: what another one does as well, which does more.
        unused: what no instance has used for long; `None` where that can't be said.
        bloated: what was measured, or else is estimated, to be mostly air.
        foreign_keys: those that no index supports.
        collations: those whose order may have changed since indexes were built with it.
        not_valid: constraints that weren't checked against all rows.
        not_judged: indexes of which nothing was read, as there are too many, and so no verdict says anything; neither
            is it said then which foreign keys have no index.
    """

    total: int
    total_with_history: int
    critical: int
    critical_present: int
    expected: int | None = None
    expected_present: int | None = None
    missing_critical: tuple[Entry, ...] = ()
    missing: tuple[Entry, ...] = ()
    invalid: tuple[Entry, ...] = ()
    duplicate: tuple[Entry, ...] = ()
    redundant: tuple[Entry, ...] = ()
    unused: tuple[Entry, ...] | None = None
    bloated: tuple[Entry, ...] = ()
    foreign_keys: tuple[Entry, ...] = ()
    collations: tuple[Entry, ...] = ()
    not_valid: tuple[Entry, ...] = ()
    not_judged: int | None = None

    @property
    def points(self) -> Mapping[str, int]:
        """What is said of the bloated ones, by name."""
        return {entry.name: entry.points for entry in self.bloated if entry.points is not None}

    @property
    def is_healthy(self) -> bool:
        """Every critical index is there, no index is invalid, and none may be in another order than its collation;
        the rest costs something and breaks nothing."""
        return not self.missing_critical and not self.invalid and not self.collations


def read_first(critical: Sequence[IndexDefinition], wanted: Sequence[IndexDefinition] | None) -> list[str]:
    """The names of the indexes that are to be read although there are too many, so that none is missing by mistake."""
    names = dict.fromkeys(item.name for item in (*critical, *sorted(wanted or (), key=lambda item: item.name)))
    return list(names)[:MOST]


_STATISTICS: Final = (
    ". PostgreSQL estimates conditions on its expression by the statistics that go with it, which no counter shows:"
    " before it is dropped, CREATE STATISTICS on the expression and ANALYZE keep them"
)
_BY_MIGRATION: Final = " A migration makes it: drop it by another migration, or it counts as missing."


def judge(
    catalog: Catalog,
    critical: Sequence[IndexDefinition],
    wanted: Sequence[IndexDefinition] | None = None,
    unused: Iterable[Index] | None = None,
    measured: Mapping[int, Measured] | None = None,
    kept: Callable[[str], bool] = lambda _: False,
    bloated_before: Mapping[str, int] | None = None,
) -> Report:
    """The verdicts on what was read.

    Args:
        critical: the indexes that the application can't do without.
        wanted: those that the applied migrations make, the critical ones among them; `None` where nobody knows. A
            critical one that isn't among them was dropped on purpose by a migration.
        unused: what `usage.unused` found; `None` where the instances weren't asked.
        measured: what `bloat.confirm` measured, by identifier.
        kept: whether an index or constraint of this name is the operator's own: it reports the state of those itself.
        bloated_before: the last report's `points`, so that what moves a little says the same.
    """
    known = None if wanted is None else {item.name for item in wanted}
    needed = [item for item in critical if known is None or item.name in known]
    gone = expected.missing(wanted if wanted is not None else needed, catalog.indexes)
    if catalog.unread:
        looked_for = set(read_first(critical, wanted))
        gone = [item for item in gone if item.expected.name in looked_for]
    missing = tuple(
        Entry(
            name=item.expected.name, table=item.expected.table, evidence=f"{capitalized(item.evidence)}.", fix=item.fix
        )
        for item in gone
    )
    names = {item.name for item in needed}
    by_migration = known or set()
    own = [index for index in catalog.indexes if index.table != HISTORY_TABLE]
    # One after the other, so that all the statements together leave nothing undone that an index is used for.
    replaced = {item.dropped.oid for item in gone if item.dropped is not None}
    renamed = {item.renamed.oid for item in gone if item.renamed is not None}
    staying = [index for index in catalog.indexes if index.oid not in replaced]
    overlapping = overlaps(
        staying, lambda index: index.oid in renamed or index.name in names or kept(index.name), by_migration
    )
    unneeded = without_needed(
        replace(catalog, indexes=tuple(staying)),
        (
            index
            for index in unused or ()
            if not (index.oid in replaced | renamed or index.name in names or kept(index.name))
        ),
        overlapping,
    )
    dropped = {item.index.oid for item in overlapping} | {index.oid for index in unneeded} | replaced
    missing_critical = tuple(item for item in missing if item.name in names)
    return Report(
        total=len(own) + catalog.unread,
        total_with_history=len(catalog.indexes) + catalog.unread,
        critical=len(needed),
        critical_present=len(needed) - len(missing_critical),
        expected=None if wanted is None else len(wanted),
        expected_present=None if wanted is None else len(wanted) - len(missing),
        missing_critical=missing_critical,
        missing=missing,
        invalid=tuple(
            _entry(item.index, item.evidence, item.fix)
            for item in invalid(catalog.indexes)
            if not kept(item.index.name)
        ),
        duplicate=tuple(_overlap(item, by_migration) for item in overlapping if item.equal),
        redundant=tuple(_overlap(item, by_migration) for item in overlapping if not item.equal),
        unused=None
        if unused is None
        else tuple(
            _entry(
                index,
                f"no instance has used it once in at least {UNUSED_AFTER.days} days. What is done once a month or less"
                f" doesn't show in them{_STATISTICS if any(key.column == 0 for key in index.keys) else ''}",
                drop_statement(index),
                _BY_MIGRATION if index.name in by_migration else "",
            )
            for index in unneeded
        ),
        bloated=tuple(
            _bloated(
                [item for item in catalog.indexes if item.oid not in dropped], measured or {}, bloated_before or {}
            )
        ),
        foreign_keys=tuple(
            Entry(
                name=key.name,
                table=key.table,
                evidence=f"Each deleted or re-keyed row of {key.referenced} makes PostgreSQL read all of {key.table}.",
                fix=f"CREATE INDEX {'' if key.partitioned else 'CONCURRENTLY '}ON {key.table_identifier}"
                f" ({', '.join(key.identifiers)});",
            )
            # An index that wasn't read may support it.
            for key in (() if catalog.unread else without_index(catalog))
        ),
        collations=tuple(_collations(catalog)),
        not_valid=tuple(
            Entry(
                name=item.name,
                table=item.table,
                evidence="It holds for new rows alone; the rows before it were never checked.",
                fix=f"ALTER TABLE {item.table_identifier} VALIDATE CONSTRAINT {item.identifier};",
            )
            for item in catalog.unvalidated
            if not kept(item.name)
        ),
        not_judged=catalog.unread or None,
    )


def _entry(index: Index, evidence: str, fix: str | None, more: str = "") -> Entry:
    return Entry(
        name=index.name,
        table=index.table,
        evidence=f"{capitalized(evidence)}.{more}",
        fix=fix,
        bytes=coarse(index.bytes),
    )


def _overlap(item: Overlap, by_migration: set[str]) -> Entry:
    kind, name = "primary key" if item.kept.primary else "index", item.kept.name
    equal = f"it is equal to {'primary key ' if item.kept.primary else ''}{name}"
    words = equal if item.equal else f"{kind} {name} does all that it does, and more"
    return _entry(
        item.index, words, drop_statement(item.index), _BY_MIGRATION if item.index.name in by_migration else ""
    )


def _bloated(indexes: Sequence[Index], measured: Mapping[int, Measured], before: Mapping[str, int]) -> Iterable[Entry]:
    for index in bloat.candidates(indexes, before=before):
        found = measured.get(index.oid)
        is_measured = found is not None and found.points is not None
        points = found.points if found is not None and found.points is not None else bloat.estimate(index)
        said = None if points is None else bloat.step(points, before.get(index.name))
        if said is None:
            continue
        source = "pgstatindex finds that it" if is_measured else "by an estimate from its rows and pages it"
        entry = _entry(index, f"{source} is about {said} points or more emptier than its fillfactor", _rebuild(index))
        yield entry.model_copy(update={"points": said})


def _rebuild(index: Index) -> str:
    # CONCURRENTLY isn't for exclusion constraints (PostgreSQL manual, REINDEX).
    return f"REINDEX INDEX {'' if index.exclusion else 'CONCURRENTLY '}{index.identifier};"


def _collations(catalog: Catalog) -> Iterable[Entry]:
    default = catalog.database_collation
    for collation in (*([default] if default else []), *catalog.collations):
        affected = [index for index in catalog.indexes if _depends_on(index, collation)]
        if not affected and not collation.elsewhere:
            continue
        names = ", ".join(index.name for index in affected[:_MOST_NAMES]) or "none in public"
        if len(affected) > _MOST_NAMES:
            names += f" and {len(affected) - _MOST_NAMES} more"
        if collation.elsewhere:
            names += f"; beside them {collation.elsewhere} of other schemas or extensions, for which the last statement"
            names += " silences PostgreSQL's warning as well"
        yield Entry(
            name="default" if collation is default else collation.name,
            evidence=f"The collation's library is of version {collation.actual[:64]}, and the indexes were built with"
            f" {collation.recorded[:64]}: rows may be in another order than queries look for them. Affected: {names}."
            f" {_ONE_BY_ONE}",
            fix=" ".join(_refreshed(catalog, collation, affected)),
        )


_ONE_BY_ONE: Final = (
    "Run the statements one by one, outside of a transaction; the last one only when the others have succeeded."
)


def _refreshed(catalog: Catalog, collation: Collation, affected: Sequence[Index]) -> Iterable[str]:
    # Refreshing the version says that every index is right, so no other schema's may be left as it was. The first
    # statement rebuilds all but PostgreSQL's own, those of exclusion constraints, and invalid ones (PostgreSQL manual,
    # REINDEX).
    default = collation is catalog.database_collation
    whole = default or collation.elsewhere > 0 or catalog.unread > 0 or len(affected) > _MOST_NAMES
    if whole:
        yield f"REINDEX DATABASE CONCURRENTLY {catalog.database_name};"
    yield from (_rebuild(index) for index in affected if not whole or index.exclusion or not index.valid)
    if default:
        yield f"ALTER DATABASE {catalog.database_name} REFRESH COLLATION VERSION;"
    else:
        yield f"ALTER COLLATION {collation.name} REFRESH VERSION;"


_MOST_NAMES: Final = 10


def _depends_on(index: Index, collation: Collation) -> bool:
    if index.partitioned:
        return False
    # A hash looks for what is equal, whatever the order; an expression or a predicate may give another value.
    computed = index.predicate is not None or any(key.column == 0 for key in index.keys)
    if index.method == "hash" and not computed:
        return False
    return collation.oid in index.collations or any(key.collation == collation.oid for key in index.keys)


_LARGEST: Final = 192 << 10
"""Bytes of the report where it is stored: a ConfigMap may hold 1 MiB, and is in every watch's memory."""
_LISTS: Final = (
    "missing", "invalid", "duplicate", "redundant", "unused", "bloated", "foreign_keys", "collations", "not_valid",
)  # fmt: skip


def bounded_json(report: Report, largest: int = _LARGEST) -> str:
    """The report as JSON, which says of each list how many entries were left out for want of room."""
    document = report.model_dump(mode="json", exclude_none=True)
    left_out: dict[str, int] = {}
    while len(text := json.dumps(document, indent=1, ensure_ascii=False).encode()) > largest:
        longest = max(_LISTS, key=lambda name: len(json.dumps(document.get(name, []))))
        entries = document[longest]
        if not entries:
            break
        keep = len(entries) // 2
        left_out[longest] = left_out.get(longest, 0) + len(entries) - keep
        document = document | {longest: entries[:keep], "left_out": left_out}
    return text.decode()
