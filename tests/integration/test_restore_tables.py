"""Single tables out of a backup: `medianest-dbctl restore --table ... --into-schema ...` beside what is there."""

from __future__ import annotations

import gzip
import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from psycopg import sql

from backup_documents import edit_document
from integration.backup_runs import WHOSE, Answer, Bench, contents, definitions, new_bench, replace_stored
from integration.postgres_server import Database
from medianest_operator.migrations.versions import schema_of
from medianest_operator.postgres.catalog import difference, read_catalog

ODD = """
CREATE SCHEMA closed;
CREATE TYPE closed.secret AS ENUM ('s');
GRANT USAGE ON SCHEMA closed TO medianest;
SET ROLE medianest;
CREATE SCHEMA more;
CREATE TYPE more.mood AS ENUM ('sad', 'so so', 'E''x,y');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TYPE pair AS (a integer, b text);
CREATE TABLE "Odd ""Name" (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "Sp ace" more.mood[], twice integer GENERATED ALWAYS AS (n * 2)
  STORED, n positive, p pair, "quo""te" text DEFAULT 'x', b bytea, j jsonb, gone integer, t timestamptz(3), r numrange
);
ALTER TABLE "Odd ""Name" DROP COLUMN gone;
INSERT INTO "Odd ""Name" ("Sp ace", n, p, "quo""te", b, j, t, r) VALUES
  (ARRAY['sad', 'E''x,y']::more.mood[], 1, ROW(1, 'x,")'), E'\\\\.\\n\\\\N tab\\t', '\\x00ff', '{"a": "\\u00e9"}',
   '2026-01-01 00:00:00.123+02', '[1,2)'),
  (NULL, NULL, NULL, E'\\n\\\\.\\n', NULL, NULL, 'infinity', NULL),
  ('{}', 3, ROW(NULL, NULL), '', '', 'null', '-infinity', 'empty');
CREATE TABLE more.empty (id integer);
CREATE TABLE bare ();
INSERT INTO bare SELECT FROM generate_series(1, 3);
CREATE TABLE days (day date, v text) PARTITION BY RANGE (day);
CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY LIST (v);
CREATE TABLE more.days_2x PARTITION OF days_2 FOR VALUES IN ('x');
INSERT INTO days VALUES ('2026-01-05', 'a'), ('2026-02-05', 'x'), ('2026-02-06', 'x');
CREATE TABLE kept (id integer, u users, s closed.secret);
INSERT INTO kept SELECT 1, u FROM users u WHERE id = 'u1';
RESET ROLE;
UPDATE kept SET s = 's';
REVOKE ALL ON SCHEMA closed FROM medianest;
"""


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main")


def bring(bench: Bench, *tables: str, schema: str = "restored_back", options: tuple[str, ...] = ()) -> Answer:
    named = [word for table in tables for word in ("--table", table)]
    told = ["restore", *bench.places, *WHOSE, "--work-dir", str(bench.work), *named, "--into-schema", schema, *options]
    return bench.start(*told, user="medianest_migrator").end()


def rows_of(database: Database, table: sql.Composable, columns: str = "*") -> list[str]:
    query = sql.SQL("SELECT t::text FROM (SELECT {} FROM {}) t ORDER BY 1")
    with database.connect() as connection:
        return [row[0] for row in connection.execute(query.format(sql.SQL(columns), table)).fetchall()]


@pytest.mark.parametrize("name", ["Users", '"users"', "PUBLIC.users", ' public . "users" '])
def test_a_table_is_known_however_sql_spells_it(bench: Bench, name: str) -> None:
    bench.backup()
    answer = bring(bench, name, options=("--dry-run",))
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert "It would bring table users (" in answer.text


def test_a_table_of_a_schema_with_a_space_comes_back(bench: Bench) -> None:
    bench.source.execute(
        """SET ROLE medianest; CREATE SCHEMA "My ""Place"; CREATE TABLE "My ""Place"."Two Words" (id int);
        INSERT INTO "My ""Place"."Two Words" VALUES (1), (2)"""
    )
    bench.backup()
    answer = bring(bench, '"My ""Place"."Two Words"')
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert rows_of(bench.source, sql.Identifier("restored_back", "Two Words")) == ["(1)", "(2)"]


def test_a_table_comes_back_beside_the_live_one(bench: Bench) -> None:
    wanted = rows_of(bench.source, sql.Identifier("users"))
    backup = bench.backup().result["backup"]
    bench.source.execute(
        "UPDATE users SET name = 'spoilt'; DELETE FROM media_requests;"
        " DELETE FROM users WHERE id = 'u7'; DROP TABLE error_logs"
    )
    before, defined = contents(bench.source), definitions(bench.source)
    answer = bring(bench, "users", "error_logs", "public.media_requests")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["message"] == (
        f"Restored tables users (500 rows), error_logs (500 rows), media_requests (2000 rows) of {backup} into schema"
        " restored_back, columns and rows alone. The live tables are as they were. DROP SCHEMA restored_back CASCADE,"
        " once you have what you need."
    )
    assert (answer.result["schema"], answer.result["backup"]) == ("restored_back", backup)
    assert contents(bench.source) == before
    assert rows_of(bench.source, sql.Identifier("restored_back", "users")) == wanted
    assert definitions(bench.source, "--exclude-schema=restored_back") == defined
    owners = bench.source.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'restored_back'")
    assert owners == [("medianest",)]
    bench.source.execute("UPDATE users u SET name = r.name FROM restored_back.users r WHERE r.id = u.id")
    bench.source.execute("INSERT INTO users SELECT * FROM restored_back.users ON CONFLICT DO NOTHING")
    assert rows_of(bench.source, sql.Identifier("users")) == wanted


def test_odd_tables_come_back_as_they_were(bench: Bench) -> None:
    bench.source.execute(ODD)
    assert bench.backup("--verify", "--work-dir", str(bench.work)).code == 0
    answer = bring(bench, '"Odd ""Name"', "more.empty", "bare", "days", "kept")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    columns = 'id, "Sp ace", n, p, "quo""te", b, j, t, r'
    assert rows_of(bench.source, sql.Identifier("restored_back", 'Odd "Name'), columns) == rows_of(
        bench.source, sql.Identifier('Odd "Name'), columns
    )
    for name in ("days", "bare"):
        assert rows_of(bench.source, sql.Identifier("restored_back", name)) == rows_of(
            bench.source, sql.Identifier(name)
        )
    assert rows_of(bench.source, sql.Identifier("restored_back", "empty")) == []
    assert "Columns of type closed.secret, users came back as text" in answer.result["message"]
    [(text,)] = bench.source.execute("SELECT u FROM restored_back.kept")
    assert bench.source.execute("SELECT u::text FROM kept") == [(text,)]
    types = bench.source.execute(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        ' WHERE attrelid = \'restored_back."Odd ""Name"\'::regclass AND attnum > 0 ORDER BY attnum'
    )
    assert [kind for (kind,) in types] == [
        "bigint", "more.mood[]", "positive", "pair", "text", "bytea", "jsonb", "timestamp(3) with time zone", "numrange"
    ]  # fmt: skip


def test_a_type_that_is_another_by_now_comes_back_as_text(bench: Bench) -> None:
    bench.source.execute(ODD)
    bench.backup()
    bench.source.execute("ALTER TYPE more.mood RENAME VALUE 'sad' TO 'blue'; DROP TYPE pair CASCADE")
    answer = bring(bench, '"Odd ""Name"')
    assert answer.code == 0, answer.text
    assert "Columns of type more.mood[], pair came back as text" in answer.result["message"]
    found = bench.source.execute('SELECT "Sp ace", p FROM restored_back."Odd ""Name" WHERE id = 1')
    assert found == [('{sad,"E\'x,y"}', '(1,"x,"")")')]


def test_a_type_in_a_forged_catalog_is_only_a_type(bench: Bench) -> None:
    """Whoever can write into the repository doesn't get SQL executed here."""
    bench.backup()
    [manifest] = bench.folder.rglob("manifest.json")
    forge_catalog(manifest, '"type":"text"', '"type":"text); CREATE TABLE public.forged (a text"')
    answer = bring(bench, "users")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert bench.source.execute("SELECT to_regclass('public.forged')") == [(None,)]
    assert bench.source.execute("SELECT count(*) FROM restored_back.users") == [(500,)]


def forge_catalog(manifest: Path, was: str, becomes: str) -> None:
    """Change the stored catalog, and make the manifest fit."""
    path = manifest.with_name("catalog.json.gz")
    text = gzip.decompress(path.read_bytes()).decode()
    assert was in text
    forged = text.replace(was, becomes).encode()
    edit_document(manifest, lambda document: document.update(fingerprint=hashlib.sha256(forged).hexdigest()))
    replace_stored(path, gzip.compress(forged))


def test_nothing_is_left_of_one_that_fails(bench: Bench) -> None:
    bench.backup()
    [manifest] = bench.folder.rglob("manifest.json")
    before = definitions(bench.source)

    def miscount(document: dict[str, dict[str, int]]) -> None:
        document["rows"]["media_requests"] = 7

    edit_document(manifest, miscount)
    answer = bring(bench, "users", "media_requests")
    assert answer.told == (1, "Failed", "NotEqual"), answer.text
    assert "media_requests" in answer.result["message"]
    answer = bring(bench, "users", "nobodys")
    assert answer.told == (1, "Failed", "InvalidOptions"), answer.text
    assert "has no table nobodys. It has accounts, error_logs, " in answer.result["message"]
    assert "full" not in answer.result["message"]
    answer = bring(bench, "users", options=("--volume-size", str(16 << 20)))
    assert answer.told == (1, "Failed", "NoRoom"), answer.text
    assert definitions(bench.source) == before


def test_a_schema_that_is_there_is_somebody_elses_unless_it_was_made_for_the_same(bench: Bench) -> None:
    bench.backup()
    mine = ("--request", "0123456789abcdef")
    assert bring(bench, "users", options=mine).code == 0
    bench.source.execute("DELETE FROM restored_back.users WHERE id = 'u1'")
    again = bring(bench, "users", options=mine)
    assert again.told == (0, "Succeeded", "Succeeded"), again.text
    assert bench.source.execute("SELECT count(*) FROM restored_back.users") == [(499,)]
    for options in ((), ("--request", "another")):
        other = bring(bench, "users", options=options)
        assert other.told == (1, "Failed", "TargetNotEmpty"), other.text
        assert "DROP SCHEMA restored_back CASCADE" in other.result["message"]


def test_a_dry_run_says_what_would_come(bench: Bench) -> None:
    taken = bench.backup().result["backup"]
    before = definitions(bench.source)
    answer = bring(bench, "users", options=("--dry-run", "--target-time", datetime.now(UTC).isoformat()))
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["message"] == (
        f"It would bring table users (500 rows) of backup {taken}, not verified so far, into schema restored_back"
        " beside the live tables, which stay as they are."
    )
    assert bring(bench, "nobodys", options=("--dry-run",)).told == (1, "Failed", "InvalidOptions")
    assert definitions(bench.source) == before


def test_it_waits_for_a_migration(bench: Bench) -> None:
    bench.backup()
    with bench.source.connect() as migrating:
        migrating.execute("SELECT pg_advisory_lock(72707369)")
        run = bench.start(
            "restore", *bench.places, *WHOSE, "--work-dir", str(bench.work), "--table", "users",
            "--into-schema", "restored_back", user="medianest_migrator",
        )  # fmt: skip
        run.wait_for("downloaded")
        assert bench.source.execute("SELECT to_regnamespace('restored_back')") == [(None,)]
        assert run.process.poll() is None
    assert run.end().code == 0
    assert bench.source.execute("SELECT count(*) FROM restored_back.users") == [(500,)]


def test_it_is_no_part_of_the_schema_and_of_every_backup(bench: Bench) -> None:
    """So it is no drift, and isn't lost."""
    bench.backup()
    with bench.source.connect() as connection:
        before = schema_of(read_catalog(connection))
        assert bring(bench, "users", "media_requests").code == 0
        connection.execute("GRANT USAGE ON SCHEMA restored_back TO medianest_readonly")
        connection.execute("COMMENT ON TABLE restored_back.users IS 'as it was'")
        assert difference(before, schema_of(read_catalog(connection))) == []
        connection.execute("CREATE SCHEMA restored_by_hand")
        connection.execute("CREATE TABLE restored_by_hand.users ()")
        assert difference(before, schema_of(read_catalog(connection))) == [
            "schema restored_by_hand is not expected", "table restored_by_hand.users is not expected"
        ]  # fmt: skip
    again = bench.backup("--verify", "--work-dir", str(bench.work))
    assert again.told == (0, "Succeeded", "Succeeded"), again.text
    assert again.result["verification"]["ok"] is True, again.text
