"""Verified is what PostgreSQL itself describes as before, whatever kind of object it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.conftest import migrate
from integration.crashes import PEOPLE
from integration.outside import outside, unlike
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions

NEVER = RunOptions(rehearse=Rehearse.NEVER)
END = "COMMIT;\nSELECT 1/0;\n"
BEFORE = """
CREATE STATISTICS st ON id, email FROM users;
CREATE INDEX lower_email ON users (lower(email));
CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int, initcond = '0');
"""
UNSEEN = {
    "large object removed": "SELECT lo_unlink(4242);\n",
    "large object written to": "SELECT lo_put(4242, 0, 'gone');\n",
    "large object made": "SELECT lo_create(4243);\n",
    "collation": "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);\n",
    "text search configuration": "CREATE TEXT SEARCH CONFIGURATION media_search (COPY = english);\n",
    "operator": "CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq);\n",
    "conversion": "CREATE CONVERSION mine FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;\n",
    "cast": "CREATE TYPE pair AS (a int, b int);\nCREATE CAST (pair AS text) WITH INOUT;\n",
    "aggregate": "CREATE OR REPLACE AGGREGATE total(int) (sfunc = int4mi, stype = int, initcond = '0');\n",
    "statistics targets": "ALTER STATISTICS st SET STATISTICS 500;\n"
    "ALTER INDEX lower_email ALTER COLUMN 1 SET STATISTICS 400;\n",
    "comment on schema public": "COMMENT ON SCHEMA public IS 'MediaNest';\n",
    "setting of the database": "UPDATE users SET name = 'x';\n"
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''9MB''', current_database()); END $$;\n",
    "rights on the schema": "UPDATE users SET name = 'x';\nGRANT USAGE ON SCHEMA public TO medianest_readonly;\n"
    "GRANT CREATE ON SCHEMA public TO medianest_app;\n",
    "default privileges": "UPDATE users SET name = 'x';\n"
    "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;\n"
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO medianest_app;\n",
}


@pytest.mark.parametrize("sql", UNSEEN.values(), ids=UNSEEN.keys())
def test_what_was_committed_early_is_taken_back_whatever_it_is(medianest: Database, tmp_path: Path, sql: str) -> None:
    medianest.execute(PEOPLE)
    medianest.execute(f"SET ROLE medianest; {BEFORE} SELECT lo_from_bytea(4242, 'kept')")
    before = outside(medianest)
    result = migrate(medianest, {"20260101000000_a.sql": sql + END}, NEVER, folder=tmp_path)
    assert result.rollback is not None, result
    left = unlike(before, outside(medianest))
    assert not left, f"{result.rollback}: {left}"
    assert (result.reason, result.rollback.verified) == ("MigrationFailed", True), result


def test_what_cannot_be_taken_back_is_named(medianest: Database, tmp_path: Path) -> None:
    """A superuser alters his own publication while the run is at work: no rollback of the migrator's brings it back."""
    medianest.execute(f"{PEOPLE}; CREATE PUBLICATION cdc FOR TABLE users (id) WHERE (status = 'active')")
    sql = "UPDATE users SET name = 'x';\n" + END

    def meddle(line: str) -> None:
        print(line)
        if line.startswith("applying"):
            medianest.execute("ALTER PUBLICATION cdc SET TABLE users (id, email) WHERE (status <> 'active')")

    result = migrate(medianest, {"20260101000000_a.sql": sql}, NEVER, folder=tmp_path, report=meddle)
    assert result.reason == "RollbackUnverified", result
    assert result.message.startswith("The application is locked out of its database. "), result
    assert "cdc" in result.message


def test_sequence_that_a_function_sets_back_is_put_right(medianest: Database, tmp_path: Path) -> None:
    """Nothing in the file says setval, and the transaction takes everything back but that."""
    medianest.execute(
        f"{PEOPLE}; INSERT INTO rate_limits (user_id, endpoint) SELECT 'u1', 'e' || n FROM generate_series(1, 200) n;"
        "SET ROLE medianest; CREATE FUNCTION fix_sequences() RETURNS bigint LANGUAGE sql"
        " AS $$ SELECT setval('public.rate_limits_id_seq', 5) $$"
    )
    result = migrate(
        medianest, {"20260101000000_a.sql": "SELECT fix_sequences();\nSELECT 1/0;\n"}, NEVER, folder=tmp_path
    )
    assert result.rollback is not None, result
    assert result.rollback.verified
    medianest.execute("INSERT INTO rate_limits (user_id, endpoint) VALUES ('u1', 'next')", user="medianest_app")
