"""Parameters: what is tuned from the limits, and what PostgreSQL would refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patroni.collections import CaseInsensitiveSet
from patroni.postgresql.config import ConfigHandler
from patroni.postgresql.validator import transform_postgresql_parameter_value

import parameter_samples
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.parameters import GROUPS, PATRONI_MINIMA, RESERVED_PARAMETERS
from medianest_operator.postgres import parameters
from medianest_operator.postgres.parameter_strings import CHECKED
from medianest_operator.resources.statefulset import resource_requirements
from parameter_samples import KNOWN


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


@given(st.integers(min_value=256, max_value=256 * 1024), st.integers(min_value=25, max_value=1000))
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
        # what breaks the configuration file
        ("search_path", "public\n", "would break the configuration file"),
        ("log_line_prefix", "%m\n", "would break the configuration file"),
        ("search_path", "public,,other", "it takes names of schemas"),
        ("log_timezone", "Nowhere/Land", "not a time zone"),
        ("timezone_abbreviations", "default", "it takes Default, Australia or India"),
        ("lc_messages", "de_DE.UTF-8", "the image has the locales C, POSIX and C.UTF-8"),
        ("wal_consistency_checking", "everything", "it takes all"),
        ("bonjour", "on", "keeps PostgreSQL from starting"),
        ("default_with_oids", "on", "keeps PostgreSQL from starting"),
        ("huge_pages", "on", "keeps PostgreSQL from starting"),
        ("ssl_ciphers", "NULL", "the operator or Patroni owns it"),
        ("jit_provider", "../../x", "the operator or Patroni owns it"),
        # what loses data
        ("fsync", "off", "loses or damages data"),
        ("full_page_writes", 0, "loses or damages data"),
        ("zero_damaged_pages", "on", "loses or damages data"),
        ("ignore_checksum_failure", "on", "loses or damages data"),
        ("session_replication_role", "replica", "loses or damages data"),
        ("recovery_target_time", "2020-01-01", "the operator or Patroni owns it"),
        # who gets in, and who is kept out
        ("password_encryption", "md5", "lets people in"),
        ("ssl_max_protocol_version", "TLSv1", "lets people in"),
        ("default_transaction_read_only", "on", "stops the application, Patroni or this operator"),
        ("transaction_isolation", "serializable", "stops the application, Patroni or this operator"),
        ("idle_session_timeout", "5s", "must be at least 60000 (in ms)"),
        # what Patroni drops without a word
        ("max_wal_senders", 0, "Patroni ignores less and starts PostgreSQL with 10"),
        ("max_replication_slots", "3", "Patroni ignores less and starts PostgreSQL with 10"),
        ("max_worker_processes", 1, "Patroni ignores less and starts PostgreSQL with 8"),
        ("max_locks_per_transaction", 31, "Patroni ignores less and starts PostgreSQL with 64"),
        ("wal_keep_size", "15MB", "Patroni ignores less and starts PostgreSQL with 128MB"),
        ("jit", "t", "is not a boolean"),
        # words that are another parameter's
        ("log_statement", "true", "is not one of none, ddl, mod, all"),
        ("wal_compression", "maybe", "is not one of"),
        # parameters of libraries
        ("auto_explain.log_min_duration", "zzz", "is not a number"),
        ("auto_explain.log_format", "html", "is not one of text, xml, json, yaml"),
        ("pg_stat_statements.most", 5, "pg_stat_statements of PostgreSQL 15 has no such parameter"),
        ("medianest.configuration", "x", "which configuration is loaded"),
        # what doesn't fit into memory or beside other fields
        ("max_locks_per_transaction", 50000, "MB of shared memory would not leave enough"),
        ("max_stack_depth", "16MB", "must be at most 7680 (in kB)"),
        ("max_wal_size", "16MB", "at least 32 (in MB)"),
        ("superuser_reserved_connections", 60, "are not less than connections.max 100"),
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
        ("synchronous_commit", "1"), ("synchronous_commit", "off"), ("fsync", "on"), ("idle_session_timeout", 0),
        ("search_path", '"$user", public'), ("timezone", "europe/berlin"), ("app.tenant", "anything"),
        ("ssl_max_protocol_version", "TLSv1.3"), ("max_wal_senders", 3), ("auto_explain.log_min_duration", "250ms"),
        ("shared_buffers", "512MB"), ("shared_preload_libraries", "pg_stat_statements, auto_explain"),
    ],
)  # fmt: skip
def test_good_values_pass(name: str, value: object) -> None:
    assert parameters.problems(spec(postgresql={"parameters": {name: value}})) == []


@pytest.mark.parametrize("synchronous", ["Preferred", "Required"])
@pytest.mark.parametrize("value", ["off", "OFF", "local", "false", "0", "no"])
def test_commits_that_wait_for_a_replica_cant_be_switched_off(synchronous: str, value: str) -> None:
    wanted = spec(instances=2, postgresql={"synchronous": synchronous, "parameters": {"synchronous_commit": value}})
    (problem,) = parameters.problems(wanted)
    assert problem.startswith("postgresql.parameters.synchronous_commit: ")
    assert f"postgresql.synchronous {synchronous}" in problem


def test_connections_that_patroni_ignores_are_told_of_an_old_object() -> None:
    (problem,) = parameters.problems(spec(connections={"max": 20, "limit": 5}))
    assert problem == "connections.max: Patroni ignores less than 25 and starts PostgreSQL with 100"


def test_memory_that_postgresql_cant_be_tuned_for_is_told_of_an_old_object() -> None:
    problems = parameters.problems(spec(resources={"limits": {"memory": "100Ti"}}))
    assert [problem.split(" for: ")[0] for problem in problems] == [
        "resources.limits.memory: 100Ti is too much to tune shared_buffers",
        "resources.limits.memory: 100Ti is too much to tune effective_cache_size",
    ]
    assert parameters.problems(spec(resources={"limits": {"memory": "4Ti"}})) == []


@pytest.mark.parametrize("limits", [{}, {"cpu": "2"}])
def test_there_is_always_a_memory_limit_and_tuning_follows_it(limits: dict[str, str]) -> None:
    wanted = spec(resources={"limits": limits, "requests": {"memory": "64Mi"}})
    assert resource_requirements(wanted.resources)["limits"]["memory"] == "1Gi"
    assert resource_requirements(wanted.resources)["requests"] == {"cpu": "250m", "memory": "64Mi"}
    assert parameters.tuned(wanted)["shared_buffers"] == "256MB"


def test_every_string_is_checked_or_cant_be_set() -> None:
    names = {name for name, setting in KNOWN.items() if setting["vartype"] == "string"}
    internal = {name for name, setting in KNOWN.items() if setting["context"] == "internal"}
    # Its libraries are compared with those of the image.
    elsewhere = {"shared_preload_libraries", *RESERVED_PARAMETERS, *(name for group in GROUPS for name in group.values)}
    assert names - internal - elsewhere == CHECKED


def test_every_rule_is_about_a_parameter_that_there_is() -> None:
    # The second is known to PostgreSQL, and hidden from its table of parameters.
    hidden = {"default_with_oids", "ignore_invalid_pages"}
    names = {*RESERVED_PARAMETERS, *(name for group in GROUPS for name in group.values), *PATRONI_MINIMA}
    assert names - KNOWN.keys() <= hidden | {"extension_destdir"}


def patroni_takes(name: str, value: str) -> bool:
    """Whether Patroni's own code leaves a parameter as it is; the first kind it passes on the command line."""
    if name in ConfigHandler.CMDLINE_OPTIONS:
        return bool(ConfigHandler.CMDLINE_OPTIONS[name][1](value))
    return bool(transform_postgresql_parameter_value(150000, name, value, CaseInsensitiveSet(KNOWN)) == value)


@pytest.mark.parametrize("name", KNOWN)
def test_patroni_drops_nothing_that_is_accepted(name: str) -> None:
    for value in parameter_samples.samples(name, KNOWN[name]):
        if not parameters.problems(parameter_samples.spec(name, value)):
            assert patroni_takes(name, value), f"{name} = {value!r}"


@pytest.mark.parametrize("name", PATRONI_MINIMA)
def test_the_least_that_patroni_takes_is_as_patroni_says(name: str) -> None:
    least, instead = PATRONI_MINIMA[name]
    fallback, accepts, _ = ConfigHandler.CMDLINE_OPTIONS[name]
    assert accepts(least)
    assert not accepts(least - 1)
    assert instead == fallback
