"""Rights on the database itself: no run changes them, and nothing is undone over what somebody wrote with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.commands import dbctl
from integration.crashes import (
    AT_THE_GATE,
    Start,
    applied,
    at_the_gate,
    fail_unverified,
    open_runs,
    writing,
)
from integration.outside import migrate_and_look, outside
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions

AUTO, NEVER = RunOptions(), RunOptions(rehearse=Rehearse.NEVER)
RIGHTS = {
    "to everybody": "GRANT CREATE ON DATABASE %I TO PUBLIC",
    "of everybody": "REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC",
    "of the application": "REVOKE TEMPORARY ON DATABASE %I FROM medianest_app",
}
MEANWHILE = {"20260103000000_c": AT_THE_GATE + "SELECT 1/0;\n"}


def changing(right: str, ending: str = "") -> str:
    """A block that changes a right by SQL which it puts together, so that nobody can read it beforehand."""
    return f"DO $$ BEGIN EXECUTE format('{right}', current_database()); {ending} END $$;\n"


@pytest.mark.parametrize("options", [AUTO, NEVER], ids=["rehearsed", "not rehearsed"])
@pytest.mark.parametrize("ending", ["", "COMMIT;"], ids=["in a transaction", "committed"])
@pytest.mark.parametrize("right", RIGHTS.values(), ids=RIGHTS.keys())
def test_no_run_changes_rights_on_the_database(
    medianest: Database, tmp_path: Path, right: str, ending: str, options: RunOptions
) -> None:
    medianest.execute(
        f"REVOKE ALL ON DATABASE {medianest.name} FROM PUBLIC; GRANT CONNECT, TEMPORARY ON DATABASE {medianest.name}"
        " TO PUBLIC, medianest_app"
    )
    result, unlike = migrate_and_look(medianest, {"20260101000000_a.sql": changing(right, ending)}, options, tmp_path)
    assert (result.outcome, result.reason) == ("Failed", "StatementRefused"), result
    assert "changed rights on the database" in result.message, result
    assert not unlike, unlike


def test_writers_whom_a_run_lets_in_lose_nothing(database: Database, start: Start) -> None:
    """It takes their right away itself, gives it back by SQL that nobody could read, and fails."""
    letting_in = changing("GRANT CONNECT ON DATABASE %I TO medianest_app", "COMMIT; PERFORM pg_sleep(1);")
    files = {"20260101000000_a": "UPDATE users SET name = 'x';\nCOMMIT;\n", "20260102000000_b": letting_in}
    with writing(database, 2) as writers:
        code, result, output = start(files, "--rehearse", "Never").end()
    assert any(writer.held_off for writer in writers)
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert result["message"].startswith("The application is locked out of its database. "), result
    assert "rights on the database were changed while writers were locked out" in result["message"], result
    assert not [lost for writer in writers if (lost := writer.lost())]
    assert len(open_runs(database)) == 1

    # It stays so, whatever comes next, until a person has looked.
    code, result, output = start(files, "--rehearse", "Never", "--retry", "2").end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert not [lost for writer in writers if (lost := writer.lost())]
    dbctl(database.environment("postgres"), "resolve")
    assert (open_runs(database), applied(database, files)) == ([], [])
    database.execute("SELECT 1", user="medianest_app")


@pytest.mark.parametrize("to", ["medianest_app", "PUBLIC"])
def test_writers_whom_a_person_lets_in_lose_nothing(database: Database, start: Start, to: str) -> None:
    files = {"20260101000000_a": "UPDATE users SET name = 'x';\nCOMMIT;\n", **MEANWHILE}
    with at_the_gate(database, start, files) as job:
        database.execute(f"GRANT CONNECT ON DATABASE {database.name} TO {to}")
        with writing(database) as writers:
            pass
    code, result, output = job.end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert result["message"].startswith("The application is locked out of its database. "), result
    assert writers[0].acknowledged
    assert not writers[0].lost()


def test_what_a_person_repairs_after_an_unverified_rollback_stays(database: Database, start: Start) -> None:
    """Every later run goes back once more, and would restore the backup over it."""
    files = fail_unverified(database, start, "commit inside")
    database.execute("UPDATE users SET name = 'repaired' WHERE id = 'u1'")
    before = outside(database)
    for retry in ("2", "3"):
        code, result, output = start(files, "--retry", retry).end()
        assert (code, result["reason"]) == (1, "RollbackUnverified"), output
        assert "somebody has changed users since its rollback" in result["message"], result
        assert outside(database) == before


def test_untouched_unverified_rollback_is_tried_again(database: Database, start: Start) -> None:
    files = fail_unverified(database, start, "commit inside")
    code, result, output = start(files, "--retry", "2").end()
    assert (code, result["reason"]) == (1, "RollbackUnverified"), output
    assert "somebody has changed" not in result["message"], result
    assert "restoring" in output


@pytest.mark.parametrize("pending", [True, False], ids=["applied", "up to date"])
def test_good_end_says_that_nobody_may_connect(database: Database, start: Start, pending: bool) -> None:
    """A superuser dropped the journal while writers were locked out: nobody knows any more whose right was taken."""
    files = {"20260101000000_a": "CREATE TABLE notes (id int);\n"}
    assert start(files).end()[0] == 0
    database.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC, medianest, medianest_app")
    database.execute(f"GRANT CONNECT ON DATABASE {database.name} TO medianest_migrator")
    database.execute("DROP SCHEMA medianest_operator CASCADE")
    more = {"20260102000000_b": "CREATE TABLE more (id int);\n"} if pending else {}
    code, result, output = start({**files, **more}).end()
    assert (code, result["reason"]) == (0, "MigrationsApplied" if pending else "UpToDate"), output
    assert result["message"].startswith("The application is locked out of its database. "), result
    assert f'GRANT CONNECT ON DATABASE "{database.name}" TO ROLE_NAME' in result["message"], result
