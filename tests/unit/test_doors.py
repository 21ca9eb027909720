"""The rooms and doors of docs/architecture.md are those of the code: every import is read, every door is used."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "operator/medianest_operator"
PACKAGE = SOURCE.name

Doors = Mapping[str, frozenset[str]]


def documented() -> Doors:
    """Each room of the table, with the rooms that it may call."""
    text = (ROOT / "docs/architecture.md").read_text()
    table = text.split("## Rooms and doors", 1)[1].split("\n\n##", 1)[0]
    rows = re.findall(r"^\| (`.+?) \|.*\| (.+?) \|$", table, flags=re.MULTILINE)
    assert rows, "the table is gone"
    return {room: _named(doors) for rooms, doors in rows for room in _named(rooms)}


def _named(cell: str) -> frozenset[str]:
    return frozenset(name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`([a-z_./]+)`", cell))


def imports(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """(room, room that it imports from) for every import of one file, wherever in the file it stands."""
    parts = path.relative_to(SOURCE).parts
    own = parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            room = rest.split(".", 1)[0]
            if top == PACKAGE and room != own and ((SOURCE / room).is_dir() or (SOURCE / f"{room}.py").exists()):
                yield own, room


def used() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        for room, other in imports(path, path.read_text()):
            found[room].add(other)
    return dict(found)


def test_every_import_goes_through_a_door_of_the_table() -> None:
    doors = documented()
    rooms = {
        path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.suffix in {"", ".py"} and path.name[0] != "_"
    }
    assert rooms == set(doors) - {"__main__"}, "a room without a row, or a row without a room"
    walls = {f"{room} -> {other}" for room, others in used().items() for other in others - doors[room]}
    assert not walls, f"imports that the table knows no door for: {sorted(walls)}"


def test_the_table_has_no_door_that_nobody_uses() -> None:
    walls = {
        f"{room} -> {other}" for room, others in documented().items() for other in others - used().get(room, set())
    }
    assert not walls, f"doors that no import uses: {sorted(walls)}"


def test_doors_lead_down_only() -> None:
    doors = dict(documented())
    while doors:
        bottom = {room for room, others in doors.items() if not others & doors.keys()}
        assert bottom, f"these rooms call each other in a circle: {sorted(doors)}"
        doors = {room: others for room, others in doors.items() if room not in bottom}


@pytest.mark.parametrize(
    "line",
    [
        "from medianest_operator.reconcile import database",
        "from medianest_operator import reconcile",
        "import medianest_operator.reconcile.database",
        "def late():\n    from medianest_operator.reconcile.order import ORDER",
    ],
)
def test_a_planted_import_is_seen(line: str) -> None:
    planted = set(imports(SOURCE / "postgres/planted.py", line))
    assert planted == {("postgres", "reconcile")}
    assert "reconcile" not in documented()["postgres"]
