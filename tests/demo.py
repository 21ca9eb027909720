"""`make demo`: one YAML becomes a database, before your eyes; `make demo-down` takes it all away again.

python tests/demo.py up | down | kubeconfig

Kubernetes is the one that KUBECONFIG names, else kind, else a local cluster. On a given one, only what the demo itself
applied is ever removed; its Namespaces carry a label for that.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from render import install_manifests
from rich.console import Console
from rich.markup import escape

import environment as environments
import prepare
from cluster import Cluster
from cluster.errors import ClusterError
from cluster.progress import step
from environment import NAMESPACE as OPERATOR_NAMESPACE
from environment import ROOT, Environment

CLUSTER = "demo"
NAMESPACE = "medianest"
EXAMPLE = ROOT / "examples" / "homelab.yaml"
OWNED = "medianest.io/demo=true"
"""The label of what the demo made on a given cluster."""
TABLES = 11
HISTORY = "_prisma_migrations"
SECONDS = 300

out = Console(highlight=False, soft_wrap=True)
_COLOURS = {"True": "green", "Unknown": "yellow", "False": "yellow"}


def _given() -> Environment | None:
    path = os.environ.get("KUBECONFIG")
    return Environment(Path(path)) if path else None


def _kind_runs() -> bool:
    return not prepare.needs_local_cluster() and _given() is None


def kubeconfig() -> Path:
    """The file for kubectl."""
    if given := _given():
        return given.kubeconfig
    return ROOT / ".pytest-kind" / CLUSTER / "kubeconfig" if _kind_runs() else Cluster(CLUSTER).kubeconfig


def _owned(kubernetes: Environment, namespace: str) -> bool:
    return bool(kubernetes.kubectl("get", "namespace", "-l", OWNED, "--field-selector", f"metadata.name={namespace}"))


def _make_namespace(kubernetes: Environment, name: str) -> None:
    """Make a namespace and mark it as the demo's, unless it was there before."""
    if not kubernetes.kubectl("get", "namespace", name, "--ignore-not-found"):
        kubernetes.kubectl("create", "namespace", name)
        kubernetes.kubectl("label", "namespace", name, OWNED)


def _install(kubernetes: Environment) -> None:
    """The operator, unless somebody else's runs there already."""
    there = kubernetes.kubectl("get", "crd", "medianestdatabases.medianest.io", "--ignore-not-found")
    if there and not _owned(kubernetes, OPERATOR_NAMESPACE):
        out.print("  ok  the operator that is installed there is used as it is")
        return
    _make_namespace(kubernetes, OPERATOR_NAMESPACE)
    with step("operator installed and running"):
        environments.install(kubernetes)


def _changes(kubernetes: Environment, name: str) -> Iterator[dict[str, Any]]:
    """The database as it is and at every change."""
    command = ["kubectl", "--kubeconfig", str(kubernetes.kubeconfig), "-n", NAMESPACE, "get", "mndb", name]
    with subprocess.Popen([*command, "--watch", "-o", "json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        decoder, text = json.JSONDecoder(), ""
        try:
            for line in process.stdout:
                text += line
                if line.rstrip() == "}":
                    yield decoder.decode(text)
                    text = ""
        finally:
            process.terminate()


def _condition(database: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions = database.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == kind), {})


def _watch(kubernetes: Environment, name: str) -> bool:
    """Print what the status says at every change, until the database is Ready. Returns False where it gets stuck."""
    started = time.monotonic()
    told: tuple[str, str] | None = None
    for database in _changes(kubernetes, name):
        ready = _condition(database, "Ready")
        elapsed = time.monotonic() - started
        if ready and told != (ready["reason"], ready["message"]):
            told = ready["reason"], ready["message"]
            colour = _COLOURS[ready["status"]]
            out.print(f"  {elapsed:5.1f} s  [{colour}]{ready['reason']:<22}[/] {escape(ready['message'])}")
        # What it says of an earlier spec, as where somebody had played with it, decides nothing.
        current = ready.get("observedGeneration") == database["metadata"]["generation"]
        if current and ready["status"] == "True":
            return True
        if (current and _condition(database, "Stalled")) or elapsed > SECONDS:
            return False
    return False


def _show(command: str, kubernetes: Environment) -> str:
    """Run a command as a person would type it, and print it with what it prints."""
    out.print(f"\n[bold]$ {escape(command)}[/]")
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"KUBECONFIG": str(kubernetes.kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
    )
    text = (done.stdout + done.stderr).rstrip()
    out.print(escape(text))
    return text


def _describe(kubernetes: Environment, name: str) -> None:
    """The status, the conditions and the Events."""
    _show(f"kubectl -n {NAMESPACE} get mndb", kubernetes)
    database = json.loads(kubernetes.kubectl("-n", NAMESPACE, "get", "mndb", name, "-o", "json"))
    out.print(f"\n[bold]$ kubectl -n {NAMESPACE} describe mndb {name}[/]   (its conditions and Events)")
    rows = [("TYPE", "STATUS", "REASON", "MESSAGE")]
    rows += [(c["type"], c["status"], c["reason"], c["message"]) for c in database["status"]["conditions"]]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        out.print("  " + escape("  ".join(f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=True))))
    fields = f"involvedObject.kind=MediaNestDatabase,involvedObject.name={name}"
    events = kubernetes.kubectl(
        "-n", NAMESPACE, "get", "events", "--field-selector", fields, "--sort-by=.metadata.creationTimestamp",
        "-o", "custom-columns=TYPE:.type,REASON:.reason,MESSAGE:.message",
    )  # fmt: skip
    out.print()
    out.print(escape("\n".join(f"  {line}" for line in events.rstrip().splitlines())))


def _tell_how_to_connect(kubernetes: Environment, database: str) -> bool:
    """Show the application's Secret at work. Returns whether the application's tables are there."""
    out.print("\n[bold]Connecting[/]")
    own = Path(sys.executable).parent
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != own)
    if shutil.which("kubectl", path=path) is None:
        out.print(f"  export PATH={own}:$PATH        # kubectl comes with the demo's tools")
    out.print(f"  export KUBECONFIG={shlex.quote(str(kubernetes.kubeconfig))}")
    uri = f"$(kubectl -n {NAMESPACE} get secret {database}-app -o jsonpath='{{.data.uri}}' | base64 -d)"
    psql = f'kubectl -n {NAMESPACE} exec -it {database}-0 -c postgres -- psql "{uri}"'
    out.print(f"  {escape(psql)}")
    answer = _show(f"{psql.replace(' -it ', ' ')} -c '\\dt'", kubernetes)
    tables = [name for name in re.findall(r"^ public \| (\S+)", answer, re.MULTILINE) if name != HISTORY]
    out.print(f"\n{len(tables)} tables of the application, and Prisma's own history ({HISTORY}).")
    out.print(
        f"\nThe application's Secret is {NAMESPACE}/{database}-app (DATABASE_URL and more): examples/application.yaml"
    )
    out.print("`make demo-down` removes everything again.")
    return len(tables) >= TABLES


def up() -> int:
    """From nothing to a Ready database. Returns the exit code."""
    started = time.monotonic()
    out.print("[bold]MediaNest database operator: the demo[/]\n")
    prepare.install_for_cluster()
    prepare.build_for_cluster(nodes=1)
    kubernetes = environments.prepare(CLUSTER, nodes=1)
    _install(kubernetes)
    _make_namespace(kubernetes, NAMESPACE)
    example = EXAMPLE.read_text()
    name = yaml.safe_load(example)["metadata"]["name"]
    shown = EXAMPLE.relative_to(ROOT)
    out.print(f"\n[bold]$ kubectl -n {NAMESPACE} apply -f {shown}[/]\n{escape(example.rstrip())}\n")
    kubernetes.kubectl("-n", NAMESPACE, "apply", "-f", str(EXAMPLE))
    ready = _watch(kubernetes, name)
    _describe(kubernetes, name)
    if not ready:
        out.print(
            f"\n[red]{name} is not Ready.[/] The messages above say why; `make shell` opens a shell to look around."
        )
        return 1
    connected = _tell_how_to_connect(kubernetes, name)
    end = "Done" if connected else f"[red]The {TABLES} tables are not all there[/]"
    out.print(f"\n{end} after {time.monotonic() - started:.0f} s.")
    return 0 if connected else 1


def down() -> int:
    """Remove what the demo made. Returns the exit code."""
    given = _given()
    if given is None:
        if _kind_runs():
            subprocess.run(["kind", "delete", "cluster", "--name", CLUSTER], check=True)
        else:
            Cluster(CLUSTER).down()
        return 0
    if _owned(given, NAMESPACE):
        with step(f"removing namespace {NAMESPACE} with the database and its volumes"):
            given.kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")
    elif given.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"):
        with step("removing the database; its volumes are kept, since the namespace isn't the demo's"):
            given.kubectl("-n", NAMESPACE, "delete", "--ignore-not-found", "-f", str(EXAMPLE))
    if not _owned(given, OPERATOR_NAMESPACE):
        return 0
    if others := given.kubectl("get", "mndb", "-A", "--no-headers", "--ignore-not-found"):
        out.print(f"the operator stays, since it has other databases:\n{escape(others.rstrip())}")
        return 0
    with step("removing the operator"):
        text = "---\n".join(yaml.safe_dump(manifest) for manifest in install_manifests())
        given.kubectl("delete", "--ignore-not-found", "--timeout=120s", "-f", "-", text=text)
    return 0


def main(arguments: list[str]) -> int:
    """Run a command. Returns the exit code."""
    # In order with what the builds say, also where a file or a pipe gets it.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        match arguments:
            case ["up"]:
                return up()
            case ["down"]:
                return down()
            case ["kubeconfig"]:
                print(kubeconfig())
                return 0
    except (ClusterError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
