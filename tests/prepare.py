"""What a bare machine lacks for the tests and the demo: packages, a Go compiler, the built programs and images.

python tests/prepare.py integration   installs PostgreSQL 15, and npm for Prisma's command line
python tests/prepare.py images        builds both images
python tests/prepare.py e2e           builds all that a cluster with the operator needs, and starts none
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import environment
from cluster import Cluster, golang, packages
from cluster.errors import ClusterError
from cluster.images import docker_runs
from cluster.paths import cache_dir
from cluster.processes import capture
from cluster.progress import step, together

POSTGRES = {"/usr/lib/postgresql/15/bin/initdb": "postgresql-15"}
NODE = {"node": "nodejs", "npm": "npm"}
NO_MAIN_CLUSTER = Path("/etc/postgresql-common/createcluster.d/medianest-tests.conf")

GO_VERSION = "1.26.8"
"""What is fetched where the machine's own Go is too old."""
# The toolchain as a module (https://go.dev/doc/toolchain#select), by the machine's architecture.
GO_SUMS = {
    "amd64": "h1:ZOmGe1OnfREDMIdb1Qi4G9JSuDPBLGExZMQ4nis1RXM=",
    "arm64": "h1:sYL/O6MqS68ML0kjsQ36WoYIpJqkw60TxizWUYUKQMc=",
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def install_packages(programs: dict[str, str]) -> None:
    """Install the Debian packages of those programs that aren't there.

    Raises ClusterError where that isn't possible.
    """
    lacking = packages.missing(programs)
    if lacking and os.geteuid() != 0:
        raise ClusterError(f"these packages are missing, and only root can install them: {', '.join(lacking)}")
    if "postgresql-15" in lacking and not NO_MAIN_CLUSTER.exists():
        # The package would otherwise start a server of its own on the machine.
        NO_MAIN_CLUSTER.parent.mkdir(parents=True, exist_ok=True)
        NO_MAIN_CLUSTER.write_text("create_main_cluster = false\n")
    packages.ensure(programs)


def install_for_integration() -> None:
    """PostgreSQL and Prometheus; npm and Go, without which the tests that ask Prisma and an S3 server are skipped (in
    CI they fail).

    Raises ClusterError where PostgreSQL or Prometheus isn't there and can't be had.
    """
    install_packages(POSTGRES)
    packages.unpacked("prometheus")
    try:
        install_packages(NODE)
    except ClusterError as error:
        print(f"Prisma's command line can't be asked: {error}", flush=True)
    try:
        ensure_go()
        golang.build(golang.S3)
    except ClusterError as error:
        print(f"There will be no S3 server: {error}", flush=True)


def ensure_go() -> None:
    """Put a Go on PATH that is new enough: the machine's own, or one that its older Go or Debian's fetches as a module.

    Raises ClusterError where there is none and none can be had.
    """
    fetched = cache_dir() / "go"
    try:
        golang.go_version()
        return
    except ClusterError:
        install_packages({"go": "golang-go"})
    with step(f"fetching Go {GO_VERSION}"):
        _fetch_go(fetched)
    os.environ["PATH"] = f"{fetched / 'bin'}:{os.environ['PATH']}"
    golang.go_version()


def _fetch_go(folder: Path) -> None:
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    module = f"golang.org/toolchain@v0.0.1-go{GO_VERSION}.linux-{architecture}"
    with tempfile.TemporaryDirectory(dir=cache_dir()) as name:
        work = Path(name)
        (work / "go.mod").write_text("module fetch\n")
        settings = {"GOMODCACHE": str(work / "modules"), "GOFLAGS": "-modcacherw", "GOTOOLCHAIN": "local"}
        answer = json.loads(capture(["go", "mod", "download", "-json", module], cwd=work, env=os.environ | settings))
        if answer["Sum"] != GO_SUMS.get(architecture):
            raise ClusterError(f"{module} has the checksum {answer['Sum']}, which is not the expected one")
        root = Path(answer["Dir"])
        # Modules are unpacked without the right to run.
        for program in [*(root / "bin").iterdir(), *(root / "pkg/tool").rglob("*")]:
            program.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        root.rename(folder)


def build_images() -> None:
    """Build both images, unless the ones to use were named."""
    if "OPERATOR_IMAGE" not in os.environ:
        environment.build_images()


def needs_local_cluster() -> bool:
    """Whether `environment.prepare` would make a cluster of its own."""
    return not os.environ.get("KUBECONFIG") and not (docker_runs() and shutil.which("kind"))


def install_for_cluster() -> None:
    """The packages and the compiler for what `build_for_cluster` builds."""
    if docker_runs():
        return
    install_packages({**packages.IMAGES, **(packages.CLUSTER if needs_local_cluster() else {})})
    if needs_local_cluster():
        ensure_go()


def build_for_cluster(nodes: int) -> None:
    """Build everything that a cluster with the operator needs, side by side; quick where it was built before."""
    tasks: dict[str, Callable[[], object]] = {"images": build_images}
    if needs_local_cluster():
        tasks["programs"] = Cluster("prepare", nodes).build
    together(tasks)


def main(arguments: list[str]) -> int:
    """Run one of the commands of the module's text. Returns the exit code."""
    try:
        match arguments:
            case ["integration"]:
                install_for_integration()
            case ["images"]:
                install_packages({} if docker_runs() else packages.IMAGES)
                for name, digest in environment.build_images().items():
                    print(f"{name}  {digest}")
            case ["e2e"]:
                install_for_cluster()
                build_for_cluster(nodes=3)
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
