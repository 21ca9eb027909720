"""Backups beside whoever changes definitions, and of very many tables: what is stored is verified."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest

from integration.backup_runs import Bench, new_bench
from integration.postgres_server import Database


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main")


@contextmanager
def meanwhile(database: Database, statement: Callable[[int], str]) -> Iterator[None]:
    """Somebody who executes statements all the time."""
    over = threading.Event()

    def work() -> None:
        with database.connect("medianest_migrator") as connection:
            connection.execute("SET lock_timeout = '1s'")
            for number in count():
                if over.is_set():
                    return
                try:
                    connection.execute(statement(number).encode())
                except psycopg.errors.LockNotAvailable:
                    continue

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "statement",
    [
        lambda n: f"CREATE TABLE n{n} (id int); SELECT pg_sleep(0.01)",
        lambda n: f"CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT {n}'; SELECT pg_sleep(0.003)",
        lambda n: (
            f"CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT {n % 2}'; SELECT pg_sleep(0.003)"
        ),
        lambda n: f"CREATE OR REPLACE VIEW v AS SELECT {n} AS n; SELECT pg_sleep(0.003)",
        lambda n: f"ALTER TABLE users ALTER COLUMN name SET DEFAULT 'n{n}'; SELECT pg_sleep(0.01)",
        lambda n: (
            f"ALTER INDEX i{n} RENAME TO i{n + 1}; SELECT pg_sleep(0.003)" if n else "CREATE INDEX i1 ON users (name)"
        ),
        lambda n: f"ALTER INDEX {f'k{n}' if n else 'users_pkey'} RENAME TO k{n + 1}; SELECT pg_sleep(0.003)",
        lambda n: f"ALTER TYPE mood ADD VALUE 'm{n}'; SELECT pg_sleep(0.05)" if n else "CREATE TYPE mood AS ENUM ()",
        lambda n: f"COMMENT ON COLUMN users.name IS 'n{n}'; SELECT pg_sleep(0.003)",
        lambda n: f"ALTER TYPE t{n} RENAME TO t{n + 1}; SELECT pg_sleep(0.003)" if n else "CREATE TYPE t1 AS (a int)",
    ],
    ids=[
        *(
            "tables made",
            "function replaced",
            "function toggled",
            "view replaced",
            "default changed",
            "index renamed",
            "key renamed",
        ),
        *("value added", "comment changed", "type renamed"),
    ],
)
def test_a_backup_beside_changes_is_a_good_one(bench: Bench, statement: Callable[[int], str]) -> None:
    bench.source.execute(statement(0), user="medianest_migrator")
    with meanwhile(bench.source, lambda number: statement(number + 1)):
        ids = []
        for _ in range(3):
            taken = bench.backup()
            assert taken.told == (0, "Succeeded", "Succeeded"), taken.text
            ids.append(taken.result["backup"])
    for name in ids:
        verified = bench.verify("--backup", name)
        assert verified.told == (0, "Succeeded", "Succeeded"), verified.text


def test_very_many_tables_are_backed_up(bench: Bench) -> None:
    """As pg_dump alone does it: the server's table of locks has room for some seven thousand."""
    bench.source.execute(
        "DO $$ BEGIN FOR n IN 1..5000 LOOP EXECUTE format('CREATE TABLE many_%s (id int)', n); END LOOP; END $$",
        user="medianest_migrator",
    )
    bench.source.execute("INSERT INTO many_4711 VALUES (1), (2)", user="medianest_migrator")
    taken = bench.backup("--verify", "--work-dir", str(bench.work))
    assert taken.told == (0, "Succeeded", "Succeeded"), taken.text
