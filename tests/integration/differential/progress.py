"""Which seeds were played, and how they ended: a file outside the tree, so that a soak goes on where it was ended.

The file's name holds the generator's content: a changed generator draws other cases from the same seeds.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from cluster.paths import cache_dir
from integration.differential.play import Played

_DRAWING = ("case.py", "furniture.py", "grammar.py", "meddling.py")


class Progress:
    """The seeds that were played: each once it has ended well, or the oracle has contradicted it."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        digest = hashlib.sha256(b"".join((here / name).read_bytes() for name in _DRAWING)).hexdigest()[:12]
        self.path = cache_dir() / "differential" / f"{digest}.jsonl"

    def done(self) -> set[int]:
        """The seeds that ended well."""
        return {row["seed"] for row in self._rows() if "ending" in row}

    def add(self, seed: int, played: Played) -> None:
        ending = {"ending": played.ending, "strategy": played.strategy, "seconds": round(played.seconds, 2)}
        self._write({"seed": seed, **ending})

    def add_contradiction(self, seed: int, error: AssertionError) -> None:
        """It is played again next time."""
        self._write({"seed": seed, "contradiction": str(error)})

    def _write(self, row: dict[str, Any]) -> None:
        """One line at once: several processes may write."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(row)}\n")

    def told(self) -> str:
        """All that were ever played, as a table."""
        last = {row["seed"]: row for row in self._rows()}
        wrong = [f"seed {seed}: {row['contradiction']}" for seed, row in last.items() if "contradiction" in row]
        rows = {seed: row for seed, row in last.items() if "ending" in row}
        endings = Counter((row["ending"], row["strategy"]) for row in rows.values())
        seconds = sum(row["seconds"] for row in rows.values())
        lines = [f"{count:6}  {ending}{f', {how}' if how else ''}" for (ending, how), count in endings.most_common()]
        lines.append(f"{len(rows):6}  cases in {seconds:.0f} s of work, {seconds / max(1, len(rows)):.2f} s each")
        return "\n".join([*lines, f"{len(wrong):6}  contradicted", *wrong])

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
