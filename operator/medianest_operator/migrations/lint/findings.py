"""What a look at a migration finds, and the live tables that it is judged by."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

PUBLIC = "public"
_PART_OF_NAME = re.compile(r'"((?:[^"]|"")*)"|([^."]+)')


class Severity(enum.StrEnum):
    """What a finding means for a run.

    REFUSED never runs, because no rollback of it could be verified. DESTRUCTIVE runs only with `allowDestructive`.
    WARNING stops nothing.
    """

    REFUSED = "refused"
    DESTRUCTIVE = "destructive"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class TableSize:
    """How much a table holds.

    Attributes:
        rows: as the server estimates it; counted where the table is small.
        bytes: with its indexes and its values kept apart (pg_total_relation_size).
        columns: each column's type as `format_type` spells it; empty if it isn't known.
    """

    rows: int
    bytes: int
    columns: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.rows:,} row{'' if self.rows == 1 else 's'} ({_bytes_in_words(self.bytes)})"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found in one statement.

    Attributes:
        severity: what it means for a run.
        rule: a short name for scripts, such as `drop-column`; squawk's own where squawk found it.
        migration: the migration's name.
        statement: the number of the file's statement, from 1; 0 if it isn't about one.
        line: the line, from 1, on which that statement begins; 0 if it isn't about one.
        message: what is wrong, why, and what to do.
        table: the live table that it is about, as the catalog spells it.
    """

    severity: Severity
    rule: str
    migration: str
    statement: int
    line: int
    message: str
    table: str | None = None

    def __str__(self) -> str:
        if not self.statement:
            return f"{self.migration}: {self.message}" if self.migration else self.message
        return f"Statement {self.statement} (line {self.line}) of {self.migration}: {self.message}"


@dataclass(slots=True)
class LiveTable:
    """A table that is in the database now, under the name that the statements so far have given it."""

    name: str
    size: TableSize
    columns: dict[str, str]


class LiveTables:
    """The tables that are in the database before the run, followed through renames.

    What the migrations themselves make is not among them: it holds nothing of value yet.
    """

    def __init__(self, tables: Mapping[str, TableSize]) -> None:
        self._tables = {
            split_name(name): LiveTable(name, size, dict(size.columns)) for name, size in sorted(tables.items())
        }

    def find(self, schema: str | None, name: str) -> LiveTable | None:
        """The table that a statement means.

        Without a schema it is the one in `public`, where a run's search path begins, and else any of that name: a file
        may have set another path.
        """
        if schema is not None:
            return self._tables.get((schema, name))
        found = self._tables.get((PUBLIC, name))
        return found or next((table for (_, other), table in self._tables.items() if other == name), None)

    def in_schema(self, schema: str) -> list[LiveTable]:
        return [table for (home, _), table in self._tables.items() if home == schema]

    def rename(self, schema: str | None, name: str, new_schema: str | None = None, new_name: str | None = None) -> None:
        """Follow ALTER TABLE ... RENAME TO and SET SCHEMA."""
        table = self.find(schema, name)
        for key in [key for key, value in self._tables.items() if value is table]:
            self._tables[(new_schema or key[0], new_name or key[1])] = self._tables.pop(key)

    def forget(self, schema: str | None, name: str) -> None:
        """Follow DROP TABLE: a later table of that name is another one."""
        table = self.find(schema, name)
        self._tables = {key: value for key, value in self._tables.items() if value is not table}

    def rename_schema(self, schema: str, new_name: str) -> None:
        for home, name in [key for key in self._tables if key[0] == schema]:
            self._tables[(new_name, name)] = self._tables.pop((home, name))


def split_name(name: str) -> tuple[str, str]:
    """Schema and name, unquoted, of a name as the catalog spells it: without the schema in `public`."""
    parts = [quoted.replace('""', '"') if quoted else plain for quoted, plain in _PART_OF_NAME.findall(name)]
    return (parts[0], parts[1]) if len(parts) == 2 else (PUBLIC, parts[-1] if parts else name)


def _bytes_in_words(size: int) -> str:
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit in ("bytes", "kB") else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"
