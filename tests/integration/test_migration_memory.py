"""What is remembered from one run to the next: failures, versions, backups, and what a run could not finish."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from integration.conftest import migrate
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions
from medianest_operator.backups.logical import premigration
from medianest_operator.backups.repository.client import RepositoryError, open_folder
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.run.evidence import application_catalog
from medianest_operator.migrations.source import Migration

NAME = "20260101120000_next"
ONCE = RunOptions(once=True, rehearse=Rehearse.NEVER)
RUNS = "SELECT count(*) FROM medianest_operator.migration_runs"
# Committed in the middle, so that only a backup leads back.
COMMITS = "UPDATE users SET name = 'gone';\nCOMMIT;\nSELECT 1/0;"


def plus(sql: str) -> tuple[Migration, ...]:
    """The bundled migrations and one more."""
    return (*bundled_migrations(), Migration.from_bytes(NAME, sql.encode()))


class TestOnce:
    """`--once`, with which the operator's Jobs run."""

    FAILING = {
        "reverted": ("SELECT 1/0", "MigrationFailed"),
        "refused by lint": ("ALTER SYSTEM SET work_mem = '1GB'", "StatementRefused"),
        "destructive": ("DROP TABLE error_logs", "DestructiveStatement"),
        "rolled back after the last look": (
            "DO $$ BEGIN EXECUTE 'DROP TABLE error_' || 'logs'; END $$",
            "DestructiveStatement",
        ),
    }

    @pytest.mark.parametrize(("sql", "reason"), FAILING.values(), ids=FAILING.keys())
    def test_what_failed_is_told_again_and_not_tried(self, medianest: Database, sql: str, reason: str) -> None:
        first = migrate(medianest, plus(sql), ONCE)
        assert (first.outcome, first.reason) == ("Failed", reason), first
        runs = medianest.execute(RUNS)
        history = medianest.execute("SELECT count(*) FROM _prisma_migrations")
        lines: list[str] = []

        again = migrate(medianest, plus(sql), ONCE, report=lines.append)

        assert lines == ["this source has failed before and hasn't changed since; it is not tried again"]
        assert (again.outcome, again.reason, again.message) == (first.outcome, first.reason, first.message)
        assert (again.failed, again.rollback, again.pending) == (first.failed, first.rollback, first.pending)
        assert medianest.execute(RUNS) == runs
        assert medianest.execute("SELECT count(*) FROM _prisma_migrations") == history

    def test_another_retry_id_or_another_content_is_tried(self, medianest: Database) -> None:
        assert migrate(medianest, plus("SELECT 1 / count(*) FROM users"), ONCE).outcome == "Failed"
        medianest.execute("INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org')", user="medianest_app")
        # The data would do now, but nobody has said so.
        assert migrate(medianest, plus("SELECT 1 / count(*) FROM users"), ONCE).outcome == "Failed"
        again = RunOptions(once=True, rehearse=Rehearse.NEVER, retry="2")
        assert migrate(medianest, plus("SELECT 1 / count(*) FROM users"), again).outcome == "Applied"

    def test_a_changed_file_is_tried(self, medianest: Database) -> None:
        assert migrate(medianest, plus("SELECT 1/0"), ONCE).outcome == "Failed"
        assert migrate(medianest, plus("SELECT 1/1"), ONCE).outcome == "Applied"

    def test_without_it_everything_is_tried(self, medianest: Database) -> None:
        options = RunOptions(rehearse=Rehearse.NEVER)
        assert migrate(medianest, plus("SELECT 1 / count(*) FROM users"), options).outcome == "Failed"
        medianest.execute("INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org')", user="medianest_app")
        assert migrate(medianest, plus("SELECT 1 / count(*) FROM users"), options).outcome == "Applied"

    def test_what_may_pass_by_itself_is_tried(self, medianest: Database) -> None:
        sql = "DO $$ BEGIN IF (SELECT count(*) = 0 FROM users) THEN RAISE SQLSTATE '40P01'; END IF; END $$"
        options = RunOptions(once=True, rehearse=Rehearse.NEVER, lock_attempts=1)
        assert migrate(medianest, plus(sql), options).outcome == "Transient"
        medianest.execute("INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org')", user="medianest_app")
        assert migrate(medianest, plus(sql), options).outcome == "Applied"


def test_the_journal_keeps_fifty_runs(medianest: Database) -> None:
    medianest.execute(
        "INSERT INTO medianest_operator.migration_runs (id, source, step, plan, started_at, finished_at, ending,"
        " before) SELECT gen_random_uuid(), 'old', 'Finished', '{}', now() - n * interval '1 day', now(), 'Applied',"
        " '{}' FROM generate_series(1, 70) n"
    )
    assert migrate(medianest, plus("SELECT 1")).outcome == "Applied"
    [(runs, oldest, with_evidence)] = medianest.execute(
        "SELECT count(*), now() - min(started_at) < interval '51 days', count(before) FROM"
        " medianest_operator.migration_runs"
    )
    # The fifty from before, and the one that has just run.
    assert (runs, oldest, with_evidence) == (51, True, 1)


class TestVersions:
    """What drift is measured against."""

    @pytest.fixture
    def drifted(self, medianest: Database) -> Database:
        medianest.execute("SET ROLE medianest; ALTER TABLE users ADD COLUMN nickname text")
        return medianest

    def test_a_run_without_drift_records_what_it_made(self, medianest: Database) -> None:
        assert recorded(medianest)["20250905150611_add_password_hash_to_users"] == "run"
        migrate(medianest, plus("CREATE TABLE notes (id text)"))
        assert recorded(medianest)[NAME] == "run"
        assert knows(medianest, NAME, "notes")

    def test_drift_is_warned_of_and_not_taken_for_the_migrations(self, drifted: Database, tmp_path: Path) -> None:
        lines: list[str] = []
        result = migrate(drifted, plus("CREATE TABLE notes (id text)"), folder=tmp_path, report=lines.append)
        assert result.outcome == "Applied"
        assert "warning: drift: table users: column nickname (text) is not expected" in lines
        assert recorded(drifted)[NAME] == "replay"
        assert knows(drifted, NAME, "notes")
        assert not knows(drifted, NAME, "nickname")

    def test_without_room_for_a_replay_the_database_is_taken_at_its_word(self, drifted: Database) -> None:
        assert migrate(drifted, plus("CREATE TABLE notes (id text)")).outcome == "Applied"
        assert recorded(drifted)[NAME] == "observed"
        assert knows(drifted, NAME, "nickname")

    def test_what_was_merely_seen_is_replaced_once_it_can_be_replayed(self, drifted: Database, tmp_path: Path) -> None:
        migrate(drifted, plus("CREATE TABLE notes (id text)"))
        assert migrate(drifted, plus("CREATE TABLE notes (id text)"), folder=tmp_path).reason == "UpToDate"
        assert recorded(drifted)[NAME] == "replay"
        assert not knows(drifted, NAME, "nickname")


class TestBackups:
    """The pre-migration backup."""

    @pytest.fixture
    def taken(self, people: Database, tmp_path: Path) -> Path:
        """A folder in which a run has left its backup."""
        assert migrate(people, plus("SELECT 1"), RunOptions(rehearse=Rehearse.NEVER), folder=tmp_path).backup
        return tmp_path

    def test_the_last_three_stay(self, people: Database, tmp_path: Path) -> None:
        taken = []
        source = list(bundled_migrations())
        for day in range(1, 6):
            source.append(Migration.from_bytes(f"2026020{day}000000_n", b"SELECT 1"))
            taken.append(migrate(people, tuple(source), RunOptions(rehearse=Rehearse.NEVER), folder=tmp_path).backup)
        repository = open_folder(tmp_path / "backups")
        kept = [item.path for item in repository.list() if item.path.endswith("/data.dump.zst")]
        assert len(kept) == 3
        assert taken[-1] in kept
        assert set(kept) <= set(taken)
        for path in kept:
            assert list(premigration.read([repository], path))

    def test_the_manifest_says_what_is_in_it(self, taken: Path) -> None:
        [manifest] = (taken / "backups").rglob("manifest.json")
        document = json.loads(manifest.read_text())
        assert document["schema_version"] == "20250905150611_add_password_hash_to_users"
        assert document["rows"]["users"] == 3
        assert document["files"][0]["bytes"] == (manifest.parent / "data.dump.zst").stat().st_size
        assert document["origin"]["namespace"] == "local"
        assert {"medianest", "medianest_app"} <= {role["name"] for role in document["roles"]}

    @pytest.mark.parametrize("damage", ["flipped", "cut", "manifest", "gone"])
    def test_damage_is_found(self, taken: Path, damage: str) -> None:
        [dump] = (taken / "backups").rglob("data.dump.zst")
        content = bytearray(dump.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 1
            dump.write_bytes(content)
        elif damage == "cut":
            dump.write_bytes(content[:-1])
        elif damage == "manifest":
            (dump.parent / "manifest.json").unlink()
        else:
            dump.unlink()
        path = str(dump.relative_to(taken / "backups"))
        with pytest.raises(RepositoryError, match=path.rpartition("/")[0]):
            list(premigration.read([open_folder(taken / "backups")], path))

    @pytest.fixture
    def full(self, tmp_path: Path) -> Iterator[Path]:
        """A folder in which the backups' place has 64 KiB."""
        yield from _mounted(tmp_path, "size=64k")

    @pytest.fixture
    def read_only(self, tmp_path: Path) -> Iterator[Path]:
        yield from _mounted(tmp_path, "ro,size=1m")

    @pytest.mark.parametrize(
        ("place", "words"), [("full", "no space is left"), ("read_only", "the file system is read-only")]
    )
    def test_no_backup_no_run(self, people: Database, place: str, words: str, request: pytest.FixtureRequest) -> None:
        folder: Path = request.getfixturevalue(place)
        # Noise, which no compression makes fit.
        people.execute(
            "INSERT INTO error_logs (id, correlation_id, user_id, error_code, error_message, request_path,"
            " request_method, status_code) SELECT n, n, 'ann', 'E', (SELECT string_agg(md5(n || ' ' || m), '') FROM"
            " generate_series(1, 100) m), '/', 'GET', 500 FROM generate_series(1, 100) n"
        )
        before = catalog(people)
        result = migrate(people, plus("CREATE TABLE notes (id text)"), folder=folder)
        assert (result.outcome, result.reason) == ("Transient", "BackupFailed"), result
        assert words in result.message
        assert result.message.endswith("Nothing was changed; trying again.")
        assert catalog(people) == before
        people.execute("SELECT 1", user="medianest_app")


def test_restore_that_fails_keeps_writers_off_until_the_next_run_has_finished_it(
    people: Database, tmp_path: Path
) -> None:
    before = catalog(people)
    hidden = tmp_path / "hidden"

    def hide_backup(line: str) -> None:
        if line.startswith("restoring "):
            shutil.move(tmp_path / "backups" / "local", hidden)

    result = migrate(people, plus(COMMITS), ONCE, folder=tmp_path, report=hide_backup)
    assert (result.outcome, result.reason) == ("Transient", "RollbackUnfinished"), result
    assert result.message.startswith("The application is locked out of its database. ")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        people.execute("SELECT 1", user="medianest_app")

    shutil.move(hidden, tmp_path / "backups" / "local")
    lines: list[str] = []
    assert migrate(people, plus("SELECT 1"), ONCE, folder=tmp_path, report=lines.append).outcome == "Applied"
    assert "rolled back by restore: catalog, row counts and contents equal those before (verified)" in lines
    assert catalog(people) == before
    assert people.execute("SELECT count(*) FROM users WHERE name = 'gone'", user="medianest_app") == [(0,)]


def _mounted(folder: Path, options: str) -> Iterator[Path]:
    """A folder whose place for backups is a file system of its own."""
    place = folder / "backups"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(place)], check=True)


def recorded(database: Database) -> dict[str, str]:
    """Each recorded version and where it comes from."""
    return dict(database.execute("SELECT version, origin FROM medianest_operator.schema_versions"))


def knows(database: Database, version: str, word: str) -> bool:
    """Whether the recorded schema of a version has something of that name."""
    rows = database.execute(
        f"SELECT position('\"{word}\"' in catalog::text) > 0 FROM medianest_operator.schema_versions"
        f" WHERE version = '{version}'"
    )
    return bool(rows[0][0])


def catalog(database: Database) -> str:
    with database.connect() as connection:
        return application_catalog(connection).fingerprint()
