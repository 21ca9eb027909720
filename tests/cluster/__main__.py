"""The command line: ``python -m cluster --help``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cluster import DEFAULT_NAME, Cluster, existing
from cluster.errors import ClusterError
from cluster.images import build_image, make_bases
from cluster.paths import REPOSITORY
from cluster.progress import together

app = typer.Typer(
    help="A real Kubernetes on this machine, from Go modules and Debian packages.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Name = Annotated[str, typer.Option("--name", "-n", help="Which cluster.", envvar="MEDIANEST_CLUSTER_NAME")]
Nodes = Annotated[int, typer.Option(help="How many nodes.")]
Volumes = Annotated[bool, typer.Option(help="A default StorageClass with volumes of a hard size that can grow.")]
NetworkPolicy = Annotated[bool, typer.Option("--network-policy", help="Enforce NetworkPolicies.")]
S3 = Annotated[bool, typer.Option("--s3", help="An S3 server with TLS.")]


@app.command()
def up(
    name: Name = DEFAULT_NAME,
    nodes: Nodes = 1,
    volumes: Volumes = True,
    network_policy: NetworkPolicy = False,
    s3: S3 = False,
) -> None:
    """Start a cluster, or what is missing of it."""
    cluster = Cluster(name, nodes, volumes=volumes, network_policy=network_policy, s3=s3)
    cluster.up()
    print(cluster.kubeconfig)


@app.command()
def down(
    name: Name = DEFAULT_NAME, everything: Annotated[bool, typer.Option("--all", help="All clusters.")] = False
) -> None:
    """Remove a cluster and leave nothing of it."""
    for each in existing() if everything else [name]:
        Cluster(each).down()


@app.command()
def status(name: Name = DEFAULT_NAME) -> None:
    """Show what runs; fails if anything doesn't."""
    cluster = Cluster(name)
    found = cluster.status()
    if not found:
        raise ClusterError(
            f"there is no cluster {name}" + (f"; there are: {', '.join(existing())}" if existing() else "")
        )
    for place, components in found.items():
        for component, pid in components.items():
            print(f"{place:14} {component:24} {'not running' if pid is None else f'pid {pid}'}")
    if any(pid is None for components in found.values() for pid in components.values()):
        raise ClusterError(f"cluster {name} is not complete: 'up' starts what is missing")
    print(cluster.kubectl("get", "nodes", "--output", "wide"), end="")


@app.command()
def build(network_policy: NetworkPolicy = False, s3: S3 = False) -> None:
    """Build the programs and the base image, install the packages that all of it needs, and start nothing."""
    cluster = Cluster(network_policy=network_policy, s3=s3)
    results = together({"programs": cluster.build, "base": make_bases})
    for program, path in results["programs"].items():
        print(f"{program:24} {path}")
    for base in results["base"]:
        print(f"{base.name:24} {base.size / 1e6:.0f} MB")


@app.command()
def image(
    tag: Annotated[str, typer.Option(help="The image's name and tag.")],
    target: Annotated[str | None, typer.Option(help="The Dockerfile's stage; the last by default.")] = None,
    dockerfile: Annotated[Path, typer.Option("--file", "-f", help="Which Dockerfile.")] = REPOSITORY / "Dockerfile",
    context: Annotated[Path, typer.Option(help="The folder to copy from.")] = REPOSITORY,
) -> None:
    """Build an image, unless nothing of it has changed."""
    built = build_image(tag, target, dockerfile.resolve(), context.resolve())
    print(f"{built}{'  (unchanged)' if built.cached else ''}")


@app.command()
def load(images: Annotated[list[str], typer.Argument(metavar="IMAGE...")], name: Name = DEFAULT_NAME) -> None:
    """Bring built images, or archives of images, into every node."""
    Cluster(name).load(*images)


@app.command()
def logs(
    component: Annotated[str, typer.Argument(help="Such as kube-apiserver or node1-kubelet.")],
    name: Name = DEFAULT_NAME,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added.")] = False,
    lines: Annotated[int, typer.Option(help="How many of the last lines.")] = 100,
) -> None:
    """Show a component's log."""
    path = Cluster(name).log(component)
    os.execvp("tail", ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)])


@app.command()
def kubeconfig(name: Name = DEFAULT_NAME) -> None:
    """Print the path of the admin's kubeconfig."""
    print(Cluster(name).kubeconfig)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def kubectl(arguments: Annotated[list[str], typer.Argument(metavar="...")], name: Name = DEFAULT_NAME) -> None:
    """Run kubectl as the cluster's admin."""
    cluster = Cluster(name)
    program = str(cluster.program("kubenode"))
    os.execv(program, [program, "kubectl", "--kubeconfig", str(cluster.kubeconfig), *arguments])


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...")],
    name: Name = DEFAULT_NAME,
    node: Annotated[str | None, typer.Option(help="On this node instead of beside the control plane.")] = None,
) -> None:
    """Run a command on the cluster's network, where Services and pods can be reached by name."""
    cluster = Cluster(name)
    result: subprocess.CompletedProcess[str] = cluster.node(node).run(command) if node else cluster.run(command)
    raise typer.Exit(result.returncode)


@app.command(context_settings={"ignore_unknown_options": True})
def shell(name: Name = DEFAULT_NAME, node: Annotated[str | None, typer.Option(help="On which node.")] = None) -> None:
    """Open a shell on the cluster's network."""
    run([os.environ.get("SHELL", "/bin/sh")], name, node)


def main() -> None:
    """Run the command line; what goes wrong is told without a traceback."""
    try:
        app()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
