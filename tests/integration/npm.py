"""npm's packages for the tests, kept outside of the tree under the digest of their lock file."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from cluster.addresses import locked
from cluster.paths import cache_dir

_FILES = ("package.json", "package-lock.json")


def installed(sources: Path, name: str, finish: Callable[[Path], None] = lambda folder: None) -> Path:
    """The folder in which `npm ci` has made what a lock file lists; no package's own scripts are run.

    Args:
        sources: has package.json and package-lock.json.
        name: of the folder in the cache.
        finish: called once, with the folder, before it counts.

    Raises:
        FileNotFoundError: there is no npm.
        subprocess.CalledProcessError: npm failed; its output is in the exception.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise FileNotFoundError("npm or node not found; on Debian: apt-get install nodejs npm")
    digest = hashlib.sha256(b"".join((sources / file).read_bytes() for file in _FILES))
    folder = cache_dir() / f"{name}-{digest.hexdigest()[:12]}"
    with locked(cache_dir() / f"{name}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=f"{name}-") as made:
                work = Path(made, "work")
                work.mkdir()
                for file in _FILES:
                    shutil.copy(sources / file, work)
                command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
                try:
                    subprocess.run(command, cwd=work, check=True, capture_output=True, text=True)
                except subprocess.CalledProcessError as error:
                    error.add_note(error.stderr)
                    raise
                finish(work)
                work.rename(folder)
    return folder
