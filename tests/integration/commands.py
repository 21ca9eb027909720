"""`medianest-dbctl` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

OPERATOR = Path(__file__).parents[2] / "operator"


def dbctl(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medianest_operator.agent", *arguments],
        env={**os.environ, "PYTHONPATH": str(OPERATOR), "COLUMNS": "200", "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
