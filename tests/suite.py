"""`make test`: every check in order; what the e2e tests need is built meanwhile.

python tests/suite.py             everything
python tests/suite.py STAGE...    only these: lint, generated, unit, integration, disruptions, e2e
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import environment
import prepare
from cluster.errors import ClusterError
from cluster.paths import cache_dir

ROOT = Path(__file__).resolve().parent.parent
TYPED = [name for name in ("operator", "tests", "tools", "benchmarks") if (ROOT / name).is_dir()]

_MEMORY = Path("/dev/shm")
_ROOM = 8 << 30
"""Bytes that have to be free there. The tests take half a gibibyte at a time; the rest is for the machine."""


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _pytest(folder: str, seconds: int, *options: str) -> list[str]:
    """A pytest run in which no test may hang for longer."""
    colour = ["--color=yes"] if sys.stdout.isatty() else []
    return _python(
        "-m", "pytest", "-o", f"cache_dir={cache_dir() / 'pytest'}", f"--timeout={seconds}", *colour, *options, folder
    )


STAGES: dict[str, list[list[str]]] = {
    "lint": [
        _python("-m", "ruff", "check", "."),
        _python("-m", "ruff", "format", "--check", "."),
        _python("-m", "mypy", *TYPED),
    ],
    "generated": [_python("tools/render.py", "--check"), _python("tools/reference.py", "--check")],
    "unit": [_pytest("tests/unit", 120, "-n", "2")],
    # Some wait for a minute, for a timeout or a lock: three at a time keep two cores busy.
    "integration": [_pytest("tests/integration", 300, "-n", "3", "--dist", "worksteal", "--durations=25")],
    # What harms the operator or a node, and so nothing else may use the cluster meanwhile.
    "disruptions": [_pytest("tests/e2e", 900, "-v", "--durations=15", "-m", "alone")],
    # They mostly wait, and so three at a time.
    "e2e": [_pytest("tests/e2e", 900, "-v", "-n", "3", "--dist", "worksteal", "--durations=15", "-m", "not alone")],
}
_ON_CLUSTER = frozenset({"disruptions", "e2e"})
_BESIDE = {"integration": "disruptions"}
"""What runs beside a stage where both are wanted: it waits most of the time. The stage itself lets it go first."""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    stage: str
    passed: bool
    seconds: float
    closing: str
    """The last line that each of its commands printed: pytest's sum."""

    def __str__(self) -> str:
        return f"{'ok' if self.passed else 'FAILED':7} {self.stage:12} {self.seconds:6.0f} s   {self.closing}"


@contextlib.contextmanager
def scratch(stage: str) -> Iterator[dict[str, str]]:
    """The environment of a stage: the servers of the integration tests live in memory where there is room, since they
    make and remove some two thousand clusters of a thousand files each."""
    if stage != "integration" or not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < _ROOM:
        yield dict(os.environ)
        return
    with tempfile.TemporaryDirectory(prefix="mn-", dir=_MEMORY) as folder:
        Path(folder).chmod(0o755)
        # Short, since a socket's path may have 107 bytes.
        yield {**os.environ, "TMPDIR": folder, "PYTEST_ADDOPTS": f"--basetemp={folder}/t"}


def _print(line: str) -> None:
    print(line, flush=True)


def run_stage(name: str, show: Callable[[str], None] = _print, *, niced: bool = False) -> Outcome:
    """Run a stage's commands to their end, whichever fails.

    Args:
        show: takes each line that they print.
        niced: let others go first.
    """
    show(f"\n##### {name}")
    started = time.monotonic()
    passed, sums = True, []
    with scratch(name) as variables:
        for command in STAGES[name]:
            closing = ""
            with subprocess.Popen(
                [*(["nice", "-n", "10"] if niced else []), *command],
                cwd=ROOT,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    show(line.rstrip("\n"))
                    closing = line.rstrip() or closing
            passed &= process.returncode == 0
            sums.append(closing.strip("= "))
    return Outcome(name, passed, time.monotonic() - started, "; ".join(sums))


class Building:
    """The slow builds, beside the quick stages; their output is kept in a file and shown where they fail."""

    def __init__(self) -> None:
        self._log = cache_dir() / "build.log"
        with self._log.open("wb") as output:
            # Its own session, so that it can be ended with the compilers that it starts.
            self._process = subprocess.Popen(
                _python("tests/prepare.py", "e2e"), cwd=ROOT, stdout=output, stderr=output, start_new_session=True
            )

    def wait(self, show: Callable[[str], None] = _print) -> bool:
        """Wait for the end; tell what was done. Returns whether all was built."""
        done = self._process.wait() == 0
        show("\n##### images and the cluster's programs")
        lines = self._log.read_text(errors="replace").splitlines()
        show("\n".join(line for line in lines if not done or not line.startswith("  ...")))
        return done

    def stop(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()


class OnCluster:
    """The stages that need the cluster: they wait for what is built, and leave nothing of it."""

    def __init__(self) -> None:
        self._building: Building | None = None
        self._waited = False
        try:
            prepare.install_for_cluster()
            self._building = Building()
        except ClusterError as error:
            # The tests skip then, or fail in CI.
            print(f"no local cluster can be built: {error}", flush=True)

    def run(self, stage: str, show: Callable[[str], None] = _print) -> list[Outcome]:
        """Run one of them once all is built. The first tells what was, as an outcome of its own where it failed."""
        outcomes = []
        if self._building and not self._waited:
            self._waited = True
            if not self._building.wait(show):
                outcomes.append(Outcome("build", False, 0, "the images or the cluster's programs can't be built"))
        self._remove_left()
        outcomes.append(run_stage(stage, show))
        self._remove_left()
        return outcomes

    def stop(self) -> None:
        """End what is still being built."""
        if self._building:
            self._building.stop()

    def _remove_left(self) -> None:
        if not os.environ.get("MEDIANEST_KEEP"):
            environment.remove_left(environment.E2E_CLUSTER)


def run(stages: Sequence[str]) -> list[Outcome]:
    """Run stages. The e2e tests are left out where something failed before, except in CI."""
    if "integration" in stages:
        prepare.install_for_integration()
    on_cluster = OnCluster() if _ON_CLUSTER & set(stages) else None
    beside = {stage: other for stage, other in _BESIDE.items() if {stage, other} <= set(stages)}
    outcomes: list[Outcome] = []
    try:
        for stage in stages:
            if stage in beside.values():
                continue
            if stage == "e2e" and not os.environ.get("CI") and not all(outcome.passed for outcome in outcomes):
                print("\nthe e2e tests were not run, since something before them failed", flush=True)
                break
            if on_cluster and stage in beside:
                outcomes += _both(stage, beside[stage], on_cluster)
            elif on_cluster and stage in _ON_CLUSTER:
                outcomes += on_cluster.run(stage)
            else:
                outcomes.append(run_stage(stage))
    finally:
        if on_cluster:
            on_cluster.stop()
    return outcomes


def _both(stage: str, other: str, on_cluster: OnCluster) -> list[Outcome]:
    """Run a stage and one that waits most of the time; what the latter prints comes after."""
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(on_cluster.run, other, said.append)
        outcome = run_stage(stage, niced=True)
        others = waiting.result()
    print("\n".join(said), flush=True)
    return [outcome, *others]


def main(arguments: list[str]) -> int:
    """Run the stages named, all without a name. Returns the exit code."""
    stages = arguments or list(STAGES)
    if unknown := set(stages) - set(STAGES):
        print(f"no such stage: {', '.join(unknown)}; there are: {', '.join(STAGES)}", file=sys.stderr)
        return 2
    started = time.monotonic()
    try:
        outcomes = run(stages)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if len(outcomes) > 1:
        print("\n#####", *outcomes, f"{'':20} {time.monotonic() - started:6.0f} s in all", sep="\n")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
