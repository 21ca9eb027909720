"""Entries of a dump in a file into a database, over several connections: what hides rows comes last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from medianest_operator.backups.logical.dump import restore_archive
from medianest_operator.backups.logical.toc import Entry, closure, write_list

_HIDES_ROWS: Final = frozenset({"POLICY", "ROW SECURITY"})
_READS_ROWS: Final = "MATERIALIZED VIEW DATA"


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
    fails where policies bind the owner, too (PostgreSQL manual, ALTER TABLE, FORCE ROW LEVEL SECURITY). A materialized
    view holds what its owner sees, and so it is filled under the policies, as it was.

    Args:
        jobs: connections at the same time.
        options: more of pg_restore's.
        inherit: the program gets this process's environment as well.

    Raises:
        DumpError: any error; what is there then is no copy.
    """
    hiding = {entry.number for entry in entries if entry.kind in _HIDES_ROWS}
    late = closure(entries, hiding)
    late |= {entry.number for entry in entries if hiding and entry.kind == _READS_ROWS}
    parts = (
        ([entry for entry in entries if entry.number not in late], options),
        ([entry for entry in entries if entry.number in late], [*options, "--enable-row-security"]),
    )
    with TemporaryDirectory(prefix="list-") as folder:
        path = Path(folder, "entries")
        for part, own in parts:
            if part:
                restore_archive(archive, environment, write_list(path, part), jobs, own, inherit=inherit)
