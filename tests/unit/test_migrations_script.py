"""What the grammar says of a file: whether it is one transaction, and where its statements begin."""

from __future__ import annotations

import pytest

from medianest_operator.migrations.script import Kind, ordinal_at, parse

ATOMIC = [
    "",
    "-- COMMIT;",
    "SELECT 'COMMIT; CREATE INDEX CONCURRENTLY'",
    "SELECT $x$ COMMIT; $x$",
    "CREATE INDEX i ON t (a)",
    "REINDEX INDEX i",
    "REINDEX (CONCURRENTLY FALSE) INDEX i",
    "DROP INDEX i",
    "ANALYZE t",
    "CLUSTER t USING i",
    "ALTER TABLE t DETACH PARTITION p",
    "ALTER TYPE e ADD VALUE 'x'",
    "SAVEPOINT a; SELECT 1; ROLLBACK TO a; RELEASE a",
    "DO $$ BEGIN RAISE NOTICE 'COMMIT'; END $$",
    "DO $$ BEGIN COMMIT; END $$; SELECT 1",
    "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN COMMIT; RETURN 1; END $$",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END",
    "CREATE INDEX CONCURRENTLY i ON t (a); SELECT 1",
]
NOT_ATOMIC = {
    "BEGIN; SELECT 1; COMMIT": Kind.BEGINS,
    "SELECT 1; COMMIT": Kind.COMMITS,
    "SELECT 1; END": Kind.COMMITS,
    "SELECT 1; ROLLBACK": Kind.COMMITS,
    "PREPARE TRANSACTION 'x'": Kind.COMMITS,
    "COMMIT AND CHAIN": Kind.COMMITS,
    "CREATE INDEX CONCURRENTLY i ON t (a)": Kind.CONCURRENT,
    "DROP INDEX CONCURRENTLY i": Kind.CONCURRENT,
    "REINDEX INDEX CONCURRENTLY i": Kind.CONCURRENT,
    "REINDEX (CONCURRENTLY) INDEX i": Kind.CONCURRENT,
    "REINDEX SCHEMA public": Kind.STANDALONE,
    "VACUUM t": Kind.STANDALONE,
    "CLUSTER": Kind.STANDALONE,
    "ALTER TABLE t DETACH PARTITION p CONCURRENTLY": Kind.CONCURRENT,
    "ALTER SYSTEM SET work_mem = 1": Kind.STANDALONE,
    "CREATE DATABASE d": Kind.STANDALONE,
    "DROP DATABASE d": Kind.STANDALONE,
    "ALTER DATABASE d SET TABLESPACE s": Kind.STANDALONE,
    "DO $$ BEGIN COMMIT; END $$": Kind.MAY_COMMIT,
    "DO $$ BEGIN IF true THEN LOOP ROLLBACK; END LOOP; END IF; END $$": Kind.MAY_COMMIT,
    "DO $$ BEGIN CALL p(); END $$": Kind.MAY_COMMIT,
    "DO LANGUAGE plpython3u $$ plpy.commit() $$": Kind.MAY_COMMIT,
    "CALL p()": Kind.MAY_COMMIT,
}


@pytest.mark.parametrize("sql", ATOMIC)
def test_one_transaction(sql: str) -> None:
    script = parse(sql)
    assert script.parsed
    assert script.is_atomic


@pytest.mark.parametrize(("sql", "kind"), NOT_ATOMIC.items())
def test_not_one_transaction(sql: str, kind: Kind) -> None:
    script = parse(sql)
    assert not script.is_atomic
    assert kind in {statement.kind for statement in script.statements}


def test_lines_and_excerpts() -> None:
    sql = "-- é\nSELECT 1;\r\n\r\n/* two\nlines */ UPDATE t\n   SET a = 1;;\n  DO $$\nBEGIN\nEND $$"
    statements = parse(sql).statements
    assert [(s.ordinal, s.line, s.excerpt) for s in statements] == [
        (1, 2, "SELECT 1"),
        (2, 5, "UPDATE t SET a = 1"),
        (3, 7, "DO $$ BEGIN END $$"),
    ]


@pytest.mark.parametrize("letters", ["zz", "zé", "東京", "\U0001f3ac!"])
def test_letters_beyond_ascii_change_neither_structure_nor_places(letters: str) -> None:
    sql = f"-- {letters};\nCREATE TABLE \"{letters}\" ({letters.strip('!')} text);\nSELECT '{letters}; COMMIT';\nCOMMIT"
    script = parse(sql)
    assert [(s.ordinal, s.line, s.kind) for s in script.statements] == [
        (1, 2, Kind.ORDINARY),
        (2, 3, Kind.ORDINARY),
        (3, 4, Kind.COMMITS),
    ]
    assert script.statements[0].excerpt.startswith(f'CREATE TABLE "{letters}" (')
    assert ordinal_at(sql, len(sql)) == 3


@pytest.mark.parametrize("sql", ["CREAT TABLE x ()", "SELECT 'open", "\\connect x", "SELECT 1; ) SELECT"])
def test_what_is_no_sql_is_known_not_to_be(sql: str) -> None:
    script = parse(sql)
    assert not script.parsed
    assert not script.is_atomic


@pytest.mark.parametrize(
    ("before", "ordinal"),
    [("", 1), ("SELECT 1; ", 2), ("SELECT 1;\n-- ;\nSELECT ';' || $$;$$, ", 2), ("SELECT 1;;SELECT 2;", 3)],
)
def test_statement_of_a_syntax_error(before: str, ordinal: int) -> None:
    assert ordinal_at(before + "CREAT x", len(before)) == ordinal
