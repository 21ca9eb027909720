"""Building the cluster's programs from Go modules, once for each state of their sources."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cluster.components import KUBERNETES_VERSION
from cluster.errors import ClusterError
from cluster.keys import content_key
from cluster.paths import SOURCES, cache_dir
from cluster.processes import capture
from cluster.progress import step

OLDEST_GO = (1, 25)


@dataclass(frozen=True)
class Program:
    """A Go program of this tree.

    Attributes:
        name: of the binary and in messages.
        module: its module's folder below this package.
        package: its folder within the module.
        flags: for the linker, beyond those that all have.
    """

    name: str
    module: str
    package: str = "."
    flags: str = ""


def _version_flags() -> str:
    """Without these, a Kubernetes that was not built by its own Makefile says that it is v0.0.0."""
    major, minor, _ = KUBERNETES_VERSION.split(".")
    values = {"gitVersion": f"v{KUBERNETES_VERSION}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {package}.{name}={value}" for package in packages for name, value in values.items())


KUBENODE = Program("kubenode", "node", flags=_version_flags())
PAUSE = Program("pause", "node", "./pause")
FORWARD = Program("forward", "node", "./forward")
NETWORK_POLICY = Program("network-policy", "netpol")
S3 = Program("versitygw", "s3", "github.com/versity/versitygw/cmd/versitygw")
VOLUME_CONTROLLER = Program("volume-controller", "node", "./volume-controller")
CLUSTER_PROGRAMS = (PAUSE, FORWARD, KUBENODE, VOLUME_CONTROLLER)


@cache
def go_version() -> str:
    """The machine's Go, such as ``go1.26.1``.

    Raises:
        ClusterError: there is none, or it is too old for the modules.
    """
    if shutil.which("go") is None:
        raise ClusterError(
            f"no Go on this machine: install Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer (go.dev/doc/install)"
        )
    version = capture(["go", "env", "GOVERSION"]).strip()
    parts = version.removeprefix("go").split(".")
    if tuple(int(part) for part in parts[:2] if part.isdigit()) < OLDEST_GO:
        raise ClusterError(
            f"Go {version} is too old for Kubernetes {KUBERNETES_VERSION}: {OLDEST_GO} or newer is needed"
        )
    return version


def key(program: Program) -> str:
    """What the program's binary is kept under: its module's sources, the flags and the compiler."""
    root = SOURCES / program.module
    files = [path for path in root.rglob("*") if path.suffix == ".go" or path.name in ("go.mod", "go.sum")]
    return content_key(root, files, go_version(), program.package, program.flags)


def binary(program: Program) -> Path:
    """Where the program's binary is, once it is built."""
    return cache_dir() / "bin" / key(program) / program.name


def build(program: Program) -> Path:
    """The program's binary, built unless the cache has it.

    Modules are checked against go.sum, which is in this tree, and nothing else may be loaded.

    Raises:
        ClusterError: it doesn't compile, or a module can't be loaded.
    """
    path = binary(program)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    command = ["go", "build", "-mod=readonly", "-trimpath", "-ldflags", f"-s -w {program.flags}".strip()]
    with step(f"building {program.name}"):
        capture(
            [*command, "-o", unfinished, program.package],
            cwd=SOURCES / program.module,
            env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"},
        )
    unfinished.rename(path)
    return path


def build_all(programs: Iterable[Program]) -> dict[str, Path]:
    """Build programs one after the other: the Go tool uses all cores for each of them."""
    return {program.name: build(program) for program in programs}
