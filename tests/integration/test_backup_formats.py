"""Backups of every recorded version of the operator: verified and restored by this one (`tests/record_backups.py`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from integration.backup_runs import Bench, add_backup_role, candidate, contents, definitions
from integration.postgres_server import PostgresServer

FORMATS = Path(__file__).parent / "data" / "backups"
VERSIONS = sorted(path.name for path in FORMATS.iterdir())
SCHEMAS = ("public", "extra")


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest, server: PostgresServer, room: Path) -> Bench:
    """A version's repository, where it may be written to."""
    add_backup_role(server)
    shutil.copytree(FORMATS / request.param / "repository", room / "main")
    (room / "work").mkdir()
    (room / "work").chmod(0o777)
    for path in (room / "main").rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)
    return Bench(server.maintenance, room, [f"main=file://{room}/main"])


@pytest.fixture
def truth(recorded: Bench, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the database held, told by PostgreSQL's own programs."""
    folder = FORMATS / request.node.callspec.params["recorded"]
    found: dict[str, Any] = json.loads((folder / "truth.json").read_text())
    return found


def test_each_is_verified_and_comes_back(recorded: Bench, truth: dict[str, Any], server: PostgresServer) -> None:
    backups = recorded.listed()
    assert {item["tier"] for item in backups} >= {"daily", "pre-migration"}
    for item in backups:
        assert item["state"] == "Complete", item
        answer = recorded.verify("--backup", item["id"])
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
        target = candidate(server)
        try:
            answer = recorded.restore(target, "--backup", item["id"])
            assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
            if item["tier"] == "daily":
                assert contents(target, SCHEMAS) == truth["contents"]
                assert definitions(target) == truth["definitions"]
        finally:
            server.drop_database(target)


def test_a_newer_version_is_told_from_damage(recorded: Bench) -> None:
    """Somebody has rolled the operator back: what it can't read is of no use now, and stays."""
    manifest = next((recorded.folder / "main").rglob("daily/*/manifest.json"))
    newer = {"catalog_version": 99, "taken_at": "2020-01-01T00:00:00Z", "checksum": "of another sort"}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | newer))
    [item] = [item for item in recorded.listed() if item["tier"] == "daily"]
    assert item["state"] == "Newer"
    answer = recorded.verify("--backup", item["id"])
    assert (answer.code, answer.result["reason"]) == (1, "NoSuchBackup")
    assert "can't be read by this version" in answer.text
    assert not manifest.with_name("verification.json").exists()
