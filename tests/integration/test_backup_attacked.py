"""What somebody found who was asked to break the promises of backups, each as it was found."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from backup_documents import edit_document
from integration.backup_runs import (
    NAME,
    NAMESPACE,
    WHOSE,
    Bench,
    add_backup_role,
    candidate,
    contents,
    definitions,
    new_bench,
)
from integration.postgres_server import Database, PostgresServer
from medianest_operator.backups.logical.program import DumpError
from medianest_operator.backups.logical.run import BackupOptions, BackupRun
from medianest_operator.backups.repository.catalog import Catalog
from medianest_operator.backups.repository.layout import Tier
from medianest_operator.postgres.setting_values import name_and_value


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main")


def checked(bench: Bench) -> str:
    """A backup that is verified; returns its id."""
    answer = bench.backup("--verify", "--work-dir", str(bench.work))
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["verification"]["ok"] is True, answer.text
    return str(answer.result["backup"])


def created(bench: Bench, *arguments: str) -> Database:
    """The database that `restore --create` makes of a backup."""
    copy = Database(bench.source.server, f"{bench.source.name}_copy")
    told = ["restore", "--create", *bench.places, *WHOSE, "--work-dir", str(bench.work), *arguments]
    answer = bench.start(*told, database=copy, user="postgres").end()
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    return copy


def test_an_index_that_could_not_be_built_spoils_no_backup(bench: Bench) -> None:
    bench.source.execute("CREATE SCHEMA app AUTHORIZATION medianest")
    with bench.source.connect() as connection:
        connection.execute("SET ROLE medianest")
        for table in ("twice", "app.twice"):
            connection.execute(f"CREATE TABLE {table} (a integer)".encode())
            connection.execute(f"INSERT INTO {table} VALUES (1), (1)".encode())
            with pytest.raises(psycopg.errors.UniqueViolation):
                connection.execute(f"CREATE UNIQUE INDEX CONCURRENTLY once ON {table} (a)".encode())
            prefix = "app." if "." in table else ""
            connection.execute(f"COMMENT ON INDEX {prefix}once IS 'never was'".encode())
    backup = checked(bench)
    copy = created(bench, "--backup", backup)
    assert contents(copy, ["public", "app"]) == contents(bench.source, ["public", "app"])
    assert copy.execute("SELECT count(*) FROM pg_class WHERE relname = 'once'") == [(0,)]


def test_a_folder_from_the_future_changes_no_moment(bench: Bench) -> None:
    """It holds no manifest: what comes after it has the id of its own moment, and is the newest."""
    taken = bench.backup().result["backup"]
    [folder] = [path.parent for path in bench.folder.rglob("manifest.json")]
    for ahead in ("20361029T020000Z-daily-aaaa", "99991231T235959Z-daily-aaaa"):
        (folder.parent / ahead).mkdir()
        (folder.parent / ahead / "data.dump").touch()
    answer = bench.backup()
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    newest = answer.result["catalog"]["main"]["newest"]
    assert [item[0] for item in newest] == [answer.result["backup"], taken]
    began = datetime.strptime(answer.result["backup"][:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert abs(began + timedelta(seconds=newest[0][3]) - datetime.now(UTC)) < timedelta(minutes=10)


def test_an_index_over_a_function_that_is_not_immutable_spoils_no_backup(bench: Bench) -> None:
    """PostgreSQL believes the declaration (manual, CREATE FUNCTION), and so each check of the index computes others."""
    bench.source.execute(
        "SET ROLE medianest; CREATE TABLE stamped (id serial PRIMARY KEY);"
        " CREATE FUNCTION drawn(integer) RETURNS double precision IMMUTABLE LANGUAGE sql AS 'SELECT random() * $1';"
        " INSERT INTO stamped SELECT FROM generate_series(1, 100); CREATE INDEX ON stamped (drawn(id))"
    )
    backup = checked(bench)
    copy = created(bench, "--backup", backup)
    assert copy.execute("SELECT count(*) FROM stamped") == [(100,)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes().replace(b'"ok"', b'"ko"', 1)),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.with_name("manifest.json").write_bytes(
            path.with_name("manifest.json").read_bytes().replace(b"\n", b"\r\n")
        ),
    ],
    ids=["a letter", "cut", "empty", "another manifest"],
)
def test_a_verification_that_can_not_be_read_costs_no_backup(bench: Bench, spoil: Callable[[Path], object]) -> None:
    """It may have been the last verified one."""
    backup = checked(bench)
    [document] = bench.folder.rglob("verification.json")
    spoil(document)
    bench.backup()
    answer = bench.backup("--keep", "daily=1s")
    assert backup not in answer.result.get("removed", []), answer.text
    assert backup in bench.complete()
    # Once another one is verified it is like all others.
    checked(bench)
    bench.backup()
    assert backup in bench.backup("--keep", "daily=1s").result["removed"]


def test_rows_that_were_restored_by_no_path_are_not_verified(bench: Bench) -> None:
    bench.source.execute("""
        CREATE FUNCTION root(float8) RETURNS float8 LANGUAGE internal STRICT IMMUTABLE AS 'dsqrt';
        ALTER FUNCTION root OWNER TO medianest;
        SET ROLE medianest;
        CREATE TABLE reference (a integer);
        INSERT INTO reference VALUES (1);
        SET check_function_bodies = off;
        CREATE FUNCTION chk(float8) RETURNS bool LANGUAGE sql AS 'SELECT EXISTS (SELECT FROM reference)';
        CREATE TABLE payments (a float8 CHECK (chk(a)), b float8 GENERATED ALWAYS AS (root(a)) STORED);
        INSERT INTO payments SELECT generate_series(1, 1000)
    """)
    answer = bench.backup("--verify", "--work-dir", str(bench.work))
    assert answer.result["verification"]["ok"] is False, answer.text
    assert "Nothing is known of the rows of payments" in answer.result["verification"]["message"]
    [listed] = bench.listed()
    assert (listed["state"], listed.get("verification")) == ("Complete", None)


def test_a_table_that_is_not_in_the_dump_is_the_backups_fault(bench: Bench) -> None:
    bench.backup()
    [manifest] = bench.folder.rglob("manifest.json")
    edit_document(manifest, lambda document: document["rows"].update(ghosts=3))
    answer = bench.verify()
    assert answer.told == (1, "Failed", "VerificationFailed"), answer.text
    assert "table ghosts is missing" in answer.result["message"]
    [listed] = bench.listed()
    assert listed["verification"]["ok"] is False


def _storm(database: Database, statements: list[str], stop: threading.Event) -> None:
    with database.connect() as connection:
        number = 3
        while not stop.is_set():
            number += 1
            for statement in statements:
                connection.execute(statement.format(n=number, before=number - 3).encode())


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE VIEW v{n} AS SELECT * FROM users", "DROP VIEW IF EXISTS v{before}"],
        [
            "CREATE FUNCTION g{n}(a int) RETURNS int LANGUAGE sql AS 'SELECT a'",
            "DROP FUNCTION IF EXISTS g{before}(int)",
        ],
        ["CREATE SCHEMA s{n}", "DROP SCHEMA IF EXISTS s{before}"],
        ["CREATE TYPE m{n} AS ENUM ('a')", "DROP TYPE IF EXISTS m{before}"],
    ],
    ids=["views", "functions", "schemas", "types"],
)
def test_what_is_dropped_beside_a_backup_is_no_fault_for_good(bench: Bench, statements: list[str]) -> None:
    """It succeeds, or asks to be tried again; it always says something."""
    stop = threading.Event()
    storm = threading.Thread(target=_storm, args=(bench.source, statements, stop))
    storm.start()
    try:
        answers = [bench.backup() for _ in range(3)]
    finally:
        stop.set()
        storm.join()
    for answer in answers:
        assert answer.result.get("outcome") in ("Succeeded", "Transient"), answer.text


@pytest.mark.parametrize(
    "words",
    ["could not open relation with OID 16412", "cache lookup failed for index 16412", 'schema "s20" does not exist'],
)
def test_a_dump_that_misses_what_was_dropped_may_be_tried_again(words: str) -> None:
    assert DumpError(f"pg_dump: error: query failed: ERROR:  {words}").vanished


def test_what_no_dump_keeps_is_a_word_and_no_difference(bench: Bench) -> None:
    bench.source.execute("""
        SET ROLE medianest;
        CREATE TABLE parent (a text);
        CREATE TABLE child (x text) INHERITS (parent);
        ALTER TABLE child ALTER a SET COMPRESSION pglz;
        ALTER TABLE parent ADD b text;
        INSERT INTO child VALUES ('a', 'x', 'b');
        CREATE COLLATION copied FROM "C"
    """)
    backup = checked(bench)
    copy = created(bench, "--backup", backup)
    asked = "SELECT a, b, x FROM child"
    assert copy.execute(asked) == bench.source.execute(asked)
    answer = bench.verify("--backup", backup)
    assert "table child: column b (text) has another position, which pg_dump doesn't keep" in answer.result["message"]


def test_what_a_superuser_alone_may_make_is_named_whatever_it_is_called(bench: Bench) -> None:
    bench.source.execute("""
        CREATE FUNCTION tight(a integer) RETURNS bool LANGUAGE sql LEAKPROOF AS 'SELECT a > 0';
        ALTER FUNCTION tight OWNER TO medianest;
        CREATE FUNCTION noted() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
        CREATE EVENT TRIGGER "E ""t" ON ddl_command_end EXECUTE FUNCTION noted();
        CREATE PUBLICATION "p ""x" FOR ALL TABLES
    """)
    backup = checked(bench)
    [document] = bench.listed()
    lost = document["verification"]["lost"]
    assert {'event trigger "E ""t"', 'publication "p ""x"'} <= set(lost), lost
    assert any("tight" in label for label in lost), lost
    assert definitions(created(bench, "--backup", backup)) == definitions(bench.source)


def test_a_mapping_without_its_password_is_told(bench: Bench) -> None:
    bench.source.execute("""
        CREATE EXTENSION postgres_fdw;
        CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw;
        CREATE USER MAPPING FOR medianest_app SERVER other OPTIONS (password 'x')
    """)
    backup = bench.backup().result["backup"]
    copy = Database(bench.source.server, f"{bench.source.name}_copy")
    told = ["restore", "--create", *bench.places, *WHOSE, "--work-dir", str(bench.work), "--backup", backup]
    answer = bench.start(*told, database=copy, user="postgres").end()
    assert "user mapping other for medianest_app has no options now" in answer.result["message"], answer.text


@pytest.mark.parametrize("setting", ["bytea_output = 'escape'", "standard_conforming_strings = off"])
def test_how_a_database_spells_is_no_difference(bench: Bench, setting: str) -> None:
    bench.source.execute(f'ALTER DATABASE "{bench.source.name}" SET {setting}')
    bench.source.execute("""
        SET ROLE medianest;
        CREATE TABLE spelled (b bytea DEFAULT E'\\\\x0001ff5c'::bytea, t text DEFAULT E'a\\\\b', f float8 DEFAULT 0.1);
        CREATE VIEW slashes AS SELECT E'a\\\\b' AS a FROM spelled
    """)
    backup = checked(bench)
    copy = created(bench, "--backup", backup)
    assert definitions(copy) == definitions(bench.source)


@pytest.mark.parametrize(
    ("kept", "names"),
    [
        ('search_path="app,public"', ["app,public"]),
        ('search_path="""$user"",public"', ['"$user",public']),
        ('search_path="$user", public', ["$user", "public"]),
        ('search_path=a,"b c" , d', ["a", "b c", "d"]),
        ('search_path=""', [""]),
        # Nothing at all would be no statement.
        ("search_path=", [""]),
    ],
)
def test_a_list_of_names_is_split_outside_of_quotes(server: PostgresServer, kept: str, names: list[str]) -> None:
    _, value = name_and_value(kept)
    with server.maintenance.connect() as connection:
        assert value.as_string(connection) == ", ".join(f"'{name}'" for name in names)


def test_a_search_path_in_one_string_comes_back(bench: Bench) -> None:
    for whose in (f'DATABASE "{bench.source.name}"', f'ROLE medianest_app IN DATABASE "{bench.source.name}"'):
        bench.source.execute(f"ALTER {whose} SET search_path = 'app,public'")
    copy = created(bench, "--backup", str(bench.backup().result["backup"]))
    asked = (
        "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
        " WHERE datname = current_database() ORDER BY setrole"
    )
    found = copy.execute(asked)
    assert len(found) == 2
    assert found == bench.source.execute(asked)


def test_a_moment_is_one_of_the_servers_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Job's is two minutes ahead."""
    before = datetime.now(UTC)
    for name, value in bench.source.environment("medianest_backup").items():
        monkeypatch.setenv(name, value)
    ahead = BackupOptions(Tier.DAILY, (NAMESPACE, NAME), now=lambda: datetime.now(UTC) + timedelta(minutes=2))
    assert BackupRun([bench.open(0)], ahead).run().outcome == "Succeeded"
    after = datetime.now(UTC)
    [backup] = Catalog.read(bench.open()).backups
    assert before < backup.moment < after < backup.taken_at
    for name in bench.source.environment():
        monkeypatch.delenv(name, raising=False)
    for moment, reason in ((after, "Succeeded"), (before, "NoSuchBackup")):
        told = ["restore", *bench.places, *WHOSE, "--work-dir", str(bench.work), "--dry-run", "--backup", "latest"]
        answer = bench.start(*told, "--target-time", moment.isoformat()).end()
        assert answer.told[2] == reason, answer.text


@pytest.fixture
def plain(server: PostgresServer) -> Iterator[Database]:
    """A database that converts nothing."""
    add_backup_role(server)
    name = "plain_bytes"
    server.maintenance.execute(f"CREATE DATABASE {name} OWNER medianest TEMPLATE template0 ENCODING 'SQL_ASCII'")
    database = Database(server, name)
    yield database
    server.drop_database(database)


def test_a_database_without_an_encoding_is_backed_up(plain: Database, room: Path) -> None:
    plain.execute("SET ROLE medianest; CREATE TABLE t (a text); INSERT INTO t VALUES ('a')")
    bench = Bench(plain, room, [f"main=file://{room}/main"])
    answer = bench.backup()
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert re.fullmatch(r"[0-9]+", str(answer.result["bytes"]))


def test_a_document_of_an_earlier_version_names_no_server_time(bench: Bench) -> None:
    bench.backup()
    [manifest] = bench.folder.rglob("manifest.json")
    edit_document(manifest, lambda document: document.pop("contents_at"))
    [backup] = Catalog.read(bench.open()).backups
    assert backup.moment == backup.taken_at


def test_a_database_of_postgresqls_own_is_verified(bench: Bench, server: PostgresServer) -> None:
    own = Bench(server.maintenance, bench.folder, bench.repositories)
    server.maintenance.execute("CREATE TABLE of_the_admins AS SELECT 1")
    try:
        answer = own.backup("--verify", "--work-dir", str(own.work), user="postgres")
    finally:
        server.maintenance.execute("DROP TABLE of_the_admins")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["verification"]["ok"] is True


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["restore", "dry run"])
def test_a_place_that_can_not_be_looked_into_is_named(
    bench: Bench, server: PostgresServer, options: tuple[str, ...]
) -> None:
    """What it holds may be newer than what was taken."""
    checked(bench)
    bench.repositories.append(f"away=file://{bench.folder}/not-mounted")
    place = candidate(server)
    try:
        answer = bench.restore(place, "--backup", "latest-verified", *options)
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
        assert "Note: repository away could not be looked into (" in answer.result["message"]
    finally:
        server.drop_database(place)


def test_rights_that_somebody_passed_on_cost_nobody_else_theirs(bench: Bench, server: PostgresServer) -> None:
    """Accepted, the rest of a table's rights comes back all the same."""
    server.maintenance.execute("CREATE ROLE passer; CREATE ROLE taker")
    place = candidate(server)
    try:
        bench.source.execute(
            "SET ROLE medianest; GRANT SELECT, INSERT ON users TO medianest_app;"
            " GRANT SELECT ON users TO passer WITH GRANT OPTION; RESET ROLE;"
            " SET ROLE passer; GRANT SELECT ON users TO taker"
        )
        checked(bench)
        answer = bench.restore(place, "--strict")
        assert answer.told == (1, "Failed", "NotEqual"), answer.text
        server.drop_database(place)
        place = candidate(server)
        answer = bench.restore(place, "--strict", "--accept-difference", "grants table users")
        assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
        rights = "SELECT unnest(relacl)::text FROM pg_class WHERE oid = 'users'::regclass"
        was, now = ({right for (right,) in database.execute(rights)} for database in (bench.source, place))
        assert was - now == {"taker=r/passer"}
        assert not now - was
    finally:
        server.drop_database(place)
        bench.source.execute("DROP OWNED BY passer, taker CASCADE")
        server.maintenance.execute("DROP ROLE passer, taker")


def test_rights_on_a_language_that_say_nothing_new_are_none(bench: Bench) -> None:
    """Granted and revoked again they are noted, and no dump has them."""
    bench.source.execute(
        "GRANT USAGE ON LANGUAGE plpgsql TO medianest_app; REVOKE USAGE ON LANGUAGE plpgsql FROM medianest_app"
    )
    checked(bench)
    created(bench)
