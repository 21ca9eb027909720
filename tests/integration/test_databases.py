"""A database that takes another's place: in one step, with nobody's acknowledged write lost, whatever is cut off."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from integration.postgres_server import Database, PostgresServer
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.postgres import databases, roles
from medianest_operator.postgres.databases import Mark, Role
from medianest_operator.postgres.sessions import Connection

NOW = "2026-01-02T03:04:05Z"
CANDIDATE = Mark(Role.CANDIDATE, "request", NOW)
LIVE = Mark(Role.LIVE, "request", NOW, "20260101T020000Z-daily")
KEPT = Mark(Role.KEPT, "request", NOW)


@pytest.fixture
async def admin(server: PostgresServer) -> AsyncIterator[Connection]:
    connection = await AsyncConnection.connect(
        host=str(server.folder), user="postgres", dbname="postgres", autocommit=True
    )
    async with connection:
        yield connection


@pytest.fixture
def live(server: PostgresServer) -> Iterator[Database]:
    database = server.create_database()
    database.execute("CREATE TABLE writes (n int PRIMARY KEY); GRANT ALL ON writes TO medianest_app")
    database.execute(f"GRANT CONNECT ON DATABASE {database.name} TO medianest_app")
    yield database
    for name in (database.name, f"{database.name}_new", f"{database.name}_old"):
        with server.maintenance.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


async def candidate_for(admin: Connection, live: Database) -> Database:
    name = f"{live.name}_new"
    await databases.create_candidate(admin, name, "medianest", "medianest_migrator", CANDIDATE)
    return Database(live.server, name)


async def test_candidate_is_the_migrators_alone(admin: Connection, live: Database) -> None:
    candidate = await candidate_for(admin, live)
    found = (await databases.read_databases(admin))[candidate.name]
    assert (found.mark, found.connects) == (CANDIDATE, True)
    candidate.execute("CREATE TABLE mine ()", user="medianest_migrator")
    for user in ("medianest_app", "medianest_readonly"):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            candidate.execute("SELECT 1", user=user)


async def test_swap_loses_no_acknowledged_write(admin: Connection, live: Database) -> None:
    """A writer that connects again and again: what it was promised is in the old database or in the new one."""
    candidate = await candidate_for(admin, live)
    candidate.execute("CREATE TABLE writes (n int PRIMARY KEY); GRANT ALL ON writes TO medianest_app")
    candidate.execute(f"GRANT CONNECT ON DATABASE {candidate.name} TO medianest_app")
    acknowledged: list[int] = []
    stop, busy = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            try:
                with live.connect("medianest_app") as connection:
                    while not stop.is_set():
                        number += 1
                        connection.execute("INSERT INTO writes VALUES (%s)", (number,))
                        acknowledged.append(number)
                        busy.set()
            except psycopg.OperationalError:
                pass

    writer = threading.Thread(target=write)
    writer.start()
    assert busy.wait(10)
    try:
        await databases.swap_in(admin, candidate.name, live.name, LIVE, (f"{live.name}_old", KEPT))
        busy.clear()
        assert busy.wait(10), "the writer goes on in the new database"
    finally:
        stop.set()
        writer.join()
    found = await databases.read_databases(admin)
    assert found[live.name].mark == LIVE
    assert (found[f"{live.name}_old"].mark, found[f"{live.name}_old"].connects) == (KEPT, False)
    with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
        Database(live.server, f"{live.name}_old").execute("SELECT 1")
    await databases.allow_connections(admin, f"{live.name}_old")
    old = {row[0] for row in Database(live.server, f"{live.name}_old").execute("SELECT n FROM writes")}
    new = {row[0] for row in live.execute("SELECT n FROM writes")}
    assert old | new >= set(acknowledged)
    assert not old & new


async def test_swap_that_was_cut_off_goes_on(admin: Connection, live: Database) -> None:
    """The live database is closed, and nothing is renamed yet."""
    candidate = await candidate_for(admin, live)
    await admin.execute(f"ALTER DATABASE {live.name} ALLOW_CONNECTIONS false".encode())
    await databases.swap_in(admin, candidate.name, live.name, LIVE, (f"{live.name}_old", KEPT))
    found = await databases.read_databases(admin)
    assert found[live.name].connects
    assert candidate.name not in found


async def test_swap_that_can_not_be_leaves_the_live_database_open(admin: Connection, live: Database) -> None:
    """What is prepared keeps a database from being renamed, and no session of it can be ended."""
    candidate = await candidate_for(admin, live)
    with live.connect("medianest_app") as application:
        application.execute("BEGIN; INSERT INTO writes VALUES (1)")
        application.execute(f"PREPARE TRANSACTION '{live.name}'")
    try:
        assert f"'{live.name}' (prepared 00:00:0" in (await databases.prepared(admin, live.name) or "")
        with pytest.raises(psycopg.errors.ObjectInUse):
            await databases.swap_in(admin, candidate.name, live.name, LIVE, (f"{live.name}_old", KEPT))
        assert live.execute("SELECT count(*) FROM writes", user="medianest_app") == [(0,)]
    finally:
        await databases.allow_connections(admin, live.name)
        live.execute(f"COMMIT PREPARED '{live.name}'")
    assert await databases.prepared(admin, live.name) is None
    await databases.swap_in(admin, candidate.name, live.name, LIVE, (f"{live.name}_old", KEPT))


async def test_replaced_database_is_opened_to_one_role_alone(admin: Connection, live: Database) -> None:
    spec = DatabaseSpec.model_validate({"database": {"name": live.name}})
    await roles.reconcile_roles(admin, _logins(spec))
    await roles.ensure_connect(admin, spec, live.name)
    await admin.execute(f"ALTER DATABASE {live.name} ALLOW_CONNECTIONS false".encode())
    await databases.open_to(admin, live.name, "medianest_backup")
    assert live.execute("SELECT count(*) FROM writes", user="medianest_backup") == [(0,)]
    for login in ("medianest_app", "medianest_migrator", "medianest_readonly"):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            live.execute("SELECT 1", user=login)


async def test_first_database_comes_in_without_an_old_one(admin: Connection, live: Database) -> None:
    candidate = await candidate_for(admin, live)
    await databases.drop(admin, live.name)
    await databases.swap_in(admin, candidate.name, live.name, LIVE)
    assert (await databases.read_databases(admin))[live.name].mark == LIVE


async def test_drop_ends_whoever_is_in_there(admin: Connection, live: Database) -> None:
    with live.connect("medianest_app") as connection:
        await databases.drop(admin, live.name)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert live.name not in await databases.read_databases(admin)
    await databases.drop(admin, live.name)


async def test_comment_of_somebody_else_is_no_mark(admin: Connection, live: Database) -> None:
    for comment in ("the application", "{}", '{"medianest-operator": {"role": "king", "request": "1", "at": "x"}}'):
        live.execute(f"COMMENT ON DATABASE {live.name} IS '{comment}'")
        assert (await databases.read_databases(admin))[live.name].mark is None


async def test_rights_come_back_only_where_nobody_is_held_off(admin: Connection, live: Database) -> None:
    spec = DatabaseSpec.model_validate({"database": {"name": live.name}})
    await roles.reconcile_roles(admin, _logins(spec))
    assert await roles.ensure_connect(admin, spec, live.name)
    assert not await roles.ensure_connect(admin, spec, live.name)
    live.execute("SELECT 1", user="medianest_backup")
    # As a migration locks writers out.
    await admin.execute(f"REVOKE CONNECT ON DATABASE {live.name} FROM medianest_app, medianest_backup".encode())
    assert not await roles.ensure_connect(admin, spec, live.name)
    # As a database of an earlier operator, which knew no backup role.
    await admin.execute(f"GRANT CONNECT ON DATABASE {live.name} TO medianest_app".encode())
    assert await roles.ensure_connect(admin, spec, live.name)
    live.execute("SELECT 1", user="medianest_backup")


async def test_backup_role_reads_every_row_and_writes_none(admin: Connection, live: Database) -> None:
    spec = DatabaseSpec.model_validate({"database": {"name": live.name}})
    await roles.reconcile_roles(admin, _logins(spec))
    assert await roles.reconcile_roles(admin, _logins(spec)) == []
    await roles.ensure_connect(admin, spec, live.name)
    live.execute(
        "INSERT INTO writes VALUES (1); ALTER TABLE writes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
    )
    assert live.execute("SELECT n FROM writes", user="medianest_backup") == [(1,)]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        live.execute("CREATE TEMP TABLE x ()", user="medianest_backup")
    writing = "-c default_transaction_read_only=off"
    with (
        live.connect("medianest_backup", options=writing) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("DELETE FROM writes")


def _logins(spec: DatabaseSpec) -> list[roles.WantedRole]:
    words = dict.fromkeys(("app", "readonly", "migrator", "monitor", "backup"), "word")
    return [replace(role, acts_as=None) if role.acts_as else role for role in roles.wanted_roles(spec, words)]


async def test_settings_of_the_database_come_along(admin: Connection, live: Database) -> None:
    live.execute(
        f'ALTER DATABASE {live.name} SET search_path = "$user", public, "odd name";'
        f" ALTER DATABASE {live.name} SET work_mem = '9MB';"
        f" ALTER ROLE medianest_app IN DATABASE {live.name} SET medianest.note = 'it''s'"
    )
    candidate = await candidate_for(admin, live)
    await databases.swap_in(admin, candidate.name, live.name, LIVE, (f"{live.name}_old", KEPT))
    await admin.execute(f"GRANT CONNECT ON DATABASE {live.name} TO medianest_app".encode())
    [(path,)] = live.execute("SHOW search_path")
    assert path == '"$user", public, "odd name"'
    assert live.execute("SHOW work_mem") == [("9MB",)]
    assert live.execute("SHOW medianest.note", user="medianest_app") == [("it's",)]


async def test_rights_limit_and_comment_of_the_database_come_along(
    server: PostgresServer, admin: Connection, live: Database
) -> None:
    """Whom an admin has let in stays in, by whoever granted it, and with what may be passed on."""
    name = live.name
    server.maintenance.execute(f'CREATE ROLE "{name} bi" LOGIN; CREATE ROLE {name}_team')
    live.execute(
        f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC; COMMENT ON DATABASE {name} IS 'It''s the one.';"
        f"ALTER DATABASE {name} CONNECTION LIMIT 17; GRANT CONNECT ON DATABASE {name} TO {name}_team WITH GRANT OPTION;"
        f'SET ROLE {name}_team; GRANT CONNECT ON DATABASE {name} TO "{name} bi"; RESET ROLE;'
        f'GRANT CREATE ON DATABASE {name} TO "{name} bi"'
    )
    before = own_properties(live)
    candidate = await candidate_for(admin, live)
    await databases.swap_in(admin, candidate.name, name, LIVE, (f"{name}_old", KEPT))
    try:
        live.execute("CREATE SCHEMA theirs", user=f"{name} bi")
        found = own_properties(live)
        assert found[1:] == before[1:] == (17, "It's the one.")
        # The migrator has had the candidate to itself.
        assert found[0] - before[0] == {"medianest_migrator=Tc/medianest"}
        assert not before[0] - found[0]
    finally:
        for database in (live, server.maintenance):
            database.execute(f'DROP OWNED BY {name}_team, "{name} bi" CASCADE')
        await databases.drop(admin, f"{name}_old")
        server.maintenance.execute(f'DROP ROLE {name}_team, "{name} bi"')


def own_properties(database: Database) -> tuple[set[str], int, str]:
    query = "SELECT datacl::text[], datconnlimit, shobj_description(oid, 'pg_database') FROM pg_database"
    [(rights, limit, comment)] = database.execute(f"{query} WHERE datname = current_database()")
    return set(rights), limit, comment


async def test_readers_of_a_replica_are_shown_out(admin: Connection, live: Database) -> None:
    with live.connect("medianest_app") as connection:
        await databases.end_sessions(admin, live.name)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


@pytest.mark.parametrize(
    "path",
    [
        "public;ALTER/**/ROLE/**/medianest_migrator/**/SUPERUSER;--",
        "'x';ALTER/**/ROLE/**/medianest_migrator/**/SUPERUSER;--",
        '"a"";b",public',
    ],
)
async def test_settings_of_the_replaced_database_are_copied_not_run(
    admin: Connection, live: Database, path: str
) -> None:
    """Its owner can store any text in a list: SET ... FROM CURRENT takes it as it is."""
    with live.connect("medianest_migrator") as connection:
        connection.execute("SELECT set_config('search_path', %s, false)", [path])
        connection.execute(f'ALTER DATABASE "{live.name}" SET search_path FROM CURRENT'.encode())
    candidate = await candidate_for(admin, live)
    await databases.swap_in(admin, candidate.name, live.name, LIVE, (f"{live.name}_old", KEPT))
    cursor = await admin.execute("SELECT rolname FROM pg_authid WHERE rolsuper")
    superusers = await cursor.fetchall()
    await admin.execute("ALTER ROLE medianest_migrator NOSUPERUSER")
    assert superusers == [("postgres",)]
    if path.startswith('"'):
        (setting,) = live.execute("SELECT unnest(setconfig) FROM pg_db_role_setting JOIN pg_database d"
                                  " ON d.oid = setdatabase WHERE datname = current_database()")  # fmt: skip
        assert setting == ('search_path="a"";b", public',)


@pytest.mark.parametrize(
    "comment",
    [
        '{"medianest-operator": {"role": "kept", "request": 1, "at": "yesterday"}}',
        '{"medianest-operator": {"role": "kept", "request": "r", "at": "2026-01-02"}}',
        '{"medianest-operator": [1]}',
        "[" * 100_000,
        "x" * 50_000_000,
    ],
)
async def test_owner_can_write_any_comment_on_its_database(admin: Connection, live: Database, comment: str) -> None:
    with live.connect("medianest_migrator") as connection:
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(live.name), comment))
    found = (await databases.read_databases(admin))[live.name]
    assert found.mark is None
