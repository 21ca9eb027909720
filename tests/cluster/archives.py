"""Images on their way from where they were built into a node's containerd."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO, Protocol

from cluster.addresses import locked
from cluster.buildah import Buildah
from cluster.errors import ClusterError
from cluster.paths import cache_dir
from cluster.processes import capture

# Containerd takes an image's whole name from here (its own importer's annotation, not the OCI specification's).
NAME_ANNOTATION = "io.containerd.image.name"
OCI = "application/vnd.oci.image"


class Loadable(Protocol):
    """An image that can be written for containerd to import."""

    @property
    def name(self) -> str:
        """Its name and tag."""

    @property
    def identity(self) -> str:
        """What stands for its content; two images with the same one need not be told apart."""

    def write(self, output: IO[bytes], present: Collection[str]) -> None:
        """Write it as a tar archive, leaving out blobs whose digests are present where it goes to."""


@dataclass(frozen=True)
class Archive:
    """An image in a file, as ``docker save`` writes it."""

    name: str
    identity: str
    path: Path

    def write(self, output: IO[bytes], present: Collection[str]) -> None:
        """Write the file as it is: what is in it is not known before it is read."""
        with self.path.open("rb") as content:
            shutil.copyfileobj(content, output, 1 << 20)


@dataclass(frozen=True)
class Layers:
    """An image in a file as ``docker save`` writes it, whose layers are known to be uncompressed.

    It is sent in the OCI image layout, where each layer is known by its digest, so that a node is sent only what it
    lacks: mostly the last layer of an image that is built again and again.
    """

    name: str
    identity: str
    path: Path

    def write(self, output: IO[bytes], present: Collection[str]) -> None:
        """Write the layers that are not present, the image's configuration and an index with its name."""
        with tarfile.open(self.path) as source, tarfile.open(fileobj=output, mode="w|") as target:
            manifest = json.loads(_read(source, "manifest.json"))[0]
            config = _read(source, manifest["Config"])
            layers = []
            for digest, file in zip(json.loads(config)["rootfs"]["diff_ids"], manifest["Layers"], strict=True):
                member = source.getmember(file)
                layers.append({"mediaType": f"{OCI}.layer.v1.tar", "digest": digest, "size": member.size})
                if digest not in present:
                    entry = tarfile.TarInfo(_blob(digest))
                    entry.size = member.size
                    target.addfile(entry, source.extractfile(member))
            configuration = _add_blob(target, f"{OCI}.config.v1+json", config)
            content = {
                "schemaVersion": 2,
                "mediaType": f"{OCI}.manifest.v1+json",
                "config": configuration,
                "layers": layers,
            }
            image = _add_blob(target, f"{OCI}.manifest.v1+json", json.dumps(content).encode())
            index = {"schemaVersion": 2, "manifests": [{**image, "annotations": {NAME_ANNOTATION: self.name}}]}
            _add(target, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
            _add(target, "index.json", json.dumps(index).encode())


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    content = archive.extractfile(name)
    if content is None:
        raise ClusterError(f"{archive.name!s} is not an image: {name} is not a file")
    return content.read()


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _add_blob(archive: tarfile.TarFile, media_type: str, content: bytes) -> dict[str, object]:
    digest = f"sha256:{sha256(content).hexdigest()}"
    _add(archive, _blob(digest), content)
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def from_file(path: Path) -> Archive:
    """The image of an archive.

    Raises:
        ClusterError: there is no such file.
    """
    if not path.is_file():
        raise ClusterError(f"there is no archive {path}")
    with path.open("rb") as content:
        return Archive(str(path), f"sha256:{file_digest(content, 'sha256').hexdigest()}", path.resolve())


def _folder(name: str) -> Path:
    path = cache_dir() / "images" / sha256(name.encode()).hexdigest()[:12]
    path.mkdir(parents=True, exist_ok=True)
    return path


def from_docker(name: str) -> Archive:
    """The image of that name that a Docker engine built.

    Raises:
        ClusterError: it has none.
    """
    identity = capture(["docker", "image", "inspect", "--format", "{{.Id}}", name]).strip()
    return Archive(name, identity, _saved(name, identity, ["docker", "save", name, "--output"]))


def from_buildah(buildah: Buildah, name: str) -> Layers:
    """The image of that name that buildah built.

    Raises:
        ClusterError: there is none.
    """
    identity = buildah.identity(name)
    return Layers(name, identity, _saved(name, identity, [*buildah.command(), "push", "--quiet", name], buildah=True))


def _saved(name: str, identity: str, command: Sequence[str | Path], *, buildah: bool = False) -> Path:
    """The file of an image, written by a command to which its path is appended, unless it is there."""
    folder = _folder(name)
    with locked(folder / "lock"):
        path = folder / f"{identity.removeprefix('sha256:')[:16]}.tar"
        if not path.exists():
            for outdated in folder.glob("*.tar*"):
                outdated.unlink()
            unfinished = path.with_suffix(".tar.new")
            capture([*command, f"docker-archive:{unfinished}:{name}" if buildah else unfinished])
            unfinished.rename(path)
    return path


def of_program(program: Path, name: str) -> Archive:
    """An image that holds one static program and nothing else."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo(program.name)
        entry.size, entry.mode = program.stat().st_size, 0o755
        with program.open("rb") as content:
            tar.addfile(entry, content)
    blob = layer.getvalue()
    architecture = {"aarch64": "arm64", "x86_64": "amd64"}[os.uname().machine]
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(blob).hexdigest()}"]},
    }
    config_blob = json.dumps(config).encode()
    digest = sha256(config_blob).hexdigest()
    manifest = [{"Config": f"{digest}.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {f"{digest}.json": config_blob, "layer.tar": blob, "manifest.json": json.dumps(manifest).encode()}
    path = _folder(name) / f"{digest[:16]}.tar"
    unfinished = path.with_suffix(f".{os.getpid()}")
    with tarfile.open(unfinished, "w") as tar:
        for file, content_bytes in files.items():
            _add(tar, file, content_bytes)
    unfinished.rename(path)
    return Archive(name, f"sha256:{digest}", path)
