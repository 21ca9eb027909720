"""What the tests of cut-off runs share: sources of several shapes, a writer that keeps account, an independent look.

Nothing here asks the code under test what the database looks like: pg_dump's text, md5 sums of the tables' rows and
psql say so.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, sql

from integration.forked import Dbctl
from integration.postgres_server import Database, binary, wait_for_backend, wait_until

OPERATOR = Path(__file__).parents[2] / "operator"
RUN = "medianest-dbctl migrate"
"""The application name of a run's own session."""

TRAP, GATE = 4711, 4712
"""Keys of advisory locks: one stops a run as it writes a step, one in the middle of a file."""
AT_THE_GATE = f"SELECT pg_advisory_xact_lock({GATE});\n"
FAILS = AT_THE_GATE + "SELECT 1/0;\n"
A, B, C = "20260101000000_a", "20260102000000_b", "20260103000000_c"
CONCURRENTLY = "CREATE INDEX CONCURRENTLY users_by_night ON users (name);\n"
"""Stands alone, so that what comes before it is committed."""
PATIENT = ("--lock-timeout", "60s")

RESTORING = "DO $clear$"
"""What a restore of everything begins with, in pg_stat_activity."""
NO_INVERSE = "ALTER TABLE users ALTER COLUMN email DROP NOT NULL;\n"
"""Nothing but that restore takes it back: rows may be there that the constraint would refuse."""

# The same rows in every database, times included.
PEOPLE = """
INSERT INTO users (id, email, created_at) SELECT 'u' || n, n || '@example.org', '2026-01-01'
  FROM generate_series(1, 200) n;
INSERT INTO media_requests (id, user_id, title, media_type, created_at)
SELECT 'm' || n, 'u' || n, 'Title ' || n, 'movie', '2026-01-01' FROM generate_series(1, 200) n;
"""

_A = "CREATE TABLE a (id text);\nALTER TABLE users ADD COLUMN nickname text NOT NULL DEFAULT '';\n"
_A_DOWN = "ALTER TABLE users DROP COLUMN nickname;\nDROP TABLE a;\n"
_B = "CREATE INDEX CONCURRENTLY users_nickname ON users (nickname);\n"
_C = "ALTER TABLE users ADD CONSTRAINT c CHECK (nickname <> 'nobody');\n"
_A_DATA = (
    "UPDATE users SET name = 'x';\nCOMMIT;\nCREATE TABLE kept (id text);\nUPDATE media_requests SET title = 'gone';\n"
)

SHAPES: Mapping[str, Mapping[str, str]] = {
    "one transaction": {
        "20260101000000_a": f"{_A}UPDATE users SET name = 'x';\n",
        "20260102000000_b": "CREATE INDEX users_nickname ON users (nickname);\nINSERT INTO a VALUES ('1');\n",
        "20260103000000_c": _C,
    },
    "concurrently in the middle": {"20260101000000_a": _A, "20260102000000_b": _B, "20260103000000_c": _C},
    "down scripts": {
        "20260101000000_a": _A,
        "20260101000000_a/down": _A_DOWN,
        "20260102000000_b": _B,
        "20260102000000_b/down": "DROP INDEX CONCURRENTLY users_nickname;\n",
        "20260103000000_c": _C,
    },
    "commit inside": {"20260101000000_a": _A_DATA, "20260102000000_b": _A, "20260103000000_c": _C},
    "concurrently at the end": {"20260101000000_a": _A, "20260102000000_b": _B},
}
"""Sources by what they are like, `name -> SQL`."""

STRATEGIES = {
    "one transaction": "Transaction",
    "concurrently in the middle": "Inverse",
    "down scripts": "Down",
    "commit inside": "Restore",
    "concurrently at the end": "Inverse",
}
"""How a failed run of each is rolled back."""


def bad(shape: str) -> dict[str, str]:
    """The shape, failing in its last file."""
    files = dict(SHAPES[shape])
    if shape == "concurrently at the end":
        files["20260102000000_b"] = "CREATE UNIQUE INDEX CONCURRENTLY users_status ON users (status);\n"
    else:
        files["20260103000000_c"] += "SELECT 1/0;\n"
    return files


def names(files: Mapping[str, str]) -> list[str]:
    return sorted(name for name in files if "/" not in name)


def write_source(folder: Path, files: Mapping[str, str]) -> Path:
    """The files as a folder in Prisma's layout, with the scripts that revert them beside them."""
    for name, text in files.items():
        path = folder / (f"{name}.sql" if "/" in name else f"{name}/migration.sql")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


class Job:
    """A running `medianest-dbctl migrate --once` with a folder for backups and one for copies."""

    def __init__(self, database: Database, room: Path, source: Path | None, *arguments: str) -> None:
        for name in ("backups", "work"):
            (room / name).mkdir(parents=True, exist_ok=True)
        self.database = database
        self.result_file = room / "result.json"
        self.result_file.unlink(missing_ok=True)
        where = ["--bundled"] if source is None else ["--source", str(source)]
        self.process = Dbctl(
            *("migrate", *where, "--once", "--repository", f"file://{room}/backups", "--work-dir", str(room / "work")),
            *("--result-file", str(self.result_file), *arguments),
            env={**os.environ, **database.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def kill(self) -> None:
        """As a node that loses its power does, then wait until the server has noticed."""
        self.process.kill()
        self.process.communicate()
        self.wait_until_forgotten()

    def wait_until_forgotten(self) -> None:
        with self.database.connect() as watcher:
            wait_until(
                watcher,
                "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'medianest_migrator'"
                " AND datname = %s)",
                self.database.name,
            )

    def wait_for_line(self, words: str) -> str:
        """Read what the run prints until a line holds these words; returns that line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if words in line:
                return line.rstrip("\n")
        raise AssertionError(f"it never said {words!r}")

    def end(self) -> tuple[int, dict[str, Any], str]:
        """The exit code, the result and what was printed."""
        output, _ = self.process.communicate(timeout=120)
        assert self.result_file.exists(), f"it ended with {self.process.returncode} and left no result:\n{output}"
        return self.process.returncode, json.loads(self.result_file.read_text()), output

    def stop(self) -> None:
        """Where a test ended before the run."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


Start = Callable[..., Job]
"""Starts a run over files, or over the bundled source for `None`."""


class Writer(threading.Thread):
    """The application at work: inserts numbered rows and remembers each commit that was acknowledged."""

    def __init__(self, database: Database, number: int = 0, updates: bool = False) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[str] = []
        self.held_off = 0
        """How often it lost its connection or got none."""
        self._database = database
        self._prefix = f"w:{number}:"
        self._updates = updates
        self._stop_now = threading.Event()
        self.first = threading.Event()
        """Set once the first row is there."""

    def run(self) -> None:
        next_number = 0
        while not self._stop_now.is_set():
            try:
                with self._database.connect("medianest_app") as connection:
                    while not self._stop_now.is_set():
                        next_number += 1
                        self._write(connection, f"{self._prefix}{next_number}")
                        self.first.set()
                        self._stop_now.wait(0.005)
            except psycopg.Error:
                self.held_off += 1
                self._stop_now.wait(0.02)

    def _write(self, connection: psycopg.Connection[Any], text: str) -> None:
        with connection.transaction():
            connection.execute("INSERT INTO rate_limits (user_id, endpoint) VALUES ('u1', %s)", (text,))
            if self._updates:
                connection.execute(
                    "UPDATE rate_limits SET request_count = request_count + 1 WHERE endpoint = %s", (text,)
                )
        self.acknowledged.append(text)

    def stop(self) -> None:
        self._stop_now.set()
        self.join(30)
        assert not self.is_alive()

    def lost(self) -> set[str]:
        """What was acknowledged and isn't there, or not as it was written."""
        count = 1 if self._updates else 0
        # It may be at work meanwhile.
        known = set(self.acknowledged)
        found = self._database.execute(f"SELECT endpoint FROM rate_limits WHERE request_count = {count}")
        return known - {row[0] for row in found}


@contextmanager
def writing(database: Database, writers: int = 1) -> Iterator[list[Writer]]:
    """Writers at work; every one has written once before the block begins. None is at work any more after it."""
    threads = [Writer(database, number, updates=number % 2 == 1) for number in range(writers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            assert thread.first.wait(30)
        yield threads
    finally:
        for thread in threads:
            thread.stop()


@dataclass(frozen=True)
class Truth:
    """A database by two independent means: pg_dump's text, and an md5 sum of each table's rows."""

    schema: str
    rows: Mapping[str, str]

    def difference(self, other: Truth) -> str:
        lines = set(self.schema.splitlines()) ^ set(other.schema.splitlines())
        rows = dict(set(self.rows.items()) ^ set(other.rows.items()))
        return f"{sorted(lines)} {rows}"


def look(database: Database) -> Truth:
    """The database now, without the run's own book-keeping and without what the writers wrote."""
    dumped = subprocess.run(
        [binary("pg_dump"), "--schema-only", "--exclude-schema=medianest_operator"],
        env={**os.environ, **database.environment("postgres")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # Newer pg_dumps put a random word around their text; and a run lets the operator's reader see the history, where
    # another test has left one on this server.
    reader = "GRANT SELECT ON TABLE public._prisma_migrations TO medianest_controller;"
    left_out = ("\\restrict", "\\unrestrict", reader)
    schema = "\n".join(line for line in dumped.splitlines() if not line.startswith(left_out))
    rows = {}
    with database.connect() as connection:
        found = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN"
            " ('pg_catalog', 'information_schema', 'medianest_operator') AND tablename <> '_prisma_migrations'"
        ).fetchall()
        for schema_name, table in found:
            query = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(schema_name, table))
            texts = sorted(row[0] for row in connection.execute(query).fetchall() if ",w:" not in row[0])
            rows[table] = hashlib.md5("\n".join(texts).encode(), usedforsecurity=False).hexdigest()
    return Truth(schema, rows)


def apply_by_psql(database: Database, files: Mapping[str, str]) -> None:
    """The files as they are, by PostgreSQL's own client."""
    for name in names(files):
        subprocess.run(
            [binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", files[name]],
            env={**os.environ, **database.environment()},
            check=True,
        )


def applied(database: Database, files: Mapping[str, str]) -> list[str]:
    """Which of the files the history calls applied."""
    rows = database.execute(
        "SELECT migration_name FROM _prisma_migrations WHERE finished_at IS NOT NULL AND rolled_back_at IS NULL"
    )
    return sorted({row[0] for row in rows} & set(names(files)))


def unresolved(database: Database) -> list[str]:
    """What the history holds as begun, neither finished nor rolled back: Prisma would refuse to go on."""
    rows = database.execute(
        "SELECT migration_name FROM _prisma_migrations WHERE finished_at IS NULL AND rolled_back_at IS NULL"
    )
    return [row[0] for row in rows]


def open_runs(database: Database) -> list[tuple[Any, ...]]:
    """The journal's rows without an end, or with one that isn't verified."""
    return database.execute(
        "SELECT id, step, ending FROM medianest_operator.migration_runs"
        " WHERE finished_at IS NULL OR ending = 'Unverified'"
    )


def assert_whole(
    database: Database, files: Mapping[str, str], before: Truth, after: Truth | None, writers: list[Writer]
) -> str:
    """The database is wholly at the new version or as it was, open to the application, and nothing is lost.

    Returns which.
    """
    now = look(database)
    done = applied(database, files)
    if after is not None and now == after:
        assert done == names(files)
        outcome = "applied"
    else:
        assert now == before, now.difference(before)
        assert done == []
        outcome = "rolled back and verified"
    assert unresolved(database) == []
    assert open_runs(database) == []
    for writer in writers:
        lost = writer.lost()
        assert not lost, f"{len(lost)} of {len(writer.acknowledged)} acknowledged writes are lost: {sorted(lost)[:9]}"
    database.execute("SELECT 1", user="medianest_app")
    return outcome


@contextmanager
def trap(database: Database, step: str) -> Iterator[Connection[None]]:
    """Hold up whoever writes this step into the journal, before it is committed."""
    with database.connect() as holder:
        holder.execute(
            "CREATE FUNCTION medianest_operator.trap() RETURNS trigger LANGUAGE plpgsql AS"
            f" 'BEGIN PERFORM pg_advisory_xact_lock({TRAP}); RETURN NEW; END';"
            "CREATE TRIGGER trap BEFORE UPDATE ON medianest_operator.migration_runs"
            f" FOR EACH ROW WHEN (NEW.step = '{step}') EXECUTE FUNCTION medianest_operator.trap()"
        )
        holder.execute("SELECT pg_advisory_lock(%s)", (TRAP,))
        yield holder
        holder.execute("DROP FUNCTION medianest_operator.trap() CASCADE")


@contextmanager
def gate(database: Database) -> Iterator[Connection[None]]:
    """Hold up the file that asks for the gate's lock."""
    with database.connect() as keeper:
        keeper.execute("SELECT pg_advisory_lock(%s)", (GATE,))
        yield keeper


@contextmanager
def at_the_gate(database: Database, start: Start, files: Mapping[str, str], *options: str) -> Iterator[Job]:
    """A run that stands at the gate while the block lasts, and goes on after it."""
    with gate(database) as keeper:
        job = start(files, *(options or PATIENT))
        wait_for_backend(keeper, f"lock({GATE})", waiting=True)
        yield job


def is_locked_out(database: Database) -> bool:
    """Whether the application is refused for want of the right to connect."""
    try:
        database.connect("medianest_app").close()
    except psycopg.OperationalError as error:
        return "permission denied for database" in str(error)
    return False


def end_under_a_reader(
    database: Database, start: Start, files: Mapping[str, str], *options: str
) -> tuple[int, dict[str, Any], str]:
    """A run that stood at the gate, and from then on to its end somebody reads `users` in an open transaction."""
    with gate(database) as keeper, database.connect() as reader:
        job = start(files, *options)
        with reader.transaction():
            wait_for_backend(keeper, f"lock({GATE})", waiting=True)
            reader.execute("LOCK TABLE users IN ACCESS SHARE MODE")
            keeper.execute("SELECT pg_advisory_unlock(%s)", (GATE,))
            return job.end()


def assert_next_run_rolls_back(database: Database, start: Start, files: Mapping[str, str], before: Truth) -> None:
    """The next run, of a source with nothing new, ends what an earlier one left, and lets the application in."""
    code, _, output = start(None).end()
    assert code == 0, output
    with writing(database) as writers:
        assert assert_whole(database, files, before, None, writers) == "rolled back and verified"


def gated(files: Mapping[str, str], name: str) -> dict[str, str]:
    """The files, one of which waits at the gate before its first statement."""
    return {**files, name: AT_THE_GATE + files[name]}


def end_sessions(watcher: Connection[None]) -> None:
    """What the server does by itself within two seconds of a client's death (test_migration_interruptions.py)."""
    wait_until(
        watcher,
        "SELECT NOT coalesce(bool_or(pg_terminate_backend(pid)), false) FROM pg_stat_activity"
        " WHERE datname = current_database() AND usename = %s",
        "medianest_migrator",
    )


def fail_unverified(database: Database, start: Start, shape: str) -> dict[str, str]:
    """A superuser's publication appears meanwhile, which no rollback of the migrator's removes."""
    files = {**SHAPES[shape], "20260103000000_c": AT_THE_GATE + "SELECT 1/0;\n"}
    with at_the_gate(database, start, files) as job:
        database.execute("CREATE PUBLICATION meanwhile")
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    return files
