"""Entries of a dump in a file into a database, over several connections: what hides rows comes last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from medianest_operator.backups.logical.dump import restore_archive
from medianest_operator.backups.logical.toc import Entry, closure, write_list

_HIDES_ROWS: Final = frozenset({"POLICY", "ROW SECURITY"})


def load(
    archive: Path,
    entries: Sequence[Entry],
    environment: Mapping[str, str],
    jobs: int,
    options: Sequence[str] = (),
    *,
    inherit: bool = True,
) -> None:
    """Fill the database that `environment` names; the first error ends it.

    Over several connections pg_restore may switch row security on before each foreign key has looked at the rows, which
    fails where policies bind the owner, too (PostgreSQL manual, ALTER TABLE, FORCE ROW LEVEL SECURITY).

    Args:
        jobs: connections at the same time.
        options: more of pg_restore's.
        inherit: the program gets this process's environment as well.

    Raises:
        DumpError: any error; what is there then is no copy.
    """
    numbers = closure(entries, {entry.number for entry in entries if entry.kind in _HIDES_ROWS})
    first = [entry for entry in entries if entry.number not in numbers]
    last = [entry for entry in entries if entry.number in numbers]
    with TemporaryDirectory(prefix="list-") as folder:
        path = Path(folder, "entries")
        for part in filter(None, (first, last)):
            restore_archive(archive, environment, write_list(path, part), jobs, options, inherit=inherit)
