"""The base image, made from Debian's own packages where no registry is reachable."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cluster import machine
from cluster.buildah import Buildah
from cluster.errors import ClusterError
from cluster.keys import content_key
from cluster.paths import SOURCES
from cluster.processes import capture
from cluster.progress import step

DEBIAN = re.compile(r"(?:.*/)?debian:(?P<suite>[a-z]+)(?P<slim>-slim)?(?:@.*)?")
KEY_LABEL = "medianest.base-key"
# As in Debian's own slim images: documentation and translations are left out, copyright notices are not.
EXCLUDES = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""
EMPTIED = ("usr/share/groff", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man")
APT_SETTINGS = """\
Acquire::Languages "none";
Acquire::GzipIndexes "true";
APT::AutoRemove::SuggestsImportant "false";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""


@dataclass(frozen=True)
class Base:
    """A base image: its name, the digest of its configuration and its size in bytes."""

    name: str
    identity: str
    size: int


def make_base(buildah: Buildah, name: str) -> Base:
    """The base image of that name, such as ``debian:bookworm-slim``, made unless the store has it.

    Raises:
        ClusterError: the name is not a Debian release's, or debootstrap failed.
    """
    match = DEBIAN.fullmatch(name)
    if match is None:
        raise ClusterError(f"no way is known to make the base image {name} from packages; use debian:<suite>-slim")
    sources = machine.debian_sources(match["suite"], machine.apt_sources())
    key = content_key(SOURCES, [SOURCES / "baseimage.py"], name, *map(str, sources))
    tag = f"localhost/{name.rpartition('/')[2].partition('@')[0]}"
    if not _is_current(buildah, tag, key):
        with step(f"making the base image {name} from Debian's packages"):
            _make(buildah, tag, match["suite"], sources, key)
    return Base(tag, buildah.identity(tag), buildah.size(tag))


def _is_current(buildah: Buildah, tag: str, key: str) -> bool:
    try:
        label = buildah.run(
            "inspect", "--type=image", f'--format={{{{index .OCIv1.Config.Labels "{KEY_LABEL}"}}}}', tag
        )
    except ClusterError:
        return False
    return label == key


def _make(buildah: Buildah, tag: str, suite: str, sources: list[machine.AptSource], key: str) -> None:
    release = next((source for source in sources if source.suite == suite), None)
    with tempfile.TemporaryDirectory(dir=buildah.root.parent) as folder:
        root = Path(folder) / "root"
        keyring = [f"--keyring={release.keyring}"] if release and release.keyring else []
        mirror = [release.uri] if release else []
        capture(["debootstrap", "--variant=minbase", *keyring, suite, root, *mirror])
        _strip(root)
        _configure(root, sources)
        container = buildah.run("from", "scratch")
        try:
            buildah.run("add", "--quiet", container, str(root), "/")
            buildah.run("config", "--cmd", "bash", "--label", f"{KEY_LABEL}={key}", container)
            buildah.run("commit", "--quiet", container, tag)
        finally:
            buildah.run("rm", container)


def _strip(root: Path) -> None:
    """Remove what a container never reads, and what debootstrap left of its own work."""
    for folder in EMPTIED:
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir(parents=True)
    for path in (root / "usr/share/doc").glob("*/*"):
        if path.name != "copyright":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for pattern in ("var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*", "var/log/*", "tmp/*"):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    # The machine's, copied by debootstrap; a container gets its own.
    for name in ("etc/resolv.conf", "etc/hostname", "etc/machine-id"):
        (root / name).unlink(missing_ok=True)


def _configure(root: Path, sources: list[machine.AptSource]) -> None:
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(EXCLUDES)
    (root / "etc/apt/apt.conf.d/slim").write_text(APT_SETTINGS)
    if sources:
        lines = [f"deb {source.uri} {source.suite} main" for source in sources]
        (root / "etc/apt/sources.list").write_text("\n".join([*lines, ""]))
