"""`pg_dump` and `pg_restore` as streams: bounded memory, and no success unless the program says so itself."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from medianest_operator import naming
from medianest_operator.backups.repository.client import CHUNK
from medianest_operator.backups.repository.layout import Format
from medianest_operator.postgres.throwaway import plain_environment, postgres_program

_LONGEST_LINE = 64 * 1024
_LEAVE = 5.0
"""Seconds that a program gets to end after it was asked to."""
KEEPALIVE = "keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=60000"
"""For libpq: a server that is gone without a word is noticed within a minute or so."""
LOCK_WAIT = 120_000
"""Milliseconds that a dump waits for a table that somebody has locked."""
# What another try, or another server, may help with; the words are the server's and libpq's.
_PASSING = re.compile(
    r"server closed the connection|terminating connection|connection to server|could not connect|connection reset"
    r"|could not (receive|send) data|conflict with recovery|lock timeout|could not obtain lock"
    r"|the database system is|SSL connection has been closed|SSL error|SSL SYSCALL|no connection to the server"
    r"|lost synchronization|deadlock detected|ended by signal|Connection refused"
    r"|[Nn]o space left on device|could not extend file|out of memory"
    r"|connection not open|too many (clients|connections)|remaining connection slots|snapshot"
)


class DumpError(Exception):
    """A program failed; the text is its own first complaint.

    Attributes:
        transient: trying again may help.
        vanished: something was dropped while it was dumped.
        conflict: a replica gave the dump up, because it had to go on replaying.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.transient = _PASSING.search(text) is not None
        self.vanished = re.search("does not exist|cache lookup failed", text) is not None
        self.conflict = "conflict with recovery" in text


def dump(
    environment: Mapping[str, str],
    snapshot: str | None = None,
    level: int = 1,
    format: Format = Format.CUSTOM,
    schema: str | None = None,
    *,
    large_objects: bool = True,
    without: Sequence[tuple[str, str]] = (),
) -> Iterator[bytes]:
    """A database as pg_dump writes it, in pieces as they come.

    Args:
        environment: libpq's variables; what else pg_dump needs is taken from this process.
        snapshot: an exported snapshot to read, so that what was counted there is what is dumped.
        level: zlib's, 0 to 9.
        format: its own, or SQL that is packed by gzip.
        schema: nothing but this one, and without owners and rights.
        large_objects: with them; pg_dump fails at the first that it may not read.
        without: tables and sequences that are left out, by schema and name.

    Raises:
        DumpError: pg_dump failed, also in the middle of the stream: what was read so far is no backup then.
    """
    arguments = [
        f"--format={'custom' if format is Format.CUSTOM else 'plain'}",
        f"--compress={level}",
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
    if snapshot:
        arguments.append(f"--snapshot={snapshot}")
    with _Program("pg_dump", arguments, environment, stdout=subprocess.PIPE) as program:
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
    with _Program("pg_dump", arguments, environment, stdout=subprocess.PIPE, inherit=inherit) as program:
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
    with _Program("pg_restore", [*arguments, str(archive)], environment, inherit=inherit):
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
    with _Program("pg_restore", [*arguments, *options], environment, stdin=subprocess.PIPE, inherit=inherit) as program:
        program.feed(chunks, may_stop=may_stop)


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
    with _Program("pg_restore", arguments, {}, stdout=subprocess.PIPE, inherit=False) as program:
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
            with _Program("pg_restore", arguments, {}, stdout=subprocess.PIPE) as program:
                script = b"".join(program.output()).decode()
        except DumpError:
            return None
    found = re.findall(r"setval\('((?:[^']|'')*)', (-?\d+), (true|false)\)", script)
    return {name.replace("''", "'"): (int(value), called == "true") for name, value, called in found}


def conninfo_value(text: str) -> str:
    """A value in a connection string (PostgreSQL manual, 34.1.1.1)."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def restore_in_place(
    chunks: Iterable[bytes],
    environment: Mapping[str, str],
    before: Sequence[str],
    after: Sequence[str],
    chosen: Callable[[Sequence[str]], Iterable[str]],
    inherit: bool = True,
) -> None:
    """Put a dump into the database that `environment` names, in one transaction with the statements around it.

    Either all of it happens or nothing: the statements of `before` (which clear the place), the dump, and those of
    `after`.

    Args:
        chosen: takes the lines of the dump's table of contents that are to be restored, in their order.
        inherit: as in `restore_stream`.

    Raises:
        DumpError: an error, after which nothing has changed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".list", encoding="utf-8") as entries:
        spool, listing = _spool(chunks, chosen)
        with spool:
            entries.write(listing)
            entries.flush()
            reading = ["--file=-", f"--use-list={entries.name}", spool.name]
            writing = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-"]
            with _Program("psql", writing, environment, stdin=subprocess.PIPE, inherit=inherit) as psql:
                # Not psql's --single-transaction: at the end of a script that was cut off, it would commit.
                psql.feed([_script("BEGIN", *before)])
                with _Program("pg_restore", reading, {}, stdout=subprocess.PIPE, inherit=inherit) as script:
                    psql.feed(script.output())
                psql.feed([_script(*after, "COMMIT")])


def _script(*statements: str) -> bytes:
    return "".join(f"{statement};\n" for statement in statements).encode()


def _spool(chunks: Iterable[bytes], chosen: Callable[[Sequence[str]], Iterable[str]]) -> tuple[IO[bytes], str]:
    """The dump in a file, and what is wanted of its table of contents."""
    spool = tempfile.NamedTemporaryFile("wb", suffix=".dump")  # noqa: SIM115
    try:
        for chunk in chunks:
            spool.write(chunk)
        spool.flush()
        listed = _list(spool.name)
    except BaseException:
        # What could not be written out is tried again as the file is closed.
        with contextlib.suppress(OSError):
            spool.close()
        raise
    return spool, "\n".join(chosen(listed.split("\n"))) + "\n"


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
        raise DumpError(f"pg_restore: {_complaint(listed.stderr)}")
    return listed.stdout


class _Program:
    """A program of PostgreSQL's that must end well."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdout: int | None = None,
        stdin: int | None = None,
        inherit: bool = True,
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [postgres_program(name), *arguments],
            env={**(os.environ if inherit else plain_environment()), **environment},
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.PIPE,
        )
        self._complaints = b""
        # Read beside the rest: a full pipe would stop the program.
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            while line := stream.readline(_LONGEST_LINE):
                if len(self._complaints) < 64 * 1024:
                    self._complaints += line

    def output(self) -> Iterator[bytes]:
        """What it prints, in pieces."""
        assert self.process.stdout is not None
        while chunk := self.process.stdout.read(CHUNK):
            yield chunk

    def feed(self, chunks: Iterable[bytes], may_stop: bool = False) -> None:
        """Hand it input.

        Args:
            may_stop: it may end well without having read all of it. The rest is gone through nevertheless: whoever
                makes the pieces checks them.

        Raises:
            DumpError: it has ended before.
        """
        assert self.process.stdin is not None
        pieces = iter(chunks)
        try:
            for chunk in pieces:
                self.process.stdin.write(chunk)
            self.process.stdin.flush()
        except BrokenPipeError:
            if self.process.wait() or not may_stop:
                raise DumpError(self._last_words()) from None
            for _ in pieces:
                pass

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.process.poll() is None:
            # With a word, so that its sessions end as well.
            self.process.terminate()
            try:
                self.process.wait(_LEAVE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        code = self.process.wait()
        if code and kind is None:
            raise DumpError(self._last_words())
        self._reader.join()

    def _last_words(self) -> str:
        self._reader.join()
        text = self._complaints.decode("utf-8", "replace")
        if not text.strip() and self.process.returncode < 0:
            return f"{self.name} was ended by signal {signal.Signals(-self.process.returncode).name}"
        return f"{self.name}: {_complaint(text)}"


def _complaint(text: str) -> str:
    """The first error, what it was about, and what the server said."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if "error:" in line.lower()]
    if not errors:
        return lines[0] if lines else "it ended without a word"
    first = errors[0]
    told = re.split("error:", lines[first], maxsplit=1, flags=re.IGNORECASE)[-1].strip()
    for line in lines[first + 1 :]:
        if "detail: Error message from server:" in line:
            told += f" {line.partition('from server:')[2].strip()}"
            break
    entry = re.search(r"from TOC entry \d+; \d+ \d+ (.+)", lines[first - 1]) if first else None
    return f"{told} (at {entry[1]})" if entry else told
