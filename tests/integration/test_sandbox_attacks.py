"""What a dump carries runs as nobody who could leave the database: no program, no file, no secret."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.backup_runs import SAMPLE, Bench, add_backup_role
from integration.conftest import migrate
from integration.postgres_server import Database
from medianest_operator.api.migrations import Rehearse
from medianest_operator.api.run_options import RunOptions
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
    add_backup_role(medianest.server)
    medianest.execute(SAMPLE)
    (room / "work").mkdir()
    (room / "work").chmod(0o777)
    return Bench(medianest, room, [f"main=file://{room}/main"])


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
