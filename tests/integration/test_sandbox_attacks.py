"""What a dump carries runs as nobody who could leave the database: no program, no file, no secret."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from integration.backup_runs import Bench, new_bench, replace_stored, unpacked
from integration.conftest import migrate
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions
from medianest_operator.backups.logical.program import DumpError
from medianest_operator.backups.logical.spool import restore_in_place
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.source import Migration

NEXT = Migration.from_bytes("20260101120000_next", b"CREATE TABLE notes (id text)")
CANARY = "canary-5b1f"
# Tries every way out that PostgreSQL has, and hides that it failed.
_WAYS_OUT = """
COPY (SELECT 1) TO PROGRAM 'env > {folder}/program'
COPY (SELECT 1) TO '{folder}/copied'
COPY public.loot FROM '{folder}/secret'
COPY public.loot FROM PROGRAM 'cat {folder}/secret'
INSERT INTO public.loot SELECT pg_read_file('{folder}/secret')
INSERT INTO public.loot SELECT pg_ls_dir('{folder}')
SELECT lo_export(lo_from_bytea(0, 'x'), '{folder}/exported')
SELECT lo_import('{folder}/secret')
SET ROLE postgres
ALTER ROLE CURRENT_USER SUPERUSER
CREATE ROLE evil SUPERUSER LOGIN
GRANT pg_execute_server_program TO CURRENT_USER
ALTER SYSTEM SET archive_command = 'touch {folder}/archived'
CREATE FUNCTION public.native() RETURNS int LANGUAGE c AS '{folder}/evil.so'
CREATE EXTENSION file_fdw
CREATE EXTENSION adminpack
LOAD '{folder}/evil.so'
"""


_CALM = """
CREATE TABLE public.loot (t text);
CREATE FUNCTION public.attack(t text) RETURNS boolean LANGUAGE plpgsql AS $f$ BEGIN RETURN true; END $f$;
CREATE FUNCTION public.attack_as_postgres(t text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS
 $f$ BEGIN RETURN public.attack(t); END $f$;
CREATE FUNCTION public.calm(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
 $f$ BEGIN PERFORM public.attack(t); RETURN t; END $f$;
"""


def ways_out(folder: Path) -> str:
    """Functions that try to leave, in place of those of the same names that don't."""
    tries = "\n".join(
        f"  BEGIN EXECUTE $q${line.format(folder=folder)}$q$; EXCEPTION WHEN OTHERS THEN NULL; END;"
        for line in _WAYS_OUT.strip().splitlines()
    )
    program = f"COPY (SELECT 1) TO PROGRAM 'env > {folder}/program'"
    # Once more as whoever postgres is.
    return f"""
CREATE OR REPLACE FUNCTION public.attack(t text) RETURNS boolean LANGUAGE plpgsql AS $f$
BEGIN
{tries}
  RETURN true;
END $f$;
CREATE OR REPLACE FUNCTION public.attack_as_postgres(t text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $f$
BEGIN
  BEGIN EXECUTE $q${program}$q$; EXCEPTION WHEN OTHERS THEN NULL; END;
  RETURN public.attack(t);
END $f$;
"""


# Each gets its code run while a dump is restored, compared or checked.
ATTACKS = {
    "check": "CREATE TABLE public.bait (t text CHECK (public.attack(t)));",
    "generated column": "CREATE TABLE public.bait (t text, g text GENERATED ALWAYS AS (public.calm(t)) STORED);",
    "domain": (
        "CREATE DOMAIN public.word AS text CHECK (public.attack(VALUE)); CREATE TABLE public.bait (t public.word);"
    ),
    "index": "CREATE TABLE public.bait (t text); CREATE INDEX bait_calm ON public.bait (public.calm(t));",
    "materialized view": (
        "CREATE TABLE public.bait (t text);"
        " CREATE MATERIALIZED VIEW public.seen AS SELECT t, public.attack(t) FROM public.bait;"
    ),
    "security definer of postgres": "CREATE TABLE public.bait (t text CHECK (public.attack_as_postgres(t)));",
    "operators in public": (
        "CREATE TABLE public.bait (t text);"
        " CREATE FUNCTION public.glue(text, oid) RETURNS text LANGUAGE plpgsql AS"
        "  $f$ BEGIN PERFORM public.attack($1); RETURN pg_catalog.textcat($1, $2::text); END $f$;"
        " CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = oid, FUNCTION = public.glue);"
        " CREATE FUNCTION public.same(name, text) RETURNS boolean LANGUAGE plpgsql AS"
        "  $f$ BEGIN PERFORM public.attack($2); RETURN $1::text = $2; END $f$;"
        " CREATE OPERATOR public.<> (LEFTARG = name, RIGHTARG = text, FUNCTION = public.same);"
    ),
    "trigger and rule": (
        "CREATE TABLE public.bait (t text);"
        " CREATE FUNCTION public.fire() RETURNS trigger LANGUAGE plpgsql AS"
        "  $f$ BEGIN PERFORM public.attack(NEW.t); RETURN NEW; END $f$;"
        " CREATE TRIGGER fire BEFORE INSERT ON public.bait FOR EACH ROW EXECUTE FUNCTION public.fire();"
        " ALTER TABLE public.bait ENABLE ALWAYS TRIGGER fire;"
        " CREATE RULE look AS ON INSERT TO public.bait DO ALSO SELECT public.attack(NEW.t);"
    ),
    "view in place of the history": (
        "CREATE TABLE public.bait (t text);"
        " CREATE VIEW public.peek AS SELECT public.attack(t) FROM public.bait;"
        " CREATE POLICY own ON public.bait USING (public.attack(t)); ALTER TABLE public.bait ENABLE ROW LEVEL SECURITY;"
    ),
}


@pytest.fixture
def loot(tmp_path: Path) -> Iterator[Path]:
    """A folder that everybody may write to, with a secret; another is in the environment of what runs."""
    folder = tmp_path / "loot"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "secret").write_text(CANARY)
    os.environ["AWS_SECRET_ACCESS_KEY"] = CANARY
    yield folder
    del os.environ["AWS_SECRET_ACCESS_KEY"]


def lay(database: Database, attack: str, loot: Path) -> None:
    """Put an attack into the database. Its functions are armed at the very end, so that they never run here."""
    database.execute(f"SET ROLE medianest; {_CALM} {ATTACKS[attack]}")
    database.execute("INSERT INTO public.bait (t) VALUES ('a'), ('b')", user="medianest_migrator")
    if "materialized" in attack:
        database.execute("REFRESH MATERIALIZED VIEW public.seen")
    if "postgres" in attack:
        database.execute("ALTER FUNCTION public.attack_as_postgres(text) OWNER TO postgres")
    database.execute(ways_out(loot))


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main")


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_leaves_a_rehearsal(people: Database, room: Path, loot: Path, attack: str) -> None:
    lay(people, attack, loot)
    options = RunOptions(rehearse=Rehearse.ALWAYS)
    result = migrate(people, (*bundled_migrations(), NEXT), options, folder=room)
    assert [path.name for path in loot.iterdir()] == ["secret"]
    assert (result.outcome, result.rehearsal is not None) == ("Applied", True), result
    assert result.rehearsal is not None
    assert result.rehearsal.data


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_leaves_a_verification(bench: Bench, loot: Path, attack: str) -> None:
    lay(bench.source, attack, loot)
    assert bench.backup().code == 0
    answer = bench.verify()
    assert [path.name for path in loot.iterdir()] == ["secret"]
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert CANARY not in answer.text


# Written over a view's definition, and run by pg_restore as it stands.
FORGED = {
    "program": "COPY (SELECT 1) TO PROGRAM 'touch {folder}/marker'",
    "file": "COPY (SELECT 1) TO '{folder}/marker'",
    "read": "CREATE TABLE public.stolen AS SELECT pg_read_file('{folder}/secret')",
    "large object": "SELECT lo_export(lo_from_bytea(0, 'x'), '{folder}/marker')",
    "superuser": "ALTER ROLE CURRENT_USER SUPERUSER",
    "other role": "CREATE ROLE evil SUPERUSER LOGIN PASSWORD 'x'",
    "groups": "GRANT pg_execute_server_program TO medianest",
    "session": "SET SESSION AUTHORIZATION postgres; COPY (SELECT 1) TO PROGRAM 'touch {folder}/marker'",
    "postgres": "SET ROLE postgres; COPY (SELECT 1) TO PROGRAM 'touch {folder}/marker'",
    "system": "ALTER SYSTEM SET archive_command = 'touch {folder}/marker'",
    "extension": "CREATE EXTENSION file_fdw",
    "tools": "CREATE EXTENSION adminpack",
    "library": "LOAD '{folder}/evil.so'",
    "native": "CREATE FUNCTION public.n() RETURNS int LANGUAGE c AS '{folder}/evil.so', 'n'",
    "event trigger": "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION public.fire()",
    "catalog": "UPDATE pg_catalog.pg_authid SET rolsuper = true",
    "psql": "\n\\! touch {folder}/marker\n",
    "connect": "\n\\connect postgres\n",
}
_ROOM = 300


def forge(dump: bytes, text: str) -> bytes:
    """The same dump with a statement behind the definition of a view, which has the room for it."""
    old = b"'" + b"x" * _ROOM + b"'::text AS t;"
    new = f"'x'::text AS t; {text};".encode()
    assert dump.count(old) == 1
    assert len(new) <= len(old)
    return dump.replace(old, new.ljust(len(old)))


def store_forged(bench: Bench, text: str) -> None:
    """Where whoever may write to the bucket puts it: the manifest's sum fits."""
    bench.source.execute(f"SET ROLE medianest; CREATE VIEW public.room AS SELECT '{'x' * _ROOM}'::text AS t")
    assert bench.backup().code == 0
    path = next((bench.folder / "main").rglob("data.dump.zst"))
    replace_stored(path, zstandard.ZstdCompressor().compress(forge(unpacked(path), text)))


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_dump_is_refused_and_does_nothing(bench: Bench, loot: Path, forged: str) -> None:
    store_forged(bench, FORGED[forged].format(folder=loot))
    answer = bench.verify()
    assert [path.name for path in loot.iterdir()] == ["secret"]
    assert answer.told == (1, "Failed", "VerificationFailed"), answer.text
    assert "it can't be restored" in answer.result["message"]
    assert CANARY not in answer.text


def test_psql_runs_no_command_of_a_forged_dump(bench: Bench, loot: Path) -> None:
    """A migration that has to be rolled back by its backup has psql restore it, where the secrets are."""
    store_forged(bench, FORGED["psql"].format(folder=loot))
    forged = unpacked(next((bench.folder / "main").rglob("data.dump.zst")))
    target = bench.source.server.create_database()
    try:
        with pytest.raises(DumpError):
            restore_in_place([forged], target.environment("medianest_migrator"), (), (), lambda lines: lines)
    finally:
        target.server.drop_database(target)
    assert [path.name for path in loot.iterdir()] == ["secret"]


_SUPERUSERS = """
CREATE EXTENSION postgres_fdw;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'nowhere.example');
CREATE USER MAPPING FOR medianest SERVER elsewhere OPTIONS (user 'u', password 'hidden');
CREATE FOREIGN TABLE public.far (id text) SERVER elsewhere;
CREATE VIEW public.farther AS SELECT id FROM public.far;
CREATE FUNCTION public.native() RETURNS trigger LANGUAGE c AS '$libdir/refint', 'check_primary_key';
CREATE FUNCTION public.note_it() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN NULL; END';
CREATE EVENT TRIGGER noted ON ddl_command_end EXECUTE FUNCTION public.note_it();
CREATE PUBLICATION everything FOR ALL TABLES;
COMMENT ON EVENT TRIGGER noted IS 'left out as well';
GRANT SELECT ON public.farther TO medianest_app;
"""


def test_what_needs_a_superuser_is_left_out_and_named(bench: Bench) -> None:
    bench.source.execute(_SUPERUSERS)
    try:
        assert bench.backup(user="postgres").code == 0
        answer = bench.verify()
    finally:
        bench.source.execute("DROP EVENT TRIGGER noted")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    for what in ("event trigger noted", "publication everything", "function native()", "server elsewhere",
                 "foreign table far", "view farther", "extension postgres_fdw"):  # fmt: skip
        assert what in answer.text, what
    assert "hidden" not in answer.text


def test_a_rehearsal_goes_on_without_what_needs_a_superuser(people: Database, room: Path) -> None:
    people.execute(_SUPERUSERS.replace("CREATE USER MAPPING", "-- CREATE USER MAPPING"))
    try:
        result = migrate(people, (*bundled_migrations(), NEXT), RunOptions(rehearse=Rehearse.ALWAYS), folder=room)
    finally:
        people.execute("DROP EVENT TRIGGER noted")
    assert result.outcome == "Applied", result
    assert result.rehearsal is not None
    assert result.rehearsal.data


_FOREIGN = """
CREATE TABLE public.of_stranger (id bigserial PRIMARY KEY, t text);
ALTER TABLE public.of_stranger OWNER TO stranger;
CREATE TABLE public.of_postgres (id int REFERENCES public.of_stranger);
CREATE SCHEMA extra AUTHORIZATION medianest;
CREATE TABLE extra.of_stranger (id int);
ALTER TABLE extra.of_stranger OWNER TO stranger;
CREATE FUNCTION public.by_stranger() RETURNS int LANGUAGE sql AS 'SELECT 1';
ALTER FUNCTION public.by_stranger() OWNER TO stranger;
GRANT SELECT ON public.of_stranger TO medianest_app WITH GRANT OPTION;
SET ROLE medianest_app;
GRANT SELECT ON public.of_stranger TO medianest_readonly;
RESET ROLE;
ALTER DEFAULT PRIVILEGES FOR ROLE stranger GRANT SELECT ON TABLES TO medianest_app;
INSERT INTO public.of_stranger (t) VALUES ('a'), ('b');
CREATE MATERIALIZED VIEW public.of_both AS SELECT s.t FROM public.of_stranger s, public.users u;
ALTER TABLE public.of_stranger ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.of_stranger FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON public.of_stranger USING (false);
ALTER ROLE stranger SET search_path = extra, public;
"""


@pytest.fixture
def foreign(people: Database) -> Iterator[Database]:
    people.execute(_FOREIGN)
    yield people
    people.execute("ALTER ROLE stranger RESET search_path")


def test_foreign_owners_and_their_rights_are_rehearsed_as_they_are(foreign: Database, room: Path) -> None:
    """The catalogs are compared, owners and rights included."""
    options = RunOptions(rehearse=Rehearse.ALWAYS)
    result = migrate(foreign, (*bundled_migrations(), NEXT), options, user="postgres", folder=room)
    assert result.outcome == "Applied", result
    assert result.rehearsal is not None
    assert result.rehearsal.data


def test_what_a_superusers_run_may_is_not_tried_on_a_copy(people: Database, room: Path) -> None:
    """Nobody is a superuser there: the run says so instead of failing for it."""
    sql = "CREATE FUNCTION public.one() RETURNS int LANGUAGE sql LEAKPROOF AS 'SELECT 1'"
    source = (*bundled_migrations(), Migration.from_bytes(NEXT.name, sql.encode()))
    always = migrate(people, source, RunOptions(rehearse=Rehearse.ALWAYS), user="postgres", folder=room)
    assert always.reason == "RehearsalImpossible", always
    result = migrate(people, source, user="postgres", folder=room)
    assert result.outcome == "Applied", result
    assert result.rehearsal is not None
    assert "a copy has none" in (result.rehearsal.note or "")


def test_foreign_owners_and_their_rights_are_verified_as_they_are(bench: Bench) -> None:
    bench.source.execute(_FOREIGN)
    try:
        assert bench.backup().code == 0
        answer = bench.verify()
    finally:
        bench.source.execute("ALTER ROLE stranger RESET search_path")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert "fingerprint" in answer.result["message"]
