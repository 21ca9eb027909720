"""What is left where a run ended in an unusual way: told as it is, never rolled back wrongly, never forgotten."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest
from psycopg import Connection

from integration.commands import dbctl
from integration.crashes import (
    AT_THE_GATE,
    GATE,
    NO_INVERSE,
    PATIENT,
    RESTORING,
    SHAPES,
    Start,
    Truth,
    applied,
    assert_next_run_rolls_back,
    assert_whole,
    at_the_gate,
    bad,
    end_sessions,
    end_under_a_reader,
    gate,
    look,
    names,
    open_runs,
    trap,
    unresolved,
    writing,
)
from integration.postgres_server import Database, wait_for_backend, wait_until

ONE = "one transaction"
FAILING = AT_THE_GATE + "SELECT 1/0;\n"


def endings(database: Database) -> list[str]:
    rows = database.execute("SELECT ending FROM medianest_operator.migration_runs ORDER BY started_at DESC LIMIT 1")
    return [row[0] for row in rows]


def test_stopped_after_its_last_commit_it_is_applied(database: Database, start: Start) -> None:
    with database.connect() as holder, database.connect() as watcher, holder.transaction():
        holder.execute("LOCK TABLE medianest_operator.schema_versions IN SHARE MODE")
        job = start(SHAPES[ONE], *PATIENT)
        wait_for_backend(watcher, "schema_versions", waiting=True)
        job.process.terminate()
        code, result, output = job.end()
    assert (code, result["outcome"], result["version"]) == (0, "Applied", "20260103000000_c"), output
    assert applied(database, SHAPES[ONE]) == names(SHAPES[ONE])
    assert endings(database) == ["Applied"]


def test_stop_that_comes_too_late_for_the_commit(database: Database, before: Truth, start: Start) -> None:
    """The commit is in the log already and waits for a replica: it can't be taken back any more, so it isn't."""
    files = {
        "20260101000000_a": "CREATE TABLE a (id text);\nUPDATE users SET name = 'x';\n"
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM set_config('synchronous_commit', 'on', true); RETURN NULL; END $$;\n"
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON a DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slow();\nINSERT INTO a VALUES ('1');\n"
    }
    database.execute("ALTER SYSTEM SET synchronous_commit = local")
    database.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    database.execute("SELECT pg_reload_conf()")
    try:
        job = start(files)
        with database.connect() as watcher:
            query = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = %s"
            wait_until(watcher, query, database.name)
        job.process.terminate()
        code, result, output = job.end()
    finally:
        database.execute("ALTER SYSTEM RESET ALL")
        database.execute("SELECT pg_reload_conf()")
    assert (code, result["outcome"], result["version"]) == (0, "Applied", "20260101000000_a"), output
    assert applied(database, files) == names(files)
    assert look(database) != before
    assert endings(database) == ["Applied"]
    assert open_runs(database) == []


@pytest.mark.parametrize(
    ("shape", "table", "statement"),
    [
        ("concurrently in the middle", "users", "DROP INDEX CONCURRENTLY"),
        ("commit inside", "sessions", "TRUNCATE ONLY"),
        ("commit inside", "sessions", RESTORING),
    ],
)
def test_stopped_on_the_way_back_it_goes_on(
    database: Database, before: Truth, start: Start, shape: str, table: str, statement: str
) -> None:
    files = {**SHAPES[shape], "20260103000000_c": FAILING}
    if statement == RESTORING:
        files["20260101000000_a"] += NO_INVERSE
    with gate(database) as keeper, database.connect() as reader:
        job = start(files, *PATIENT)
        wait_for_backend(keeper, f"lock({GATE})", waiting=True)
        with reader.transaction():
            reader.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
            keeper.execute("SELECT pg_advisory_unlock(%s)", (GATE,))
            wait_for_backend(keeper, statement, waiting=True)
            job.process.terminate()
            job.wait_for_line("reverting by")
        code, result, output = job.end()
    assert (code, result["reason"]) == (1, "MigrationFailed"), output
    assert result["rollback"]["verified"]
    with writing(database) as writers:
        assert assert_whole(database, files, before, None, writers) == "rolled back and verified"


def test_backup_that_is_gone_keeps_the_writers_off_until_it_is_back(
    database: Database, before: Truth, start: Start, room: Path
) -> None:
    files = {**SHAPES["commit inside"], "20260103000000_c": FAILING}
    with at_the_gate(database, start, files) as job:
        (room / "backups").rename(room / "elsewhere")
    code, result, output = job.end()
    assert (code, result["reason"]) == (2, "RollbackUnfinished"), output
    assert result["message"].startswith("The application is locked out of its database. "), result
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        database.execute("SELECT 1", user="medianest_app")

    (room / "elsewhere").rename(room / "backups")
    assert_next_run_rolls_back(database, start, files, before)


def test_lock_that_is_not_granted_on_the_way_back_is_worth_another_try(
    database: Database, before: Truth, start: Start
) -> None:
    files = {**SHAPES["concurrently in the middle"], "20260103000000_c": FAILING}
    code, result, output = end_under_a_reader(database, start, files, "--lock-timeout", "2s")
    assert (code, result["reason"]) == (2, "RollbackUnfinished"), output
    assert "gets no lock" in result["message"]
    assert result["message"].startswith("The application is not locked out. "), result
    assert_next_run_rolls_back(database, start, files, before)


def test_what_others_made_meanwhile_is_not_reverted(database: Database, start: Start) -> None:
    """The run's only transaction is gone; a table that differs is somebody else's, who has rows in it."""
    files = {"20260101000000_a": FAILING}
    with at_the_gate(database, start, files) as job:
        database.execute("SET ROLE medianest; CREATE TABLE kept_by_hand AS SELECT 1 AS one")
    code, result, output = job.end()
    assert (code, result["reason"], result["rollback"]["verified"]) == (1, "MigrationFailed", True), output
    assert "other sessions have changed the database meanwhile: table kept_by_hand" in result["message"]
    assert database.execute("SELECT one FROM kept_by_hand") == [(1,)]


@pytest.mark.parametrize("shape", ["concurrently in the middle", "commit inside"])
def test_unverified_run_is_resolved_by_hand_and_tried_again(database: Database, start: Start, shape: str) -> None:
    """A superuser's publication appears meanwhile, which no rollback of the migrator's removes."""
    held_off = shape == "commit inside"
    files = {**SHAPES[shape], "20260103000000_c": FAILING}
    with at_the_gate(database, start, files) as job:
        database.execute("CREATE PUBLICATION meanwhile")
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert "publication meanwhile is not expected" in result["message"]
    again = start(files, *PATIENT)
    code, result, output = again.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert "it is not tried again" in output
    assert len(open_runs(database)) == 1
    if held_off:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            database.execute("SELECT 1", user="medianest_app")

    resolved = dbctl(database.environment("postgres"), "resolve")
    assert resolved.stdout.startswith("resolved run "), resolved
    assert (open_runs(database), unresolved(database), applied(database, files)) == ([], [], [])
    database.execute("SELECT 1", user="medianest_app")
    assert dbctl(database.environment("postgres"), "resolve").stdout == "nothing to resolve\n"
    code, result, output = start(SHAPES[shape], "--retry", "2").end()
    assert (code, result["version"]) == (0, "20260103000000_c"), output
    assert applied(database, files) == names(files)


def test_resolve_gives_way_to_a_run_at_work(database: Database, start: Start) -> None:
    with at_the_gate(database, start, {"20260101000000_a": AT_THE_GATE, "20260102000000_b": "SELECT 1"}) as job:
        resolved = dbctl(database.environment("postgres"), "resolve")
        assert resolved.returncode == 2
        assert "a migration run is at work" in resolved.stderr
    code, _, output = job.end()
    assert code == 0, output


def invalid_index(database: Database) -> dict[str, str]:
    """An index that an earlier interruption left, and a source that takes it for the one that it wants."""
    database.execute(
        "SET ROLE medianest; CREATE INDEX left_over ON users (name); RESET ROLE;"
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'left_over'::regclass"
    )
    return {
        "20260101000000_a": "CREATE TABLE a (id text);\n",
        "20260102000000_b": "CREATE INDEX CONCURRENTLY IF NOT EXISTS left_over ON users (name);\n",
    }


def test_failure_of_the_last_look_is_remembered(database: Database, start: Start) -> None:
    files = invalid_index(database)
    for told in ("Index left_over on users is INVALID", "it is not tried again"):
        code, result, output = start(files).end()
        assert (code, result["reason"]) == (1, "InvalidIndex"), output
        assert told in output
    assert applied(database, files) == []


def test_recovery_looks_as_closely_as_the_run(database: Database, start: Start) -> None:
    """Every file is recorded as finished, and the run is killed before its last look at the index."""
    files = invalid_index(database)
    before = look(database)
    job = start(files)
    with trap(database, "Verifying") as holder:
        wait_for_backend(holder, "migration_runs", waiting=True)
        job.process.kill()
        end_sessions(holder)
    assert_next_run_rolls_back(database, start, files, before)


def test_writer_that_is_just_logging_in_is_held_off(database: Database, before: Truth, start: Start) -> None:
    """Its right to connect was looked at before it was taken away, and the server doesn't list it yet."""
    files = bad("commit inside")
    sneaked: list[Connection[object]] = []
    database.execute("ALTER SYSTEM SET post_auth_delay = 4")
    database.execute("SELECT pg_reload_conf()")
    try:
        with trap(database, "LockingOut") as holder:
            job = start(files, *PATIENT)
            wait_for_backend(holder, "migration_runs", waiting=True)
            thread = threading.Thread(target=lambda: sneaked.append(database.connect("medianest_app")), daemon=True)
            thread.start()
            wait_until(
                holder,
                "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'object' AND objid ="
                " (SELECT oid FROM pg_database WHERE datname = %s) AND mode = 'RowExclusiveLock'",
                database.name,
            )
            # A changed setting would wake it: the delay stays, and the run's own programs have it as well.
            holder.execute("SELECT pg_advisory_unlock_all()")
            job.wait_for_line("applying 20260101000000_a")
            thread.join()
            with pytest.raises(psycopg.OperationalError):
                sneaked[0].execute("SELECT 1")
    finally:
        database.execute("ALTER SYSTEM RESET ALL")
        database.execute("SELECT pg_reload_conf()")
    code, _, output = job.end()
    assert code == 1, output
    with writing(database) as writers:
        assert assert_whole(database, files, before, None, writers) == "rolled back and verified"


@pytest.mark.parametrize("fails", [False, True])
def test_rights_to_connect_are_given_back_as_they_were(database: Database, start: Start, fails: bool) -> None:
    """As the operator makes them: everybody's right taken, each role its own."""
    database.execute(
        f"REVOKE ALL ON DATABASE {database.name} FROM PUBLIC;"
        f"GRANT CONNECT, TEMPORARY ON DATABASE {database.name} TO medianest_app, medianest_readonly, medianest_migrator"
    )
    rights = database.execute("SELECT datacl::text FROM pg_database WHERE datname = current_database()")
    files = bad("commit inside") if fails else SHAPES["commit inside"]
    code, _, output = start(files).end()
    assert code == (1 if fails else 0), output
    assert "locking writers out" in output
    assert database.execute("SELECT datacl::text FROM pg_database WHERE datname = current_database()") == rights


def test_a_run_that_ends_an_earlier_one_first_says_so(database: Database, start: Start) -> None:
    """Else "changed nothing" is read beside a journal in which that very run has closed an entry."""
    files = {"20260101000000_a": f"CREATE TABLE a (id text);\nCOMMIT;\n{AT_THE_GATE}"}
    with at_the_gate(database, start, files, "--on-failure", "Halt") as job:
        job.kill()
    code, result, output = start(files, "--on-failure", "Halt").end()
    assert (code, result["reason"]) == (1, "UnresolvedFailure"), output
    assert result["message"].startswith(
        "An earlier run of 20260101000000_a was cut off; what it had applied stays (onFailure: Halt). An earlier run of"
    )
    assert result["message"].endswith("This run changed nothing.")
    assert endings(database) == ["Refused"]
    assert open_runs(database) == []
