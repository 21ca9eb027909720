"""What the status says of a migration run while its Job hasn't ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from integration.loops import NAMESPACE
from integration.serving import NAME, serving
from medianest_operator import naming
from medianest_operator.kubernetes.kinds import DATABASE, JOB, POD
from medianest_operator.timestamps import stamp_now

RESULT = {"outcome": "Applied", "reason": "MigrationsApplied", "message": "Applied 3 migrations.", "applied": []}


async def test_a_run_says_that_it_is_done_once_its_job_is() -> None:
    async with serving() as made:
        server = made.arena.server
        (job,) = server.all(JOB)
        metadata = {
            "namespace": NAMESPACE,
            "name": f"{job['metadata']['name']}-x",
            "labels": {"app.kubernetes.io/managed-by": naming.OPERATOR, naming.LABEL_DATABASE: NAME},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": job["metadata"]["uid"]}],
        }
        ended = {"exitCode": 0, "finishedAt": "2026-01-01T00:00:00Z", "message": json.dumps(RESULT)}
        container = {"name": "dbctl", "state": {"terminated": ended}}
        server.put(POD, {"metadata": metadata, "status": {"containerStatuses": [container]}})
        complete = job["status"]
        server.put(JOB, job | {"status": {"startTime": "2026-01-01T00:00:00Z"}})
        await made.arena.run(made.key)
        running = made.arena.status(made.key)["schema"]["lastRun"]
        assert (running["outcome"], running.get("message")) == ("Running", None)

        server.put(JOB, server.get(JOB, NAMESPACE, job["metadata"]["name"]) | {"status": complete})
        await made.arena.run(made.key)
        done = made.arena.status(made.key)["schema"]["lastRun"]
        assert (done["outcome"], done["message"]) == ("Applied", "Applied 3 migrations.")


LEFT_LOCKED_OUT = (
    "INSERT INTO medianest_operator.migration_runs (id, source, step, plan, lockout)"
    " VALUES (gen_random_uuid(), 'earlier', 'Applying', '{}', '{}');"
    "DELETE FROM _prisma_migrations WHERE migration_name = (SELECT max(migration_name) FROM _prisma_migrations)"
)
"""As a run leaves it that was killed with the last migration before it."""
CLOSED = "The application is locked out of its database."
NO_SOURCE = {"migrations": {"source": {"configMap": {"name": "gone"}}}}


async def test_a_job_that_ended_without_a_word_does_not_open_the_database() -> None:
    async with serving() as made:
        made.database.execute(LEFT_LOCKED_OUT)
        (job,) = made.arena.server.all(JOB)
        killed = {"type": "Failed", "status": "True", "lastTransitionTime": stamp_now(), "reason": "OOMKilled"}
        made.arena.server.put(JOB, job | {"status": {"startTime": stamp_now(), "conditions": [killed]}})
        made.arena.services.memory.forget(made.key)
        await made.arena.run(made.key)
        assert made.arena.conditions(made.key)["SchemaUpToDate"] == ("False", "MigrationFailed")
        for condition in ("SchemaUpToDate", "Ready"):
            message = made.arena.message(made.key, condition)
            assert message.startswith(CLOSED), message
            assert "as before" not in message


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({}, "Migrating", "is applying"),
        (NO_SOURCE, "MigrationSourceInvalid", "there is no ConfigMap gone in this namespace."),
    ],
)
async def test_a_lockout_that_was_left_comes_first_whoever_speaks(
    spec: dict[str, Any], reason: str, words: str
) -> None:
    """A Job that can't connect, or none at all, can't say it."""
    async with serving() as made:
        made.database.execute(LEFT_LOCKED_OUT)
        live = made.arena.server.get(DATABASE, *made.key)
        made.arena.server.put(DATABASE, live | {"spec": spec})
        for _ in range(2):
            made.arena.services.memory.forget(made.key)
            await made.arena.run(made.key)
        assert made.arena.conditions(made.key)["SchemaUpToDate"] == ("False", reason)
        for condition in ("SchemaUpToDate", "Ready"):
            message = made.arena.message(made.key, condition)
            assert message.startswith(CLOSED), message
            assert words in message
            assert "serves the schema" not in message


async def test_a_job_whose_pod_has_yet_to_begin_is_not_said_to_apply() -> None:
    async with serving() as made:
        made.database.execute("DELETE FROM _prisma_migrations WHERE migration_name LIKE '2025090%'")
        made.arena.services.memory.forget(made.key)
        await made.arena.run(made.key)
        message = made.arena.message(made.key, "SchemaUpToDate")
        assert message.endswith(" is starting, and will apply 20250905150611_add_password_hash_to_users."), message
