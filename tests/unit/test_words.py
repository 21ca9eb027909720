"""People read the field's own words, one for each thing: what is said elsewhere has a glossary of its own to learn."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "crds").glob("*.yaml")),
    *sorted((ROOT / "examples").glob("*.yaml")),
    ROOT / "charts/medianest-operator/values.yaml",
]
INSTEAD = {
    "prove": "verify",
    "proves": "verifies",
    "proved": "verified",
    "proving": "verifying",
    "unproved": "unverified",
    "proof": "verification",
    "undone": "rolled back",
    "undo": "roll back, revert",
    "undoes": "rolls back, reverts",
    "undoing": "rolling back, reverting",
    "fence": "lockout",
    "fenced": "locked out",
    "settle": "resolve",
    "settled": "resolved",
    "ways back": "kinds of rollback",
    "way back": "rollback",
    "mend": "fix",
    "mended": "fixed",
    "anew": "again",
    "for ever": "indefinitely",
    "by itself": "automatically",
    "told": "reported",
    "kin": "and the like",
    "swapped in": "cut over",
    "held off": "locked out",
    "authority": "CA",
}
SOURCES = sorted((ROOT / "operator/medianest_operator").rglob("*.py"))
_WORDS = re.compile(rf"\b({'|'.join(map(re.escape, INSTEAD))})\b", flags=re.IGNORECASE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_uses_the_fields_words(page: Path) -> None:
    found = [
        f"{page.name}:{number}: {match[0]!r}: write {INSTEAD[match[0].lower()]!r}"
        for number, line in enumerate(page.read_text().splitlines(), start=1)
        for match in _WORDS.finditer(line)
    ]
    assert not found, "\n".join(found)


def _strings(source: str) -> Iterator[tuple[int, str]]:
    """The lines and texts of all strings with more than one word, but for docstrings: messages, logs and --help."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text), lineno=line) if id(node) not in docstrings and " " in text.strip():
                yield line, text


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "operator")))
def test_a_message_uses_the_fields_words(source: Path) -> None:
    found = [
        f"{source.name}:{line}: {match[0]!r}: write {INSTEAD[match[0].lower()]!r}"
        for line, text in _strings(source.read_text())
        for match in _WORDS.finditer(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("planted", ['raise ValueError("it was undone")', 'say(f"the proof of {run}")'])
def test_the_lint_sees_a_planted_word(planted: str) -> None:
    assert any(_WORDS.search(text) for _, text in _strings(planted))
