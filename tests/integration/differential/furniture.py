"""Databases as they are found: the application's tables with rows, and what a DBA and his tools have put in."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from integration.crashes import PEOPLE

SETS = 24
"""How many sets of furniture there are; each server makes a set once and copies it."""

ROWS = f"""
{PEOPLE}
INSERT INTO sessions SELECT 's' || n, 'token' || n, 'u' || n, '2027-01-01' FROM generate_series(1, 40) n;
INSERT INTO service_config (service_name, service_url, updated_by, updated_at)
SELECT 'service' || n, 'http://' || n, 'u1', '2026-01-01' FROM generate_series(1, 20) n;
INSERT INTO service_status (service_name, status) SELECT 'service' || n, 'up' FROM generate_series(1, 20) n;
INSERT INTO rate_limits (user_id, endpoint, window_start)
SELECT 'u' || n, '/' || n, '2026-01-01' FROM generate_series(1, 30) n;
INSERT INTO error_logs (id, correlation_id, user_id, error_code, error_message, request_path, request_method,
                        status_code, created_at)
SELECT 'e' || n, 'c' || n, 'u1', 'E' || n % 5, md5(n::text), '/', 'GET', CASE WHEN n % 9 = 0 THEN 500 END, '2026-01-01'
  FROM generate_series(1, 200) n;
"""

# Made by the owner in every database: what the grammar's statements alter, replace and drop.
OWN = """
CREATE TABLE tags (id int PRIMARY KEY, name text, note text);
INSERT INTO tags SELECT n, 'tag ' || n, 'note ' || n FROM generate_series(1, 60) n;
ALTER TABLE tags ADD CONSTRAINT tags_named CHECK (name <> '') NOT VALID;
CREATE INDEX tags_lower ON tags (lower(name));
CREATE POLICY own_tags ON tags USING (id > 0);
CREATE STATISTICS related ON id, name FROM tags;
CREATE TABLE events (id bigint NOT NULL, at date NOT NULL, note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE events_old PARTITION OF events FOR VALUES FROM ('2020-01-01') TO ('2026-01-01');
CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO events SELECT n, '2025-01-01'::date + n, 'old' FROM generate_series(1, 50) n;
CREATE VIEW people AS SELECT id, email FROM users;
CREATE MATERIALIZED VIEW titles AS SELECT name, count(*) FROM tags GROUP BY 1;
CREATE FUNCTION plus(int) RETURNS int LANGUAGE sql AS 'SELECT $1 + 1';
CREATE FUNCTION counted() RETURNS int LANGUAGE plpgsql AS
  $$ BEGIN UPDATE public.tags SET note = 'counted' WHERE id = 7; RETURN 1; END $$;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touching BEFORE INSERT ON tags FOR EACH ROW EXECUTE FUNCTION touch();
CREATE PROCEDURE tidy() LANGUAGE plpgsql AS
  $$ BEGIN UPDATE public.tags SET note = 'tidy' WHERE id < 20; COMMIT;
     DELETE FROM public.sessions WHERE id < 's2'; END $$;
CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int, initcond = '0');
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TYPE pair AS (a int, b int);
CREATE DOMAIN short AS text CHECK (length(VALUE) < 200);
CREATE SEQUENCE numbers;
SELECT setval('numbers', 100);
SELECT lo_from_bytea(4242, 'kept');
"""


@dataclass(frozen=True)
class Piece:
    """One thing that is found in ordinary databases: made by the owner, then by the superuser."""

    own: str = ""
    others: str = ""


PIECES: Mapping[str, Piece] = {
    "collation": Piece("CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"),
    "text search": Piece("CREATE TEXT SEARCH CONFIGURATION media_search (COPY = english)"),
    "operator": Piece("CREATE OPERATOR ~== (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)"),
    "quoted names": Piece('CREATE TABLE "c.d" ("Id" int PRIMARY KEY, "a b" text); INSERT INTO "c.d" VALUES (1, \'x\')'),
    "schema of the owner": Piece(
        "CREATE SCHEMA beside; CREATE TABLE beside.t (id int PRIMARY KEY REFERENCES tags (id));"
        "INSERT INTO beside.t VALUES (1), (2)"
    ),
    "circle of keys": Piece(
        "CREATE TABLE hens (id int PRIMARY KEY, egg int); CREATE TABLE eggs (id int PRIMARY KEY, hen int REFERENCES"
        " hens (id) DEFERRABLE); INSERT INTO hens VALUES (1, 1); INSERT INTO eggs VALUES (1, 1);"
        "ALTER TABLE hens ADD FOREIGN KEY (egg) REFERENCES eggs (id)"
    ),
    "inheritance": Piece(
        "CREATE TABLE old_sessions (since int) INHERITS (sessions);"
        "INSERT INTO old_sessions VALUES ('o', 'old', 'u1', '2020-01-01', 7)"
    ),
    "stale materialized view": Piece("INSERT INTO tags VALUES (800, 'stale', 'newer than the view')"),
    "generated": Piece(
        "CREATE TABLE sums (id int GENERATED ALWAYS AS IDENTITY, a int, b int GENERATED ALWAYS AS (a * 2) STORED);"
        "INSERT INTO sums (a) VALUES (1), (2)"
    ),
    "check by a function": Piece(
        "CREATE FUNCTION known(text) RETURNS boolean LANGUAGE sql AS"
        " 'SELECT EXISTS (SELECT FROM public.users WHERE id = $1)';"
        "CREATE TABLE checked (by text CHECK (known(by))); INSERT INTO checked VALUES ('u1')"
    ),
    "comments": Piece("COMMENT ON SCHEMA public IS 'ours'; COMMENT ON COLUMN users.email IS 'with a ''quote'''"),
    "row security": Piece(
        "ALTER TABLE session_tokens ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON session_tokens TO medianest_app"
        " USING (true)"
    ),
    "default privileges": Piece(
        "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO stranger; ALTER DEFAULT PRIVILEGES IN SCHEMA public"
        " GRANT USAGE ON TYPES TO stranger"
    ),
    "rights": Piece(
        "GRANT SELECT (id, email) ON users TO stranger; GRANT SELECT ON tags TO stranger WITH GRANT OPTION;"
        "REVOKE EXECUTE ON FUNCTION plus(int) FROM PUBLIC; GRANT USAGE ON SCHEMA public TO medianest_app"
    ),
    "publication of the owner": Piece("CREATE PUBLICATION own_cdc FOR TABLE tags WHERE (id > 3), users (id, email)"),
    "large objects": Piece("SELECT lo_from_bytea(4300, 'more'); GRANT SELECT ON LARGE OBJECT 4300 TO medianest_app"),
    "unlogged": Piece("CREATE UNLOGGED TABLE cache (id int); INSERT INTO cache VALUES (1)"),
    "materialized views": Piece(
        "CREATE MATERIALIZED VIEW empty AS SELECT 1 AS one WITH NO DATA;"
        "CREATE MATERIALIZED VIEW of_view AS SELECT name FROM titles; CREATE UNIQUE INDEX ON of_view (name)"
    ),
    "triggers": Piece(
        "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER noted AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION noted();"
        "CREATE TRIGGER quiet AFTER UPDATE ON tags FOR EACH ROW EXECUTE FUNCTION noted();"
        "ALTER TABLE tags DISABLE TRIGGER quiet; ALTER TABLE users ENABLE ALWAYS TRIGGER noted"
    ),
    "settings": Piece(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''5MB''', current_database());"
        " EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_temp', current_database()); END $$"
    ),
    "extension of a superuser": Piece("CREATE SCHEMA tools", "CREATE EXTENSION pgrowlocks SCHEMA tools"),
    "trusted extension": Piece(
        "CREATE EXTENSION citext; CREATE TABLE loose (name citext); INSERT INTO loose VALUES ('A')"
    ),
    "function of a superuser": Piece(
        "", "CREATE FUNCTION user_lookup(text) RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT $1'"
    ),
    "schema of a superuser": Piece(
        "",
        "CREATE SCHEMA metric_helpers; CREATE TABLE metric_helpers.t (id int); INSERT INTO metric_helpers.t VALUES (1);"
        "CREATE VIEW activity AS SELECT pid, state FROM pg_stat_activity",
    ),
    "audit trigger": Piece(
        "",
        "CREATE SCHEMA audit; GRANT USAGE ON SCHEMA audit TO medianest;"
        "CREATE FUNCTION audit.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER audit AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION audit.note()",
    ),
    "publication for all tables": Piece("", "CREATE PUBLICATION cdc FOR ALL TABLES"),
    "publication over tables": Piece("", "CREATE PUBLICATION dbz FOR TABLE users, media_requests"),
    "view over a table": Piece("", "CREATE VIEW dba_people AS SELECT id, email FROM users"),
    "key of others": Piece("", "CREATE SCHEMA dba; CREATE TABLE dba.notes (id text REFERENCES media_requests (id))"),
    "right by others": Piece(
        "GRANT SELECT ON users TO medianest_readonly WITH GRANT OPTION",
        "SET ROLE medianest_readonly; GRANT SELECT ON users TO stranger; RESET ROLE",
    ),
    "event trigger": Piece(
        "",
        "CREATE FUNCTION watched() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN NULL; END';"
        "CREATE EVENT TRIGGER watching ON ddl_command_end EXECUTE FUNCTION watched()",
    ),
}  # fmt: skip


IN_THE_WAY = frozenset(
    {"publication over tables", "view over a table", "key of others", "right by others", "check by a function"}
)
"""What many a restore can't work with, so that few runs begin at all: fewer sets hold it."""


def chosen(number: int) -> tuple[str, ...]:
    """The pieces of one of the sets; the first holds none."""
    return tuple(name for name in sorted(PIECES) if number in _sets_with(name))


def _sets_with(piece: str) -> list[int]:
    return random.Random(piece).sample(range(1, SETS), 2 if piece in IN_THE_WAY else 4)
