"""Index health as status shows it, from databases where something is wrong with the indexes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import AsyncConnection

from integration.conftest import migrate
from integration.postgres_server import Database, PostgresServer, wait_for_backend, wait_until
from medianest_operator.api.run_options import RunOptions
from medianest_operator.health.indexes.expected import missing
from medianest_operator.health.indexes.reading import read, read_async
from medianest_operator.health.indexes.report import Entry, Report, judge
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.history import read_history
from medianest_operator.migrations.indexes import critical_indexes, made_indexes
from medianest_operator.migrations.journal import Journal
from medianest_operator.migrations.source import migrations_from_mapping
from medianest_operator.postgres.index_definition import IndexDefinition

CRITICAL = tuple(index.name for index in critical_indexes())


def test_bundled_schema(medianest: Database) -> None:
    report = health_of(medianest)
    assert (report.total, report.total_with_history) == (33, 34)
    assert (report.critical, report.critical_present, report.expected, report.expected_present) == (6, 6, 33, 33)
    assert [(key.name, key.table) for key in report.foreign_keys] == [
        ("accounts_user_id_fkey", "accounts"),
        ("service_config_updated_by_fkey", "service_config"),
    ]
    lists = (report.missing, report.invalid, report.duplicate, report.redundant, report.bloated, report.collations)
    assert not any(lists)
    assert report.not_valid == ()
    assert report.is_healthy


def test_empty_database(empty: Database) -> None:
    report = health_of(empty)
    assert (report.total, report.critical_present, names(report.missing_critical)) == (0, 0, sorted(CRITICAL))
    assert not report.is_healthy


@pytest.mark.parametrize("name", CRITICAL)
def test_dropped_critical_index_is_missing_until_its_statement_was_run(medianest: Database, name: str) -> None:
    medianest.execute(f"DROP INDEX {name}")
    report = health_of(medianest)
    assert (report.total, report.critical_present, names(report.missing_critical)) == (32, 5, [name])
    assert (report.expected, report.expected_present) == (33, 32)
    assert not report.is_healthy
    run_fixes(medianest, report.missing)
    assert health_of(medianest) == before(medianest)


@pytest.mark.parametrize("name", ["sessions_expires_idx", "rate_limits_pkey"])
def test_dropped_index_of_a_migration_is_missing_and_breaks_nothing(medianest: Database, name: str) -> None:
    constraint = name.endswith("pkey")
    medianest.execute(f"ALTER TABLE rate_limits DROP CONSTRAINT {name}" if constraint else f"DROP INDEX {name}")
    report = health_of(medianest)
    assert (names(report.missing), report.missing_critical) == ([name], ())
    assert report.is_healthy
    run_fixes(medianest, report.missing)
    assert health_of(medianest) == before(medianest)


def test_index_with_another_name_or_definition_is_not_the_expected_one(medianest: Database) -> None:
    medianest.execute(
        "ALTER INDEX users_email_key RENAME TO by_hand;"
        "DROP INDEX sessions_expires_idx; CREATE INDEX sessions_expires_idx ON sessions (expires DESC)"
    )
    report = health_of(medianest)
    assert names(report.missing) == ["sessions_expires_idx", "users_email_key"]
    assert [entry.evidence for entry in report.missing] == [
        "There is another index of its name.", "There is an equal one with another name, by_hand.",
    ]  # fmt: skip
    run_fixes(medianest, report.missing)
    assert health_of(medianest) == before(medianest)


LATER = "20990101000000_other_indexes"


def test_index_that_a_later_migration_dropped_is_not_missing_and_one_that_it_made_is(medianest: Database) -> None:
    script = "DROP INDEX users_email_key; CREATE INDEX \"by Name\" ON users (name) WHERE name > ';';"
    later = migrations_from_mapping({f"{LATER}/migration.sql": script})
    options = RunOptions(allow_destructive=True)
    assert migrate(medianest, (*bundled_migrations(), *later), options).outcome == "Applied"
    report = by_journal(medianest)
    assert (report.expected, report.expected_present, report.critical, report.missing) == (33, 33, 5, ())
    medianest.execute('DROP INDEX "by Name"')
    report = by_journal(medianest)
    assert names(report.missing) == ["by Name"]
    run_fixes(medianest, report.missing)
    assert by_journal(medianest).missing == ()


def test_without_a_record_of_the_version_only_the_critical_are_expected(medianest: Database) -> None:
    medianest.execute(
        "DROP INDEX sessions_expires_idx, users_email_key;"
        "INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name)"
        f" VALUES ('1', 'x', now(), '{LATER}')"
    )
    report = health_of(medianest)
    assert (report.expected, names(report.missing)) == (None, ["users_email_key"])


def test_a_definition_that_somebody_put_into_the_journal_becomes_no_statement() -> None:
    for definition in (
        "CREATE INDEX x ON public.t USING btree (a); DROP TABLE users",
        "CREATE INDEX x ON public.t USING btree (a) -- ",
        "CREATE INDEX x ON public.t USING btree (a) WHERE b = 'x''; DROP TABLE users",
        "DROP TABLE users",
    ):
        [entry] = missing([IndexDefinition("x", "t", definition)], ())
        assert entry.fix is None


def test_invalid_critical_index_is_not_present(medianest: Database) -> None:
    medianest.execute("DROP INDEX users_email_key; INSERT INTO users (id, email) VALUES ('a', 'x'), ('b', 'x')")
    with contextlib.suppress(psycopg.errors.UniqueViolation):
        medianest.execute("CREATE UNIQUE INDEX CONCURRENTLY users_email_key ON users (email)")
    report = health_of(medianest)
    assert (report.total, report.critical_present) == (33, 5)
    assert (names(report.missing_critical), names(report.invalid)) == (["users_email_key"], ["users_email_key"])
    assert "unique" in report.invalid[0].evidence
    assert not report.is_healthy
    medianest.execute("DELETE FROM users WHERE id = 'b'")
    run_fixes(medianest, report.invalid)
    assert health_of(medianest).is_healthy


@pytest.fixture(params=["LOCK TABLE users IN ROW EXCLUSIVE MODE", "SELECT FROM users"], ids=["writer", "reader"])
def old_transaction(request: pytest.FixtureRequest, medianest: Database) -> Iterator[psycopg.Connection[object]]:
    """Whoever builds an index concurrently waits for its end, for a writer's earlier than for a reader's. There is an
    invalid index already."""
    medianest.execute(
        "CREATE INDEX leftover ON users (image);"
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'leftover'::regclass"
    )
    with medianest.connect() as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute(request.param)
        yield connection


@pytest.mark.parametrize(
    ("statement", "phase"),
    [
        ("CREATE INDEX CONCURRENTLY slow ON users (name)", "CREATE INDEX CONCURRENTLY"),
        ("REINDEX INDEX CONCURRENTLY users_email_key", "REINDEX INDEX CONCURRENTLY"),
        ("REINDEX TABLE CONCURRENTLY users", "REINDEX TABLE CONCURRENTLY"),
        ("DROP INDEX CONCURRENTLY users_email_key", "DROP INDEX CONCURRENTLY"),
    ],
)
def test_index_in_work_is_not_invalid_and_a_leftover_beside_it_is(
    medianest: Database, old_transaction: psycopg.Connection[object], statement: str, phase: str
) -> None:
    def work() -> None:
        with contextlib.suppress(psycopg.errors.QueryCanceled):
            medianest.execute(statement)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with medianest.connect() as watcher:
            pid = wait_for_backend(watcher, phase, waiting=True)
            invalid = "SELECT count(*) >= %s FROM pg_index WHERE NOT indisvalid"
            wait_until(watcher, invalid, 2)
            found = names(health_of(medianest, "stranger").invalid)
            assert found == ["leftover"]
            watcher.execute("SELECT pg_cancel_backend(%s)", (pid,))
        worker.join(30)
        # Whoever was interrupted has left something, which now counts.
        assert len(health_of(medianest, "stranger").invalid) >= 2
    finally:
        old_transaction.cancel()
        worker.join(30)


def test_leftovers_of_rebuilds_are_told_apart_and_their_statements_end_them(medianest: Database) -> None:
    medianest.execute(
        "CREATE INDEX lonely_ccnew ON users (email, name);"
        "CREATE UNIQUE INDEX users_email_key_ccnew1 ON users (email);"
        "CREATE UNIQUE INDEX users_email_key_ccold ON users (email);"
        "CREATE INDEX gone ON users (name); CREATE INDEX half ON users (image);"
        "CREATE INDEX again ON session_tokens (user_id);"
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid IN ('lonely_ccnew'::regclass,"
        " 'users_email_key_ccnew1'::regclass, 'users_email_key_ccold'::regclass, 'half'::regclass, 'again'::regclass);"
        "UPDATE pg_index SET indisvalid = false, indisready = false, indislive = false"
        " WHERE indexrelid = 'gone'::regclass"
    )
    report = health_of(medianest)
    statements = {entry.name: (entry.fix or "").split(" public")[0] for entry in report.invalid}
    assert statements == {
        "again": "DROP INDEX CONCURRENTLY",
        "gone": "DROP INDEX CONCURRENTLY",
        "half": "REINDEX INDEX CONCURRENTLY",
        "lonely_ccnew": "REINDEX INDEX CONCURRENTLY",
        "users_email_key_ccnew1": "DROP INDEX CONCURRENTLY",
        "users_email_key_ccold": "DROP INDEX CONCURRENTLY",
    }, "an index is left by a rebuild only where its original is there"
    run_fixes(medianest, report.invalid)
    assert health_of(medianest).invalid == ()


def test_partitioned_index_without_all_parts_is_invalid(medianest: Database) -> None:
    medianest.execute(
        "CREATE TABLE part (a int) PARTITION BY RANGE (a);"
        "CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (9);"
        "CREATE INDEX part_a ON ONLY part (a)"
    )
    [entry] = health_of(medianest).invalid
    assert (entry.name, entry.fix) == ("part_a", None)
    assert "ATTACH PARTITION" in entry.evidence
    medianest.execute("CREATE INDEX part_1_a ON part_1 (a); ALTER INDEX part_a ATTACH PARTITION part_1_a")
    assert health_of(medianest).invalid == ()


def test_statement_for_a_missing_partitioned_index_makes_all_of_it(medianest: Database) -> None:
    medianest.execute(
        "CREATE TABLE part (a int) PARTITION BY RANGE (a);"
        "CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (9); CREATE INDEX part_a ON part (a)"
    )
    with medianest.connect() as connection:
        made = [
            IndexDefinition(index.name, index.table, index.definition)
            for index in read(connection).indexes
            if index.table.startswith("part")
        ]
        assert [item.name for item in made] == ["part_1_a_idx", "part_a"]
        connection.execute("DROP INDEX part_a")
        for entry in missing(made, read(connection).indexes):
            connection.execute((entry.fix or "").rstrip(";").encode())
        assert missing(made, read(connection).indexes) == []
        assert "part_a" not in [entry.name for entry in judge(read(connection), ()).invalid]


@pytest.mark.parametrize(
    ("index", "supports"),
    [
        ("(user_id)", "yes"),
        ("(user_id, type)", "yes"),
        ("(type, user_id)", "slowly"),
        ("(user_id) WHERE type = 'oauth'", "no"),
        ("(user_id) WHERE user_id IS NOT NULL", "yes"),
        ("(user_id) WHERE type IS NOT NULL", "no"),
        ("(type) INCLUDE (user_id)", "no"),
        ("(upper(user_id))", "no"),
        ("(user_id text_pattern_ops)", "yes"),
        ('(user_id COLLATE "POSIX")', "no"),
        ("USING hash (user_id)", "yes"),
        ("USING brin (user_id)", "slowly"),
        ("(user_id DESC NULLS LAST)", "yes"),
    ],
)
def test_foreign_key_is_supported_by_leading_columns(medianest: Database, index: str, supports: str) -> None:
    medianest.execute(f"CREATE INDEX extra ON accounts {index}")
    # PostgreSQL's own word: whether the look-up for a deleted user can use the index, all of it where need be.
    plan = medianest.execute(
        "SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan;"
        "PREPARE q (text) AS SELECT 1 FROM ONLY accounts x WHERE $1 OPERATOR(pg_catalog.=) user_id FOR KEY SHARE OF x;"
        "EXPLAIN (COSTS off) EXECUTE q ('a')"
    )
    text = " ".join(line for (line,) in plan)
    assert ("extra" in text and "Index Cond" in text and "Filter" not in text) is (supports != "no"), text
    assert ("accounts_user_id_fkey" not in names(health_of(medianest).foreign_keys)) is (supports == "yes")


def test_columns_of_a_foreign_key_may_lead_in_any_order(medianest: Database) -> None:
    medianest.execute(
        "CREATE TABLE parent (a int, b int, PRIMARY KEY (a, b));"
        "CREATE TABLE child (a int, b bigint, c int, FOREIGN KEY (a, b) REFERENCES parent);"
        "CREATE INDEX child_idx ON child (b, a, c)"
    )
    assert "child" not in {key.table for key in health_of(medianest).foreign_keys}
    medianest.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'child_idx'::regclass")
    assert "child" in {key.table for key in health_of(medianest).foreign_keys}
    medianest.execute("DROP INDEX child_idx; CREATE INDEX child_idx ON child (a, c, b)")
    assert "child" in {key.table for key in health_of(medianest).foreign_keys}


def test_foreign_key_of_a_partitioned_table_needs_an_index_on_each(medianest: Database) -> None:
    medianest.execute(
        "CREATE TABLE parent (a int PRIMARY KEY);"
        "CREATE TABLE child (a int, b int, CONSTRAINT child_fk FOREIGN KEY (a) REFERENCES parent)"
        " PARTITION BY RANGE (b);"
        "CREATE TABLE child_1 PARTITION OF child FOR VALUES FROM (0) TO (9);"
        "CREATE TABLE child_2 PARTITION OF child FOR VALUES FROM (9) TO (99);"
        "CREATE INDEX ON child_1 (a)"
    )
    [key] = [key for key in health_of(medianest).foreign_keys if key.name == "child_fk"]
    assert (key.table, key.fix) == ("child", "CREATE INDEX ON public.child (a);")
    medianest.execute("CREATE INDEX ON child_2 (a)")
    assert "child_fk" not in names(health_of(medianest).foreign_keys)


def test_statements_for_foreign_keys_end_them(medianest: Database) -> None:
    medianest.execute(
        'CREATE TABLE "Odd ""name" ("the User" text, CONSTRAINT "odd fk" FOREIGN KEY ("the User") REFERENCES users)'
    )
    report = health_of(medianest)
    assert "odd fk" in names(report.foreign_keys)
    run_fixes(medianest, report.foreign_keys)
    assert health_of(medianest).foreign_keys == ()


def test_collation_of_another_version_names_the_indexes_that_it_orders(medianest: Database) -> None:
    medianest.execute(
        'CREATE INDEX icu ON users (name COLLATE "de-x-icu"); CREATE INDEX equal ON users USING hash (name COLLATE'
        ' "de-x-icu"); CREATE INDEX within ON users (length(name)) WHERE name > \'a\' COLLATE "de-x-icu";'
        "UPDATE pg_collation SET collversion = '1' WHERE collname = 'de-x-icu'"
    )
    report = health_of(medianest)
    [entry] = report.collations
    assert "Affected: icu, within. " in entry.evidence
    assert not report.is_healthy
    run_fixes(medianest, report.collations)
    assert health_of(medianest).collations == ()


def test_default_collation_of_another_version(server: PostgresServer) -> None:
    server.maintenance.execute("CREATE DATABASE icu LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C' TEMPLATE template0")
    database = Database(server, "icu")
    try:
        database.execute(
            "CREATE TABLE t (a text PRIMARY KEY, b int UNIQUE, c text); CREATE INDEX pattern ON t (c text_pattern_ops);"
        )
        assert health_of(database).collations == ()
        server.maintenance.execute("UPDATE pg_database SET datcollversion = '1' WHERE datname = 'icu'")
        report = health_of(database)
        [entry] = report.collations
        assert (entry.name, "t_pkey" in entry.evidence, "t_b_key" in entry.evidence) == ("default", True, False)
        run_fixes(database, report.collations)
        assert health_of(database).collations == ()
    finally:
        server.drop_database(database)


def test_constraint_that_was_never_validated(medianest: Database) -> None:
    medianest.execute(
        "ALTER TABLE users ADD CONSTRAINT short CHECK (length(name) < 99) NOT VALID;"
        "ALTER TABLE users ADD CONSTRAINT hardening_x CHECK (length(name) < 99) NOT VALID;"
        "ALTER TABLE rate_limits ADD CONSTRAINT who FOREIGN KEY (user_id) REFERENCES users NOT VALID"
    )
    report = health_of(medianest)
    assert [(entry.table, entry.name) for entry in report.not_valid] == [
        ("rate_limits", "who"), ("users", "hardening_x"), ("users", "short"),
    ]  # fmt: skip
    run_fixes(medianest, report.not_valid)
    assert health_of(medianest).not_valid == ()


def test_other_schemas_and_extensions_are_left_alone(medianest: Database) -> None:
    medianest.execute("CREATE SCHEMA audit CREATE TABLE log (id int PRIMARY KEY, also int UNIQUE)")
    assert health_of(medianest).total == 33


async def test_async_reader_sees_the_same(medianest: Database) -> None:
    connection = await AsyncConnection.connect(
        host=str(medianest.server.folder), user="stranger", dbname=medianest.name, autocommit=True,
        options="-c search_path=pg_catalog,pg_temp",
    )  # fmt: skip
    async with connection:
        found = await read_async(connection)
    with medianest.connect() as other:
        assert found == read(other)


def health_of(database: Database, user: str = "postgres") -> Report:
    with database.connect() as connection:
        made = made_indexes(read_history(connection), None)
    with database.connect(user) as connection:
        return judge(read(connection), critical_indexes(), made or None)


def by_journal(database: Database) -> Report:
    """With what the last run recorded of the version."""
    with database.connect() as connection:
        recorded = Journal(connection).version(LATER)
        assert recorded is not None
        return judge(read(connection), critical_indexes(), made_indexes(read_history(connection), recorded[1]))


def before(database: Database) -> Report:
    """What is said of a copy of the bundled schema that nobody has touched."""
    copy = database.server.create_database("medianest_template")
    try:
        return health_of(copy)
    finally:
        database.server.drop_database(copy)


def names(entries: tuple[Entry, ...]) -> list[str]:
    return [entry.name for entry in entries]


def run_fixes(database: Database, entries: tuple[Entry, ...]) -> None:
    """Run the statements as a person would paste them: one after the other, CONCURRENTLY outside of a transaction."""
    with database.connect() as connection:
        for entry in entries:
            for statement in (entry.fix or "").rstrip(";").split("; "):
                connection.execute(statement.encode())
