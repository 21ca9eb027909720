"""`medianest-dbctl import`: a running server's database, such as a docker-compose deployment's, into an empty one."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from integration import postgres_versions
from integration.backup_runs import SAMPLE, Answer, Run, contents, definitions, until
from integration.postgres_server import Database, PostgresServer, running_server
from medianest_operator.migrations.bundled import bundled_migrations

PASSWORD = "p@ss/word ä"
# As Prisma makes it.
_HISTORY = """
CREATE TABLE _prisma_migrations (
    id varchar(36) PRIMARY KEY NOT NULL, checksum varchar(64) NOT NULL, finished_at timestamptz,
    migration_name varchar(255) NOT NULL, logs text, rolled_back_at timestamptz,
    started_at timestamptz NOT NULL DEFAULT now(), applied_steps_count integer NOT NULL DEFAULT 0)
"""
BARE = ("--no-owner", "--no-privileges", "--schema=public")


class Source:
    """A server on loopback that asks for a password, with the application's database, whose one role owns it all."""

    def __init__(self, server: PostgresServer, host: str) -> None:
        self.server = server
        self.host = host
        self.database = Database(server, "medianest")
        server.maintenance.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        server.maintenance.execute("CREATE DATABASE medianest OWNER app TEMPLATE template0")
        (server.folder / "data" / "pg_hba.conf").write_text(
            "local all all trust\nhost all all 127.0.0.0/8 scram-sha-256\n"
        )
        server.maintenance.execute("SELECT pg_reload_conf()")
        self.database.execute(f"GRANT ALL ON SCHEMA public TO app; SET ROLE app; {_HISTORY}")
        for migration in bundled_migrations():
            self.database.execute(f"SET ROLE app; {migration.sql}")
            self.database.execute(
                "INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, applied_steps_count)"
                f" VALUES (md5('{migration.name}'), '{migration.checksum}', now(), '{migration.name}', 1)"
            )
        self.database.execute(SAMPLE)

    def url(
        self, password: str = PASSWORD, parameters: str = "connection_limit=20&pool_timeout=30&schema=public"
    ) -> str:
        """As the application has it."""
        return f"postgresql://app:{quote(password, safe='')}@{self.host}:5432/medianest?{parameters}"


@contextmanager
def started(major: int) -> Iterator[Source]:
    """A source of a version."""
    installed = postgres_versions.install(major) if major != 15 else None
    host = f"127.{random.randint(2, 250)}.{random.randint(1, 250)}.{random.randint(1, 250)}"
    with running_server(f"listen_addresses={host}", "password_encryption=scram-sha-256", installed=installed) as server:
        yield Source(server, host)


@pytest.fixture(scope="module")
def source() -> Iterator[Source]:
    with started(15) as made:
        yield made


def start(room: Path, target: Database, url: str, **environment: str) -> Run:
    (room / "url").write_text(f"{url}\n")
    (room / "work").mkdir(exist_ok=True)
    (room / "work").chmod(0o777)
    # What leads to the target must not lead to the source as well.
    ours = {**target.environment(), "PGPASSWORD": "the target's", "PGAPPNAME": "medianest-import", **environment}
    arguments = ["import", "--source-file", str(room / "url"), "--work-dir", str(room / "work")]
    return Run(ours, *arguments, folder=room)


def bring(room: Path, target: Database, url: str, **environment: str) -> Answer:
    return start(room, target, url, **environment).end()


def test_a_database_that_is_not_empty_is_left_alone(source: Source, target: Database, room: Path) -> None:
    target.execute("CREATE TABLE mine (n int)")
    answer = bring(room, target, source.url())
    assert answer.told == (1, "Failed", "TargetNotEmpty"), answer.text
    # An option that the command hasn't is no advice.
    assert "it has public.mine. Import into a new one (CREATE DATABASE); nothing was changed." in answer.text
    assert "--create" not in answer.text


@pytest.mark.parametrize("major", [12, 13, 14, 15])
def test_a_database_comes_over_from_each_version(major: int, target: Database, room: Path) -> None:
    with started(major) as source:
        answer = bring(room, target, source.url())
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
        assert contents(target) == contents(source.database)
        if major == 15:
            assert definitions(target, *BARE) == definitions(source.database, *BARE)
        assert answer.result["schemaVersion"] == bundled_migrations()[-1].name
        assert answer.result["rows"] == 3003
        assert answer.result["differences"] == []
        owners = target.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert owners == [("medianest",)]
        assert list((room / "work").iterdir()) == []


def test_a_newer_version_is_refused_with_the_reason(target: Database, room: Path) -> None:
    with started(16) as source:
        answer = bring(room, target, source.url())
    assert answer.told == (1, "Failed", "UnsupportedVersion"), answer.text
    assert "pg_dump 15 can't read a newer server" in answer.result["message"]
    assert contents(target) == {}


def test_nothing_is_written_at_the_source_though_the_role_could(source: Source, target: Database, room: Path) -> None:
    before = contents(source.database)
    counts = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::int8 FROM pg_stat_all_tables"
    written = source.database.execute(counts)
    answer = bring(room, target, source.url())
    assert answer.code == 0, answer.text
    assert contents(source.database) == before
    assert source.database.execute(counts) == written


def test_what_is_written_meanwhile_does_not_matter(source: Source, target: Database, room: Path) -> None:
    run = start(room, target, source.url())
    with source.database.connect() as writer:
        number = 0
        while run.process.poll() is None:
            number += 1
            writer.execute("INSERT INTO users (id, email) VALUES (%s, %s)", (f"x{number}", f"x{number}@example.org"))
            writer.execute("SELECT nextval('rate_limits_id_seq')")
        writer.execute("DELETE FROM users WHERE id ~ '^x'")
        writer.execute("SELECT setval('rate_limits_id_seq', 41)")
    answer = run.end()
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text


def test_the_report_tells_what_differs_from_the_bundled_schema(source: Source, target: Database, room: Path) -> None:
    source.database.execute(
        "ALTER TABLE users ADD COLUMN nickname text; DROP INDEX error_logs_created_at_idx; CREATE SCHEMA elsewhere;"
        " CREATE TABLE elsewhere.notes (t text); CREATE EXTENSION pg_stat_statements; CREATE EXTENSION citext;"
        " ALTER TABLE users ADD COLUMN handle citext"
    )
    try:
        answer = bring(room, target, source.url())
    finally:
        source.database.execute(
            "ALTER TABLE users DROP COLUMN nickname, DROP COLUMN handle; DROP SCHEMA elsewhere CASCADE;"
            " DROP EXTENSION pg_stat_statements; DROP EXTENSION citext;"
            " CREATE INDEX error_logs_created_at_idx ON error_logs (created_at)"
        )
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    told = "\n".join(answer.result["differences"])
    assert "schema elsewhere of the source is not imported" in told
    assert "extension pg_stat_statements is not imported, nothing needs it: only a superuser may make it" in told
    assert "table users: column nickname (text) is not expected" in told
    assert "index error_logs_created_at_idx is missing" in told
    assert target.execute("SELECT extname FROM pg_extension ORDER BY 1") == [("citext",), ("plpgsql",)]


@pytest.mark.parametrize(
    ("url", "reason", "words"),
    [
        ("{wrong password}", "ConnectFailed", "password authentication failed"),
        ("postgresql://app:x@127.0.0.1:1/medianest", "ConnectFailed", "refused"),
        ("postgresql://app:x@no-such-host.invalid:5432/medianest", "ConnectFailed", "no-such-host.invalid"),
        ("mysql://app:x@127.0.0.1/medianest", "InvalidOptions", "postgresql://"),
        ("postgresql://app:x@127.0.0.1:5432/medianest?schema=other", "InvalidOptions", "schema other"),
        ("{no ssl}", "ConnectFailed", "SSL"),
    ],
)
def test_a_source_that_cannot_be_reached_is_told_clearly(
    url: str, reason: str, words: str, source: Source, target: Database, room: Path
) -> None:
    made = {"{wrong password}": source.url("wrong"), "{no ssl}": source.url(parameters="sslmode=require")}.get(url, url)
    answer = bring(room, target, made, PGSSLMODE="disable")
    assert answer.result["outcome"] in ("Failed", "Transient"), answer.text
    assert answer.result["reason"] == reason, answer.text
    assert words in answer.result["message"]
    assert PASSWORD not in answer.text
    assert contents(target) == {}


def test_a_right_that_is_missing_names_the_table(source: Source, target: Database, room: Path) -> None:
    source.database.execute("CREATE TABLE secret (t text); REVOKE ALL ON secret FROM app")
    try:
        answer = bring(room, target, source.url())
    finally:
        source.database.execute("DROP TABLE secret")
    assert answer.told == (1, "Failed", "PermissionDenied"), answer.text
    assert "may not read table secret" in answer.result["message"]


def test_nothing_is_lost_without_a_word(target: Database, room: Path) -> None:
    with started(15) as source:
        source.database.execute(
            "CREATE SCHEMA ext; CREATE EXTENSION pg_trgm SCHEMA ext; SELECT lo_from_bytea(0, 'large');"
            "DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP"
            " EXECUTE format('ALTER LARGE OBJECT %s OWNER TO app', o); END LOOP; END $$;"
            "CREATE FUNCTION note_it() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN NULL; END';"
            "CREATE EVENT TRIGGER noted ON ddl_command_end EXECUTE FUNCTION note_it();"
            'CREATE TABLE "x SCHEMA - public y" (t text); ALTER TABLE "x SCHEMA - public y" OWNER TO app;'
            "INSERT INTO \"x SCHEMA - public y\" VALUES ('kept'); ALTER FUNCTION note_it() OWNER TO app;"
        )
        answer = bring(room, target, source.url())
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
        assert "event trigger noted of the source is not imported" in answer.result["differences"]
        assert target.execute("SELECT convert_from(lo_get(oid), 'UTF8') FROM pg_largeobject_metadata") == [("large",)]
        assert contents(target) == contents(source.database)


def test_a_sequence_that_may_not_be_read_is_named(target: Database, room: Path) -> None:
    with started(15) as source:
        source.database.execute("CREATE SEQUENCE numbers; REVOKE ALL ON SEQUENCE numbers FROM PUBLIC")
        answer = bring(room, target, source.url())
    assert answer.told == (1, "Failed", "PermissionDenied"), answer.text
    assert "sequence public.numbers" in answer.result["message"]


def test_rows_that_policies_hide_from_their_owner_are_counted(target: Database, room: Path) -> None:
    with started(15) as source:
        source.database.execute(
            "ALTER ROLE app BYPASSRLS; CREATE TABLE twice (a int); GRANT ALL ON twice TO app;"
            " INSERT INTO twice VALUES (1), (1); ALTER TABLE twice ENABLE ROW LEVEL SECURITY;"
            " CREATE TABLE led_to (id int PRIMARY KEY); INSERT INTO led_to VALUES (1); GRANT ALL ON led_to TO app;"
            " DO $$ BEGIN FOR n IN 1..20 LOOP EXECUTE format('CREATE TABLE led_%s (id int REFERENCES led_to);"
            " INSERT INTO led_%1$s VALUES (1); ALTER TABLE led_%1$s OWNER TO app', n); END LOOP; END $$;"
            " ALTER TABLE led_to ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
            f" ALTER TABLE twice FORCE ROW LEVEL SECURITY; ALTER DATABASE {source.database.name} SET work_mem = '8MB'"
        )
        with source.database.connect() as connection, contextlib.suppress(psycopg.errors.UniqueViolation):
            connection.execute("CREATE UNIQUE INDEX CONCURRENTLY once ON twice (a)")
        answer = bring(room, target, source.url())
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert "settings of the source's database are not imported" in answer.result["differences"]
    assert target.execute("SELECT relforcerowsecurity FROM pg_class WHERE relname = 'twice'") == [(True,)]
    assert target.execute("SELECT count(*) FROM twice") == [(2,)]


def test_what_another_schema_is_needed_for_is_named_before(target: Database, room: Path) -> None:
    with started(15) as source:
        source.database.execute(
            "CREATE SCHEMA other AUTHORIZATION app; SET ROLE app; CREATE TYPE other.mood AS ENUM ('sad');"
            " CREATE FUNCTION other.one() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE TABLE other.t (id int UNIQUE);"
            " CREATE TABLE typed (m other.mood[]); CREATE TABLE made (n int DEFAULT other.one());"
            " CREATE TABLE led (id int REFERENCES other.t (id)); CREATE VIEW seen AS SELECT * FROM other.t"
        )
        answer = bring(room, target, source.url())
        assert answer.told == (1, "Failed", "SourceUnfit"), answer.text
        message = answer.result["message"]
        assert "column m of table public.typed needs type other.mood[]" in message
        assert "default value for column n of table public.made needs function other.one()" in message
        assert "; and 1 more." in message
        assert contents(target) == {}
        source.database.execute(
            "ALTER TYPE other.mood SET SCHEMA public; ALTER FUNCTION other.one() SET SCHEMA public;"
            " ALTER TABLE other.t SET SCHEMA public"
        )
        answer = bring(room, target, source.url())
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text


def test_a_source_that_stops_in_the_middle_is_a_failure(target: Database, room: Path) -> None:
    with started(15) as source:
        blocker = source.database.connect()
        blocker.execute("BEGIN; LOCK TABLE users")
        run = start(room, target, source.url())
        until(lambda: bool(blocker.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall()))
        source.server.process.kill()
        answer = run.end()
        blocker.close()
    assert answer.result["outcome"] == "Transient", answer.text
    assert contents(target) == {}
    assert list((room / "work").iterdir()) == []
