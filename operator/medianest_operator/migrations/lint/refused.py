"""Statements that reach outside the database, or into the run's own records: no rollback of them could be verified.

What is left out on purpose, because it stays in one transaction and the catalog's fingerprint holds it: ALTER DATABASE
... SET, and ALTER ROLE ... IN DATABASE ... SET.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from medianest_operator.hardening.naming import PREFIX, is_own
from medianest_operator.migrations import history
from medianest_operator.migrations.lint import offences as why
from medianest_operator.migrations.lint.findings import PUBLIC
from medianest_operator.migrations.lint.offences import Offence
from medianest_operator.migrations.lint.syntax import Node, constant_text, names_of, option
from medianest_operator.naming import JOURNAL_SCHEMA
from medianest_operator.postgres import run_lock

_TRUSTED_LANGUAGES = frozenset({"sql", "plpgsql", "plperl", "pltcl"})
_OUTSIDE_EXTENSIONS = frozenset(
    {
        *("dblink", "postgres_fdw", "file_fdw", "adminpack", "pg_cron", "pg_net", "http", "pg_background"),
        *("plpython3u", "plpythonu", "plperlu", "pltclu", "plsh", "pljava", "plr"),
    }
)
_SERVER_OBJECTS = {
    "OBJECT_DATABASE": why.DATABASE,
    "OBJECT_ROLE": why.ROLE,
    "OBJECT_TABLESPACE": why.TABLESPACE,
    "OBJECT_SUBSCRIPTION": why.SUBSCRIPTION,
    "OBJECT_FOREIGN_SERVER": why.FOREIGN,
    "OBJECT_FDW": why.FOREIGN,
    "OBJECT_FOREIGN_TABLE": why.FOREIGN,
}

# PostgreSQL manual, "System Administration Functions", "Large Object" server-side functions, and contrib's adminpack.
_FILES = frozenset(
    {
        *("lo_import", "lo_export", "pg_read_file", "pg_read_binary_file", "pg_stat_file", "pg_read_file_old"),
        *("pg_ls_dir", "pg_ls_logdir", "pg_ls_waldir", "pg_ls_archive_statusdir", "pg_ls_tmpdir"),
        *("pg_ls_logicalsnapdir", "pg_ls_logicalmapdir", "pg_ls_replslotdir", "pg_logdir_ls", "pg_current_logfile"),
        *("pg_file_write", "pg_file_read", "pg_file_rename", "pg_file_unlink", "pg_file_sync", "pg_file_length"),
    }
)
_SERVER = frozenset(
    {
        *("pg_reload_conf", "pg_rotate_logfile", "pg_logfile_rotate", "pg_promote", "pg_switch_wal"),
        *("pg_create_restore_point", "pg_start_backup", "pg_stop_backup", "pg_backup_start", "pg_backup_stop"),
        *("pg_wal_replay_pause", "pg_wal_replay_resume", "pg_logical_emit_message"),
    }
)
_SLOTS = frozenset(
    {
        *("pg_create_physical_replication_slot", "pg_create_logical_replication_slot", "pg_drop_replication_slot"),
        *("pg_copy_physical_replication_slot", "pg_copy_logical_replication_slot", "pg_replication_slot_advance"),
        *("pg_logical_slot_get_changes", "pg_logical_slot_get_binary_changes", "pg_sync_replication_slots"),
        *("pg_replication_origin_create", "pg_replication_origin_drop", "pg_replication_origin_advance"),
    }
)
_SESSIONS = frozenset({"pg_terminate_backend", "pg_cancel_backend"})
_OTHER_SERVER_PREFIXES = ("dblink", "postgres_fdw_")
_UNLOCKING = frozenset({"pg_advisory_unlock", "pg_advisory_unlock_shared", "pg_advisory_unlock_all"})


def offences(tag: str, node: Node) -> Iterator[Offence]:
    """What a node does that is refused, wherever in a statement it stands."""
    if (always := _ALWAYS.get(tag)) is not None:
        yield always
    if (rule := _RULES.get(tag)) is not None:
        yield from rule(node)
    yield from _reserved(tag, node)


def _copy(node: Node) -> Iterator[Offence]:
    if node.get("is_program"):
        yield Offence(
            "copy-program",
            f"COPY ... PROGRAM runs a command on the server, and {why.OUTSIDE}; write the rows as INSERT statements.",
        )
    elif "filename" in node:
        yield Offence(
            "copy-file",
            "COPY reads or writes a file on the server, which no other node has and no rollback reverts; write the rows"
            " as INSERT statements.",
        )
    elif node.get("is_from"):
        yield Offence(
            "copy-stdin",
            "COPY FROM STDIN waits for data that a migration file can't carry (psql reads the lines that follow,"
            " PostgreSQL does not); write the rows as INSERT statements.",
        )


def _transaction(node: Node) -> Iterator[Offence]:
    if node.get("kind") in ("TRANS_STMT_PREPARE", "TRANS_STMT_COMMIT_PREPARED", "TRANS_STMT_ROLLBACK_PREPARED"):
        yield why.TWO_PHASE


def _set(node: Node) -> Iterator[Offence]:
    if node.get("kind") == "VAR_SET_VALUE" and node.get("name") == "session_authorization":
        yield why.AUTHORIZATION
    if node.get("name") == "search_path" and JOURNAL_SCHEMA in map(constant_text, node.get("args", [])):
        yield _journal()


def _discard(node: Node) -> Iterator[Offence]:
    if node.get("target", "DISCARD_ALL") == "DISCARD_ALL":
        yield why.DISCARD


def _function_language(node: Node) -> Iterator[Offence]:
    language = next(iter(names_of(option(node, "language"))), "plpgsql").lower()
    if language not in _TRUSTED_LANGUAGES:
        yield Offence(
            "untrusted-language",
            f"uses the language {language}, whose code can do on the server's machine what the server can, so what it"
            " changes can't be known; write it in SQL or PL/pgSQL.",
        )


def _extension(node: Node) -> Iterator[Offence]:
    name = str(node.get("extname", ""))
    if name in _OUTSIDE_EXTENSIONS:
        yield Offence(
            "outside-extension",
            f"extension {name} reaches other servers, files or programs, and {why.OUTSIDE}; {why.TAKE_OUT} and, if the"
            " application needs it, have a superuser install it.",
        )


def _function_call(node: Node) -> Iterator[Offence]:
    names = names_of(node.get("funcname"))
    name = names[-1] if names else ""
    if name in _FILES:
        yield Offence(
            "server-file",
            f"{name} reads or writes files on the server, and {why.OUTSIDE}; put the data into the migration.",
        )
    elif name in _SERVER:
        yield Offence("server-function", f"{name} acts on the whole server, and {why.OUTSIDE}; {why.TAKE_OUT}.")
    elif name in _SLOTS:
        yield Offence(
            "replication-slot", f"{name} changes the server's replication, and {why.OUTSIDE}; {why.TAKE_OUT}."
        )
    elif name in _SESSIONS:
        yield Offence(
            "other-session",
            f"{name} ends what other sessions do, and with it perhaps the operator's own; take it out: the run reports"
            " who blocks it, and gives up after spec.migrations.lockTimeout.",
        )
    elif name.startswith(_OTHER_SERVER_PREFIXES):
        yield Offence(
            "other-server", f"{name} runs SQL in another session or server, and {why.OUTSIDE}; {why.TAKE_OUT}."
        )
    elif name == "set_config" and JOURNAL_SCHEMA in map(constant_text, node.get("args", [])):
        yield _journal()
    elif name in _UNLOCKING and not _unlocks_another_key(node):
        yield why.UNLOCK


def _unlocks_another_key(node: Node) -> bool:
    keys = [argument.get("A_Const", {}).get("ival") for argument in node.get("args", [])]
    if not keys or None in keys:
        return False
    return len(keys) == 2 or keys[0].get("ival", 0) != run_lock.LOCK_KEY


def _table_command(node: Node) -> Iterator[Offence]:
    if node.get("subtype") == "AT_SetTableSpace":
        yield why.TABLESPACE


def _in_tablespace(node: Node) -> Iterator[Offence]:
    if node.keys() & {"tablespacename", "tableSpace", "tableSpaceName", "indexspace"} or "tableSpaceName" in node.get(
        "into", {}
    ):
        yield why.TABLESPACE


def _alter_role_set(node: Node) -> Iterator[Offence]:
    if "database" not in node:
        yield Offence(
            "role-setting",
            "ALTER ROLE ... SET holds for the role in every database of the server; write ALTER ROLE ... IN DATABASE"
            " ... SET, or ALTER DATABASE ... SET.",
        )


def _grant(node: Node) -> Iterator[Offence]:
    match node.get("objtype"):
        case "OBJECT_DATABASE":
            yield why.DATABASE_RIGHTS
        case "OBJECT_TABLESPACE":
            yield why.TABLESPACE
        case "OBJECT_PARAMETER_ACL":
            yield why.PARAMETER
        case "OBJECT_FDW" | "OBJECT_FOREIGN_SERVER":
            yield why.FOREIGN


def _rename_or_owner(node: Node) -> Iterator[Offence]:
    kind = node.get("renameType") or node.get("objectType")
    if (found := _SERVER_OBJECTS.get(kind or "")) is not None:
        yield found
    elif kind == "OBJECT_SCHEMA":
        yield from _schemas([node.get("subname"), node.get("newname")], renamed=True)
    if node.get("newname") == history.TABLE and kind == "OBJECT_TABLE":
        yield _history()


def _comment(node: Node) -> Iterator[Offence]:
    if node.get("objtype") in ("OBJECT_DATABASE", "OBJECT_ROLE", "OBJECT_TABLESPACE"):
        yield why.SHARED_COMMENT


def _drop(node: Node) -> Iterator[Offence]:
    kind = node.get("removeType", "")
    if kind in _SERVER_OBJECTS:
        yield _SERVER_OBJECTS[kind]
    elif kind == "OBJECT_SCHEMA" and PUBLIC in names_of(node.get("objects")):
        yield from _schemas([PUBLIC], renamed=True)


def _create_schema(node: Node) -> Iterator[Offence]:
    yield from _schemas([node.get("schemaname")])


def _new_schema(node: Node) -> Iterator[Offence]:
    yield from _schemas([node.get("newschema")])


def _schemas(names: list[str | None], renamed: bool = False) -> Iterator[Offence]:
    if JOURNAL_SCHEMA in names:
        yield _journal()
    if renamed and names[0] == PUBLIC:
        yield Offence(
            "schema-public",
            f"takes the schema public away, and with it {history.TABLE}, where the run keeps the history; drop or move"
            " the tables one by one.",
        )


def _table(node: Node) -> Iterator[Offence]:
    schema = node.get("schemaname")
    if schema == JOURNAL_SCHEMA:
        yield _journal()
    elif node.get("relname") == history.TABLE and schema in (None, PUBLIC):
        yield _history()


def _names(node: Node) -> Iterator[Offence]:
    names = node["names"]
    if JOURNAL_SCHEMA in names:
        yield _journal()
    elif names[-1] == history.TABLE and names[:-1] in ([], [PUBLIC]):
        yield _history()


def _string(node: Node) -> Iterator[Offence]:
    yield from _names({"names": [node.get("sval", "")]})


_NAMES_MADE = {
    "IndexStmt": "idxname",
    "CreateTrigStmt": "trigname",
    "CreatePolicyStmt": "policy_name",
    "Constraint": "conname",
    "ColumnDef": "colname",
    "RenameStmt": "newname",
}


def _reserved(tag: str, node: Node) -> Iterator[Offence]:
    """What is made under a name by which the operator knows its own is seen by no comparison before and after."""
    names = names_of(node.get("funcname")) if tag == "CreateFunctionStmt" else [node.get(_NAMES_MADE.get(tag, ""), "")]
    if names and is_own(names[-1]):
        yield Offence(
            "reserved-name",
            f"makes {names[-1]}. Names that begin with {PREFIX} are those of spec.hardening's own objects; give it"
            " another.",
        )


def _journal() -> Offence:
    return Offence(
        "journal",
        f"touches the schema {JOURNAL_SCHEMA}, where the run keeps its journal: without it an interrupted run could not"
        " be finished or rolled back; take it out.",
    )


def _history() -> Offence:
    return Offence(
        "history",
        f"touches {history.TABLE}, which says what is applied and which the run itself writes; take it out. To correct"
        " the history use `prisma migrate resolve`.",
    )


_ALWAYS = {
    "AlterSystemStmt": why.SYSTEM,
    "CreatedbStmt": why.DATABASE,
    "DropdbStmt": why.DATABASE,
    "AlterDatabaseStmt": why.DATABASE,
    "AlterDatabaseRefreshCollStmt": why.DATABASE,
    "CreateRoleStmt": why.ROLE,
    "AlterRoleStmt": why.ROLE,
    "DropRoleStmt": why.ROLE,
    "GrantRoleStmt": why.ROLE,
    "ReassignOwnedStmt": why.OWNED,
    "DropOwnedStmt": why.OWNED,
    "CreateTableSpaceStmt": why.TABLESPACE,
    "DropTableSpaceStmt": why.TABLESPACE,
    "AlterTableSpaceOptionsStmt": why.TABLESPACE,
    "AlterTableMoveAllStmt": why.TABLESPACE,
    "CreateSubscriptionStmt": why.SUBSCRIPTION,
    "AlterSubscriptionStmt": why.SUBSCRIPTION,
    "DropSubscriptionStmt": why.SUBSCRIPTION,
    "CreateForeignServerStmt": why.FOREIGN,
    "AlterForeignServerStmt": why.FOREIGN,
    "CreateFdwStmt": why.FOREIGN,
    "AlterFdwStmt": why.FOREIGN,
    "CreateUserMappingStmt": why.FOREIGN,
    "AlterUserMappingStmt": why.FOREIGN,
    "DropUserMappingStmt": why.FOREIGN,
    "CreateForeignTableStmt": why.FOREIGN,
    "ImportForeignSchemaStmt": why.FOREIGN,
    "LoadStmt": why.LOAD,
    "CreatePLangStmt": why.LANGUAGE,
}

_RULES: dict[str, Callable[[Node], Iterator[Offence]]] = {
    "CopyStmt": _copy,
    "TransactionStmt": _transaction,
    "VariableSetStmt": _set,
    "DiscardStmt": _discard,
    "CreateFunctionStmt": _function_language,
    "DoStmt": _function_language,
    "CreateExtensionStmt": _extension,
    "FuncCall": _function_call,
    "AlterTableCmd": _table_command,
    "CreateStmt": _in_tablespace,
    "CreateTableAsStmt": _in_tablespace,
    "IndexStmt": _in_tablespace,
    "Constraint": _in_tablespace,
    "AlterRoleSetStmt": _alter_role_set,
    "GrantStmt": _grant,
    "RenameStmt": _rename_or_owner,
    "AlterOwnerStmt": _rename_or_owner,
    "CommentStmt": _comment,
    "SecLabelStmt": _comment,
    "DropStmt": _drop,
    "CreateSchemaStmt": _create_schema,
    "AlterObjectSchemaStmt": _new_schema,
    "RangeVar": _table,
    "Names": _names,
    "String": _string,
}
