"""What the tests of `spec.hardening` share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection

from integration.postgres_server import Database
from medianest_operator.api.hardening import Hardening, Option
from medianest_operator.hardening.run import HardeningRun, RunOptions
from medianest_operator.hardening.state import read_state
from medianest_operator.postgres.catalog import Catalog, read_catalog
from medianest_operator.results.hardening import HardeningResult

APP, READ_ONLY, MIGRATOR = "medianest_app", "medianest_readonly", "medianest_migrator"
OFF = Hardening()
EACH: dict[Option, dict[str, Any]] = {
    Option.RECOMMENDED_INDEXES: {"recommendedIndexes": True},
    Option.CHECK_CONSTRAINTS: {"checkConstraints": {"enabled": True}},
    Option.AUDIT_COLUMNS: {"auditColumns": True},
    Option.ROW_LEVEL_SECURITY: {"rowLevelSecurity": True},
}
ALL: dict[str, Any] = {name: value for options in EACH.values() for name, value in options.items()}
QUICK = RunOptions(lock_timeout=200, index_lock_timeout=200, run_lock_timeout=0.5)


def harden(database: Database, options: dict[str, Any] | Hardening, run_options: RunOptions = QUICK) -> HardeningResult:
    """Run as the Job does, as the migrator role."""
    wanted = options if isinstance(options, Hardening) else Hardening.model_validate(options)
    with database.connect(MIGRATOR) as connection:
        return HardeningRun(connection, wanted, APP, run_options).run()


def states(result: HardeningResult) -> dict[str, str]:
    return {option.value: item.state.value for option, item in result.options.items() if item.state != "Off"}


def catalog(database: Database) -> Catalog:
    with database.connect() as connection:
        return read_catalog(connection)


def own_names(database: Database) -> set[str]:
    with database.connect() as connection:
        return {name for _, _, name in read_state(connection).objects}


@contextmanager
def open_transaction(database: Database, statement: str) -> Iterator[Connection[Any]]:
    with database.connect(APP) as connection, connection.transaction():
        connection.execute(statement.encode())
        yield connection
