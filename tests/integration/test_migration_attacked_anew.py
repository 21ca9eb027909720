"""What a third adversary broke, with an oracle of its own: each case with what it was claimed to be."""

from __future__ import annotations

import pytest

from integration.crashes import AT_THE_GATE, CONCURRENTLY, FAILS, A, B, C, Start, at_the_gate, is_locked_out
from integration.outside import outside, unlike
from integration.postgres_server import Database, wait_for_backend

FAILS_THERE = AT_THE_GATE + "CREATE UNIQUE INDEX titles ON media_requests (title);\n"
"""In the database alone, once the application has used a title twice: the rehearsal goes well."""
TWICE = "INSERT INTO media_requests (id, user_id, title, media_type) VALUES ('twice', 'u1', 'Title 1', 'movie')"


@pytest.fixture
def domains(database: Database) -> Database:
    database.execute(
        "SET ROLE medianest; CREATE DOMAIN positive AS int CHECK (VALUE >= 0);"
        "CREATE DOMAIN moment AS timestamptz DEFAULT clock_timestamp()"
    )
    return database


WRITTEN_ANEW = {
    "beside a computed column": "ADD COLUMN x int DEFAULT 5,"
    " ADD COLUMN y text GENERATED ALWAYS AS (name || '!') STORED",
    "of a domain with a check": "ADD COLUMN x positive DEFAULT 0",
    "a constant of another type": "ADD COLUMN x bigint DEFAULT 0, ADD COLUMN y text GENERATED ALWAYS AS (name) STORED",
    "a constant cut to length": "ADD COLUMN x varchar(20) DEFAULT 'new',"
    " ADD COLUMN y text GENERATED ALWAYS AS (name) STORED",
    "an empty list": "ADD COLUMN x text[] DEFAULT ARRAY[]::text[], ADD COLUMN y positive DEFAULT 1",
}


@pytest.mark.parametrize("rehearse", ["Auto", "Never"])
@pytest.mark.parametrize("column", WRITTEN_ANEW.values(), ids=WRITTEN_ANEW.keys())
def test_what_a_table_got_that_was_written_anew_is_nobodys(
    domains: Database, start: Start, column: str, rehearse: str
) -> None:
    """PostgreSQL no longer says what the rows got: it stands in them like any other value."""
    before = outside(domains)
    files = {A: f"ALTER TABLE users {column};\n", B: CONCURRENTLY, C: FAILS_THERE}
    with at_the_gate(domains, start, files, "--rehearse", rehearse) as job:
        # Without a rehearsal nobody knows what a domain's own default is.
        locked_out = is_locked_out(domains)
        assert locked_out == (rehearse == "Never" and "positive" in column)
        domains.execute(TWICE, user="postgres" if locked_out else "medianest_app")
    code, result, output = job.end()
    assert (code, result["reason"], result["rollback"]["verified"]) == (1, "MigrationFailed", True), output
    assert locked_out or domains.execute("SELECT title FROM media_requests WHERE id = 'twice'") == [("Title 1",)]
    domains.execute("DELETE FROM media_requests WHERE id = 'twice'")
    assert not unlike(before, outside(domains))


@pytest.mark.parametrize("rehearse", ["Auto", "Never"])
def test_values_that_a_domain_makes_for_each_row_lock_writers_out(
    domains: Database, start: Start, rehearse: str
) -> None:
    files = {A: "ALTER TABLE users ADD COLUMN x moment;\n", B: CONCURRENTLY, C: FAILS_THERE}
    with at_the_gate(domains, start, files, "--rehearse", rehearse):
        assert is_locked_out(domains)


def test_a_table_that_an_admin_packed_beside_the_run_holds_nobodys_values(database: Database, start: Start) -> None:
    before = outside(database)
    files = {A: "ALTER TABLE users ADD COLUMN x int DEFAULT 5;\n", B: CONCURRENTLY, C: FAILS}
    with at_the_gate(database, start, files) as job:
        database.execute("VACUUM FULL users")
    _, result, output = job.end()
    assert result["rollback"]["verified"], output
    assert not unlike(before, outside(database))


@pytest.mark.parametrize(("which", "count"), [("WHERE id = 'u3'", 1), ("", 200)])
def test_a_default_that_came_later_is_not_what_the_rows_had(
    database: Database, start: Start, which: str, count: int
) -> None:
    """The application has written the very default into some of them, or all: that is its own value."""
    column = "ADD COLUMN x int; ALTER TABLE users ALTER COLUMN x SET DEFAULT 5"
    with at_the_gate(database, start, {A: f"ALTER TABLE users {column};\n", B: CONCURRENTLY, C: FAILS}) as job:
        database.execute(f"UPDATE users SET x = 5 {which}", user="medianest_app")
    _, result, output = job.end()
    assert f"table users holds {count} values in column x that others wrote" in result["message"], output
    assert database.execute("SELECT count(*) FROM users WHERE x = 5") == [(count,)]


def test_what_a_collation_calls_equal_is_still_another_value(database: Database, start: Start) -> None:
    database.execute(
        "SET ROLE medianest;"
        "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
    )
    column = "ADD COLUMN x text COLLATE any_case DEFAULT 'new'"
    with at_the_gate(database, start, {A: f"ALTER TABLE users {column};\n", B: CONCURRENTLY, C: FAILS}) as job:
        database.execute("UPDATE users SET x = 'NEW' WHERE id = 'u3'", user="medianest_app")
    _, result, output = job.end()
    assert "table users holds 1 values in column x that others wrote" in result["message"], output
    assert database.execute("SELECT x FROM users WHERE id = 'u3'") == [("NEW",)]


def test_rows_that_a_policy_hides_from_their_owner_are_seen(database: Database, start: Start) -> None:
    made = (
        "CREATE TABLE visits (id int);\n"
        "CREATE POLICY all_to_app ON visits TO medianest_app USING (true) WITH CHECK (true);\n"
    )
    with at_the_gate(database, start, {A: made, B: CONCURRENTLY, C: FAILS}) as job:
        database.execute("ALTER TABLE visits ENABLE ROW LEVEL SECURITY; ALTER TABLE visits FORCE ROW LEVEL SECURITY")
        database.execute("INSERT INTO visits VALUES (1)", user="medianest_app")
    _, result, output = job.end()
    assert "table visits holds 1 rows that others wrote" in result["message"], output
    assert database.execute("SELECT id FROM visits") == [(1,)]
    assert database.execute("SELECT relforcerowsecurity FROM pg_class WHERE relname = 'visits'") == [(True,)]


def test_a_down_script_that_commits_by_itself_locks_writers_out(database: Database, start: Start) -> None:
    """The look at what it drops holds until its commit, no longer."""
    files = {
        A: "CREATE TABLE visits (id int);\n",
        f"{A}/down": "BEGIN; LOCK TABLE media_requests; DROP TABLE visits; COMMIT;\n",
        B: CONCURRENTLY,
        f"{B}/down": "DROP INDEX CONCURRENTLY users_by_night;\n",
        C: FAILS,
    }
    with at_the_gate(database, start, files) as job:
        assert is_locked_out(database)
    _, result, output = job.end()
    assert result["rollback"]["verified"], output


@pytest.mark.parametrize("does", ["DEL' || 'ETE FROM media_requests", "DR' || 'OP TABLE media_requests"])
def test_a_deferred_trigger_is_looked_at_before_the_commit(database: Database, start: Start, does: str) -> None:
    before = outside(database)
    sql = (
        "CREATE FUNCTION boom() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN EXECUTE '{does}'; RETURN NULL; END $$;\n"
        "CREATE TABLE q (id int);\n"
        "CREATE CONSTRAINT TRIGGER boom AFTER INSERT ON q DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION boom();\nINSERT INTO q VALUES (1);\n"
    )
    code, result, output = start({A: sql}).end()
    assert (code, result["outcome"]) == (1, "Failed"), output
    assert not unlike(before, outside(database))


def test_what_a_deferred_trigger_makes_is_no_difference_to_the_rehearsal(database: Database, start: Start) -> None:
    sql = (
        "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE 'CREATE TABLE extra (id int)'; RETURN NULL; END $$;\n"
        "CREATE TABLE q (id int);\n"
        "CREATE CONSTRAINT TRIGGER more AFTER INSERT ON q DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION more();\nINSERT INTO q VALUES (1);\n"
    )
    code, result, output = start({A: sql}, "--rehearse", "Auto").end()
    assert (code, result["outcome"]) == (0, "Applied"), output


ORDERS = {
    "sequence of a column that was there": "CREATE SEQUENCE numbers OWNED BY media_requests.id;\n",
    "function in a default": "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;\n"
    "ALTER TABLE users ALTER COLUMN name SET DEFAULT f();\n",
    "enum in a composite": "CREATE TYPE mood AS ENUM ('sad');\nCREATE TYPE person AS (m mood);\n",
    "composite in a composite": "CREATE TYPE b AS (id int);\nCREATE TYPE a AS (one b);\n",
    "function in a domain": "CREATE FUNCTION good(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';\n"
    "CREATE DOMAIN number AS int CHECK (good(VALUE));\n",
    "function in a function": "CREATE FUNCTION a1() RETURNS int LANGUAGE sql RETURN 1;\n"
    "CREATE FUNCTION b1() RETURNS int LANGUAGE sql RETURN a1();\n",
    "index with a comment": "DROP INDEX by_title;\n",
}


@pytest.mark.parametrize("sql", ORDERS.values(), ids=ORDERS.keys())
def test_whatever_depends_on_what_the_inverse_finds_the_order(database: Database, start: Start, sql: str) -> None:
    database.execute(
        "SET ROLE medianest; CREATE INDEX by_title ON media_requests (title);"
        "COMMENT ON INDEX by_title IS 'for the list'"
    )
    before = outside(database)
    _, result, output = start({A: sql, B: CONCURRENTLY, C: "SELECT 1/0;\n"}).end()
    assert (result["rollback"]["strategy"], result["rollback"]["verified"]) == ("Inverse", True), output
    assert not unlike(before, outside(database))


def test_what_an_admins_trigger_notes_of_each_ddl_is_not_the_runs(database: Database, start: Start) -> None:
    """The rollback's own DDL is noted there, too."""
    database.execute(
        "CREATE TABLE ddl_audit (at timestamptz, tag text); GRANT SELECT ON ddl_audit TO public;"
        "CREATE FUNCTION note_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        " $$ BEGIN INSERT INTO public.ddl_audit VALUES (now(), tg_tag); END $$;"
        "CREATE EVENT TRIGGER note_ddl ON ddl_command_end EXECUTE FUNCTION note_ddl()"
    )
    files = {A: "UPDATE users SET name = 'x'; COMMIT;\n", B: CONCURRENTLY, C: FAILS}
    with at_the_gate(database, start, files) as job:
        assert is_locked_out(database)
    _, result, output = job.end()
    assert result["rollback"]["verified"], output
    assert not is_locked_out(database)
    assert database.execute("SELECT count(*) FROM users WHERE name = 'x'") == [(0,)]


def test_who_is_still_let_in_is_not_called_locked_out(database: Database, start: Start) -> None:
    files = {A: "UPDATE users SET name = 'x'; COMMIT;\n", B: CONCURRENTLY, C: FAILS}
    with database.connect() as admin, database.connect() as watcher:
        admin.execute(f"BEGIN; GRANT CONNECT ON DATABASE {database.name} TO pg_monitor")
        job = start(files, "--lock-timeout", "60s")
        wait_for_backend(watcher, "CONNECT ON DATABASE", waiting=True)
        watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'medianest_migrator'"
            " AND datname = current_database()"
        )
        code, result, output = job.end()
        assert not is_locked_out(database)
    assert (code, result["reason"]) == (2, "ConnectionLost"), output
    assert not result["message"].startswith("The application is locked out"), result


def test_what_is_taken_back_of_others_is_named(database: Database, start: Start) -> None:
    files = {A: "CREATE TABLE fresh (id int);\n", B: CONCURRENTLY, C: FAILS}
    with at_the_gate(database, start, files) as job:
        database.execute("SET ROLE medianest; GRANT SELECT ON media_requests TO pg_monitor")
    _, result, output = job.end()
    assert any("REVOKE" in line and "pg_monitor" in line for line in result["rollback"]["statements"]), output


def test_a_table_that_the_copy_lacks_is_not_the_files_mistake(database: Database, start: Start) -> None:
    """An admin's trigger writes where the run's role may not read, and so neither backup nor copy has that."""
    database.execute(
        "CREATE SCHEMA dba; CREATE TABLE dba.audit (at timestamptz);"
        "CREATE FUNCTION dba.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        " $$ BEGIN INSERT INTO dba.audit VALUES (now()); RETURN NULL; END $$;"
        "CREATE TRIGGER note AFTER UPDATE ON users FOR EACH STATEMENT EXECUTE FUNCTION dba.note()"
    )
    code, result, output = start({A: "UPDATE users SET name = 'x';\n"}, "--rehearse", "Auto").end()
    assert (code, result["outcome"]) == (0, "Applied"), output
    assert database.execute("SELECT count(*) FROM dba.audit") == [(1,)]


def test_a_function_named_as_an_extensions_locks_out(database: Database, start: Start) -> None:
    database.execute("CREATE EXTENSION unaccent")
    sql = "CREATE FUNCTION unaccent(varchar) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;\n"
    with at_the_gate(database, start, {A: sql, B: CONCURRENTLY, C: FAILS}):
        assert is_locked_out(database)


def test_who_edits_the_history_beside_a_run_may_be_somebody_else(database: Database, start: Start) -> None:
    with at_the_gate(database, start, {A: "CREATE TABLE fresh (id int);\n" + AT_THE_GATE}) as job:
        database.execute("UPDATE _prisma_migrations SET logs = 'looked at' WHERE finished_at IS NOT NULL")
    _, result, output = job.end()
    assert (result["reason"], "or somebody did meanwhile" in result["message"]) == ("StatementRefused", True), output


def test_a_table_that_the_run_may_write_is_compared_whatever_triggers_there_are(
    database: Database, start: Start
) -> None:
    database.execute(
        "CREATE TABLE flags (id int, value text); INSERT INTO flags VALUES (1, 'off'); GRANT ALL ON flags TO medianest;"
        "CREATE FUNCTION nothing() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        "CREATE EVENT TRIGGER nothing ON ddl_command_end EXECUTE FUNCTION nothing()"
    )
    before = outside(database)
    files = {A: "UPDATE flags SET value = 'on'; COMMIT;\n", B: CONCURRENTLY, C: "SELECT 1/0;\n"}
    _, result, output = start(files).end()
    assert not unlike(before, outside(database)) or not result["rollback"]["verified"], output


DEFERRED = {
    "in a schema of others": "CREATE SCHEMA dba; CREATE TABLE dba.p (id int PRIMARY KEY);"
    " CREATE TABLE dba.c (id int REFERENCES dba.p DEFERRABLE INITIALLY DEFERRED)",
    "of the name of another": "SET ROLE medianest; CREATE TABLE p (id int PRIMARY KEY);"
    " CREATE TABLE c (id int CONSTRAINT k REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
    " CREATE TABLE d (id int CONSTRAINT k REFERENCES p)",
}


@pytest.mark.parametrize("made", DEFERRED.values(), ids=DEFERRED.keys())
def test_a_deferred_constraint_that_can_not_be_named_holds_up_no_run(
    database: Database, start: Start, made: str
) -> None:
    database.execute(made)
    files = {A: "CREATE TABLE fresh (id int);\n", B: "CREATE TABLE fresher (id int);\n"}
    code, _, output = start(files, "--rehearse", "Auto").end()
    assert code == 0, output


@pytest.mark.parametrize(("last", "ends"), [("SELECT 1;\n", "MigrationsApplied"), (FAILS_THERE, "MigrationFailed")])
@pytest.mark.parametrize("rehearse", ["Auto", "Never"])
def test_a_half_built_index_that_was_left_is_missed_by_no_later_run(
    database: Database, start: Start, rehearse: str, last: str, ends: str
) -> None:
    """No backup and no copy has it; it is gone after a restore."""
    database.execute("SET ROLE medianest; CREATE TABLE docs (id int PRIMARY KEY, body text)")
    with database.connect() as reader:
        reader.execute("BEGIN; SELECT count(*) FROM docs")
        job = start({A: "REINDEX TABLE CONCURRENTLY docs;\n"}, "--statement-timeout", "2s")
        job.wait_for_line("reverting: ")
        reader.execute("COMMIT")
        job.end()
    assert database.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(1,)]
    # Committed on its own, and nothing but a restore leads back.
    files = {A: "UPDATE users SET name = 'x'; COMMIT;\nALTER TABLE users ALTER COLUMN email DROP NOT NULL;\n", B: last}
    if ends == "MigrationsApplied":
        job = start(files, "--rehearse", rehearse)
    else:
        with at_the_gate(database, start, files, "--rehearse", rehearse) as job:
            database.execute(TWICE)
    _, result, output = job.end()
    assert result["reason"] == ends, output
    assert ends == "MigrationsApplied" or result["rollback"]["verified"], output


def test_a_name_that_is_nowhere_is_the_files_mistake_whatever_the_copy_lacks(database: Database, start: Start) -> None:
    database.execute("CREATE TABLE theirs (id int)")
    files = {A: "CREATE TABLE fresh (id int);\n", B: CONCURRENTLY, C: "ALTER TABLE userz ADD COLUMN x int;\n"}
    _, result, output = start(files, "--rehearse", "Auto").end()
    assert "That was the rehearsal on a copy; the database itself was not touched" in result["message"], output


def test_a_trigger_on_the_history_is_seen_before_it_acts(database: Database, start: Start) -> None:
    before = outside(database)
    sql = (
        "CREATE FUNCTION boom() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE 'DR' || 'OP TABLE media_requests'; RETURN NULL; END $$;\n"
        "DO $$ BEGIN EXECUTE 'CREATE CONSTRAINT TRIGGER boom AFTER UPDATE ON _prisma' || '_migrations DEFERRABLE"
        " INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION boom()'; END $$;\n"
    )
    _, result, output = start({A: sql}).end()
    assert (result["reason"], "a trigger or a rule" in result["message"]) == ("StatementRefused", True), output
    assert not unlike(before, outside(database))


def test_a_killed_transaction_is_not_to_blame_for_what_others_made(database: Database, start: Start) -> None:
    with at_the_gate(database, start, {A: "CREATE TABLE fresh (id int);\n" + AT_THE_GATE}) as job:
        database.execute("CREATE TABLE theirs (id int)")
        job.kill()
    code, _, output = start({B: "CREATE TABLE fresher (id int);\n"}).end()
    assert code == 0, output
    assert database.execute("SELECT count(*) FROM pg_class WHERE relname IN ('theirs', 'fresh')") == [(1,)]
