"""The lockout holds everybody that it says it holds, and puts back what it found."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from integration.crashes import AT_THE_GATE, GATE, PATIENT, SHAPES, Start, Truth, assert_whole, bad, gate, writing
from integration.postgres_server import Database, wait_for_backend

DATA = "commit inside"


def rights_of(database: Database) -> list[str]:
    """The rights on the database, each with whom it is of and who gave it."""
    query = "SELECT unnest(datacl)::text FROM pg_database WHERE datname = current_database() ORDER BY 1"
    return [row[0] for row in database.execute(query)]


@pytest.fixture
def alice(database: Database) -> Iterator[str]:
    """Somebody who is a member of the owner, as a DBA or an imported application is."""
    database.execute("CREATE ROLE dba_alice LOGIN IN ROLE medianest")
    yield "dba_alice"
    database.execute(
        f"REVOKE ALL ON DATABASE {database.name} FROM dba_alice CASCADE; DROP OWNED BY dba_alice; DROP ROLE dba_alice"
    )


@pytest.mark.parametrize("explicit", [False, True])
def test_members_of_the_owner_are_locked_out(
    database: Database, before: Truth, start: Start, alice: str, explicit: bool
) -> None:
    if explicit:
        database.execute(f"REVOKE ALL ON DATABASE {database.name} FROM PUBLIC")
        database.execute(f"GRANT CONNECT ON DATABASE {database.name} TO medianest_app, medianest_migrator")
    rights = rights_of(database)
    files = {**SHAPES[DATA], "20260103000000_c": AT_THE_GATE + "SELECT 1/0;\n"}
    with gate(database) as keeper, database.connect(alice) as connected:
        job = start(files, *PATIENT)
        wait_for_backend(keeper, f"lock({GATE})", waiting=True)
        with pytest.raises(psycopg.OperationalError):
            connected.execute("SELECT 1")
        for user in (alice, "medianest_app"):
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                database.execute("SELECT 1", user=user)
    code, _, output = job.end()
    assert code == 1, output
    with writing(database) as writers:
        assert assert_whole(database, files, before, None, writers) == "rolled back and verified"
    database.execute("SELECT 1", user=alice)
    if explicit:
        assert rights_of(database) == rights


@pytest.mark.parametrize("fails", [False, True])
def test_grant_options_are_given_back(database: Database, start: Start, fails: bool) -> None:
    database.execute(
        f"REVOKE ALL ON DATABASE {database.name} FROM PUBLIC; SET ROLE medianest;"
        f"GRANT CONNECT ON DATABASE {database.name} TO medianest_app, medianest_migrator;"
        f"GRANT CONNECT ON DATABASE {database.name} TO stranger WITH GRANT OPTION"
    )
    rights = rights_of(database)
    code, _, output = start(bad(DATA) if fails else SHAPES[DATA]).end()
    assert code == (1 if fails else 0), output
    assert rights_of(database) == rights


def test_right_that_others_passed_on_is_named_before_the_run(database: Database, before: Truth, start: Start) -> None:
    database.execute(
        f"SET ROLE medianest; GRANT CONNECT ON DATABASE {database.name} TO stranger WITH GRANT OPTION;"
        f"RESET ROLE; SET ROLE stranger; GRANT CONNECT ON DATABASE {database.name} TO medianest_readonly"
    )
    rights = rights_of(database)
    code, result, output = start(SHAPES[DATA]).end()
    assert (code, result["reason"]) == (1, "RollbackImpossible"), output
    assert "stranger to medianest_readonly" in result["message"]
    assert rights_of(database) == rights
    with writing(database) as writers:
        assert assert_whole(database, SHAPES[DATA], before, None, writers) == "rolled back and verified"


def test_members_of_the_runs_own_role_are_named_before_the_run(
    database: Database, before: Truth, start: Start, alice: str
) -> None:
    database.execute("REVOKE medianest FROM dba_alice; GRANT medianest_migrator TO dba_alice")
    code, result, output = start(SHAPES[DATA]).end()
    assert (code, result["reason"]) == (1, "RollbackImpossible"), output
    assert "dba_alice can log in as members of medianest_migrator" in result["message"]
    with writing(database) as writers:
        assert assert_whole(database, SHAPES[DATA], before, None, writers) == "rolled back and verified"
