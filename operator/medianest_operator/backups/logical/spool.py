"""A dump back into the database that it was taken of: in one transaction with what clears the place."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from medianest_operator.backups.logical.dump import contents
from medianest_operator.backups.logical.program import Program


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
    # A file, not a pipe: rows may be wanted in another order than they lie in.
    with tempfile.NamedTemporaryFile("w", suffix=".list", encoding="utf-8") as entries, _spool(chunks) as spool:
        entries.write("\n".join(chosen(contents(Path(spool.name)))) + "\n")
        entries.flush()
        reading = ["--file=-", f"--use-list={entries.name}", spool.name]
        writing = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-"]
        with Program("psql", writing, environment, stdin=subprocess.PIPE, inherit=inherit) as psql:
            # Not psql's --single-transaction: at the end of a script that was cut off, it would commit.
            psql.feed([_script("BEGIN", *before)])
            with Program("pg_restore", reading, {}, stdout=subprocess.PIPE, inherit=inherit) as script:
                psql.feed(script.output())
            psql.feed([_script(*after, "COMMIT")])


def _script(*statements: str) -> bytes:
    return "".join(f"{statement};\n" for statement in statements).encode()


def _spool(chunks: Iterable[bytes]) -> IO[bytes]:
    """The dump in a file that is gone once it is closed."""
    spool = tempfile.NamedTemporaryFile("wb", suffix=".dump")  # noqa: SIM115
    try:
        for chunk in chunks:
            spool.write(chunk)
        spool.flush()
    except BaseException:
        # What could not be written out is tried again as the file is closed.
        with contextlib.suppress(OSError):
            spool.close()
        raise
    return spool
