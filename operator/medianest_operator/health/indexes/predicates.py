"""The condition of a partial index, taken apart."""

from __future__ import annotations

import re

# Texts and names are skipped as they are.
_TOKEN = re.compile(r"'(?:[^']|'')*+'|\"(?:[^\"]|\"\")*+\"|[()]| AND ")


class _Group:
    """What two parentheses hold, or the whole text: where it begins and ends, what is in it, and where it has AND."""

    __slots__ = ("begin", "conjunctions", "end", "inner")

    def __init__(self, begin: int) -> None:
        self.begin, self.end = begin, begin
        self.inner: dict[int, _Group] = {}
        """By the place of its opening parenthesis."""
        self.conjunctions: list[tuple[int, int]] = []

    def pieces(self) -> list[tuple[int, int]]:
        """Where the parts that AND joins begin and end."""
        begins = [self.begin, *(end for _, end in self.conjunctions)]
        ends = [*(begin for begin, _ in self.conjunctions), self.end]
        return list(zip(begins, ends, strict=True))


def conjuncts(text: str) -> frozenset[str]:
    """The parts of a condition that AND joins, as PostgreSQL writes them: each in parentheses, and all together.

    The text is read once, and each group looked at once, however deep it is: whoever makes an index chooses both.
    """
    whole = _grouped(text)
    if whole is None:
        return frozenset({text})
    found: set[str] = set()
    groups = [whole]
    while groups:
        group = groups.pop()
        pieces = group.pieces()
        # Without parentheses of its own a part may be the end of a BETWEEN SYMMETRIC or the like.
        if len(pieces) > 1 and not all(text[begin] == "(" and text[end - 1] == ")" for begin, end in pieces):
            found.add(text[group.begin : group.end])
            continue
        for begin, end in pieces:
            inner = group.inner.get(begin)
            if inner is not None and inner.end + 1 == end:
                groups.append(inner)
            else:
                found.add(text[begin:end])
    return frozenset(found)


def _grouped(text: str) -> _Group | None:
    """The text by its parentheses; `None` where they don't match."""
    whole = _Group(0)
    opened = [whole]
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "(":
            inner = _Group(match.end())
            opened[-1].inner[match.start()] = inner
            opened.append(inner)
        elif token == ")":
            if len(opened) == 1:
                return None
            opened.pop().end = match.start()
        elif token == " AND ":
            opened[-1].conjunctions.append(match.span())
    whole.end = len(text)
    return whole if len(opened) == 1 else None
