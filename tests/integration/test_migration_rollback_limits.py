"""No rollback is subject to the migration's own limits, and none waits without one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from integration.crashes import (
    AT_THE_GATE,
    GATE,
    PATIENT,
    SHAPES,
    Start,
    Truth,
    assert_next_run_rolls_back,
    assert_whole,
    end_under_a_reader,
    gate,
    look,
    writing,
)
from integration.postgres_server import Database, wait_for_backend, wait_until

DATA = "commit inside"


def test_statement_timeout_does_not_cut_the_rollback_short(database: Database, start: Start) -> None:
    """The index waits for a writer; so does the DROP INDEX CONCURRENTLY that takes it back."""
    files = {
        "20260101000000_a": "CREATE INDEX CONCURRENTLY IF NOT EXISTS title_idx ON media_requests (title);\n",
        "20260102000000_b": AT_THE_GATE + "SELECT pg_sleep(30);\n",
    }
    before = look(database)
    with database.connect("medianest_app") as writer, database.connect() as watcher, gate(database) as keeper:
        job = start(files, "--statement-timeout", "3s")
        wait_for_backend(keeper, f"lock({GATE})", waiting=True)
        with writer.transaction():
            writer.execute("UPDATE media_requests SET title = title WHERE id = 'm1'")
            keeper.execute("SELECT pg_advisory_unlock(%s)", (GATE,))
            wait_for_backend(watcher, "DROP INDEX CONCURRENTLY", waiting=True)
            wait_until(
                watcher,
                "SELECT bool_or(now() - query_start > '4s') FROM pg_stat_activity"
                " WHERE query LIKE 'DROP INDEX%%' AND state = 'active' AND datname = %s",
                database.name,
            )
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "StatementTimeout"), output
    assert result["rollback"]["verified"]
    with writing(database) as writers:
        assert assert_whole(database, files, before, None, writers) == "rolled back and verified"


def test_statement_timeout_is_the_files_alone(database: Database, start: Start) -> None:
    """What a run counts before it begins may take as long as it takes."""
    with database.connect() as holder, database.connect() as watcher:
        with holder.transaction():
            holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            job = start({"20260101000000_a": "CREATE TABLE a (id text);\n"}, "--statement-timeout", "250ms")
            wait_until(
                watcher,
                "SELECT bool_or(now() - query_start > '3s') FROM pg_stat_activity"
                " WHERE datname = %s AND wait_event_type = 'Lock'",
                database.name,
            )
        code, _, output = job.end()
    assert code == 0, output


def test_restore_does_not_wait_without_a_limit(database: Database, before: Truth, start: Start) -> None:
    """A superuser isn't locked out, and holds a table that the restore needs."""
    files = {"20260101000000_a": SHAPES[DATA]["20260101000000_a"], "20260103000000_c": AT_THE_GATE + "SELECT 1/0;\n"}
    code, result, output = end_under_a_reader(database, start, files, *PATIENT)
    assert (code, result["reason"]) == (2, "RollbackUnfinished"), output
    assert result["message"].startswith("The application is locked out of its database. "), result
    assert_next_run_rolls_back(database, start, files, before)


def test_full_disk_on_the_rollback_is_tried_again(
    database: Database, start: Start, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore has no room for what it puts down meanwhile."""
    database.execute(
        "INSERT INTO error_logs (id, correlation_id, user_id, error_code, error_message, request_path, request_method)"
        " SELECT 'e' || n, 'c', 'u1', 'E', md5(n::text) || md5((n + 1)::text), '/', 'GET'"
        " FROM generate_series(1, 60000) n"
    )
    before = look(database)
    small = room / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        files = {**SHAPES["commit inside"], "20260103000000_c": "SELECT 1/0;\n"}
        monkeypatch.setenv("TMPDIR", str(small))
        job = start(files, *PATIENT)
        monkeypatch.delenv("TMPDIR")
        code, result, output = job.end()
        assert (code, result["reason"]) == (2, "RollbackUnfinished"), output
        assert result["message"].startswith("The application is locked out of its database. "), result
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert_next_run_rolls_back(database, start, files, before)
