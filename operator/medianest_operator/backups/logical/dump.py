"""`pg_dump` and `pg_restore` as streams: bounded memory, and no success unless the program says so itself."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from medianest_operator import naming
from medianest_operator.backups.logical.program import DumpError as DumpError
from medianest_operator.backups.logical.program import Program, complaint
from medianest_operator.backups.repository.layout import Format
from medianest_operator.postgres.throwaway import plain_environment, postgres_program

KEEPALIVE = "keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=60000"
"""For libpq: a server that is gone without a word is noticed within a minute or so."""
_ROWS_BEGIN, _ROWS_END = b" FROM stdin;\n", b"\n\\.\n"
LOCK_WAIT = 120_000
"""Milliseconds that a dump waits for a table that somebody has locked."""


def dump(
    environment: Mapping[str, str],
    snapshot: str | None = None,
    format: Format = Format.CUSTOM,
    schema: str | None = None,
    *,
    large_objects: bool = True,
    without: Sequence[tuple[str, str]] = (),
) -> Iterator[bytes]:
    """A database as pg_dump writes it, uncompressed, in pieces as they come.

    Args:
        environment: libpq's variables; what else pg_dump needs is taken from this process.
        snapshot: an exported snapshot to read, so that what was counted there is what is dumped.
        format: its own, or SQL.
        schema: nothing but this one, and without owners and rights.
        large_objects: with them; pg_dump fails at the first that it may not read.
        without: tables and sequences that are left out, by schema and name.

    Raises:
        DumpError: pg_dump failed, also in the middle of the stream: what was read so far is no backup then.
    """
    arguments = [
        f"--format={'custom' if format is Format.CUSTOM else 'plain'}",
        # Its own zlib has one thread, and takes most of the time: see `repository.compression`.
        "--compress=0",
        f"--lock-wait-timeout={LOCK_WAIT}",
        f"--dbname={KEEPALIVE}",
    ]
    # UTF8 whatever the database's owner set for its sessions.
    arguments.append("--encoding=UTF8")
    arguments += [f"--exclude-table={pattern(*name)}" for name in without]
    if not large_objects:
        arguments.append("--no-blobs")
    if format is Format.SCHEMA:
        arguments.append("--schema-only")
    if schema is None:
        arguments.append(f"--exclude-schema={naming.JOURNAL_SCHEMA}")
    else:
        arguments += [f"--schema={schema}", "--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions"]
        if large_objects:
            # They are in no schema, and left out without a word where one is named.
            arguments.append("--blobs")
    if snapshot:
        arguments.append(f"--snapshot={snapshot}")
    with Program("pg_dump", arguments, environment, stdout=subprocess.PIPE) as program:
        yield from program.output()


def pattern(schema: str, name: str) -> str:
    """What matches one table alone (PostgreSQL manual, psql, Patterns)."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name))


def describe(environment: Mapping[str, str], without: Sequence[tuple[str, str]], *, inherit: bool = True) -> str:
    """All definitions of a database, its own settings and rights among them, as SQL. The journal isn't.

    Args:
        environment: as for `dump`.
        without: tables and sequences that are left out, by schema and name.
        inherit: as in `restore_stream`.

    Raises:
        DumpError: pg_dump failed.
    """
    arguments = [
        *("--schema-only", "--create", "--encoding=UTF8", f"--lock-wait-timeout={LOCK_WAIT}"),
        *(f"--exclude-schema={naming.JOURNAL_SCHEMA}", f"--dbname={KEEPALIVE}"),
        *(f"--exclude-table={pattern(*name)}" for name in without),
    ]
    # Constants of the type timestamptz are spelled in the session's zone, whatever that is set to meanwhile.
    environment = {**environment, "PGTZ": "UTC"}
    with Program("pg_dump", arguments, environment, stdout=subprocess.PIPE, inherit=inherit) as program:
        return b"".join(program.output()).decode("utf-8", "backslashreplace")


def restore_archive(
    archive: Path,
    environment: Mapping[str, str],
    entries: Path,
    jobs: int = 1,
    options: Sequence[str] = (),
    *,
    inherit: bool = True,
) -> None:
    """Fill the database that `environment` names from a dump in a file; the first error ends it.

    Args:
        entries: the file with the table of contents to restore, see `contents`.
        jobs: connections at the same time.
        options: more of pg_restore's.
        inherit: as in `restore_stream`.

    Raises:
        DumpError: any error; what is there then is no copy.
    """
    target = f"{KEEPALIVE} dbname={conninfo_value(environment['PGDATABASE'])}"
    arguments = [f"--jobs={jobs}", "--exit-on-error", f"--use-list={entries}", f"--dbname={target}", *options]
    with Program("pg_restore", [*arguments, str(archive)], environment, inherit=inherit):
        pass


def restore_stream(
    chunks: Iterable[bytes],
    environment: Mapping[str, str],
    entries: Path,
    options: Sequence[str] = (),
    *,
    may_stop: bool = False,
    inherit: bool = True,
) -> None:
    """As `restore_archive`, from a dump in pieces.

    Args:
        may_stop: it may end well without having read all of it; all of it is gone through nevertheless.
        inherit: the program gets this process's environment as well. Nothing of it where the other side isn't trusted.

    Raises:
        DumpError: any error; what is there then is no copy.
    """
    target = f"dbname={conninfo_value(environment['PGDATABASE'])}"
    arguments = ["--exit-on-error", f"--use-list={entries}", f"--dbname={target}"]
    with Program("pg_restore", [*arguments, *options], environment, stdin=subprocess.PIPE, inherit=inherit) as program:
        program.feed(chunks, may_stop=may_stop)


def rows_of(archive: Path, entries: Path) -> Iterator[bytes]:
    """A table's rows out of a dump, as COPY writes and reads them in its text format; nothing of it is executed.

    Args:
        entries: the file with the one entry of the table's data, see `contents`.

    Raises:
        DumpError: as `contents`.
    """
    arguments = ["--file=-", "--data-only", f"--use-list={entries}", str(archive)]
    with Program("pg_restore", arguments, {}, stdout=subprocess.PIPE, inherit=False) as program:
        output = program.output()
        text, begins = b"", b""
        for chunk in output:
            text += chunk
            _, begins, rest = text.partition(_ROWS_BEGIN)
            if begins:
                break
        if not begins:
            raise DumpError("pg_restore: there are no rows where a table's should be")
        # The line that ends the rows may be the first one.
        text, skipped = b"\n" + rest, 1
        while True:
            rows, ends, _ = text.partition(_ROWS_END)
            if ends:
                yield (rows + b"\n")[skipped:]
                break
            # What ends them may come in two pieces.
            if (safe := len(text) - len(_ROWS_END)) > 0:
                yield text[skipped:safe]
                text, skipped = text[safe:], 0
            if not (chunk := next(output, b"")):
                raise DumpError("pg_restore: a table's rows have no end")
            text += chunk
        for _ in output:
            pass


def contents(archive: Path, options: Sequence[str] = ()) -> list[str]:
    """A dump's table of contents, a line each as `pg_restore --list` prints them.

    Raises:
        DumpError: it is no dump, one of a newer pg_dump, or too little of one.
    """
    # Not splitlines: pg_restore replaces line feeds in names alone.
    return _list(str(archive), options).split("\n")


def script(archive: Path, entries: Path | None = None, options: Sequence[str] = ()) -> str:
    """The SQL of a dump's definitions.

    Args:
        entries: the file with those that are wanted; all by default.

    Raises:
        DumpError: as `contents`.
    """
    chosen = [] if entries is None else [f"--use-list={entries}"]
    arguments = ["--file=-", "--schema-only", *chosen, *options, str(archive)]
    with Program("pg_restore", arguments, {}, stdout=subprocess.PIPE, inherit=False) as program:
        return b"".join(program.output()).decode("utf-8", "replace")


def sequence_values(head: bytes) -> dict[str, tuple[int, bool]] | None:
    """Where a dump that begins so will set the sequences, by their names as SQL has them; `None`: it is too short.

    A sequence knows no snapshots (PostgreSQL manual, Sequence Manipulation Functions), so the dump alone knows what it
    saw. That stands in its table of contents, which comes first.
    """
    with tempfile.NamedTemporaryFile("wb", suffix=".head") as file, tempfile.NamedTemporaryFile("w") as entries:
        file.write(head)
        file.flush()
        try:
            listed = _list(file.name)
            kept = [line for line in listed.split("\n") if " SEQUENCE SET " in line]
            if not kept:
                return {}
            entries.write("\n".join(kept) + "\n")
            entries.flush()
            arguments = ["--file=-", f"--use-list={entries.name}", file.name]
            with Program("pg_restore", arguments, {}, stdout=subprocess.PIPE) as program:
                script = b"".join(program.output()).decode()
        except DumpError:
            return None
    found = re.findall(r"setval\('((?:[^']|'')*)', (-?\d+), (true|false)\)", script)
    return {name.replace("''", "'"): (int(value), called == "true") for name, value, called in found}


def conninfo_value(text: str) -> str:
    """A value in a connection string (PostgreSQL manual, 34.1.1.1)."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _list(archive: str, options: Sequence[str] = ()) -> str:
    listed = subprocess.run(
        [postgres_program("pg_restore"), "--list", *options, archive],
        env=plain_environment(),
        capture_output=True,
        # Of a line that goes back to pg_restore it reads the number alone.
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if listed.returncode:
        raise DumpError(f"pg_restore: {complaint(listed.stderr)}")
    return listed.stdout
