"""The migrator stays a migrator, whatever it makes in the application's database, while the controller looks at it."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from integration.conftest import migrate
from integration.postgres_server import Database
from integration.secured_server import OWNER, PASSWORDS, READER, SPEC, SecuredServer, secured_server
from medianest_operator.backups.logical.server import check_readable, open_server
from medianest_operator.hardening.state import read_state_async
from medianest_operator.health import probe
from medianest_operator.health.indexes import reading
from medianest_operator.health.indexes.report import judge
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.history import read_history_async
from medianest_operator.migrations.indexes import critical_indexes
from medianest_operator.migrations.journal import read_last_run, read_version
from medianest_operator.migrations.rollback import lockout
from medianest_operator.postgres import databases, roles
from medianest_operator.postgres.catalog import read_catalog, read_catalog_async, read_traces_async
from medianest_operator.postgres.contents import count_rows, read_schema_version, read_sequences, snapshot
from medianest_operator.postgres.sessions import Busy, Connection, NotAdmitted, Sessions, Unreachable
from medianest_operator.postgres.trusted import UntrustedContent, UntrustedRelation, Withheld
from migrator_attacks import ATTACKS, PREPARATION, Attack, Outcome

MIGRATOR = f"{OWNER}_migrator"
BACKUP = f"{OWNER}_backup"
TEMPLATE = "shop_template"
VERSION = bundled_migrations()[-1].name


@pytest.fixture(scope="module")
def server() -> Iterator[SecuredServer]:
    with secured_server() as running:
        yield running


@pytest.fixture
async def sessions() -> AsyncIterator[Sessions]:
    made = Sessions()
    yield made
    await made.close()


@pytest.fixture
async def template(server: SecuredServer, sessions: Sessions) -> None:
    """The bundled schema in a database and with the roles that the operator makes; made once."""
    if server.postgres.maintenance.execute(f"SELECT 1 FROM pg_database WHERE datname = '{TEMPLATE}'"):
        return
    async with sessions.use(server.instance("postgres", "postgres"), server.credentials) as connection:
        await roles.reconcile_roles(connection, roles.wanted_roles(SPEC, PASSWORDS))
        await databases.create(connection, TEMPLATE, OWNER)
        await roles.ensure_connect(connection, SPEC, TEMPLATE)
    async with sessions.use(server.instance(TEMPLATE, "postgres"), server.credentials) as connection:
        await roles.ensure_grants(connection, SPEC)
    await sessions.leave("ns", "shop", TEMPLATE)
    result = migrate(server.database(TEMPLATE), bundled_migrations(), user=MIGRATOR)
    assert result.outcome == "Applied", result


@pytest.fixture
def database(server: SecuredServer, template: None) -> Iterator[Database]:
    made = server.postgres.create_database(TEMPLATE)
    rename(made)
    yield made
    server.postgres.drop_database(made)
    server.postgres.maintenance.execute(
        f"ALTER ROLE {MIGRATOR} NOSUPERUSER; ALTER ROLE {OWNER} NOSUPERUSER; ALTER ROLE {MIGRATOR} RESET ALL;"
        f"ALTER ROLE {MIGRATOR} SET role = '{OWNER}'; REVOKE {MIGRATOR} FROM {READER}"
    )


def rename(made: Database) -> None:
    """A copy has no rights of its own: give it the original's, and its owner."""
    name = sql.Identifier(made.name)
    with made.connect() as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, sql.Identifier(OWNER)))
        for statement in ("REASSIGN OWNED BY medianest TO shop",):
            connection.execute(statement)


def attack(database: Database, script: str) -> None:
    """As the migrator, in its own session."""
    with database.connect(MIGRATOR) as connection:
        connection.execute(script.encode())


class Controller:
    """Everything that the controller says to the application's database, one after the other."""

    def __init__(self, server: SecuredServer, sessions: Sessions, database: Database) -> None:
        self.server, self.sessions, self.database = server, sessions, database
        self.errors: dict[str, Exception] = {}
        self.answers: dict[str, Any] = {}

    async def look(self) -> Controller:
        await self._ask("connect", "postgres", "postgres", self._connect)
        await self._ask("databases", "postgres", "postgres", databases.read_databases)
        await self._ask("facts", "postgres", "postgres", lambda c: probe.instance_facts(c, self.database.name))
        await self._ask("grants", self.database.name, "postgres", lambda c: roles.ensure_grants(c, SPEC))
        await self._read("history", read_history_async)
        await self._read("last run", read_last_run)
        await self._read("version", lambda c: read_version(c, VERSION))
        await self._read("traces", read_traces_async)
        await self._read("catalog", read_catalog_async)
        await self._read("indexes", reading.read_async)
        await self._read("index statistics", reading.read_statistics)
        await self._read("hardening", read_state_async)
        await self._read("size", probe.database_size)
        return self

    async def _connect(self, connection: Connection) -> None:
        await roles.reconcile_roles(connection, roles.wanted_roles(SPEC, PASSWORDS))
        await roles.ensure_connect(connection, SPEC, self.database.name)

    async def _read(self, name: str, question: Callable[[Connection], Awaitable[Any]]) -> None:
        await self._ask(name, self.database.name, READER, question)

    async def _ask(self, name: str, dbname: str, user: str, question: Callable[[Connection], Awaitable[Any]]) -> None:
        try:
            instance = self.server.instance(dbname, user)
            async with self.sessions.use(instance, self.server.credentials) as connection:
                self.answers[name] = await question(connection)
        except Exception as error:
            self.errors[name] = error


@pytest.fixture
def controller(server: SecuredServer, sessions: Sessions, database: Database) -> Controller:
    return Controller(server, sessions, database)


def intruders(server: SecuredServer, database: Database) -> set[str]:
    """Who but the migrator ran the attacker's code in a database, by the server's own log."""
    lines = re.findall(r"CANARY acting=(\S+) session=(\S+) source=.* database=(\S+)", server.log())
    return {session for _, session, where in lines if where == database.name} - {MIGRATOR}


_WHATEVER_IS_SET = (
    "-c local_preload_libraries= -c role=none -c search_path=pg_catalog -c default_transaction_read_only=off"
    " -c statement_timeout=0 -c idle_session_timeout=0 -c exit_on_error=off"
)


def ask(database: Database, query: str) -> list[tuple[Any, ...]]:
    """As the superuser, whatever an attack set for the database."""
    with database.connect(options=_WHATEVER_IS_SET) as connection:
        return connection.execute(query.encode()).fetchall()


def assert_migrator_stayed_one(server: SecuredServer, database: Database) -> None:
    superusers = server.postgres.maintenance.execute("SELECT rolname FROM pg_authid WHERE rolsuper")
    assert superusers == [("postgres",)]
    for (table,) in ask(database, "SELECT oid::regclass::text FROM pg_class WHERE relname = 'canary'"):
        wrote = ask(database, f"SELECT DISTINCT session FROM {table}")
        assert set(wrote) <= {(MIGRATOR,)}
    granted = server.postgres.maintenance.execute(
        "SELECT pg_get_userbyid(roleid) FROM pg_auth_members JOIN pg_roles r ON r.oid = member"
        f" WHERE r.rolname = '{READER}' ORDER BY 1"
    )
    assert granted == []


@pytest.mark.parametrize("tried", ATTACKS, ids=lambda tried: tried.name)
async def test_attack(server: SecuredServer, database: Database, controller: Controller, tried: Attack) -> None:
    attack(database, PREPARATION.replace("{owner}", OWNER))
    refusal = pytest.raises((psycopg.ProgrammingError, psycopg.NotSupportedError))
    with refusal if tried.outcome == Outcome.REFUSED else contextlib.nullcontext():
        attack(database, tried.script(OWNER))
    server.postgres.maintenance.execute("SELECT pg_stat_reset()")
    for _ in range(2):
        await controller.look()
    assert_migrator_stayed_one(server, database)
    assert intruders(server, database) == set()
    kinds = {type(error) for error in controller.errors.values()}
    expected = {Outcome.RELATION: {UntrustedRelation}, Outcome.CONTENT: {UntrustedContent}}
    assert kinds == expected.get(tried.outcome, set()), controller.errors
    for error in controller.errors.values():
        assert len(str(error)) < 1000
        assert str(error).isprintable()
    if tried.outcome in {Outcome.READ, Outcome.REFUSED}:
        assert controller.answers["history"].version == VERSION
        assert controller.answers["last run"].ending == "Applied"
        assert controller.answers["version"] is not None
        assert judge(controller.answers["indexes"], critical_indexes()).is_healthy


ALSO_BY_THE_BACKUP = [
    attack for attack in ATTACKS if attack.outcome != Outcome.REFUSED and attack.name != "settings-that-stop-sessions"
]
"""The settings stop the application's sessions and pg_dump as well, which a failed backup reports."""
WORKED_OUT_BY_THE_PLANNER = {"index-on-an-expression", "statistics-on-an-expression", "history-with-a-child"}
"""Expressions of a table's own indexes and statistics, which the planner works out for whoever counts its rows."""


@pytest.mark.parametrize("tried", ALSO_BY_THE_BACKUP, ids=lambda tried: tried.name)
def test_attack_on_the_backup(server: SecuredServer, database: Database, tried: Attack) -> None:
    """It reads with more rights than the migrator has, and lends it none."""
    attack(database, PREPARATION.replace("{owner}", OWNER))
    attack(database, tried.script(OWNER))
    conninfo = psycopg.conninfo.make_conninfo(host=str(database.server.folder), user=BACKUP, dbname=database.name)
    opened = open_server(conninfo, 5, print)
    with opened.connection as connection:
        tables = check_readable(opened)
        with snapshot(connection):
            read_schema_version(connection)
            read_catalog(connection)
            read_sequences(connection)
            with contextlib.suppress(psycopg.DatabaseError):
                list(count_rows(connection, tables))
    assert_migrator_stayed_one(server, database)
    allowed = {BACKUP} if tried.name in WORKED_OUT_BY_THE_PLANNER else set()
    assert intruders(server, database) <= allowed


async def test_what_is_not_the_table_is_named_with_its_owner(database: Database, controller: Controller) -> None:
    attack(database, PREPARATION.replace("{owner}", OWNER))
    view = next(attack for attack in ATTACKS if attack.name == "history-view")
    attack(database, view.script(OWNER))
    await controller.look()
    assert set(controller.errors) == {"history"}
    message = str(controller.errors["history"])
    assert "public._prisma_migrations (owner shop)" in message
    assert "it is a view" in message


async def test_table_exchanged_between_check_and_reading(
    server: SecuredServer, database: Database, controller: Controller
) -> None:
    """Whoever wins that race still has nothing: a login without rights to write, in a transaction that can't."""
    attack(database, PREPARATION.replace("{owner}", OWNER))
    attack(
        database,
        "CREATE SCHEMA trap; CREATE VIEW trap.migration_runs AS SELECT * FROM medianest_operator.migration_runs"
        " WHERE public.pure('race') = 1;"
        "CREATE VIEW trap.schema_versions AS SELECT * FROM medianest_operator.schema_versions"
        " WHERE public.payload('race');"
        "GRANT USAGE ON SCHEMA trap TO PUBLIC; GRANT SELECT ON ALL TABLES IN SCHEMA trap TO PUBLIC",
    )
    over = threading.Event()
    exchanges = 0

    def exchange() -> None:
        nonlocal exchanges
        with database.connect(MIGRATOR) as connection:
            while not over.is_set():
                for name, to in (("medianest_operator", "x"), ("trap", "medianest_operator"), ("x", "trap")):
                    connection.execute(f"ALTER SCHEMA {name} RENAME TO {to}".encode())
                exchanges += 1

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(60):
            controller.errors.clear()
            await controller.look()
            kinds = {type(error) for error in controller.errors.values()}
            assert kinds <= {UntrustedRelation, UntrustedContent}, controller.errors
    finally:
        over.set()
        thread.join()
    assert exchanges > 60
    assert_migrator_stayed_one(server, database)
    assert intruders(server, database) <= {READER}


async def test_lock_on_the_history_is_no_outage(database: Database, controller: Controller) -> None:
    with database.connect(MIGRATOR) as connection, connection.transaction():
        connection.execute("LOCK TABLE public._prisma_migrations")
        await controller.look()
    assert isinstance(controller.errors["history"], Busy)
    assert "last run" in controller.answers


async def test_reader_can_do_nothing_but_read(server: SecuredServer, database: Database, sessions: Sessions) -> None:
    """Even where it asks to write, and where it is a member of the migrator's role."""
    server.postgres.maintenance.execute(f"GRANT {MIGRATOR} TO {READER}")
    for statement in (
        "CREATE TABLE public.mine ()",
        "SET default_transaction_read_only = off; CREATE TABLE public.mine ()",
        f"ALTER ROLE {READER} SUPERUSER",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "CREATE ROLE another",
        "SELECT rolpassword FROM pg_catalog.pg_authid",
        "CREATE TEMPORARY TABLE mine ()",
    ):
        instance = server.instance(database.name, READER)
        async with sessions.use(instance, server.credentials) as connection:
            await roles_off(connection)
        with contextlib.suppress(psycopg.Error):
            async with sessions.use(instance, server.credentials) as connection:
                for part in statement.split(";"):
                    await connection.execute(part.encode())
                assert "default_transaction_read_only = off" in statement
    async with sessions.use(server.instance("postgres", "postgres"), server.credentials) as connection:
        await roles.reconcile_roles(connection, roles.wanted_roles(SPEC, PASSWORDS))
    assert_migrator_stayed_one(server, database)


async def roles_off(connection: Connection) -> None:
    row = await (await connection.execute("SELECT pg_catalog.current_setting('role')")).fetchone()
    assert row == ("none",)


async def test_migration_that_holds_writers_off_keeps_the_controller_reading(
    server: SecuredServer, database: Database, controller: Controller
) -> None:
    """Who can't read the journal can't see how the run goes on, nor begin the one that recovers it."""
    await controller.look()
    with database.connect(MIGRATOR) as connection:
        taken = lockout.observe(connection)
        lockout.lock_out(connection, taken, print, print)
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            database.connect(f"{OWNER}_app")
        held = Controller(server, controller.sessions, database)
        await held.look()
        lockout.lift_lockout(connection, taken)
    assert held.errors == {}
    database.connect(f"{OWNER}_app").close()


async def test_held_off_writers_stay_so_while_an_older_database_gets_its_reader(
    server: SecuredServer, database: Database, controller: Controller
) -> None:
    await controller.look()
    server.postgres.maintenance.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM {READER}, {OWNER}_app")
    await controller.look()
    assert controller.errors == {}
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        database.connect(f"{OWNER}_app")


async def test_tables_of_an_older_operator_become_readable(
    server: SecuredServer, database: Database, sessions: Sessions
) -> None:
    attack(database, f"REVOKE ALL ON ALL TABLES IN SCHEMA medianest_operator, public FROM {READER}")
    attack(database, f"REVOKE ALL ON SCHEMA medianest_operator FROM {READER}")
    async with sessions.use(server.instance("postgres", "postgres"), server.credentials) as connection:
        await roles.ensure_connect(connection, SPEC, database.name)
    with pytest.raises(Withheld, match="migration_runs"):
        async with sessions.use(server.instance(database.name, READER), server.credentials) as connection:
            await read_last_run(connection)
    async with sessions.use(server.instance(database.name, "postgres"), server.credentials) as connection:
        assert await roles.ensure_grants(connection, SPEC)
        assert not await roles.ensure_grants(connection, SPEC)
    looked = await Controller(server, sessions, database).look()
    assert looked.errors == {}


async def test_reader_has_no_password(server: SecuredServer, database: Database) -> None:
    (row,) = server.postgres.maintenance.execute(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{READER}'")
    assert row == (None,)
    with pytest.raises(psycopg.OperationalError, match="certificate"):
        psycopg.connect(host=server.address, user=READER, dbname=database.name, password="", sslmode="require")


async def test_server_of_an_older_operator_says_that_it_passes(sessions: Sessions) -> None:
    with secured_server(admits_reader=False) as old:
        async with sessions.use(old.instance("postgres", "postgres"), old.credentials) as connection:
            await roles.reconcile_roles(connection, roles.wanted_roles(SPEC, PASSWORDS))
            await databases.create(connection, "shop", OWNER)
        with pytest.raises(NotAdmitted, match="shop-0 doesn't admit shop_controller yet"):
            async with sessions.use(old.instance("shop", READER), old.credentials):
                pass


async def test_reader_that_nobody_made_yet(server: SecuredServer, sessions: Sessions) -> None:
    with pytest.raises(NotAdmitted):
        async with sessions.use(server.instance("postgres", READER[:-1]), server.credentials):
            pass


async def test_dead_server_is_unreachable_not_old(server: SecuredServer, sessions: Sessions) -> None:
    instance = server.instance("postgres", READER)
    gone = type(instance)(**{**vars(instance), "address": "127.255.255.1"})
    with pytest.raises(Unreachable) as caught:
        async with sessions.use(gone, server.credentials):
            pass
    assert not isinstance(caught.value, NotAdmitted)
