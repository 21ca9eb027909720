"""A throwaway PostgreSQL 15 for a test session: own data directory, socket in a private folder, nothing left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, sql

_BINARIES = "/usr/lib/postgresql/15/bin"
_SUPERUSER = "postgres"
_START_LIMIT = 90.0
BLANK = "MEDIANEST_TESTS_BLANK_CLUSTER"
"""The environment variable that names a data directory as `initialize` makes it: servers begin with a copy of it, which
takes a tenth of the time of initdb."""
_PR_SET_PDEATHSIG = 1

# Roles as the operator makes them (postgres/roles.py): nobody who logs in owns anything.
_ROLES = """
CREATE ROLE medianest NOLOGIN;
CREATE ROLE medianest_app LOGIN;
CREATE ROLE medianest_readonly LOGIN;
CREATE ROLE medianest_migrator LOGIN NOINHERIT IN ROLE medianest, pg_signal_backend, pg_read_all_stats;
ALTER ROLE medianest_migrator SET role = 'medianest';
CREATE ROLE stranger LOGIN;
"""

_DEFAULT_PRIVILEGES = """
ALTER DEFAULT PRIVILEGES FOR ROLE medianest GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO medianest_app;
ALTER DEFAULT PRIVILEGES FOR ROLE medianest GRANT USAGE, SELECT ON SEQUENCES TO medianest_app;
ALTER DEFAULT PRIVILEGES FOR ROLE medianest GRANT SELECT ON TABLES TO medianest_readonly;
"""


def binary(name: str) -> str:
    """The path of one of the server's programs: Debian's folder for version 15 first, then PATH."""
    candidate = Path(_BINARIES, name)
    found = str(candidate) if candidate.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} of PostgreSQL 15 not found; on Debian: apt-get install postgresql-15")
    return found


class Database:
    """One database of the server, with what a client needs to log in."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server = server
        self.name = name

    def environment(self, user: str = "medianest_migrator") -> dict[str, str]:
        """libpq's environment variables, as the migration Job gets them."""
        return {"PGHOST": str(self.server.folder), "PGPORT": "5432", "PGUSER": user, "PGDATABASE": self.name}

    def connect(self, user: str = _SUPERUSER, **options: Any) -> Connection[Any]:
        """A connection in autocommit."""
        return psycopg.connect(
            host=str(self.server.folder), port=5432, user=user, dbname=self.name, autocommit=True, **options
        )

    def execute(self, statements: str, user: str = _SUPERUSER) -> list[tuple[Any, ...]]:
        """Run SQL and return the last statement's rows."""
        with self.connect(user) as connection:
            cursor = connection.execute(statements.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []


class PostgresServer:
    """A running server; made by `running_server`."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.process = process

    @property
    def maintenance(self) -> Database:
        return Database(self, "postgres")

    def create_database(self, template: str | None = None, name: str | None = None) -> Database:
        """Make a database that belongs to `medianest`: empty, or a copy of another one."""
        name = name or f"t_{uuid.uuid4().hex[:12]}"
        with self.maintenance.connect() as connection:
            query = sql.SQL("CREATE DATABASE {} OWNER medianest TEMPLATE {}")
            connection.execute(query.format(sql.Identifier(name), sql.Identifier(template or "template0")))
        database = Database(self, name)
        if template is None:
            database.execute(_DEFAULT_PRIVILEGES)
        return database

    def drop_database(self, database: Database) -> None:
        with self.maintenance.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database.name)))


# What a throwaway server needs not keep, and what is off in production as well.
_SETTINGS = (
    *("listen_addresses=", "fsync=off", "jit=off", "shared_buffers=64MB", "max_connections=60"),
    "max_prepared_transactions=5",
)


def _account() -> pwd.struct_passwd:
    """PostgreSQL refuses to run as root: Debian's package brings the account `postgres`."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def initialize(folder: Path, initdb: str | None = None) -> None:
    """Make `data` in a folder: a cluster that has never run."""
    user = _account()
    os.chown(folder, user.pw_uid, user.pw_gid)
    program = initdb or binary("initdb")
    make = [
        program,
        "-D",
        str(folder / "data"),
        "-U",
        _SUPERUSER,
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
        "--locale=C",
    ]
    subprocess.run(make, check=True, capture_output=True, cwd=folder, **_as(user))


def _as(user: pwd.struct_passwd) -> dict[str, Any]:
    return {"user": user.pw_uid, "group": user.pw_gid} if os.geteuid() == 0 else {}


@contextlib.contextmanager
def running_server(
    *settings: str,
    copy_of: tuple[PostgresServer, str] | None = None,
    installed: Path | None = None,
    own_identifier: bool = False,
) -> Iterator[PostgresServer]:
    """Start a server, stop it and remove its folder at the end. It also ends when this process is killed.

    Args:
        settings: `name=value`, over those that make a throwaway server fast.
        copy_of: makes a replica of that server, with that replication slot.
        installed: another PostgreSQL than the machine's own: the folder with its `bin`.
        own_identifier: its system identifier is that of no other server of the tests.
    """
    user = _account()
    as_user = _as(user)
    # A short path: a socket's path may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="mn-pg-"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    data = folder / "data"
    try:
        programs = shutil.copytree(installed, folder / "installed", symlinks=True) / "bin" if installed else None
        initdb, postgres = (str(programs / name) if programs else binary(name) for name in ("initdb", "postgres"))
        if copy_of is not None:
            primary, slot = copy_of
            source = ["-h", str(primary.folder), "-p", "5432", "-U", _SUPERUSER, "-C", "-S", slot]
            make = [binary("pg_basebackup"), *source, "-D", str(data), "-R", "--checkpoint=fast", "--no-sync"]
            subprocess.run(make, check=True, capture_output=True, cwd=folder, **as_user)
        elif (blank := os.environ.get(BLANK)) and not installed and not own_identifier:
            subprocess.run(["cp", "-a", blank, str(data)], check=True, capture_output=True)
        else:
            initialize(folder, initdb)
        arguments = [postgres, "-D", str(data), "-k", str(folder)]
        for setting in (*_SETTINGS, *settings):
            arguments += ["-c", setting]
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(
                arguments, stdout=log, stderr=log, cwd=folder, preexec_fn=_end_with_parent, **as_user
            )
        server = PostgresServer(folder, process)
        try:
            _wait_until_ready(server, process)
            if copy_of is None:
                server.maintenance.execute(_ROLES)
            yield server
        finally:
            # A test may have started it again.
            running = server.process
            running.send_signal(signal.SIGQUIT)
            running.wait()
    finally:
        shutil.rmtree(folder)


def wait_for_backend(watcher: Connection[Any], query: str, waiting: bool = False) -> int:
    """The pid of the session that runs a query, once it does."""
    condition = " AND wait_event_type = 'Lock'" if waiting else ""
    statement = (
        "SELECT max(pid) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
        f" AND position(%s in query) > 0 AND pid <> pg_backend_pid(){condition}"
    )
    return int(wait_until(watcher, statement, query))


def wait_until(watcher: Connection[Any], statement: str, parameter: Any) -> Any:
    """Ask until the answer is true; the server has no event for it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        row = watcher.execute(statement, (parameter,)).fetchone()
        if row and row[0]:
            return row[0]
        time.sleep(0.02)
    raise AssertionError(f"never came true: {statement}")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _wait_until_ready(server: PostgresServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while True:
        try:
            server.maintenance.connect().close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (server.folder / "server.log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"PostgreSQL did not start:\n{log}") from None
            time.sleep(0.05)
        else:
            return
