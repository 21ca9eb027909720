"""PostgreSQL's own programs as streams: no success unless the program says so itself."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from medianest_operator.backups.repository.client import CHUNK
from medianest_operator.backups.repository.compression import CompressionError
from medianest_operator.postgres.throwaway import plain_environment, postgres_program

_LONGEST_LINE = 64 * 1024
_LEAVE = 5.0
"""Seconds that a program gets to end after it was asked to."""
# What another try, or another server, may help with; the words are the server's and libpq's.
_PASSING = re.compile(
    r"server closed the connection|terminating connection|connection to server|could not connect|connection reset"
    r"|could not (receive|send) data|conflict with recovery|lock timeout|could not obtain lock"
    r"|the database system is|SSL connection has been closed|SSL error|SSL SYSCALL|no connection to the server"
    r"|lost synchronization|deadlock detected|ended by signal|Connection refused"
    r"|[Nn]o space left on device|could not extend file|out of memory"
    r"|connection not open|too many (clients|connections)|remaining connection slots|snapshot"
)

_VANISHED = re.compile("does not exist|cache lookup failed|could not open relation with OID")


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
        self.vanished = _VANISHED.search(text) is not None
        self.conflict = "conflict with recovery" in text


class Program:
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

    @contextlib.contextmanager
    def fed(self, chunks: Iterable[bytes]) -> Iterator[None]:
        """Hand it input beside the block, whose end waits for that; it may end well without having read all of it.

        Raises:
            DumpError: it has ended before, or there is no such input.
        """
        with ThreadPoolExecutor(1, f"input of {self.name}") as pool:
            task = pool.submit(self._feed_all, chunks)
            try:
                yield
            except BaseException:
                self.process.terminate()
                raise
            task.result()

    def _feed_all(self, chunks: Iterable[bytes]) -> None:
        assert self.process.stdin is not None
        try:
            self.feed(chunks, may_stop=True)
        except CompressionError as error:
            raise DumpError(f"what was kept of the dump can't be read: {error}") from error
        finally:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def __enter__(self) -> Program:
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
        return f"{self.name}: {complaint(text)}"


def complaint(text: str) -> str:
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
