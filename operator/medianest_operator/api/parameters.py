"""Which of PostgreSQL's parameters a spec may not set, and why: said once, for the API server and for the operator.

What the API server can't check, because it needs PostgreSQL's own table of parameters, is in `postgres/parameters.py`.
"""

from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

from pydantic.config import JsonDict

RESERVED_PARAMETERS: Final = (
    "allow_system_table_mods", "archive_cleanup_command", "archive_command", "archive_library", "archive_mode",
    "cluster_name", "config_file", "data_directory", "dynamic_library_path", "event_source", "extension_destdir",
    "external_pid_file", "hba_file", "hot_standby", "ident_file", "jit_provider", "krb_server_keyfile",
    "listen_addresses", "local_preload_libraries", "log_destination", "log_directory", "log_filename",
    "logging_collector", "max_connections", "port", "primary_conninfo", "primary_slot_name", "promote_trigger_file",
    "recovery_end_command", "recovery_min_apply_delay", "recovery_target", "recovery_target_action",
    "recovery_target_inclusive", "recovery_target_lsn", "recovery_target_name", "recovery_target_time",
    "recovery_target_timeline", "recovery_target_xid", "restart_after_crash", "restore_command",
    "session_preload_libraries", "ssl", "ssl_ca_file", "ssl_cert_file", "ssl_ciphers", "ssl_crl_dir", "ssl_crl_file",
    "ssl_dh_params_file", "ssl_ecdh_curve", "ssl_key_file", "ssl_min_protocol_version", "ssl_passphrase_command",
    "synchronous_standby_names", "unix_socket_directories", "unix_socket_group", "unix_socket_permissions",
    "wal_level",
)  # fmt: skip
"""Parameters that the operator or Patroni owns: they carry availability, encryption or the server's identity."""

TRUE_WORDS: Final = ("on", "true", "yes", "1")
FALSE_WORDS: Final = ("off", "false", "no", "0")
"""PostgreSQL takes more spellings of a boolean (PostgreSQL manual, 20.1.1); Patroni drops a parameter that has one."""


class Group:
    """Parameters that have only one good value, for one reason."""

    def __init__(self, reason: str, values: dict[str, tuple[str, ...]]) -> None:
        """
        Args:
            reason: what another value does: the rest of a sentence.
            values: the words that are taken, in small letters, for each parameter; none where it can't be set at all.
        """
        self.reason = reason
        self.values = MappingProxyType(values)


GROUPS: Final = (
    Group(
        "loses or damages data without a word",
        {
            "data_sync_retry": FALSE_WORDS,
            "fsync": TRUE_WORDS,
            "full_page_writes": TRUE_WORDS,
            "ignore_checksum_failure": FALSE_WORDS,
            "ignore_invalid_pages": FALSE_WORDS,
            "ignore_system_indexes": FALSE_WORDS,
            "session_replication_role": ("origin",),
            "zero_damaged_pages": FALSE_WORDS,
        },
    ),
    Group(
        "lets people in, or do more, than the roles of the database allow",
        {
            "db_user_namespace": FALSE_WORDS,
            "krb_caseins_users": FALSE_WORDS,
            "lo_compat_privileges": FALSE_WORDS,
            "password_encryption": ("scram-sha-256",),
            "row_security": TRUE_WORDS,
            "ssl_max_protocol_version": ("", "tlsv1.2", "tlsv1.3"),
            "standard_conforming_strings": TRUE_WORDS,
        },
    ),
    Group(
        "stops the application, Patroni or this operator when the whole server has it",
        {
            "default_transaction_read_only": FALSE_WORDS,
            "exit_on_error": FALSE_WORDS,
            "post_auth_delay": ("0",),
            "pre_auth_delay": ("0",),
            "transaction_deferrable": (),
            "transaction_isolation": (),
            "transaction_read_only": (),
        },
    ),
    Group(
        "keeps PostgreSQL from starting",
        {
            "bonjour": FALSE_WORDS,
            "default_table_access_method": ("heap",),
            "default_tablespace": ("", "pg_default"),
            "default_with_oids": FALSE_WORDS,
            "huge_pages": ("off", "false", "no", "0", "try"),
            "temp_tablespaces": ("",),
        },
    ),
)

PATRONI_MINIMA: Final = MappingProxyType(
    {
        "max_connections": (25, 100),
        "max_locks_per_transaction": (32, 64),
        "max_replication_slots": (4, 10),
        "max_wal_senders": (3, 10),
        "max_worker_processes": (2, 8),
    }
)
"""The least that Patroni takes, and what it starts PostgreSQL with instead of less, without saying so
(`ConfigHandler.CMDLINE_OPTIONS` in patroni/postgresql/config.py)."""

NO_COMMIT: Final = (*FALSE_WORDS, "local")
"""Values of synchronous_commit with which a commit waits for no replica."""


def _strings(words: tuple[str, ...]) -> str:
    return f"[{', '.join(repr(word) for word in words)}]"


def _rule(bad: str, reason: str, names: Iterable[str] = ()) -> dict[str, str]:
    """A rule that no parameter may be `bad`, an expression over its `name`; the message names the first that is.

    Args:
        names: the only parameters that can be.
    """
    one_of = f" ({', '.join(names)})" if names else ": each"
    return {
        "rule": f"self.all(name, !({bad}))",
        "message": f"postgresql.parameters{one_of} {reason}",
        "messageExpression": f"'postgresql.parameters.' + self.filter(name, {bad})[0] + ' {reason}'",
    }


def _group_rule(group: Group) -> dict[str, str]:
    values = ", ".join(f"'{name}': {_strings(words)}" for name, words in group.values.items())
    known = f"{{{values}}}"
    bad = f"name in {known} && !(string(self[name]).lowerAscii() in {known}[name])"
    return _rule(bad, f"must have its safe value or not be set: another value {group.reason}", group.values)


def parameter_rules() -> JsonDict:
    """CEL rules on the map of parameters."""
    minima = ", ".join(f"'{name}': {low}" for name, (low, _) in PATRONI_MINIMA.items() if name != "max_connections")
    known = f"{{{minima}}}"
    least = minima.replace("'", "").replace(":", "")
    # Not a number is for the operator to say: it knows the units.
    too_low = (
        f"name in {known} && string(self[name]).matches('^-?[0-9]{{1,9}}$') && int(string(self[name])) < {known}[name]"
    )
    rules = [
        _rule(
            f"name in {_strings(RESERVED_PARAMETERS)}",
            "must not be set: the operator owns it (listening, archiving, recovery, TLS, authentication, replication,"
            " logging destination, wal_level); max_connections is connections.max",
            RESERVED_PARAMETERS,
        ),
        _rule(
            "!name.matches('^[a-z_][a-z0-9_]*([.][a-z_][a-z0-9_]*)?$')",
            "must be named as PostgreSQL writes it: small letters, digits, underscores, and a dot for an extension",
        ),
        _rule(
            r"string(self[name]).matches('[\\x00-\\x1f\\x7f]')",
            "must not hold a line break or a control character: the configuration file would be broken, and the next"
            " start would fail (in YAML, write >- or quotes instead of |)",
        ),
        _rule(
            too_low,
            f"is too low: Patroni would ignore it; it takes no less than {least}",
            [name for name in PATRONI_MINIMA if name != "max_connections"],
        ),
        *(_group_rule(group) for group in GROUPS),
    ]
    return {"x-kubernetes-validations": [dict(rule) for rule in rules]}
