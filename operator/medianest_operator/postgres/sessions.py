"""One persistent connection to each instance: a probe over it costs a fortieth of a new connection.

The controller logs in as the superuser by its own client certificate, straight to the pod's address, and verifies the
server's name.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg.rows import TupleRow

from medianest_operator import naming

Connection = psycopg.AsyncConnection[TupleRow]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = 3
"""Seconds. A frozen server's kernel still accepts TCP, so every step has its own deadline."""
QUERY_TIMEOUT: Final = 5.0


class Unreachable(Exception):
    """An instance can't be asked; the message says why, for people."""


@dataclass(frozen=True)
class Credentials:
    """The controller's client certificate and the authority of the server, as PEM."""

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


class Sessions:
    """The persistent connections of this process."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, str, str], tuple[Instance, Credentials, Connection]] = {}
        self._files = tempfile.TemporaryDirectory(prefix="medianest-tls-")

    @contextlib.asynccontextmanager
    async def use(
        self, instance: Instance, credentials: Credentials, patience: float = QUERY_TIMEOUT
    ) -> AsyncIterator[Connection]:
        """A connection for some queries. Raises Unreachable where it can't be had or breaks in the middle.

        Args:
            patience: how long all of them may take, in seconds.
        """
        slot = (instance.namespace, instance.database, instance.pod, instance.dbname)
        known = self._open.get(slot)
        if known and (known[0] != instance or known[1] != credentials or known[2].closed):
            await self._close(slot)
            known = None
        try:
            async with asyncio.timeout(patience):
                if known is None:
                    connection = await self._connect(instance, credentials)
                    self._open[slot] = (instance, credentials, connection)
                else:
                    connection = known[2]
                yield connection
        except (TimeoutError, psycopg.OperationalError, psycopg.InterfaceError, OSError) as error:
            await self._close(slot)
            if isinstance(error, psycopg.errors.InvalidCatalogName):
                raise
            reason = " ".join(str(error).split()) or f"no answer within {patience:.0f} s"
            raise Unreachable(f"{instance.pod}: {reason}") from error

    async def _connect(self, instance: Instance, credentials: Credentials) -> Connection:
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
        return await psycopg.AsyncConnection.connect(
            host=instance.host,
            hostaddr=instance.address,
            port=naming.POSTGRES_PORT,
            user=naming.SUPERUSER,
            dbname=instance.dbname,
            sslmode="verify-full",
            sslcert=str(folder / naming.TLS_CERT),
            sslkey=str(folder / naming.TLS_KEY),
            sslrootcert=str(folder / naming.TLS_CA),
            application_name=naming.OPERATOR,
            connect_timeout=CONNECT_TIMEOUT,
            tcp_user_timeout=5000,
            keepalives_idle=10,
            keepalives_interval=3,
            keepalives_count=3,
            options=f"-c statement_timeout={int(QUERY_TIMEOUT * 1000)} -c lock_timeout=2000",
            autocommit=True,
        )

    async def _close(self, slot: tuple[str, str, str, str]) -> None:
        if entry := self._open.pop(slot, None):
            with contextlib.suppress(Exception):
                await entry[2].close()

    async def leave(self, namespace: str, database: str, dbname: str) -> None:
        """Close the connections of an object to one of its server's databases."""
        for slot in [slot for slot in self._open if slot[:2] == (namespace, database) and slot[3] == dbname]:
            await self._close(slot)

    async def forget(self, namespace: str, database: str, keep: frozenset[str] = frozenset()) -> None:
        """Close the connections to all pods of a database but those in `keep`."""
        for slot in [slot for slot in self._open if slot[:2] == (namespace, database) and slot[2] not in keep]:
            await self._close(slot)

    async def close(self) -> None:
        """Close everything."""
        for slot in list(self._open):
            await self._close(slot)
        self._files.cleanup()
