"""The damage table: however a backup is spoiled, it is said clearly, nothing half counts, and the last good one is
still there and can be restored."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest

from integration.backup_arena import Arena, Making, Stored, failed
from integration.backup_damage import IN_THE_MIDDLE, MAKING, server_stops
from integration.backup_damage_stored import STORED
from integration.backup_runs import SAMPLE, Bench, add_backup_role, contents
from integration.conftest import migrate
from integration.object_store import Bucket
from integration.postgres_server import Database, PostgresServer, running_server
from medianest_operator.migrations.bundled import bundled_migrations

# Some 60 MB that pg_dump takes a few seconds for.
_MUCH = """
INSERT INTO error_logs (id, correlation_id, user_id, error_code, error_message, stack_trace, request_path,
                        request_method)
SELECT 'big' || n, md5(n::text), 'u1', 'E', 'failed',
       (SELECT string_agg(md5(n || ' ' || l), '') FROM generate_series(1, 60) l), '/', 'GET'
  FROM generate_series(1, 20000) n
"""


def opened(folder: Path) -> Path:
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(path.stat().st_mode | 0o055)
    (folder / "work").mkdir()
    (folder / "work").chmod(0o777)
    return folder


def arena(database: Database, folder: Path) -> Arena:
    bench = Bench(database, folder, [f"main=file://{folder}/main"])
    made = Arena(bench, "", contents(database))
    result = made.backup()
    assert result.outcome == "Succeeded", result
    made.good = result.more["backup"]
    return made


@pytest.fixture(scope="module")
def database(server: PostgresServer, template: Database) -> Iterator[Database]:
    add_backup_role(server)
    made = server.create_database(template.name)
    made.execute(SAMPLE)
    yield made
    server.drop_database(made)


@pytest.fixture(scope="module")
def large(server: PostgresServer, template: Database) -> Iterator[Database]:
    add_backup_role(server)
    made = server.create_database(template.name)
    made.execute(SAMPLE)
    made.execute(_MUCH)
    yield made
    server.drop_database(made)


@pytest.fixture(scope="module")
def two(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """Two good backups, of which each test spoils a copy of the second."""
    folder = opened(tmp_path_factory.mktemp("stored"))
    made = arena(database, folder)
    database.execute("INSERT INTO users (id, email) VALUES ('later', 'later@example.org')")
    made.spoiled = str(made.backup().more["backup"])
    return made


@pytest.fixture(scope="module")
def one_large(large: Database, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return arena(large, opened(tmp_path_factory.mktemp("large")))


def copied(original: Arena, folder: Path) -> Arena:
    shutil.copytree(original.folder, opened(folder) / "main")
    bench = Bench(original.bench.source, folder, [f"main=file://{folder}/main"])
    return Arena(bench, original.good, original.truth, original.spoiled)


def check_good(after: Arena) -> None:
    """The last good one is there and comes back, told by other means than ours."""
    result, found = after.restore(after.good)
    assert result.outcome == "Succeeded", result
    assert found == after.truth


@pytest.mark.parametrize("damage", STORED, ids=lambda damage: damage.name)
def test_a_backup_that_was_damaged(damage: Stored, two: Arena, tmp_path: Path) -> None:
    spoiled = copied(two, tmp_path)
    damage.spoil(spoiled)
    result, found = spoiled.restore(spoiled.spoiled)
    failed(result, damage.reason, damage.words, outcome="Failed")
    # Only reading all of it, or comparing it, has shown that: nobody has seen the database by then.
    assert found == {} or damage.reason in ("NotEqual", "RestoreFailed")
    assert spoiled.good in spoiled.bench.complete()
    if damage.reason in ("BackupDamaged", "NotEqual", "RestoreFailed"):
        # Nobody sees this before it is read: a verification does, and from then on it isn't the latest.
        answer = spoiled.bench.verify("--backup", spoiled.spoiled)
        assert answer.told == (1, "Failed", "VerificationFailed"), answer.text
    if damage.reason == "UnsupportedVersion":
        check_good(spoiled)
        return
    latest, found = spoiled.restore("latest")
    assert (latest.outcome, latest.more["backup"]) == ("Succeeded", spoiled.good), latest
    assert found == spoiled.truth


def test_a_wrong_key(two: Arena, tmp_path: Path) -> None:
    spoiled = copied(two, tmp_path)
    right, wrong = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    encrypted = str(spoiled.backup(recipients=[str(right.to_public())]).more["backup"])
    result, found = spoiled.restore(encrypted, str(wrong))
    failed(result, "DecryptionFailed", "another key", outcome="Failed")
    assert found == {}
    spoiled.spoiled = encrypted
    data = bytearray(spoiled.file("data.dump.zst.age").read_bytes())
    data[len(data) // 2] ^= 1
    spoiled.file("data.dump.zst.age").write_bytes(data)
    result, found = spoiled.restore(encrypted, str(right))
    failed(result, "BackupDamaged", "SHA-256", outcome="Failed")
    assert found == {}
    check_good(spoiled)


def _check(damage: Making, spoiled: Arena) -> None:
    complete = spoiled.bench.complete()
    assert spoiled.good in complete
    if damage.backups:
        assert len(complete) == damage.backups, spoiled.bench.listed()
    states = {item["state"] for item in spoiled.bench.listed()}
    assert states <= {"Complete", "Incomplete"}
    for backup in complete:
        result, found = spoiled.restore(backup)
        assert result.outcome == "Succeeded", result
        assert backup != spoiled.good or found == spoiled.truth
    # The next one is a backup like any other.
    assert spoiled.backup().outcome == "Succeeded"


@pytest.mark.parametrize("damage", MAKING, ids=lambda damage: damage.name)
def test_a_backup_that_was_disturbed(damage: Making, database: Database, bucket: Bucket, tmp_path: Path) -> None:
    spoiled = arena(database, opened(tmp_path))
    spoiled.store = bucket
    with spoiled.stack:
        damage.spoil(spoiled)
    _check(damage, spoiled)


@pytest.mark.parametrize("damage", IN_THE_MIDDLE, ids=lambda damage: damage.name)
def test_a_backup_that_was_disturbed_in_the_middle(damage: Making, one_large: Arena, tmp_path: Path) -> None:
    spoiled = copied(one_large, tmp_path)
    with spoiled.stack:
        damage.spoil(spoiled)
    _check(damage, spoiled)


class TestServersOfTheirOwn:
    """What stops or promotes servers."""

    @pytest.fixture
    def primary(self) -> Iterator[Database]:
        with running_server() as server:
            add_backup_role(server)
            database = server.create_database()
            assert migrate(database, bundled_migrations()).outcome == "Applied"
            database.execute(SAMPLE)
            database.execute(_MUCH)
            yield database

    def test_the_primary_stops_during_the_dump(self, primary: Database, server: PostgresServer, tmp_path: Path) -> None:
        spoiled = arena(primary, opened(tmp_path))
        server_stops(spoiled)
        spoiled.bench.source = Database(server, "postgres")
        assert spoiled.bench.complete() == [spoiled.good]
        check_good(spoiled)

    def test_a_failover_during_the_dump_of_the_replica(self, primary: Database, tmp_path: Path) -> None:
        """The snapshot outlives the promotion: what was begun on the replica is a good backup."""
        with running_server(copy_of=(primary.server, "nest_2")) as replica:
            spoiled = arena(primary, opened(tmp_path))
            run = spoiled.start_and_wait("--replica-host", str(replica.folder))
            replica.maintenance.execute("SELECT pg_promote()")
            answer = run.end()
            assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
            assert answer.result["source"] == "replica nest-2"
            result, found = spoiled.restore(answer.result["backup"])
            assert result.outcome == "Succeeded", result
            assert found == spoiled.truth
            check_good(spoiled)

    def test_the_replica_stops_during_the_dump(self, primary: Database, tmp_path: Path) -> None:
        with running_server(copy_of=(primary.server, "nest_3")) as replica:
            spoiled = arena(primary, opened(tmp_path))
            run = spoiled.start_and_wait("--replica-host", str(replica.folder))
            replica.process.kill()
            answer = run.end()
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
        assert answer.result["source"] == "primary"
        assert "now from the primary" in answer.text
        assert sorted(spoiled.bench.complete()) == sorted([spoiled.good, answer.result["backup"]])
        check_good(spoiled)

    def test_a_replica_that_has_to_go_on_replaying(self, primary: Database, tmp_path: Path) -> None:
        delay = "max_standby_streaming_delay=100ms"
        with running_server(delay, copy_of=(primary.server, "nest_4")) as replica:
            spoiled = arena(primary, opened(tmp_path))
            run = spoiled.start_and_wait("--replica-host", str(replica.folder))
            primary.execute("ALTER TABLE error_logs ADD COLUMN extra text")
            answer = run.end()
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
        assert answer.result["source"] == "primary"
        assert "recovery" in answer.text
        check_good(spoiled)
