"""A PostgreSQL as the operator sets it up, with its pg_hba, pg_ident and CA, and a way in for the controller."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from integration.postgres_server import Database, PostgresServer, running_server
from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.postgres import certificates, hba, logins
from medianest_operator.postgres.certificates import KeyPair
from medianest_operator.postgres.sessions import Credentials, Instance

OWNER = "shop"
SPEC = DatabaseSpec.model_validate({"database": {"name": "shop", "owner": OWNER}})
READER = f"{OWNER}_controller"
PASSWORDS = {role.suffix: f"secret of {role.suffix}" for role in logins.LOGIN_ROLES}
_HOST = "shop-0.shop-pods.ns.svc"
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class SecuredServer:
    """A running server that the controller can log in to.

    Attributes:
        postgres: it, with a way in for the tests over its socket.
        address: a loopback address of its own, on the operator's port.
        credentials: the controller's.
    """

    postgres: PostgresServer
    address: str
    credentials: Credentials

    def instance(self, dbname: str, user: str) -> Instance:
        """Where the controller connects."""
        return Instance("ns", "shop", "shop-0", "uid", self.address, _HOST, dbname, user)

    def log(self) -> str:
        return (self.postgres.folder / "server.log").read_text(errors="replace")

    def database(self, name: str) -> Database:
        return Database(self.postgres, name)


@contextlib.contextmanager
def secured_server(*, admits_reader: bool = True) -> Iterator[SecuredServer]:
    """Start one. Over its socket it lets everybody in, which is how tests act as the migrator.

    Args:
        admits_reader: with pg_hba and pg_ident as an operator had them that knew no reader otherwise.
    """
    authority = certificates.new_ca("authority", datetime.now(UTC))
    server = certificates.issue(authority, "server", datetime.now(UTC), _DAY, (_HOST,))
    controller = certificates.issue(authority, naming.CERT_CONTROLLER, datetime.now(UTC), _DAY)
    address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
    rules = _without(admits_reader, hba.rules(READER)), _without(admits_reader, hba.identity_map(READER))
    with listening(address, server, authority.certificate, *rules, log_min_messages="warning") as running:
        credentials = Credentials(controller.certificate, controller.key, authority.certificate)
        yield SecuredServer(running, address, credentials)


@contextlib.contextmanager
def listening(
    address: str, own: KeyPair, ca: str, rules: list[str], identity_map: list[str], **settings: str
) -> Iterator[PostgresServer]:
    """A server that listens with TLS.

    Args:
        own: its certificate.
        ca: that of the clients' CA.
        rules: lines of pg_hba.conf, below one that trusts the socket.
        identity_map: lines of pg_ident.conf.
        settings: further parameters.
    """
    folder = Path(tempfile.mkdtemp(prefix="mn-tls-"))
    files = {
        "tls.crt": own.certificate,
        "tls.key": own.key,
        "ca.crt": ca,
        "pg_hba.conf": "\n".join(["local all all trust", *rules]) + "\n",
        "pg_ident.conf": "\n".join(identity_map) + "\n",
    }
    try:
        for name, text in files.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            for path in (folder, *folder.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)
        settings |= {
            "listen_addresses": address,
            "ssl": "on",
            "ssl_cert_file": str(folder / "tls.crt"),
            "ssl_key_file": str(folder / "tls.key"),
            "ssl_ca_file": str(folder / "ca.crt"),
            "hba_file": str(folder / "pg_hba.conf"),
            "ident_file": str(folder / "pg_ident.conf"),
        }
        with running_server(*(f"{name}={value}" for name, value in settings.items())) as running:
            yield running
    finally:
        shutil.rmtree(folder)


def _without(admits_reader: bool, lines: list[str]) -> list[str]:
    return lines if admits_reader else [line for line in lines if READER not in line]
