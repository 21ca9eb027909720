"""A new replica beside a log that an earlier one has left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn


def copy_primary(data: Path, log: Path, connection: str) -> NoReturn:
    """Copy the primary into an empty data directory, its log into the log's own volume.

    Where the data's volume alone was lost or replaced, the log's still holds what belonged to it. pg_basebackup refuses
    a directory that isn't empty (PostgreSQL manual, pg_basebackup, --waldir).

    Args:
        data: where the data is to be; Patroni has emptied it.
        log: where the log is to be.
        connection: to the primary, as libpq reads it.
    """
    for item in sorted(log.iterdir()) if log.is_dir() else []:
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()
    arguments = [f"--pgdata={data}", f"--waldir={log}", "--wal-method=stream", "--checkpoint=fast"]
    os.execvp("pg_basebackup", ["pg_basebackup", *arguments, f"--dbname={connection}"])
