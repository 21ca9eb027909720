"""What the e2e tests say to Kubernetes: apply, wait for what a watch tells, run SQL in a pod."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import PIPE
from typing import Any

import kubernetes.config
import kubernetes.dynamic
import yaml
from kubernetes.dynamic.exceptions import NotFoundError

from environment import NAMESPACE, Environment, secret

Manifest = dict[str, Any]

API_VERSION = "medianest.io/v1alpha1"
KIND = "MediaNestDatabase"
BACKUP = "MediaNestBackup"
OPERATION = "MediaNestOperation"
SMALL: Manifest = {
    "storage": {"size": "1Gi", "onDelete": "Delete"},
    "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
}
"""A spec that lets many databases fit on a small machine."""


_VERSIONS = {
    KIND: API_VERSION,
    BACKUP: API_VERSION,
    OPERATION: API_VERSION,
    "StatefulSet": "apps/v1",
    "Deployment": "apps/v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
}


class Kube:
    """The cluster of a test, and the namespace that it works in."""

    def __init__(self, environment: Environment, namespace: str) -> None:
        self.environment = environment
        self.namespace = namespace
        client = kubernetes.config.new_client_from_config(config_file=str(environment.kubeconfig))  # type: ignore[no-untyped-call]
        self._dynamic = kubernetes.dynamic.DynamicClient(client)  # type: ignore[no-untyped-call]

    def _resource(self, kind: str) -> Any:
        return self._dynamic.resources.get(api_version=_VERSIONS.get(kind, "v1"), kind=kind)

    def kubectl(self, *arguments: str, check: bool = True, text: str | None = None) -> str:
        return self.environment.kubectl("-n", self.namespace, *arguments, check=check, text=text)

    def apply(self, manifest: Manifest) -> None:
        """As a person does it: kubectl apply."""
        self.kubectl("apply", "-f", "-", text=yaml.safe_dump(manifest))

    def database(self, name: str, **spec: Any) -> None:
        """Apply a small database."""
        self.apply({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": SMALL | spec})

    def patch(self, name: str, spec: Manifest) -> None:
        self.kubectl("patch", "mndb", name, "--type", "merge", "-p", yaml.safe_dump({"spec": spec}))

    def get(self, kind: str, name: str) -> Manifest | None:
        try:
            found: Manifest = self._resource(kind).get(namespace=self.namespace, name=name).to_dict()
        except NotFoundError:
            return None
        return found

    def all(self, kind: str, **options: Any) -> list[Manifest]:
        items: list[Manifest] = self._resource(kind).get(namespace=self.namespace, **options).to_dict()["items"]
        return items

    def wait(
        self, kind: str, name: str, until: Callable[[Manifest | None], bool], what: str, seconds: float = 180
    ) -> Manifest:
        """Watch one object until it is as wanted (None while it isn't there). Fails with all that is known of it."""
        deadline = time.monotonic() + seconds
        resource = self._resource(kind)
        while (left := deadline - time.monotonic()) > 0:
            listed = resource.get(namespace=self.namespace, field_selector=f"metadata.name={name}")
            items = listed.to_dict()["items"]
            current = items[0] if items else None
            if until(current):
                return current or {}
            for event in resource.watch(
                namespace=self.namespace,
                field_selector=f"metadata.name={name}",
                resource_version=listed.metadata.resourceVersion,
                timeout=max(1, int(left)),
            ):
                if event["type"] == "ERROR":
                    break
                current = None if event["type"] == "DELETED" else event["raw_object"]
                if until(current):
                    return current or {}
        detail = self.kubectl("describe", kind.lower(), name, check=False)
        raise AssertionError(f"{kind} {name}: not {what} within {seconds:.0f} s\n{detail}")

    def wait_ready(self, name: str, seconds: float = 180) -> Manifest:
        """Wait until the spec as it is now is acted on and Ready."""
        generation = self.get(KIND, name)["metadata"]["generation"]  # type: ignore[index]

        def ready(current: Manifest | None) -> bool:
            condition = condition_of(current, "Ready")
            return condition.get("status") == "True" and condition.get("observedGeneration") >= generation

        return self.wait(KIND, name, ready, f"Ready at generation {generation}", seconds)

    def wait_condition(self, name: str, kind: str, status: str, reason: str, seconds: float = 240) -> Manifest:
        """Wait for a condition; return it."""

        def there(current: Manifest | None) -> bool:
            condition = condition_of(current, kind)
            return (condition.get("status"), condition.get("reason")) == (status, reason)

        return condition_of(self.wait(KIND, name, there, f"{kind}={status} {reason}", seconds), kind)

    def wait_gone(self, kind: str, name: str, seconds: float = 240) -> None:
        self.wait(kind, name, lambda current: current is None, "gone", seconds)

    def primary(self, name: str) -> str:
        return str(self.get(KIND, name)["status"]["instances"]["primary"])  # type: ignore[index]

    def sql(self, pod: str, statement: str, database: str = "medianest") -> str:
        """Run SQL as the superuser over the pod's own socket."""
        return self.kubectl("exec", pod, "-c", "postgres", "--", "psql", "-XAtqd", database, "-c", statement).strip()

    def client_sql(self, pod: str, uri: str, statement: str, *, check: bool = True) -> str:
        """Run SQL from inside a pod as any client would: through the Service, over TLS, with a password."""
        return self.kubectl(
            "exec", pod, "-c", "postgres", "--", "psql", "-XAtq", uri, "-c", statement, check=check
        ).strip()

    @contextmanager
    def session(self, pod: str, uri: str) -> Iterator[Callable[[str], str]]:
        """One open connection of a client in a pod, to ask a question at a time."""
        command = ["kubectl", "--kubeconfig", str(self.environment.kubeconfig), "-n", self.namespace, "exec", "-i", pod]
        process = subprocess.Popen(
            [*command, "-c", "postgres", "--", "psql", "-XAtq", uri], stdin=PIPE, stdout=PIPE, text=True, bufsize=1
        )
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answer = process.stdin, process.stdout

        def question(statement: str) -> str:
            ask.write(statement + ";\n")
            ask.flush()
            return answer.readline().strip()

        try:
            yield question
        finally:
            ask.close()
            process.wait(timeout=30)

    def secret(self, name: str) -> dict[str, str]:
        return secret(self.environment, self.namespace, name)

    def events(self, name: str) -> list[tuple[str, str]]:
        """Reason and message of the database's Events, in order."""
        found = self.all("Event", field_selector=f"involvedObject.name={name},involvedObject.kind={KIND}")
        found.sort(key=lambda event: event["metadata"]["creationTimestamp"])
        return [(event["reason"], event["message"]) for event in found]

    def wait_event(self, name: str, *reasons: str, times: int = 1, seconds: float = 180) -> None:
        """Wait until one of these reasons was told so often: an Event comes after the status that it tells of."""
        resource = self._resource("Event")
        fields = f"involvedObject.name={name},involvedObject.kind={KIND}"
        counts: dict[str, int] = {}
        # Without a version the watch begins with all that are there.
        for event in resource.watch(namespace=self.namespace, field_selector=fields, timeout=int(seconds)):
            found = event["raw_object"]
            if found["reason"] in reasons:
                # The same one again counts up.
                counts[found["metadata"]["uid"]] = found.get("count") or 1
            if sum(counts.values()) >= times:
                return
        told = f"{sum(counts.values())} Events {', '.join(reasons)}"
        raise AssertionError(f"{KIND} {name}: {told} within {seconds:.0f} s, {times} were expected")

    def reasons(self, name: str) -> set[str]:
        return {reason for reason, _ in self.events(name)}


def condition_of(manifest: Manifest | None, kind: str) -> Manifest:
    """A condition; empty where there is none."""
    conditions = ((manifest or {}).get("status") or {}).get("conditions") or []
    return next((item for item in conditions if item["type"] == kind), {})


def acted_on(manifest: Manifest | None) -> bool:
    """Whether the operator has acted on an object as it is now."""
    current = manifest or {}
    return bool(current["status"].get("observedGeneration") == current["metadata"]["generation"])


@contextmanager
def stopped_operator(environment: Environment) -> Iterator[None]:
    """No operator, but one that the test may run itself."""
    scale = ("-n", NAMESPACE, "scale", "deployment/medianest-operator")
    environment.kubectl(*scale, "--replicas=0")
    selector = "app.kubernetes.io/name=medianest-operator"
    environment.kubectl("-n", NAMESPACE, "wait", "--for=delete", "pod", "-l", selector, "--timeout=180s")
    try:
        yield
    finally:
        environment.kubectl(*scale, "--replicas=2")
        environment.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/medianest-operator", "--timeout=240s")
