"""Runs that are killed (SIGKILL) or stopped (SIGTERM) at every step: the next run ends and verifies them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from integration.crashes import (
    AT_THE_GATE,
    GATE,
    NO_INVERSE,
    PATIENT,
    PEOPLE,
    RESTORING,
    SHAPES,
    Job,
    Start,
    Truth,
    apply_by_psql,
    assert_whole,
    bad,
    end_sessions,
    gate,
    gated,
    look,
    names,
    trap,
    writing,
)
from integration.postgres_server import Database, PostgresServer, wait_for_backend, wait_until

SAME, OTHER = "the same source", "another source"
"""What runs after the killed one. The other source holds nothing new, so it shows how the killed one was ended."""


def new_version(server: PostgresServer, template: Database, files: Mapping[str, str]) -> Truth:
    """What the files lead to, by psql."""
    database = server.create_database(template.name)
    try:
        database.execute(PEOPLE)
        apply_by_psql(database, {name: text.replace(AT_THE_GATE, "") for name, text in files.items()})
        return look(database)
    finally:
        server.drop_database(database)


@pytest.mark.parametrize(
    ("shape", "fails", "step", "then"),
    [
        ("one transaction", False, "BackingUp", SAME),
        ("one transaction", False, "Applying", OTHER),
        ("one transaction", False, "Finished", SAME),
        ("one transaction", True, "RollingBack", OTHER),
        ("commit inside", True, "LockingOut", OTHER),
        ("commit inside", False, "BackingUp", SAME),
        ("commit inside", True, "Applying", OTHER),
        ("commit inside", True, "RollingBack", SAME),
        ("commit inside", True, "RollingBack", OTHER),
        ("commit inside", True, "Finished", OTHER),
        ("concurrently in the middle", True, "RollingBack", OTHER),
        ("concurrently in the middle", True, "Finished", SAME),
        ("down scripts", True, "RollingBack", SAME),
        ("down scripts", True, "Finished", OTHER),
        ("concurrently at the end", False, "Verifying", OTHER),
        ("concurrently at the end", False, "Finished", SAME),
        ("concurrently at the end", True, "Finished", OTHER),
    ],
)
def test_killed_as_it_writes_a_step(
    server: PostgresServer,
    template: Database,
    database: Database,
    before: Truth,
    start: Start,
    shape: str,
    fails: bool,
    step: str,
    then: str,
) -> None:
    files = bad(shape) if fails else SHAPES[shape]
    after = None if fails else new_version(server, template, files)
    first = start(files, *PATIENT)
    with trap(database, step) as holder:
        wait_for_backend(holder, "migration_runs", waiting=True)
        first.process.kill()
        end_sessions(holder)
    check_second_run(database, before, after, start, files, then)


@pytest.mark.parametrize(
    ("inside", "then"),
    [
        ("20260101000000_a", OTHER),
        ("20260102000000_b", SAME),
        ("20260102000000_b", OTHER),
        ("20260103000000_c", SAME),
        ("20260103000000_c", OTHER),
        ("copy", SAME),
    ],
)
def test_killed_inside_a_part(
    server: PostgresServer,
    template: Database,
    database: Database,
    before: Truth,
    start: Start,
    inside: str,
    then: str,
) -> None:
    """Three parts, the second of which builds an index concurrently and leaves it invalid; and the rehearsal."""
    files: Mapping[str, str] = SHAPES["concurrently in the middle"]
    after = new_version(server, template, files)
    with database.connect() as holder:
        if inside == "20260102000000_b":
            # An older snapshot, for which the build waits last of all, whatever it reads.
            holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM rate_limits")
            first = start(files, *PATIENT)
            with database.connect() as watcher:
                wait_for_backend(watcher, "CREATE INDEX CONCURRENTLY", waiting=True)
                first.process.kill()
                end_sessions(watcher)
        elif inside == "copy":
            files = {**files, "20260103000000_c": files["20260103000000_c"] + "SELECT pg_sleep(60);\n"}
            first = start(files, rehearse="Always")
            first.wait_for_line("on the copy: applying 20260103000000_c")
            first.kill()
            files = SHAPES["concurrently in the middle"]
        else:
            with gate(database) as keeper:
                first = start(gated(files, inside), *PATIENT)
                wait_for_backend(keeper, f"lock({GATE})", waiting=True)
                first.process.kill()
                end_sessions(keeper)
    check_second_run(database, before, after, start, files, then)


@pytest.mark.parametrize("then", [SAME, OTHER])
@pytest.mark.parametrize(
    ("shape", "table", "statement"),
    [
        ("concurrently in the middle", "users", "DROP INDEX CONCURRENTLY"),
        ("concurrently in the middle", "a", "LOCK TABLE a"),
        ("down scripts", "a", "LOCK TABLE a"),
        ("commit inside", "sessions", "TRUNCATE ONLY"),
        ("commit inside", "sessions", RESTORING),
    ],
)
def test_killed_in_the_middle_of_the_way_back(
    database: Database, before: Truth, start: Start, shape: str, table: str, statement: str, then: str
) -> None:
    files = {**SHAPES[shape], "20260103000000_c": AT_THE_GATE + "SELECT 1/0;\n"}
    if statement == RESTORING:
        files["20260101000000_a"] += NO_INVERSE
    with gate(database) as keeper, database.connect() as reader:
        first = start(files, *PATIENT)
        wait_for_backend(keeper, f"lock({GATE})", waiting=True)
        with reader.transaction():
            reader.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
            keeper.execute("SELECT pg_advisory_unlock(%s)", (GATE,))
            wait_for_backend(keeper, statement, waiting=True)
            first.process.kill()
            if shape == "commit inside":
                # What restores is a program of its own, which outlives the run: the next one has to end it.
                orphan = wait_for_backend(keeper, statement, waiting=True)
                second = start(files if then == SAME else None, *PATIENT)
                wait_until(keeper, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", orphan)
            else:
                end_sessions(keeper)
        if shape == "commit inside":
            check_end(database, before, None, second, files, then)
        else:
            check_second_run(database, before, None, start, files, then)


@pytest.mark.parametrize("shape", ["one transaction", "concurrently in the middle", "down scripts", "commit inside"])
def test_asked_to_stop_it_goes_back_by_itself(database: Database, before: Truth, start: Start, shape: str) -> None:
    files = SHAPES[shape]
    with writing(database) as writers, gate(database) as keeper:
        job = start(gated(files, "20260103000000_c"), *PATIENT)
        wait_for_backend(keeper, f"lock({GATE})", waiting=True)
        job.process.terminate()
        code, result, output = job.end()
    assert (code, result["outcome"], result["reason"]) == (2, "Transient", "Interrupted"), output
    assert result["rollback"]["verified"]
    assert assert_whole(database, files, before, None, writers) == "rolled back and verified"
    code, _, output = start(files).end()
    assert code == 0, output


def check_second_run(
    database: Database, before: Truth, after: Truth | None, start: Start, files: Mapping[str, str], then: str
) -> None:
    second = start(files if then == SAME else None)
    check_end(database, before, after, second, files, then)


def check_end(
    database: Database, before: Truth, after: Truth | None, second: Job, files: Mapping[str, str], then: str
) -> None:
    """What the run after the killed one leaves."""
    code, result, output = second.end()
    with writing(database) as writers:
        outcome = assert_whole(database, files, before, after, writers)
    if then == OTHER:
        assert (code, result["outcome"]) == (0, "Applied"), output
    elif after is None:
        assert (code, result["outcome"], result["rollback"]["verified"]) == (1, "Failed", True), output
    else:
        assert (code, outcome) == (0, "applied"), output
        assert result["version"] == names(files)[-1]
