"""The login roles' Secrets: everything that a client needs to connect."""

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.kubernetes.kinds import SECRET, Manifest
from medianest_operator.naming import Names
from medianest_operator.postgres.logins import MIGRATOR, LoginRole, role_name
from medianest_operator.resources.meta import manifest


def encode(data: Mapping[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}


def decode(secret: Mapping[str, Any], key: str) -> str | None:
    """A value of a Secret; None where it is absent or not text."""
    value = (secret.get("data") or {}).get(key)
    if not value:
        return None
    try:
        return base64.b64decode(value).decode()
    except ValueError:
        return None


def login_secret(
    names: Names,
    spec: DatabaseSpec,
    role: LoginRole,
    password: str,
    ca: str,
    owner: Mapping[str, Any],
    *,
    replicas: bool,
) -> Manifest:
    """The Secret of a login role. The read-only role points at the replicas where there are any."""
    service = names.read_only_service if role.read_only and replicas else names.read_write_service
    host, port, database = names.service_fqdn(service), str(naming.POSTGRES_PORT), spec.database.name
    user = role_name(spec, role)
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@{host}:{port}/{database}"
    prisma = {
        "connection_limit": 1 if role is MIGRATOR else spec.connections.limit,
        "pool_timeout": spec.connections.pool_timeout,
        "connect_timeout": spec.connections.connect_timeout,
        "sslmode": "require",
        "schema": "public",
    }
    jdbc = urlencode({"user": user, "password": password, "sslmode": "require"}, quote_via=quote)
    data = {
        "host": host,
        "port": port,
        "dbname": database,
        "user": user,
        "username": user,
        "password": password,
        "uri": f"postgresql://{login}?sslmode=require",
        "jdbc-uri": f"jdbc:postgresql://{host}:{port}/{database}?{jdbc}",
        "DATABASE_URL": f"postgresql://{login}?{urlencode(prisma)}",
        naming.TLS_CA: ca,
    }
    return manifest(SECRET, names, names.role_secret(role.suffix), owner, type="Opaque", data=encode(data))


def tls_secret(names: Names, name: str, certificate: str, key: str, ca: str, owner: Mapping[str, Any]) -> Manifest:
    """A certificate with its key and its CA."""
    data = {naming.TLS_CERT: certificate, naming.TLS_KEY: key, naming.TLS_CA: ca}
    return manifest(SECRET, names, name, owner, type="kubernetes.io/tls", data=encode(data))
