"""What the operator accepts as a parameter PostgreSQL takes from its configuration file, as its own program says."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

import parameter_samples
from integration.postgres_server import PostgresServer, binary, running_server
from medianest_operator.postgres import parameters
from parameter_samples import KNOWN


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """The folder of a server that is read by nobody."""
    with running_server() as server:
        folder = Path(tempfile.mkdtemp(prefix="mn-conf-"))
        try:
            data = shutil.copytree(
                server.folder / "data", folder / "data", ignore=shutil.ignore_patterns("postmaster.*")
            )
            _own(folder, server)
            yield data
        finally:
            shutil.rmtree(folder)


def _own(folder: Path, server: PostgresServer) -> None:
    owner = server.folder.stat()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    (folder / "data").chmod(0o700)


def _read(data: Path, lines: list[str]) -> str:
    """Why PostgreSQL doesn't start with a configuration file of these lines; nothing where it does."""
    configuration = data / "postgresql.conf"
    configuration.write_text("\n".join(lines) + "\n")
    owner = data.stat()
    identity: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    command = [binary("postgres"), "-D", str(data), "-C", "data_directory"]
    ended = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=data, **identity)
    return ended.stderr if ended.returncode else ""


def _line(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"{name} = '{escaped}'"


def test_postgresql_reads_everything_that_is_accepted(stopped: Path) -> None:
    # It doesn't go together with three others.
    alone = {"log_statement_stats"}
    accepted = {
        name: [
            value
            for value in parameter_samples.samples(name, setting)
            if not parameters.problems(parameter_samples.spec(name, value))
        ]
        for name, setting in KNOWN.items()
        if name not in alone
    }
    assert sum(map(len, accepted.values())) > 1500
    preload = _line("shared_preload_libraries", ",".join(sorted(parameters.PRELOADABLE)))
    for values in zip_longest(*accepted.values()):
        lines = [_line(name, value) for name, value in zip(accepted, values, strict=True) if value is not None]
        assert _read(stopped, [preload, *lines]) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("search_path", "public\n"), ("search_path", "a,,b"), ("log_statement", "true"), ("timezone", "Nowhere/Land"),
        ("bonjour", "on"), ("default_with_oids", "on"), ("timezone_abbreviations", "default"), ("lc_messages", "xx_YY"),
        ("effective_cache_size", "75TB"),
    ],
)  # fmt: skip
def test_what_breaks_the_file_is_refused(stopped: Path, name: str, value: str) -> None:
    assert _read(stopped, [_line(name, value)]) != ""
    assert parameters.problems(parameter_samples.spec(name, value)) != []


@pytest.mark.parametrize("other", ["log_parser_stats", "log_planner_stats", "log_executor_stats"])
def test_statistics_that_exclude_each_other_are_refused(stopped: Path, other: str) -> None:
    assert _read(stopped, [_line("log_statement_stats", "on"), _line(other, "on")]) != ""
    (problem,) = parameters.problems(parameter_samples.spec("log_statement_stats", "on", {other: "1"}))
    assert problem.startswith("postgresql.parameters.log_statement_stats: ")
    assert other in problem
