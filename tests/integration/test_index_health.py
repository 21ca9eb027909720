"""Index health as status shows it, from databases where something is wrong with the indexes."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
from psycopg import AsyncConnection

from integration.postgres_server import Database
from medianest_operator.health.indexes import (
    DuplicateIndex,
    IndexHealth,
    UnindexedForeignKey,
    read_index_health,
    read_index_health_async,
)
from medianest_operator.migrations.bundled import application_facts

CRITICAL = application_facts().critical_indexes


def test_bundled_schema(medianest: Database) -> None:
    assert health_of(medianest) == IndexHealth(
        total=33,
        total_with_history=34,
        critical_expected=6,
        critical_present=6,
        unindexed_foreign_keys=(
            UnindexedForeignKey(table="accounts", name="accounts_user_id_fkey", columns=("user_id",)),
            UnindexedForeignKey(table="service_config", name="service_config_updated_by_fkey", columns=("updated_by",)),
        ),
    )
    assert health_of(medianest).is_healthy


def test_empty_database(empty: Database) -> None:
    health = health_of(empty)
    assert (health.total, health.critical_present, health.missing) == (0, 0, CRITICAL)
    assert not health.is_healthy


@pytest.mark.parametrize("name", CRITICAL)
def test_dropped_critical_index_is_missing(medianest: Database, name: str) -> None:
    medianest.execute(f"DROP INDEX {name}")
    health = health_of(medianest)
    assert (health.total, health.critical_present, health.missing) == (32, 5, (name,))
    assert not health.is_healthy


def test_invalid_critical_index_is_not_present(medianest: Database) -> None:
    medianest.execute("DROP INDEX users_email_key; INSERT INTO users (id, email) VALUES ('a', 'x'), ('b', 'x')")
    with contextlib.suppress(psycopg.errors.UniqueViolation):
        medianest.execute("CREATE UNIQUE INDEX CONCURRENTLY users_email_key ON users (email)")
    health = health_of(medianest)
    assert (health.total, health.critical_present) == (33, 5)
    assert (health.missing, health.invalid) == (("users_email_key",), ("users_email_key",))
    assert not health.is_healthy


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        ("CREATE INDEX extra ON users (email)", "users_email_key"),
        ("CREATE UNIQUE INDEX extra ON users (email)", None),
        ("CREATE UNIQUE INDEX extra ON users (id)", "users_pkey"),
        ("CREATE INDEX extra ON media_requests USING btree (user_id, status)", None),
        ("ALTER TABLE users ADD CONSTRAINT extra UNIQUE (id)", "users_pkey"),
    ],
)
def test_duplicate_is_named_with_the_one_to_keep(medianest: Database, index: str, kept: str | None) -> None:
    medianest.execute(index)
    [duplicate] = health_of(medianest).duplicates
    if kept is None:
        # Equal in everything but the name: the first by name stays.
        assert {duplicate.name, duplicate.duplicate_of} == {"extra", *CRITICAL} & {
            *("extra", duplicate.name, duplicate.duplicate_of)
        }
    else:
        assert duplicate == DuplicateIndex(table="users", name="extra", duplicate_of=kept)
    assert health_of(medianest).is_healthy


@pytest.mark.parametrize(
    "index",
    [
        "CREATE INDEX extra ON users (email DESC)",
        "CREATE INDEX extra ON users (email text_pattern_ops)",
        'CREATE INDEX extra ON users (email COLLATE "C")',
        "CREATE INDEX extra ON users (email) WHERE status = 'active'",
        "CREATE INDEX extra ON users (lower(email))",
        "CREATE INDEX extra ON users USING hash (email)",
        "CREATE INDEX extra ON users (email, name)",
        "CREATE INDEX extra ON users (email) INCLUDE (name)",
        "CREATE INDEX extra ON media_requests (status, user_id)",
        "CREATE INDEX extra ON accounts (id, user_id)",
    ],
)
def test_index_that_answers_something_else_is_no_duplicate(medianest: Database, index: str) -> None:
    medianest.execute(index)
    assert health_of(medianest).duplicates == ()


def test_duplicates_by_expression_and_predicate(medianest: Database) -> None:
    for name in ("b", "a"):
        medianest.execute(f"CREATE INDEX {name} ON users (lower(email)) WHERE status = 'active'")
    assert health_of(medianest).duplicates == (DuplicateIndex(table="users", name="b", duplicate_of="a"),)


@pytest.mark.parametrize(
    ("index", "supports"),
    [
        ("(user_id)", True),
        ("(user_id, type)", True),
        ("(type, user_id)", False),
        ("(user_id) WHERE type = 'oauth'", False),
        ("(type) INCLUDE (user_id)", False),
        ("(upper(user_id))", False),
    ],
)
def test_foreign_key_is_supported_by_leading_columns(medianest: Database, index: str, supports: bool) -> None:
    medianest.execute(f"CREATE INDEX extra ON accounts {index}")
    names = {key.name for key in health_of(medianest).unindexed_foreign_keys}
    assert ("accounts_user_id_fkey" not in names) is supports


def test_columns_of_a_foreign_key_may_lead_in_any_order(medianest: Database) -> None:
    medianest.execute(
        "CREATE TABLE parent (a int, b int, PRIMARY KEY (a, b));"
        "CREATE TABLE child (a int, b int, c int, FOREIGN KEY (a, b) REFERENCES parent);"
        "CREATE INDEX child_idx ON child (b, a, c)"
    )
    assert "child" not in {key.table for key in health_of(medianest).unindexed_foreign_keys}


def test_other_schemas_are_left_alone(medianest: Database) -> None:
    medianest.execute("CREATE SCHEMA audit CREATE TABLE log (id int PRIMARY KEY)")
    assert health_of(medianest).total == 33


async def test_async_reader_sees_the_same(medianest: Database) -> None:
    connection = await AsyncConnection.connect(
        host=str(medianest.server.folder), user="postgres", dbname=medianest.name, autocommit=True
    )
    async with connection:
        assert await read_index_health_async(connection, CRITICAL) == health_of(medianest)


def health_of(database: Database) -> IndexHealth:
    with database.connect() as connection:
        return read_index_health(connection, CRITICAL)
