"""What a cluster was made with, kept beside it, so that it goes on with the same while the tree changes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What a cluster has.

    Attributes:
        nodes: how many.
        volumes: whether there is a default StorageClass.
        network_policy: whether NetworkPolicies are enforced.
        s3: whether an S3 server runs.
    """

    nodes: int = 1
    volumes: bool = True
    network_policy: bool = False
    s3: bool = False

    def __or__(self, other: Options) -> Options:
        """What has everything that either has."""
        return Options(
            max(self.nodes, other.nodes),
            self.volumes or other.volumes,
            self.network_policy or other.network_policy,
            self.s3 or other.s3,
        )


@dataclass(frozen=True)
class Record:
    """A cluster's options, and where its programs are by name."""

    options: Options
    programs: dict[str, Path]

    def write(self, path: Path) -> None:
        """Keep the record, whole or not at all."""
        content = {
            "options": asdict(self.options),
            "programs": {name: str(program) for name, program in self.programs.items()},
        }
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(content, indent=1))
        unfinished.rename(path)

    @staticmethod
    def read(path: Path) -> Record | None:
        """The record, or None if there is none that can be used."""
        try:
            content = json.loads(path.read_text())
            options = Options(**content["options"])
            programs = {name: Path(program) for name, program in content["programs"].items()}
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return Record(options, programs)

    def usable(self) -> bool:
        """Whether the programs are still where they were."""
        return all(program.exists() for program in self.programs.values())
