"""The room that is kept on a volume for PostgreSQL's next start: the program that the database image starts it by."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "tools" / "roomy_postgres"
BLOCK, SIZE = 4096, 64 * 1024**2


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    made = tmp_path / "volume"
    made.mkdir()
    return made


def run(volume: Path, *arguments: str, available: int, total: int = 1024**3) -> None:
    """On a file system that has so many bytes left, by the word of `stat`."""
    programs = volume.parent / "bin"
    programs.mkdir(exist_ok=True)
    stat = programs / "stat"
    stat.write_text(f"#!/bin/sh\necho {BLOCK} {total // BLOCK} {available // BLOCK}\n")
    stat.chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "MEDIANEST_DATA": str(volume), "MEDIANEST_WAL": "/none"}
    # Where there is no PostgreSQL, or it doesn't start there, what came before is done all the same.
    subprocess.run([PROGRAM, *arguments], env=environment, check=False, capture_output=True)


def sizes(volume: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in volume.iterdir()}


@pytest.mark.parametrize("arguments", [("--put-back",), ("-D", "/none")])
def test_room_is_kept_where_there_is_plenty(volume: Path, arguments: tuple[str, ...]) -> None:
    run(volume, *arguments, available=900 * 1024**2)
    assert sizes(volume) == {"ballast": SIZE}


def test_room_that_the_application_needs_is_not_taken(volume: Path) -> None:
    run(volume, "--put-back", available=250 * 1024**2)
    assert sizes(volume) == {}


def test_a_start_on_a_full_volume_gets_the_room(volume: Path) -> None:
    run(volume, "--put-back", available=900 * 1024**2)
    run(volume, "-D", "/none", available=40 * 1024**2)
    assert sizes(volume) == {"ballast": SIZE}
    run(volume, "-D", "/none", available=8 * 1024**2)
    assert sizes(volume) == {}


@pytest.mark.parametrize("argument", ["--version", "--describe-config", "--put-back"])
def test_nothing_but_a_start_gives_the_room_away(volume: Path, argument: str) -> None:
    run(volume, "--put-back", available=900 * 1024**2)
    run(volume, argument, available=8 * 1024**2)
    assert sizes(volume) == {"ballast": SIZE}


def test_a_question_of_a_server_that_runs_gives_the_room_away_neither(volume: Path) -> None:
    run(volume, "--put-back", available=900 * 1024**2)
    run(volume, "-D", "/none", "-C", "data_directory", available=8 * 1024**2)
    assert sizes(volume) == {"ballast": SIZE}


@pytest.mark.parametrize("arguments", [("--put-back",), ("-D", "/none")])
def test_half_of_one_that_was_killed_goes(volume: Path, arguments: tuple[str, ...]) -> None:
    (volume / "ballast.new").write_bytes(b"x" * 1000)
    run(volume, *arguments, available=8 * 1024**2)
    assert sizes(volume) == {}
