"""Generated files are what their sources make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reference
import render
import yaml

from medianest_operator import naming
from medianest_operator.api.conditions import REASONS, Reason
from medianest_operator.api.crd import custom_resource_definitions
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.operation import OperationSpec
from medianest_operator.migrations.source import migrations_from_mapping

GENERATED = render.generated() | {reference.PAGE: reference.page()}


def spec_schema() -> dict[str, Any]:
    definition = yaml.safe_load((render.ROOT / "crds/medianest.io_medianestdatabases.yaml").read_text())
    schema: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: str(path.relative_to(render.ROOT)))
def test_file_is_what_its_source_makes(path: Path) -> None:
    assert path.read_text() == GENERATED[path], "run `make manifests`"


def test_reference_has_every_field_of_the_spec() -> None:
    spec = spec_schema()
    page = reference.PAGE.read_text()
    for name in spec["properties"]:
        assert f"| `spec.{name}` |" in page


@pytest.mark.parametrize("name", ["homelab", "production", "migrations"])
def test_examples_have_only_known_fields(name: str) -> None:
    known = {where for where, _ in reference.fields(spec_schema(), "spec")}

    def check(value: object, where: str) -> None:
        if not isinstance(value, dict) or where == "spec.postgresql.parameters":
            return
        for key, child in value.items():
            assert f"{where}.{key}" in known
            check(child, f"{where}.{key}")

    check(example(name)[0]["spec"], "spec")


def test_example_of_migrations_is_a_source() -> None:
    database, config_map = example("migrations")
    spec = DatabaseSpec.model_validate(database["spec"])
    assert spec.migrations.source.config_map is not None
    assert spec.migrations.source.config_map.name == config_map["metadata"]["name"]
    migrations = migrations_from_mapping(config_map["data"])
    assert spec.migrations.target == migrations[-1].name
    assert all(migration.down for migration in migrations)


def test_example_of_a_restore_is_one() -> None:
    """First a dry run, then the same for good."""
    look, back = (OperationSpec.model_validate(item["spec"]).restore for item in example("restore"))
    assert look is not None
    assert back is not None
    assert (look.dry_run, back.dry_run) == (True, False)
    assert look.target_time == back.target_time
    schema = custom_resource_definitions()[naming.OPERATION_PLURAL]["spec"]["versions"][0]["schema"]
    known = {where for where, _ in reference.fields(schema["openAPIV3Schema"]["properties"]["spec"], "spec")}
    for item in example("restore"):
        assert {f"spec.{name}" for name in item["spec"]} <= known
        assert {f"spec.restore.{name}" for name in item["spec"]["restore"]} <= known


def example(name: str) -> list[dict[str, Any]]:
    """The objects of one of the examples; the first is the database."""
    return list(yaml.safe_load_all((render.ROOT / "examples" / f"{name}.yaml").read_text()))


def test_every_reason_is_in_the_table_once() -> None:
    assert set(REASONS) == set(Reason)


def test_every_reason_that_needs_a_person_has_a_runbook() -> None:
    pages = {path.stem for path in (render.ROOT / "docs" / "runbooks").glob("*.md")} - {"README"}
    assert pages == {reason.value for reason in Reason if reason.has_runbook} | {"DataLost"}
    index = (render.ROOT / "docs" / "runbooks" / "README.md").read_text()
    for page in pages:
        assert f"({page}.md)" in index


def test_controller_needs_nothing_of_the_database_image() -> None:
    """Its image has neither PostgreSQL's parser nor the client of the repositories."""
    code = "import sys, medianest_operator.controller.handlers; print(*{name.split('.')[0] for name in sys.modules})"
    environment = {**os.environ, "PYTHONPATH": str(render.ROOT / "operator")}
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not {"obstore", "pyrage", "pglast", "patroni"} & set(loaded.stdout.split())
