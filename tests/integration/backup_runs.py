"""Runs of `medianest-dbctl` around backups, and what a database holds, told by other means than ours."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from psycopg import sql

from backup_documents import edit_document
from integration.forked import Dbctl, alone
from integration.postgres_server import Database, PostgresServer, binary
from medianest_operator.backups.repository.client import Repository, open_folder

OPERATOR = Path(__file__).resolve().parents[2] / "operator"
NAMESPACE, NAME = "media", "nest"
WHOSE = ("--namespace", NAMESPACE, "--name", NAME)
_LIMIT = 300

# As the operator makes the role, and a database of its own for each of its databases.
BACKUP_ROLE = """
CREATE ROLE medianest_backup LOGIN BYPASSRLS IN ROLE pg_read_all_data, pg_read_all_stats;
ALTER ROLE medianest_backup SET default_transaction_read_only = on;
"""

SAMPLE = """
INSERT INTO users (id, email, name) SELECT 'u' || n, 'user' || n || '@example.org', E'N\\u00e4me ''' || n
  FROM generate_series(1, 500) n;
INSERT INTO media_requests (id, user_id, title, media_type, status)
SELECT 'm' || n, 'u' || (n % 500 + 1), md5(n::text), 'movie', 'pending' FROM generate_series(1, 2000) n;
INSERT INTO error_logs (id, correlation_id, user_id, error_code, error_message, stack_trace, request_path,
                        request_method)
SELECT 'e' || n, md5(n::text), 'u1', 'E', 'failed', repeat(md5(n::text), 20), '/', 'GET' FROM generate_series(1, 500) n;
SELECT setval('rate_limits_id_seq', 41);
"""


@dataclass(frozen=True)
class Answer:
    """How a run ended.

    Attributes:
        code: its exit code.
        text: what it printed, on both streams.
        result: what it left for the operator; empty where nothing.
    """

    code: int
    text: str
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> tuple[int, str | None, str | None]:
        """Code, outcome and reason."""
        return self.code, self.result.get("outcome"), self.result.get("reason")


class Run:
    """A `medianest-dbctl` under way.

    Args:
        measured: as people start it, with no page of memory that others have, too.

    Attributes:
        lines: what it has printed so far.
    """

    def __init__(self, environment: dict[str, str], *arguments: str, folder: Path, measured: bool = False) -> None:
        self._result = folder / f"result-{time.monotonic_ns()}.json"
        result = [] if arguments[0] == "backups" else [f"--result-file={self._result}"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        start = alone if measured else Dbctl
        self.process = start(
            *(*arguments, *result),
            env={**inherited, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.lines: list[str] = []
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._said:
                self.lines.append(line)
                self._said.notify_all()
        with self._said:
            self._said.notify_all()

    def wait_for(self, word: str) -> None:
        """Until it has printed a word."""
        with self._said:
            found = self._said.wait_for(
                lambda: any(word in line for line in self.lines) or self.process.poll() is not None, _LIMIT
            )
            assert found, f"{word!r} never came:\n{''.join(self.lines)}"

    def children(self, name: str) -> list[int]:
        """The pids of its child processes of a name."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    found.append(int(pid))
        return found

    def send(self, number: signal.Signals) -> None:
        """A signal to it alone."""
        self.process.send_signal(number)

    def end(self) -> Answer:
        """Wait for its end."""
        code = self.process.wait(_LIMIT)
        self._reader.join()
        result = json.loads(self._result.read_text()) if self._result.exists() else {}
        if self._result.exists():
            assert self._result.stat().st_size <= 4096
        return Answer(code, "".join(self.lines), result)


@dataclass
class Bench:
    """A database with something in it, two places for backups, and room to work.

    Attributes:
        source: what is backed up.
        folder: everything lies below it.
        repositories: as command lines name them.
    """

    source: Database
    folder: Path
    repositories: list[str]

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def places(self) -> list[str]:
        """`--repository` for each."""
        return [word for text in self.repositories for word in ("--repository", text)]

    def open(self, number: int = 0) -> Repository:
        """A folder repository, to look into."""
        name, _, url = self.repositories[number].partition("=")
        return open_folder(Path(url.removeprefix("file://")), name)

    def start(
        self,
        *arguments: str,
        database: Database | None = None,
        user: str = "medianest_backup",
        measured: bool = False,
    ) -> Run:
        environment = (database or self.source).environment(user)
        return Run(environment, *arguments, folder=self.folder, measured=measured)

    def backup(self, *arguments: str, tier: str = "daily", user: str = "medianest_backup") -> Answer:
        """Take one of the source."""
        return self.start("backup", *self.places, *WHOSE, "--tier", tier, *arguments, user=user).end()

    def verify(self, *arguments: str) -> Answer:
        return self.start("verify", *self.places, *WHOSE, "--work-dir", str(self.work), *arguments).end()

    def restore(self, target: Database, *arguments: str, user: str = "medianest_migrator") -> Answer:
        command = ["restore", *self.places, *WHOSE, "--work-dir", str(self.work), *arguments]
        return self.start(*command, database=target, user=user).end()

    def listed(self) -> list[dict[str, Any]]:
        """All that the repositories hold."""
        answer = self.start("backups", "list", *self.places, "--output", "json").end()
        text = answer.text
        found: list[dict[str, Any]] = json.loads(text[text.index("{") : text.rindex("}") + 1])["backups"]
        return found

    def complete(self) -> list[str]:
        """The ids of the backups that count, once for each repository that has them."""
        return [item["id"] for item in self.listed() if item["state"] == "Complete"]


def new_bench(database: Database, room: Path, *places: str) -> Bench:
    """One for a database with rows of every sort.

    Args:
        room: a folder that the server's account may enter.
        places: the names of the repositories, folders in `room`.
    """
    add_backup_role(database.server)
    database.execute(SAMPLE)
    (room / "work").mkdir()
    (room / "work").chmod(0o777)
    return Bench(database, room, [f"{place}=file://{room}/{place}" for place in places])


def add_backup_role(server: PostgresServer) -> None:
    """Unless it is there."""
    if not server.maintenance.execute("SELECT 1 FROM pg_roles WHERE rolname = 'medianest_backup'"):
        server.maintenance.execute(BACKUP_ROLE)


def candidate(server: PostgresServer) -> Database:
    """An empty database as the operator makes one for a restore."""
    name = f"c_{time.monotonic_ns()}"
    with server.maintenance.connect() as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER medianest TEMPLATE template0").format(sql.Identifier(name))
        )
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
        connection.execute(
            sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO medianest_migrator").format(sql.Identifier(name))
        )
    return Database(server, name)


def contents(database: Database, schemas: Sequence[str] = ("public",)) -> dict[str, str]:
    """A digest of every table's rows in order, by psql's COPY, and where every sequence stands."""
    found = {}
    with database.connect() as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ANY(%s) ORDER BY 1, 2", (list(schemas),)
        ).fetchall()
        for schema, table in tables:
            digest = hashlib.md5(usedforsecurity=False)
            name = sql.Identifier(schema, table)
            query = sql.SQL('COPY (SELECT * FROM {} t ORDER BY t::text COLLATE "C") TO STDOUT').format(name)
            with connection.cursor().copy(query) as rows:
                for row in rows:
                    digest.update(row)
            found[f"{schema}.{table}"] = digest.hexdigest()
        for schema, sequence in connection.execute(
            "SELECT schemaname, sequencename FROM pg_sequences WHERE schemaname = ANY(%s)", (list(schemas),)
        ).fetchall():
            query = sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(schema, sequence))
            found[f"sequence {schema}.{sequence}"] = str(connection.execute(query).fetchone())
    return found


def definitions(database: Database, *options: str) -> str:
    """The schema as pg_dump writes it, less its random and its spoken lines."""
    command = [binary("pg_dump"), "--schema-only", "--exclude-schema=medianest_operator", *options]
    text = subprocess.run(
        command, env={**os.environ, **database.environment("postgres")}, capture_output=True, text=True, check=True
    ).stdout
    return "\n".join(line for line in text.splitlines() if not line.startswith(("--", "\\restrict", "\\unrestrict")))


def unpacked(path: Path) -> bytes:
    """What a stored file holds that isn't encrypted."""
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())


def replace_stored(path: Path, content: bytes, **more: object) -> None:
    """Put other bytes in a stored file's place, as whoever may write to the repository can: the manifest fits them.

    Args:
        more: what else the manifest says of the file then.
    """
    path.write_bytes(content)
    manifest = path.with_name("manifest.json")
    changed = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **more}

    def fit(document: dict[str, Any]) -> None:
        [file] = [file for file in document["files"] if file["name"] == path.name]
        file |= changed

    edit_document(manifest, fit)


def until(condition: Callable[[], bool]) -> None:
    """Look until something is so that has no event."""
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
