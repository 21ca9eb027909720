"""`medianest-dbctl backup`, `backups list`, `verify` and `restore` against real servers."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyrage
import pytest

from backup_documents import edit_document
from integration.backup_runs import (
    NAME,
    NAMESPACE,
    WHOSE,
    Bench,
    Run,
    add_backup_role,
    candidate,
    contents,
    definitions,
    new_bench,
    unpacked,
    until,
)
from integration.postgres_server import Database, PostgresServer, running_server
from integration.slow_network import slow_network
from medianest_operator.backups.logical import server as backups_server
from medianest_operator.backups.logical.run import BackupOptions, BackupRun
from medianest_operator.backups.repository.catalog import Catalog
from medianest_operator.backups.repository.client import open_folder
from medianest_operator.backups.repository.layout import Tier
from medianest_operator.migrations.bundled import bundled_migrations


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main", "far")


def test_a_backup_comes_back_as_it_was_with_owners_and_rights(bench: Bench, target: Database) -> None:
    bench.source.execute(
        'CREATE SCHEMA extra AUTHORIZATION medianest; CREATE TABLE extra."Odd ""Name" (id bigserial, t text);'
        ' ALTER TABLE extra."Odd ""Name" OWNER TO medianest;'
        " INSERT INTO extra.\"Odd \"\"Name\" (t) VALUES ('a'), ('b');"
        " CREATE POLICY own ON users USING (id = current_user); ALTER TABLE users ENABLE ROW LEVEL SECURITY;"
        " CREATE EXTENSION pg_trgm; CREATE INDEX users_trgm ON users USING gin (email gin_trgm_ops);"
        " CREATE TABLE medianest_operator.journal (t text)"
    )
    taken = bench.backup("--format", "custom", "--format", "plain", "--format", "schema")
    assert taken.told == (0, "Succeeded", "Succeeded"), taken.text
    assert taken.result["repositories"] == {"main": {"ok": True}, "far": {"ok": True}}
    assert taken.result["source"] == "primary"
    assert {item["count"] for item in taken.result["catalog"].values()} == {1}
    restored = bench.restore(target)
    assert restored.told == (0, "Succeeded", "Succeeded"), restored.text
    assert "exactly" in restored.result["message"]
    schemas = ("public", "extra")
    assert contents(target, schemas) == contents(bench.source, schemas)
    assert definitions(target) == definitions(bench.source)
    assert target.execute("SELECT to_regclass('medianest_operator.journal')") == [(None,)]
    assert target.execute("SELECT count(*) > 10 FROM pg_stats WHERE schemaname = 'public'") == [(True,)]


def test_the_plain_format_is_sql_that_psql_would_run(bench: Bench) -> None:
    assert bench.backup("--format", "custom", "--format", "plain", "--format", "schema").code == 0
    folder = next((bench.folder / "main").rglob("manifest.json")).parent
    plain = unpacked(folder / "data.sql.zst").decode()
    assert plain.count("user500@example.org") == 1
    assert "-- PostgreSQL database dump complete" in plain
    schema = unpacked(folder / "schema.sql.zst").decode()
    assert "CREATE TABLE public.users" in schema
    assert "user500@example.org" not in schema


def test_what_is_written_meanwhile_belongs_to_the_next_backup(bench: Bench, target: Database) -> None:
    """Rows, sequences and the dump are of one moment, whatever is written beside them."""
    run = bench.start("backup", *bench.places, *WHOSE, "--tier", "daily", "--verify", "--work-dir", str(bench.work))
    with bench.source.connect("medianest_app") as writer:
        number = 0
        while run.process.poll() is None:
            number += 1
            writer.execute("INSERT INTO users (id, email) VALUES (%s, %s)", (f"w{number}", f"w{number}@example.org"))
            writer.execute("SELECT nextval('rate_limits_id_seq')")
    answer = run.end()
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["verification"]["ok"] is True
    assert number > 1


def test_nothing_is_lost_where_roles_are_missing_but_owners_and_rights(bench: Bench) -> None:
    bench.source.execute("CREATE POLICY own ON users TO medianest_app USING (true)")
    assert bench.backup().code == 0
    with running_server(own_identifier=True) as other:
        other.maintenance.execute("DROP ROLE medianest_app; DROP ROLE medianest_migrator; CREATE ROLE someone LOGIN;")
        other.maintenance.execute("CREATE DATABASE fresh OWNER someone TEMPLATE template0")
        fresh = Database(other, "fresh")
        answer = bench.restore(fresh, user="someone")
        assert answer.told == (1, "Failed", "RestoreFailed"), answer.text
        assert "medianest_app" in answer.result["message"]
        bench.source.execute("DROP POLICY own ON users")
        assert bench.backup().code == 0
        other.maintenance.execute("DROP DATABASE fresh")
        other.maintenance.execute("CREATE DATABASE fresh OWNER someone TEMPLATE template0")
        answer = bench.restore(fresh, user="someone")
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
        assert "belongs to someone" in answer.result["message"]
        assert contents(fresh) == contents(bench.source)
        bare = ("--no-owner", "--no-privileges")
        assert definitions(fresh, *bare) == definitions(bench.source, *bare)
        owners = fresh.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert owners == [("someone",)]


def test_a_laptop_makes_the_database_itself_and_takes_it_away_again(bench: Bench, server: PostgresServer) -> None:
    assert bench.backup().code == 0
    with running_server(own_identifier=True) as other:
        fresh = Database(other, "fresh")
        answer = bench.restore(fresh, "--create", user="postgres")
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
        assert contents(fresh) == contents(bench.source)
        again = bench.restore(fresh, "--create", user="postgres")
        assert again.told == (1, "Failed", "TargetNotEmpty"), again.text
        assert contents(fresh) == contents(bench.source)
        dump = next((bench.folder / "main").rglob("data.dump.zst"))
        stored = dump.read_bytes()
        dump.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
        bench.repositories = bench.repositories[:1]
        third = bench.restore(Database(other, "third"), "--create", user="postgres")
        assert third.told == (1, "Failed", "BackupDamaged"), third.text
        assert other.maintenance.execute("SELECT 1 FROM pg_database WHERE datname = 'third'") == []


def test_the_second_repository_helps_where_the_first_is_damaged(bench: Bench, target: Database) -> None:
    assert bench.backup().code == 0
    dump = next((bench.folder / "main").rglob("data.dump.zst"))
    dump.write_bytes(b"x" * dump.stat().st_size)
    answer = bench.restore(target)
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["repository"] == "far"
    assert contents(target) == contents(bench.source)


def test_only_whoever_has_the_key_can_read_an_encrypted_backup(bench: Bench, target: Database) -> None:
    key, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    for name, identity in (("key", key), ("other", other)):
        (bench.folder / name).write_text(f"# created by age\n{identity}\n")
    taken = bench.backup("--recipient", str(key.to_public()), "--format", "custom", "--format", "plain")
    assert taken.code == 0, taken.text
    stored = list((bench.folder / "main").rglob("*.age"))
    assert sorted(path.name for path in stored) == ["catalog.json.gz.age", "data.dump.zst.age", "data.sql.zst.age"]
    assert all(path.read_bytes().startswith(b"age-encryption.org") for path in stored)
    for arguments, word in ((), "private key"), (("--identity-file", str(bench.folder / "other")), "another key"):
        answer = bench.restore(target, *arguments)
        assert answer.told == (1, "Failed", "DecryptionFailed"), answer.text
        assert word in answer.result["message"]
        assert answer.result["message"].count("AGE-SECRET") == 0
    verified = bench.verify("--identity-file", str(bench.folder / "key"))
    assert verified.told == (0, "Succeeded", "Succeeded"), verified.text
    answer = bench.restore(target, "--identity-file", str(bench.folder / "key"))
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert contents(target) == contents(bench.source)


def test_a_verification_is_noted_and_takes_turns_among_the_repositories(bench: Bench) -> None:
    assert bench.backup().code == 0
    first, second = bench.verify(), bench.verify()
    assert first.told == second.told == (0, "Succeeded", "Succeeded"), first.text + second.text
    assert {first.result["repository"], second.result["repository"]} == {"main", "far"}
    assert set(first.result["seconds"]) == {"download", "restore", "compare", "amcheck"}
    assert first.result["catalog"][first.result["repository"]]["lastVerified"]["backup"] == first.result["backup"]
    assert [item["verification"]["ok"] for item in bench.listed()] == [True, True]
    for stored in bench.listed():
        [[id_, size, verified, later]] = second.result["catalog"][stored["repository"]]["newest"]
        assert (id_, size, verified) == (stored["id"], stored["bytes"], True)
        assert 0 < later < 60
    assert list(bench.work.iterdir()) == []


def test_a_copy_with_other_bytes_is_told_although_another_is_good(bench: Bench) -> None:
    assert bench.backup().code == 0
    [dump] = (bench.folder / "far").rglob("data.dump.zst")
    stored = bytearray(dump.read_bytes())
    stored[len(stored) // 2] ^= 1
    dump.write_bytes(stored)
    answer = bench.verify()
    assert answer.told == (1, "Failed", "VerificationFailed"), answer.text
    assert "far" in answer.result["message"]
    assert {item["repository"]: item["verification"]["ok"] for item in bench.listed()} == {"main": True, "far": False}
    # The good one is what is restored from.
    assert bench.backup("--verify", "--work-dir", str(bench.work)).code == 0


def test_a_backup_that_is_not_what_its_manifest_says_is_marked(bench: Bench) -> None:
    """As if rows had been lost on the way: files and sums fit, what is in them doesn't."""
    bench.repositories = bench.repositories[:1]
    assert bench.backup().code == 0
    path = next((bench.folder / "main").rglob("manifest.json"))
    edit_document(path, lambda document: document["rows"].update(users=501))
    answer = bench.verify()
    assert answer.told == (1, "Failed", "VerificationFailed"), answer.text
    assert "table users holds 500 rows, expected 501" in answer.result["message"]
    listed = bench.listed()
    assert [(item["state"], item["verification"]["ok"]) for item in listed] == [("Complete", False)]
    newer = bench.backup("--verify", "--work-dir", str(bench.work))
    assert newer.result["verification"]["ok"] is True
    assert newer.result["backup"] != listed[0]["id"]


def test_a_failed_verification_of_its_own_fails_the_backup_but_leaves_it(bench: Bench) -> None:
    (bench.work / "file").touch()
    bench.repositories = bench.repositories[:1]
    answer = bench.backup("--verify", "--work-dir", str(bench.work / "file"))
    assert answer.code != 0
    assert answer.result["verification"]["ok"] is False
    assert "is stored, but not verified" in answer.result["message"]
    assert [(item["state"], item["verification"]) for item in bench.listed()] == [("Complete", None)]


@pytest.fixture(scope="module")
def replica(server: PostgresServer) -> Iterator[PostgresServer]:
    with running_server(
        copy_of=(server, "nest_1"),
    ) as running:
        yield running


def test_a_replica_in_sync_is_dumped(bench: Bench, replica: PostgresServer, target: Database) -> None:
    bench.source.execute("INSERT INTO users (id, email) VALUES ('last', 'last@example.org')")
    answer = bench.backup("--replica-host", str(replica.folder))
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["source"] == "replica nest-1"
    assert bench.restore(target).code == 0
    assert contents(target) == contents(bench.source)


def test_the_primary_is_dumped_where_a_replica_lacks_rows(bench: Bench, replica: PostgresServer) -> None:
    bench.source.execute("CREATE UNLOGGED TABLE scratch (n int); INSERT INTO scratch VALUES (1)")
    answer = bench.backup("--replica-host", str(replica.folder))
    assert answer.result["source"] == "primary", answer.text
    assert "unlogged" in answer.text
    answer = bench.backup("--replica-host", str(bench.folder))
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["source"] == "primary"
    assert "no replica" in answer.text


def test_a_replica_that_is_behind_is_not_dumped(bench: Bench, replica: PostgresServer) -> None:
    # The database itself has to be there, and the role that reads it.
    [(there,)] = bench.source.execute("SELECT pg_current_wal_lsn()::text")
    until(lambda: replica.maintenance.execute(f"SELECT pg_last_wal_replay_lsn() >= '{there}'") == [(True,)])
    replica.maintenance.execute("SELECT pg_wal_replay_pause()")
    try:
        bench.source.execute("INSERT INTO users (id, email) VALUES ('new', 'new@example.org')")
        answer = bench.backup("--replica-host", str(replica.folder))
    finally:
        replica.maintenance.execute("SELECT pg_wal_replay_resume()")
    assert answer.result["source"] == "primary", answer.text
    assert "did not get to where the primary was" in answer.text


def test_what_is_too_old_goes_once_a_newer_one_is_there(bench: Bench) -> None:
    repositories = [bench.open(0), bench.open(1)]
    for days in (30, 20, 10):
        then = datetime.now(UTC) - timedelta(days=days)
        options = BackupOptions(Tier.DAILY, (NAMESPACE, NAME), now=lambda then=then: then)  # type: ignore[misc]
        os.environ.update(bench.source.environment("medianest_backup"))
        try:
            assert BackupRun(repositories, options).run().outcome == "Succeeded"
        finally:
            for name in bench.source.environment():
                del os.environ[name]
    oldest, old, recent, *_ = sorted(set(bench.complete()))
    answer = bench.backup("--keep", "daily=7d")
    assert answer.result["removed"] == [oldest, old], answer.text
    assert sorted(set(bench.complete())) == [recent, answer.result["backup"]]


def test_a_server_that_goes_once_all_is_dumped_spoils_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is whole; taken again, it would be there twice."""
    gone: list[list[tuple[Any, ...]]] = []

    def ending() -> datetime:
        # It is asked for at the beginning, at the snapshot, and as the manifest is made.
        stop = "SELECT pg_terminate_backend(pid)" if len(gone) == 2 else "SELECT"
        gone.append(
            bench.source.execute(
                # The one that was there first has the snapshot; the other one counts.
                f"{stop} FROM (SELECT * FROM pg_stat_activity WHERE usename = 'medianest_backup'"
                " ORDER BY backend_start LIMIT 1) a"
            )
        )
        return datetime.now(UTC)

    for name, value in bench.source.environment("medianest_backup").items():
        monkeypatch.setenv(name, value)
    result = BackupRun([bench.open(0)], BackupOptions(Tier.DAILY, (NAMESPACE, NAME), now=ending)).run()
    assert gone[2] == [(True,)]
    assert result.outcome == "Succeeded", result
    assert bench.complete() == [result.more["backup"]]


def test_sigterm_leaves_nothing(bench: Bench) -> None:
    assert bench.backup().code == 0
    before = sorted(path for path in bench.folder.rglob("*") if path.is_file())
    with bench.source.connect() as blocker, blocker.transaction():
        blocker.execute("LOCK TABLE users")
        run = bench.start("backup", *bench.places, *WHOSE, "--tier", "daily")
        until(lambda: bool(blocker.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall()))
        run.send(signal.SIGTERM)
        answer = run.end()
    assert answer.told == (2, "Transient", "Interrupted"), answer.text
    after = sorted(path for path in bench.folder.rglob("*") if path.is_file() and not path.name.startswith("result-"))
    assert after == [path for path in before if not path.name.startswith("result-")]


def test_a_table_that_stays_locked_is_not_waited_for_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups_server, "LOCK_WAIT", 300)
    for name, value in bench.source.environment("medianest_backup").items():
        monkeypatch.setenv(name, value)
    with bench.source.connect() as blocker, blocker.transaction():
        blocker.execute("LOCK TABLE users")
        result = BackupRun([bench.open(0)], BackupOptions(Tier.DAILY, (NAMESPACE, NAME))).run()
    assert (result.outcome, result.reason) == ("Transient", "DumpFailed"), result
    assert "lock timeout" in result.message
    assert bench.listed() == []


def test_time_limits_are_for_the_application(bench: Bench) -> None:
    for limit in ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"):
        bench.source.execute(f'ALTER ROLE medianest_backup IN DATABASE "{bench.source.name}" SET {limit} = 1')
    backup = ["backup", *bench.places, *WHOSE, "--tier", "daily", "--format", "custom", "--format", "plain"]
    with tempfile.TemporaryDirectory() as folder, slow_network(Path(folder), bench.source.server.folder, 0.01) as host:
        environment = {**bench.source.environment("medianest_backup"), "PGHOST": str(host)}
        answer = Run(environment, *backup, folder=bench.folder).end()
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text


def test_a_table_that_may_not_be_read_is_named(bench: Bench) -> None:
    bench.source.execute("CREATE SCHEMA closed; CREATE TABLE closed.secret (t text)")
    answer = bench.backup(user="medianest_readonly")
    assert answer.told == (1, "Failed", "PermissionDenied"), answer.text
    assert "closed.secret" in answer.result["message"]
    assert bench.listed() == []


def test_rows_that_policies_hide_are_not_left_out_silently(bench: Bench) -> None:
    bench.source.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY; ALTER ROLE medianest_backup NOBYPASSRLS")
    try:
        answer = bench.backup()
    finally:
        bench.source.execute("ALTER ROLE medianest_backup BYPASSRLS")
    assert answer.told == (1, "Failed", "PermissionDenied"), answer.text
    assert "users" in answer.result["message"]
    assert "BYPASSRLS" in answer.result["message"]


def test_the_list_tells_what_does_not_count_and_why(bench: Bench) -> None:
    assert bench.backup().code == 0
    bench.repositories = bench.repositories[:1]
    assert bench.backup(tier="weekly").code == 0
    next((bench.folder / "main").rglob("*-weekly-*/manifest.json")).unlink()
    dump = next((bench.folder / "main").rglob("*-daily-*/data.dump.zst"))
    dump.write_bytes(dump.read_bytes()[:100])
    states = {item["tier"]: (item["state"], item["reason"]) for item in bench.listed()}
    assert states["weekly"] == ("Incomplete", "it has no manifest")
    assert states["daily"][0] == "Damaged"
    assert "data.dump.zst has 100 bytes" in states["daily"][1]
    table = bench.start("backups", "list", *bench.places).end()
    assert table.code == 0
    assert "Damaged: data.dump.zst has 100 bytes" in table.text


def test_a_wrong_name_and_a_wrong_folder_are_told_apart(bench: Bench, target: Database) -> None:
    bench.repositories = bench.repositories[:1]
    assert bench.backup().code == 0
    command = ["restore", *bench.places, "--namespace", "media", "--name", "mest", "--work-dir", str(bench.work)]
    answer = bench.start(*command, database=target, user="medianest_migrator").end()
    assert answer.told == (1, "Failed", "NoSuchBackup"), answer.text
    assert "there are backups of media/nest" in answer.result["message"]
    answer = bench.start("backups", "list", "--repository", f"x=file://{bench.folder}/mian").end()
    assert answer.code == 1
    assert f"there is no folder {bench.folder}/mian" in answer.text
    assert "No backups." not in answer.text


def test_a_target_that_is_not_empty_is_left_alone(bench: Bench, people: Database) -> None:
    assert bench.backup().code == 0
    before = contents(people)
    answer = bench.restore(people)
    assert answer.told == (1, "Failed", "TargetNotEmpty"), answer.text
    assert contents(people) == before


def test_backups_of_two_databases_of_one_name_are_kept_apart(bench: Bench, target: Database) -> None:
    first = bench.backup().result["backup"]
    with running_server(own_identifier=True) as other:
        add_backup_role(other)
        other.maintenance.execute("CREATE TABLE lonely (n int)")
        run = bench.start("backup", *bench.places, *WHOSE, "--tier", "daily", database=other.maintenance)
        assert run.end().code == 0
    answer = bench.restore(target)
    assert answer.told == (1, "Failed", "NoSuchBackup"), answer.text
    assert "2 databases" in answer.result["message"]
    assert first in answer.result["message"]
    assert bench.restore(target, "--backup", first).code == 0
    assert contents(target) == contents(bench.source)


def test_drill_after_a_recovery_under_the_same_name_takes_the_newest(bench: Bench) -> None:
    """Two systems of one name: what was lost, and what came in its place."""
    assert bench.backup().code == 0
    with running_server(own_identifier=True) as other:
        add_backup_role(other)
        run = bench.start("backup", *bench.places, *WHOSE, "--tier", "daily", database=other.create_database())
        newest = run.end().result["backup"]
    answer = bench.verify()
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["backup"] == newest


def test_the_manifest_tells_no_secret(bench: Bench) -> None:
    bench.source.execute("ALTER ROLE medianest_app PASSWORD 'hunter2hunter2'")
    assert bench.backup().code == 0
    for path in bench.folder.rglob("*.json"):
        assert b"hunter2" not in path.read_bytes()
        assert b"SCRAM" not in path.read_bytes()
    assert len(Catalog.read(open_folder(bench.folder / "main")).backups) == 1


def test_a_backup_of_a_migration_comes_back_like_any_other(bench: Bench, target: Database) -> None:
    """It was taken for the rollback, but it is there for all who need it."""
    (bench.folder / "source" / "20260101000000_next").mkdir(parents=True)
    (bench.folder / "source" / "20260101000000_next" / "migration.sql").write_text("ALTER TABLE users ADD note text;")
    for migration in bundled_migrations():
        folder = bench.folder / "source" / migration.name
        folder.mkdir()
        (folder / "migration.sql").write_text(migration.sql)
    before = contents(bench.source)
    source = ("--source", str(bench.folder / "source"), "--rehearse", "Never")
    run = bench.start("migrate", *source, *bench.places, *WHOSE, user="medianest_migrator")
    migrated = run.end()
    assert migrated.code == 0, migrated.text
    assert [item["tier"] for item in bench.listed()] == ["pre-migration", "pre-migration"]
    answer = bench.restore(target)
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert contents(target) == before
    assert bench.verify().told == (0, "Succeeded", "Succeeded")


def test_a_backup_of_a_migration_names_the_large_objects_that_it_lacks(bench: Bench, target: Database) -> None:
    """Those of others nobody but they may read, so that none is in it."""
    bench.source.execute("SELECT lo_from_bytea(0, 'of the superuser')")
    for migration in bundled_migrations():
        (bench.folder / "source" / migration.name).mkdir(parents=True)
        (bench.folder / "source" / migration.name / "migration.sql").write_text(migration.sql)
    (bench.folder / "source" / "20270101000000_next").mkdir()
    (bench.folder / "source" / "20270101000000_next" / "migration.sql").write_text("ALTER TABLE users ADD note text;")
    source = ("--source", str(bench.folder / "source"), "--rehearse", "Never")
    migrated = bench.start("migrate", *source, *bench.places, *WHOSE, user="medianest_migrator").end()
    assert migrated.code == 0, migrated.text
    verified = bench.verify()
    assert verified.told == (0, "Succeeded", "Succeeded"), verified.text
    assert {tuple(item["verification"]["lost"]) for item in bench.listed()} == {("large objects",)}
    answer = bench.restore(target, "--strict")
    assert answer.told == (1, "Failed", "NotEqual"), answer.text
    assert answer.result["differences"] == ["there are 0 large objects, expected 1"]
    again = candidate(bench.source.server)
    answer = bench.restore(again, "--strict", "--accept-difference", "large objects")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    bench.source.server.drop_database(again)


def test_as_many_repositories_as_there_may_be_are_told(medianest: Database, room: Path) -> None:
    names = [f"repository-of-a-long-name-{number}" for number in range(8)]
    bench = new_bench(medianest, room, *names)
    for tier in ("daily", "weekly", "monthly", "on-demand"):
        answer = bench.backup(tier=tier)
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert set(answer.result["repositories"]) == set(names)
    assert {told["count"] for told in answer.result["catalog"].values()} == {4}
    [shown] = {len(told["newest"]) for told in answer.result["catalog"].values()}
    assert shown >= 3
    answer = bench.verify()
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert set(answer.result["catalog"]) == set(names)
