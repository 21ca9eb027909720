"""Buildah with a store of its own, so that nothing of the machine's images is touched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cluster.errors import ClusterError
from cluster.paths import cache_dir
from cluster.processes import capture

RUN_ROOT = Path("/run/medianest-cluster-images")


@dataclass(frozen=True)
class Buildah:
    """A store of images.

    Attributes:
        root: where the images are.
        run_root: what must not outlive a reboot.
    """

    root: Path
    run_root: Path = RUN_ROOT

    @staticmethod
    @cache
    def default() -> Buildah:
        """The store in the cache folder."""
        return Buildah(cache_dir() / "store")

    def command(self) -> list[str | Path]:
        """The words that every use of this store begins with."""
        return ["buildah", "--root", self.root, "--runroot", self.run_root]

    def run(self, command: str, *arguments: str) -> str:
        """Run one of buildah's commands and return what it printed.

        Raises:
            ClusterError: it failed.
        """
        return capture([*self.command(), command, *arguments]).strip()

    def identity(self, name: str) -> str:
        """The digest of an image's configuration, ``sha256:...``.

        Raises:
            ClusterError: there is no such image.
        """
        try:
            identity = self.run("inspect", "--type=image", "--format={{.FromImageID}}", name)
        except ClusterError as error:
            raise ClusterError(f"there is no image {name}; build it first (python -m cluster image)") from error
        return f"sha256:{identity.removeprefix('sha256:')}"

    def has(self, identity: str) -> bool:
        """Whether an image is in the store."""
        try:
            self.identity(identity.removeprefix("sha256:"))
        except ClusterError:
            return False
        return True

    def size(self, name: str) -> int:
        """An image's size in bytes, unpacked, all layers."""
        wanted = self.identity(name.removeprefix("sha256:")).removeprefix("sha256:")
        manifest = json.loads(self.run("inspect", "--type=image", wanted))
        layers = json.loads((self.root / "overlay-layers" / "layers.json").read_text())
        by_digest = {layer.get("diff-digest"): int(layer.get("diff-size", 0)) for layer in layers}
        return sum(by_digest.get(digest, 0) for digest in manifest["OCIv1"]["rootfs"]["diff_ids"])
