"""Whatever a seed makes of files, databases and faults: wholly new or as before, and what a run claims is true.

`differential/` says how. In CI a few seeds; `make soak` plays thousands and goes on where it was ended.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from integration.differential.case import case
from integration.differential.field import Field
from integration.differential.play import play
from integration.differential.progress import Progress
from integration.postgres_server import Database, PostgresServer
from soaking import rounds

FOUND = {
    24: "a right that somebody else gave can't be restored, which was found out with the application locked out",
    16: "the same after a rehearsal of the definitions alone, which restores nothing",
    612: "rows that a CHECK's function compares with another table's were restored before those",
    1403: "a schema that a DBA made meanwhile ended the rollback for good, and nobody was to go on with it",
    55: "a rehearsal of the definitions alone called files wrong that only want rows",
    103: "a run that makes a range type was never where its rehearsal came to",
    190: "settings of the database that were put back in another order made a valid run refused",
    1133: "a materialized view that was out of date is filled anew by a restore, which was then unverified",
}
"""Seeds that the oracle once contradicted, and what each showed."""
COUNT = rounds(80, 5000)
BLOCK = rounds(1, 25)
"""Seeds a test."""


@pytest.fixture(scope="module")
def field(server: PostgresServer, template: Database, tmp_path_factory: pytest.TempPathFactory) -> Field:
    return Field(server, template, tmp_path_factory.mktemp("differential"))


def contradicted(field: Field, seeds: Iterable[int], progress: Progress | None = None) -> dict[int, str]:
    """Play seeds. Returns those that the oracle contradicts, each with what it found; one stops no other."""
    found: dict[int, str] = {}
    for seed in seeds:
        try:
            played = play(field, case(seed))
        except AssertionError as error:
            found[seed] = "\n".join([str(error), *getattr(error, "__notes__", [])])
            if progress:
                progress.add_contradiction(seed, error)
        else:
            if progress:
                progress.add(seed, played)
    return found


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_once(field: Field, seed: int) -> None:
    found = contradicted(field, [seed])
    assert not found, found[seed]


@pytest.mark.timeout(rounds(120, 1800))
@pytest.mark.parametrize("first", range(0, COUNT, BLOCK))
def test_no_claim_is_contradicted(field: Field, first: int) -> None:
    """In a soak a seed that was played well once isn't played again."""
    progress = Progress() if BLOCK > 1 else None
    done = progress.done() if progress else set()
    found = contradicted(field, sorted({*range(first, first + BLOCK)} - done), progress)
    assert not found, "\n\n".join(found.values())
