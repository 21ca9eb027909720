"""`medianest-dbctl` as a person or a script calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integration.commands import dbctl
from integration.conftest import write_folder
from integration.postgres_server import Database

INIT, LOGS, HASH = (
    "20250704075237_init",
    "20250720000000_add_error_logs_and_missing_indexes",
    "20250905150611_add_password_hash_to_users",
)


def test_from_nothing_to_the_bundled_schema(empty: Database, tmp_path: Path) -> None:
    environment = empty.environment()
    before = dbctl(environment, "plan", "--bundled", "--target", LOGS)
    assert before.returncode == 0
    assert before.stdout.splitlines() == [
        f"{INIT:<49}  pending",
        f"{LOGS:<49}  pending",
        f"{HASH:<49}  held back by the target",
        "2 to apply.",
    ]

    result_file = tmp_path / "termination-log"
    run = dbctl(environment, "migrate", "--bundled", "--result-file", str(result_file))
    assert run.returncode == 0
    lines = run.stdout.splitlines()
    assert lines[0] == f"applying {INIT} (1 of 3)"
    assert lines[-1].startswith("Applied 3 migrations in ")
    assert lines[-1].endswith(f" ms; the schema is at {HASH}.")
    result = json.loads(result_file.read_text())
    assert (result["outcome"], result["reason"], result["version"]) == ("Applied", "MigrationsApplied", HASH)
    assert [item["name"] for item in result["applied"]] == [INIT, LOGS, HASH]

    after = dbctl(environment, "plan", "--bundled")
    assert after.stdout.splitlines()[-1] == "Nothing to apply."
    again = dbctl(environment, "migrate", "--bundled")
    assert (again.returncode, again.stdout) == (0, f"Up to date at {HASH}.\n")


def test_plan_as_json_names_everything(medianest: Database, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {INIT: "SELECT 'edited'", "20260101000000_next": "SELECT 1"})
    done = dbctl(medianest.environment(), "plan", "--source", str(folder), "--json")
    plan = json.loads(done.stdout)
    assert {key: plan[key] for key in ("version", "pending", "edited", "missing", "failed", "blocker")} == {
        "version": HASH,
        "pending": ["20260101000000_next"],
        "edited": [INIT],
        "missing": [LOGS, HASH],
        "failed": [],
        "blocker": None,
    }
    assert done.returncode == 0


def test_plan_exits_1_when_something_is_in_the_way(empty: Database) -> None:
    empty.execute("SET ROLE medianest; CREATE TABLE x ()")
    done = dbctl(empty.environment(), "plan", "--bundled")
    assert done.returncode == 1
    assert "BaselineRequired: the database already holds 1 table" in done.stdout


def test_failure_is_printed_and_written(medianest: Database, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", {"20260101000000_bad": "SELECT 1;\nSELECT 1/0;"})
    result_file = tmp_path / "termination-log"
    done = dbctl(
        medianest.environment(),
        "migrate",
        "--source",
        str(folder),
        "--result-file",
        str(result_file),
        "--lock-timeout=1s",
    )
    assert done.returncode == 1
    assert "Failed (MigrationFailed): Statement 2 (line 2) of 20260101000000_bad: division by zero." in done.stdout
    assert json.loads(result_file.read_text())["failed"] == {
        "migration": "20260101000000_bad",
        "statement": 2,
        "line": 2,
        "sqlstate": "22012",
        "message": "division by zero",
    }


def test_server_notices_are_shown(medianest: Database, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"20260101000000_n": "DO $$ BEGIN RAISE NOTICE 'half way'; END $$"})
    done = dbctl(medianest.environment(), "migrate", "--source", str(folder))
    assert "NOTICE: half way" in done.stdout.splitlines()


def test_prismas_url_is_accepted(medianest: Database) -> None:
    folder = str(medianest.server.folder).replace("/", "%2F")
    url = (
        f"postgresql://medianest_migrator@{folder}/{medianest.name}"
        "?connection_limit=20&pool_timeout=30&connect_timeout=10&schema=public"
    )
    done = dbctl({"DATABASE_URL": url}, "plan", "--bundled")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Nothing to apply.")


def test_indexes(medianest: Database) -> None:
    fine = dbctl(medianest.environment(), "indexes")
    assert (fine.returncode, fine.stdout.splitlines()[:3]) == (
        *(0, ["total      33 (34 with _prisma_migrations)", "critical   6/6", "expected   33/33"]),
    )
    medianest.execute("DROP INDEX users_email_key; CREATE INDEX again ON users (plex_id)")
    broken = dbctl(medianest.environment(), "indexes")
    assert broken.returncode == 1
    lines = broken.stdout.splitlines()
    missing = lines.index("missing    users_email_key on users: There is none.")
    fix = "CREATE UNIQUE INDEX CONCURRENTLY users_email_key ON public.users USING btree (email);"
    assert lines[missing + 1] == f"           fix: {fix}"
    assert "duplicate  again on users: It is equal to users_plex_id_key." in lines
    report = json.loads(dbctl(medianest.environment(), "indexes", "--json").stdout)
    assert [(entry["name"], entry["fix"]) for entry in report["missing"]] == [("users_email_key", fix)]


def test_a_database_without_a_history_has_no_healthy_indexes(empty: Database) -> None:
    """Whoever forgot to name the database isn't told that all is well in another one."""
    said = dbctl(empty.environment(), "indexes")
    assert (said.returncode, said.stdout) == (1, "")
    assert f"No migration was applied to database {empty.name}" in said.stderr
    assert "PGDATABASE" in said.stderr


def test_the_index_that_does_it_all_is_named_as_it_is_spelled(medianest: Database) -> None:
    medianest.execute("CREATE INDEX half ON media_requests (user_id)")
    said = dbctl(medianest.environment(), "indexes").stdout
    assert "redundant  half on media_requests: Index media_requests_user_id_status_idx does all that it does" in said


def test_catalog(medianest: Database) -> None:
    as_json = dbctl(medianest.environment(), "catalog", "--json")
    objects = json.loads(as_json.stdout)
    assert sum(item["kind"] == "table" for item in objects) == 12
    fingerprint = dbctl(medianest.environment(), "catalog", "--fingerprint").stdout.strip()
    assert len(fingerprint) == 64
    medianest.execute("ALTER TABLE users ADD COLUMN x int")
    assert dbctl(medianest.environment(), "catalog", "--fingerprint").stdout.strip() != fingerprint


@pytest.mark.parametrize("command", ["plan", "indexes", "catalog"])
def test_no_server_is_worth_another_try(tmp_path: Path, command: str) -> None:
    source = ["--bundled"] if command == "plan" else []
    done = dbctl({"PGHOST": str(tmp_path), "PGUSER": "x"}, command, *source, "--connect-timeout", "100ms")
    assert done.returncode == 2
    assert "no connection within 0.1 s" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Usage"),
        (["migrate"], "give exactly one of --source DIR and --bundled"),
        (["migrate", "--bundled", "--source", "/x"], "give exactly one of --source DIR and --bundled"),
        (["migrate", "--bundled", "--lock-timeout", "soon"], "'soon' is not a duration"),
        (["catalog", "--json", "--fingerprint"], "give at most one"),
        (["migrat"], "No such command"),
        (["backup", "--repository", "main=ftp://x"], "write file:///folder or s3://bucket/prefix"),
    ],
)
def test_wrong_command_line_fails_for_good(arguments: list[str], words: str) -> None:
    """And its last line says why: of a Job it becomes the message."""
    done = dbctl({}, *arguments)
    assert done.returncode == 1
    assert words in ((done.stdout + done.stderr).splitlines()[-1] if arguments else done.stderr)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no migration in "),
        ({"notes.sql": "SELECT 1"}, "'notes' is not a migration's name; use <YYYYMMDDhhmmss>_<name>"),
        ({"20260101000000_a.sql": "SELECT 1\0"}, "migration 20260101000000_a holds a NUL byte in line 1"),
        ({"migration_lock.toml": 'provider = "mysql"', "1_a.sql": ""}, "says provider 'mysql'"),
    ],
)
def test_unreadable_source_fails_before_connecting(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    result_file = tmp_path.parent / f"{tmp_path.name}-result"
    done = dbctl({"PGHOST": "/nowhere"}, "migrate", "--source", str(tmp_path), "--result-file", str(result_file))
    assert done.returncode == 1
    result = json.loads(result_file.read_text())
    assert (result["outcome"], result["reason"]) == ("Failed", "InvalidSource")
    assert words in result["message"]
