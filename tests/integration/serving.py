"""A database that really serves, beneath an API server that can fail: PostgreSQL with the operator's own certificates,
a REST API in place of Patroni's, and the reconciler of `loops.py`."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from integration.conftest import migrate
from integration.loops import IMAGE, NAMESPACE, Arena, arena
from integration.postgres_server import Database, PostgresServer
from integration.secured_server import listening
from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.kubernetes.kinds import JOB, POD, SECRET
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.naming import Key
from medianest_operator.postgres import hba, logins, parameters
from medianest_operator.postgres.certificates import KeyPair
from medianest_operator.resources.patroni import dynamic_configuration
from medianest_operator.resources.statefulset import PodInputs

NAME = "db"
SPEC: dict[str, Any] = {}


class Serving:
    """What a test has in hands."""

    def __init__(self, made: Arena, key: Key, postgres: PostgresServer, configuration: dict[str, Any]) -> None:
        self.arena = made
        self.key = key
        self.postgres = postgres
        self.configuration = configuration
        """What Patroni shares among its members."""

    @property
    def database(self) -> Database:
        return Database(self.postgres, "medianest")


@contextlib.asynccontextmanager
async def serving(more: dict[str, Any] | None = None, patience: float = 5.0) -> AsyncIterator[Serving]:
    """A Ready database of one instance.

    Args:
        more: of its spec, nothing that the pod's template depends on.
        patience: for a request to the API server, in seconds.
    """
    async with arena(patience=patience) as made:
        key = made.make(NAME, SPEC | (more or {}), status={"observedGeneration": -1, "phase": "Pending"})
        await made.run(key)
        address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
        with _postgres(made, address) as postgres:
            async with _patroni(made, address) as configuration:
                made.server.put(POD, _pod(address))
                for _ in range(3):
                    await made.run(key)
                _migrated(made, key, postgres)
                for _ in range(3):
                    made.services.memory.forget(key)
                    await made.run(key)
                assert made.conditions(key)["Ready"] == ("True", "Ready"), made.status(key)["conditions"]
                yield Serving(made, key, postgres, configuration)


def _secret(made: Arena, name: str, key: str) -> str:
    return base64.b64decode(made.server.get(SECRET, NAMESPACE, name)["data"][key]).decode()


@contextlib.contextmanager
def _postgres(made: Arena, address: str) -> Iterator[PostgresServer]:
    reader = logins.controller_name("medianest")
    own = KeyPair(
        _secret(made, f"{NAME}-server-tls", naming.TLS_CERT), _secret(made, f"{NAME}-server-tls", naming.TLS_KEY)
    )
    ca = _secret(made, f"{NAME}-ca", naming.TLS_CERT)
    marker = {parameters.MARKER: parameters.marker(DatabaseSpec.model_validate(SPEC))}
    with listening(address, own, ca, hba.rules(reader), hba.identity_map(reader), **marker) as running:
        # The file says what the command line does, so that nothing waits for a restart after a reload.
        for setting in ("max_connections = 60", "shared_buffers = '64MB'"):
            running.maintenance.execute(f"ALTER SYSTEM SET {setting}")
        yield running


@contextlib.asynccontextmanager
async def _patroni(made: Arena, address: str) -> AsyncIterator[dict[str, Any]]:
    configuration = dynamic_configuration(DatabaseSpec.model_validate(SPEC))

    async def answer(request: web.Request) -> web.Response:
        if request.method in {"PUT", "PATCH"}:
            if request.method == "PUT":
                configuration.clear()
            configuration.update(await request.json())
        return web.json_response(configuration)

    with tempfile.TemporaryDirectory(prefix="mn-rest-") as name:
        certificate, key = Path(name, "tls.crt"), Path(name, "tls.key")
        certificate.write_text(_secret(made, f"{NAME}-server-tls", naming.TLS_CERT))
        key.write_text(_secret(made, f"{NAME}-server-tls", naming.TLS_KEY))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
    app = web.Application()
    app.router.add_route("*", "/config", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, address, naming.PATRONI_PORT, ssl_context=context).start()
    try:
        yield configuration
    finally:
        await runner.cleanup()


def _pod(address: str) -> dict[str, Any]:
    names = naming.Names(NAMESPACE, NAME)
    member = {"role": "primary", "state": "running"}
    inputs = PodInputs.of(names, DatabaseSpec.model_validate(SPEC), IMAGE)
    return {
        "metadata": {
            "namespace": NAMESPACE,
            "name": f"{NAME}-0",
            "labels": names.labels(naming.COMPONENT_POSTGRES) | {naming.LABEL_ROLE: naming.ROLE_PRIMARY},
            "annotations": {
                naming.PATRONI_STATUS_ANNOTATION: json.dumps(member),
                naming.ANNOTATION_POD_INPUTS: inputs.digest,
            },
        },
        "spec": {"nodeName": "node1", "containers": [{"name": naming.CONTAINER_POSTGRES, "image": IMAGE}]},
        "status": {
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": naming.CONTAINER_POSTGRES, "state": {"running": {}}}],
        },
    }


def _migrated(made: Arena, key: Key, postgres: PostgresServer) -> None:
    """Do what the migration Job would."""
    database = Database(postgres, "medianest")
    result = migrate(database, bundled_migrations(), user="medianest_migrator")
    assert result.outcome == "Applied", result
    (job,) = made.server.all(JOB)
    ended = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    made.server.put(JOB, job | {"status": {"startTime": "2026-01-01T00:00:00Z", "conditions": [ended]}})
