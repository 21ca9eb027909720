"""Patroni's configuration: what every member reads from its file, and what the cluster shares."""

import json
from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec, Synchronous
from medianest_operator.kubernetes.kinds import CONFIG_MAP, Manifest
from medianest_operator.naming import Names
from medianest_operator.postgres import hba, logins, parameters
from medianest_operator.resources.meta import manifest

TTL = 20
"""Seconds after which a silent primary loses the leader key (Patroni raises anything lower)."""
LOOP_WAIT = 5
RETRY_TIMEOUT = 5


TOLERATED_LAG = 1024 * 1024
"""Bytes that a replica may lack where nobody has more and the last primary doesn't come back."""


def dynamic_configuration(spec: DatabaseSpec) -> dict[str, Any]:
    """The configuration in the cluster's own store, which Patroni applies to every member."""
    return {
        "ttl": TTL,
        "loop_wait": LOOP_WAIT,
        "retry_timeout": RETRY_TIMEOUT,
        # Who lacks anything that the last primary had published isn't elected: a volume that slept through it, or a
        # replica that stopped a moment before it. A replica that streams has it within milliseconds.
        "maximum_lag_on_failover": 0,
        # Nobody is elected whose volume is of a time before the last promotion that Patroni wrote down.
        "check_timeline": True,
        "primary_start_timeout": 60,
        # A primary whose members all answer goes on while the API server is away (Patroni manual, DCS Failsafe Mode).
        "failsafe_mode": True,
        "synchronous_mode": spec.postgresql.synchronous != Synchronous.OFF,
        "synchronous_mode_strict": spec.postgresql.synchronous == Synchronous.REQUIRED,
        "postgresql": {
            "use_pg_rewind": True,
            "use_slots": True,
            "remove_data_directory_on_rewind_failure": True,
            "parameters": parameters.desired(spec),
        },
    }


def configuration(names: Names, spec: DatabaseSpec) -> dict[str, Any]:
    """The file of every member. Passwords don't occur: Patroni logs in over the socket or by its certificate."""
    certificate = {
        "sslmode": "verify-ca",
        "sslcert": f"{naming.CLIENT_TLS_MOUNT}/{naming.TLS_CERT}",
        "sslkey": f"{naming.CLIENT_TLS_MOUNT}/{naming.TLS_KEY}",
        "sslrootcert": f"{naming.SERVER_TLS_MOUNT}/{naming.TLS_CA}",
    }
    server = f"{naming.SERVER_TLS_MOUNT}/{naming.TLS_CERT}", f"{naming.SERVER_TLS_MOUNT}/{naming.TLS_KEY}"
    client_ca = f"{naming.SERVER_TLS_MOUNT}/{naming.CLIENT_CA}"
    reader = logins.controller_name(spec.database.owner)
    wal_directory = [{"waldir": naming.WAL_DIRECTORY}] if spec.wal_storage else []
    return {
        "scope": names.scope,
        "log": {"level": "INFO", "format": "%(asctime)s %(levelname)s: %(message)s"},
        "restapi": {
            "listen": f"*:{naming.PATRONI_PORT}",
            "certfile": server[0],
            "keyfile": server[1],
            "cafile": client_ca,
            # Reading needs no certificate (the kubelet has none); changing anything does.
            "verify_client": "optional",
        },
        "ctl": {
            "cacert": certificate["sslrootcert"],
            "certfile": certificate["sslcert"],
            "keyfile": certificate["sslkey"],
        },
        "kubernetes": {
            "use_endpoints": True,
            "labels": names.pod_selector | {naming.LABEL_MANAGED_BY: naming.OPERATOR},
            "scope_label": naming.LABEL_SCOPE,
            "role_label": naming.LABEL_ROLE,
            "leader_label_value": naming.ROLE_PRIMARY,
            "follower_label_value": naming.ROLE_REPLICA,
            "ports": [{"name": "postgres", "port": naming.POSTGRES_PORT}],
        },
        "bootstrap": {
            "dcs": dynamic_configuration(spec),
            # Byte order sorts the same under every libc, so that no index depends on the image's locale data.
            "initdb": [
                {"encoding": "UTF8"},
                {"lc-collate": "C"},
                {"lc-ctype": "C.UTF-8"},
                "data-checksums",
                *wal_directory,
            ],
        },
        "postgresql": {
            "listen": f"*:{naming.POSTGRES_PORT}",
            "bin_dir": naming.POSTGRES_BIN,
            "data_dir": naming.DATA_DIRECTORY,
            "pgpass": "/tmp/pgpass",
            "use_unix_socket": True,
            "authentication": {
                "superuser": {"username": naming.SUPERUSER, **certificate},
                "replication": {"username": naming.REPLICATION_ROLE, **certificate},
            },
            "pg_hba": hba.rules(reader),
            "pg_ident": hba.identity_map(reader),
            "parameters": {
                "unix_socket_directories": naming.SOCKET_DIRECTORY,
                "ssl": "on",
                "ssl_cert_file": server[0],
                "ssl_key_file": server[1],
                "ssl_ca_file": client_ca,
                "ssl_min_protocol_version": "TLSv1.2",
                "logging_collector": "off",
                "log_destination": "stderr",
            },
            **_copies(spec, wal_directory),
        },
        "watchdog": {"mode": "off"},
    }


def _copies(spec: DatabaseSpec, wal_directory: list[dict[str, str]]) -> dict[str, Any]:
    """How a replica is made."""
    basebackup = {"basebackup": [{"checkpoint": "fast"}, *wal_directory]}
    if spec.wal_storage is None:
        return basebackup | {"create_replica_methods": ["basebackup"]}
    # pg_basebackup alone refuses a log's directory in which an earlier replica left something. An image of an earlier
    # version has only that.
    copy = {"command": f"{naming.DBCTL_BIN} copy-primary --waldir={naming.WAL_DIRECTORY}"}
    return basebackup | {"create_replica_methods": ["copy", "basebackup"], "copy": copy}


def config_map(names: Names, spec: DatabaseSpec, owner: Mapping[str, Any]) -> Manifest:
    """The ConfigMap with the members' file (JSON, which is YAML)."""
    text = json.dumps(configuration(names, spec), indent=2, sort_keys=True)
    return manifest(
        CONFIG_MAP,
        names,
        names.patroni_config,
        owner,
        component=naming.COMPONENT_POSTGRES,
        data={naming.PATRONI_CONFIG_KEY: text},
    )
