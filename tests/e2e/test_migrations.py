"""Migrations as an admin meets them: rolled back and told, rehearsed, resumed after kills, from an image, drifted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cluster import build_image
from e2e.backups import ask, restore, wait_over, wait_restored
from e2e.kube import BACKUP, KIND, Kube, Manifest, acted_on, condition_of
from e2e.schemas import DUPLICATES, LAST, NEXT, bundled, people, source
from e2e.workload import Writer
from environment import Environment


def last_run(kube: Kube) -> Manifest:
    run: Manifest = kube.get(KIND, "db")["status"]["schema"]["lastRun"]  # type: ignore[index]
    return run


def wait_applied(kube: Kube, version: str) -> Manifest:
    """The run that applied this, once its Job has ended: the schema is there, and Ready, a moment before."""

    def applied(db: Manifest | None) -> bool:
        run = (db or {})["status"]["schema"].get("lastRun") or {}
        return run.get("outcome") == "Applied" and version in {item["name"] for item in run.get("applied", [])}

    kube.wait(KIND, "db", applied, f"{version} applied")
    return last_run(kube)


def test_failure_is_rolled_back_verified_reported_and_tried_again_by_id(kube: Kube) -> None:
    people(kube)
    before = kube.sql("db-0", "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public'")
    migrations = {"source": source(kube, "bad", DUPLICATES), "rehearse": "Never"}
    kube.patch("db", {"migrations": migrations})
    schema = kube.wait_condition("db", "SchemaUpToDate", "False", "MigrationRolledBack")
    assert f"Statement 2 (line 2) of {NEXT}" in schema["message"]
    assert "catalog and row counts equal those before (verified)" in schema["message"]
    ready = kube.wait_condition("db", "Ready", "False", "MigrationRolledBack")
    assert ready["message"].startswith(f"Serving schema {LAST} as before. Migration {NEXT} failed and was rolled back")
    run = last_run(kube)
    assert (run["rollback"]["strategy"], run["rollback"]["verified"]) == ("Transaction", True)
    assert "/pre-migration/" in run["backup"]
    query = "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public'"
    assert kube.sql("db-0", query) == before
    assert "RolledBack" in {reason for reason, _ in kube.events("db")}
    assert kube.get("PersistentVolumeClaim", "db-backup-volume") is not None

    # The Job is gone, and still the source isn't tried again by itself.
    kube.kubectl("delete", "job", run["job"])
    kube.sql("db-0", "UPDATE media_requests SET title = 'Dune: Part Two' WHERE id = 'm2'")
    kube.patch("db", {"connections": {"poolTimeout": 59}})
    kube.wait(KIND, "db", acted_on, "acted on")
    assert condition_of(kube.get(KIND, "db"), "SchemaUpToDate")["reason"] == "MigrationRolledBack"
    assert kube.all("Job") == []

    kube.patch("db", {"migrations": {"retry": "data-mended"}})
    assert kube.wait_ready("db")["status"]["schema"]["version"] == NEXT


def test_rehearsal_keeps_a_failure_away_from_the_database(kube: Kube) -> None:
    people(kube)
    kube.patch("db", {"migrations": {"source": source(kube, "bad", DUPLICATES)}})
    schema = kube.wait_condition("db", "SchemaUpToDate", "False", "MigrationFailed")
    assert "That was the rehearsal on a copy; the database itself was not touched." in schema["message"]
    source(kube, "bad", "ALTER TABLE users ADD COLUMN nickname text;")
    assert kube.wait_ready("db")["status"]["schema"]["version"] == NEXT
    run = wait_applied(kube, NEXT)
    assert run["rehearsal"]["data"] is True
    assert any(lock.startswith("users: AccessExclusive") for lock in run["rehearsal"]["locks"])


def test_job_that_waits_for_a_secret_says_so(kube: Kube) -> None:
    import pyrage

    people(kube)
    identity = pyrage.x25519.Identity.generate()
    encryption = {"recipients": [str(identity.to_public())], "identitySecret": {"name": "absent"}}
    migrations = {"source": source(kube, "more", "ALTER TABLE users ADD COLUMN nickname text;")}
    kube.patch("db", {"backup": {"encryption": encryption}, "migrations": migrations})

    def told(db: Manifest | None) -> bool:
        return 'secret "absent" not found' in condition_of(db, "SchemaUpToDate")["message"]

    condition = condition_of(kube.wait(KIND, "db", told, "what the Job waits for"), "SchemaUpToDate")
    assert (condition["status"], condition["reason"]) == ("False", "Migrating")
    secret = {"metadata": {"name": "absent"}, "stringData": {"identity": str(identity)}}
    kube.apply({"apiVersion": "v1", "kind": "Secret"} | secret)
    wait_applied(kube, NEXT)


def test_backup_of_a_migration_is_an_object_like_all_others(kube: Kube) -> None:
    people(kube)
    assert kube.all(BACKUP) == []
    kube.patch("db", {"migrations": {"source": source(kube, "more", "ALTER TABLE users ADD COLUMN nickname text;")}})
    run = wait_applied(kube, NEXT)
    [taken] = kube.all(BACKUP)
    status = wait_over(kube, taken["metadata"]["name"])
    assert run["backup"].split("/")[-2] == status["backup"]
    assert (status["job"], status["repositories"], status["verified"]) == (run["job"], ["volume"], True)
    assert f"taken by Job {run['job']} before it changed anything, and restored" in status["message"]

    # What it names is there: it leads back to before the migration.
    kube.patch("db", {"migrations": {"target": LAST}})
    restore(kube, "back", backup=status["backup"])
    wait_restored(kube, "back", seconds=300)
    assert kube.wait_ready("db")["status"]["schema"]["version"] == LAST

    ask(kube, "mine", migration="db-migrate-of-old")
    assert "The operator makes such objects itself" in wait_over(kube, "mine", "Failed")["message"]
    with pytest.raises(RuntimeError, match="migration names a backup that is there"):
        ask(kube, "both", migration=run["job"], verify=True)


def test_destructive_migration_needs_a_word(kube: Kube) -> None:
    people(kube)
    kube.patch("db", {"migrations": {"source": source(kube, "drop", "ALTER TABLE users DROP COLUMN email;")}})
    schema = kube.wait_condition("db", "SchemaUpToDate", "False", "MigrationFailed")
    assert "Set spec.migrations.allowDestructive to true if that is meant." in schema["message"]
    kube.patch("db", {"migrations": {"allowDestructive": True}})
    assert kube.wait_ready("db")["status"]["schema"]["version"] == NEXT


def test_locked_out_run_loses_no_write_and_lets_everybody_in_again(kube: Kube) -> None:
    """The file commits by itself: writers are locked out, and what it did is restored from the backup."""
    people(kube)
    writer = Writer(kube, "db", seconds=45)
    sql = "UPDATE users SET name = 'gone';\nCOMMIT;\nCREATE TABLE notes (id text);\nSELECT 1/0;\n"
    kube.patch("db", {"migrations": {"source": source(kube, "commits", sql), "rehearse": "Never"}})
    kube.wait_condition("db", "SchemaUpToDate", "False", "MigrationRolledBack")
    run = last_run(kube)
    assert (run["rollback"]["strategy"], run["rollback"]["verified"]) == ("Restore", True)
    account = writer.settle()
    assert account.acknowledged > 50
    assert account.lost == 0
    assert kube.sql("db-0", "SELECT count(*) FROM users WHERE name = 'gone'") == "0"


def test_killed_job_pod_is_finished_by_the_next(kube: Kube) -> None:
    people(kube)
    sql = {
        f"{NEXT}.sql": "ALTER TABLE users ADD COLUMN nickname text;",
        "20260102000000_index.sql": "CREATE INDEX CONCURRENTLY users_nickname ON users (nickname);",
        "20260103000000_slow.sql": "CREATE TABLE notes (id text); SELECT pg_sleep(8);",
    }
    slow = source(kube, "slow", sql.pop(f"{NEXT}.sql"), **sql)
    kube.patch("db", {"migrations": {"source": slow, "rehearse": "Never"}})
    kube.wait(KIND, "db", lambda db: _step(db) == "Applying", "applying")
    [pod] = [pod for pod in kube.all("Pod") if pod["metadata"]["name"].startswith("db-migrate-")]
    kube.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    status = kube.wait_ready("db", seconds=240)["status"]
    assert status["schema"]["version"] == "20260103000000_slow"
    endings = kube.sql("db-0", "SELECT ending FROM medianest_operator.migration_runs ORDER BY started_at")
    assert endings.split() == ["Applied", "RolledBack", "Applied"]
    assert kube.sql("db-0", "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == "0"


def test_failover_in_the_middle_ends_applied(kube: Kube) -> None:
    people(kube, instances=2, postgresql={"synchronous": "Required"})
    slow = source(kube, "slow", "CREATE TABLE notes (id text); SELECT pg_sleep(6); UPDATE users SET name = 'x';")
    kube.patch("db", {"migrations": {"source": slow, "rehearse": "Never"}})
    kube.wait(KIND, "db", lambda db: _step(db) == "Applying", "applying")
    kube.kubectl("delete", "pod", kube.primary("db"), "--grace-period=0", "--force")
    status = kube.wait_ready("db", seconds=300)["status"]
    assert status["schema"]["version"] == NEXT
    primary = kube.primary("db")
    assert kube.sql(primary, "SELECT count(*) FROM users WHERE name = 'x'") == "2"
    open_runs = "SELECT count(*) FROM medianest_operator.migration_runs WHERE finished_at IS NULL"
    assert kube.sql(primary, open_runs) == "0"


def _step(database: Manifest | None) -> str | None:
    step: str | None = (database or {}).get("status", {}).get("schema", {}).get("lastRun", {}).get("step")
    return step


def test_drift_is_told_and_passes(kube: Kube) -> None:
    people(kube)
    kube.sql("db-0", "ALTER TABLE users ADD COLUMN nickname text")
    condition = kube.wait_condition("db", "SchemaUpToDate", "False", "Drifted")
    assert "table users: column nickname (text) is not part of any migration" in condition["message"]
    assert condition_of(kube.get(KIND, "db"), "Ready")["status"] == "True"
    kube.wait_event("db", "Drifted")
    kube.sql("db-0", "ALTER TABLE users DROP COLUMN nickname")
    kube.wait_condition("db", "SchemaUpToDate", "True", "UpToDate")


@pytest.fixture
def application_image(environment: Environment, tmp_path: Path) -> str:
    """An image of the application's: nothing but its migrations and a `cp`."""
    if environment.local is None and environment.kind is None:
        pytest.skip("a given cluster has to find the image in a registry of its own")
    image = "localhost/medianest-app:test"
    for name, text in bundled().items():
        folder = tmp_path / "migrations" / name.removesuffix(".sql")
        folder.mkdir(parents=True)
        (folder / "migration.sql").write_text(text)
    # The build's cache is keyed by what git knows of the context.
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM debian:bookworm-slim AS app\nCOPY migrations /app/prisma/migrations\n")
    build_image(image, "app", dockerfile, tmp_path)
    environment.load(image)
    return image


def test_migrations_come_from_the_applications_image(kube: Kube, application_image: str) -> None:
    wanted = {"reference": application_image, "pullPolicy": "IfNotPresent"}
    kube.database("db", migrations={"source": {"image": wanted}})
    status = kube.wait_ready("db")["status"]
    assert status["schema"]["version"] == LAST
    assert status["indexes"]["critical"] == "6/6"
    kube.patch("db", {"migrations": {"source": {"image": {**wanted, "path": "/nowhere"}}}})
    condition = kube.wait_condition("db", "SchemaUpToDate", "False", "MigrationFailed")
    assert "/nowhere" in condition["message"]
