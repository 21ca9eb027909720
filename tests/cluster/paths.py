"""Where things lie: what is built is kept in the user's cache, what runs lies in /run and goes away with a reboot."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent
RUNTIME = Path("/run/medianest-cluster")


def cache_dir() -> Path:
    """The folder of everything that is built or kept: ``$XDG_CACHE_HOME/medianest-operator``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "medianest-operator"
    path.mkdir(parents=True, exist_ok=True)
    return path


def cluster_dir(name: str) -> Path:
    """The folder of one cluster's data: certificates, etcd, containerd's images, volumes, logs."""
    return cache_dir() / "clusters" / name


def runtime_dir(name: str) -> Path:
    """The folder of one cluster's sockets."""
    return RUNTIME / name
