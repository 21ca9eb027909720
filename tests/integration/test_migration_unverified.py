"""A rollback that could not be verified is believed by whoever comes next, whatever it comes with."""

from __future__ import annotations

import psycopg
import pytest

from integration.commands import dbctl
from integration.crashes import (
    SHAPES,
    Start,
    Truth,
    applied,
    assert_next_run_rolls_back,
    fail_unverified,
    open_runs,
    unresolved,
)
from integration.outside import outside, unlike
from integration.postgres_server import Database

OTHER = {"20270101000000_other": "SELECT 1;\n"}


@pytest.mark.parametrize("shape", ["concurrently in the middle", "down scripts", "commit inside"])
def test_unverified_run_stays_so_for_every_later_run(
    database: Database, before: Truth, start: Start, shape: str
) -> None:
    files = fail_unverified(database, start, shape)
    locked_out = shape == "commit inside"
    later = [(files, "--retry", "2"), ({**files, **OTHER},), (OTHER,), (None,), (OTHER, "--allow-destructive")]
    for source, *options in later:
        code, result, output = start(source, *options).end()
        assert (code, result["reason"]) == (1, "RollbackUnverified"), output
        assert "publication meanwhile is not expected" in result["message"]
        assert result["applied"] == []
        assert len(open_runs(database)) == 1
        # What was taken back isn't called applied, and Prisma's own deploy doesn't go on either (P3009).
        assert applied(database, {**files, **OTHER}) == []
        assert unresolved(database) == ["20260103000000_c"]
        if locked_out:
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                database.execute("SELECT 1", user="medianest_app")
    if locked_out:
        return

    # Once the difference is gone, the same comparison ends it.
    database.execute("DROP PUBLICATION meanwhile")
    assert_next_run_rolls_back(database, start, files, before)


def test_resolve_ends_an_unverified_run(database: Database, start: Start) -> None:
    files = fail_unverified(database, start, "commit inside")
    assert dbctl(database.environment("postgres"), "resolve").stdout.startswith("resolved run ")
    assert (open_runs(database), unresolved(database), applied(database, files)) == ([], [], [])
    code, result, output = start(SHAPES["commit inside"]).end()
    assert (code, result["version"]) == (0, "20260103000000_c"), output


def test_an_invalid_source_says_that_the_application_is_locked_out(database: Database, start: Start) -> None:
    """It can't begin, and so finishes nothing either."""
    fail_unverified(database, start, "commit inside")
    code, result, output = start({"notes": "SELECT 1"}).end()
    assert (code, result["reason"]) == (1, "InvalidSource"), output
    assert result["message"].startswith("The application is locked out of its database."), result


MADE = (
    "CREATE TABLE repaired (id int)",
    "CREATE INDEX repaired ON users (status)",
    "CREATE FUNCTION repaired() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE users ADD COLUMN repaired int",
)


@pytest.mark.parametrize("shape", ["concurrently in the middle", "commit inside"])
@pytest.mark.parametrize("sql", MADE)
def test_what_a_person_makes_after_it_stays(database: Database, start: Start, shape: str, sql: str) -> None:
    """Whoever repairs by hand works as the owner, so that only the time tells his work from the run's."""
    fail_unverified(database, start, shape)
    database.execute("DROP PUBLICATION meanwhile")
    database.execute(f"SET ROLE medianest; {sql}")
    repaired = outside(database)
    for _ in range(2):
        code, result, output = start(OTHER).end()
        assert (code, result["reason"]) == (1, "RollbackUnverified"), output
        assert "repaired" in result["message"], result
        assert not unlike(repaired, outside(database))
    assert dbctl(database.environment("postgres"), "resolve").returncode == 0
    code, result, output = start(OTHER).end()
    assert (code, result["reason"]) == (0, "MigrationsApplied"), output
    assert "repaired" in outside(database)["definitions"]
