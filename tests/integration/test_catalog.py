"""The catalog as a value: every change of a schema is seen and told, and nothing else is."""

from __future__ import annotations

import pytest
from psycopg import AsyncConnection

from integration.postgres_server import Database
from medianest_operator.postgres.catalog import Catalog, difference, read_catalog, read_catalog_async

CHANGES = {
    "ALTER TABLE users ADD COLUMN nickname text": ["table users: column nickname (text) is not expected"],
    "ALTER TABLE users DROP COLUMN name": ["table users: column name (text) is missing"],
    "ALTER TABLE users RENAME name TO x; ALTER TABLE users RENAME image TO name; ALTER TABLE users RENAME x TO image": [
        "table users: column image (text): position is 5, expected 8",
        "table users: column name (text): position is 8, expected 5",
    ],
    "ALTER TABLE users ALTER COLUMN name TYPE varchar(9)": [
        "table users: column name (character varying(9)): type is character varying(9), expected text"
    ],
    "ALTER TABLE users ALTER COLUMN email DROP NOT NULL": [
        "table users: column email (text): nullable is yes, expected no"
    ],
    "ALTER TABLE users ALTER COLUMN role SET DEFAULT 'user'": [
        "table users: column role (text): default is 'user'::text, expected 'USER'::text"
    ],
    "ALTER TABLE users ALTER COLUMN name SET STATISTICS 500": [
        "table users: column name (text): statistics target is 500, expected absent"
    ],
    "DROP TABLE error_logs": ["table error_logs is missing"],
    "CREATE TABLE notes (id text PRIMARY KEY)": ["table notes is not expected"],
    "CREATE UNLOGGED TABLE notes ()": ["table notes is not expected"],
    "ALTER TABLE rate_limits SET UNLOGGED": [
        "table rate_limits: persistence is u, expected p",
        "sequence rate_limits_id_seq: persistence is u, expected p",
    ],
    "DROP INDEX users_email_key": ["table users: index users_email_key is missing"],
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'users_email_key'::regclass": [
        "table users: index users_email_key is invalid"
    ],
    "ALTER TABLE users ADD CONSTRAINT c CHECK (name <> '') NOT VALID": ["table users: constraint c is not expected"],
    "ALTER TABLE accounts DROP CONSTRAINT accounts_user_id_fkey": [
        "table accounts: constraint accounts_user_id_fkey is missing"
    ],
    "ALTER SEQUENCE rate_limits_id_seq INCREMENT 2": ["sequence rate_limits_id_seq: increment is 2, expected 1"],
    "CREATE VIEW people AS SELECT id FROM users": ["view people is not expected"],
    "CREATE MATERIALIZED VIEW people AS SELECT id FROM users": ["materialized view people is not expected"],
    "CREATE TYPE mood AS ENUM ('ok')": ["enum type mood is not expected"],
    "CREATE DOMAIN short AS text CHECK (length(value) < 9)": ["domain short is not expected"],
    "CREATE TYPE pair AS (a int, b int)": ["composite type pair is not expected"],
    "CREATE FUNCTION f(a int) RETURNS int LANGUAGE sql AS 'SELECT a'": ["function f(a integer) is not expected"],
    "CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1'": ["procedure p() is not expected"],
    "CREATE TRIGGER t BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()": [
        "table users: trigger t is not expected"
    ],
    "ALTER TABLE users ENABLE ROW LEVEL SECURITY": ["table users: row security is yes, expected no"],
    "CREATE POLICY mine ON users USING (id = current_user)": ["table users: policy mine is not expected"],
    "CREATE RULE r AS ON DELETE TO users DO INSTEAD NOTHING": ["table users: rule r is not expected"],
    "CREATE STATISTICS s ON id, email FROM users": ["table users: statistics object s is not expected"],
    "CREATE EXTENSION pg_trgm": ["extension pg_trgm is not expected"],
    "CREATE SCHEMA audit CREATE TABLE log (id int)": [
        "schema audit is not expected",
        "table audit.log is not expected",
    ],
    "COMMENT ON COLUMN users.name IS 'shown'": ["comment table column public.users.name is not expected"],
    "CREATE PUBLICATION p FOR TABLE users": ["publication p is not expected"],
    "ALTER TABLE users SET (fillfactor = 80)": ["table users: options is (fillfactor=80), expected absent"],
    "CREATE TABLE audit (LIKE users); ALTER TABLE users INHERIT audit": [
        "table audit is not expected",
        "table users: parents is (audit), expected absent",
    ],
}

PRIVILEGES = {
    "GRANT DELETE ON users TO medianest_readonly": ["grants table users: rights is"],
    "REVOKE ALL ON users FROM medianest_app": ["grants table users: rights is"],
    "GRANT UPDATE (name) ON users TO medianest_readonly": ["grants column users.name is not expected"],
    "ALTER TABLE users OWNER TO medianest_app": [
        "grants table users: rights is",
        "table users: owner is medianest_app, expected medianest",
    ],
    "GRANT CREATE ON SCHEMA public TO medianest_app": ["grants schema public: rights is"],
    "ALTER DEFAULT PRIVILEGES FOR ROLE medianest GRANT ALL ON TABLES TO PUBLIC": ["grants defaults for medianest r"],
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 8192', current_database()); END $$": [
        "settings database is not expected"
    ],
}


@pytest.mark.parametrize(("change", "words"), CHANGES.items(), ids=CHANGES.keys())
def test_change_of_the_schema_is_told(medianest: Database, change: str, words: list[str]) -> None:
    before = catalog_of(medianest)
    medianest.execute(f"SET ROLE postgres; {change}")
    after = catalog_of(medianest)
    told = difference(before.without_privileges(), after.without_privileges())
    assert told == words
    assert after.fingerprint() != before.fingerprint()
    assert after.without_privileges().fingerprint() != before.without_privileges().fingerprint()


@pytest.mark.parametrize(("change", "words"), PRIVILEGES.items(), ids=PRIVILEGES.keys())
def test_change_of_privileges_is_told_apart(medianest: Database, change: str, words: list[str]) -> None:
    before = catalog_of(medianest)
    medianest.execute(change)
    after = catalog_of(medianest)
    told = difference(before, after)
    assert len(told) >= len(words)
    assert all(any(line.startswith(word) for line in told) for word in words), told
    assert after.without_privileges().fingerprint() == before.without_privileges().fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO service_status (service_name) VALUES ('plex')",
        "ANALYZE",
        "VACUUM FULL users",
        "REINDEX TABLE users",
        "ALTER TABLE users ADD COLUMN x int; ALTER TABLE users DROP COLUMN x",
        "DROP INDEX users_email_key; CREATE UNIQUE INDEX users_email_key ON users (email)",
    ],
)
def test_data_and_physical_order_change_nothing(medianest: Database, change: str) -> None:
    before = catalog_of(medianest)
    for statement in change.split("; "):
        medianest.execute(statement)
    assert difference(before, catalog_of(medianest)) == []
    assert catalog_of(medianest).fingerprint() == before.fingerprint()


def test_search_path_of_the_reader_does_not_matter(medianest: Database) -> None:
    expected = catalog_of(medianest)
    with medianest.connect(options="-c search_path=") as connection:
        assert read_catalog(connection) == expected
        assert connection.execute("SHOW search_path").fetchone() == ("",)


def test_reads_inside_the_callers_transaction(medianest: Database) -> None:
    with medianest.connect() as connection, connection.transaction():
        connection.execute("SET LOCAL search_path TO pg_catalog; CREATE TABLE public.notes ()")
        assert ("table", "", "notes") in read_catalog(connection).objects
        assert connection.execute("SHOW search_path").fetchone() == ("pg_catalog",)


async def test_async_reader_sees_the_same(medianest: Database) -> None:
    connection = await AsyncConnection.connect(
        host=str(medianest.server.folder), user="postgres", dbname=medianest.name, autocommit=True
    )
    async with connection:
        assert await read_catalog_async(connection) == catalog_of(medianest)


def test_without_the_history(medianest: Database) -> None:
    before = catalog_of(medianest).without_table("_prisma_migrations")
    medianest.execute("DROP TABLE _prisma_migrations")
    assert catalog_of(medianest) == before


def catalog_of(database: Database) -> Catalog:
    with database.connect() as connection:
        return read_catalog(connection)
