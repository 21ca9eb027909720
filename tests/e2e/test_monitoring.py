"""A real Prometheus scrapes the operator, reads the chart's alerts, and has an answer for every panel."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster import packages
from e2e.backups import ask, wait_over
from e2e.kube import Kube
from environment import NAMESPACE, Environment

_FILES = Path(__file__).resolve().parents[2] / "charts/medianest-operator/files"


class Prometheus:
    """One that runs on this machine's loopback.

    Args:
        address: its own, for its API.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **parameters: str) -> Any:
        """The data that its API answers with."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def series(self, expression: str) -> list[dict[str, Any]]:
        """The series that there are of an expression at this moment."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def wait(self, expression: str, seconds: float = 60) -> list[dict[str, Any]]:
        """The same, once there are any; none where there are none until the end."""
        deadline = time.monotonic() + seconds
        while not (found := self.series(expression)) and time.monotonic() < deadline:
            time.sleep(1)
        return found


@contextlib.contextmanager
def prometheus(environment: Environment, folder: Path) -> Iterator[Prometheus]:
    """One that scrapes each of the operator's pods through the API server, and evaluates the chart's rules."""
    with contextlib.ExitStack() as stack:
        command = ["kubectl", "--kubeconfig", str(environment.kubeconfig), "proxy", "--port=0"]
        proxy = stack.enter_context(_running(command))
        port = re.search(r"127\.0\.0\.1:(\d+)", _line(proxy))
        assert port is not None
        pods = environment.kubectl(
            "get", "pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=medianest-operator",
            "-o", "jsonpath={.items[*].metadata.name}",
        )  # fmt: skip
        scrapes = [
            {
                "job_name": pod,
                "honor_labels": True,
                "metrics_path": f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics",
                "static_configs": [{"targets": [f"127.0.0.1:{port[1]}"], "labels": {"pod": pod}}],
            }
            for pod in pods.split()
        ]
        document = {
            "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
            "rule_files": [str(_FILES / "rules.yaml")],
            "scrape_configs": scrapes,
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(document))
        program = packages.unpacked("prometheus") / "usr/bin/prometheus"
        options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        started = stack.enter_context(_running([str(program), *options, "--web.listen-address=127.0.0.1:0"]))
        while not (address := re.search(r'msg="?Listening on"? address=(\S+)', _line(started))):
            continue
        yield Prometheus(address[1])


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "it ended"
    return line


def test_every_panel_and_every_alert_has_what_it_asks_for(kube: Kube, environment: Environment, tmp_path: Path) -> None:
    kube.database("db", instances=2)
    kube.wait_ready("db")
    ask(kube, "first", verify=True)
    wait_over(kube, "first")
    with prometheus(environment, tmp_path) as running:
        kube.sql(kube.primary("db"), "ALTER SYSTEM SET autovacuum = off", "postgres")
        kube.sql(kube.primary("db"), "SELECT pg_reload_conf()", "postgres")
        kube.wait_condition("db", "Healthy", "False", "AutovacuumOff")
        _there(running, f'medianest_finding{{namespace="{kube.namespace}", reason="AutovacuumOff", object="server"}}')
        alert = f'ALERTS{{alertname="MediaNestAutovacuumOff", namespace="{kube.namespace}", alertstate="firing"}}'
        _there(running, alert)
        for query in _queries(kube.namespace):
            _there(running, query)
        rules = [rule for group in running.ask("rules")["groups"] for rule in group["rules"]]
        assert [rule for rule in rules if rule["health"] != "ok"] == []
        kube.sql(kube.primary("db"), "ALTER SYSTEM RESET autovacuum", "postgres")
        kube.sql(kube.primary("db"), "SELECT pg_reload_conf()", "postgres")
        kube.wait_condition("db", "Healthy", "True", "Healthy")
        _there(running, f"absent({alert})")
        own = f'{{namespace="{kube.namespace}", name="db", __name__=~"medianest_.+"}}'
        assert 40 <= len(running.series(own)) <= 80


def _there(running: Prometheus, expression: str) -> None:
    assert running.wait(expression), f"{expression} has no series"


def _queries(namespace: str) -> Iterator[str]:
    """What the panels of both dashboards ask for."""
    for path in sorted((_FILES / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield target["expr"].replace("$namespace", namespace).replace("$name", "db")
