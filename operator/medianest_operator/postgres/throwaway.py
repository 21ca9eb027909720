"""A throwaway PostgreSQL server: a copy is restored into it, looked at, changed, and thrown away.

It listens on a Unix socket in a private folder only, keeps nothing safe (`fsync=off`) and ends with the process that
started it. PostgreSQL refuses to run as root; in the Jobs' pods nothing does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, sql

from medianest_operator import naming

START_LIMIT = 60.0
"""Seconds until a server that doesn't answer is given up."""
_PR_SET_PDEATHSIG = 1
# Nothing here outlives the process, so nothing has to reach the disk.
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "512MB",
    "autovacuum": "off",
    "shared_buffers": "64MB",
    "maintenance_work_mem": "64MB",
    "max_connections": "20",
    # Parallel workers share memory in /dev/shm, which is small in a container.
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "jit": "off",
    "logging_collector": "off",
}


class ThrowawayError(Exception):
    """The server can't be made here; the text says why."""


@dataclass(frozen=True)
class RoleCopy:
    """A role that the copy needs: its name, how it logs in, its groups and settings.

    Attributes:
        attributes: `LOGIN`, `NOINHERIT` and the like, as in `CREATE ROLE`.
        member_of: the roles that it is a member of.
        settings: `ALTER ROLE ... SET` for all databases, as `name=value`.
    """

    name: str
    attributes: tuple[str, ...] = ()
    member_of: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


def postgres_program(name: str) -> str:
    """The path of one of PostgreSQL's programs: Debian's folder of version 15 first, then PATH.

    Raises:
        ThrowawayError: it isn't there.
    """
    candidate = Path(naming.POSTGRES_BIN, name)
    found = str(candidate) if candidate.exists() else shutil.which(name)
    if found is None:
        raise ThrowawayError(f"PostgreSQL's program {name} is not installed here")
    return found


class ThrowawayServer:
    """A running server; made by `throwaway_server`."""

    def __init__(self, folder: Path, superuser: str) -> None:
        self.folder = folder
        self.superuser = superuser

    def environment(self, dbname: str, user: str | None = None) -> dict[str, str]:
        """libpq's variables for a program that connects here."""
        return {"PGHOST": str(self.folder), "PGPORT": "5432", "PGUSER": user or self.superuser, "PGDATABASE": dbname}

    def connect(self, dbname: str, user: str | None = None) -> Connection[Any]:
        """A connection in autocommit."""
        return psycopg.connect(
            host=str(self.folder), port=5432, user=user or self.superuser, dbname=dbname, autocommit=True
        )

    def create_roles(self, roles: Sequence[RoleCopy]) -> None:
        """Make the roles that a restored database speaks of."""
        with self.connect("postgres") as connection:
            for role in roles:
                name = sql.Identifier(role.name)
                if role.name != self.superuser:
                    attributes = sql.SQL(" ").join(sql.SQL(word) for word in role.attributes)
                    connection.execute(sql.SQL("CREATE ROLE {} {}").format(name, attributes))
            for role in roles:
                name = sql.Identifier(role.name)
                for group in role.member_of:
                    connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), name))
                for setting in role.settings:
                    key, _, value = setting.partition("=")
                    statement = sql.SQL("ALTER ROLE {} SET {} = {}")
                    connection.execute(statement.format(name, sql.Identifier(key), sql.Literal(value)))


@contextlib.contextmanager
def throwaway_server(
    parent: Path, superuser: str = naming.SUPERUSER, settings: Mapping[str, str] | None = None
) -> Iterator[ThrowawayServer]:
    """Start a server in a new folder below `parent`; stop it and remove the folder at the end.

    Raises:
        ThrowawayError: the programs are missing, or the server doesn't start; the text holds its last words.
    """
    account = _account()
    # A short path: a socket's path may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=parent.resolve()))
    try:
        if account:
            os.chown(folder, account["user"], account["group"])
        data = folder / "data"
        made = subprocess.run(
            [
                *(postgres_program("initdb"), "-D", data, "-U", superuser, "-A", "trust", "-E", "UTF8"),
                *("--no-sync", "--no-instructions", "--locale=C.UTF-8"),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            **account,
        )
        if made.returncode:
            raise ThrowawayError(f"no throwaway server can be made: {_complaint(made.stderr)}")
        arguments = [postgres_program("postgres"), "-D", str(data), "-k", str(folder)]
        for name, value in {**_SETTINGS, **(settings or {})}.items():
            arguments += ["-c", f"{name}={value}"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                arguments, stdout=log, stderr=log, cwd=folder, preexec_fn=_end_with_parent, **account
            )
        try:
            server = ThrowawayServer(folder, superuser)
            _wait_until_ready(server, process)
            yield server
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> dict[str, Any]:
    """The account to run as where this process is root's, which only happens outside of the images."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise ThrowawayError("PostgreSQL doesn't run as root, and there is no account postgres") from None
    return {"user": user.pw_uid, "group": user.pw_gid}


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _wait_until_ready(server: ThrowawayServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT
    while True:
        try:
            server.connect("postgres").close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (server.folder / "log").read_text(encoding="utf-8", errors="replace")
                raise ThrowawayError(f"the throwaway server did not start: {_complaint(log)}") from None
            time.sleep(0.02)
        else:
            return


def _complaint(text: str) -> str:
    """The first thing that went wrong; what follows it is mostly its consequence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"\b(FATAL|PANIC|error)\b", line)] or lines[-1:]
    return wrong[0] if wrong else "it said nothing"
