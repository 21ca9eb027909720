"""URLs written for Prisma, made fit for libpq; durations as people write them."""

from __future__ import annotations

import pytest
import typer
from psycopg.conninfo import conninfo_to_dict

from medianest_operator.agent.process import duration
from medianest_operator.postgres.connect import conninfo_from, libpq_uri


def test_prismas_parameters_are_dropped_and_libpqs_kept() -> None:
    uri = libpq_uri(
        "postgresql://app:p%40ss@db.media:5433/medianest?connection_limit=20&pool_timeout=30&connect_timeout=10"
        "&sslmode=require&schema=public&pgbouncer=true&statement_cache_size=0&socket_timeout=5"
    )
    assert conninfo_to_dict(uri) == {
        "user": "app",
        "password": "p@ss",
        "host": "db.media",
        "port": "5433",
        "dbname": "medianest",
        "connect_timeout": "10",
        "sslmode": "require",
    }


def test_names_that_mean_something_else_to_prisma_are_translated() -> None:
    uri = libpq_uri("postgres://u@h/d?sslmode=require&sslcert=/ca.pem&sslaccept=strict")
    assert conninfo_to_dict(uri) == {
        "user": "u",
        "host": "h",
        "dbname": "d",
        "sslmode": "verify-full",
        "sslrootcert": "/ca.pem",
    }
    with_key = conninfo_to_dict(libpq_uri("postgres://u@h/d?sslcert=/me.pem&sslkey=/me.key"))
    assert (with_key["sslcert"], with_key["sslkey"]) == ("/me.pem", "/me.key")


@pytest.mark.parametrize(
    ("url", "words"),
    [("mysql://h/d", "does not begin with postgresql://"), ("postgresql://h/d?schema=app", "schema app")],
)
def test_other_urls_are_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        libpq_uri(url)


def test_environment_of_libpq_is_used_without_a_url() -> None:
    assert conninfo_from({"PGHOST": "db"}) == ""
    assert conninfo_from({"DATABASE_URL": "postgresql://h/d?pool_timeout=1"}) == "postgresql://h/d"


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("0", 0), ("10s", 10_000), ("1m30s", 90_000), ("2min", 120_000), ("500ms", 500), ("1h", 3_600_000)],
)
def test_durations(text: str, milliseconds: int) -> None:
    assert duration(text) == milliseconds


@pytest.mark.parametrize("text", ["", "10", "s", "10 s", "-1s", "1.5s", "10sec"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a duration"):
        duration(text)


def test_a_space_of_a_parameter_is_one_for_libpq() -> None:
    uri = libpq_uri("postgres://u@h/d?options=-c%20work_mem%3D4MB")
    assert conninfo_to_dict(uri)["options"] == "-c work_mem=4MB"
