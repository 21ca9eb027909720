"""Container images without a container engine: built by buildah, on a base made by debootstrap.

Where a Docker engine runs, it builds them instead, from the same Dockerfile.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from cluster import archives, machine, packages
from cluster.addresses import locked
from cluster.archives import Loadable
from cluster.baseimage import Base, make_base
from cluster.buildah import Buildah
from cluster.dockerfile import copied_files, parse
from cluster.errors import ClusterError
from cluster.keys import content_key
from cluster.paths import REPOSITORY, cache_dir
from cluster.processes import capture
from cluster.progress import step


@dataclass(frozen=True)
class BuiltImage:
    """An image that was built.

    Attributes:
        name: its name and tag.
        identity: the digest of its configuration, which stands for its whole content.
        size: bytes, unpacked.
        added: bytes beyond its base image.
        cached: whether nothing had changed since it was last built.
    """

    name: str
    identity: str
    size: int
    added: int
    cached: bool = False

    def __str__(self) -> str:
        return f"{self.name}  {self.identity[:19]}  {self.size / 1e6:.0f} MB, {self.added / 1e6:.0f} MB beyond its base"


@cache
def docker_runs() -> bool:
    """Whether a Docker engine answers on this machine."""
    return (
        shutil.which("docker") is not None
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    )


def context_files(context: Path) -> list[Path]:
    """The files of a build context, relative to it: what git knows, and what is new and not ignored."""
    output = capture(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=context)
    return [Path(name) for name in output.split("\0") if name]


def build_key(dockerfile: Path, context: Path, target: str | None, base: Sequence[str]) -> str:
    """What the result of a build is kept under: everything that the build reads from this tree, and its bases."""
    parsed = parse(dockerfile.read_text())
    files = [context / path for path in copied_files(parsed.sources, context_files(context))]
    ignore = context / ".dockerignore"
    files += [ignore] if ignore.exists() else []
    return content_key(context, files, parsed.text, target or "", *base)


def build_image(
    name: str, target: str | None = None, dockerfile: Path = REPOSITORY / "Dockerfile", context: Path = REPOSITORY
) -> BuiltImage:
    """Build an image, unless it was built from the same content before.

    Args:
        name: the image's name and tag, such as ``localhost/medianest-operator:dev``.
        target: the stage of the Dockerfile; None for the last.
        dockerfile: the file to build from.
        context: the folder that ``COPY`` copies from.

    Raises:
        ClusterError: the build failed; the message holds the end of its log.
    """
    if not dockerfile.exists():
        raise ClusterError(f"there is no {dockerfile}")
    if docker_runs():
        return _docker_build(name, target, dockerfile, context)
    buildah = Buildah.default()
    bases = make_bases(dockerfile)
    key = build_key(dockerfile, context, target, [base.identity for base in bases])
    record = cache_dir() / "images" / f"{key}.json"
    if record.exists():
        known = BuiltImage(**json.loads(record.read_text()))
        if buildah.has(known.identity):
            buildah.run("tag", known.identity, name)
            return BuiltImage(name, known.identity, known.size, known.added, cached=True)
    identity = _buildah_build(buildah, name, target, dockerfile, context)
    size = buildah.size(identity)
    built = BuiltImage(name, identity, size, size - min(base.size for base in bases))
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(asdict(built)))
    return built


def make_bases(dockerfile: Path = REPOSITORY / "Dockerfile") -> list[Base]:
    """Make the images that a Dockerfile starts from, unless they are there; a Docker engine gets its own.

    Raises:
        ClusterError: one can't be made from Debian's packages.
    """
    if docker_runs():
        return []
    packages.require_root()
    packages.ensure(packages.IMAGES)
    buildah = Buildah.default()
    with locked(buildah.root.parent / "bases.lock"):
        return [make_base(buildah, base) for base in parse(dockerfile.read_text()).bases]


def _buildah_build(buildah: Buildah, name: str, target: str | None, dockerfile: Path, context: Path) -> str:
    with tempfile.TemporaryDirectory() as folder, step(f"building image {name}"):
        mounts = machine.build_mounts(Path(folder))
        buildah.run(
            "bud",
            "--isolation=chroot",
            "--network=host",
            "--layers",
            "--pull-never",
            *(f"--volume={here}:{there}:ro" for there, here in mounts.items()),
            *([f"--target={target}"] if target else []),
            f"--tag={name}",
            f"--file={dockerfile}",
            str(context),
        )
    return buildah.identity(name)


def _docker_build(name: str, target: str | None, dockerfile: Path, context: Path) -> BuiltImage:
    with step(f"building image {name}"):
        stage = [f"--target={target}"] if target else []
        capture(["docker", "build", *stage, "--tag", name, "--file", dockerfile, context])
    base = parse(dockerfile.read_text()).bases[0]

    def inspect(image: str) -> tuple[str, int]:
        identity, size = capture(["docker", "image", "inspect", "--format", "{{.Id}} {{.Size}}", image]).split()
        return identity, int(size)

    identity, size = inspect(name)
    return BuiltImage(name, identity, size, size - inspect(base)[1])


def find(name: str) -> Loadable:
    """An image that was built, or the one in an archive, ready to be loaded.

    Args:
        name: the image's name, or the path of a Docker archive (``.tar``).

    Raises:
        ClusterError: there is no such image.
    """
    if name.endswith(".tar"):
        return archives.from_file(Path(name))
    return archives.from_docker(name) if docker_runs() else archives.from_buildah(Buildah.default(), name)
