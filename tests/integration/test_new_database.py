"""`medianest-dbctl restore --create`: the database is found under its name once it is whole, and is all that it was."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_documents import edit_document
from integration.backup_runs import Bench, contents, definitions, new_bench, until
from integration.postgres_server import Database, PostgresServer


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main")


@pytest.fixture
def fresh(server: PostgresServer) -> Iterator[Database]:
    """A name that no database has yet."""
    yield Database(server, "fresh")
    server.maintenance.execute("DROP DATABASE IF EXISTS fresh WITH (FORCE)")


def named(server: PostgresServer, beginning: str = "fresh") -> list[str]:
    found = server.maintenance.execute(f"SELECT datname FROM pg_database WHERE starts_with(datname, '{beginning}')")
    return sorted(name for (name,) in found)


def test_nobody_finds_it_before_it_is_whole(bench: Bench, fresh: Database) -> None:
    assert bench.backup().code == 0
    command = ["restore", *bench.places, "--create", "--work-dir", str(bench.work)]
    run = bench.start(*command, database=fresh, user="postgres")
    until(lambda: named(fresh.server) != [])
    [filling] = named(fresh.server)
    assert re.fullmatch("fresh_restoring_[a-z0-9]{4}", filling)
    assert fresh.server.maintenance.execute(
        f"SELECT has_database_privilege('medianest_app', '{filling}', 'CONNECT')"
    ) == [(False,)]
    run.send(signal.SIGKILL)
    assert run.end().code == -signal.SIGKILL
    until(lambda: fresh.server.maintenance.execute(
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{filling}'") == [(0,)])  # fmt: skip
    answer = bench.restore(fresh, "--create", user="postgres")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert named(fresh.server) == ["fresh"]
    assert contents(fresh) == contents(bench.source)


def test_what_is_the_databases_own_comes_back(bench: Bench, fresh: Database) -> None:
    name = bench.source.name
    bench.source.execute(
        f"ALTER DATABASE {name} SET work_mem = '7MB'; ALTER DATABASE {name} SET search_path = extra, \"$user\";"
        f"ALTER DATABASE {name} SET log_statement = 'all'; ALTER DATABASE {name} CONNECTION LIMIT 17;"
        f"ALTER ROLE medianest_app IN DATABASE {name} SET lock_timeout = '3s';"
        f"COMMENT ON DATABASE {name} IS 'It''s the one.'; REVOKE ALL ON DATABASE {name} FROM PUBLIC;"
        f"GRANT CONNECT ON DATABASE {name} TO medianest_app, medianest_backup"
    )
    assert bench.backup().code == 0
    answer = bench.restore(fresh, "--create", user="postgres")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    # Whoever can write to a repository could have code loaded by such settings.
    assert "setting log_statement=all, which a superuser alone may make, was left out" in answer.text

    def own(database: Database) -> list[str]:
        text = definitions(database, "--create").replace(database.name, "NAME")
        words = ("DATABASE", "log_statement", "CREATE DATABASE")
        lines = [line for line in text.splitlines() if words[0] in line]
        return sorted(line for line in lines if not any(word in line for word in words[1:]))

    assert len(own(fresh)) > 6
    assert own(fresh) == own(bench.source)


def test_rights_come_back_by_whom_and_with_what_may_be_passed_on(bench: Bench, fresh: Database) -> None:
    name, server = bench.source.name, bench.source.server
    server.maintenance.execute("CREATE ROLE shape_team; CREATE ROLE shape_reader")
    try:
        bench.source.execute(
            f"REVOKE ALL ON DATABASE {name} FROM PUBLIC;"
            f"GRANT CONNECT ON DATABASE {name} TO medianest_backup; GRANT TEMPORARY ON DATABASE {name} TO PUBLIC;"
            f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO shape_team WITH GRANT OPTION;"
            f"SET ROLE shape_team; GRANT CONNECT ON DATABASE {name} TO shape_reader; RESET ROLE"
        )
        assert bench.backup().code == 0
        answer = bench.restore(fresh, "--create", user="postgres")
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
        query = "SELECT unnest(datacl)::text FROM pg_database WHERE datname = current_database() ORDER BY 1"
        assert fresh.execute(query) == bench.source.execute(query)
    finally:
        server.maintenance.execute("DROP DATABASE IF EXISTS fresh WITH (FORCE)")
        bench.source.execute("DROP OWNED BY shape_team, shape_reader CASCADE")
        server.maintenance.execute("DROP ROLE shape_team, shape_reader")


def test_it_sorts_as_it_did(server: PostgresServer, room: Path, fresh: Database) -> None:
    """ICU's collations have a provider and a locale that `LC_COLLATE` doesn't tell."""
    server.maintenance.execute(
        "CREATE DATABASE sorted OWNER medianest TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de-u-kn-true'"
    )
    source = Database(server, "sorted")
    try:
        source.execute("CREATE TABLE t (name text); INSERT INTO t VALUES ('a10'), ('a9')", user="medianest_migrator")
        bench = Bench(source, room, [f"main=file://{room}/main"])
        (room / "work").mkdir()
        (room / "work").chmod(0o777)
        taken = bench.backup("--verify", "--work-dir", str(bench.work), user="postgres")
        assert taken.told == (0, "Succeeded", "Succeeded"), taken.text
        assert bench.restore(fresh, "--create", user="postgres").code == 0
        assert fresh.execute("SELECT string_agg(name, ' ' ORDER BY name) FROM t") == [("a9 a10",)]
        other = server.create_database()
        answer = bench.restore(other, "--strict")
        assert answer.told == (1, "Failed", "NotRestorable"), answer.text
        assert answer.result["differences"] == ["collation of the database"]
        assert "ICU's de-u-kn-true" in answer.text
        accepted = bench.restore(other, "--strict", "--accept-difference", "collation of the database")
        # Default privileges of the operator's are there as well, which the backup has not.
        assert accepted.result["reason"] in {"Succeeded", "TargetNotEmpty"}, accepted.text
        server.drop_database(other)
    finally:
        server.drop_database(source)


def test_one_that_is_not_equal_can_be_kept(bench: Bench, fresh: Database) -> None:
    """At three in the morning something is better than nothing, and what differs is told."""
    assert bench.backup().code == 0
    edit_document(next(bench.folder.rglob("manifest.json")), lambda document: document["rows"].update(users=501))
    answer = bench.restore(fresh, "--create", user="postgres")
    assert answer.told == (1, "Failed", "NotEqual"), answer.text
    assert named(fresh.server) == []
    answer = bench.restore(fresh, "--create", "--keep-unequal", user="postgres")
    assert answer.told == (1, "Failed", "NotEqual"), answer.text
    [kept] = named(fresh.server)
    assert f"It is kept as database {kept}." in answer.text
    assert contents(Database(fresh.server, kept)) == contents(bench.source)
