"""The bundled migrations against the application's catalog, as it was read from the application's own migrations."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import migrate
from integration.postgres_server import Database
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.bundled import application_facts, bundled_migrations
from medianest_operator.postgres.catalog import Catalog, read_catalog

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "medianest-catalog.json").read_text())
NAMES = [migration["name"] for migration in FACTS["migrations"]]


@pytest.fixture
def catalog(medianest: Database) -> Catalog:
    with medianest.connect() as connection:
        return read_catalog(connection)


@pytest.mark.parametrize(("section", "without"), [("with_prisma_table", None), ("app", "_prisma_migrations")])
def test_catalog_equals_the_applications(catalog: Catalog, section: str, without: str | None) -> None:
    expected = FACTS[section]
    found = catalog.without_table(without) if without else catalog
    assert _tables(found) == expected["tables"]
    assert _indexes(found) == sorted(expected["indexes"], key=_by_table_and_name)
    assert _constraints(found) == sorted(expected["constraints"], key=_by_table_and_name)
    assert [c for c in _constraints(found) if c["type"] == "f"] == expected["foreign_keys"]
    assert [item.name for item in found.of_kind("sequence")] == expected["sequences"]


def test_nothing_but_tables_indexes_and_sequences(catalog: Catalog) -> None:
    kinds = {key[0] for key in catalog.objects} - {"catalog version"}
    assert kinds == {
        *("table", "column", "constraint", "index", "sequence"),
        *("schema", "extension", "grants", "settings"),
    }


def test_sequences_number_their_columns(catalog: Catalog) -> None:
    owners = {item.name: item.attributes["owned_by"] for item in catalog.of_kind("sequence")}
    assert owners == {
        "rate_limits_id_seq": "rate_limits.id",
        "service_config_id_seq": "service_config.id",
        "service_status_id_seq": "service_status.id",
    }


def test_everything_belongs_to_the_owner_not_to_the_login(catalog: Catalog) -> None:
    owners = {item.attributes["owner"] for kind in ("table", "sequence") for item in catalog.of_kind(kind)}
    assert owners == {"medianest"}


def test_application_role_reads_and_writes_without_owning(medianest: Database) -> None:
    rows = medianest.execute(
        "INSERT INTO service_status (service_name) VALUES ('plex'); SELECT id, service_name FROM service_status",
        user="medianest_app",
    )
    assert rows == [(1, "plex")]


def test_history_rows_are_what_prisma_leaves(empty: Database) -> None:
    migrate(empty, bundled_migrations())
    rows = empty.execute(
        "SELECT id, checksum, migration_name, logs, rolled_back_at, applied_steps_count, started_at <= finished_at,"
        " finished_at <= now() FROM _prisma_migrations ORDER BY started_at"
    )
    assert [row[1:] for row in rows] == [
        (migration["sha256"], migration["name"], None, None, 1, True, True) for migration in FACTS["migrations"]
    ]
    assert {uuid.UUID(row[0]).version for row in rows} == {4}
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", row[0]) for row in rows)


def test_packaged_checksums_are_the_applications() -> None:
    assert application_facts().checksums == {m["name"]: m["sha256"] for m in FACTS["migrations"]}
    assert [migration.name for migration in bundled_migrations()] == NAMES


@pytest.mark.parametrize("number", range(3))
def test_target_stops_after_the_named_migration(empty: Database, number: int) -> None:
    result = migrate(empty, bundled_migrations(), RunOptions(target=NAMES[number]))
    assert (result.reason, result.version) == ("MigrationsApplied", NAMES[number])
    rows = empty.execute("SELECT migration_name FROM _prisma_migrations ORDER BY 1")
    assert [row[0] for row in rows] == NAMES[: number + 1]

    rest = migrate(empty, bundled_migrations())
    assert [item.name for item in rest.applied] == NAMES[number + 1 :]
    with empty.connect() as connection:
        assert _tables(read_catalog(connection)) == FACTS["with_prisma_table"]["tables"]


def test_running_again_does_nothing(medianest: Database) -> None:
    before = medianest.execute("SELECT * FROM _prisma_migrations")
    result = migrate(medianest, bundled_migrations())
    assert (result.outcome, result.reason, result.applied, result.pending) == ("Applied", "UpToDate", (), ())
    assert result.message == f"Up to date at {NAMES[-1]}."
    assert medianest.execute("SELECT * FROM _prisma_migrations") == before


def _by_table_and_name(row: dict[str, Any]) -> tuple[str, str]:
    return row["tbl"], row["name"]


def _tables(catalog: Catalog) -> dict[str, Any]:
    tables: dict[str, list[dict[str, Any]]] = {}
    for column in catalog.of_kind("column"):
        attributes = column.attributes
        tables.setdefault(column.table, []).append(
            {
                "pos": attributes["position"],
                "name": column.name,
                "type": attributes["type"],
                "nullable": attributes["nullable"],
                "default": attributes.get("default"),
            }
        )
        assert set(attributes) <= {"position", "type", "nullable", "default"}
    return {table: {"columns": sorted(columns, key=lambda column: column["pos"])} for table, columns in tables.items()}


def _indexes(catalog: Catalog) -> list[dict[str, Any]]:
    return [
        {
            "tbl": index.table,
            "name": index.name,
            "method": index.attributes["method"],
            "unique": index.attributes["unique"],
            "primary": index.attributes["primary"],
            "valid": index.attributes["valid"],
            "columns": index.attributes["columns"],
            "predicate": index.attributes.get("predicate"),
            "def": index.attributes["definition"],
        }
        for index in catalog.of_kind("index")
    ]


def _constraints(catalog: Catalog) -> list[dict[str, Any]]:
    return [
        {
            "tbl": constraint.table,
            "name": constraint.name,
            "type": constraint.attributes["type"],
            "def": constraint.attributes["definition"],
            "columns": constraint.attributes["columns"],
            "ref_table": constraint.attributes.get("ref_table"),
            "ref_columns": constraint.attributes.get("ref_columns"),
            "on_delete": constraint.attributes.get("on_delete"),
            "on_update": constraint.attributes.get("on_update"),
            "validated": constraint.attributes["validated"],
        }
        for constraint in catalog.of_kind("constraint")
    ]
