"""Migrations and rows for the e2e tests: the bundled ones, one more, and people who asked for films."""

from __future__ import annotations

from typing import Any

from e2e.kube import Kube, Manifest

LAST = "20250905150611_add_password_hash_to_users"
NEXT = "20260101120000_next"
PEOPLE = (
    "INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org'), ('u2', 'bob@example.org');"
    "INSERT INTO media_requests (id, user_id, title, media_type)"
    " VALUES ('m1', 'u1', 'Dune', 'movie'), ('m2', 'u2', 'Dune', 'movie')"
)
DUPLICATES = (
    "ALTER TABLE users ADD COLUMN nickname text;\n"
    "CREATE UNIQUE INDEX media_requests_title_key ON media_requests (title);\n"
)


def bundled() -> dict[str, str]:
    """The bundled migrations as a ConfigMap's data."""
    from medianest_operator.migrations.bundled import bundled_migrations

    return {f"{migration.name}.sql": migration.sql for migration in bundled_migrations()}


def source(kube: Kube, name: str, sql: str, **more: str) -> Manifest:
    """A ConfigMap with the bundled migrations and one more; returns what the spec says of it."""
    data = bundled() | {f"{NEXT}.sql": sql} | more
    kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
    return {"configMap": {"name": name}}


def people(kube: Kube, **spec: Any) -> None:
    """A database with the bundled schema and some rows."""
    kube.database("db", **spec)
    kube.wait_ready("db")
    kube.sql(kube.primary("db"), PEOPLE)
