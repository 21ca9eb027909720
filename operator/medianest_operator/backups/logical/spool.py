"""A dump back into the database that it was taken of: in one transaction with what clears the place."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from medianest_operator.backups.logical.dump import contents
from medianest_operator.backups.logical.program import DumpError, Program
from medianest_operator.backups.repository.client import CHUNK
from medianest_operator.backups.repository.compression import compress, decompress

# zstd's fastest level: for what is read again a moment later.
_QUICKLY = 1


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
        spool = _Spool(chunks)
        with spool.file:
            entries.write("\n".join(chosen(spool.contents())) + "\n")
            entries.flush()
            reading = ["--file=-", f"--use-list={entries.name}"]
            writing = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-"]
            with Program("psql", writing, environment, stdin=subprocess.PIPE, inherit=inherit) as psql:
                # Not psql's --single-transaction: at the end of a script that was cut off, it would commit.
                psql.feed([_script("BEGIN", *before)])
                script = Program("pg_restore", reading, {}, subprocess.PIPE, subprocess.PIPE, inherit)
                with script, script.fed(spool.chunks()):
                    psql.feed(script.output())
                psql.feed([_script(*after, "COMMIT")])


def _script(*statements: str) -> bytes:
    return "".join(f"{statement};\n" for statement in statements).encode()


class _Spool:
    """A dump in a file that is gone once it is closed; packed, for whoever has to roll back has little room.

    Attributes:
        file: with it.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._size = 0
        self.file = tempfile.NamedTemporaryFile("w+b", suffix=".dump.zst")  # noqa: SIM115
        try:
            for piece in compress(self._counted(chunks), _QUICKLY):
                self.file.write(piece)
            self.file.flush()
        except BaseException:
            # What could not be written out is tried again as the file is closed.
            with contextlib.suppress(OSError):
                self.file.close()
            raise

    def contents(self) -> list[str]:
        """Its table of contents, as `contents` has it.

        Raises:
            DumpError: it is no dump.
        """
        failure = DumpError("pg_restore: the dump is empty")
        with tempfile.NamedTemporaryFile("wb", suffix=".head") as head:
            for chunk in self.chunks():
                head.write(chunk)
                head.flush()
                try:
                    return contents(Path(head.name))
                except DumpError as error:
                    failure = error
        raise failure

    def chunks(self) -> Iterator[bytes]:
        """All of it."""
        self.file.seek(0)
        return decompress(iter(lambda: self.file.read(CHUNK), b""), self._size)

    def _counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._size += len(chunk)
            yield chunk
