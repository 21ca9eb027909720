"""Databases of many shapes: verified, restored by a superuser, and in place as the operator's Job does it.

Each is compared by `pg_dump` and by digests of its rows. What a restore in place can't bring back is named by the
verification, refused by the restore, and lost only where that is accepted by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.backup_runs import Bench, candidate, contents, definitions, new_bench
from integration.postgres_server import Database, PostgresServer


@dataclass(frozen=True)
class Shape:
    """A database of a shape.

    Attributes:
        sql: makes it, as a superuser.
        lost: objects that a restore in place doesn't bring back.
        after: removes what would be in the way of other tests.
        extensions: made by the operator beforehand.
        differs: what even a superuser's restore doesn't bring back, as lines of pg_dump begin.
    """

    name: str
    sql: str
    lost: tuple[str, ...] = ()
    after: str = "SELECT 1"
    extensions: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


SHAPES = (
    Shape("plain", "SELECT 1"),
    Shape(
        "forced-row-security",
        "CREATE TABLE secret (id int); INSERT INTO secret SELECT generate_series(1, 100);"
        " ALTER TABLE secret OWNER TO medianest;"
        " ALTER TABLE secret ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY nobody ON secret USING (false);",
    ),
    Shape(
        "forced-row-security-under-foreign-keys",
        "SET ROLE medianest; CREATE TABLE secret (id int PRIMARY KEY); INSERT INTO secret VALUES (1);"
        " DO $$ BEGIN FOR n IN 1..20 LOOP EXECUTE format('CREATE TABLE led_%s (id int REFERENCES secret);"
        " INSERT INTO led_%1$s VALUES (1)', n); END LOOP; END $$;"
        " ALTER TABLE secret ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY nobody ON secret USING (false); COMMENT ON POLICY nobody ON secret IS 'closed';"
        " COMMENT ON TABLE secret IS 'where nobody looks';",
    ),
    Shape(
        "materialized-view-under-policies",
        "SET ROLE medianest; CREATE TABLE secret (id int); INSERT INTO secret SELECT generate_series(1, 50);"
        " ALTER TABLE secret ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY own ON secret USING (id > 45); CREATE MATERIALIZED VIEW seen AS SELECT * FROM secret;"
        " CREATE UNIQUE INDEX ON seen (id)",
    ),
    Shape(
        "untrusted-extension",
        "CREATE EXTENSION pg_stat_statements; CREATE SCHEMA tools; ALTER SCHEMA tools OWNER TO medianest;"
        " CREATE EXTENSION pgstattuple SCHEMA tools;",
        extensions=("CREATE EXTENSION pg_stat_statements", "CREATE SCHEMA tools AUTHORIZATION medianest",
                    "CREATE EXTENSION pgstattuple SCHEMA tools"),
    ),
    Shape(
        "foreign-server",
        "CREATE EXTENSION postgres_fdw;"
        " CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'nowhere');"
        " CREATE USER MAPPING FOR medianest SERVER elsewhere;"
        " CREATE FOREIGN TABLE far (id int) SERVER elsewhere; ALTER FOREIGN TABLE far OWNER TO medianest;"
        " GRANT SELECT ON far TO medianest_app;",
        lost=("extension postgres_fdw", "foreign server elsewhere", "foreign table far",
              "user mapping elsewhere for medianest"),
    ),
    Shape(
        "event-trigger",
        "CREATE FUNCTION note_it() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN NULL; END';"
        " ALTER FUNCTION note_it() OWNER TO medianest;"
        " CREATE EVENT TRIGGER noted ON ddl_command_end EXECUTE FUNCTION note_it();",
        lost=("event trigger noted",),
        after="DROP EVENT TRIGGER noted",
    ),
    Shape(
        "one-foreign-view",
        "CREATE TABLE audit (id int); ALTER TABLE audit OWNER TO medianest; REVOKE ALL ON audit FROM medianest_app;"
        " GRANT SELECT ON audit TO stranger; REVOKE DELETE ON users FROM medianest_app;"
        " CREATE FUNCTION inner_one() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';"
        " ALTER FUNCTION inner_one() OWNER TO medianest; REVOKE EXECUTE ON FUNCTION inner_one() FROM PUBLIC;"
        " CREATE VIEW seen AS SELECT 1 AS one; GRANT SELECT ON seen TO stranger;",
        lost=("view seen",),
    ),
    Shape("publication-of-all", "CREATE PUBLICATION everything FOR ALL TABLES", lost=("publication everything",)),
    Shape(
        "publication-of-a-schema",
        "CREATE PUBLICATION whole FOR TABLES IN SCHEMA public; ALTER PUBLICATION whole OWNER TO postgres",
        lost=("publication whole",),
    ),
    Shape(
        "publication-of-parts",
        "CREATE PUBLICATION part FOR TABLE users (id, email) WHERE (id <> 'nobody');"
        " ALTER PUBLICATION part OWNER TO medianest;",
    ),
    Shape(
        "subscription",
        "CREATE SUBSCRIPTION feed CONNECTION 'host=/nowhere password=hidden' PUBLICATION p WITH (connect = false)",
        lost=("subscription feed",),
        after="ALTER SUBSCRIPTION feed SET (slot_name = NONE); DROP SUBSCRIPTION feed",
        differs=("CREATE SUBSCRIPTION", "ALTER SUBSCRIPTION", "    PUBLICATION", "CONNECTION"),
    ),
    Shape(
        "code-around-types",
        "SET ROLE medianest; CREATE SCHEMA extra;"
        " CREATE COLLATION nd (PROVIDER = icu, LOCALE = 'und-u-ks-level2', DETERMINISTIC = false);"
        " CREATE TEXT SEARCH DICTIONARY plain (TEMPLATE = pg_catalog.simple, STOPWORDS = english);"
        " CREATE TEXT SEARCH CONFIGURATION words (COPY = pg_catalog.english);"
        " ALTER TEXT SEARCH CONFIGURATION words ALTER MAPPING FOR asciiword WITH plain;"
        " CREATE FUNCTION plus(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2';"
        " CREATE OPERATOR extra.<+> (LEFTARG = int, RIGHTARG = int, FUNCTION = plus, COMMUTATOR = OPERATOR(extra.<+>));"
        " CREATE AGGREGATE total (int) (SFUNC = plus, STYPE = int, INITCOND = '0');"
        " CREATE TYPE pair AS (one int, two int); CREATE TYPE span AS RANGE (SUBTYPE = int);"
        " CREATE FUNCTION first_of(pair) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT ($1).one';"
        " CREATE CAST (pair AS int) WITH FUNCTION first_of(pair) AS ASSIGNMENT;"
        " CREATE TABLE named (name text COLLATE nd UNIQUE, during span); INSERT INTO named VALUES ('a', '[1,3)');",
    ),
    Shape("cast-by-text", "CREATE TYPE mood AS ENUM ('a'); ALTER TYPE mood OWNER TO medianest;"
          " CREATE CAST (mood AS text) WITH INOUT"),
    Shape(
        "many-partitions",
        "SET ROLE medianest; CREATE TABLE parts (n int) PARTITION BY LIST (n); DO $$ BEGIN FOR n IN 1..700 LOOP"
        " EXECUTE format('CREATE TABLE parts_%s PARTITION OF parts FOR VALUES IN (%s)', n, n); END LOOP; END $$;"
        " CREATE MATERIALIZED VIEW counted AS SELECT n, count(*) FROM parts GROUP BY n;",
    ),
    Shape(
        "superusers-in-odd-schemas",
        'CREATE SCHEMA "my place" AUTHORIZATION medianest; CREATE SCHEMA "a""b" AUTHORIZATION medianest;'
        ' CREATE OPERATOR CLASS "my place".ops FOR TYPE int USING btree AS OPERATOR 1 <,'
        " FUNCTION 1 btint4cmp(int, int);"
        """ CREATE FUNCTION "a""b".quiet(int) RETURNS bool LANGUAGE sql LEAKPROOF AS 'SELECT true';"""
        ' CREATE TABLE "my place".kept (id int); INSERT INTO "my place".kept VALUES (1);'
        ' ALTER TABLE "my place".kept OWNER TO medianest;',
        lost=(
            'operator class "my place".ops USING btree',
            'operator family "my place".ops USING btree',
            'function "a""b".quiet(integer)',
        ),
    ),
    Shape(
        "base-type",
        "CREATE TYPE flag;"
        " CREATE FUNCTION flag_in(cstring) RETURNS flag LANGUAGE internal STRICT IMMUTABLE AS 'boolin';"
        " CREATE FUNCTION flag_out(flag) RETURNS cstring LANGUAGE internal STRICT IMMUTABLE AS 'boolout';"
        " CREATE TYPE flag (INPUT = flag_in, OUTPUT = flag_out, LIKE = boolean)",
        lost=("base type flag", "function flag_in(cstring)", "function flag_out(flag)"),
    ),
    Shape(
        "rights-on-postgresqls-own",
        "GRANT EXECUTE ON FUNCTION pg_ls_dir(text) TO medianest_app;"
        " GRANT SELECT (rolname) ON pg_authid TO medianest_app;"
        " REVOKE EXECUTE ON FUNCTION pg_sleep(float8) FROM PUBLIC; REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC;"
        " GRANT CREATE ON SCHEMA pg_catalog TO medianest",
        lost=(
            "rights on column pg_catalog.pg_authid.rolname",
            "rights on function pg_catalog.pg_ls_dir(text)",
            "rights on function pg_catalog.pg_sleep(double precision)",
            "rights on language plpgsql",
            "rights on schema pg_catalog",
        ),
    ),
    Shape(
        "namesakes-of-tables",
        "CREATE FOREIGN DATA WRAPPER users; CREATE SERVER users FOREIGN DATA WRAPPER users;"
        " COMMENT ON SERVER users IS 'elsewhere'; COMMENT ON TABLE users IS 'here'",
        lost=("foreign data wrapper users", "foreign server users"),
    ),
    Shape(
        "large-objects",
        "SELECT lo_from_bytea(0, 'of all'::bytea); DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM"
        " pg_largeobject_metadata LOOP EXECUTE format('GRANT SELECT ON LARGE OBJECT %s TO PUBLIC', o); END LOOP;"
        " END $$;",
        after="SELECT lo_unlink(oid) FROM pg_largeobject_metadata",
    ),
)  # fmt: skip


@pytest.fixture(params=SHAPES, ids=[shape.name for shape in SHAPES])
def shape(request: pytest.FixtureRequest) -> Shape:
    found: Shape = request.param
    return found


@pytest.fixture
def shaped(medianest: Database, room: Path, shape: Shape) -> Iterator[Bench]:
    """A database of the shape, and a backup of it."""
    bench = new_bench(medianest, room, "main")
    bench.source.execute(shape.sql)
    try:
        taken = bench.backup()
        assert taken.code == 0, taken.text
        yield bench
    finally:
        bench.source.execute(shape.after)


@pytest.fixture
def place(server: PostgresServer) -> Iterator[Database]:
    """Where the operator's Job restores."""
    made = candidate(server)
    yield made
    server.drop_database(made)


def derived(database: Database) -> dict[str, int]:
    """How many rows each materialized view holds."""
    names = [name for (name,) in database.execute("SELECT matviewname FROM pg_matviews WHERE schemaname = 'public'")]
    return {name: database.execute(f"SELECT count(*) FROM {name}")[0][0] for name in names}


def lines(database: Database, without: tuple[str, ...] = ()) -> list[str]:
    """The definitions in any order: statements of a dump are sorted by object identifiers where names are equal."""
    return sorted(line for line in definitions(database).splitlines() if line and not line.startswith(without))


def test_what_is_verified_comes_back(shaped: Bench, shape: Shape, server: PostgresServer, place: Database) -> None:
    verified = shaped.verify()
    assert verified.told == (0, "Succeeded", "Succeeded"), verified.text
    [document] = [item["verification"] for item in shaped.listed()]
    assert sorted(document.get("lost", [])) == sorted(shape.lost)

    fresh = Database(server, f"fresh_{shape.name.replace('-', '_')}")
    restored = shaped.restore(fresh, "--create", user="postgres")
    try:
        assert restored.told == (0, "Succeeded", "Succeeded"), restored.text
        assert lines(fresh, shape.differs) == lines(shaped.source, shape.differs)
        assert contents(fresh) == contents(shaped.source)
        assert derived(fresh) == derived(shaped.source)
    finally:
        fresh.server.drop_database(fresh)

    for statement in shape.extensions:
        place.execute(statement)
    answer = shaped.restore(place, "--strict")
    if shape.lost:
        assert answer.told == (1, "Failed", "NotRestorable"), answer.text
        assert sorted(answer.result["differences"]) == sorted(shape.lost)
        assert place.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
        accepted = [word for label in shape.lost for word in ("--accept-difference", label)]
        answer = shaped.restore(place, "--strict", *accepted)
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert contents(place) == contents(shaped.source)
    assert derived(place) == derived(shaped.source)
    if not shape.lost:
        assert lines(place) == lines(shaped.source)
