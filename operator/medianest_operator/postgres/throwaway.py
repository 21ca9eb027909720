"""A throwaway PostgreSQL server: a copy is restored into it, observed, changed, and thrown away.

It listens on a Unix socket in a folder of its own only, keeps nothing safe (`fsync=off`) and ends with the process that
started it. Nobody is trusted: every login needs a password, the superuser's is a new one each time, and the programs
find nothing in their environment. PostgreSQL refuses to run as root; in the Jobs' pods nothing does.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.pq import PGconn, Ping

from medianest_operator import naming
from medianest_operator.postgres import scram
from medianest_operator.postgres.connect import NO_LIMITS, as_options
from medianest_operator.postgres.scratch import scratch_folder

START_LIMIT = 60.0
"""Seconds until a server that doesn't answer is given up."""
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
SUPERUSER: Final = "copy_admin"
"""Of every throwaway server. No database can be copied that has a role of this name: the copy's can't be made then."""
BLANK: Final = "MEDIANEST_BLANK_CLUSTER"
"""The environment variable that names a data directory as `make_blank` makes it. Each server begins with a copy of it,
which takes a fifth of the time of initdb; without the variable initdb runs."""
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ")


class ThrowawayError(Exception):
    """The server can't be made here; the text says why.

    Attributes:
        transient: trying again may help.
    """

    def __init__(self, text: str, *, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient


@dataclass(frozen=True)
class Login:
    """Who may log in, and the password."""

    name: str
    password: str = field(repr=False)

    @classmethod
    def new(cls, name: str | None = None) -> Login:
        """One with a random password and, unless it is given, a random name."""
        return cls(name or f"copy_{secrets.token_hex(8)}", secrets.token_urlsafe(24))

    def verifier(self) -> str:
        """What the server gets to see of the password (PostgreSQL manual, pg_authid)."""
        return scram.verifier(self.password)


@dataclass(frozen=True)
class ThrowawayServer:
    """A running server.

    Attributes:
        folder: where its socket is.
        admin: its superuser.
    """

    folder: Path
    admin: Login

    def environment(self, dbname: str, login: Login) -> dict[str, str]:
        """libpq's variables for a program that connects here; all that it needs besides `plain_environment`."""
        return {
            "PGHOST": str(self.folder),
            "PGPORT": str(naming.POSTGRES_PORT),
            "PGUSER": login.name,
            "PGPASSWORD": login.password,
            "PGDATABASE": dbname,
            "PGOPTIONS": as_options(NO_LIMITS),
        }

    def connect(self, dbname: str, login: Login, settings: Mapping[str, str] | None = None) -> Connection[Any]:
        """A connection in autocommit.

        Args:
            settings: parameters that it begins with, besides having no time limits; they win over those of the role
                and of the database.

        Raises:
            psycopg.OperationalError: the server is gone, or lets nobody in.
        """
        return psycopg.connect(
            host=str(self.folder),
            port=naming.POSTGRES_PORT,
            user=login.name,
            password=login.password,
            dbname=dbname,
            options=as_options({**NO_LIMITS, **(settings or {})}),
            autocommit=True,
        )


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


def plain_environment() -> dict[str, str]:
    """All that a program gets to see of this process's environment where it deals with a copy: no secret."""
    return {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}


@contextlib.contextmanager
def local_server(parent: Path, settings: Mapping[str, str] | None = None) -> Iterator[ThrowawayServer]:
    """Start a server as a child of this process, in a new folder below `parent`; stop it and remove the folder at the
    end.

    Raises:
        ThrowawayError: the programs are missing, or the server doesn't start; the text holds its last words.
    """
    admin = Login.new(SUPERUSER)
    # A short path: a socket's path may have 107 bytes.
    with scratch_folder(parent, "pg-") as folder, running(folder, admin.verifier(), settings or {}):
        yield ThrowawayServer(folder, admin)


@contextlib.contextmanager
def running(folder: Path, verifier: str, settings: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server with its data and its socket in a folder that is there and empty, as long as the block lasts.

    Args:
        verifier: of the superuser's password, as pg_authid has it: the password itself is not needed.

    Raises:
        ThrowawayError: as `local_server`.
    """
    account = _account()
    if account:
        os.chown(folder, account["user"], account["group"])
    data = folder / "data"
    _make(data, verifier, account)
    arguments = [*_ending_with_parent(), postgres_program("postgres"), "-D", str(data), "-k", str(folder)]
    for name, value in {**_SETTINGS, **settings}.items():
        arguments += ["-c", f"{name}={value}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=plain_environment(),
            **account,
        )
    try:
        _wait_until_ready(folder, process)
        yield process
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait()


def make_blank(data: Path) -> None:
    """Make a cluster in a folder that isn't there yet; its superuser has no password, so nobody can log in.

    Raises:
        ThrowawayError: the programs are missing, or initdb failed.
    """
    _initdb(data, _account())


def _make(data: Path, verifier: str, account: Mapping[str, Any]) -> None:
    if blank := os.environ.get(BLANK):
        _run(["cp", "-a", blank, str(data)], account)
    else:
        _initdb(data, account)
    options = [item for name in ("fsync", "full_page_writes") for item in ("-c", f"{name}={_SETTINGS[name]}")]
    command = [postgres_program("postgres"), "--single", *options, "-D", str(data), "postgres"]
    # In single-user mode a statement that fails ends nothing (PostgreSQL manual, postgres).
    said = _run(command, account, f"ALTER ROLE {SUPERUSER} PASSWORD '{verifier}'\n")
    if "ERROR" in said:
        raise ThrowawayError(f"no throwaway server can be made: {_complaint(said)}")


def _initdb(data: Path, account: Mapping[str, Any]) -> None:
    options = ["--no-sync", "--no-instructions", "--locale=C.UTF-8", "--wal-segsize=1"]
    command = [postgres_program("initdb"), "-D", str(data), "-U", SUPERUSER, "-A", "reject", "-E", "UTF8", *options]
    _run(command, account)
    # initdb itself takes no method that needs a password where there is none.
    (data / "pg_hba.conf").write_text("local all all scram-sha-256\n", encoding="ascii")


def _run(command: Sequence[str], account: Mapping[str, Any], stdin: str = "") -> str:
    """What a program said. Raises ThrowawayError where it failed."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=plain_environment(),
        **account,
    )
    if done.returncode:
        raise ThrowawayError(f"no throwaway server can be made: {_complaint(done.stderr)}")
    return done.stdout + done.stderr


def _account() -> dict[str, Any]:
    """The account to run as where this process is root's, which only happens outside of the images."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise ThrowawayError("PostgreSQL doesn't run as root, and there is no account postgres") from None
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _ending_with_parent() -> list[str]:
    """What lets a server stop at once with the process that started it (prctl(2), PR_SET_PDEATHSIG).

    A program of util-linux, not `preexec_fn`: that runs Python between fork and exec, which hangs where another thread
    is just beginning (Python's documentation, subprocess). On a laptop that has none, a server is stopped as usual, but
    survives a process that is killed.
    """
    return [setpriv, "--pdeathsig", "QUIT", "--"] if (setpriv := shutil.which("setpriv")) else []


def _wait_until_ready(folder: Path, process: subprocess.Popen[bytes]) -> None:
    conninfo = psycopg.conninfo.make_conninfo(host=str(folder), port=naming.POSTGRES_PORT, dbname="postgres")
    deadline = time.monotonic() + START_LIMIT
    # Asked without logging in (PostgreSQL manual, PQping).
    while PGconn.ping(conninfo.encode()) != Ping.OK:
        if process.poll() is not None or time.monotonic() > deadline:
            log = (folder / "log").read_text(encoding="utf-8", errors="replace")
            raise ThrowawayError(f"the throwaway server did not start: {_complaint(log)}")
        time.sleep(0.02)


def _complaint(text: str) -> str:
    """The first thing that went wrong; what follows it is mostly its consequence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"\b(FATAL|PANIC|error)\b", line)] or lines[-1:]
    return wrong[0] if wrong else "it said nothing"
