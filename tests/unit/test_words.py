"""People read the field's own words, one for each thing: what is said elsewhere has a glossary of its own to learn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs/runbooks").glob("*.md")),
    *sorted((ROOT / "docs/gitops").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.yaml")),
    ROOT / "charts/medianest-operator/values.yaml",
]
INSTEAD = {
    "proved": "verified",
    "proof": "verification",
    "undone": "rolled back",
    "undo": "roll back, revert",
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
_WORDS = re.compile(rf"\b({'|'.join(map(re.escape, INSTEAD))})\b", flags=re.IGNORECASE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_uses_the_fields_words(page: Path) -> None:
    found = [
        f"{page.name}:{number}: {match[0]!r}: write {INSTEAD[match[0].lower()]!r}"
        for number, line in enumerate(page.read_text().splitlines(), start=1)
        for match in _WORDS.finditer(line)
    ]
    assert not found, "\n".join(found)
