"""Fixtures of the tests that need a real PostgreSQL 15."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from integration import postgres_server
from integration.backup_runs import candidate
from integration.crashes import PEOPLE, Job, Start, Truth, look, write_source
from integration.object_store import Bucket, Front, ObjectStore, running_object_store
from integration.postgres_server import Database, PostgresServer, running_server
from medianest_operator.api.run_options import RunOptions
from medianest_operator.backups.repository.client import Repository, open_folder
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.run.options import Workbench
from medianest_operator.migrations.run.run import MigrationRun
from medianest_operator.migrations.source import Migration, migrations_from_mapping
from medianest_operator.postgres.throwaway import BLANK, make_blank
from medianest_operator.results.migration import MigrationResult

Run = Callable[..., MigrationResult]


@pytest.fixture(scope="session", autouse=True)
def blank_cluster() -> Iterator[None]:
    """What throwaway servers begin with, as in the image, and those of the tests; child processes find it, too."""
    with tempfile.TemporaryDirectory(prefix="mn-blank-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        make_blank(folder / "data")
        (folder / "tests").mkdir()
        postgres_server.initialize(folder / "tests")
        blanks = {BLANK: folder / "data", postgres_server.BLANK: folder / "tests/data"}
        os.environ |= {name: str(path) for name, path in blanks.items()}
        yield
        for name in blanks:
            del os.environ[name]


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def empty(server: PostgresServer) -> Iterator[Database]:
    """A database as the operator makes it, before the first migration."""
    database = server.create_database()
    yield database
    server.drop_database(database)


@pytest.fixture
def target(server: PostgresServer) -> Iterator[Database]:
    """An empty database as the operator makes it for a restore in place."""
    database = candidate(server)
    yield database
    server.drop_database(database)


@pytest.fixture(scope="session")
def template(server: PostgresServer) -> Database:
    """The bundled schema, made once; no test works in it."""
    return bundled_template(server)


def bundled_template(server: PostgresServer) -> Database:
    """A database with the bundled schema, to be copied."""
    database = server.create_database(name="medianest_template")
    result = migrate(database, bundled_migrations())
    assert result.outcome == "Applied", result
    return database


@pytest.fixture
def medianest(server: PostgresServer, template: Database) -> Iterator[Database]:
    """A database with the bundled schema."""
    database = server.create_database(template.name)
    yield database
    server.drop_database(database)


@pytest.fixture
def people(medianest: Database) -> Database:
    """A database with two users and an admin, made by the application."""
    medianest.execute(
        """
        INSERT INTO users (id, email, role) VALUES
          ('ann', 'ann@example.org', 'user'), ('bob', 'bob@example.org', 'USER'), ('eve', 'eve@example.org', 'admin');
        INSERT INTO media_requests (id, user_id, title, media_type, status) VALUES
          ('r1', 'ann', 'Dune', 'movie', 'pending'), ('r2', 'bob', 'Andor', 'tv', 'completed');
        INSERT INTO session_tokens (id, user_id, token_hash, expires_at) VALUES ('s1', 'ann', 'hash', now());
        INSERT INTO service_config (service_name, service_url, updated_by) VALUES ('plex', 'http://plex', 'eve');
        """,
        user="medianest_app",
    )
    return medianest


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """An S3 server over TLS."""
    with running_object_store(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def bucket(object_store: ObjectStore) -> Bucket:
    return object_store.bucket()


@pytest.fixture
def front(object_store: ObjectStore) -> Iterator[Front]:
    """What spoils requests on their way to the server."""
    with Front(object_store) as running:
        yield running


@pytest.fixture(params=["folder", "bucket"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """What is tested with it holds for a folder and for a bucket."""
    if request.param == "folder":
        return open_folder(tmp_path / "backups", "folder")
    made: Bucket = request.getfixturevalue("bucket")
    return made.open()


@pytest.fixture
def room(tmp_path: Path) -> Path:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


@pytest.fixture
def start(medianest: Database, room: Path) -> Iterator[Start]:
    """Starts runs over a source; `None` is the bundled one, which holds nothing new."""
    jobs: list[Job] = []

    def begin(files: Mapping[str, str] | None, *arguments: str, rehearse: str = "Never") -> Job:
        source = None if files is None else write_source(room / f"source{len(jobs)}", files)
        jobs.append(Job(medianest, room, source, "--rehearse", rehearse, *arguments))
        return jobs[-1]

    medianest.execute(PEOPLE)
    yield begin
    for job in jobs:
        job.stop()


@pytest.fixture
def database(medianest: Database, start: Start) -> Database:
    return medianest


@pytest.fixture
def before(database: Database) -> Truth:
    return look(database)


def migrate(
    database: Database,
    source: tuple[Migration, ...] | Mapping[str, str | bytes],
    options: RunOptions | None = None,
    user: str = "medianest_migrator",
    folder: Path | None = None,
    report: Callable[[str], None] = print,
) -> MigrationResult:
    """Run migrations as the Job does, as the migrator role; with a folder, also its backup and its rehearsal."""
    migrations = migrations_from_mapping(source) if isinstance(source, Mapping) else source
    with database.connect(user) as connection:
        return MigrationRun(connection, migrations, options, report, workbench(database, folder, user)).run()


def workbench(database: Database, folder: Path | None, user: str = "medianest_migrator") -> Workbench:
    """Where a run's backups and copies go."""
    environment = database.environment(user)
    if folder is None:
        return Workbench(environment)
    (folder / "backups").mkdir(exist_ok=True)
    scratch = folder / "work"
    scratch.mkdir(exist_ok=True)
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.getuid() and path.is_relative_to(tempfile.gettempdir()):
            path.chmod(path.stat().st_mode | 0o055)
    return Workbench(environment, (open_folder(folder / "backups"),), scratch)


def write_folder(folder: Path, files: Mapping[str, str]) -> Path:
    """A migrations folder in Prisma's layout from `name -> SQL`."""
    for name, text in files.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "migration.sql").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass at once, as for a machine that was suspended."""
    passed = 0.0
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed)

    def skip(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    return skip
