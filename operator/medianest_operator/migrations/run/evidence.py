"""What must be equal before and after: the catalog, every table's rows, where the sequences stand.

This is what is compared. The catalog's fingerprint covers every definition; the row counts, and with the writers
locked out a digest of every table's content, cover the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, LiteralString

from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator import naming
from medianest_operator.hardening.fingerprint import without_hardening
from medianest_operator.migrations.history import TABLE
from medianest_operator.migrations.run.description import Description
from medianest_operator.migrations.run.description import differences as described_otherwise
from medianest_operator.postgres.catalog import Catalog, CatalogObject, Key, difference, read_catalog
from medianest_operator.postgres.contents import read_sequences
from medianest_operator.postgres.rows import only
from medianest_operator.results.text import first_three

# Tables that hold rows of their own, in the application's schemas; the history is the run's own book-keeping.
_TABLES: LiteralString = """
SELECT n.nspname, c.relname,
       CASE WHEN n.nspname = 'public' THEN '' ELSE quote_ident(n.nspname) || '.' END || quote_ident(c.relname)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
   AND (c.relkind = 'r' OR c.relispopulated)
   AND n.nspname NOT IN ('information_schema', %s) AND n.nspname !~ '^pg_'
   AND NOT (n.nspname = 'public' AND c.relname = %s)
   AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
                      AND d.deptype = 'e')
   -- What an admin's event trigger notes of each DDL, that of a rollback too, where the run itself can't write.
   AND (has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
        OR has_any_column_privilege(c.oid, 'INSERT, UPDATE')
        OR NOT EXISTS (
         SELECT FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc p ON p.oid = e.evtfoid
          WHERE e.evtenabled <> 'D' AND c.relowner IN (e.evtowner, p.proowner)))
 ORDER BY 1, 2
"""

LARGE_OBJECTS = "pg_largeobject"
"""How the evidence calls the database's large objects, which it counts like rows."""

# The content of those that this role may read; of the others, whose they are and who may do what.
_LARGE_OBJECTS: LiteralString = """
SELECT count(*),
       coalesce(sum(hashtextextended(concat_ws(' ', o.oid, pg_get_userbyid(o.lomowner), o.rights,
                                               CASE WHEN %(contents)s AND o.readable THEN md5(lo_get(o.oid)) END),
                                     0)::numeric), 0)::text
  FROM (SELECT m.oid, m.lomowner,
               (SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(m.lomacl) a) AS rights,
               pg_has_role(m.lomowner, 'USAGE')
               OR EXISTS (SELECT FROM aclexplode(m.lomacl) a
                           WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))
               AS readable
          FROM pg_largeobject_metadata m) o
"""

DETACHING, INVALID = "detachment in progress", "invalid index of large values"
"""Kinds of what is half done: ALTER TABLE ... DETACH PARTITION CONCURRENTLY, REINDEX TABLE CONCURRENTLY."""
_HALF_DONE: LiteralString = f"""
SELECT '{DETACHING}', i.inhparent::regclass::text, i.inhrelid::regclass::text
  FROM pg_catalog.pg_inherits i WHERE i.inhdetachpending
UNION ALL
SELECT '{INVALID}', t.oid::regclass::text, quote_ident(c.relname)
  FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class c ON c.oid = x.indexrelid
  JOIN pg_catalog.pg_class t ON t.reltoastrelid = x.indrelid
 WHERE NOT x.indisvalid
"""

_DATABASE_RIGHTS = ("grants", "", "database")


@dataclass(frozen=True)
class Evidence:
    """A database at one moment.

    Attributes:
        catalog: every definition, without the history's table.
        rows: each table's exact number of rows, and that of large objects.
        contents: a digest of each table's rows that doesn't depend on their order; empty where it wasn't taken.
        sequences: the last value of each sequence, and whether it was handed out.
        description: what pg_dump says of it all; `None` where nothing that is committed early could need it.
    """

    catalog: Catalog
    rows: Mapping[str, int]
    contents: Mapping[str, str] = field(default_factory=dict)
    sequences: Mapping[str, tuple[int, bool]] = field(default_factory=dict)
    description: Description | None = None

    @property
    def fingerprint(self) -> str:
        return self.catalog.fingerprint()

    @property
    def total_rows(self) -> int:
        return sum(self.rows.values())

    def rows_to_json(self) -> dict[str, list[Any]]:
        """Each table's number of rows and their digest, and where each sequence stands, for the journal."""
        tables = {name: [count, self.contents.get(name)] for name, count in self.rows.items()}
        return tables | {f"sequence {name}": list(value) for name, value in self.sequences.items()}

    def rows_written_since(self, earlier: Mapping[str, Any]) -> list[str]:
        """The tables and sequences that hold something else than at another moment.

        Args:
            earlier: as `rows_to_json`, with digests on both sides.
        """
        made = {name for name, count in self.rows.items() if count and name not in earlier}
        return sorted(made | {name for name, found in self.rows_to_json().items() if earlier.get(name, found) != found})

    def to_json(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "catalog": [
                {"kind": item.kind, "table": item.table, "name": item.name, "attributes": dict(item.attributes)}
                for _, item in sorted(self.catalog.objects.items())
            ],
            "rows": dict(self.rows),
            "contents": dict(self.contents),
            "sequences": {name: list(value) for name, value in self.sequences.items()},
            "description": None if self.description is None else dict(self.description),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Evidence:
        """Back from the journal."""
        return cls(
            catalog=catalog_from_json(document["catalog"]),
            rows=dict(document["rows"]),
            contents=dict(document["contents"]),
            sequences={name: (int(last), bool(called)) for name, (last, called) in document["sequences"].items()},
            description=document.get("description"),
        )


def catalog_from_json(items: Any) -> Catalog:
    """A catalog from the journal's form of it."""
    objects = (CatalogObject(item["kind"], item["table"], item["name"], item["attributes"]) for item in items)
    # An earlier version of the operator wrote down what is the server's, too.
    return Catalog({item.key: item for item in objects if not _is_of_the_server(item.key)}).as_read_today()


def application_catalog(connection: Connection[Any]) -> Catalog:
    """The catalog without what a run changes itself: Prisma's history, and who may connect while it locks writers out.

    No migration changes the latter: rights on the database are refused (lint). The operator's own objects of
    `spec.hardening` are left out too: they come and go by themselves.
    """
    found = without_hardening(read_catalog(connection).without_table(TABLE))
    kept = {key: item for key, item in found.objects.items() if not _is_of_the_server(key)}
    return Catalog(kept | {item.key: item for item in _half_done(connection)})


def _half_done(connection: Connection[Any]) -> Iterator[CatalogObject]:
    """What a statement that ran without a transaction has left in the middle, and no other list shows."""
    for kind, table, name in connection.cursor(row_factory=tuple_row).execute(_HALF_DONE).fetchall():
        yield CatalogObject(kind, table, name, {})


def _is_of_the_server(key: Key) -> bool:
    """Whether it is no migration's: a role's settings for all databases are made by whoever makes roles."""
    return key == _DATABASE_RIGHTS or (key[0] == "settings" and key[2].startswith("cluster"))


def read_evidence(connection: Connection[Any], contents: bool = False) -> Evidence:
    """Look at everything in the transaction that is open, or in one of its own.

    Args:
        contents: digest the rows themselves as well, at the cost of hashing each; meant for when nobody writes.

    Raises:
        psycopg.Error: as the server says.
    """
    rows: dict[str, int] = {}
    digests: dict[str, str] = {}
    with connection.cursor(row_factory=tuple_row) as cursor:
        tables = cursor.execute(_TABLES, (naming.JOURNAL_SCHEMA, TABLE)).fetchall()
        for schema, table, name in tables:
            # ONLY: what inherits is counted on its own. A sum of 64-bit hashes is the same in any order.
            # `t.*`: a column may have any name, `t` among them.
            wanted = sql.SQL("count(*), coalesce(sum(hashtextextended((t.*)::text, 0)::numeric), 0)::text")
            query = sql.SQL("SELECT {} FROM ONLY {} t").format(
                wanted if contents else sql.SQL("count(*), ''"), sql.Identifier(schema, table)
            )
            rows[name], digest = only(cursor.execute(query))
            if contents:
                digests[name] = digest
        rows[LARGE_OBJECTS], digest = only(cursor.execute(_LARGE_OBJECTS, {"contents": contents}))
        if contents:
            digests[LARGE_OBJECTS] = digest
    return Evidence(application_catalog(connection), rows, digests, read_sequences(connection))


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether a database is as it was.

    Attributes:
        differences: what isn't, in words; empty if all is equal.
        tables: how many tables were counted.
        rows: how many rows there were before.
        contents: whether the rows themselves were compared, not only their number.
        writers: rows differ, and nobody was locked out.
        aborted: the server says that the transaction which held the whole run ended without a commit: then others alone
            have changed rows.
        uncommitted: the run was one transaction, and nothing of it is in the history, which commits with it.
        left: what isn't as it was and a superuser alone can mend, as statements; it changes nothing but costs.
        others: what isn't as it was, and was done in other sessions, since nothing of the run's own is committed.
    """

    differences: tuple[str, ...]
    tables: int
    rows: int
    contents: bool = False
    writers: bool = False
    aborted: bool = False
    uncommitted: bool = False
    others: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        return not self.differences

    def describe(self) -> str:
        """The verification in words, for the end of a sentence."""
        told = self._describe()
        if not self.left:
            return told
        return f"{told}, but for half-built indexes that a superuser may drop: {'; '.join(self.left)}"

    def _describe(self) -> str:
        if self.differences:
            return f"not as before: {first_three(self.differences)}"
        if self.others:
            return (
                "nothing of the run is committed (verified); other sessions have changed the database meanwhile:"
                f" {first_three(self.others)}"
            )
        counted = "catalog, row counts and contents equal" if self.contents else "catalog and row counts equal"
        if self.writers:
            if self.aborted:
                return "catalog equals that before, and rows were changed by the application alone (verified)"
            if self.uncommitted:
                return (
                    "catalog equals that before (verified); rows changed meanwhile, and nothing of the run is committed"
                )
            return "catalog equals that before (verified); rows changed meanwhile, and the run's statements write none"
        return f"{counted} those before (verified)"


def verify(before: Evidence, after: Evidence, writers_may_write: bool, *, restored: bool = False) -> Verification:
    """Compare two moments.

    Args:
        restored: a backup was restored in between, which holds no rows of materialized views: they are filled from
            those of the tables, and hold more than before where they were out of date.
        writers_may_write: others could write meanwhile and the run itself can't have changed rows: then the number of
            rows may differ, and the catalog alone decides.
    """
    lines = difference(but_for_gone(before.catalog, after.catalog), after.catalog) + _filled_otherwise(before, after)
    moved = _row_changes(without_views(before) if restored else before, after)
    if not writers_may_write:
        lines += moved
        lines += _sequence_changes(before, after)
    if before.description is not None and after.description is not None:
        # The same difference in the other witness's words would say nothing more.
        lines = lines or described_otherwise(before.description, after.description)
    return Verification(
        differences=tuple(lines),
        tables=len(before.rows),
        rows=before.total_rows,
        contents=bool(before.contents and after.contents) and not writers_may_write,
        writers=writers_may_write and bool(moved),
    )


def but_for_gone(before: Catalog, after: Catalog) -> Catalog:
    """A catalog without the half-built indexes that it had and the other one hasn't: nobody misses them, and no copy
    and no backup has them."""
    gone = {key for key in before.objects.keys() - after.objects.keys() if key[0] == INVALID}
    return Catalog({key: item for key, item in before.objects.items() if key not in gone}) if gone else before


def without_views(evidence: Evidence) -> Evidence:
    """Evidence without the rows of materialized views, which no backup holds."""
    views = {item.name for item in evidence.catalog.of_kind("materialized view")}
    rows = {name: count for name, count in evidence.rows.items() if name not in views}
    return replace(evidence, rows=rows)


def _row_changes(before: Evidence, after: Evidence) -> list[str]:
    lines = []
    for table in sorted(before.rows.keys() & after.rows.keys()):
        was, now = before.rows[table], after.rows[table]
        if was != now:
            lines.append(f"table {table} holds {now} rows, expected {was}")
        elif table in before.contents and before.contents[table] != after.contents.get(table, before.contents[table]):
            lines.append(f"table {table}: {now} rows as before, but their content differs")
    return lines


def _filled_otherwise(before: Evidence, after: Evidence) -> list[str]:
    """Materialized views that could be read before and can't be now, or the other way round: only those are counted."""
    both = before.catalog.objects.keys() & after.catalog.objects.keys()
    views = sorted(name for kind, _, name in both if kind == "materialized view")
    lost = [
        f"materialized view {name} is not filled any more" for name in views if name in before.rows.keys() - after.rows
    ]
    made = [f"materialized view {name} is filled" for name in views if name in after.rows.keys() - before.rows]
    return lost + made


def tables_changed(before: Evidence, after: Evidence) -> set[str]:
    """The tables, large objects among them, whose rows aren't those from before."""
    return {
        table
        for table in before.rows.keys() & after.rows.keys()
        if before.rows[table] != after.rows[table] or before.contents.get(table) != after.contents.get(table)
    }


def _sequence_changes(before: Evidence, after: Evidence) -> list[str]:
    return [
        f"sequence {name} stands at {after.sequences[name][0]}, expected {value[0]}"
        for name, value in sorted(before.sequences.items())
        if name in after.sequences and after.sequences[name] != value
    ]
