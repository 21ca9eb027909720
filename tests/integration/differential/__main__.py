"""python -m integration.differential SEED...    play single cases, and print what they are
python -m integration.differential sum          what the soak has come to so far
"""

from __future__ import annotations

import argparse
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

from integration.conftest import bundled_template
from integration.differential.case import case
from integration.differential.field import Field
from integration.differential.play import play
from integration.differential.progress import Progress
from integration.postgres_server import running_server


def main() -> int:
    """The number of cases that the oracle contradicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", nargs="+", help="integers, or `sum`")
    seeds = parser.parse_args().seed
    if seeds == ["sum"]:
        print(Progress().told())
        return 0
    wrong = 0
    with TemporaryDirectory(prefix="mn-diff-") as folder, running_server() as server:
        inner = Path(folder, "a", "b")
        inner.mkdir(parents=True)
        field = Field(server, bundled_template(server), inner)
        for seed in map(int, seeds):
            drawn = case(seed)
            try:
                played = play(field, drawn)
            except AssertionError:
                traceback.print_exc()
                wrong += 1
            else:
                print(f"{drawn}\n=> {played}\n")
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
