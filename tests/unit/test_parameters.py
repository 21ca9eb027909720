"""Parameters: what is tuned from the limits, and what PostgreSQL would refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.quantity import to_bytes
from medianest_operator.postgres import parameters


def spec(**fields: object) -> DatabaseSpec:
    return DatabaseSpec.model_validate(fields)


def test_a_gibibyte_gets_the_reports_buffers() -> None:
    tuned = parameters.tuned(spec())
    assert tuned["shared_buffers"] == "256MB"
    assert tuned["maintenance_work_mem"] == "64MB"
    assert parameters.desired(spec())["max_connections"] == "100"


def test_the_admins_word_goes_before_the_tuned_one() -> None:
    assert parameters.desired(spec(postgresql={"parameters": {"work_mem": "12MB"}}))["work_mem"] == "12MB"


def test_the_marker_changes_with_every_parameter_and_with_nothing_else() -> None:
    plain, other = spec(), spec(postgresql={"parameters": {"work_mem": "12MB"}})
    assert parameters.marker(plain) == parameters.marker(spec(instances=3))
    assert parameters.marker(plain) != parameters.marker(other)
    assert parameters.marker(plain) != parameters.marker(spec(connections={"max": 101}))


@given(st.integers(min_value=256, max_value=256 * 1024), st.integers(min_value=20, max_value=1000))
def test_what_is_tuned_is_never_refused(memory: int, connections: int) -> None:
    tuned_spec = spec(resources={"limits": {"memory": f"{memory}Mi"}}, connections={"max": connections, "limit": 1})
    own = {name: value for name, value in parameters.tuned(tuned_spec).items() if name != "max_connections"}
    assert (
        parameters.problems(
            tuned_spec.model_copy(update={"postgresql": spec(postgresql={"parameters": own}).postgresql})
        )
        == []
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("wrok_mem", "8MB", "PostgreSQL 15 has no such parameter"),
        ("work_mem", "many", "is not a number with or without a unit (default kB)"),
        ("work_mem", "8XB", "unknown unit XB"),
        ("work_mem", "1", "outside of 64 .. 2147483647 (in kB)"),
        ("jit", "maybe", "is not a boolean"),
        ("synchronous_commit", "sometimes", "is not one of"),
        ("server_version", "16", "PostgreSQL reports it only"),
        ("shared_preload_libraries", "pg_stat_statements,timescaledb", "timescaledb isn't in the database image"),
        ("shared_buffers", "900MB", "would not leave enough of the memory limit of 1024MB"),
        ("checkpoint_timeout", "2d", "outside of 30 .. 86400 (in s)"),
        ("random_page_cost", "-1", "outside of 0"),
    ],
)
def test_problem_names_the_field(name: str, value: str, said: str) -> None:
    (problem,) = parameters.problems(spec(postgresql={"parameters": {name: value}}))
    assert problem.startswith(f"postgresql.parameters.{name}: ")
    assert said in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("work_mem", "8MB"), ("work_mem", 8192), ("log_min_duration_statement", "50ms"), ("jit", "on"),
        ("checkpoint_timeout", "15min"), ("pg_stat_statements.max", 5000), ("synchronous_commit", "remote_write"),
        ("shared_buffers", "512MB"), ("shared_preload_libraries", "pg_stat_statements, auto_explain"),
    ],
)  # fmt: skip
def test_good_values_pass(name: str, value: object) -> None:
    assert parameters.problems(spec(postgresql={"parameters": {name: value}})) == []


@pytest.mark.parametrize(
    ("quantity", "number"), [("1Gi", 2**30), ("1G", 10**9), ("512Mi", 2**29), ("1024", 1024), (7, 7)]
)
def test_quantities(quantity: str | int, number: int) -> None:
    assert to_bytes(quantity) == number
