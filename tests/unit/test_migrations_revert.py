"""How a run is cut into parts, which rollback is chosen, and the inverse of a catalog's change."""

from __future__ import annotations

from typing import Any

import pytest

from medianest_operator.migrations.rollback.inverse import NoInverse, inverse
from medianest_operator.migrations.run.parts import Strategy, make_parts, parse_all, plan_revert
from medianest_operator.migrations.source import migrations_from_mapping
from medianest_operator.postgres.catalog import Catalog, CatalogObject


def catalog(*items: tuple[str, str, str, dict[str, Any]]) -> Catalog:
    objects = [CatalogObject(*item) for item in items]
    return Catalog({item.key: item for item in objects})


EMPTY = catalog()
UNIQUE = catalog(("index", "users", "users_email_key", {"unique": True, "valid": True}))
PLAIN = "CREATE TABLE a (id int);"
CONCURRENTLY = "CREATE INDEX CONCURRENTLY i ON a (id);"
DATA = "UPDATE users SET name = 'x';"


def parts_of(*files: str, downs: bool = False, together: bool = True) -> list[tuple[bool, int]]:
    return [(part.is_transaction, len(part.planned)) for part in cut(*files, downs=downs, together=together)]


def cut(*files: str, downs: bool = False, together: bool = True) -> Any:
    entries = {f"{number}_m.sql": text for number, text in enumerate(files, start=1)}
    if downs:
        entries |= {f"{number}_m.down.sql": "SELECT 1" for number in range(1, len(files) + 1)}
    return make_parts(parse_all(migrations_from_mapping(entries)), together)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((PLAIN, DATA, PLAIN), [(True, 3)]),
        ((PLAIN, CONCURRENTLY, DATA), [(True, 1), (False, 1), (True, 1)]),
        ((CONCURRENTLY, CONCURRENTLY), [(False, 1), (False, 1)]),
        (("ALTER TYPE t ADD VALUE 'x';", DATA), [(True, 1), (True, 1)]),
        (("ALTER TYPE t RENAME VALUE 'x' TO 'y';", DATA), [(True, 2)]),
        (("BEGIN; SELECT 1; COMMIT;", DATA), [(False, 1), (True, 1)]),
        (("", "-- nothing"), [(True, 2)]),
        (("CREAT TABLE", DATA), [(True, 2)]),
    ],
)
def test_as_much_as_possible_is_one_transaction(files: tuple[str, ...], expected: list[tuple[bool, int]]) -> None:
    assert parts_of(*files) == expected


def test_halt_commits_each_file() -> None:
    assert parts_of(PLAIN, DATA, together=False) == [(True, 1), (True, 1)]


@pytest.mark.parametrize(
    ("files", "downs", "strategy", "locked_out"),
    [
        ((PLAIN, DATA), False, Strategy.TRANSACTION, False),
        ((PLAIN, DATA), True, Strategy.TRANSACTION, False),
        (("SELECT setval('s', 1)",), False, Strategy.TRANSACTION, True),
        ((CONCURRENTLY,), False, Strategy.INVERSE, False),
        ((PLAIN, CONCURRENTLY, DATA), False, Strategy.INVERSE, False),
        ((PLAIN, CONCURRENTLY, DATA), True, Strategy.DOWN, False),
        ((DATA, CONCURRENTLY), False, Strategy.RESTORE, True),
        ((DATA, CONCURRENTLY), True, Strategy.DOWN, True),
        (("UPDATE users SET name = 'x'; COMMIT; SELECT 1;",), False, Strategy.RESTORE, True),
        (("DO $$ BEGIN COMMIT; END $$",), False, Strategy.RESTORE, True),
        (("ALTER TYPE t ADD VALUE 'x';", DATA), False, Strategy.RESTORE, True),
        (("VACUUM users;", DATA), False, Strategy.INVERSE, False),
        (("DROP INDEX CONCURRENTLY users_name;", DATA), False, Strategy.INVERSE, False),
        # Between the drop and the rollback, duplicates may come in that the unique index would refuse.
        (("DROP INDEX CONCURRENTLY users_email_key;", DATA), False, Strategy.RESTORE, True),
        (("ALTER TABLE a ALTER c DROP NOT NULL;", CONCURRENTLY), False, Strategy.RESTORE, True),
        (("ALTER TABLE a ADD c int;", CONCURRENTLY), False, Strategy.INVERSE, False),
        # Nothing is left of it.
        (("CREATE TEMP TABLE b (id int);", CONCURRENTLY), False, Strategy.INVERSE, False),
        # A view may call what writes.
        (("SELECT * FROM people;", CONCURRENTLY), False, Strategy.RESTORE, True),
        (("SELECT id INTO b FROM users;", CONCURRENTLY), False, Strategy.RESTORE, True),
        (("SELECT f();", CONCURRENTLY), False, Strategy.RESTORE, True),
    ],
)
def test_rollback_is_the_first_way_that_fits(
    files: tuple[str, ...], downs: bool, strategy: Strategy, locked_out: bool
) -> None:
    plan = plan_revert(cut(*files, downs=downs), UNIQUE)
    assert (plan.strategy, plan.locked_out) == (strategy, locked_out)
    assert bool(plan.why) is locked_out


THERE = catalog(
    ("table", "", '"Users"', {}),
    ("column", '"Users"', '"Name"', {}),
    ("table", "", "events", {"partitioned": True}),
    ("index", "events", "events_at", {}),
    ("constraint", '"Users"', "old", {}),
    ("function", "", "log_it()", {}),
    ("function", "", "app.is_fine(text)", {}),
    ("domain", "", "email", {}),
    ("view", "", "people", {}),
)


@pytest.mark.parametrize(
    ("first", "rehearsed", "locked_out"),
    [
        # Who writes meanwhile would be led elsewhere.
        (
            "CREATE OR REPLACE FUNCTION log_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';",
            True,
            True,
        ),
        ("CREATE OR REPLACE FUNCTION other() RETURNS int LANGUAGE sql AS 'SELECT 1';", True, False),
        ("CREATE OR REPLACE VIEW people AS SELECT 1;", True, True),
        ("CREATE OR REPLACE VIEW others AS SELECT 1;", True, False),
        # A function may do more than answer.
        ('ALTER TABLE "Users" ADD CONSTRAINT c CHECK (is_fine("Name"));', False, True),
        ('ALTER TABLE "Users" ADD CONSTRAINT c CHECK (is_fine("Name"));', True, False),
        ('ALTER TABLE "Users" ADD CONSTRAINT c CHECK (length("Name") > 1);', False, True),
        ('CREATE INDEX i ON "Users" (app.is_fine("Name"));', False, True),
        ('CREATE INDEX i ON "Users" (lower("Name"));', False, True),
        ('CREATE INDEX i ON "Users" ("Name") WHERE "Name" ==> 1;', False, True),
        ('CREATE INDEX i ON "Users" ("Name");', False, False),
        ("REINDEX INDEX i;", False, True),
        ("CREATE MATERIALIZED VIEW m AS SELECT b FROM people;", False, True),
        ("CREATE FUNCTION log_it(text) RETURNS int LANGUAGE sql AS 'SELECT 1';", True, True),
        ('ALTER TABLE "Users" ADD FOREIGN KEY (o) REFERENCES other (id) ON DELETE CASCADE;', True, True),
        ('ALTER TABLE "Users" ADD FOREIGN KEY (o) REFERENCES other (id) ON DELETE SET NULL;', True, True),
        ('ALTER TABLE "Users" ADD FOREIGN KEY (o) REFERENCES other (id) ON UPDATE CASCADE;', True, False),
        ('ALTER TABLE "Users" ADD COLUMN o int REFERENCES other (id) ON DELETE CASCADE;', True, True),
        ("ALTER TABLE made ADD FOREIGN KEY (o) REFERENCES other (id) ON DELETE CASCADE;", True, False),
        ("CREATE SCHEMA s CREATE TABLE p (id int) PARTITION BY LIST (id);", True, True),
        ("CREATE SCHEMA s;", True, False),
        ("DROP INDEX events_at;", True, True),
        ('ALTER TABLE "Users" ADD COLUMN e int DEFAULT (5 ==> 6);', False, True),
        ('ALTER TABLE "Users" ADD COLUMN e int DEFAULT 5;', False, False),
        ('ALTER TABLE "Users" ADD COLUMN e email;', False, True),
        ('ALTER TABLE "Users" ADD COLUMN e text;', False, False),
        ('ALTER TABLE "Users" VALIDATE CONSTRAINT c;', False, True),
    ],
)
def test_what_a_statement_leaves_depends_on_what_is_there(first: str, rehearsed: bool, locked_out: bool) -> None:
    plan = plan_revert(cut(first, CONCURRENTLY, DATA), THERE, rehearsed=rehearsed)
    assert plan.locked_out is locked_out, plan.why


@pytest.mark.parametrize(
    ("first", "locked_out"),
    [
        # Without functions of its own a database has none that writes.
        ("ALTER TABLE users ADD CONSTRAINT c CHECK (length(name) > 1);", False),
        ("CREATE INDEX i ON users (lower(name));", False),
        ("ALTER TABLE users ADD CONSTRAINT c CHECK (nextval('s') > 0);", True),
        ("ALTER TABLE users ADD CONSTRAINT c CHECK (query_to_xml('SELECT 1', true, true, '') IS NOT NULL);", True),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE INDEX i ON users ((n ==> 1));", True),
    ],
)
def test_definition_that_cannot_write_locks_nobody_out(first: str, locked_out: bool) -> None:
    for rehearsed, with_rows in ((False, True), (True, False)):
        plan = plan_revert(cut(first, CONCURRENTLY, DATA), UNIQUE, rehearsed=rehearsed, with_rows=with_rows)
        assert plan.locked_out is locked_out, plan.why
    assert not plan_revert(cut(first, CONCURRENTLY, DATA), UNIQUE).locked_out


@pytest.mark.parametrize(
    ("first", "downs"),
    [
        ("CREATE OR REPLACE FUNCTION \"prüfe\"() RETURNS int LANGUAGE sql AS 'SELECT 1';", {}),
        ('CREATE OR REPLACE VIEW "Einträge" AS SELECT 1;', {}),
        ('DROP INDEX "schlüssel";', {}),
        (PLAIN, {"1_m.down.sql": 'ALTER TABLE a DROP COLUMN "größe";', "2_m.down.sql": "DROP INDEX i;"}),
    ],
)
def test_names_are_known_whatever_their_letters(first: str, downs: dict[str, str]) -> None:
    there = catalog(
        ("function", "", '"prüfe"()', {}),
        ("view", "", '"Einträge"', {}),
        ("index", "a", '"schlüssel"', {"unique": True}),
        ("column", "a", '"größe"', {}),
    )
    files = {"1_m.sql": first, "2_m.sql": CONCURRENTLY, "3_m.sql": DATA, **downs}
    assert plan_revert(make_parts(parse_all(migrations_from_mapping(files))), there).locked_out


@pytest.mark.parametrize(
    ("down", "locked_out"),
    [
        ("DROP TABLE a;", False),
        ("DROP TABLE a CASCADE;", True),
        ('DROP TABLE "Users";', True),
        ('ALTER TABLE "Users" DROP COLUMN nick;', False),
        ('ALTER TABLE "Users" DROP COLUMN "Name";', True),
        ('ALTER TABLE "Users" DROP COLUMN "Name", ADD COLUMN "Name" text;', True),
        ('ALTER TABLE "Users" ALTER COLUMN "Name" TYPE varchar(3);', True),
        ('ALTER TABLE "Users" DROP CONSTRAINT c;', False),
        ('ALTER TABLE "Users" DROP CONSTRAINT old;', True),
        ("DROP SEQUENCE s;", True),
        ('DROP TRIGGER t ON "Users";', True),
        ("DROP INDEX CONCURRENTLY i;", False),
        ("DROP TYPE mood;", False),
        ("DROP SCHEMA s CASCADE;", True),
        ("BEGIN; DROP FUNCTION f(); COMMIT;", False),
        ("SELECT log_it();", True),
        ("SELECT * FROM people;", True),
        ("SELECT (SELECT count(*) FROM people);", True),
        ("SELECT 1;", False),
        ("SELECT 1 ==> 2;", True),
        ('ALTER TABLE "Users" ADD CONSTRAINT c CHECK (is_fine("Name"));', True),
        ("VACUUM a;", True),
    ],
)
def test_down_script_that_may_take_rows_locks_writers_out(down: str, locked_out: bool) -> None:
    entries = {"1_m.sql": PLAIN, "1_m.down.sql": down, "2_m.sql": CONCURRENTLY, "2_m.down.sql": "DROP INDEX i;"}
    plan = plan_revert(make_parts(parse_all(migrations_from_mapping({**entries, "3_m.sql": DATA}))), THERE)
    assert (plan.strategy, plan.locked_out) == (Strategy.DOWN, locked_out), plan.why


COLUMN = {"type": "text", "position": 1, "nullable": True}
BEFORE = catalog(
    ("table", "", "users", {"owner": "medianest"}),
    ("column", "users", "name", COLUMN | {"default": "'x'::text"}),
    ("index", "users", "users_name", {"unique": False, "valid": True, "definition": "CREATE INDEX users_name ON ..."}),
    ("constraint", "users", "c", {"validated": True, "definition": "CHECK (true)"}),
)


def changed(*drop: tuple[str, str, str], **add: Any) -> Catalog:
    kept = {key: item for key, item in BEFORE.objects.items() if key not in drop}
    return Catalog(kept | {item.key: item for item in add.get("items", ())})


@pytest.mark.parametrize(
    ("after", "statements"),
    [
        (BEFORE, []),
        (
            changed(items=[CatalogObject("column", "users", "nick", COLUMN | {"position": 2})]),
            ["ALTER TABLE IF EXISTS users DROP COLUMN IF EXISTS nick"],
        ),
        (
            changed(items=[CatalogObject("index", "users", "i", {"unique": False, "valid": False})]),
            ["DROP INDEX CONCURRENTLY IF EXISTS i"],
        ),
        (
            changed(items=[CatalogObject("index", "other.users", "i", {"valid": True})]),
            ["DROP INDEX CONCURRENTLY IF EXISTS other.i"],
        ),
        (changed(("index", "users", "users_name")), ["CREATE INDEX CONCURRENTLY users_name ON ..."]),
        (
            changed(items=[CatalogObject("column", "users", "name", COLUMN | {"nullable": True})]),
            ["ALTER TABLE users ALTER COLUMN name SET DEFAULT 'x'::text"],
        ),
        (
            changed(
                items=[
                    CatalogObject("table", "", "films", {}),
                    CatalogObject("column", "films", "id", COLUMN),
                    CatalogObject("index", "films", "films_pkey", {"valid": True}),
                    CatalogObject("grants", "", "table films", {"rights": []}),
                ]
            ),
            ["DROP TABLE IF EXISTS films CASCADE"],
        ),
        (
            changed(items=[CatalogObject("constraint", "users", "d", {"definition": "CHECK (false)"})]),
            ["ALTER TABLE IF EXISTS users DROP CONSTRAINT IF EXISTS d"],
        ),
        (
            changed(items=[CatalogObject("comment", "", "table public.users", {"text": "people"})]),
            ["COMMENT ON TABLE public.users IS NULL"],
        ),
    ],
)
def test_inverse_of_definitions(after: Catalog, statements: list[str]) -> None:
    assert inverse(BEFORE, after) == statements


@pytest.mark.parametrize(
    ("after", "what"),
    [
        (changed(("column", "users", "name")), "column name (text) is gone"),
        (changed(("table", "", "users")), "table users is gone"),
        (changed(("constraint", "users", "c")), "constraint c is gone"),
        (
            changed(items=[CatalogObject("column", "users", "name", COLUMN | {"type": "integer"})]),
            "column name (text): ",
        ),
        (changed(items=[CatalogObject("grants", "", "table users", {"rights": ["public: SELECT"]})]), "was added"),
    ],
)
def test_what_holds_data_has_no_inverse(after: Catalog, what: str) -> None:
    with pytest.raises(NoInverse, match=r".") as caught:
        inverse(BEFORE, after)
    assert what in str(caught.value)
