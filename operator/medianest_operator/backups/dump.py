"""`pg_dump` and `pg_restore` as streams: bounded memory, and no success unless the program says so itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO

from medianest_operator import naming
from medianest_operator.backups.repository import CHUNK
from medianest_operator.postgres.throwaway import postgres_program


class DumpError(Exception):
    """A program failed; the text is its own first complaint."""


def dump(environment: Mapping[str, str], snapshot: str | None = None, level: int = 1) -> Iterator[bytes]:
    """A database in pg_dump's custom format, in pieces as they come.

    Args:
        environment: libpq's variables; what else pg_dump needs is taken from this process.
        snapshot: an exported snapshot to read, so that what was counted there is what is dumped.
        level: zlib's, 0 to 9.

    Raises:
        DumpError: pg_dump failed, also in the middle of the stream: what was read so far is no backup then.
    """
    arguments = ["--format=custom", f"--compress={level}", f"--exclude-schema={naming.JOURNAL_SCHEMA}"]
    if snapshot:
        arguments.append(f"--snapshot={snapshot}")
    with _Program("pg_dump", arguments, environment, stdout=subprocess.PIPE) as program:
        yield from program.output()


def restore_as_new(chunks: Iterable[bytes], environment: Mapping[str, str], schema_only: bool = False) -> None:
    """Create the dumped database in the server that `environment` names, with its rights, and fill it.

    Raises:
        DumpError: any error; what is there then is no copy.
    """
    arguments = ["--create", "--exit-on-error", f"--dbname={environment['PGDATABASE']}"]
    if schema_only:
        arguments.append("--schema-only")
    with _Program("pg_restore", arguments, environment, stdin=subprocess.PIPE) as program:
        # The definitions come first in a dump.
        program.feed(chunks, may_stop=schema_only)


def restore_in_place(
    chunks: Iterable[bytes], environment: Mapping[str, str], before: Sequence[str], after: Sequence[str]
) -> None:
    """Put a dump into the database that `environment` names, in one transaction with the statements around it.

    Either all of it happens or nothing: the statements of `before` (which clear the place), the dump, and those of
    `after`.

    Raises:
        DumpError: an error, after which nothing has changed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".list", encoding="utf-8") as entries:
        spool, listing = _spool(chunks)
        with spool:
            entries.write(listing)
            entries.flush()
            reading = ["--file=-", f"--use-list={entries.name}", spool.name]
            writing = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-"]
            with _Program("psql", writing, environment, stdin=subprocess.PIPE) as psql:
                # Not psql's --single-transaction: at the end of a script that was cut off, it would commit.
                psql.feed([_script("BEGIN", *before)])
                with _Program("pg_restore", reading, environment, stdout=subprocess.PIPE) as script:
                    psql.feed(script.output())
                psql.feed([_script(*after, "COMMIT")])


def _script(*statements: str) -> bytes:
    return "".join(f"{statement};\n" for statement in statements).encode()


def _spool(chunks: Iterable[bytes]) -> tuple[IO[bytes], str]:
    """The dump in a file, and its table of contents less what only a superuser can restore."""
    spool = tempfile.NamedTemporaryFile("wb", suffix=".dump")  # noqa: SIM115
    for chunk in chunks:
        spool.write(chunk)
    spool.flush()
    listed = subprocess.run(
        [postgres_program("pg_restore"), "--list", spool.name], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        spool.close()
        raise DumpError(f"pg_restore: {_complaint(listed.stderr)}")
    # The comment of an extension belongs to its owner, and comes with the extension anyway.
    kept = [line for line in listed.stdout.splitlines() if " COMMENT - EXTENSION " not in line]
    return spool, "\n".join(kept) + "\n"


class _Program:
    """A program of PostgreSQL's that must end well."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdout: int | None = None,
        stdin: int | None = None,
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [postgres_program(name), *arguments],
            env={**os.environ, **environment},
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
            while line := stream.readline():
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
        return f"{self.name}: {_complaint(self._complaints.decode('utf-8', 'replace'))}"


def _complaint(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower()] or lines
    return errors[0].split("error:", 1)[-1].strip() if errors else "it ended without a word"
