"""The application at work while migrations run: what it was told is written stays written."""

from __future__ import annotations

import re

import psycopg
import pytest

from integration.crashes import (
    PATIENT,
    SHAPES,
    STRATEGIES,
    Start,
    Truth,
    Writer,
    applied,
    assert_whole,
    at_the_gate,
    gated,
    names,
    open_runs,
    writing,
)
from integration.postgres_server import Database, wait_until

LAST = "20260103000000_c"
BY_THE_APPLICATION = "catalog equals that before, and rows were changed by the application alone (verified)"
MEANWHILE = "catalog equals that before (verified); rows changed meanwhile, and the run's statements write none"
WITHOUT_THE_APPLICATION = "catalog, row counts and contents equal those before (verified)"
WRITERS = 3
GATED = [shape for shape in SHAPES if LAST in SHAPES[shape]]


def gate_of(shape: str) -> str:
    """Where the run is held up: one transaction before it locks what the application needs, the others at the end."""
    return names(SHAPES[shape])[0] if shape == "one transaction" else LAST


def is_held_off(shape: str) -> bool:
    return STRATEGIES[shape] == "Restore"


def wait_for_more(database: Database, writers: list[Writer]) -> None:
    """Until each writer has written again."""
    with database.connect() as watcher:
        for number, writer in enumerate(writers):
            text = f"w:{number}:{len(writer.acknowledged) + 5}"
            wait_until(watcher, "SELECT count(*) > 0 FROM rate_limits WHERE endpoint = %s", text)


@pytest.mark.parametrize("shape", GATED)
def test_nothing_acknowledged_is_lost_on_the_way_back(
    database: Database, before: Truth, start: Start, shape: str
) -> None:
    files = gated({**SHAPES[shape], LAST: "SELECT 1/0;\n"}, gate_of(shape))
    with writing(database, WRITERS) as writers:
        with at_the_gate(database, start, files) as job:
            if is_held_off(shape):
                assert all(writer.held_off for writer in writers)
                assert others(database) == []
            else:
                wait_for_more(database, writers)
        code, result, output = job.end()
        wait_for_more(database, writers)
    assert (code, result["reason"]) == (1, "MigrationFailed"), output
    assert (result["rollback"]["strategy"], result["rollback"]["verified"]) == (STRATEGIES[shape], True)
    # The server knows that a transaction was aborted; of what was committed it knows nothing.
    at_work = BY_THE_APPLICATION if STRATEGIES[shape] == "Transaction" else MEANWHILE
    words = WITHOUT_THE_APPLICATION if is_held_off(shape) else at_work
    assert result["rollback"]["verification"] == words
    assert f": {words}." in result["message"]
    assert assert_whole(database, files, before, None, writers) == "rolled back and verified"


@pytest.mark.parametrize("shape", GATED)
def test_nothing_acknowledged_is_lost_on_the_way_there(database: Database, start: Start, shape: str) -> None:
    files = gated(SHAPES[shape], gate_of(shape))
    with writing(database, WRITERS) as writers:
        with at_the_gate(database, start, files) as job:
            if not is_held_off(shape):
                # What is committed so far is there for the application; what isn't, isn't.
                wait_for_more(database, writers)
        code, _, output = job.end()
        wait_for_more(database, writers)
    assert code == 0, output
    assert applied(database, files) == names(files)
    assert open_runs(database) == []
    assert [writer.lost() for writer in writers] == [set()] * WRITERS


def test_who_blocks_is_told_by_pid_and_age(database: Database, start: Start) -> None:
    files = {"20260101000000_a": "ALTER TABLE users ADD COLUMN nickname text;\n"}
    with database.connect("medianest_app", application_name="web") as application:
        pid = application.info.backend_pid
        with application.transaction():
            application.execute("SELECT count(*) FROM users")
            job = start(files, *PATIENT)
            told = job.wait_for_line("waiting for pid")
    assert re.fullmatch(
        rf"waiting for pid {pid} \(medianest_app, web, in a transaction for \d+ s, idle in transaction: .*\)", told
    ), told
    code, _, output = job.end()
    assert code == 0, output


def test_reader_with_locks_is_ended_and_comes_back(database: Database, start: Start) -> None:
    with database.connect("medianest_app") as reader:
        reader.execute("BEGIN")
        reader.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")
        code, _, output = start(SHAPES["commit inside"]).end()
        assert code == 0, output
        assert "ending 1 sessions of medianest_app" in output
        with pytest.raises(psycopg.errors.AdminShutdown):
            reader.execute("SELECT 1")
    assert database.execute("SELECT count(*) FROM users", user="medianest_app") == [(200,)]


def others(database: Database) -> list[tuple[object, ...]]:
    return database.execute(
        "SELECT usename FROM pg_stat_activity WHERE datname = current_database() AND usename = 'medianest_app'"
    )
