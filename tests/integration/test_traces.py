"""The cheap question whether a definition has changed: what it misses is seen an hour late."""

from __future__ import annotations

import pytest
from psycopg import AsyncConnection

from integration.postgres_server import Database
from medianest_operator.postgres.catalog import read_traces_async

CHANGES = [
    "ALTER TABLE users ADD COLUMN nickname text",
    "ALTER TABLE users DROP COLUMN image",
    "ALTER TABLE users ALTER COLUMN name SET DEFAULT 'x'",
    "ALTER TABLE users SET (fillfactor = 80)",
    "DROP INDEX users_email_key",
    "ALTER INDEX users_email_key RENAME TO other",
    "ALTER TABLE sessions DROP CONSTRAINT sessions_user_id_fkey",
    "CREATE VIEW seen AS SELECT 1",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TYPE mood AS ENUM ('ok')",
    "CREATE DOMAIN short AS varchar(3)",
    "CREATE POLICY mine ON users USING (true)",
    "CREATE RULE nothing AS ON DELETE TO users DO INSTEAD NOTHING",
    "CREATE STATISTICS s ON id, email FROM users",
    "CREATE SCHEMA other",
    "CREATE EXTENSION citext",
    "COMMENT ON TABLE users IS 'people'",
    "CREATE PUBLICATION everything FOR ALL TABLES",
    "CREATE SEQUENCE numbers",
    "CREATE TABLE child () INHERITS (users)",
    'CREATE COLLATION nordic FROM "C"',
    "CREATE OPERATOR === (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)",
    "CREATE OPERATOR FAMILY letters USING btree",
    "CREATE CONVERSION c FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8",
    "CREATE TEXT SEARCH CONFIGURATION words (COPY = simple)",
    "CREATE TEXT SEARCH DICTIONARY plain (TEMPLATE = simple)",
    "CREATE CAST (text AS oid) WITH INOUT",
    "CREATE SERVER far FOREIGN DATA WRAPPER elsewhere",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "GRANT SELECT ON users TO PUBLIC",
    "ALTER TABLE users ENABLE ROW LEVEL SECURITY",
    "CREATE EVENT TRIGGER e ON sql_drop EXECUTE FUNCTION on_drop()",
    "ALTER ROLE passing RENAME TO passed",
]


PREPARED = """
    CREATE FUNCTION on_drop() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
    CREATE FOREIGN DATA WRAPPER elsewhere;
    CREATE ROLE passing;
"""


@pytest.mark.parametrize("statement", CHANGES)
async def test_every_kind_of_change_leaves_one(medianest: Database, statement: str) -> None:
    medianest.execute(PREPARED)
    try:
        async with await AsyncConnection.connect(
            host=str(medianest.server.folder), port=5432, user="postgres", dbname=medianest.name, autocommit=True
        ) as connection:
            before = await read_traces_async(connection)
            assert (await read_traces_async(connection)).definitions == before.definitions
            medianest.execute(statement)
            assert (await read_traces_async(connection)).definitions != before.definitions
    finally:
        medianest.execute("DROP ROLE IF EXISTS passing, passed")
