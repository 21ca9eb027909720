"""What a database is, by means that share nothing with the operator: pg_dump, questions to the catalog, md5 sums.

Made equal on purpose, because PostgreSQL itself makes it so:

* the database's own name, which differs between a database and its copy;
* roles whose name begins with `dba_`: a role belongs to the whole server, and somebody made it meanwhile;
* rows that a writer wrote: they are looked for one by one (`State.marks`);
* sequences: `nextval` is never rolled back (PostgreSQL manual, Sequence Manipulation Functions), so that one may stand
  further on than before, and never behind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import sql

from integration.outside import OWN, outside, unlike
from integration.postgres_server import Database

MARK = re.compile(r"\bw:\d+:\d+\b")
"""What each row of a writer's holds."""

_SEQUENCES = """
SELECT quote_ident(schemaname) || '.' || quote_ident(sequencename), coalesce(last_value, start_value - 1), increment_by
  FROM pg_sequences WHERE schemaname <> %s
"""
_TABLES = """
SELECT c.oid::regclass::text, c.oid::int8, c.relfilenode::int8
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname NOT IN ('information_schema', %s)
   AND n.nspname !~ '^pg_' AND c.relname <> %s
"""


@dataclass(frozen=True)
class State:
    """A database at one moment.

    Attributes:
        texts: what has to be equal, by what it is.
        sequences: where each stands, and which way it goes.
        tables: the identity of each table and of its file.
    """

    texts: Mapping[str, str]
    sequences: Mapping[str, tuple[int, int]]
    tables: Mapping[str, tuple[int, int]]

    def unlike(self, other: State) -> dict[str, list[str]]:
        """What the other has otherwise; sequences may stand further on there."""
        found = unlike(self.texts, other.texts)
        behind = [
            f"{name} at {other.sequences[name][0]} after {last}"
            for name, (last, step) in self.sequences.items()
            if name in other.sequences and (other.sequences[name][0] - last) * (1 if step > 0 else -1) < 0
        ]
        return {**found, **({"sequences": behind} if behind else {})}


def look(database: Database) -> State:
    """The database now."""
    texts = {name: text.replace(database.name, "DATABASE") for name, text in outside(database).items()}
    texts["roles"] = "\n".join(line for line in texts["roles"].split("\n") if not line.startswith("('dba_"))
    with database.connect() as connection:
        sequences = {row[0]: (row[1], row[2]) for row in connection.execute(_SEQUENCES, (OWN[0],)).fetchall()}
        tables = {row[0]: (row[1], row[2]) for row in connection.execute(_TABLES, OWN).fetchall()}
    return State(texts, sequences, tables)


def marks(database: Database) -> set[str]:
    """The marks of all rows that writers wrote, wherever a migration has led them."""
    found = set[str]()
    with database.connect() as connection:
        for schema, table in connection.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', %s)",
            OWN[:1],
        ).fetchall():
            query = sql.SQL("SELECT (t.*)::text FROM ONLY {} t WHERE (t.*)::text LIKE '%w:%'")
            for (row,) in connection.execute(query.format(sql.Identifier(schema, table))).fetchall():
                found.update(MARK.findall(row))
    return found
