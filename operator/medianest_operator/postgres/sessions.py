"""One persistent connection to each instance: a probe over it costs a fortieth of a new connection.

The controller logs in by its own client certificate, straight to the pod's address, and verifies the server's name: as
the superuser, or as the role that reads what the application owns and can change nothing (`logins.controller_name`).

No session takes on what somebody set for a database or a role. Functions, operators and types are found in `pg_catalog`
alone: the temporary schema is searched for relations and types last, and for functions and operators never (PostgreSQL
manual, 20.11.1, search_path).
"""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import TupleRow

from medianest_operator import naming
from medianest_operator.naming import Key

Connection = psycopg.AsyncConnection[TupleRow]
_Slot = tuple[str, str, str, str, str]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = 3
"""Seconds. A frozen server's kernel still accepts TCP, so every step has its own deadline."""
QUERY_TIMEOUT: Final = 5.0
_APART: Final = 4
"""Connections of their own at a time, of all databases."""

_TIMED_OUT: Final = (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable)
# The server's and libpq's words (src/backend/libpq/auth.c, utils/init/postinit.c; libpq/fe-auth.c); a refused login has
# no code that psycopg hands out. The first is libpq's own: without a rule for certificates the server asks a password.
_REFUSALS: Final = (
    "no password supplied",
    "password authentication failed",
    "certificate authentication failed",
    "no pg_hba.conf entry",
    "permission denied for database",
    "is not permitted to log in",
    # The superuser still gets in then.
    "remaining connection slots are reserved",
    "too many connections",
)


_PINNED: Final = {
    "search_path": "pg_catalog,pg_temp",
    # What somebody's function says is as long as it wants.
    "client_min_messages": "error",
    "role": "none",
    "local_preload_libraries": "",
    "row_security": "off",
    "statement_timeout": str(int(QUERY_TIMEOUT * 1000)),
    "lock_timeout": "2000",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "60000",
    "exit_on_error": "off",
    "default_transaction_isolation": "read\\ committed",
    "default_transaction_deferrable": "off",
    "DateStyle": "ISO,MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "transform_null_equals": "off",
    # Otherwise the planner works out CHECK constraints, functions in them included.
    "constraint_exclusion": "partition",
}
"""What is set while the session starts. A client's options go before the settings of the role and of the database,
whose owner may set any of these (PostgreSQL manual, 20.1.3)."""

# Whatever else the owner set for its database goes back to what PostgreSQL is built with: slow plans, logs of each
# query, another storage for new tables. What only a superuser can set stays.
_NEUTRAL: LiteralString = """
SELECT pg_catalog.set_config(s.name, s.boot_val, false) FROM pg_catalog.pg_settings s
 WHERE s.source OPERATOR(pg_catalog.=) ANY ('{database,user,database user}'::pg_catalog.text[])
   AND s.context OPERATOR(pg_catalog.=) 'user' AND s.boot_val IS NOT NULL
"""


class Unreachable(Exception):
    """An instance can't be asked; the message says why, for people."""


class NotAdmitted(Unreachable):
    """The server answers, and doesn't let the controller's reader in yet: its pg_hba.conf, its pg_ident.conf or the
    right to connect is older than this operator. It passes once the server has loaded them."""


class Busy(Unreachable):
    """The server answers, and a statement didn't end in time: it was slow, or somebody holds a lock that it needs."""


@dataclass(frozen=True)
class Credentials:
    """The controller's client certificate and the CA of the server, as PEM."""

    certificate: str
    key: str
    ca: str


@dataclass(frozen=True)
class Instance:
    """A server to connect to."""

    namespace: str
    database: str
    """The object's name."""
    pod: str
    uid: str
    address: str
    host: str
    """The name that the server's certificate must have."""
    dbname: str
    user: str
    """The superuser, for the maintenance database and for statements that read nothing of the application's; else the
    reader of `logins.controller_name`, or one of the login roles."""
    password: str | None = field(default=None, repr=False)
    """Of a login role; `None`: the controller's certificate opens the door."""


class Sessions:
    """The persistent connections of this process."""

    def __init__(self, on_broken: Callable[[Key], None] = lambda _: None) -> None:
        """
        Args:
            on_broken: called with the namespace and the name of an object when the server closes one of its kept
                connections: a server that died is known of at once, not at the next probe.
        """
        self._on_broken = on_broken
        # By namespace and name of the object, then by the slot.
        self._open: dict[Key, dict[_Slot, tuple[Instance, Credentials, Connection]]] = {}
        self._apart = asyncio.Semaphore(_APART)
        self._files = tempfile.TemporaryDirectory(prefix="medianest-tls-")

    @contextlib.asynccontextmanager
    async def use(
        self, instance: Instance, credentials: Credentials, patience: float = QUERY_TIMEOUT, *, fresh: bool = False
    ) -> AsyncIterator[Connection]:
        """A connection for some queries. It is closed by whatever is raised meanwhile: what an aborted statement left
        in it is nobody's.

        Args:
            patience: how long all of them may take, in seconds.
            fresh: the connection that is kept is replaced by a new one.

        Raises:
            NotAdmitted: the reader is not let in yet.
            Busy: a statement ran into its time limit.
            Unreachable: the connection can't be had or breaks in the middle.
        """
        slot = (instance.namespace, instance.database, instance.pod, instance.dbname, instance.user)
        known = self._open.get(slot[:2], {}).get(slot)
        if known:
            self._stop_listening(known[2])
        if known and (fresh or known[0] != instance or known[1] != credentials or known[2].closed):
            await self._close(slot)
            known = None
        try:
            async with asyncio.timeout(patience):
                if known is None:
                    connection = await self._connect(instance, credentials)
                    self._open.setdefault(slot[:2], {})[slot] = (instance, credentials, connection)
                else:
                    connection = known[2]
                yield connection
            self._listen(slot, connection)
        except (TimeoutError, psycopg.OperationalError, psycopg.InterfaceError, OSError) as error:
            await self._close(slot)
            if isinstance(error, psycopg.errors.InvalidCatalogName):
                raise
            reason = " ".join(str(error).split()) or f"no answer within {patience:.0f} s"
            kind = Busy if isinstance(error, _TIMED_OUT) else Unreachable
            raise kind(f"{instance.pod}: {reason}") from error
        except BaseException:
            await self._close(slot)
            raise

    @contextlib.asynccontextmanager
    async def apart(self, instance: Instance, credentials: Credentials, patience: float) -> AsyncIterator[Connection]:
        """A connection of its own for what takes longer than a run, and goes on beside it; a few at a time.

        It isn't kept, and nobody else closes it: a descriptor that is closed under a statement stays known to the event
        loop for a moment, and with it whatever gets its number next.

        Args:
            patience: how long all queries may take, in seconds.

        Raises:
            Unreachable: the connection can't be had or breaks in the middle.
        """
        async with self._apart:
            try:
                async with asyncio.timeout(patience):
                    connection = await self._connect(instance, credentials)
                    try:
                        yield connection
                    finally:
                        await connection.close()
            except (TimeoutError, psycopg.OperationalError, psycopg.InterfaceError, OSError) as error:
                reason = " ".join(str(error).split()) or f"no answer within {patience:.0f} s"
                raise Unreachable(f"{instance.pod}: {reason}") from error

    async def _connect(self, instance: Instance, credentials: Credentials) -> Connection:
        try:
            connection = await self._log_in(instance, credentials)
        except psycopg.OperationalError as error:
            reason = " ".join(str(error).split())
            refusals = (*_REFUSALS, f'role "{instance.user}" does not exist')
            if instance.user != naming.SUPERUSER and any(words in reason for words in refusals):
                raise NotAdmitted(f"{instance.pod} doesn't admit {instance.user} yet: {reason}") from error
            raise
        try:
            await connection.execute(_NEUTRAL)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _log_in(self, instance: Instance, credentials: Credentials) -> Connection:
        folder = Path(self._files.name, instance.namespace, instance.database)
        files = {
            naming.TLS_CERT: credentials.certificate,
            naming.TLS_KEY: credentials.key,
            naming.TLS_CA: credentials.ca,
        }
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, text in files.items():
            path = folder / name
            path.touch(mode=0o600, exist_ok=True)
            path.write_text(text)
        door: dict[str, Any] = {"password": instance.password, "sslcertmode": "disable"}
        if instance.password is None:
            door = {"sslcert": str(folder / naming.TLS_CERT), "sslkey": str(folder / naming.TLS_KEY)}
        return await psycopg.AsyncConnection.connect(
            **door,
            host=instance.host,
            hostaddr=instance.address,
            port=naming.POSTGRES_PORT,
            user=instance.user,
            dbname=instance.dbname,
            sslmode="verify-full",
            sslrootcert=str(folder / naming.TLS_CA),
            application_name=naming.OPERATOR,
            connect_timeout=CONNECT_TIMEOUT,
            tcp_user_timeout=5000,
            keepalives_idle=10,
            keepalives_interval=3,
            keepalives_count=3,
            client_encoding="utf8",
            options=_options(instance.user),
            autocommit=True,
        )

    def _listen(self, slot: _Slot, connection: Connection) -> None:
        """Hear of the end of an idle connection: nothing else makes its socket readable (no LISTEN is used)."""
        if connection.closed:
            return
        loop, descriptor = asyncio.get_running_loop(), connection.fileno()

        def readable() -> None:
            loop.remove_reader(descriptor)
            self._on_broken(slot[:2])

        loop.add_reader(descriptor, readable)

    @staticmethod
    def _stop_listening(connection: Connection) -> None:
        if not connection.closed:
            asyncio.get_running_loop().remove_reader(connection.fileno())

    async def _close(self, slot: _Slot) -> None:
        slots = self._open.get(slot[:2], {})
        if entry := slots.pop(slot, None):
            # Before the descriptor is closed: its number is given to the next that is opened.
            self._stop_listening(entry[2])
            with contextlib.suppress(Exception):
                await entry[2].close()
        if not slots:
            self._open.pop(slot[:2], None)

    async def leave(self, namespace: str, database: str, dbname: str) -> None:
        """Close the connections of an object to one of its server's databases."""
        for slot in [slot for slot in self._open.get((namespace, database), {}) if slot[3] == dbname]:
            await self._close(slot)

    async def forget(self, namespace: str, database: str, keep: frozenset[str] = frozenset()) -> None:
        """Close the connections to all pods of a database but those in `keep`."""
        for slot in [slot for slot in self._open.get((namespace, database), {}) if slot[2] not in keep]:
            await self._close(slot)

    async def close(self) -> None:
        """Close everything."""
        for slot in [slot for slots in self._open.values() for slot in slots]:
            await self._close(slot)
        self._files.cleanup()


def _options(user: str) -> str:
    """For libpq's `options`."""
    read_only = "off" if user == naming.SUPERUSER else "on"
    settings = {**_PINNED, "default_transaction_read_only": read_only}
    return " ".join(f"-c {name}={value}" for name, value in settings.items())
