"""Restore a dump as a copy, with its owners and rights, and without a superuser: code of the dump can't leave it.

The order is pg_restore's own, with three cuts: schemas and extensions are there before (`postgres.copies.prepare`);
what belongs to somebody gets its owner while everybody may create in every schema; rights, and the views that are
filled with them, come last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

from medianest_operator.backups.logical.dump import DumpError, restore_archive, restore_stream, script
from medianest_operator.backups.logical.toc import (
    ACL,
    Entry,
    Head,
    LeftOut,
    choose,
    extensions_of,
    owners_of,
    read_toc,
    schemas_of,
    write_list,
)
from medianest_operator.postgres.copies import WRITING, DatabaseCopy, RoleCopy, Room, prepare, settle
from medianest_operator.postgres.throwaway import ThrowawayServer

_BEFORE = frozenset({"SCHEMA", "EXTENSION"})
# What psql alone understands, and what only a superuser may do.
_PSQL = re.compile(r"^\\(un)?restrict .*$", re.MULTILINE)
_SESSION = re.compile(r"^(RE)?SET SESSION AUTHORIZATION\b", re.MULTILINE)


@dataclass(frozen=True)
class Copied:
    """A copy that is filled.

    Attributes:
        left: what isn't in it.
    """

    room: Room
    left: LeftOut


def copy_archive(
    server: ThrowawayServer, archive: Path, database: DatabaseCopy, roles: Sequence[RoleCopy], jobs: int
) -> Copied:
    """Restore a dump in a file.

    Args:
        jobs: connections at the same time.

    Raises:
        DumpError: any error; what is there then is no copy.
        psycopg.Error: the copy could not be begun, or the server is gone.
    """
    entries = read_toc(archive)

    def fill(room: Room, listed: Path) -> None:
        restore_archive(archive, room.environment(), listed, jobs, inherit=False)

    return _copy(server, archive, entries, database, roles, None, (), fill)


def copy_stream(
    server: ThrowawayServer,
    chunks: Iterable[bytes],
    database: DatabaseCopy,
    roles: Sequence[RoleCopy],
    login: str,
    schema_only: bool,
) -> Copied:
    """Restore a dump that comes in pieces.

    Args:
        login: the role that logs in to the copy afterwards.
        schema_only: without the data; the pieces are gone through nevertheless.

    Raises:
        DumpError: any error; what is there then is no copy.
        psycopg.Error: the copy could not be begun, or the server is gone.
    """
    options = ["--schema-only"] if schema_only else []
    with TemporaryDirectory(prefix="head-") as folder:
        head = Head(chunks, Path(folder))

        def fill(room: Room, listed: Path) -> None:
            restore_stream(head.chunks(), room.environment(), listed, options, may_stop=schema_only, inherit=False)

        return _copy(server, head.path, head.entries, database, roles, login, options, fill)


def _copy(
    server: ThrowawayServer,
    archive: Path,
    entries: Sequence[Entry],
    database: DatabaseCopy,
    roles: Sequence[RoleCopy],
    login: str | None,
    options: Sequence[str],
    fill: Callable[[Room, Path], None],
) -> Copied:
    known = {role.name for role in roles}
    owners = owners_of(entries, known) | known
    left = choose(archive, entries, owners)
    roles = [*roles, *(RoleCopy(name, ("SUPERUSER", "LOGIN")) for name in sorted(owners - known))]
    extensions = extensions_of(archive, entries, owners)
    room = prepare(server, database, roles, schemas_of(entries, owners), extensions, login)
    kept = [entry for entry in entries if entry.number not in left.numbers and not entry.is_comment_on_extension]
    with TemporaryDirectory(prefix="list-") as folder:
        first = [entry for entry in kept if entry.kind not in ACL | _BEFORE]
        fill(room, write_list(Path(folder, "first"), first))
        settle(room)
        last = [entry for entry in kept if entry.kind in ACL]
        if last:
            _finish(room, script(archive, write_list(Path(folder, "last"), last), options))
    return Copied(room, left)


def _finish(room: Room, text: str) -> None:
    """Rights, as their grantors give them: a member may act for each."""
    text = _SESSION.sub(lambda found: f"{found[1] or ''}SET ROLE", _PSQL.sub("", text))
    try:
        with closing(room.connect(room.restorer, WRITING)) as connection:
            connection.execute(text.encode())
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise DumpError(f"rights can't be restored: {' '.join(str(error).split())}") from error
