"""What a DBA does while a run is at work. He is a superuser, and so nobody locks him out."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from integration.postgres_server import Database

ROLE = "dba_by_night"
"""The role that one of the acts makes; the server's other databases see it as well."""


@dataclass(frozen=True)
class Act:
    """One thing that a DBA does.

    Attributes:
        name: what people call it.
        sql: what he says.
        undo: what takes it back.
        his: it makes something that belongs to him, which no run may take away.
        seen: the database is another one after it, as `state` sees it.
    """

    name: str
    sql: str
    undo: str = ""
    his: bool = False
    seen: bool = True


ACTS = (
    Act("table", "CREATE TABLE by_night AS SELECT 1 AS one", "DROP TABLE by_night", his=True),
    Act("schema", "CREATE SCHEMA night CREATE TABLE kept (id int)", "DROP SCHEMA night CASCADE", his=True),
    Act("view", "CREATE VIEW by_night AS SELECT id FROM users", "DROP VIEW by_night", his=True),
    Act("publication", "CREATE PUBLICATION by_night FOR TABLE users", "DROP PUBLICATION by_night", his=True),
    Act("type", "CREATE TYPE by_night AS (one int)", "DROP TYPE by_night", his=True),
    Act("right", "GRANT TRIGGER ON users TO stranger", "REVOKE TRIGGER ON users FROM stranger"),
    Act("comment", "COMMENT ON TABLE sessions IS 'by night'", "COMMENT ON TABLE sessions IS NULL"),
    Act("index", "CREATE INDEX by_night ON users (name)", "DROP INDEX IF EXISTS by_night"),
    Act("role", f"CREATE ROLE {ROLE}", f"DROP ROLE {ROLE}", seen=False),
    Act("analyze", "ANALYZE users", seen=False),
    Act("vacuum", "VACUUM tags", seen=False),
    Act("reindex", "REINDEX TABLE sessions", seen=False),
    Act("checkpoint", "CHECKPOINT", seen=False),
)  # fmt: skip


def do(database: Database, act: Act) -> bool:
    """Do it if no lock is in the way; returns whether it is done."""
    return _say(database, act.sql)


def undo(database: Database, act: Act) -> bool:
    """Take it back, as far as it is there; returns whether it was."""
    return not act.undo or _say(database, act.undo)


def _say(database: Database, sql: str) -> bool:
    try:
        with database.connect(options="-c lock_timeout=200ms") as connection:
            connection.execute(sql.encode())
    except psycopg.Error:
        return False
    return True
