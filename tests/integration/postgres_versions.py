"""Servers of other major versions than the machine's own, as an npm package brings them; kept in the cache."""

from __future__ import annotations

import json
from pathlib import Path

from integration.npm import installed

_SOURCES = Path(__file__).with_name("postgres_versions")


def install(major: int) -> Path:
    """The folder of one version, with its `bin`. The package's own script would only make the links that are made here.

    Raises:
        FileNotFoundError: there is no npm.
        subprocess.CalledProcessError: npm failed; its output is in the exception.
    """
    return installed(_SOURCES, "postgres-versions", _link_all) / "node_modules" / f"postgres-{major}" / "native"


def _link_all(folder: Path) -> None:
    for package in (folder / "node_modules").iterdir():
        if package.name.startswith("postgres-"):
            _link(package)


def _link(package: Path) -> None:
    """npm packs no symbolic links: a file lists those of the libraries."""
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        target.unlink(missing_ok=True)
        target.symlink_to(Path(link["source"]).name)
    for program in (package / "native" / "bin").iterdir():
        program.chmod(0o755)
