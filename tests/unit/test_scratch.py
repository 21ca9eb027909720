"""Folders for copies: nothing of a process that was killed stays, and nothing that somebody works in goes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from medianest_operator.postgres.scratch import scratch_folder

_WORKER = """
import sys, time
from pathlib import Path
from medianest_operator.postgres.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1]), "backup-") as folder:
    (folder / "data.dump").write_text("secret")
    print(folder, flush=True)
    time.sleep(600)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def worker(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", _WORKER, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path: Path) -> None:
    process, left = worker(tmp_path)
    process.kill()
    process.wait()
    assert (left / "data.dump").exists()
    (tmp_path / "backup-mine").mkdir()
    with scratch_folder(tmp_path, "pg-"):
        assert left.exists()
    with scratch_folder(tmp_path, "backup-") as folder:
        assert not left.exists()
        assert names(tmp_path) == {folder.name, f"{folder.name}.held", "backup-mine"}
        assert folder.stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == {"backup-mine"}


def test_what_somebody_works_in_stays(tmp_path: Path) -> None:
    process, folder = worker(tmp_path)
    try:
        with scratch_folder(tmp_path, "backup-") as other:
            assert (folder / "data.dump").read_text() == "secret"
            with scratch_folder(tmp_path, "backup-"):
                assert other.exists()
    finally:
        process.kill()
        process.wait()


def test_it_goes_after_an_error_too(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), scratch_folder(tmp_path, "pg-") as folder:
        (folder / "a").write_text("b")
        raise RuntimeError
    assert names(tmp_path) == set()


def test_a_marker_that_leads_elsewhere_takes_nothing_away(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("kept")
    work = tmp_path / "work"
    work.mkdir()
    (work / "pg-x.held").symlink_to(other / "file")
    (work / "pg-y").symlink_to(other)
    (work / "pg-y.held").touch()
    with scratch_folder(work, "pg-"):
        pass
    assert (other / "file").read_text() == "kept"
