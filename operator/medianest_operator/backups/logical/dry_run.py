"""What a restore in place would do, found out without doing it: only manifests, the server's catalogs and its
statistics are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator import naming
from medianest_operator.backups.ending import timed_result
from medianest_operator.backups.logical.finding import choose
from medianest_operator.backups.logical.restore import (
    RestoreOptions,
    check_server,
    check_version,
    eligible,
    open_target,
    why_not_newer,
)
from medianest_operator.backups.logical.room import fits, lacks_room, used_bytes
from medianest_operator.backups.logical.server import without_limits
from medianest_operator.backups.repository.catalog import Backup, Catalog
from medianest_operator.backups.repository.client import Repository
from medianest_operator.backups.repository.manifest import Manifest, Verification
from medianest_operator.backups.verification.archive import told
from medianest_operator.backups.verification.comparison import stored_catalog
from medianest_operator.postgres.contents import read_tables
from medianest_operator.results.backup import Result
from medianest_operator.results.text import cut
from medianest_operator.timestamps import stamp

_STAGES = ("download", "restore", "compare")
"""Of a verification: what a restore does, too."""
_MOST = 20
_SHOWN = 3
"""Tables in the message."""
# Where the statistics were lost, as after a crash, what ANALYZE found last is better than nothing.
_ROWS: LiteralString = """
SELECT n.nspname::text, c.relname::text,
       CASE WHEN s.n_live_tup + s.n_tup_ins + s.n_tup_upd + s.n_tup_del > 0
              OR coalesce(s.last_analyze, s.last_autoanalyze) IS NOT NULL
            THEN s.n_live_tup ELSE greatest(c.reltuples, 0)::bigint END,
       coalesce(s.n_tup_upd, 0), coalesce(s.n_tup_del, 0)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
 WHERE c.relkind = 'r' AND n.nspname NOT IN ('information_schema', %s) AND n.nspname !~ '^pg_'
"""


@dataclass(frozen=True)
class Live:
    """What the live database holds, by the server's statistics.

    Attributes:
        rows: of each table.
        changed: updates and deletions that the server has counted, in all tables.
        used: bytes of all databases of the server.
    """

    rows: Mapping[str, int]
    changed: int
    used: int


class DryRun:
    """Finds out what a restore would do.

    Args:
        repositories: where the backup may be, the preferred one first.
        report: called with a line of text now and then.
    """

    def __init__(
        self, repositories: Sequence[Repository], options: RestoreOptions, report: Callable[[str], None] = print
    ) -> None:
        self._repositories = repositories
        self._options = options
        self._report = report
        self._more: dict[str, Any] = {}

    def run(self) -> Result:
        """Look; nothing is raised but what a bug raises."""
        return timed_result(self._look, "The dry run was asked to stop.", self._more)

    def _look(self) -> Result:
        options = self._options
        found = eligible(self._repositories, options, self._report)
        repository, backup = choose(found, options.which, accept_unsigned=options.accept_unsigned)[0]
        manifest = backup.manifest
        assert manifest is not None
        self._more |= {"backup": manifest.id, "repository": repository.name}
        check_version(manifest)
        with told(options.work, manifest, manifest.database_bytes):
            # Small, and encrypted as the dump is: whoever can read it has the key.
            stored_catalog(repository, manifest, options.identities)
        with closing(open_target(options.conninfo, options.wait, self._report)) as connection:
            check_server(manifest, connection)
            live = read_live(connection)
        measured = _measured(repository, backup)
        room = fits(live.used, manifest, options.volume) if options.volume and manifest.database_bytes else None
        lost = _more_rows(live.rows, manifest.rows)
        estimate = {
            "backup": manifest.id,
            "takenAt": stamp(manifest.moment),
            "bytes": manifest.bytes,
            "verified": backup.is_verified,
            "seconds": measured,
            "fits": room,
            "lost": [{"table": name, "rows": rows} for name, rows in lost[:_MOST]],
        }
        kept = {name: value for name, value in estimate.items() if value is not None}
        sentences = [
            _which(manifest, backup),
            *(f"Note: {text}." for text in why_not_newer(found, options, backup)),
            _losses(lost, live.changed),
            _returns(_more_rows(manifest.rows, live.rows)),
            _refused(backup.verification, options.accepted),
            _time(measured),
            lacks_room(live.used, manifest, options.volume) if room is False else _room(room),
        ]
        return Result.success(cut(" ".join(filter(None, sentences))), **self._more, estimate=kept)


def read_live(connection: Connection[Any]) -> Live:
    """What the database of a connection holds, in a moment and without reading a table.

    Raises:
        psycopg.Error: as the server says.
    """
    without_limits(connection)
    names = {(table.schema, table.plain): table.name for table in read_tables(connection)}
    rows, changed = {}, 0
    cursor = connection.cursor(row_factory=tuple_row)
    for schema, plain, count, updates, deletions in cursor.execute(_ROWS, (naming.JOURNAL_SCHEMA,)).fetchall():
        if (name := names.get((schema, plain))) is not None:
            rows[name] = int(count)
            changed += int(updates) + int(deletions)
    return Live(rows, changed, used_bytes(connection))


def _more_rows(these: Mapping[str, int], than_those: Mapping[str, int]) -> list[tuple[str, int]]:
    """Tables that have more rows here than there, by how many, the most first."""
    more = [(name, rows - than_those.get(name, 0)) for name, rows in these.items()]
    return sorted(((name, rows) for name, rows in more if rows > 0), key=lambda item: (-item[1], item[0]))


def _measured(repository: Repository, backup: Backup) -> float | None:
    """Seconds that the newest verification took to restore and compare: of this backup, else of the newest one."""
    own = _seconds(backup.verification)
    if own is not None:
        return own
    others = Catalog.read(repository, backup.place.origin).backups
    found = [item.verification for item in others if _seconds(item.verification) is not None]
    return _seconds(max((item for item in found if item), key=lambda item: item.at, default=None))


def _seconds(verification: Verification | None) -> float | None:
    if verification is None or not verification.ok or "restore" not in verification.stages:
        return None
    return round(sum(verification.stages.get(stage, 0.0) for stage in _STAGES), 1)


def _which(manifest: Manifest, backup: Backup) -> str:
    verified = "verified by a test restore" if backup.is_verified else "not verified so far"
    taken = f"{manifest.moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({_ago(manifest.moment)})"
    return f"It would take backup {manifest.id} of {taken}, {_size(manifest.bytes)}, {verified}."


def _ago(moment: datetime) -> str:
    minutes = int((datetime.now(UTC) - moment).total_seconds() // 60)
    for size, word in ((1440, "days"), (60, "hours"), (1, "minutes")):
        if minutes >= 2 * size:
            return f"{minutes // size} {word} ago"
    return "just now"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def _rows(tables: Sequence[tuple[str, int]]) -> str:
    shown = ", ".join(f"{rows} of {name}" for name, rows in tables[:_SHOWN])
    rest = len(tables) - _SHOWN
    return shown + (f" and of {rest} more table{'' if rest == 1 else 's'}" if rest > 0 else "")


def _losses(lost: Sequence[tuple[str, int]], changed: int) -> str:
    """An estimate: rows that were added and others that were removed cancel each other out."""
    if lost:
        text = (
            "An estimate of what would be lost, by the server's statistics:"
            f" {_count(sum(rows for _, rows in lost), 'row')} added since ({_rows(lost)})"
        )
    else:
        text = "By the server's statistics, an estimate, no table has more rows than the backup"
    if changed:
        counted = _count(changed, "update and deletion")
        return f"{text}; of the {counted} that it has counted so far, those made since would be lost, too."
    return f"{text}; it has counted no update or deletion."


def _count(number: int, word: str) -> str:
    if number == 1:
        return f"1 {word.replace(' and ', ' or ')}"
    return f"{number} {' and '.join(f'{part}s' for part in word.split(' and '))}"


def _returns(back: Sequence[tuple[str, int]]) -> str:
    return f"Rows that the database has lost since would come back: {_rows(back)}." if back else ""


def _refused(verification: Verification | None, accepted: Sequence[str]) -> str:
    """What keeps a restore in place from being done, as the last verification found it out."""
    lost = [label for label in (verification.lost if verification else ()) if label not in accepted]
    if not lost:
        return ""
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    return (
        f"A restore in place can't bring back {', '.join(lost[:_SHOWN])}{more} as it was, and is refused unless"
        " restore.acceptDifferences names each."
    )


def _time(measured: float | None) -> str:
    if measured is None:
        return "How long it takes is not known: no verification has measured it so far."
    return f"It takes about {max(1, round(measured))} s, as the newest verification did."


def _room(room: bool | None) -> str:
    return "It fits into the volume." if room else "Whether it fits into the volume is not known."
