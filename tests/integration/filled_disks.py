"""Disks that are as full as a test says, in place of `stat`: the table that the operator reads is replaced by one that
has what `stat -f` would print."""

from __future__ import annotations

from typing import Any

from integration.loops import NAMESPACE, Arena
from integration.postgres_server import Database
from integration.serving import NAME, SPEC, Serving
from medianest_operator.kubernetes.kinds import CLAIM, DATABASE

GIB = 1024**3
LABELS = {
    "app.kubernetes.io/managed-by": "medianest-operator",
    "app.kubernetes.io/component": "postgres",
    "medianest.io/database": NAME,
}


def disk(made: Serving, percent: int, size: int = 10 * GIB) -> None:
    """Let the server's volume be so full."""
    maintenance = made.postgres.maintenance
    kind = maintenance.execute("SELECT relkind FROM pg_class WHERE relname = 'file_systems'")
    if kind == [("f",)]:
        maintenance.execute("DROP FOREIGN TABLE medianest_operator.file_systems")
        maintenance.execute(
            "CREATE TABLE medianest_operator.file_systems"
            " (id text, block bigint, blocks bigint, free bigint, available bigint)"
        )
    blocks = size // 4096
    free = blocks * (100 - percent) // 100
    maintenance.execute("TRUNCATE medianest_operator.file_systems")
    for _ in ("data", "log"):
        maintenance.execute(f"INSERT INTO medianest_operator.file_systems VALUES ('1', 4096, {blocks}, {free}, {free})")


def claim(made: Arena, size: str = "10Gi", capacity: str | None = None, ordinal: int = 0) -> None:
    """The data volume of an instance."""
    made.server.put(
        CLAIM,
        {
            "metadata": {"namespace": NAMESPACE, "name": f"data-{NAME}-{ordinal}", "labels": LABELS},
            "spec": {"resources": {"requests": {"storage": size}}},
            "status": {"capacity": {"storage": capacity or size}},
        },
    )


def requested(made: Arena, ordinal: int = 0) -> str:
    found = made.server.get(CLAIM, NAMESPACE, f"data-{NAME}-{ordinal}")
    return str(found["spec"]["resources"]["requests"]["storage"])


def spec(made: Serving, **more: Any) -> None:
    database = made.arena.server.get(DATABASE, *made.key)
    made.arena.server.put(DATABASE, database | {"spec": {**SPEC, **more}})


def findings(made: Serving) -> dict[str, dict[str, Any]]:
    """By their reason."""
    return {item["reason"]: item for item in made.arena.status(made.key).get("findings", [])}


async def runs(made: Serving, count: int = 3) -> None:
    for _ in range(count):
        await made.arena.run(made.key)


def writes(database: Database) -> None:
    with database.connect(user="medianest_app") as connection:
        connection.execute("CREATE TEMP TABLE nothing ()")
        connection.execute("UPDATE users SET name = name")


def settings(made: Serving) -> dict[str, str]:
    """The database's own, for every role."""
    asked = (
        "SELECT unnest(setconfig) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase"
        " WHERE datname = 'medianest' AND setrole = 0"
    )
    return dict(str(row[0]).split("=", 1) for row in made.postgres.maintenance.execute(asked))
