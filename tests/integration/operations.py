"""`MediaNestOperation` objects beside a database that really serves: the test is the Jobs that they start."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from integration.loops import NAMESPACE
from integration.postgres_server import Database
from integration.serving import Serving, serving
from medianest_operator import naming
from medianest_operator.kubernetes.kinds import DATABASE, JOB, OPERATION, POD, Manifest

REPOSITORY = {"name": "nas", "volume": {"claimName": "nas"}}
TAKEN = "20261122T020000Z-daily-aaaa"
MOMENT = "2026-11-22T03:00:00Z"
MARKER = "CREATE TABLE restored (n int)"


def ask(made: Serving, name: str, *, labels: dict[str, str] | None = None, **spec: Any) -> Manifest:
    """Make an operation: a restore where nothing else is said."""
    wanted = {"database": made.key[1]} | (spec or {"restore": {}})
    metadata = {"namespace": NAMESPACE, "name": name, "labels": labels or {}}
    return made.arena.server.put(OPERATION, {"metadata": metadata, "spec": wanted})


def remove(made: Serving, kind: Any, name: str) -> None:
    """As a person deletes it; what it owns goes with it, as Kubernetes would see to."""
    gone = made.arena.server.objects.pop((kind.plural, NAMESPACE, name))
    for item in [*made.arena.server.all(JOB), *made.arena.server.all(POD)]:
        owners = {owner["uid"] for owner in item["metadata"].get("ownerReferences", [])}
        if gone["metadata"]["uid"] in owners:
            remove(made, JOB if item["kind"] == JOB.kind else POD, item["metadata"]["name"])


@contextlib.asynccontextmanager
async def serving_with_backups() -> AsyncIterator[Serving]:
    """A Ready database that has a repository."""
    async with serving() as made:
        live = made.arena.server.get(DATABASE, *made.key)
        made.arena.server.put(DATABASE, live | {"spec": {"backup": {"repositories": [REPOSITORY]}}})
        await run(made)
        yield made


async def restore(made: Serving) -> None:
    """From the object to its end."""
    await run(made)
    [job] = [job for job in jobs(made) if job["status" if "status" in job else "metadata"].get("conditions") is None]
    filled(made, job)
    await run(made)


def kept_for(made: Serving, days: int) -> None:
    """Let the replaced databases have been kept for so long."""
    made.postgres.maintenance.execute(
        f"""UPDATE medianest_operator.database_marks
               SET mark = mark || jsonb_build_object('at', now() - interval '{days} d') WHERE mark->>'role' = 'kept'"""
    )


async def run(made: Serving, times: int = 2) -> None:
    """Some runs of an operator that has just started."""
    for _ in range(times):
        made.arena.services.memory.forget(made.key)
        await made.arena.run(made.key)


def status(made: Serving, name: str) -> dict[str, Any]:
    """An operation's status."""
    found: dict[str, Any] = made.arena.server.get(OPERATION, NAMESPACE, name).get("status") or {}
    return found


def phase(made: Serving, name: str) -> str | None:
    return status(made, name).get("phase")


def conditions(made: Serving, name: str) -> dict[str, tuple[str, str]]:
    return {item["type"]: (item["status"], item["reason"]) for item in status(made, name).get("conditions", [])}


def jobs(made: Serving, component: str = naming.COMPONENT_RESTORE) -> list[Manifest]:
    """The Jobs of a kind that there are."""
    every = made.arena.server.all(JOB)
    return [job for job in every if job["metadata"]["labels"].get(naming.LABEL_COMPONENT) == component]


def arguments(job: Manifest) -> list[str]:
    """What the Job's program is given."""
    [container] = job["spec"]["template"]["spec"]["containers"]
    command: list[str] = container["command"]
    return command[1:]


def end(
    made: Serving, job: Manifest, result: dict[str, Any] | str, *, succeeded: bool = True, moment: str = MOMENT
) -> None:
    """Let a Job end, with what its pod leaves."""
    end = {"type": "Complete" if succeeded else "Failed", "status": "True", "lastTransitionTime": moment}
    made.arena.server.put(JOB, job | {"status": {"startTime": "2026-11-22T02:59:30Z", "conditions": [end]}})
    name = f"{job['metadata']['name']}-x"
    message = result if isinstance(result, str) else json.dumps(result)
    ended = {"exitCode": 0 if succeeded else 1, "finishedAt": moment, "message": message}
    owner = {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    labels = job["metadata"]["labels"]
    metadata = {"namespace": NAMESPACE, "name": name, "labels": labels, "ownerReferences": [owner]}
    containers = {"containerStatuses": [{"name": "restore", "state": {"terminated": ended}}]}
    spec = {"containers": [{"name": "restore", "image": "x"}]}
    made.arena.server.put(POD, {"metadata": metadata, "spec": spec, "status": containers})


def filled(made: Serving, job: Manifest) -> None:
    """Do what a restore's Job does: fill the candidate, and say that it is verified."""
    environment = {item["name"]: item.get("value") for item in _container(job)["env"]}
    with Database(made.postgres, str(environment["PGDATABASE"])).connect("medianest_migrator") as connection:
        connection.execute("SET ROLE medianest")
        connection.execute(MARKER)
    result = {"outcome": "Succeeded", "message": f"Restored {TAKEN}: all equal.", "backup": TAKEN, "repository": "nas"}
    end(made, job, result)


def _container(job: Manifest) -> dict[str, Any]:
    [container] = job["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def databases(made: Serving) -> dict[str, int]:
    """The server's databases, by name, with their OIDs."""
    rows = made.postgres.maintenance.execute(
        "SELECT datname, oid::bigint FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')"
    )
    return {str(name): int(oid) for name, oid in rows}


def is_restored(made: Serving) -> bool:
    """Whether the live database is the one that a Job has filled."""
    found = made.database.connect("medianest_migrator").execute("SELECT to_regclass('public.restored')").fetchone()
    return found is not None and found[0] is not None
