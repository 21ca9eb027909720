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
