"""What each option of `spec.hardening` wants in the database: pure, from the options to statements.

The facts are those of the application's database analysis and security guide: nine single-column indexes, CHECK
constraints on four columns, a time of change for users and one of creation for service configurations, and rows that
belong to a user. They differ from the reports where those would break the application:

- the reports' allowed values would refuse what signing in writes, so that the admin chooses them;
- the columns carry the prefix, so that a migration of the application's may add an `updated_at` of its own; rows that
  were there before hold NULL rather than the time at which the option was turned on;
- the policies let a session that sets no user work as before, since the application sets none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from medianest_operator.api.hardening import Hardening, Option
from medianest_operator.hardening.naming import CURRENT_USER_ID, MARK, PREFIX, USER_SETTING
from medianest_operator.kubernetes.kinds import digest

Column = tuple[str, str]

RECOMMENDED_INDEXES: Final[tuple[Column, ...]] = (
    ("users", "status"),
    ("users", "role"),
    ("users", "last_login_at"),
    ("media_requests", "status"),
    ("media_requests", "media_type"),
    ("youtube_downloads", "status"),
    ("youtube_downloads", "created_at"),
    ("service_config", "enabled"),
    ("service_config", "updated_at"),
)
"""Table and column of each, in the reports' order."""

USER_TABLES: Final[tuple[Column, ...]] = (
    ("users", "id"),
    ("accounts", "user_id"),
    ("sessions", "user_id"),
    ("session_tokens", "user_id"),
    ("media_requests", "user_id"),
    ("youtube_downloads", "user_id"),
    ("rate_limits", "user_id"),
    ("error_logs", "user_id"),
)
"""The tables whose rows belong to a user, and the column that says to whom."""

TOUCH: Final = f"{PREFIX}touch"
IS_ADMIN: Final = f"{PREFIX}current_user_is_admin"
EVERYBODY: Final = f"{PREFIX}everybody"
OWN_ROWS: Final = f"{PREFIX}own_rows"
UPDATED_AT: Final = f"{PREFIX}updated_at"
CREATED_AT: Final = f"{PREFIX}created_at"

_TOUCH_BODY: Final = f"""
BEGIN
  NEW.{UPDATED_AT} := pg_catalog.now() AT TIME ZONE 'UTC';
  RETURN NEW;
END
"""
# A setting that was made with SET LOCAL leaves an empty one behind.
_CURRENT_USER_ID_BODY: Final = f"SELECT NULLIF(pg_catalog.current_setting('{USER_SETTING}', true), '')"
_IS_ADMIN_BODY: Final = (
    f"SELECT EXISTS (SELECT FROM public.users WHERE id = public.{CURRENT_USER_ID}()"
    " AND pg_catalog.lower(role) = 'admin')"
)
BODIES: Final = {TOUCH: _TOUCH_BODY, CURRENT_USER_ID: _CURRENT_USER_ID_BODY, IS_ADMIN: _IS_ADMIN_BODY}
"""The functions' bodies by name: a function of ours with another body was changed by somebody."""


@dataclass(frozen=True, slots=True)
class OwnObject:
    """One object of the operator's.

    Attributes:
        option: the field of the spec that wants it.
        kind: `index`, `constraint`, `column`, `trigger`, `function` or `policy`.
        table: the table that it belongs to, in `public`; empty for a function.
        name: its name; a function has no arguments.
        create: the statements that make it; each can be run again. A constraint's definition, not a statement.
        needs: the tables and columns without which it can't be.
        words: what it is for, for its comment.
    """

    option: Option
    kind: str
    table: str
    name: str
    create: tuple[sql.Composed, ...]
    needs: frozenset[Column]
    words: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.table, self.name

    @property
    def comment(self) -> str:
        """Says whose it is, and holds a digest of how it is made: an object made otherwise is made again."""
        text = "\n".join(statement.as_string() for statement in self.create)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{MARK}{self.option}: {self.words}. Not part of any migration. [{digest}]"

    @property
    def comment_statement(self) -> sql.Composed:
        return comment_on(self.kind, self.table, self.name, self.comment)


def own_objects(options: Hardening, app_role: str) -> tuple[OwnObject, ...]:
    """Everything that the options want, in the order in which it can be made.

    Args:
        options: `spec.hardening`.
        app_role: the role that the application logs in as; row-level security holds for it alone.
    """
    wanted: list[OwnObject] = []
    if options.check_constraints.enabled:
        wanted += _constraints(options)
    if options.audit_columns:
        wanted += _audit_columns()
    if options.row_level_security:
        wanted += _row_level_security(app_role)
    if options.recommended_indexes:
        wanted += [_index(table, column) for table, column in RECOMMENDED_INDEXES]
    return tuple(wanted)


def enabled_options(options: Hardening) -> frozenset[Option]:
    """The options that are on."""
    return frozenset(
        option
        for option, on in (
            (Option.CHECK_CONSTRAINTS, options.check_constraints.enabled),
            (Option.AUDIT_COLUMNS, options.audit_columns),
            (Option.ROW_LEVEL_SECURITY, options.row_level_security),
            (Option.RECOMMENDED_INDEXES, options.recommended_indexes),
        )
        if on
    )


def allowed_values(options: Hardening) -> dict[Column, Sequence[str]]:
    """The columns that have a CHECK constraint, and what it admits."""
    checks = options.check_constraints
    return {
        ("users", "role"): checks.user_roles,
        ("users", "status"): checks.user_statuses,
        ("media_requests", "media_type"): checks.media_types,
        ("media_requests", "status"): checks.media_request_statuses,
    }


def check_name(table: str, column: str) -> str:
    """The name of the CHECK constraint on a column."""
    return f"{PREFIX}{table}_{column}_check"


def qualified(table: str) -> sql.Identifier:
    """A table of the application's, however the session's search_path is."""
    return sql.Identifier("public", table)


def comment_on(kind: str, table: str, name: str, text: str) -> sql.Composed:
    """`COMMENT ON` an object of ours."""
    own, of = sql.Identifier(name), qualified(table)
    target = {
        "index": sql.SQL("INDEX {}").format(qualified(name)),
        "column": sql.SQL("COLUMN {}.{}").format(of, own),
        "constraint": sql.SQL("CONSTRAINT {} ON {}").format(own, of),
        "trigger": sql.SQL("TRIGGER {} ON {}").format(own, of),
        "policy": sql.SQL("POLICY {} ON {}").format(own, of),
        "function": sql.SQL("FUNCTION {}()").format(qualified(name)),
    }[kind]
    return sql.SQL("COMMENT ON {} IS {}").format(target, sql.Literal(text))


def drop(kind: str, table: str, name: str) -> sql.Composed:
    """Drop an object of ours. Nothing that depends on it goes with it: the server refuses, and says what does."""
    own, of = sql.Identifier(name), qualified(table)
    match kind:
        case "index":
            return sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(qualified(name))
        case "column":
            return sql.SQL("ALTER TABLE {} DROP COLUMN IF EXISTS {}").format(of, own)
        case "constraint":
            return sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(of, own)
        case "trigger":
            return sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(own, of)
        case "policy":
            return sql.SQL("DROP POLICY IF EXISTS {} ON {}").format(own, of)
        case _:
            return sql.SQL("DROP FUNCTION IF EXISTS {}()").format(qualified(name))


def _index(table: str, column: str) -> OwnObject:
    name = f"{PREFIX}{table}_{column}_idx"
    create = sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} ({})").format(
        sql.Identifier(name), qualified(table), sql.Identifier(column)
    )
    return OwnObject(
        Option.RECOMMENDED_INDEXES, "index", table, name, (create,), frozenset({(table, column)}),
        "an index that the readiness report recommends",
    )  # fmt: skip


def _constraints(options: Hardening) -> list[OwnObject]:
    result = []
    for (table, column), values in allowed_values(options).items():
        words = sql.SQL(", ").join(sql.Literal(value) for value in values)
        definition = sql.SQL("CHECK ({} IN ({}))").format(sql.Identifier(column), words)
        result.append(
            OwnObject(
                Option.CHECK_CONSTRAINTS,
                "constraint",
                table,
                check_name(table, column),
                (definition,),
                frozenset({(table, column)}),
                f"the words that {table}.{column} may hold",
            )
        )
    return result


def _audit_columns() -> list[OwnObject]:
    audit = Option.AUDIT_COLUMNS

    def column(table: str, name: str, words: str) -> OwnObject:
        # Without a default at first: no row is rewritten, and none is given a time at which nothing happened.
        add = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} timestamp(3)").format(
            qualified(table), sql.Identifier(name)
        )
        default = sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT (now() AT TIME ZONE 'UTC')").format(
            qualified(table), sql.Identifier(name)
        )
        return OwnObject(audit, "column", table, name, (add, default), frozenset({(table, "id")}), words)

    touch = sql.SQL(
        "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {}"
    ).format(qualified(TOUCH), sql.Literal(_TOUCH_BODY))
    # The condition lets a restore write the column itself, and ties the trigger to the column: a column that was
    # dropped below a trigger of that name would make every update fail.
    trigger = sql.SQL(
        "CREATE OR REPLACE TRIGGER {} BEFORE UPDATE ON {} FOR EACH ROW"
        " WHEN (NEW.{column} IS NOT DISTINCT FROM OLD.{column}) EXECUTE FUNCTION {}()"
    ).format(sql.Identifier(TOUCH), qualified("users"), qualified(TOUCH), column=sql.Identifier(UPDATED_AT))
    needs = frozenset({("users", "id")})
    return [
        column("users", UPDATED_AT, "when the row was last written, UTC; NULL if not since the column was added"),
        OwnObject(audit, "function", "", TOUCH, (touch,), needs, "keeps the time of the last change"),
        OwnObject(audit, "trigger", "users", TOUCH, (trigger,), needs, "keeps the time of the last change"),
        column("service_config", CREATED_AT, "when the row was made, UTC; NULL if before the column was added"),
    ]


def _row_level_security(app_role: str) -> list[OwnObject]:
    rls = Option.ROW_LEVEL_SECURITY
    app = sql.Identifier(app_role)
    needs = frozenset({("users", "id"), ("users", "role")})

    def function(name: str, result: str, properties: str, words: str) -> OwnObject:
        create = sql.SQL("CREATE OR REPLACE FUNCTION {}() RETURNS {} LANGUAGE sql STABLE PARALLEL SAFE{} AS {}").format(
            qualified(name), sql.SQL(result), sql.SQL(properties), sql.Literal(BODIES[name])
        )  # fmt: skip
        revoke = sql.SQL("REVOKE ALL ON FUNCTION {}() FROM PUBLIC").format(qualified(name))
        grant = sql.SQL("GRANT EXECUTE ON FUNCTION {}() TO {}").format(qualified(name), app)
        # As its owner, whom the policies on users don't hold: asked as the application, they would ask themselves.
        statements = (create, revoke, grant) if properties else (create, grant)
        return OwnObject(rls, "function", "", name, statements, needs, words)

    as_owner = " SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
    wanted = [
        function(CURRENT_USER_ID, "text", "", f"the user in {USER_SETTING}, NULL if none is set"),
        function(IS_ADMIN, "boolean", as_owner, f"whether the user in {USER_SETTING} is an admin"),
    ]
    for table, column in USER_TABLES:
        where = frozenset({(table, column)}) | needs
        wanted.append(
            OwnObject(
                rls,
                "policy",
                table,
                EVERYBODY,
                _policy(table, EVERYBODY, "PERMISSIVE", sql.SQL("PUBLIC"), _ALWAYS),
                where,
                "all roles see what they are granted, as without row-level security",
            )
        )
        # In sub-selects: asked once a statement, not once a row.
        own = sql.SQL("(SELECT {user}()) IS NULL OR {column} = (SELECT {user}()) OR (SELECT {is_admin}())").format(
            user=qualified(CURRENT_USER_ID), column=sql.Identifier(column), is_admin=qualified(IS_ADMIN)
        )
        wanted.append(
            OwnObject(
                rls,
                "policy",
                table,
                OWN_ROWS,
                _policy(table, OWN_ROWS, "RESTRICTIVE", app, own),
                where,
                f"the application sees a user's rows only where it sets {USER_SETTING}",
            )
        )
    return wanted


_ALWAYS: Final = sql.SQL("true")


def _policy(
    table: str, name: str, strictness: str, role: sql.Composable, rows: sql.Composable
) -> tuple[sql.Composed, ...]:
    create = sql.SQL("CREATE POLICY {} ON {} AS {} FOR ALL TO {} USING ({rows}) WITH CHECK ({rows})").format(
        sql.Identifier(name), qualified(table), sql.SQL(strictness), role, rows=rows
    )  # fmt: skip
    return drop("policy", table, name), create


def options_digest(options: Hardening, app_role: str, schema_version: str | None) -> str:
    """Changes with the options, with what this operator makes of them, and with the schema that they are applied to."""
    wanted = [item.comment for item in own_objects(options, app_role)]
    return digest([options.model_dump(mode="json"), wanted, schema_version])
